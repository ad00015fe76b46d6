//! JSON-RPC 2.0, one message at a time: what is asked, and the envelopes of answers.

use super::error::ApiError;
use super::object::Object;
use crate::model::Json;

pub(crate) const PARSE_ERROR: i64 = -32700;
pub(crate) const INVALID_REQUEST: i64 = -32600;
pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
pub(crate) const INVALID_PARAMS: i64 = -32602;
pub(crate) const INTERNAL_ERROR: i64 = -32603;

/// Why a request was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: i64,
    pub(crate) message: String,
    /// What a program may want to know.
    pub(crate) data: Option<Json>,
}

impl Refusal {
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), data: None }
    }

    pub(crate) fn method_not_found(method: &str) -> Refusal {
        let shown: String = method.chars().take(64).collect();
        Refusal::new(METHOD_NOT_FOUND, format!("Method not found: {shown}"))
    }
}

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        let (code, message) = error.into().into_rpc();
        Refusal::new(code, message)
    }
}

/// A message from a client.
#[derive(Debug)]
pub(crate) enum Message {
    /// It wants an answer.
    Request(Request),
    /// A notification, or an answer to something: nothing is to be said.
    Quiet,
}

/// A request: what its answer must repeat, what it asks, and with what.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: Json,
    pub(crate) method: String,
    pub(crate) params: Object,
}

impl Message {
    /// Reads a message. The error is the answer, with the id if there is one.
    pub(crate) fn read(json: &Json) -> Result<Message, Json> {
        let id = json.get("id").filter(|id| id.as_str().is_some() || id.value().is_number());
        let refuse = |text: &str| {
            let id = id.clone().unwrap_or_default();
            Err(failure(&id, &Refusal::new(INVALID_REQUEST, text)))
        };
        if json.is_array() {
            return refuse("Request body: batches are not supported, send one message at a time");
        }
        let Some(fields) = json.fields() else {
            return refuse("Request body: expected an object {jsonrpc, id, method, params}");
        };
        if fields.get("jsonrpc").and_then(Json::as_str) != Some("2.0") {
            return refuse("jsonrpc: expected \"2.0\"");
        }
        let Some(method) = fields.get("method") else {
            let is_answer = fields.contains_key("result") || fields.contains_key("error");
            return if is_answer { Ok(Message::Quiet) } else { refuse("method: field required") };
        };
        let Some(method) = method.as_str() else { return refuse("method: expected a string") };
        if !fields.contains_key("id") {
            return Ok(Message::Quiet);
        }
        let Some(id) = id.clone() else { return refuse("id: expected a string or a number") };
        let params = Object::body(json).and_then(|mut envelope| envelope.nested("params"));
        match params {
            Ok(params) => {
                Ok(Message::Request(Request { id, method: method.to_owned(), params: params.unwrap_or_default() }))
            }
            Err(error) => Err(failure(&id, &error.into())),
        }
    }
}

/// The answer to a request, whichever it is.
pub(crate) fn answer(id: &Json, result: Result<Json, Refusal>) -> Json {
    match result {
        Ok(result) => success(id, &result),
        Err(refusal) => failure(id, &refusal),
    }
}

fn success(id: &Json, result: &Json) -> Json {
    Json::from_fields([("jsonrpc", &Json::from("2.0")), ("id", id), ("result", result)])
}

/// The answer that refuses; a null id when the request's could not be read.
pub(crate) fn failure(id: &Json, refusal: &Refusal) -> Json {
    let (code, message) = (Json::from(refusal.code), Json::from(refusal.message.as_str()));
    let mut error = vec![("code", &code), ("message", &message)];
    error.extend(refusal.data.as_ref().map(|data| ("data", data)));
    Json::from_fields([("jsonrpc", &Json::from("2.0")), ("id", id), ("error", &Json::from_fields(error))])
}

/// A message that wants no answer.
pub(crate) fn notification(method: &str, params: &Json) -> Json {
    Json::from_fields([("jsonrpc", &Json::from("2.0")), ("method", &Json::from(method)), ("params", params)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Message, String> {
        Message::read(&Json::parse(text).expect("JSON")).map_err(|answer| answer.text())
    }

    #[test]
    fn requests_are_told_from_what_wants_no_answer() {
        let Ok(Message::Request(request)) = read(r#"{"jsonrpc":"2.0","id":"a","method":"ping","params":{"x":1}}"#)
        else {
            panic!("no request")
        };
        assert_eq!((request.id.text(), request.method.as_str()), ("\"a\"".to_owned(), "ping"));
        assert_eq!(request.params.rest().keys().collect::<Vec<_>>(), ["x"]);
        for quiet in [
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#,
        ] {
            assert!(matches!(read(quiet), Ok(Message::Quiet)), "{quiet}");
        }
    }

    #[test]
    fn malformed_messages_are_refused_with_their_id() {
        for (text, id, code) in [
            ("[]", "null", INVALID_REQUEST),
            ("1", "null", INVALID_REQUEST),
            (r#"{"id":7,"method":"ping"}"#, "7", INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":7}"#, "7", INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":7,"method":1}"#, "7", INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "null", INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, "null", INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":7,"method":"ping","params":[]}"#, "7", INVALID_PARAMS),
        ] {
            let answer = read(text).expect_err(text);
            let start = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":""#);
            assert!(answer.starts_with(&start), "{text}: {answer}");
        }
    }

    #[test]
    fn answers_repeat_the_id_as_it_came() {
        let id = Json::parse("1.0").expect("JSON");
        assert_eq!(answer(&id, Ok(Json::object())).text(), r#"{"jsonrpc":"2.0","id":1.0,"result":{}}"#);
        let refusal = Refusal { data: Some(Json::from(3)), ..Refusal::method_not_found("x") };
        assert_eq!(
            answer(&id, Err(refusal)).text(),
            r#"{"jsonrpc":"2.0","id":1.0,"error":{"code":-32601,"message":"Method not found: x","data":3}}"#
        );
    }
}
