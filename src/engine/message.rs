//! Messages: the forms in which they are written, and the one in which they are kept.
//!
//! A write may say a message as a string, a `[role, text]` pair, an object with `role` or `type`, or a complete typed
//! object. [`coerce`] brings all of them to the complete form, which is what channels hold and clients read:
//! `{content, additional_kwargs, response_metadata, type, name, id}` and what the type adds.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{EngineError, py};
use crate::model::{Fields, Json};

/// The id with which a remove message clears the whole list.
pub const REMOVE_ALL: &str = "__remove_all__";

/// The types of complete messages. `remove` is an instruction rather than a message, but travels in the same form.
const TYPES: [&str; 8] = ["human", "ai", "system", "tool", "function", "chat", "remove", "AIMessageChunk"];

/// Brings one write to a list of complete messages. `derived_id` names the n-th message if it came without an id.
///
/// # Errors
/// `ValueError` for an object without role or content, an unknown role, and a removal without an id;
/// `NotImplementedError` for what is no message at all.
pub fn coerce(write: &Json, derived_id: impl Fn(usize) -> String) -> Result<Vec<Json>, EngineError> {
    let one = |(position, item): (usize, &Json)| complete(item, || derived_id(position));
    match write.items() {
        Some(items) => items.iter().enumerate().map(one).collect(),
        None => Ok(vec![one((0, write))?]),
    }
}

/// True for a complete typed message: what a node's own message type encodes to. A plain `{"type": "human",
/// "content": ".."}` is not one until a reducer has made it one.
pub fn is_message(json: &Json) -> bool {
    json.is_object()
        && json.as_raw().get().contains("\"additional_kwargs\"")
        && json.value().as_object().is_some_and(|message| {
            let known = message.get("type").and_then(Value::as_str).is_some_and(|kind| TYPES.contains(&kind));
            known && message.contains_key("additional_kwargs") && message.contains_key("response_metadata")
        })
}

/// The id of a message that has one.
pub fn message_id(json: &Json) -> Option<&str> {
    if json.is_object() { json.value().get("id")?.as_str() } else { None }
}

/// A write to a list of complete messages in which those that came without an id have the one [`coerce`] would give
/// them. `None`: there are none. Short forms stay as they were written, and so do removals.
pub(crate) fn identify(write: &Json, derived_id: impl Fn(usize) -> String) -> Option<Json> {
    let is_nameless = |item: &Json| is_message(item) && message_id(item).is_none() && !is_remove(item);
    let named = |(position, item): (usize, &Json)| match item.fields().filter(|_| is_nameless(item)) {
        Some(mut fields) => {
            fields.insert("id".to_owned(), Json::from(derived_id(position)));
            Json::from(&fields)
        }
        None => item.clone(),
    };
    match write.items() {
        Some(items) if items.iter().any(is_nameless) => Some(items.iter().enumerate().map(named).collect()),
        Some(_) => None,
        None => is_nameless(write).then(|| named((0, write))),
    }
}

/// A message as views read it while writes to its list wait to be applied: LangGraph's read path takes complete
/// messages from plain data there, which keeps the fields that only AI messages have in `additional_kwargs` as well.
/// What was written in a short form had none of them.
pub(crate) fn preview(message: &Json) -> Json {
    let is_ai = |fields: &Fields| fields.get("type").and_then(Json::as_str) == Some("ai");
    let Some(mut fields) = message.fields().filter(|fields| is_ai(fields) && is_message(message)) else {
        return message.clone();
    };
    let mut additional = fields.get("additional_kwargs").and_then(Json::fields).unwrap_or_default();
    for key in ["invalid_tool_calls", "usage_metadata"] {
        if let Some(value) = fields.get(key) {
            additional.insert(key.to_owned(), value.clone());
        }
    }
    fields.insert("additional_kwargs".to_owned(), Json::from(&additional));
    Json::from(&fields)
}

/// True for the instruction to remove a message.
pub fn is_remove(json: &Json) -> bool {
    json.is_object() && json.value().get("type").and_then(Value::as_str) == Some("remove")
}

