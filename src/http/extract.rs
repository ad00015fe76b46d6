//! What handlers take from a request: ids in the path, and the body read once, bounded and validated.

use std::time::Duration;

use axum::body::{Body as HttpBody, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use uuid::Uuid;

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::object::{Object, check_text, parse_uuid};
use crate::model::{Json, RunId, ThreadId};

/// How much of a refused request's body is read, and for how long.
const DISCARD_BYTES: usize = 64 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// The ids in the path of a request.
#[derive(Debug)]
pub(crate) struct PathIds(Vec<(String, String)>);

impl PathIds {
    pub(crate) fn text(&self, key: &str) -> ApiResult<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| ApiError::Internal(format!("route without {{{key}}}")))
    }

    pub(crate) fn thread(&self) -> ApiResult<ThreadId> {
        let id = thread_id(self.text("thread_id")?)?;
        tracing::Span::current().record("thread.id", id.as_str());
        Ok(id)
    }

    pub(crate) fn run(&self) -> ApiResult<RunId> {
        let id = parse_uuid("run ID", self.text("run_id")?)?;
        tracing::Span::current().record("run.id", id.to_string());
        Ok(id)
    }

    pub(crate) fn assistant(&self) -> ApiResult<Uuid> {
        parse_uuid("assistant ID", self.text("assistant_id")?)
    }

    /// A checkpoint id in the path, which may come from elsewhere: any text, a UUID in its usual spelling.
    pub(crate) fn checkpoint(&self) -> ApiResult<String> {
        let text = self.text("checkpoint_id")?;
        check_text("checkpoint_id", text)?;
        Ok(Uuid::try_parse(text).map_or_else(|_| text.to_owned(), |id| id.hyphenated().to_string()))
    }
}

/// Reads a thread's name. The words that are routes below `/threads` cannot be names: nobody could address them.
pub(crate) fn thread_id(text: &str) -> ApiResult<ThreadId> {
    // Routes, and what clients resolve away before they send a path: such a thread could not be addressed.
    if ["search", "count", "prune", ".", ".."].contains(&text) {
        return Err(ApiError::invalid(format!("Invalid thread ID: '{text}' is reserved")));
    }
    ThreadId::parse(text).map_err(|error| ApiError::invalid(error.0))
}

impl FromRequestParts<AppState> for PathIds {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> ApiResult<PathIds> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid(format!("Invalid path: {}", error.body_text())))?;
        Ok(PathIds(params.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
    }
}

/// A body that is a JSON object; an empty body is `{}`.
pub(crate) struct Body(pub(crate) Object);

/// A body that is any JSON value.
pub(crate) struct AnyBody(pub(crate) Json);

impl FromRequest<AppState> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> ApiResult<Body> {
        Ok(Body(Object::body(&read(request, state).await?)?))
    }
}

impl FromRequest<AppState> for AnyBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> ApiResult<AnyBody> {
        Ok(AnyBody(read(request, state).await?))
    }
}

/// Reads and validates the body whatever its Content-Type. One that says it is too long is refused unread.
async fn read(request: Request, state: &AppState) -> ApiResult<Json> {
    parse(&read_bytes(request, state).await?.1)
}

/// Reads the body as it is, apart from the rest of the request.
pub(super) async fn read_bytes(request: Request, state: &AppState) -> ApiResult<(Parts, axum::body::Bytes)> {
    let limit = state.settings.body_limit;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::TooLarge(limit));
    }
    let (parts, body) = request.into_parts();
    let bytes = tokio::time::timeout(state.settings.body_timeout, collect(body, limit))
        .await
        .map_err(|_| ApiError::BodyTimeout)??;
    Ok((parts, bytes))
}

/// Reads and drops what is left of a refused request, if it is little and comes soon: the connection is closed under an
/// unread body, and with it under the client's next request.
pub(super) async fn discard(request: Request) {
    let _unwanted = tokio::time::timeout(DISCARD_TIMEOUT, to_bytes(request.into_body(), DISCARD_BYTES)).await;
}

async fn collect(body: HttpBody, limit: usize) -> ApiResult<axum::body::Bytes> {
    to_bytes(body, limit).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        if source.is_some_and(|source| source.to_string().contains("length limit")) {
            return ApiError::TooLarge(limit);
        }
        ApiError::invalid(format!("Invalid request body: {error}"))
    })
}

pub(super) fn parse(bytes: &[u8]) -> ApiResult<Json> {
    let refused = |why: String| ApiError::invalid(format!("Invalid JSON in request body: {why}"));
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| refused(error.to_string()))?;
    if text.trim_ascii().is_empty() {
        return Ok(Json::object());
    }
    Json::parse(text).map_err(|error| refused(error.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_in_a_body_is_refused_with_its_reason() {
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        for (bytes, why) in [
            (&b"{"[..], "EOF"),
            (b"\xff", "utf-8"),
            (b"{\"a\":1e400}", "out of range"),
            (b"{\"a\":\"\\ud800\"}", "lone surrogate"),
            (b"{\"a\\u0000\":1}", "NUL"),
            (deep.as_bytes(), "nesting deeper"),
        ] {
            let Err(ApiError::Invalid(text)) = parse(bytes) else { panic!("accepted: {why}") };
            assert!(text.starts_with("Invalid JSON in request body: ") && text.contains(why), "{text}");
        }
    }

    #[test]
    fn an_empty_body_is_an_empty_object_and_the_last_duplicate_wins() {
        assert_eq!(parse(b" \n").expect("valid").text(), "{}");
        let twice = parse(b"\xef\xbb\xbf{\"a\":1,\"a\":2}").expect("valid");
        assert_eq!(twice.get("a").and_then(|a| a.as_i64()), Some(2));
    }

    #[test]
    fn route_words_are_no_thread_names() {
        assert!(thread_id("user-42").is_ok());
        for bad in ["search", "count", "prune", ".", "..", "", "a b", "a\0"] {
            assert!(thread_id(bad).is_err(), "{bad:?}");
        }
    }
}
