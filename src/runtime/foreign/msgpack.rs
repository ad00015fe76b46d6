//! Msgpack as LangGraph's serializer writes it, read as data. Its extension types name Python classes and what to make them
//! of; here that is shown, and never made.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value as Shown, json};

use super::decode::opaque;

/// The deepest nesting that is read: less than what a JSON document may have.
const MAX_DEPTH: usize = 100;

/// Why a value is shown as bytes after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Reads one value, to the last byte.
pub(super) fn read(bytes: &[u8]) -> Result<Shown, Unreadable> {
    nested(bytes, 0)
}

fn nested(bytes: &[u8], depth: usize) -> Result<Shown, Unreadable> {
    let mut reader = Reader { rest: bytes };
    let value = reader.value(depth)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(Unreadable) }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Unreadable)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Unreadable)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A length of 1, 2 or 4 bytes.
    fn length(&mut self, bytes: usize) -> Result<usize, Unreadable> {
        let taken = self.take(bytes)?;
        Ok(taken.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    fn value(&mut self, depth: usize) -> Result<Shown, Unreadable> {
        if depth > MAX_DEPTH {
            return Err(Unreadable);
        }
        let [marker] = self.array()?;
        let low = |mask: u8| usize::from(marker & mask);
        Ok(match marker {
            0x00..=0x7f => json!(marker),
            0x80..=0x8f => self.map(low(0x0f), depth)?,
            0x90..=0x9f => self.list(low(0x0f), depth)?,
            0xa0..=0xbf => self.text(low(0x1f))?,
            0xc0 => Shown::Null,
            0xc1 => return Err(Unreadable),
            0xc2 => Shown::Bool(false),
            0xc3 => Shown::Bool(true),
            0xc4..=0xc6 => {
                let length = self.length(1 << (marker - 0xc4))?;
                opaque("bytes", self.take(length)?)
            }
            0xc7..=0xc9 => {
                let length = self.length(1 << (marker - 0xc7))?;
                self.extension(length, depth)?
            }
            0xca => float(f64::from(f32::from_be_bytes(self.array()?))),
            0xcb => float(f64::from_be_bytes(self.array()?)),
            0xcc => json!(u8::from_be_bytes(self.array()?)),
            0xcd => json!(u16::from_be_bytes(self.array()?)),
            0xce => json!(u32::from_be_bytes(self.array()?)),
            0xcf => json!(u64::from_be_bytes(self.array()?)),
            0xd0 => json!(i8::from_be_bytes(self.array()?)),
            0xd1 => json!(i16::from_be_bytes(self.array()?)),
            0xd2 => json!(i32::from_be_bytes(self.array()?)),
            0xd3 => json!(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => self.extension(1 << (marker - 0xd4), depth)?,
            0xd9..=0xdb => {
                let length = self.length(1 << (marker - 0xd9))?;
                self.text(length)?
            }
            0xdc | 0xdd => {
                let length = self.length(2 << (marker - 0xdc))?;
                self.list(length, depth)?
            }
            0xde | 0xdf => {
                let length = self.length(2 << (marker - 0xde))?;
                self.map(length, depth)?
            }
            0xe0..=0xff => json!(i8::from_be_bytes([marker])),
        })
    }

    fn text(&mut self, length: usize) -> Result<Shown, Unreadable> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| Unreadable)?;
        Ok(Shown::String(text.to_owned()))
    }

    /// Nothing is allocated ahead: what is announced may not be there.
    fn list(&mut self, length: usize, depth: usize) -> Result<Shown, Unreadable> {
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(self.value(depth + 1)?);
        }
        Ok(Shown::Array(items))
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<Shown, Unreadable> {
        let mut members = Map::new();
        for _ in 0..length {
            let key = match self.value(depth + 1)? {
                Shown::String(key) => key,
                other => other.to_string(),
            };
            // A key of a JSON document cannot hold NUL.
            let key = key.replace('\0', "\u{fffd}");
            let value = self.value(depth + 1)?;
            members.insert(key, value);
        }
        Ok(Shown::Object(members))
    }

    fn extension(&mut self, length: usize, depth: usize) -> Result<Shown, Unreadable> {
        let [code] = self.array()?;
        let data = self.take(length)?;
        // One that cannot be read does not spoil what is around it.
        Ok(object(code, data, depth + 1).unwrap_or_else(|| opaque(&format!("ext:{}", i8::from_be_bytes([code])), data)))
    }
}

