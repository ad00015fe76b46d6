//! What a type's JSON Schema says about it: the keys a node reads, and what `/assistants/{id}/schemas` shows.

use std::borrow::Cow;

use indexmap::IndexSet;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::node::NodeInput;
use crate::model::json::decode_fields;
use crate::model::{Fields, Json, JsonError};

/// Any JSON value: `true`.
impl JsonSchema for Json {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::from(true)
    }
}

/// The schema of a type, as one document.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.meta_schema = None);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// The schema of an object with these keys, of which nothing else is known.
pub(super) fn of_keys<'a>(title: String, keys: impl Iterator<Item = &'a str>) -> Value {
    let properties: Map<String, Value> = keys.map(|key| (key.to_owned(), json!({"title": key}))).collect();
    json!({"title": title, "type": "object", "properties": properties})
}

/// The part of an object schema that concerns some of its keys.
pub(super) fn restricted(schema: &Value, keep: impl Fn(&str) -> bool) -> Value {
    let mut schema = schema.clone();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|key, _| keep(key));
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|key| key.as_str().is_some_and(&keep));
    }
    schema
}

/// Which keys of an object a type is decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keys {
    /// No value at all: `()`.
    Nothing,
    /// The fields of a struct.
    Named(Vec<String>),
    /// Whatever there is: a map, or any JSON value.
    All,
}

impl Keys {
    pub(super) fn of<T: JsonSchema>() -> Keys {
        Keys::of_schema(&of::<T>())
    }

    pub(super) fn of_schema(schema: &Value) -> Keys {
        if schema.get("type").and_then(Value::as_str) == Some("null") {
            return Keys::Nothing;
        }
        let mut named = IndexSet::new();
        let open = collect(schema, schema, &mut named, 0);
        if open || named.is_empty() { Keys::All } else { Keys::Named(named.into_iter().collect()) }
    }

    /// Decodes what a task was handed.
    pub(super) fn decode<T: DeserializeOwned>(&self, input: &NodeInput) -> Result<T, JsonError> {
        match (self, input) {
            (Keys::Nothing, _) => Json::null().decode(),
            (_, NodeInput::Arg(arg)) => arg.decode(),
            (_, NodeInput::State(fields)) => self.decode_fields(fields),
        }
    }

    /// Decodes named values; only the keys the type names are looked at.
    pub(super) fn decode_fields<T: DeserializeOwned>(&self, fields: &Fields) -> Result<T, JsonError> {
        match self {
            Keys::Nothing => Json::null().decode(),
            Keys::All => Json::from(fields).decode(),
            Keys::Named(keys) => decode_fields(keys.iter().filter_map(|key| Some((key.as_str(), fields.get(key)?)))),
        }
    }
}

/// Collects property names through references and combinations. True if other keys are taken too.
fn collect(root: &Value, schema: &Value, named: &mut IndexSet<String>, depth: usize) -> bool {
    if depth > 8 {
        return true;
    }
    let mut open = schema.get("additionalProperties").is_some_and(|more| *more != Value::Bool(false));
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        named.extend(properties.keys().cloned());
    }
    if let Some(path) = schema.get("$ref").and_then(Value::as_str)
        && let Some(target) = path.strip_prefix('#').and_then(|pointer| root.pointer(pointer))
    {
        open |= collect(root, target, named, depth + 1);
    }
    for combination in ["allOf", "anyOf", "oneOf"] {
        for part in schema.get(combination).and_then(Value::as_array).into_iter().flatten() {
            open |= collect(root, part, named, depth + 1);
        }
    }
    open
}

/// True for the schema of an object with known keys.
pub(super) fn is_object(schema: &Value) -> bool {
    matches!(Keys::of_schema(schema), Keys::Named(_))
        || schema.get("type").and_then(Value::as_str) == Some("object") && schema.get("additionalProperties").is_none()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, JsonSchema)]
    struct Point {
        y: i64,
        #[serde(rename = "X")]
        x: Option<i64>,
    }

    #[derive(Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Open {
        a: i64,
        #[serde(flatten)]
        rest: BTreeMap<String, Value>,
    }

    #[derive(Deserialize, JsonSchema)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Wrapped(Point);

    #[test]
    fn keys_follow_the_names_serde_uses_in_their_order() {
        let named = Keys::Named(vec!["y".to_owned(), "X".to_owned()]);
        assert_eq!(Keys::of::<Point>(), named);
        assert_eq!(Keys::of::<Wrapped>(), named);
        assert_eq!(Keys::of::<()>(), Keys::Nothing);
        assert_eq!(Keys::of::<Json>(), Keys::All);
        assert_eq!(Keys::of::<Open>(), Keys::All);
        assert_eq!(Keys::of::<BTreeMap<String, i64>>(), Keys::All);
        assert!(is_object(&of::<Point>()) && !is_object(&of::<i64>()) && !is_object(&of::<Vec<i64>>()));
    }

    #[test]
    fn decoding_reads_only_the_named_keys() {
        let fields: Fields = [("y".to_owned(), Json::from(1)), ("z".to_owned(), Json::from("ignored"))].into();
        let point: Point = Keys::of::<Point>().decode(&NodeInput::State(fields.clone().into())).expect("decodes");
        assert_eq!((point.y, point.x), (1, None));
        let all: Json = Keys::of::<Json>().decode(&NodeInput::State(fields.into())).expect("decodes");
        assert_eq!(all.text(), r#"{"y":1,"z":"ignored"}"#);
    }
}
