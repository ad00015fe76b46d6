//! What is in the body of a row: a frame of a JSON header and bytes. Small values are in the frame; larger ones are payloads
//! of the thread, referred to by hash, and cut in pieces when they are large ([`super::chunks`]).

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::chunks::{cut, grouped};
use super::known::Hashes;
use super::{Sent, SentBytes, Value};
use crate::model::{Json, frame};
use crate::runtime::RuntimeError;
use crate::storage::{ForeignPayload, PayloadHash, StorageError, StoredBytes as Stored};

/// Values up to this size are in the row itself, and sent with every checkpoint.
pub const INLINE: usize = 128;
/// Values up to this size are one payload; and in the row itself, when a task wrote them: hardly ever twice.
pub(super) const WHOLE: usize = 2 * 1024;

/// Where the bytes of a value are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    #[serde(rename = "type")]
    tag: String,
    /// Offset and length in the frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<(usize, usize)>,
    /// Of the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

/// The header of a checkpoint's body.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CheckpointBody {
    /// As it came, but for the values.
    pub(super) checkpoint: Json,
    pub(super) metadata: Json,
    pub(super) values: indexmap::IndexMap<String, Place>,
}

/// A write in the header, a list, of the body of writes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WriteBody {
    pub(super) channel: String,
    pub(super) idx: i64,
    #[serde(flatten)]
    pub(super) value: Place,
}

/// The payloads that a batch brings and refers to, and the bytes of the frame being made.
#[derive(Debug, Default)]
pub(super) struct Packer {
    pub(super) payloads: Vec<ForeignPayload>,
    pub(super) references: Vec<PayloadHash>,
    /// All that values are made of, down to the last piece.
    pub(super) seen: HashSet<PayloadHash>,
    /// Whether something is left out because the thread was seen to have it: then it is among the references.
    pub(super) relies: bool,
    known: Hashes,
    bytes: Vec<u8>,
    /// Of payloads since the last frame.
    added: usize,
}

impl Packer {
    /// For a thread that is likely to have `known`.
    pub(super) fn new(known: Hashes) -> Packer {
        Packer { known, ..Packer::default() }
    }

    /// Finds a place for a value: in the frame, if it has at most so many bytes.
    pub(super) fn place(&mut self, sent: &Sent, inline: usize) -> Place {
        let tag = sent.tag.clone();
        let hash = match &sent.bytes {
            SentBytes::Known(hash) => {
                self.references.push(*hash);
                *hash
            }
            SentBytes::Bytes(bytes) if bytes.len() <= inline => {
                let at = Some((self.bytes.len(), bytes.len()));
                self.bytes.extend_from_slice(bytes);
                return Place { tag, at, hash: None };
            }
            SentBytes::Bytes(bytes) => self.payload(bytes),
        };
        Place { tag, at: None, hash: Some(hex(&hash)) }
    }

    fn payload(&mut self, value: &Bytes) -> PayloadHash {
        let hash = hash_of(value);
        if !self.is_new(hash) {
            self.rely_on(&[hash]);
            return hash;
        }
        let cut = cut(value);
        if value.len() <= WHOLE || cut.pieces.is_empty() {
            self.add(hash, Stored::Raw(value.to_vec()));
            return hash;
        }
        let mut pieces = Vec::with_capacity(cut.pieces.len());
        for piece in cut.pieces {
            let part = hash_of(piece);
            pieces.push(part);
            if self.is_new(part) {
                self.add(part, Stored::Raw(piece.to_vec()));
            }
        }
        let parts = grouped(pieces, |group| {
            // Named apart from a value of the same bytes.
            let name = hash_of(&[&b"group"[..], &group.concat()].concat());
            if self.is_new(name) {
                self.rely_on(group);
                self.add(name, Stored::Parts { head: Vec::new(), parts: group.to_vec(), tail: Vec::new() });
            }
            name
        });
        self.rely_on(&parts);
        self.add(hash, Stored::Parts { head: cut.head.to_vec(), parts, tail: cut.tail.to_vec() });
        hash
    }

    /// Whether a payload must be made: this batch has not brought it, nor is it likely to be there.
    fn is_new(&mut self, hash: PayloadHash) -> bool {
        self.seen.insert(hash) && !self.known.contains(&hash)
    }

    /// Those that are likely to be there must be. What they are made of is where they are.
    fn rely_on(&mut self, hashes: &[PayloadHash]) {
        let before = self.references.len();
        self.references.extend(hashes.iter().filter(|hash| self.known.contains(*hash)));
        self.relies |= self.references.len() > before;
    }

    fn add(&mut self, hash: PayloadHash, bytes: Stored) {
        self.added += match &bytes {
            Stored::Raw(value) => value.len(),
            Stored::Parts { head, parts, tail } => head.len() + parts.len() * 16 + tail.len(),
        };
        self.payloads.push(ForeignPayload { hash, bytes });
    }