/// The id of a stored message, found without decoding the rest: for looking through long lists.
pub(crate) fn scan_id(message: &Json) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct IdOnly<'a> {
        #[serde(borrow, default)]
        id: Option<Cow<'a, str>>,
    }
    serde_json::from_str::<IdOnly<'_>>(message.as_raw().get()).ok()?.id
}

fn complete(item: &Json, derived_id: impl FnOnce() -> String) -> Result<Json, EngineError> {
    if is_message(item) && message_id(item).is_some() && !item.as_raw().get().contains("\"AIMessageChunk\"") {
        return Ok(item.clone());
    }
    let mut message = match item.value() {
        Value::String(text) => of_role("human", json!(text), Map::new())?,
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(role), content] => of_role(role, content.clone(), Map::new())?,
            _ => return Err(unsupported(item)),
        },
        Value::Object(fields) if is_message(item) => typed(fields.clone()),
        Value::Object(fields) => of_object(fields)?,
        _ => return Err(unsupported(item)),
    };
    if message["type"] == "remove" && !message["id"].is_string() {
        return Err(EngineError::value("A message of type 'remove' needs the 'id' of the message to remove"));
    }
    if !message["id"].is_string() {
        let id = derived_id();
        message.insert("id".to_owned(), json!(id));
    }
    Ok(Json::from(Value::Object(message)))
}

fn unsupported(item: &Json) -> EngineError {
    let class = py::repr(item.value());
    EngineError::new("NotImplementedError", format!("Unsupported message type: {class}"))
}

/// An object with `role` or `type`, as clients write it. What is not a field of messages goes to `additional_kwargs`.
fn of_object(fields: &Map<String, Value>) -> Result<Map<String, Value>, EngineError> {
    let incomplete = || {
        let got = py::repr(&Value::Object(fields.clone()));
        EngineError::value(format!("Message dict must contain 'role' and 'content' keys, got {got}"))
    };
    let mut rest = fields.clone();
    let role = rest.shift_remove("role").or_else(|| rest.shift_remove("type")).ok_or_else(incomplete)?;
    let role = role.as_str().ok_or_else(incomplete)?;
    let content = match rest.shift_remove("content") {
        Some(Value::Null) => json!(""),
        Some(content) => content,
        // Models answer with tool calls alone, and a removal needs no words.
        None if role == "remove" || rest.contains_key("tool_calls") => json!(""),
        None => return Err(incomplete()),
    };
    of_role(role, content, rest)
}

fn of_role(role: &str, content: Value, mut rest: Map<String, Value>) -> Result<Map<String, Value>, EngineError> {
    let kind = match role {
        "human" | "user" => "human",
        "ai" | "assistant" | "AIMessageChunk" => "ai",
        "system" | "developer" => "system",
        "function" | "tool" | "remove" => role,
        _ => {
            return Err(EngineError::value(format!(
                "Unexpected message type: '{role}'. Use one of 'human', 'user', 'ai', 'assistant', 'function', 'tool', \
                 'system', or 'developer'."
            )));
        }
    };
    let mut own: Map<String, Value> = Map::new();
    for key in ["response_metadata", "name", "id"].iter().chain(fields_of(kind)) {
        if let Some(value) = rest.shift_remove(*key) {
            own.insert((*key).to_owned(), value);
        }
    }
    let mut additional = match rest.shift_remove("additional_kwargs") {
        Some(Value::Object(given)) => given,
        _ => Map::new(),
    };
    for chunk_only in ["tool_call_chunks", "chunk_position"] {
        rest.shift_remove(chunk_only);
    }
    for (key, value) in rest {
        additional.entry(key).or_insert(value);
    }
    if role == "developer" {
        additional.insert("__openai_role__".to_owned(), json!("developer"));
    }
    own.insert("additional_kwargs".to_owned(), Value::Object(additional));
    own.insert("content".to_owned(), content);
    own.insert("type".to_owned(), json!(kind));
    Ok(typed(own))
}

/// What a type adds to the common fields, in the order it is shown.
fn fields_of(kind: &str) -> &'static [&'static str] {
    match kind {
        "ai" => &["tool_calls", "invalid_tool_calls", "usage_metadata"],
        "tool" => &["tool_call_id", "artifact", "status"],
        _ => &[],
    }
}

