//! [`Json`]: a shared, validated JSON value that keeps the text it came as.
//!
//! Channel values, run inputs, events and metadata are `Json`: cheap to clone, written out byte for byte, decoded at
//! most once. Lists may be held as persistent vectors of such values, so that appending to a long list costs what is
//! appended and every checkpoint keeps its own view.

#![deny(missing_docs)]

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock};

use imbl::Vector;
use indexmap::IndexMap;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// The deepest nesting a document from outside may have: what every decoder behind it accepts.
pub const MAX_DEPTH: usize = 127;

/// An ordered map of named values: a state, a node's input, an update.
pub type Fields = IndexMap<String, Json>;

/// Why a text is not an acceptable JSON document. The message says what and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(pub String);

/// A JSON value: immutable, shared, compared by content. `None` is null: what edges write costs nothing.
#[derive(Clone)]
pub struct Json(Option<Arc<Inner>>);

struct Inner {
    repr: Repr,
    value: OnceLock<Value>,
    /// The text of a list, made when something needs the list as raw JSON.
    rendered: OnceLock<Box<RawValue>>,
}

enum Repr {
    Text(Box<RawValue>),
    List(Vector<Json>),
}

impl Json {
    fn new(repr: Repr) -> Json {
        Json(Some(Arc::new(Inner { repr, value: OnceLock::new(), rendered: OnceLock::new() })))
    }

    fn repr(&self) -> Option<&Repr> {
        self.0.as_deref().map(|inner| &inner.repr)
    }

    /// Reads a document from outside: depth at most [`MAX_DEPTH`], numbers that fit an `f64` or 64-bit integer or are
    /// longer integers, no lone surrogates, no NUL in keys. Insignificant white space is dropped; a repeated key keeps
    /// its last value when decoded.
    pub fn parse(text: &str) -> Result<Json, JsonError> {
        check::document(text)?;
        Json::trusted(text.to_owned())
    }

    /// Reads a document that this server wrote. Fails only on text that is not JSON.
    pub fn trusted(text: String) -> Result<Json, JsonError> {
        RawValue::from_string(text).map(Json::raw).map_err(|error| JsonError(error.to_string()))
    }

    /// Wraps raw JSON text without another pass.
    pub fn raw(text: Box<RawValue>) -> Json {
        if text.get() == "null" { Json(None) } else { Json::new(Repr::Text(text)) }
    }

    /// `null`.
    pub const fn null() -> Json {
        Json(None)
    }

    /// `{}`.
    pub fn object() -> Json {
        Json::from(&Value::Object(serde_json::Map::new()))
    }

    /// A list that shares its items.
    pub fn list(items: Vector<Json>) -> Json {
        Json::new(Repr::List(items))
    }