    /// Ends a frame: its bytes, and how much the row and its payloads are.
    pub(super) fn finish(&mut self, header: &impl Serialize) -> Result<(Vec<u8>, i64), RuntimeError> {
        let header = Json::of(header).map_err(|error| RuntimeError::Invalid(error.0))?;
        let body = frame::join(&header.text(), &std::mem::take(&mut self.bytes));
        let added = body.len() + std::mem::take(&mut self.added);
        Ok((body, i64::try_from(added).unwrap_or(i64::MAX)))
    }
}

/// The first 16 bytes of the SHA-256: a hash that every client can compute.
pub fn hash_of(bytes: &[u8]) -> PayloadHash {
    let mut hash = PayloadHash::default();
    hash.copy_from_slice(&Sha256::digest(bytes)[..16]);
    hash
}

/// A hash as clients see it.
pub fn hex(hash: &PayloadHash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what [`hex`] writes.
pub fn parse_hex(text: &str) -> Option<PayloadHash> {
    let mut hash = PayloadHash::default();
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Takes a frame apart.
pub(super) fn open<T: for<'a> Deserialize<'a>>(
    table: &'static str,
    id: &str,
    body: Vec<u8>,
) -> Result<(T, Bytes), StorageError> {
    let corrupt = |reason: String| StorageError::Corrupt { table, column: "body", id: id.to_owned(), reason };
    let body = Bytes::from(body);
    let (header, rest) = frame::split(&body).map_err(|error| corrupt(error.to_owned()))?;
    let header = serde_json::from_str(header).map_err(|error| corrupt(error.to_string()))?;
    Ok((header, body.slice(body.len() - rest.len()..)))
}

impl Place {
    pub(super) fn hash(&self) -> Option<PayloadHash> {
        self.hash.as_deref().and_then(parse_hex)
    }

    /// The value, from the frame it is in or the payloads that were read.
    pub(super) fn value(&self, frame: &Bytes, payloads: &HashMap<PayloadHash, Bytes>) -> Option<Value> {
        let hash = self.hash();
        let bytes = match (self.at, hash) {
            (Some((from, length)), _) => {
                let end = from.checked_add(length).filter(|end| *end <= frame.len())?;
                frame.slice(from..end)
            }
            (None, Some(hash)) => payloads.get(&hash)?.clone(),
            (None, None) => return None,
        };
        Some(Value { tag: self.tag.clone(), hash, bytes })
    }
}

/// Puts values together from their rows; those whose rows are not all there are left out.
pub(super) fn assemble(wanted: &[PayloadHash], rows: Vec<ForeignPayload>) -> HashMap<PayloadHash, Bytes> {
    let rows: HashMap<PayloadHash, Stored> = rows.into_iter().map(|row| (row.hash, row.bytes)).collect();
    let mut whole = HashMap::with_capacity(wanted.len());
    for hash in wanted {
        let mut value = Vec::new();
        if append(&rows, hash, &mut value, MAX_LEVELS).is_some() {
            whole.insert(*hash, Bytes::from(value));
        }
    }
    whole
}

/// Groups of groups of pieces: a value of 32 MiB has three levels of them.
const MAX_LEVELS: usize = 16;

fn append(rows: &HashMap<PayloadHash, Stored>, hash: &PayloadHash, value: &mut Vec<u8>, levels: usize) -> Option<()> {
    match rows.get(hash)? {
        Stored::Raw(bytes) => value.extend_from_slice(bytes),
        Stored::Parts { head, parts, tail } => {
            let below = levels.checked_sub(1)?;
            value.extend_from_slice(head);
            parts.iter().try_for_each(|part| append(rows, part, value, below))?;
            value.extend_from_slice(tail);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_whatever_their_size_and_content() {
        let random: Vec<u8> = (0..30_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for value in [Vec::new(), vec![7; INLINE], vec![7; INLINE + 1], vec![7; WHOLE + 1], vec![7; 100_000], random] {
            let value = Bytes::from(value);
            let mut packer = Packer::default();
            let sent = Sent { tag: "bytes".to_owned(), bytes: SentBytes::Bytes(value.clone()) };
            // Twice, as two channels may hold the same.
            let places = [packer.place(&sent, INLINE), packer.place(&sent, INLINE)];
            let payloads = assemble(&[hash_of(&value)], std::mem::take(&mut packer.payloads));
            let frame = Bytes::from(std::mem::take(&mut packer.bytes));
            for place in places {
                assert_eq!(place.value(&frame, &payloads).expect("there").bytes, value);
            }
        }
    }

    #[test]
    fn hashes_are_read_as_they_are_written() {
        let hash = hash_of(b"x");
        assert_eq!(parse_hex(&hex(&hash)), Some(hash));
        for bad in ["", "0", "zz345678901234567890123456789012", "\u{e4}23456789012345678901234567890"] {
            assert_eq!(parse_hex(bad), None, "{bad}");
        }
    }
}
