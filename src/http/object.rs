//! [`Object`]: the members of a JSON object from a client, taken one by one with their types checked. `null` is absent,
//! members nobody takes are ignored, and every refusal names the field.

use std::ops::RangeInclusive;

use uuid::Uuid;

use super::error::{ApiError, ApiResult};
use crate::model::{Fields, Json};

/// The longest name, key or other short text a client may send.
pub(crate) const MAX_TEXT: usize = 4096;

/// A JSON object being read.
#[derive(Debug, Default)]
pub(crate) struct Object {
    fields: Fields,
    /// Where the object is in the request: empty for the body itself, else ending in a dot.
    path: String,
}

impl Object {
    /// Reads the body of a request.
    pub(crate) fn body(json: &Json) -> ApiResult<Object> {
        let Some(fields) = json.fields() else {
            return Err(ApiError::invalid(format!("Request body: expected an object, got {}", kind(json))));
        };
        Ok(Object { fields, path: String::new() })
    }

    /// The full name of a member, for messages.
    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    fn refuse<T>(&self, key: &str, expected: &str, got: &Json) -> ApiResult<T> {
        Err(ApiError::invalid(format!("{}: expected {expected}, got {}", self.name(key), kind(got))))
    }

    /// Any value but `null`.
    pub(crate) fn json(&mut self, key: &str) -> Option<Json> {
        #[cfg(test)]
        super::tests::spy::member(&self.name(key));
        self.fields.shift_remove(key).filter(|value| !value.is_null())
    }

    /// A text without NUL of at most [`MAX_TEXT`] bytes.
    pub(crate) fn string(&mut self, key: &str) -> ApiResult<Option<String>> {
        let Some(value) = self.json(key) else { return Ok(None) };
        let Some(text) = value.as_str() else { return self.refuse(key, "a string", &value) };
        check_text(&self.name(key), text)?;
        Ok(Some(text.to_owned()))
    }

