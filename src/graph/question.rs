//! Questions for humans, and what their answers must look like.

use std::fmt;
use std::sync::Arc;

use jsonschema::paths::LocationSegment;
use jsonschema::{PatternOptions, Validator};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::schema;
use crate::engine::EngineError;
use crate::model::{Interrupt, Json, JsonError};

/// A question for a human: what clients are shown, and what counts as an answer.
#[derive(Clone)]
pub struct Question {
    value: Json,
    schema: Option<Json>,
    check: Option<Check>,
}

/// Says why a value is no answer.
type Check = Arc<dyn Fn(&Json) -> Result<(), String> + Send + Sync>;

impl Question {
    /// A question that any value but `null` answers.
    ///
    /// # Errors
    /// The question cannot be encoded.
    pub fn new(value: impl Serialize) -> Result<Question, JsonError> {
        Ok(Question { value: Json::of(&value)?, schema: None, check: None })
    }

    /// Shows clients a JSON Schema for the answer, and accepts whatever they send.
    #[must_use]
    pub fn showing(self, schema: Json) -> Question {
        Question { schema: Some(schema), check: None, ..self }
    }

    /// Shows clients a JSON Schema, and refuses answers that do not satisfy it (section 5.2).
    ///
    /// # Errors
    /// `ValueError`: not a JSON Schema, or one that refers to other documents.
    pub fn requiring(self, schema: Json) -> Result<Question, EngineError> {
        let compiled = ResponseSchema::new(&schema)?;
        let check: Check = Arc::new(move |answer| compiled.check(answer));
        Ok(Question { schema: Some(schema), check: Some(check), ..self })
    }

    /// [`Question::requiring`] the schema of a type, and that the answer can be decoded as one.
    pub(super) fn requiring_type<T: JsonSchema + DeserializeOwned>(self) -> Result<Question, EngineError> {
        let schema = Json::from(schema::of::<T>());
        let compiled = ResponseSchema::new(&schema)?;
        let check: Check = Arc::new(move |answer| {
            compiled.check(answer)?;
            answer.decode::<T>().map(drop).map_err(|error| format!("answer: {}", error.0))
        });
        Ok(Question { schema: Some(schema), check: Some(check), ..self })
    }

    /// What is asked.
    pub fn value(&self) -> &Json {
        &self.value
    }

    /// Whether there are values that do not answer it.
    pub fn is_checked(&self) -> bool {
        self.check.is_some()
    }

    /// Accepts an answer, or says where and why not, as in `answer.ok: value is not of type "boolean"`.
    ///
    /// # Errors
    /// `ValidationError`.
    pub fn check(&self, answer: &Json) -> Result<(), EngineError> {
        let refused = |why| EngineError::new("ValidationError", why);
        self.check.as_ref().map_or(Ok(()), |check| check(answer).map_err(refused))
    }

    /// The question as clients see it.
    pub(crate) fn with_id(&self, id: String) -> Interrupt {
        Interrupt { id, value: self.value.clone(), response_schema: self.schema.clone() }
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").field("value", &self.value).field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// A JSON Schema for answers, compiled. Made when a question is asked or answered, which is as often as humans do.
#[derive(Debug)]
pub(crate) struct ResponseSchema(Validator);

impl ResponseSchema {
    /// Compiles a schema. Nothing is fetched: `$ref` leads to places inside the schema only. Patterns are matched in
    /// linear time, so look-around is not known.
    pub(crate) fn new(schema: &Json) -> Result<ResponseSchema, EngineError> {
        let options = Validator::options().with_pattern_options(PatternOptions::regex());
        let compiled = options.build(schema.value());
        let refused = |error| EngineError::value(format!("response schema: {error}"));
        compiled.map(ResponseSchema).map_err(refused)
    }

    /// Checks an answer; the text names the place in it, but repeats nothing of it.
    pub(crate) fn check(&self, answer: &Json) -> Result<(), String> {
        self.0.validate(answer.value()).map_err(|error| {
            let mut place = "answer".to_owned();
            for segment in error.instance_path() {
                match segment {
                    LocationSegment::Property(name) => place.extend([".", &name]),
                    LocationSegment::Index(index) => place.push_str(&format!("[{index}]")),
                }
            }
            format!("{place}: {}", error.masked())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, JsonSchema)]
    struct Decision {
        #[serde(rename = "ok")]
        _ok: bool,
        #[serde(default, rename = "notes")]
        _notes: Vec<String>,
    }

    fn json(text: &str) -> Json {
        Json::parse(text).expect("JSON")
    }

    #[track_caller]
    fn refusal(question: &Question, answer: &str) -> String {
        let error = question.check(&json(answer)).expect_err("must be refused");
        assert_eq!(error.class, "ValidationError");
        error.message
    }

    #[test]
    fn a_refusal_names_the_place_and_repeats_nothing() {
        let question = Question::new("go on?").expect("a text").requiring_type::<Decision>().expect("a schema");
        assert!(question.check(&json(r#"{"ok":true,"notes":["fine"]}"#)).is_ok());
        assert_eq!(refusal(&question, r#"{"ok":"secret"}"#), r#"answer.ok: value is not of type "boolean""#);
        let nested = refusal(&question, r#"{"ok":true,"notes":["a",1]}"#);
        assert_eq!(nested, r#"answer.notes[1]: value is not of type "string""#);
        assert!(refusal(&question, "{}").starts_with("answer: "));
    }

    #[test]
    fn a_schema_that_is_only_shown_refuses_nothing() {
        let schema = json(r#"{"type":"boolean"}"#);
        let shown = Question::new(1).expect("a number").showing(schema.clone());
        assert!(!shown.is_checked() && shown.check(&json("7")).is_ok());
        assert_eq!(shown.with_id("x".to_owned()).response_schema, Some(schema));
    }

    #[test]
    fn bad_schemas_and_references_elsewhere_are_refused_when_asked() {
        for bad in [r#"{"type":"no-such-type"}"#, r#"{"$ref":"http://127.0.0.1:1/x"}"#, r#"{"pattern":"(?=x)"}"#] {
            let asked = Question::new(1).expect("a number").requiring(json(bad));
            let error = asked.expect_err("no schema");
            assert!(error.class == "ValueError" && error.message.starts_with("response schema: "), "{error}");
        }
        let inside = json(r##"{"$ref":"#/$defs/n","$defs":{"n":{"type":"integer"}}}"##);
        assert!(Question::new(1).expect("a number").requiring(inside).is_ok());
    }
}
