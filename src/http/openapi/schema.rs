//! Schemas of JSON, in the dialect of OpenAPI 3.1 (JSON Schema 2020-12).

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::http::object::MAX_TEXT;

/// A schema.
#[derive(Debug, Clone)]
pub(super) struct Schema(Value);

impl Schema {
    pub(super) fn about(self, text: &str) -> Schema {
        self.with("description", text)
    }

    /// What an absent member means.
    pub(super) fn default(self, value: impl Into<Value>) -> Schema {
        self.with("default", value)
    }

    /// Taken and not acted on.
    pub(super) fn ignored(self) -> Schema {
        self.with("x-ignored", true)
    }

    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Schema {
        self.0[key] = value.into();
        self
    }

    /// Any number, as in answers.
    pub(super) fn number() -> Schema {
        of_type("number")
    }

    /// The same or `null`.
    pub(super) fn nullable(self) -> Schema {
        let mut schema = self.0;
        if schema.get("$ref").is_some() {
            return Schema(json!({"anyOf": [schema, {"type": "null"}]}));
        }
        if let Some(Value::String(kind)) = schema.get("type").cloned() {
            schema["type"] = json!([kind, "null"]);
        }
        for list in ["enum", "anyOf"] {
            let null = if list == "enum" { Value::Null } else { json!({"type": "null"}) };
            if let Some(Value::Array(items)) = schema.get_mut(list) {
                items.push(null);
            }
        }
        Schema(schema)
    }

    pub(super) fn json(self) -> Value {
        self.0
    }
}

/// Any JSON.
pub(super) fn any() -> Schema {
    Schema(json!({}))
}

fn of_type(name: &str) -> Schema {
    Schema(json!({"type": name}))
}

/// A string without a limit: as it comes in answers.
pub(super) fn string() -> Schema {
    of_type("string")
}

/// A short text of a client.
pub(super) fn text() -> Schema {
    string().with("maxLength", MAX_TEXT)
}

pub(super) fn uuid() -> Schema {
    string().with("format", "uuid")
}

/// ISO 8601 with microseconds and an offset.
pub(super) fn time() -> Schema {
    string().with("format", "date-time")
}

pub(super) fn boolean() -> Schema {
    of_type("boolean")
}

/// Any integer, as in answers.
pub(super) fn whole() -> Schema {
    of_type("integer")
}

pub(super) fn integer(range: &RangeInclusive<i64>) -> Schema {
    let mut schema = whole();
    if *range.start() > i64::MIN {
        schema = schema.with("minimum", *range.start());
    }
    if *range.end() < i64::MAX {
        schema = schema.with("maximum", *range.end());
    }
    schema
}

pub(super) fn number(range: RangeInclusive<f64>) -> Schema {
    of_type("number").with("minimum", *range.start()).with("maximum", *range.end())
}

/// One of a few words.
pub(super) fn word(words: &[&str]) -> Schema {
    string().with("enum", words)
}

/// A list of at most so many.
pub(super) fn list(items: Schema, max: usize) -> Schema {
    array(items).with("maxItems", max)
}

/// A list without a limit: as it comes in answers.
pub(super) fn array(items: Schema) -> Schema {
    of_type("array").with("items", items.json())
}

/// An object of any members.
pub(super) fn record() -> Schema {
    of_type("object").with("additionalProperties", true)
}

/// An object whose members are alike.
pub(super) fn map(of: Schema) -> Schema {
    of_type("object").with("additionalProperties", of.json())
}

pub(super) fn either(schemas: impl IntoIterator<Item = Schema>) -> Schema {
    Schema(json!({"anyOf": schemas.into_iter().map(Schema::json).collect::<Vec<_>>()}))
}

/// A schema of [`super::components`].
pub(super) fn component(name: &str) -> Schema {
    Schema(json!({"$ref": format!("#/components/schemas/{name}")}))
}

/// A component, or (with `select`) some of its members.
pub(super) fn selected(name: &str) -> Schema {
    either([component(name), component(&format!("{name}Part"))])
}

/// An object, member by member.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    members: Map<String, Value>,
    required: Vec<String>,
}

pub(super) fn shape() -> Shape {
    Shape::default()
}

impl Shape {
    /// A member that must be there: `null` is as good as absent.
    pub(super) fn required(mut self, name: &str, schema: Schema) -> Shape {
        self.required.push(name.to_owned());
        self.sometimes(name, schema)
    }

    /// A member that a client may leave out or send as `null`.
    pub(super) fn optional(self, name: &str, schema: Schema) -> Shape {
        self.sometimes(name, schema.nullable())
    }

    /// A member that may be missing.
    pub(super) fn sometimes(mut self, name: &str, schema: Schema) -> Shape {
        self.members.insert(name.to_owned(), schema.json());
        self
    }

    /// Further members that several shapes share.
    pub(super) fn and(self, more: impl FnOnce(Shape) -> Shape) -> Shape {
        more(self)
    }

    pub(super) fn without(mut self, names: &[&str]) -> Shape {
        self.members.retain(|name, _| !names.contains(&name.as_str()));
        self.required.retain(|name| !names.contains(&name.as_str()));
        self
    }

    /// The members of both.
    pub(super) fn merged(mut self, other: Shape) -> Shape {
        self.members.extend(other.members);
        self.required
            .extend(other.required.into_iter().filter(|name| !self.required.contains(name)).collect::<Vec<_>>());
        self
    }

    /// Some of the members.
    pub(super) fn part(mut self) -> Shape {
        self.required.clear();
        self
    }

    pub(super) fn needs_something(&self) -> bool {
        !self.required.is_empty()
    }

    pub(super) fn schema(self) -> Schema {
        let mut schema = of_type("object").with("properties", self.members);
        if !self.required.is_empty() {
            schema = schema.with("required", self.required);
        }
        schema
    }
}
