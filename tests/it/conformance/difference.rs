//! Where two transcripts differ, in words.

use serde_json::Value;

use super::scenario::Entry;

/// The differences between what was expected and what came, `limit` at most.
pub(super) fn between(expected: &[Entry], got: &[Entry], limit: usize) -> Vec<String> {
    let mut found = Vec::new();
    if expected.len() != got.len() {
        found.push(format!("{} recorded actions, expected {}", got.len(), expected.len()));
    }
    for (expected, got) in expected.iter().zip(got) {
        let path = format!("action {} {}", expected.n, expected.action);
        let as_value = |entry: &Entry| serde_json::to_value(entry).unwrap_or_default();
        compare(&as_value(expected), &as_value(got), &path, &mut found, limit);
    }
    found.truncate(limit);
    found
}

fn compare(expected: &Value, got: &Value, path: &str, found: &mut Vec<String>, limit: usize) {
    if found.len() >= limit {
        return;
    }
    match (expected, got) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).collect();
            keys.sort();
            for key in keys {
                one(a.get(key), b.get(key), &format!("{path}.{key}"), found, limit);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for n in 0..a.len().max(b.len()) {
                one(a.get(n), b.get(n), &format!("{path}[{n}]"), found, limit);
            }
        }
        (a, b) if a != b => found.push(format!("{path}: expected {}, got {}", short(a), short(b))),
        _ => {}
    }
}

fn one(expected: Option<&Value>, got: Option<&Value>, path: &str, found: &mut Vec<String>, limit: usize) {
    match (expected, got) {
        (Some(expected), Some(got)) => compare(expected, got, path, found, limit),
        (Some(expected), None) => found.push(format!("{path}: missing, expected {}", short(expected))),
        (None, Some(got)) => found.push(format!("{path}: unexpected {}", short(got))),
        (None, None) => {}
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}