    /// A text that must be there.
    pub(crate) fn required_string(&mut self, key: &str) -> ApiResult<String> {
        self.string(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn missing(&self, key: &str) -> ApiError {
        ApiError::invalid(format!("{}: field required", self.name(key)))
    }

    /// A refusal of a member, naming it.
    pub(crate) fn wrong(&self, key: &str, rule: &str) -> ApiError {
        ApiError::invalid(format!("{}: {rule}", self.name(key)))
    }

    /// A value with `null` told apart from absence.
    pub(crate) fn raw(&mut self, key: &str) -> Option<Json> {
        #[cfg(test)]
        super::tests::spy::member(&self.name(key));
        self.fields.shift_remove(key)
    }

    /// Reads on in an object that was a member of this one.
    pub(crate) fn inside(&self, key: &str, object: &Json) -> ApiResult<Object> {
        let Some(fields) = object.fields() else { return self.refuse(key, "an object", object) };
        Ok(Object { fields, path: format!("{}.", self.name(key)) })
    }

    /// The members of a nested object, at most so many, each an object to read on; none when it is absent.
    pub(crate) fn objects_of(&mut self, key: &str, max: usize) -> ApiResult<Vec<(String, Object)>> {
        let Some(value) = self.object(key)? else { return Ok(Vec::new()) };
        let members = value.fields().unwrap_or_default();
        if members.len() > max {
            return Err(self.wrong(key, &format!("at most {max} members, got {}", members.len())));
        }
        let members = members.into_iter().map(|(name, value)| {
            check_text(&self.name(key), &name)?;
            let object = self.inside(&format!("{key}.{name}"), &value)?;
            Ok((name, object))
        });
        members.collect()
    }

    pub(crate) fn bool(&mut self, key: &str) -> ApiResult<Option<bool>> {
        let Some(value) = self.json(key) else { return Ok(None) };
        match value.value().as_bool() {
            Some(truth) => Ok(Some(truth)),
            None => self.refuse(key, "a boolean", &value),
        }
    }

    pub(crate) fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> ApiResult<Option<i64>> {
        let Some(value) = self.json(key) else { return Ok(None) };
        if !value.value().is_number() {
            return self.refuse(key, "an integer", &value);
        }
        let Some(number) = value.as_i64() else { return self.refuse(key, "an integer", &value) };
        check_range(&self.name(key), number, &range)?;
        Ok(Some(number))
    }

    /// A finite number in the range.
    pub(crate) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> ApiResult<Option<f64>> {
        let Some(value) = self.json(key) else { return Ok(None) };
        let Some(number) = value.value().as_f64() else { return self.refuse(key, "a number", &value) };
        if !range.contains(&number) {
            let (from, to) = (range.start(), range.end());
            return Err(ApiError::invalid(format!("{}: must be between {from} and {to}", self.name(key))));
        }
        Ok(Some(number))
    }

    /// A nested object as it came.
    pub(crate) fn object(&mut self, key: &str) -> ApiResult<Option<Json>> {
        let Some(value) = self.json(key) else { return Ok(None) };
        if value.is_object() { Ok(Some(value)) } else { self.refuse(key, "an object", &value) }
    }

    /// A nested object of at most so many bytes.
    pub(crate) fn small_object(&mut self, key: &str, max_bytes: usize) -> ApiResult<Option<Json>> {
        let value = self.object(key)?;
        if let Some(value) = &value
            && value.as_raw().get().len() > max_bytes
        {
            return Err(ApiError::invalid(format!("{}: larger than {max_bytes} bytes", self.name(key))));
        }
        Ok(value)
    }

    /// A nested object to read on.
    pub(crate) fn nested(&mut self, key: &str) -> ApiResult<Option<Object>> {
        let path = format!("{}.", self.name(key));
        let value = self.object(key)?;
        Ok(value.and_then(|value| value.fields()).map(|fields| Object { fields, path }))
    }

    /// A list of at most so many values.
    pub(crate) fn list(&mut self, key: &str, max: usize) -> ApiResult<Option<Vec<Json>>> {
        let Some(value) = self.json(key) else { return Ok(None) };
        let Some(items) = value.items() else { return self.refuse(key, "an array", &value) };
        if items.len() > max {
            let count = items.len();
            return Err(ApiError::invalid(format!("{}: at most {max} items, got {count}", self.name(key))));
        }
        Ok(Some(items.into_iter().collect()))
    }

    /// A list of texts.
    pub(crate) fn strings(&mut self, key: &str, max: usize) -> ApiResult<Option<Vec<String>>> {
        let Some(items) = self.list(key, max)? else { return Ok(None) };
        let texts = items.iter().enumerate().map(|(index, item)| {
            let key = format!("{key}[{index}]");
            let Some(text) = item.as_str() else { return self.refuse(&key, "a string", item) };
            check_text(&self.name(&key), text)?;
            Ok(text.to_owned())
        });
        texts.collect::<ApiResult<Vec<_>>>().map(Some)
    }

    /// A list of objects to read on.
    pub(crate) fn objects(&mut self, key: &str, max: usize) -> ApiResult<Option<Vec<Object>>> {
        let Some(items) = self.list(key, max)? else { return Ok(None) };
        let objects = items.iter().enumerate().map(|(index, item)| {
            let key = format!("{key}[{index}]");
            let Some(fields) = item.fields() else { return self.refuse(&key, "an object", item) };
            Ok(Object { fields, path: format!("{}.", self.name(&key)) })
        });
        objects.collect::<ApiResult<Vec<_>>>().map(Some)
    }

    pub(crate) fn uuid(&mut self, key: &str) -> ApiResult<Option<Uuid>> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        let name = self.name(key);
        Uuid::try_parse(&text).map(Some).map_err(|_| ApiError::invalid(format!("{name}: must be a UUID")))
    }

    /// One of a few words.
    pub(crate) fn choice<T>(
        &mut self,
        key: &str,
        words: &[&str],
        parse: impl Fn(&str) -> Option<T>,
    ) -> ApiResult<Option<T>> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        parse_choice(&self.name(key), &text, words, parse).map(Some)
    }

    /// The members that are left.
    pub(crate) fn rest(self) -> Fields {
        self.fields
    }
}

