//! `/mcp`: every assistant is a tool (contract section 3.10). The Model Context Protocol over streamable HTTP, revision
//! 2025-11-25 and older ones, without sessions: any replica answers any message, and nothing is kept between two.
//!
//! A client that goes away does not end its call: the protocol says that a lost connection is no cancellation.

mod call;
mod tools;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::AnyBody;
use super::jsonrpc::{INVALID_PARAMS, Message, PARSE_ERROR, Refusal, answer, failure};
use super::object::Object;
use super::origin;
use super::query::Query;
use crate::model::Json;

/// The revisions of the protocol that are spoken, newest first.
const VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
const VERSION_HEADER: &str = "mcp-protocol-version";

/// `POST /mcp`: one message.
pub(crate) async fn message(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    query: Query,
    body: Result<AnyBody, ApiError>,
) -> ApiResult {
    origin::check(&state.settings.mcp_origins, &headers)?;
    let accepts = Accepts::read(&headers)?;
    let body = match body {
        Ok(AnyBody(body)) => body,
        Err(ApiError::Invalid(text)) => return Ok(refused(&failure(&Json::null(), &Refusal::new(PARSE_ERROR, text)))),
        Err(other) => return Err(other),
    };
    let message = match Message::read(&body) {
        Ok(message) => message,
        Err(answer) => return Ok(refused(&answer)),
    };
    let request = match message {
        // Whoever begins says the version in the message.
        Message::Request(request) if request.method == "initialize" => request,
        message => {
            let refusal = unknown_version(&headers);
            match (message, refusal) {
                (Message::Request(request), Some(refusal)) => return Ok(refused(&failure(&request.id, &refusal))),
                (Message::Quiet, Some(refusal)) => return Ok(refused(&failure(&Json::null(), &refusal))),
                (Message::Quiet, None) => return Ok(StatusCode::ACCEPTED.into_response()),
                (Message::Request(request), None) => request,
            }
        }
    };
    let result = match request.method.as_str() {
        "initialize" => initialize(request.params),
        "ping" => Ok(Json::object()),
        "tools/list" => tools::list(&state, &caller, request.params).await,
        "tools/call" => {
            let pretty = query.flag("pretty");
            return Ok(call::respond(&state, &caller, request.id, request.params, accepts, pretty).await);
        }
        other => Err(Refusal::method_not_found(other)),
    };
    Ok(Reply(answer(&request.id, result)).into_response())
}

/// `DELETE /mcp`: there are no sessions to end.
pub(crate) async fn end_session() -> ApiError {
    ApiError::not_found()
}

/// A message that could not be taken as one.
fn refused(answer: &Json) -> Response {
    (StatusCode::BAD_REQUEST, Reply(answer)).into_response()
}

fn initialize(mut params: Object) -> Result<Json, Refusal> {
    let asked = params.required_string("protocolVersion")?;
    let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(VERSIONS[0]);
    Ok(Json::from(json!({
        "protocolVersion": version,
        "capabilities": {"tools": {"listChanged": false}},
        "serverInfo": {"name": "LangGraph", "version": env!("CARGO_PKG_VERSION")},
    })))
}

/// Why the version that a later message says is refused; one that says none is of an older revision.
fn unknown_version(headers: &HeaderMap) -> Option<Refusal> {
    let asked = String::from_utf8_lossy(headers.get(VERSION_HEADER)?.as_bytes());
    if VERSIONS.contains(&&*asked) {
        return None;
    }
    let asked: String = asked.chars().take(64).collect();
    let text = format!("Unsupported protocol version '{asked}': expected one of {}", VERSIONS.join(", "));
    let data = Some(Json::from(json!({"supported": VERSIONS, "requested": asked})));
    Some(Refusal { data, ..Refusal::new(INVALID_PARAMS, text) })
}

/// What a client can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Accepts {
    /// An event stream, too.
    events: bool,
}

impl Accepts {
    /// Reads `Accept`, which the protocol requires to be there.
    fn read(headers: &HeaderMap) -> ApiResult<Accepts> {
        let accepts = |wanted: &[&str]| {
            let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let mut kinds = values.flat_map(|value| value.split(',')).map(|kind| kind.split(';').next().unwrap_or(""));
            kinds.any(|kind| wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(kind.trim())))
        };
        let events = accepts(&["text/event-stream"]);
        if events || accepts(&["application/json", "application/*", "*/*"]) {
            return Ok(Accepts { events });
        }
        Err(ApiError::BadRequest("Accept: must contain application/json or text/event-stream, better both".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        [(name.parse().expect("a name"), value.parse().expect("a value"))].into_iter().collect()
    }

    #[test]
    fn known_versions_are_repeated_and_others_answered_with_the_newest() {
        let version = |asked: &str| {
            let params = Json::from(json!({"protocolVersion": asked, "capabilities": {}}));
            let result = initialize(Object::body(&params).expect("an object")).expect("valid");
            result.get("protocolVersion").and_then(|version| version.as_str().map(str::to_owned)).expect("a version")
        };
        for known in VERSIONS {
            assert_eq!(version(known), known);
        }
        assert_eq!(version("1999-01-01"), "2025-11-25");
        assert_eq!(initialize(Object::default()).expect_err("refused").code, INVALID_PARAMS);
        assert!(unknown_version(&HeaderMap::new()).is_none());
        assert!(unknown_version(&headers(VERSION_HEADER, "2025-03-26")).is_none());
        assert!(unknown_version(&headers(VERSION_HEADER, "2026-07-28")).is_some());
    }

    #[test]
    fn what_is_accepted_is_read_from_lists() {
        let read = |value: &'static str| Accepts::read(&headers("accept", value)).ok().map(|accepts| accepts.events);
        assert_eq!(read("application/json, text/event-stream"), Some(true));
        assert_eq!(read("Application/JSON;q=0.9"), Some(false));
        assert_eq!(read("*/*"), Some(false));
        assert_eq!(read("text/html, text/plain"), None);
        assert!(Accepts::read(&HeaderMap::new()).is_err());
    }
}
