//! How values become columns and back, the same on every backend: the byte codec, and the spelling of NUL where a
//! column cannot hold it.
//!
//! Byte columns (`kwargs`, `body`, `value`, ..) hold plain UTF-8 JSON text under codec 0, so bytes come back as they
//! went in. Metadata is kept searchable instead; on Postgres that is jsonb, which refuses `\u0000`. NUL is therefore
//! written as U+E000 `0`, and U+E000 itself (a private-use character nobody sends) as U+E000 `1`. That is reversible,
//! and containment of encoded documents is containment of the originals.

use std::borrow::Cow;

use super::{Result, StorageError};
use crate::model::{ErrorInfo, Json};

/// Plain UTF-8 JSON text.
pub(crate) const PLAIN: i16 = 0;

const MARK: char = '\u{e000}';

/// The bytes of a value under [`PLAIN`].
pub(crate) fn bytes(json: &Json) -> Vec<u8> {
    json.text().into_bytes()
}

/// Names a stored value in errors.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) table: &'static str,
    pub(crate) column: &'static str,
    pub(crate) id: &'a dyn std::fmt::Display,
}

impl Place<'_> {
    pub(crate) fn corrupt(&self, reason: impl Into<String>) -> StorageError {
        StorageError::Corrupt { table: self.table, column: self.column, id: self.id.to_string(), reason: reason.into() }
    }
}

/// Reads a byte column.
pub(crate) fn json(codec: i16, bytes: Vec<u8>, place: Place<'_>) -> Result<Json> {
    if codec != PLAIN {
        return Err(place.corrupt(format!("codec {codec} is unknown to this build")));
    }
    let text = String::from_utf8(bytes).map_err(|error| place.corrupt(error.to_string()))?;
    Json::trusted(text).map_err(|error| place.corrupt(error.0))
}

/// The bytes of an error shown to clients.
pub(crate) fn error_bytes(error: &ErrorInfo) -> Vec<u8> {
    let fields = [("error", Json::from(error.error.as_str())), ("message", Json::from(error.message.as_str()))];
    bytes(&Json::from_fields(fields.iter().map(|(key, value)| (*key, value))))
}

/// Reads an error column.
pub(crate) fn error_info(codec: i16, bytes: Option<Vec<u8>>, place: Place<'_>) -> Result<Option<ErrorInfo>> {
    bytes.map(|bytes| json(codec, bytes, place)?.decode().map_err(|error| place.corrupt(error.0))).transpose()
}

/// Text for a `text` column: NUL hidden.
pub(crate) fn hide_nul(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', MARK]) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\0' => out.extend([MARK, '0']),
            MARK => out.extend([MARK, '1']),
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}

/// The reverse of [`hide_nul`].
pub(crate) fn show_nul(text: String) -> String {
    if !text.contains(MARK) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            MARK => out.push(if chars.next() == Some('0') { '\0' } else { MARK }),
            other => out.push(other),
        }
    }
    out
}

/// The text of a metadata document for its column: NUL hidden.
pub(crate) fn metadata_text(json: &Json) -> String {
    let text = json.text();
    let suspicious = text.contains("\\u0000") || text.contains("\\ue000") || text.contains("\\uE000");
    if !suspicious && !text.contains(MARK) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        // Outside strings JSON has neither a backslash nor U+E000, so escapes can be rewritten without tracking quotes;
        // taking a backslash together with what follows it keeps `\\u0000` (a backslash and text) as it is.
        if c == '\\' {
            let escape = rest.get(..6).unwrap_or("");
            if escape == "\\u0000" {
                out.extend([MARK, '0']);
                rest = &rest[6..];
            } else if escape.eq_ignore_ascii_case("\\ue000") && escape.starts_with("\\u") {
                out.extend([MARK, '1']);
                rest = &rest[6..];
            } else {
                let next = rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..1 + next]);
                rest = &rest[1 + next..];
            }
            continue;
        }
        out.push(c);
        if c == MARK {
            out.push('1');
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// Reads a metadata column: NUL shown again, and the white space dropped that jsonb prints.
pub(crate) fn metadata(text: &str, place: Place<'_>) -> Result<Json> {
    let mut out = String::with_capacity(text.len());
    let mut in_string = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                in_string = !in_string;
                out.push(c);
            }
            '\\' => {
                out.push(c);
                out.extend(chars.next());
            }
            MARK => match chars.next() {
                Some('0') => out.push_str("\\u0000"),
                _ => out.push(MARK),
            },
            ' ' | '\n' | '\r' | '\t' if !in_string => {}
            other => out.push(other),
        }
    }
    Json::trusted(out).map_err(|error| place.corrupt(error.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place<'static> = Place { table: "t", column: "c", id: &"i" };

    #[test]
    fn metadata_with_nul_and_private_use_round_trips() {
        for text in [
            r#"{"a":"x\u0000y"}"#,
            r#"{"a":"\\u0000"}"#,
            r#"{"a":"\\\u0000"}"#,
            "{\"a\":\"\u{e000}0\"}",
            r#"{"a b":" c \" d ","e":[1,2]}"#,
        ] {
            let original = Json::parse(text).expect("valid");
            let hidden = metadata_text(&original);
            assert!(!hidden.replace("\\\\", "").contains("\\u0000"), "{hidden}");
            assert_eq!(metadata(&hidden, HERE).expect("reads").text(), text);
        }
        let escaped = Json::parse(r#"{"a":"\uE000"}"#).expect("valid");
        let back = metadata(&metadata_text(&escaped), HERE).expect("reads");
        assert_eq!(back.value()["a"], "\u{e000}");
        assert_eq!(metadata("{\"a\": [1, 2]}", HERE).expect("reads").text(), r#"{"a":[1,2]}"#);
    }

    #[test]
    fn text_with_nul_round_trips() {
        for text in ["", "plain", "a\0b", "\u{e000}0", "\u{e000}\0"] {
            let hidden = hide_nul(text);
            assert!(!hidden.contains('\0'));
            assert_eq!(show_nul(hidden.into_owned()), text);
        }
    }

    #[test]
    fn an_unknown_codec_names_its_place() {
        let error = json(7, b"1".to_vec(), HERE).expect_err("unknown");
        assert!(matches!(error, StorageError::Corrupt { table: "t", column: "c", .. }), "{error}");
    }
}
