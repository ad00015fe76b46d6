//! What a run's `configurable` takes from the headers of the request that asked for it: the request's id, where it is in a
//! trace of LangSmith, and what the operator names (contract section 1.4).

use axum::http::HeaderMap;

use super::named_headers::HeaderPatterns;
use super::trace::X_REQUEST_ID;
use crate::model::{Fields, Json};
use crate::spans;

const LANGSMITH_TRACE: &str = "langsmith-trace";
/// The longest value that is taken along.
const MAX_VALUE: usize = 8 * 1024;

/// The members for `config.configurable`. What is too long or malformed is left out: a trace is no reason to refuse a run.
pub(super) fn carried(headers: &HeaderMap, named: &HeaderPatterns) -> Fields {
    let text = |name: &str| headers.get(name)?.to_str().ok().filter(|text| text.len() <= MAX_VALUE);
    let mut fields = named.taken(headers);
    if let Some(id) = text(X_REQUEST_ID.as_str()) {
        fields.insert("langgraph_request_id".to_owned(), Json::from(id));
    }
    if let Some(trace) = text(LANGSMITH_TRACE) {
        fields.insert(LANGSMITH_TRACE.to_owned(), Json::from(trace));
        fields.extend(text("baggage").into_iter().flat_map(of_baggage));
    }
    // The run may be executed by another process: its spans follow that of this request.
    if let Some(traceparent) = spans::traceparent() {
        fields.insert(spans::TRACEPARENT.to_owned(), Json::from(traceparent));
    }
    fields
}

/// LangSmith's own entries: metadata (a JSON object), tags (separated by commas) and the project.
fn of_baggage(baggage: &str) -> Fields {
    let mut fields = Fields::new();
    for (key, value) in baggage.split(',').filter_map(|entry| entry.trim().split_once('=')) {
        let Some(value) = decoded(value) else { continue };
        let value = match key {
            "langsmith-metadata" => Json::parse(&value).ok().filter(Json::is_object),
            "langsmith-tags" => Some(value.split(',').map(Json::from).collect()),
            "langsmith-project" => Json::parse(&serde_json::Value::from(value).to_string()).ok(),
            _ => None,
        };
        if let Some(value) = value {
            fields.entry(key.to_owned()).or_insert(value);
        }
    }
    fields
}

/// Undoes percent-encoding; `None` when that leaves no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)]) -> String {
        let headers = pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect();
        Json::from(&carried(&headers, &HeaderPatterns::default())).text()
    }

    #[test]
    fn a_request_carries_its_id_and_its_trace() {
        assert_eq!(of(&[("x-request-id", "r1"), ("x-api-key", "s3cret")]), r#"{"langgraph_request_id":"r1"}"#);
        let baggage = "other=1, langsmith-metadata=%7B%22a%22%3A1%7D,langsmith-tags=x%2Cy,langsmith-project=p%20q";
        assert_eq!(
            of(&[("langsmith-trace", "t1"), ("baggage", baggage)]),
            r#"{"langsmith-trace":"t1","langsmith-metadata":{"a":1},"langsmith-tags":["x","y"],"langsmith-project":"p q"}"#
        );
    }

    #[test]
    fn what_is_malformed_or_without_a_trace_is_left_out() {
        assert_eq!(of(&[("baggage", "langsmith-tags=x")]), "{}");
        let baggage = "langsmith-metadata=[1],langsmith-tags=%ff,langsmith-project=%00,langsmith-project";
        assert_eq!(of(&[("langsmith-trace", "t"), ("baggage", baggage)]), r#"{"langsmith-trace":"t"}"#);
        assert_eq!(decoded("%4").as_deref(), Some("%4"));
        assert_eq!(decoded("100%é%41").as_deref(), Some("100%éA"));
        let long = "x".repeat(MAX_VALUE + 1);
        assert_eq!(of(&[("x-request-id", &long)]), "{}");
    }
}