/// What a value is, in a message.
pub(crate) fn kind(json: &Json) -> &'static str {
    match json.as_raw().get().trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') | None => "null",
        Some(_) if json.as_raw().get().contains(['.', 'e', 'E']) => "a number",
        Some(_) => "an integer",
    }
}

/// Refuses texts that are too long or hold NUL, which a database cannot keep as text.
pub(crate) fn check_text(name: &str, text: &str) -> ApiResult<()> {
    if text.len() > MAX_TEXT {
        return Err(ApiError::invalid(format!("{name}: longer than {MAX_TEXT} bytes")));
    }
    if text.contains('\0') {
        return Err(ApiError::invalid(format!("{name}: must not contain NUL characters")));
    }
    Ok(())
}

pub(crate) fn check_range(name: &str, number: i64, range: &RangeInclusive<i64>) -> ApiResult<()> {
    if range.contains(&number) {
        return Ok(());
    }
    let (from, to) = (range.start(), range.end());
    let rule = if *to == i64::MAX { format!("at least {from}") } else { format!("between {from} and {to}") };
    Err(ApiError::invalid(format!("{name}: must be {rule}, got {number}")))
}

/// Reads an id that is called by its noun: `run ID`.
pub(crate) fn parse_uuid(noun: &str, text: &str) -> ApiResult<Uuid> {
    Uuid::try_parse(text).map_err(|_| ApiError::invalid(format!("Invalid {noun}: must be a UUID")))
}

pub(crate) fn parse_choice<T>(
    name: &str,
    text: &str,
    words: &[&str],
    parse: impl Fn(&str) -> Option<T>,
) -> ApiResult<T> {
    parse(text).ok_or_else(|| {
        let got: String = text.chars().take(64).collect();
        ApiError::invalid(format!("{name}: expected one of {}, got '{got}'", words.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Object {
        Object::body(&Json::parse(text).expect("JSON")).expect("an object")
    }

    fn refusal<T: std::fmt::Debug>(result: ApiResult<T>) -> String {
        match result.expect_err("must be refused") {
            ApiError::Invalid(text) => text,
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn wrong_types_are_refused_by_name() {
        let mut body = object(r#"{"limit":"x","f":1.5,"big":99999999999999999999,"o":[],"c":{"d":1},"l":[1]}"#);
        assert_eq!(refusal(body.integer("limit", 1..=10)), "limit: expected an integer, got a string");
        assert_eq!(refusal(body.integer("f", 1..=10)), "f: expected an integer, got a number");
        assert!(body.integer("big", 1..=10).is_err());
        assert_eq!(refusal(body.object("o")), "o: expected an object, got an array");
        let mut nested = body.nested("c").expect("an object").expect("present");
        assert_eq!(refusal(nested.string("d")), "c.d: expected a string, got an integer");
        assert_eq!(refusal(body.strings("l", 3)), "l[0]: expected a string, got an integer");
        assert!(Object::body(&Json::parse("[]").expect("JSON")).is_err());
    }

    #[test]
    fn null_is_absent_and_unknown_members_stay_unread() {
        let mut body = object(r#"{"limit":null,"what":1}"#);
        assert_eq!(body.integer("limit", 1..=10).expect("absent"), None);
        assert_eq!(body.rest().keys().collect::<Vec<_>>(), ["what"]);
    }

    #[test]
    fn texts_and_ranges_are_bounded() {
        let long = "x".repeat(MAX_TEXT + 1);
        let mut body = object(&format!(r#"{{"a":"{long}","b":"x\u0000","n":0,"w":"zzz","u":"nope"}}"#));
        assert!(refusal(body.string("a")).contains("longer than"));
        assert!(refusal(body.string("b")).contains("NUL"));
        assert_eq!(refusal(body.integer("n", 1..=1000)), "n: must be between 1 and 1000, got 0");
        let words = ["asc", "desc"];
        assert_eq!(
            refusal(body.choice("w", &words, |word| words.contains(&word).then_some(()))),
            "w: expected one of asc, desc, got 'zzz'"
        );
        assert!(refusal(body.uuid("u")).contains("must be a UUID"));
    }
}