/// Fills in what a typed message lacks and puts its fields in order; unknown ones are kept at the end.
fn typed(mut given: Map<String, Value>) -> Map<String, Value> {
    let kind = match given.get("type").and_then(Value::as_str) {
        Some("AIMessageChunk") => {
            // A chunk that is written is the whole message: only what marks it as a piece is dropped.
            given.shift_remove("tool_call_chunks");
            given.shift_remove("chunk_position");
            "ai".to_owned()
        }
        Some(kind) => kind.to_owned(),
        None => "human".to_owned(),
    };
    given.insert("type".to_owned(), json!(kind));
    if kind == "ai" {
        tool_calls(&mut given);
    }
    let common = ["content", "additional_kwargs", "response_metadata", "type", "name", "id"];
    let mut message = Map::new();
    for key in common.iter().chain(fields_of(&kind)) {
        let value = given.shift_remove(*key).filter(|value| !value.is_null()).unwrap_or_else(|| match *key {
            "content" => json!(""),
            "additional_kwargs" | "response_metadata" => json!({}),
            "tool_calls" | "invalid_tool_calls" => json!([]),
            "status" => json!("success"),
            _ => Value::Null,
        });
        message.insert((*key).to_owned(), value);
    }
    message.extend(given);
    message
}

/// Brings OpenAI's form of tool calls, `{id, type: "function", function: {name, arguments}}`, to
/// `{name, args, id, type: "tool_call"}`. Arguments that are not a JSON object make an invalid tool call.
fn tool_calls(message: &mut Map<String, Value>) {
    let Some(Value::Array(calls)) = message.shift_remove("tool_calls") else { return };
    let mut valid = Vec::new();
    let mut invalid = match message.shift_remove("invalid_tool_calls") {
        Some(Value::Array(given)) => given,
        _ => Vec::new(),
    };
    for mut call in calls {
        let Some(function) = call.get("function").filter(|function| function.is_object()) else {
            if let Some(call) = call.as_object_mut() {
                call.entry("type").or_insert_with(|| json!("tool_call"));
            }
            valid.push(call);
            continue;
        };
        let (name, id) = (&function["name"], &call["id"]);
        let args = match &function["arguments"] {
            Value::String(text) if text.trim().is_empty() => Ok(json!({})),
            Value::String(text) => serde_json::from_str::<Map<String, Value>>(text).map(Value::Object),
            other => Ok(other.clone()),
        };
        match args {
            Ok(args) => valid.push(json!({"name": name, "args": args, "id": id, "type": "tool_call"})),
            Err(error) => invalid.push(json!({
                "name": name, "args": function["arguments"], "id": id, "error": error.to_string(),
                "type": "invalid_tool_call",
            })),
        }
    }
    message.insert("tool_calls".to_owned(), Value::Array(valid));
    message.insert("invalid_tool_calls".to_owned(), Value::Array(invalid));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coerced(write: Value) -> Value {
        let messages = coerce(&Json::from(write), |n| format!("id-{n}")).expect("coerces");
        Value::Array(messages.iter().map(|message| message.value().clone()).collect())
    }

    fn refused(write: Value) -> EngineError {
        coerce(&Json::from(write), |n| format!("id-{n}")).expect_err("is refused")
    }

    fn human(content: &str, id: &str) -> Value {
        json!({"content": content, "additional_kwargs": {}, "response_metadata": {}, "type": "human", "name": null, "id": id})
    }

    fn ai(content: &str, id: &str) -> Value {
        json!({"content": content, "additional_kwargs": {}, "response_metadata": {}, "type": "ai", "name": null, "id": id,
               "tool_calls": [], "invalid_tool_calls": [], "usage_metadata": null})
    }

    #[test]
    fn every_short_form_becomes_the_complete_one() {
        assert_eq!(coerced(json!("hi")), json!([human("hi", "id-0")]));
        assert_eq!(
            coerced(
                json!(["hi", ["ai", "yes"], {"role": "user", "content": "so"}, {"type": "ai", "content": null, "id": "a"}])
            ),
            json!([human("hi", "id-0"), ai("yes", "id-1"), human("so", "id-2"), ai("", "a")])
        );
        assert_eq!(coerced(json!({"role": "assistant", "content": "x", "id": "1"})), json!([ai("x", "1")]));
    }

    #[test]
    fn the_keys_of_the_stored_form_have_a_fixed_order() {
        let messages =
            coerce(&Json::from(json!({"id": "1", "role": "tool", "tool_call_id": "c", "content": "x"})), |_| {
                String::new()
            });
        assert_eq!(
            messages.expect("coerces")[0].text(),
            r#"{"content":"x","additional_kwargs":{},"response_metadata":{},"type":"tool","name":null,"id":"1","tool_call_id":"c","artifact":null,"status":"success"}"#
        );
    }

    #[test]
    fn tool_calls_in_the_openai_form_are_translated() {
        let call = |arguments: &str| json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}});
        let message = coerced(json!({"role": "assistant", "tool_calls": [call("{\"a\":1}"), call("oops")]}));
        assert_eq!(message[0]["tool_calls"], json!([{"name": "f", "args": {"a": 1}, "id": "c1", "type": "tool_call"}]));
        assert_eq!(message[0]["invalid_tool_calls"][0]["args"], "oops");
        let own = json!([{"name": "f", "args": {}, "id": "c"}]);
        assert_eq!(
            coerced(json!({"type": "ai", "content": "", "tool_calls": own}))[0]["tool_calls"][0]["type"],
            "tool_call"
        );
    }

    #[test]
    fn unknown_keys_are_kept() {
        assert_eq!(
            coerced(json!({"role": "user", "content": "x", "mood": 1}))[0]["additional_kwargs"],
            json!({"mood": 1})
        );
        let mut complete = human("x", "1");
        complete["mood"] = json!(1);
        assert_eq!(coerced(complete.clone()), json!([complete]));
    }

    #[test]
    fn a_chunk_becomes_a_message() {
        let chunk = json!({"type": "AIMessageChunk", "content": "x", "id": "1", "additional_kwargs": {},
            "response_metadata": {}, "tool_call_chunks": [], "chunk_position": "last"});
        assert_eq!(coerced(chunk), json!([ai("x", "1")]));
    }

    #[test]
    fn developers_are_systems_and_remember_it() {
        let message = coerced(json!([["developer", "x"]]));
        assert_eq!(message[0]["type"], "system");
        assert_eq!(message[0]["additional_kwargs"], json!({"__openai_role__": "developer"}));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(refused(json!(7)).message, "Unsupported message type: 7");
        assert!(refused(json!({"content": "x"})).message.starts_with("Message dict must contain 'role' and 'content'"));
        assert!(refused(json!([["robot", "x"]])).message.starts_with("Unexpected message type: 'robot'."));
        assert_eq!(refused(json!({"type": "remove"})).class, "ValueError");
    }

    #[test]
    fn only_whole_messages_are_named_before_they_are_applied() {
        let mut nameless = ai("x", "");
        nameless["id"] = json!(null);
        let named = |write: Value| {
            let named = identify(&Json::from(write), |n| format!("id-{n}"));
            named.map_or(Value::Null, |named| named.value().clone())
        };
        assert_eq!(
            named(json!([human("h", "1"), "short", nameless])),
            json!([human("h", "1"), "short", ai("x", "id-2")])
        );
        assert_eq!(named(nameless), ai("x", "id-0"));
        for other in [json!([human("h", "1")]), json!("short"), json!({"role": "user", "content": "x"}), json!(null)] {
            assert_eq!(named(other.clone()), Value::Null, "{other}");
        }
        let mut removal = human("", "");
        removal["type"] = json!("remove");
        removal["id"] = json!(null);
        assert_eq!(named(removal), Value::Null);
    }

    #[test]
    fn only_complete_typed_objects_are_recognised() {
        assert!(is_message(&Json::from(human("x", "1"))));
        for other in [
            json!({"type": "human", "content": "x"}),
            json!("x"),
            json!({"type": "x", "additional_kwargs": {}, "response_metadata": {}}),
        ] {
            assert!(!is_message(&Json::from(other)));
        }
        let remove = coerced(json!({"type": "remove", "id": "9"}));
        assert!(is_remove(&Json::from(remove[0].clone())));
        assert_eq!(message_id(&Json::from(human("x", "1"))), Some("1"));
        assert_eq!(scan_id(&Json::from(human("x", "a\"b"))).as_deref(), Some("a\"b"));
    }
}
