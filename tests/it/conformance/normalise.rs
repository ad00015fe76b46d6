//! What two correct answers may differ in is taken out: times, ids, and what is the platform's own.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::scenario::Object;

/// Keys that are dropped wherever they are.
const VOLATILE: [&str; 7] =
    ["created_at", "updated_at", "state_updated_at", "ts", "timestamp", "run_started_at", "run_ended_at"];
/// Keys of metadata that are the platform's own, and beginnings of such keys.
const PLATFORM: [&str; 9] = [
    "langgraph_version",
    "langgraph_api_version",
    "langgraph_plan",
    "langgraph_host",
    "langgraph_api_url",
    "langgraph_request_id",
    "run_attempt",
    "user_id",
    "created_by",
];
const PLATFORM_PREFIXES: [&str; 4] = ["langgraph_auth_", "ls_", "lc_", "__"];
const PLATFORM_TOO: [&str; 3] = ["assistant_id", "revision_id", "versions"];
/// What of a `configurable` is compared.
const CONFIGURABLE: [&str; 4] = ["thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint_map"];
/// What of a message's metadata is compared.
const OF_MESSAGES: [&str; 7] = [
    "langgraph_step",
    "langgraph_node",
    "langgraph_triggers",
    "langgraph_path",
    "langgraph_checkpoint_ns",
    "checkpoint_ns",
    "tags",
];

fn is_platform(key: &str) -> bool {
    PLATFORM.contains(&key)
        || PLATFORM_TOO.contains(&key)
        || PLATFORM_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// An answer without what varies by nature, its keys in order; ids stay as they are.
pub(super) fn scrub(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(scrub_object(fields)),
        Value::Array(items) => items.iter().map(scrub).collect(),
        Value::String(text) => Value::String(clean(text)),
        other => other.clone(),
    }
}

fn scrub_object(fields: &Object) -> Object {
    let mut keys: Vec<&String> = fields.keys().filter(|key| !VOLATILE.contains(&key.as_str())).collect();
    keys.sort();
    let is_stop = matches!(fields.get("error").and_then(Value::as_str), Some("UserInterrupt" | "UserRollback"));
    let mut out = Object::new();
    for key in keys {
        let mut value = fields[key].clone();
        match (key.as_str(), &mut value) {
            ("metadata", Value::Object(metadata)) => metadata.retain(|key, _| !is_platform(key)),
            ("configurable", Value::Object(config)) => config.retain(|key, _| CONFIGURABLE.contains(&key.as_str())),
            ("triggers" | "langgraph_triggers", Value::Array(triggers)) => {
                triggers.sort_by_key(|trigger| trigger.as_str().map(str::to_owned));
            }
            ("response_schema", Value::Null) => continue,
            ("message", _) if is_stop => continue,
            ("interrupts", Value::Object(by_task)) => {
                by_task.values_mut().filter_map(Value::as_array_mut).for_each(|list| list.sort_by_cached_key(blank));
            }
            ("__interrupt__" | "interrupts", Value::Array(list)) => list.sort_by_cached_key(blank),
            _ => {}
        }
        out.insert(key.clone(), scrub(&value));
    }
    out
}

/// Error texts without links to LangGraph's manual, host names and measured times.
fn clean(text: &str) -> String {
    let cut = |text: &str, at: &str| text.split(at).next().unwrap_or_default().to_owned();
    let mut text = cut(&cut(text, "\nFor troubleshooting, visit"), " For troubleshooting, visit");
    if let Some(at) = text.find("has in-flight runs: ") {
        text.truncate(at + "has in-flight runs".len());
    }
    // In a `repr` the line feed is two characters, and a quote ends it.
    while let Some(at) = text.find("\\nFor troubleshooting, visit").or_else(|| text.find("For troubleshooting, visit"))
    {
        let end = text[at..].find(['\'', '"']).map_or(text.len(), |end| at + end);
        text.replace_range(at..end, "");
    }
    if let Some(at) = text.find("(elapsed: ")
        && let Some(end) = text[at..].find("s)")
    {
        text.replace_range(at..at + end + 2, "(elapsed: _)");
    }
    let mut from = 0;
    while let Some(found) = ["http://", "https://"]
        .iter()
        .filter_map(|scheme| {
            let at = from + text[from..].find(scheme)?;
            Some((at, at + scheme.len()))
        })
        .min()
    {
        let (at, host) = found;
        let is_end = |c: char| c.is_whitespace() || matches!(c, '/' | '\'' | '"');
        let end = text[host..].find(is_end).map_or(text.len(), |end| host + end);
        text.replace_range(at..end, "http://HOST");
        from = at + "http://HOST".len();
    }
    text
}

