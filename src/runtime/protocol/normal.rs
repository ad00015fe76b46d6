//! State as the `values` channel shows it: without questions, messages in their plain form.

use crate::engine::message::is_message;
use crate::model::{Fields, Json, special};

/// The members of a message that clients of protocol v2 read.
const KEPT: [&str; 10] = [
    "type",
    "content",
    "id",
    "name",
    "response_metadata",
    "tool_calls",
    "invalid_tool_calls",
    "tool_call_id",
    "status",
    "artifact",
];

/// A `values` payload without `__interrupt__`, its messages normalized. Other members keep their bytes.
pub(super) fn values(data: &Json) -> Json {
    let Some(mut fields) = data.fields() else { return data.clone() };
    fields.shift_remove(special::INTERRUPT);
    for value in fields.values_mut() {
        if value.is_object() && is_message(value) {
            *value = message(value);
        } else if value.is_array()
            && let Some(items) = value.items()
            && items.iter().any(|item| item.is_object() && is_message(item))
        {
            let plain = |item: &Json| if item.is_object() && is_message(item) { message(item) } else { item.clone() };
            *value = items.iter().map(plain).collect();
        }
    }
    Json::from(&fields)
}

/// One message with only the members clients read.
pub(super) fn message(given: &Json) -> Json {
    let mut fields = given.fields().unwrap_or_default();
    let mut plain = Fields::new();
    for key in KEPT {
        let Some(value) = fields.shift_remove(key) else { continue };
        let is_empty = key == "response_metadata" && matches!(value.text().as_str(), "{}" | "null");
        if !is_empty {
            plain.insert(key.to_owned(), value);
        }
    }
    if plain.get("type").and_then(Json::as_str) == Some("AIMessageChunk") {
        plain.insert("type".to_owned(), Json::from("ai"));
    }
    Json::from(&plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_plain_and_questions_are_gone() {
        let state = Json::parse(
            r#"{"n":1e2,"messages":[{"type":"AIMessageChunk","content":"a","id":"m","additional_kwargs":{},"response_metadata":{},"usage_metadata":null},"x"],"last":{"type":"human","content":[],"example":false,"additional_kwargs":{},"response_metadata":{"a":1}},"__interrupt__":[]}"#,
        )
        .expect("JSON");
        assert_eq!(
            values(&state).text(),
            r#"{"n":1e2,"messages":[{"type":"ai","content":"a","id":"m"},"x"],"last":{"type":"human","content":[],"response_metadata":{"a":1}}}"#
        );
        assert_eq!(values(&Json::from(3)).text(), "3");
    }
}
