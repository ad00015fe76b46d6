//! `?pretty`: JSON responses indented for people, numbers and texts untouched.

use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::error::ApiError;
use super::query::Query;

/// Middleware: indents complete JSON bodies when asked to. Streams are left alone.
pub(super) async fn prettify(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let asked = match Query::from_request_parts(&mut parts, &state).await {
        Ok(query) => query.flag("pretty"),
        Err(error) => return error.into_response(),
    };
    let response = next.run(Request::from_parts(parts, body)).await;
    if asked && is_whole_json(&response) { indented(response).await } else { response }
}

fn is_whole_json(response: &Response) -> bool {
    let json =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    json && response.body().size_hint().exact().is_some()
}

async fn indented(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    match to_bytes(body, usize::MAX).await {
        Ok(bytes) => {
            parts.headers.remove(CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(indent(&String::from_utf8_lossy(&bytes))))
        }
        Err(error) => ApiError::Internal(format!("own response: {error}")).into_response(),
    }
}

/// Indents valid JSON by two spaces and ends it with a newline.
pub(super) fn indent(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    let mut chars = text.chars().filter(|c| *c != '\r').peekable();
    while let Some(c) = chars.next() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => {
                in_string = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::indent;

    #[test]
    fn indents_and_keeps_every_token() {
        let text = r#"{"a":[1,{"b":"x\"{,}"},[ ]],"c": {},"n":123456789012345678901234567890}"#;
        let want = "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"x\\\"{,}\"\n    },\n    []\n  ],\n  \"c\": {},\n  \
                    \"n\": 123456789012345678901234567890\n}\n";
        assert_eq!(indent(text), want);
        assert_eq!(indent("null"), "null\n");
        assert_eq!(indent(&indent(text)), indent(text));
    }
}