/// A value as text in which all ids look the same: what lists in no particular order are sorted by.
pub(super) fn blank(value: &Value) -> String {
    replace_ids(&scrub(value).to_string(), |_| "ID".to_owned())
}

/// Calls `name` for every id in a text: UUIDs, and 32 hexadecimal digits.
fn replace_ids(text: &str, mut name: impl FnMut(&str) -> String) -> String {
    let bytes = text.as_bytes();
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        match id_at(bytes, at, is_hex) {
            Some(end) => {
                out.push_str(&name(&text[at..end]));
                at = end;
            }
            None => {
                let next = (at + 1..=bytes.len()).find(|next| text.is_char_boundary(*next)).unwrap_or(bytes.len());
                out.push_str(&text[at..next]);
                at = next;
            }
        }
    }
    out
}

fn id_at(bytes: &[u8], at: usize, is_hex: impl Fn(u8) -> bool) -> Option<usize> {
    let hex =
        |from: usize, len: usize| bytes.get(from..from + len).is_some_and(|part| part.iter().all(|byte| is_hex(*byte)));
    let mut end = at;
    for (n, len) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if n > 0 && bytes.get(end) != Some(&b'-') {
            end = at;
            break;
        }
        let start = if n > 0 { end + 1 } else { end };
        if !hex(start, len) {
            end = at;
            break;
        }
        end = start + len;
    }
    if end > at {
        return Some(end);
    }
    let is_whole = (at == 0 || !is_hex(bytes[at - 1])) && bytes.get(at + 32).is_none_or(|byte| !is_hex(*byte));
    (is_whole && hex(at, 32)).then_some(at + 32)
}

/// Names ids in the order in which they appear, so that equal ones stay equal.
pub(super) struct Ids {
    names: HashMap<String, String>,
    unique: String,
}

impl Ids {
    /// `unique`: the token of this run of the scenario, shown as `UNIQ`.
    pub(super) fn new(unique: &str) -> Ids {
        Ids { names: HashMap::new(), unique: unique.to_owned() }
    }

    fn name(&mut self, text: &str) -> String {
        let text = text.replace(&self.unique, "UNIQ");
        replace_ids(&text, |id| {
            let next = format!("id{}", self.names.len() + 1);
            self.names.entry(id.to_owned()).or_insert(next).clone()
        })
    }

    pub(super) fn apply(&mut self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let has_id = |key: &String| replace_ids(key, |_| "ID".to_owned()) != *key;
                let (mut ids, mut plain): (Vec<&String>, Vec<&String>) = fields.keys().partition(|key| has_id(key));
                plain.sort();
                ids.sort_by_cached_key(|key| {
                    let known = self.names.get(*key).cloned().unwrap_or_else(|| "~".to_owned());
                    (replace_ids(key, |_| "ID".to_owned()), blank(&fields[*key]), known)
                });
                let mut out = Object::new();
                for key in plain {
                    let value = self.apply(&fields[key]);
                    out.insert(key.clone(), value);
                }
                for key in ids {
                    // The value is named first, as where the transcripts were recorded.
                    let value = self.apply(&fields[key]);
                    out.insert(self.name(key), value);
                }
                Value::Object(out)
            }
            Value::Array(items) => items.iter().map(|item| self.apply(item)).collect(),
            Value::String(text) => Value::String(self.name(text)),
            other => other.clone(),
        }
    }
}

/// Of several questions only these are compared: whether the state comes with them depends on timing.
pub(super) fn only_questions(body: &mut Value) {
    let several = |value: &Value| value["__interrupt__"].as_array().is_some_and(|list| list.len() > 1);
    if several(body) {
        *body = json!({"__interrupt__": body["__interrupt__"]});
    } else if several(&body["result"]) {
        body["result"] = json!({"__interrupt__": body["result"]["__interrupt__"]});
    }
}

/// An event of a messages stream with what is compared of its metadata.
pub(super) fn of_message(name: &str, data: &Value) -> Value {
    let keep = |metadata: &Value| -> Value {
        let fields = metadata.as_object().into_iter().flatten();
        let kept = fields.filter(|(key, _)| OF_MESSAGES.contains(&key.as_str()));
        Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
    };
    let is_pair = data.as_array().is_some_and(|pair| pair.len() == 2);
    if (name == "messages" || name.starts_with("messages|")) && is_pair {
        return json!([data[0], keep(&data[1])]);
    }
    if name == "messages/metadata" {
        let fields = data.as_object().into_iter().flatten();
        return fields
            .map(|(id, of)| (id.clone(), json!({"metadata": keep(&of["metadata"])})))
            .collect::<Object>()
            .into();
    }
    data.clone()
}
