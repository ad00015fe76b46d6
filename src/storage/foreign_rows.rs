//! How checkpoints from elsewhere and their values become columns and back, the same on every backend. What is worth it is
//! deflated.
//!
//! A row of parts: how many there are (2 bytes, big endian, where SQL can read them), their hashes, then what stands before
//! and after them: whether that is deflated (1 byte), the length of the head (1 byte), the head, and the tail.

use std::collections::HashSet;

use super::deflate::{deflated, inflated};
use super::encoding::Place;
use super::{ForeignPayload, PayloadHash, Result, StoredBytes};
use crate::model::ThreadKey;

/// Payload rows.
const RAW: i16 = 1;
const PARTS: i16 = 2;
const RAW_DEFLATED: i16 = 3;
/// Bodies of rows: frames.
const FRAME: i16 = 1;
const FRAME_DEFLATED: i16 = 3;

/// The columns of a body: codec and bytes.
pub(crate) fn body_columns(frame: &[u8]) -> (i16, Vec<u8>) {
    match deflated(frame) {
        Some(small) => (FRAME_DEFLATED, small),
        None => (FRAME, frame.to_vec()),
    }
}

/// Reads a body. `id` names its row.
pub(crate) fn body_from(table: &'static str, id: &str, codec: i16, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let at = |column| Place { table, column, id: &id };
    match codec {
        FRAME => Ok(bytes),
        FRAME_DEFLATED => inflated(&bytes).map_err(|error| at("body").corrupt(error.to_string())),
        other => Err(at("codec").corrupt(format!("codec {other} is unknown to this build"))),
    }
}

fn name(thread: ThreadKey, hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}/{hex}", thread.0)
}

/// The columns of a payload: codec and value.
pub(crate) fn payload_columns(bytes: &StoredBytes) -> (i16, Vec<u8>) {
    match bytes {
        StoredBytes::Raw(value) => match deflated(value) {
            Some(small) => (RAW_DEFLATED, small),
            None => (RAW, value.clone()),
        },
        StoredBytes::Parts { head, parts, tail } => {
            let count = u16::try_from(parts.len()).unwrap_or(u16::MAX).to_be_bytes();
            let literals = [&[u8::try_from(head.len()).unwrap_or(u8::MAX)][..], head, tail].concat();
            let (flag, literals) = match deflated(&literals) {
                Some(small) => (1, small),
                None => (0, literals),
            };
            (PARTS, [&count[..], &parts.concat(), &[flag], &literals].concat())
        }
    }
}

/// Reads a payload row.
pub(crate) fn payload_from(thread: ThreadKey, hash: &[u8], codec: i16, value: Vec<u8>) -> Result<ForeignPayload> {
    let name = name(thread, hash);
    let corrupt = |column, reason: String| Place { table: "payloads", column, id: &name }.corrupt(reason);
    let hash = PayloadHash::try_from(hash).map_err(|_| corrupt("hash", "not 16 bytes".into()))?;
    let bytes = match codec {
        RAW => StoredBytes::Raw(value),
        RAW_DEFLATED => StoredBytes::Raw(inflated(&value).map_err(|error| corrupt("value", error.to_string()))?),
        PARTS => parts_from(&value).ok_or_else(|| corrupt("value", "not a list of parts".into()))?,
        other => return Err(corrupt("codec", format!("codec {other} is unknown to this build"))),
    };
    Ok(ForeignPayload { hash, bytes })
}

fn parts_from(value: &[u8]) -> Option<StoredBytes> {
    let (count, rest) = value.split_first_chunk::<2>()?;
    let (hashes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*count)) * 16)?;
    let (flag, literals) = rest.split_first()?;
    let literals = match flag {
        0 => literals.to_vec(),
        1 => inflated(literals).ok()?,
        _ => return None,
    };
    let (length, literals) = literals.split_first()?;
    let (head, tail) = literals.split_at_checked(usize::from(*length))?;
    let (parts, _) = hashes.as_chunks::<16>();
    Some(StoredBytes::Parts { head: head.to_vec(), parts: parts.to_vec(), tail: tail.to_vec() })
}

/// All that is wanted is there, parts too.
pub(crate) fn complete(
    thread: ThreadKey,
    wanted: &[PayloadHash],
    found: Vec<ForeignPayload>,
) -> Result<Vec<ForeignPayload>> {
    let there: HashSet<PayloadHash> = found.iter().map(|payload| payload.hash).collect();
    let parts = found.iter().flat_map(|payload| payload.bytes.parts());
    if let Some(lost) = wanted.iter().chain(parts).find(|hash| !there.contains(*hash)) {
        let name = name(thread, lost);
        return Err(Place { table: "payloads", column: "hash", id: &name }.corrupt("the row is missing"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::storage::StorageError;

    const THREAD: ThreadKey = ThreadKey(Uuid::nil());

    #[test]
    fn rows_come_back_as_they_were() {
        let words = "the same words again ".repeat(50).into_bytes();
        let noise: Vec<u8> = (0..500_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let parts = |head: &[u8], tail: &[u8]| StoredBytes::Parts {
            head: head.to_vec(),
            parts: vec![[1; 16], [2; 16]],
            tail: tail.to_vec(),
        };
        for bytes in [
            StoredBytes::Raw(Vec::new()),
            StoredBytes::Raw(words.clone()),
            StoredBytes::Raw(noise.clone()),
            parts(b"", b""),
            parts(b"head", &words),
            parts(b"head", &noise),
        ] {
            let (codec, value) = payload_columns(&bytes);
            let back = payload_from(THREAD, &[7; 16], codec, value).expect("reads");
            assert_eq!(back, ForeignPayload { hash: [7; 16], bytes });
        }
        for frame in [Vec::new(), words, noise] {
            let (codec, value) = body_columns(&frame);
            assert_eq!(body_from("t", "i", codec, value).expect("reads"), frame);
        }
    }

    #[test]
    fn damage_names_its_place() {
        for (codec, value) in [(9, vec![]), (PARTS, vec![0]), (PARTS, vec![0, 1, 2]), (RAW_DEFLATED, vec![0xff; 9])] {
            let error = payload_from(THREAD, &[7; 16], codec, value).expect_err("damaged");
            assert!(matches!(error, StorageError::Corrupt { table: "payloads", .. }), "{error}");
        }
        assert!(body_from("t", "i", 7, Vec::new()).is_err() && body_from("t", "i", 3, vec![0xff; 9]).is_err());
        let lost = ForeignPayload {
            hash: [7; 16],
            bytes: StoredBytes::Parts { head: Vec::new(), parts: vec![[8; 16]], tail: Vec::new() },
        };
        assert!(complete(THREAD, &[[7; 16]], vec![lost]).is_err());
    }
}