    /// Encodes any serializable value. Fails on maps with keys that are not strings, and on NaN or infinities inside
    /// types that refuse them.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Json, JsonError> {
        serde_json::value::to_raw_value(value).map(Json::raw).map_err(|error| JsonError(error.to_string()))
    }

    /// An object of the given members, in their order.
    pub fn from_fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a Json)>) -> Json {
        Json::encoded(&Members(Cell::new(Some(fields.into_iter()))))
    }

    /// Encodes what cannot fail: strings, numbers, and collections of them and of JSON values.
    fn encoded<T: Serialize + ?Sized>(value: &T) -> Json {
        Json::of(value).expect("strings, numbers and JSON values can be written as JSON")
    }

    /// The decoded value, made at most once.
    pub fn value(&self) -> &Value {
        let Some(inner) = &self.0 else { return &Value::Null };
        inner.value.get_or_init(|| match &inner.repr {
            Repr::Text(text) => decode_lenient(text.get()),
            Repr::List(items) => Value::Array(items.iter().map(|item| item.value().clone()).collect()),
        })
    }

    /// Decodes into a type. The error names the field.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        T::deserialize(self).map_err(|error| JsonError(error.to_string()))
    }

    /// Appends the compact-enough text: what came in is what goes out.
    pub fn write(&self, out: &mut String) {
        match self.repr() {
            None => out.push_str("null"),
            Some(Repr::Text(text)) => out.push_str(text.get()),
            Some(Repr::List(items)) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
        }
    }

    /// The value as raw JSON; a list is rendered at most once.
    pub fn as_raw(&self) -> &RawValue {
        let Some(inner) = &self.0 else { return RawValue::NULL };
        match &inner.repr {
            Repr::Text(text) => text,
            Repr::List(_) => inner
                .rendered
                .get_or_init(|| serde_json::value::to_raw_value(self).expect("JSON values can be written as JSON")),
        }
    }

    /// The JSON text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn first_byte(&self) -> u8 {
        match self.repr() {
            None => b'n',
            Some(Repr::Text(text)) => text.get().trim_ascii_start().as_bytes().first().copied().unwrap_or(b'n'),
            Some(Repr::List(_)) => b'[',
        }
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.first_byte() == b'n'
    }

    /// Whether it is an object; nothing is decoded.
    pub fn is_object(&self) -> bool {
        self.first_byte() == b'{'
    }

    /// Whether it is an array; nothing is decoded.
    pub fn is_array(&self) -> bool {
        self.first_byte() == b'['
    }

    /// The items of an array, shared; `None` for anything else. One level is split, the items are not decoded.
    pub fn items(&self) -> Option<Vector<Json>> {
        match self.repr()? {
            Repr::List(items) => Some(items.clone()),
            Repr::Text(text) if self.is_array() => {
                let items: Vec<Box<RawValue>> = serde_json::from_str(text.get()).ok()?;
                Some(items.into_iter().map(Json::raw).collect())
            }
            Repr::Text(_) => None,
        }
    }

    /// How many items an array has; `None` for anything else.
    pub fn items_len(&self) -> Option<usize> {
        match self.repr()? {
            Repr::List(items) => Some(items.len()),
            Repr::Text(_) => self.items().map(|items| items.len()),
        }
    }

    /// The members of an object, in order; `None` for anything else. One level is split, the values are not decoded.
    pub fn fields(&self) -> Option<Fields> {
        match self.repr()? {
            Repr::Text(text) if self.is_object() => {
                let members: IndexMap<String, Box<RawValue>> = serde_json::from_str(text.get()).ok()?;
                Some(members.into_iter().map(|(key, value)| (key, Json::raw(value))).collect())
            }
            Repr::Text(_) | Repr::List(_) => None,
        }
    }

    /// A member of an object. Splits the object: use [`Json::fields`] to read several.
    pub fn get(&self, key: &str) -> Option<Json> {
        self.fields()?.shift_remove(key)
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if self.first_byte() == b'"' { self.value().as_str() } else { None }
    }

    /// The integer, if it is one that fits.
    pub fn as_i64(&self) -> Option<i64> {
        self.value().as_i64()
    }
}

/// `serde_json` refuses numbers beyond `f64`; stored text never holds them, so this cannot lose anything.
fn decode_lenient(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

/// Appends `text` as a JSON string.
pub fn write_string(text: &str, out: &mut String) {
    if text.bytes().any(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        out.push_str(Json::encoded(text).as_raw().get());
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}

/// Members to be written as one object.
struct Members<I>(Cell<Option<I>>);

impl<'a, I: Iterator<Item = (&'a str, &'a Json)>> Serialize for Members<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.take().into_iter().flatten())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Default for Json {
    fn default() -> Self {
        Json::null()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => return true,
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => return true,
            _ => {}
        }
        if let (Some(Repr::Text(a)), Some(Repr::Text(b))) = (self.repr(), other.repr())
            && a.get() == b.get()
        {
            return true;
        }
        self.value() == other.value()
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        Json::encoded(value)
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Json::from(&value)
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Json::encoded(text)
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Json::from(text.as_str())
    }
}

impl From<i64> for Json {
    fn from(number: i64) -> Self {
        Json::encoded(&number)
    }
}

