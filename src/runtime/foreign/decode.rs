//! Values shown to people: decoded where that is only reading, named where it is not.

use serde_json::{Map, Value as Shown, json};

use super::body::hash_of;
use super::{Value, hex, msgpack};
use crate::model::{Json, JsonError};

/// A value as JSON. What cannot be decoded is shown as its type tag, size and hash. No class is imported, no code runs.
pub fn decoded(value: &Value) -> Json {
    let shown = match value.tag.as_str() {
        "null" => Some(Shown::Null),
        "json" => json_text(&value.bytes).ok(),
        "msgpack" => msgpack::read(&value.bytes).ok(),
        _ => None,
    }
    .unwrap_or_else(|| opaque(&value.tag, &value.bytes));
    // Through text, so that what is shown keeps the rules of a document.
    Json::parse(&shown.to_string()).unwrap_or_else(|_| Json::from(opaque(&value.tag, &value.bytes)))
}

/// What stands for bytes.
pub(super) fn opaque(tag: &str, bytes: &[u8]) -> Shown {
    json!({"type": tag, "size": bytes.len(), "hash": hex(&hash_of(bytes))})
}

fn json_text(bytes: &[u8]) -> Result<Shown, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|error| JsonError(error.to_string()))?;
    Ok(plain(Json::parse(text)?.value().clone()))
}

/// LangChain's objects as what they are made of; messages with the type that clients know them by.
fn plain(value: Shown) -> Shown {
    match value {
        Shown::Array(items) => Shown::Array(items.into_iter().map(plain).collect()),
        Shown::Object(mut members) => {
            let is_object = members.get("lc").is_some_and(Shown::is_number)
                && members.get("type").and_then(Shown::as_str) == Some("constructor");
            if !is_object {
                return Shown::Object(members.into_iter().map(|(key, value)| (key, plain(value))).collect());
            }
            let class =
                members.get("id").and_then(Shown::as_array).and_then(|id| id.last()?.as_str()).map(message_type);
            let arguments = members.remove("kwargs").or_else(|| members.remove("args"));
            match (arguments.map(plain), class.flatten()) {
                (Some(Shown::Object(made)), Some(kind)) => {
                    let mut message = Map::from_iter([("type".to_owned(), Shown::from(kind))]);
                    message.extend(made);
                    Shown::Object(message)
                }
                (Some(made), _) => made,
                (None, _) => Shown::Object(members),
            }
        }
        other => other,
    }
}

fn message_type(class: &str) -> Option<&'static str> {
    Some(match class {
        "HumanMessage" | "HumanMessageChunk" => "human",
        "AIMessage" => "ai",
        "AIMessageChunk" => "AIMessageChunk",
        "SystemMessage" | "SystemMessageChunk" => "system",
        "ToolMessage" | "ToolMessageChunk" => "tool",
        "FunctionMessage" => "function",
        "RemoveMessage" => "remove",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn shown(tag: &str, bytes: &[u8]) -> Shown {
        decoded(&Value { tag: tag.to_owned(), hash: None, bytes: Bytes::copy_from_slice(bytes) }).value().clone()
    }

    #[test]
    fn known_tags_are_decoded_and_others_are_named() {
        assert_eq!(shown("null", b""), Shown::Null);
        assert_eq!(shown("msgpack", b"\x92\x01\xa1x"), json!([1, "x"]));
        assert_eq!(shown("json", br#"{"a":[1.50]}"#), json!({"a": [1.5]}));
        let message = br#"[{"lc":1,"type":"constructor","id":["langchain_core","messages","AIMessage"],"kwargs":{"content":"Hi"}}]"#;
        assert_eq!(shown("json", message), json!([{"type": "ai", "content": "Hi"}]));
        let pickle = shown("pickle", b"cos\nsystem\n");
        assert_eq!((&pickle["type"], &pickle["size"]), (&json!("pickle"), &json!(11)));
        assert_eq!(pickle["hash"].as_str().map(str::len), Some(32));
        for (tag, bad) in [("json", &b"{"[..]), ("json", b"\xff"), ("msgpack", b"\xc1"), ("msgpack+aes", b"x")] {
            assert_eq!(shown(tag, bad)["type"], tag);
        }
    }
}
