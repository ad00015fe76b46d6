//! Request ids, one span and one access line per request. Nothing secret is recorded: no query, header or body.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Response};
use tower_http::request_id::{MakeRequestId, RequestId};
use tracing::Span;
use tracing::field::Empty;

use crate::runtime::Runtime;
use crate::spans;

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const MAX_REQUEST_ID: usize = 128;

/// Makes an id for requests that bring none.
#[derive(Clone)]
pub(super) struct RequestIds(pub(super) Runtime);

impl MakeRequestId for RequestIds {
    fn make_request_id<B>(&mut self, _: &http::Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&self.0.clock().new_uuid().to_string()).ok().map(RequestId::new)
    }
}

/// Before routing: drops request ids that are no ids, and trailing slashes.
pub(super) fn normalize(mut request: Request) -> Request {
    let is_id = |id: &HeaderValue| id.len() <= MAX_REQUEST_ID && id.to_str().is_ok_and(|text| !text.trim().is_empty());
    if request.headers().get(X_REQUEST_ID).is_some_and(|id| !is_id(id)) {
        request.headers_mut().remove(X_REQUEST_ID);
    }
    if let Some(uri) = without_trailing_slash(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

fn without_trailing_slash(uri: &http::Uri) -> Option<http::Uri> {
    let path = uri.path();
    let trimmed = path.trim_end_matches('/');
    if trimmed.len() == path.len() || path == "/" {
        return None;
    }
    let path = if trimmed.is_empty() { "/" } else { trimmed };
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    http::Uri::from_parts(parts).ok()
}

/// The span of a request. Ids of thread and run are recorded once they have been read from the path.
pub(super) fn span(request: &http::Request<Body>) -> Span {
    let path = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str);
    let header = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let request_id = header(X_REQUEST_ID).unwrap_or_default();
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        path,
        request.id = request_id,
        thread.id = Empty,
        run.id = Empty,
        status = Empty,
    );
    if let Some(traceparent) = header(TRACEPARENT) {
        spans::continue_from(&span, traceparent, header(TRACESTATE));
    }
    span
}

/// The access line: when the response begins, streams included.
pub(super) fn log_response<B>(response: &Response<B>, latency: Duration, span: &Span) {
    let status = response.status().as_u16();
    span.record("status", status);
    tracing::info!(status, latency_us = latency.as_micros() as u64, "served");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_slashes_go_and_queries_stay() {
        let trim = |text: &str| without_trailing_slash(&text.parse().expect("a URI")).map(|uri| uri.to_string());
        assert_eq!(trim("/threads/?a=/b/").as_deref(), Some("/threads?a=/b/"));
        assert_eq!(trim("/threads//").as_deref(), Some("/threads"));
        assert_eq!(trim("//").as_deref(), Some("/"));
        assert_eq!(trim("/"), None);
        assert_eq!(trim("/threads"), None);
    }
}