/// What LangGraph's extension types stand for: (module, name, argument, ..), but for the last two.
fn object(code: u8, data: &[u8], depth: usize) -> Option<Shown> {
    let inner = nested(data, depth).ok()?;
    match code {
        0..=5 => {
            let Shown::Array(mut parts) = inner else { return None };
            let class = (parts.first()?.as_str()?.to_owned(), parts.get(1)?.as_str()?.to_owned());
            (parts.len() >= 3).then(|| shown((&class.0, &class.1), parts.swap_remove(2)))
        }
        6 => {
            let [dtype, shape, _, data] = inner.as_array()?.as_slice() else { return None };
            Some(json!({"type": "ndarray", "dtype": dtype, "shape": shape, "data": data}))
        }
        // The value of a channel that is stored as changes.
        7 => Some(inner),
        _ => None,
    }
}

/// An object, as what it was made of; a few as people know them.
fn shown(class: (&str, &str), argument: Shown) -> Shown {
    match (class, &argument) {
        (("uuid", "UUID"), Shown::String(hex)) if hex.len() == 32 && hex.is_ascii() => {
            let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
            Shown::String(parts.join("-"))
        }
        (("pathlib", _), Shown::Array(parts)) => {
            let mut path = String::new();
            for part in parts {
                let separator = if path.is_empty() || path.ends_with('/') { "" } else { "/" };
                // Writing to a string cannot fail.
                let _written = write!(path, "{separator}{}", part.as_str().unwrap_or_default());
            }
            Shown::String(path)
        }
        (("langgraph.types", "Send"), Shown::Array(parts)) if parts.len() >= 2 => {
            json!({"node": parts[0], "input": parts[1]})
        }
        _ => argument,
    }
}

/// JSON has no words for the numbers that are none.
fn float(number: f64) -> Shown {
    Number::from_f64(number).map_or_else(|| Shown::String(number.to_string()), Shown::Number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ext(code: u8, data: &[u8]) -> Vec<u8> {
        [&[0xc8, (data.len() >> 8) as u8, data.len() as u8, code][..], data].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [&[0xd9, text.len() as u8][..], text.as_bytes()].concat()
    }

    #[test]
    fn plain_values_are_json() {
        let bytes = [
            &[0x98, 0x01, 0xff, 0xc0, 0xc3][..],
            &[0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0],
            &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x81, 0x07, 0xa1, b'x'],
            &[0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(
            read(&bytes.concat()),
            Ok(json!([1, -1, null, true, 1.5, 18_446_744_073_709_551_615_u64, {"7": "x"}, "inf"]))
        );
    }

    #[test]
    fn objects_are_shown_as_what_they_are_made_of() {
        let message = [
            &[0x94][..],
            &text("langchain_core.messages.human"),
            &text("HumanMessage"),
            &[0x81],
            &text("content"),
            &text("Hi"),
            &text("x"),
        ];
        assert_eq!(read(&ext(5, &message.concat())), Ok(json!({"content": "Hi"})));
        let uuid = [&[0x93][..], &text("uuid"), &text("UUID"), &text(&"0123456789abcdef".repeat(2))];
        assert_eq!(read(&ext(0, &uuid.concat())), Ok(json!("01234567-89ab-cdef-0123-456789abcdef")));
        let path = [&[0x93][..], &text("pathlib"), &text("PosixPath"), &[0x93], &text("/"), &text("etc"), &text("x")];
        assert_eq!(read(&ext(1, &path.concat())), Ok(json!("/etc/x")));
        let send = [&[0x93][..], &text("langgraph.types"), &text("Send"), &[0x92], &text("node"), &[0x05]];
        assert_eq!(read(&ext(1, &send.concat())), Ok(json!({"node": "node", "input": 5})));
        assert_eq!(read(&ext(7, &[0x91, 0x01])), Ok(json!([1])));
        let danger = [&[0x94][..], &text("os"), &text("system"), &text("touch /tmp/x"), &text("x")];
        assert_eq!(read(&ext(3, &danger.concat())), Ok(json!("touch /tmp/x")), "and nothing happens");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (code, data) in [(5, &b"\xc1"[..]), (5, b"\x05"), (0, b"\x91\x01"), (99, b"\x01")] {
            let shown = read(&ext(code, data)).expect("the rest is fine");
            assert_eq!((&shown["type"], &shown["size"]), (&json!(format!("ext:{code}")), &json!(data.len())));
        }
        assert_eq!(read(&[0xc4, 0x02, 1, 2]).expect("bytes")["type"], "bytes");
        let deep = [vec![0x91; 5_000], vec![0xc0]].concat();
        for bad in [&b""[..], b"\xc1", b"\x91", b"\xa5abc", b"\x01\x01", b"\xa1\xff", b"\xdd\xff\xff\xff\xff", &deep] {
            assert_eq!(read(bad), Err(Unreadable));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = read(&bytes);
        }
    }
}