impl From<bool> for Json {
    fn from(truth: bool) -> Self {
        Json::raw(if truth { RawValue::TRUE } else { RawValue::FALSE }.to_owned())
    }
}

impl From<&Fields> for Json {
    fn from(fields: &Fields) -> Self {
        Json::from_fields(fields.iter().map(|(key, value)| (key.as_str(), value)))
    }
}

impl FromIterator<Json> for Json {
    fn from_iter<I: IntoIterator<Item = Json>>(items: I) -> Self {
        Json::list(items.into_iter().collect())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.repr() {
            None => serializer.serialize_unit(),
            Some(Repr::Text(text)) => text.serialize(serializer),
            Some(Repr::List(items)) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Json::raw)
    }
}

/// Decodes without an intermediate tree: text through `serde_json`, lists item by item.
impl<'de> Deserializer<'de> for &'de Json {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.repr() {
            None => RawValue::NULL.deserialize_any(visitor),
            Some(Repr::Text(text)) => text.deserialize_any(visitor),
            Some(Repr::List(items)) => SeqDeserializer::new(items.iter()).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.repr() {
            None => RawValue::NULL.deserialize_newtype_struct(name, visitor),
            Some(Repr::Text(text)) => text.deserialize_newtype_struct(name, visitor),
            // `RawValue` asks through a newtype of a private name; a list has to be rendered for it.
            Some(Repr::List(_)) if name.starts_with('$') => self.as_raw().deserialize_newtype_struct(name, visitor),
            Some(Repr::List(_)) => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.repr() {
            None => RawValue::NULL.deserialize_enum(name, variants, visitor),
            Some(Repr::Text(text)) => text.deserialize_enum(name, variants, visitor),
            Some(Repr::List(_)) => Err(de::Error::custom("expected a string or an object, found a list")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map struct identifier
    }
}

impl<'de> IntoDeserializer<'de, serde_json::Error> for &'de Json {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Decodes named values into a type, as if they were one object.
pub fn decode_fields<'a, T: DeserializeOwned>(
    fields: impl IntoIterator<Item = (&'a str, &'a Json)>,
) -> Result<T, JsonError> {
    let map = MapDeserializer::<'_, _, serde_json::Error>::new(fields.into_iter());
    T::deserialize(map).map_err(|error| JsonError(error.to_string()))
}

pub(crate) mod check {
    //! The one validating pass over documents from outside.

    use super::{JsonError, MAX_DEPTH};

