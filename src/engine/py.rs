//! Python's text forms, where the wire shows them.

use std::str::Chars;

use crate::model::Json;
use serde_json::Value;

/// `repr()` of a string.
pub fn repr_str(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The string that a `repr()` stands for; `None` if it is not that of one string.
pub fn str_from_repr(repr: &str) -> Option<String> {
    let quote = repr.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut rest = repr.strip_prefix(quote)?.strip_suffix(quote)?.chars();
    let mut out = String::with_capacity(repr.len());
    while let Some(c) = rest.next() {
        out.push(match c {
            '\\' => unescape(&mut rest)?,
            c if c == quote => return None,
            c => c,
        });
    }
    Some(out)
}

/// The character of an escape whose backslash has been read.
fn unescape(rest: &mut Chars<'_>) -> Option<char> {
    let digits = match rest.next()? {
        'n' => return Some('\n'),
        'r' => return Some('\r'),
        't' => return Some('\t'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        c => return Some(c),
    };
    let code: String = rest.by_ref().take(digits).collect();
    u32::from_str_radix(&code, 16).ok().and_then(char::from_u32)
}

/// `str()` of a JSON value: strings bare, everything else as its `repr`.
pub fn str_of(value: &Json) -> String {
    match value.value() {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// `repr()` of a JSON value.
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => repr_str(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(key, value)| format!("{}: {}", repr_str(key), repr(value))).collect();
            format!("{{{}}}", members.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_like_python() {
        assert_eq!(repr_str("boom"), "'boom'");
        assert_eq!(repr_str("it's"), "\"it's\"");
        assert_eq!(repr_str("a'b\"c\n"), "'a\\'b\"c\\n'");
        assert_eq!(repr(&serde_json::json!({"a": [1, null, true, "x"]})), "{'a': [1, None, True, 'x']}");
    }
    #[test]
    fn reads_what_it_quotes() {
        for text in ["", "boom", "it's", "a'b\"c\n", "\\n\t\r\u{1}\u{7f}", "für 'x'"] {
            assert_eq!(str_from_repr(&repr_str(text)).as_deref(), Some(text));
        }
        assert_eq!(str_from_repr("'\\u2028'").as_deref(), Some("\u{2028}"));
        for other in ["", "'", "'a', 'b'", "1", "'\\xq'", "'a"] {
            assert_eq!(str_from_repr(other), None, "{other}");
        }
    }
}