    /// Checks depth, numbers, escapes and keys. Syntax is left to the decoder that follows; this pass only refuses
    /// what a decoder would accept and storage or other readers could not keep.
    pub(crate) fn document(text: &str) -> Result<(), JsonError> {
        let bytes = text.as_bytes();
        let mut depth = 0usize;
        // For each open container, whether it is an object; the string after `{` or a `,` inside one is a key.
        let mut open: Vec<bool> = Vec::new();
        let mut key_next = false;
        let mut at = 0;
        while at < bytes.len() {
            match bytes[at] {
                open_byte @ (b'{' | b'[') => {
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err(JsonError(format!("nesting deeper than {MAX_DEPTH} levels at byte {at}")));
                    }
                    open.push(open_byte == b'{');
                    key_next = open_byte == b'{';
                    at += 1;
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    open.pop();
                    key_next = false;
                    at += 1;
                }
                b',' => {
                    key_next = open.last().copied().unwrap_or(false);
                    at += 1;
                }
                b'"' => {
                    at = string(bytes, at, key_next)?;
                    key_next = false;
                }
                b'-' | b'0'..=b'9' => at = number(text, at)?,
                _ => at += 1,
            }
        }
        Ok(())
    }

    fn number(text: &str, from: usize) -> Result<usize, JsonError> {
        let rest = &text[from..];
        let len = rest.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        let number = &rest[..len];
        let is_integer = !number.contains(['.', 'e', 'E']);
        if is_integer {
            if number.len() > 4300 {
                return Err(JsonError(format!("integer of more than 4300 digits at byte {from}")));
            }
        } else if number.parse::<f64>().is_ok_and(f64::is_infinite) {
            return Err(JsonError(format!("number out of range at byte {from}: {}", &number[..len.min(40)])));
        }
        Ok(from + len)
    }

    fn string(bytes: &[u8], from: usize, is_key: bool) -> Result<usize, JsonError> {
        let mut at = from + 1;
        while at < bytes.len() {
            match bytes[at] {
                b'"' => return Ok(at + 1),
                b'\\' if bytes.get(at + 1) == Some(&b'u') => {
                    let unit = unit(bytes, at).ok_or_else(|| JsonError(format!("bad escape at byte {at}")))?;
                    at += 6;
                    match unit {
                        0 if is_key => return Err(JsonError(format!("NUL in an object key at byte {from}"))),
                        0xd800..=0xdbff => match unit_at(bytes, at) {
                            Some(0xdc00..=0xdfff) => at += 6,
                            _ => return Err(JsonError(format!("lone surrogate at byte {}", at - 6))),
                        },
                        0xdc00..=0xdfff => return Err(JsonError(format!("lone surrogate at byte {}", at - 6))),
                        _ => {}
                    }
                }
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        Ok(at)
    }

    fn unit_at(bytes: &[u8], at: usize) -> Option<u32> {
        (bytes.get(at) == Some(&b'\\') && bytes.get(at + 1) == Some(&b'u')).then(|| unit(bytes, at)).flatten()
    }

    fn unit(bytes: &[u8], at: usize) -> Option<u32> {
        let digits = bytes.get(at + 2..at + 6)?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_byte_for_byte() {
        for text in
            [r#"{"b":1e2,"a":123456789012345678901234567890}"#, r#"["\u0000","\ud83d\ude00",{"a":[]}]"#, "0.1", "\"x\""]
        {
            assert_eq!(Json::parse(text).expect("valid").text(), text);
        }
    }

    #[test]
    fn poison_is_refused_with_its_place() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (text, why) in [
            ("1e400", "out of range"),
            (r#""\ud800""#, "lone surrogate"),
            (r#""\ude00x""#, "lone surrogate"),
            (r#"{"a\u0000":1}"#, "NUL in an object key"),
            (deep.as_str(), "nesting deeper"),
        ] {
            let error = Json::parse(text).expect_err(text);
            assert!(error.0.contains(why), "{text}: {error}");
        }
        for text in ["", "{", "[1,]", "nul", "{\"a\" 1}", "1 2"] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_repeated_key_keeps_its_last_value() {
        let json = Json::parse(r#"{"a":1,"a":2}"#).expect("valid");
        assert_eq!(json.get("a").and_then(|a| a.as_i64()), Some(2));
        assert_eq!(json.value()["a"], 2);
    }

    #[test]
    fn lists_decode_into_types_without_being_rendered() {
        #[derive(Deserialize, PartialEq, Debug)]
        struct State {
            l: Vec<i64>,
            o: Option<Vec<String>>,
            raw: Json,
            n: Option<i64>,
        }
        let l: Json = [1, 2, 3].into_iter().map(Json::from).collect();
        let o: Json = [Json::from("x")].into_iter().collect();
        let fields = [("l", &l), ("o", &o), ("raw", &l), ("n", &Json::null())];
        let state: State = decode_fields(fields).expect("decodes");
        assert_eq!(state.l, [1, 2, 3]);
        assert_eq!(state.o, Some(vec!["x".to_owned()]));
        assert_eq!(state.raw, l);
        assert_eq!(state.n, None);
        assert_eq!(l.text(), "[1,2,3]");
        assert_eq!(l, Json::parse("[1, 2, 3]").expect("valid"));
    }

    #[test]
    fn decoding_errors_name_the_field() {
        #[derive(Deserialize, Debug)]
        struct Counter {
            #[serde(rename = "counter")]
            _counter: i64,
        }
        let bad = Json::from("x");
        let error = decode_fields::<Counter>([("other", &bad)]).expect_err("missing");
        assert!(error.0.contains("counter"), "{error}");
    }
}
