//! `Idempotency-Key`: a POST that is sent again has one effect, for a day.
//!
//! The key's row is inserted by the operation's own transaction (`storage::idempotency`). A repeat with the same body
//! gets the answer that was given, or, where that is a run, joins it: `/runs` shows it, `/wait` waits for it, `/stream`
//! streams it. A repeat that comes while the first request is being answered waits a little, then is told to try again.
//! The same key with another body is refused. A request that was refused leaves no key behind.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{parse, read_bytes};
use super::protocol::{self, Command};
use super::routes::crons;
use super::routes::runs::{content_location, located};
use super::sse::{self, EventFilter};
use super::stream_end::{self, StreamEnd};
use super::{AppState, document, keepalive};
use crate::model::{EventId, Fields, Json, Run, ThreadId};
use crate::storage::idempotency::{self, Keyed};
use crate::storage::{IdempotencyKey, KeyRow};

const HEADER: &str = "idempotency-key";
const REPLAYED: &str = "idempotency-replayed";
const COMMANDS: &str = "/commands";
const MAX_KEY: usize = 255;
/// The longest answer kept. A longer one is given once; its repeat is told so.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long a duplicate waits for the answer to the first request.
const LOOKS: u32 = 50;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Middleware, between authentication and the handlers.
pub(super) async fn once(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST || !request.headers().contains_key(HEADER) {
        return next.run(request).await;
    }
    keyed(state, request, next).await.unwrap_or_else(ApiError::into_response)
}

async fn keyed(state: AppState, request: Request, next: Next) -> ApiResult {
    let text = key_of(request.headers())?;
    let missing = || ApiError::Internal("request without a caller or a route".into());
    let caller = request.extensions().get::<Caller>().cloned().ok_or_else(missing)?;
    let Some(route) = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()) else {
        return Ok(next.run(request).await);
    };
    let (parts, bytes) = read_bytes(request, &state).await?;
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let key = IdempotencyKey {
        tenant: caller.scope.tenant(),
        operation: format!("POST {route}"),
        key: text,
        fingerprint: fingerprint(target, &bytes),
    };
    let repeat = Repeat { state: &state, caller: &caller, route: &route, key: &key, body: bytes.clone() };
    if let Some(row) = repeat.find().await? {
        return repeat.answer(row).await;
    }
    let keyed = Keyed::new(key.clone());
    let request = Request::from_parts(parts, Body::from(bytes));
    let response = idempotency::under(Arc::clone(&keyed), next.run(request)).await;
    if !keyed.is_used() {
        // Refused, perhaps because a duplicate was faster. Protocol v2 refuses with 200.
        let may_be_refused = !response.status().is_success() || route.ends_with(COMMANDS);
        let row = if may_be_refused { repeat.find().await? } else { None };
        return match row {
            Some(row) => repeat.answer(row).await,
            None => Ok(response),
        };
    }
    if !response.status().is_success() {
        if response.status().is_client_error() {
            state.runtime.storage().forget_key(&caller.scope, &key.operation, &key.key).await?;
        }
        return Ok(response);
    }
    keep(state, caller, key, &route, response).await
}

/// One key, from its header: text, or text in double quotes, as the draft of the IETF has it.
fn key_of(headers: &HeaderMap) -> ApiResult<String> {
    let refused =
        || ApiError::invalid(format!("Idempotency-Key: expected one key of 1 to {MAX_KEY} printable ASCII characters"));
    let mut values = headers.get_all(HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(refused()) };
    let text = value.to_str().map_err(|_| refused())?.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_printable = text.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    if text.is_empty() || text.len() > MAX_KEY || !is_printable { Err(refused()) } else { Ok(text.to_owned()) }
}

/// A hash of path, query and body; the order of members and white space make no difference.
fn fingerprint(target: &str, body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(target.as_bytes());
    hasher.update(b"\0");
    match parse(body) {
        Ok(json) => {
            let mut text = String::with_capacity(body.len());
            canonical(&json, &mut text);
            hasher.update(text.as_bytes());
        }
        // The handler refuses it.
        Err(_) => {
            hasher.update(body);
        }
    }
    *hasher.finalize().as_bytes()
}

fn canonical(json: &Json, out: &mut String) {
    if let Some(fields) = json.fields() {
        let mut members: Vec<(String, Json)> = fields.into_iter().collect();
        members.sort_by(|a, b| a.0.cmp(&b.0));
        out.push('{');
        for (key, value) in members {
            crate::model::json::write_string(&key, out);
            out.push(':');
            canonical(&value, out);
            out.push(',');
        }
        out.push('}');
    } else if let Some(items) = json.items() {
        out.push('[');
        for item in &items {
            canonical(item, out);
            out.push(',');
        }
        out.push(']');
    } else if let Some(text) = json.as_str() {
        crate::model::json::write_string(text, out);
    } else {
        out.push_str(json.as_raw().get().trim());
    }
}

/// Remembers the answer to a request that had its effect.
async fn keep(state: AppState, caller: Caller, key: IdempotencyKey, route: &str, response: Response) -> ApiResult {
    let (parts, body) = response.into_parts();
    let is_stream =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if is_stream {
        // A repeat joins the run; where that goes away with its thread, it gets the end.
        if let Some(end) = parts.extensions.get::<StreamEnd>().cloned() {
            tokio::spawn(async move {
                if let Some(end) = end.of().await.filter(|end| end.len() <= MAX_ANSWER) {
                    remember(&state, &caller, &key, StatusCode::OK.as_u16(), end).await;
                }
            });
        }
        return Ok(Response::from_parts(parts, body));
    }
    let status = parts.status.as_u16();
    if route.ends_with("/wait") {
        // It takes as long as the run. It is driven to its end whether or not the client stays, so that its answer can be
        // given again even when the run's thread goes with it.
        let failed = parts.extensions.get::<keepalive::Failed>().cloned().unwrap_or_default();
        let (sender, receiver) = mpsc::channel::<Result<Bytes, axum::Error>>(16);
        tokio::spawn(async move {
            let mut chunks = body.into_data_stream();
            let mut kept = Vec::new();
            let mut is_whole = true;
            while let Some(chunk) = chunks.next().await {
                match &chunk {
                    Ok(bytes) if kept.len() + bytes.len() <= MAX_ANSWER => kept.extend_from_slice(bytes),
                    _ => is_whole = false,
                }
                // The client may be gone.
                let _gone = sender.send(chunk).await;
            }
            // An answer that could not be had, as while the database is away: a repeat joins the run.
            if is_whole && !failed.is_so() {
                remember(&state, &caller, &key, status, kept.trim_ascii().to_vec()).await;
            }
        });
        return Ok(Response::from_parts(parts, Body::from_stream(ReceiverStream::new(receiver))));
    }
    let bytes = to_bytes(body, usize::MAX).await.map_err(|error| ApiError::Internal(error.to_string()))?;
    if bytes.len() <= MAX_ANSWER {
        remember(&state, &caller, &key, status, bytes.to_vec()).await;
    }
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

/// The operation is committed whatever becomes of this.
async fn remember(state: &AppState, caller: &Caller, key: &IdempotencyKey, status: u16, answer: Vec<u8>) {
    let stored = state.runtime.storage().answer_key(&caller.scope, key, status, answer).await;
    if let Err(error) = stored {
        tracing::warn!(%error, operation = key.operation, "the answer to a request with a key was not stored");
    }
}

/// A request whose key was used before.
struct Repeat<'a> {
    state: &'a AppState,
    caller: &'a Caller,
    route: &'a str,
    key: &'a IdempotencyKey,
    body: Bytes,
}

impl Repeat<'_> {
    async fn find(&self) -> ApiResult<Option<KeyRow>> {
        let storage = self.state.runtime.storage();
        Ok(storage.find_key(&self.caller.scope, &self.key.operation, &self.key.key).await?)
    }

    async fn answer(&self, row: KeyRow) -> ApiResult {
        if row.fingerprint != self.key.fingerprint {
            return Err(ApiError::invalid(
                "Idempotency-Key: was used for another request (another path, query or body)",
            ));
        }
        let mut row = row;
        for _ in 0..LOOKS {
            if let Some((status, answer)) = row.answer {
                if self.route.ends_with("/stream") {
                    return self.told(&answer, row.location.as_deref());
                }
                return replayed(status, answer, row.location.as_deref());
            }
            if let Some(again) = self.made(row.location.as_deref()).await? {
                return Ok(marked(again));
            }
            self.state.runtime.clock().sleep(LOOK_EVERY).await;
            let Some(next) = self.find().await? else { break };
            row = next;
        }
        let text = "Idempotency-Key: the first request with this key had its effect, and its answer is not known (yet): \
                    try again, or read what it changed";
        let mut response = ApiError::Conflict(text.to_owned()).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        Ok(response)
    }

    /// The end of a stream whose run is gone, under the headers it had.
    fn told(&self, end: &[u8], location: Option<&str>) -> ApiResult {
        let unreadable = || ApiError::Internal("the end of a stream cannot be read".into());
        let run = location.and_then(|location| location.rsplit_once('/')?.1.parse().ok()).ok_or_else(unreadable)?;
        let events = stream_end::replay(run, end).ok_or_else(unreadable)?;
        let place = format!("/runs/{run}");
        let headers = [(header::LOCATION, format!("{place}/stream")), (header::CONTENT_LOCATION, place)];
        Ok(marked(located(sse::respond(self.state, events, EventFilter::default()), &headers)))
    }

    /// What the operation made, as the route shows it; `None` when there is nothing to read (yet).
    async fn made(&self, location: Option<&str>) -> ApiResult<Option<Response>> {
        let Some(location) = location else { return Ok(None) };
        let (runtime, scope) = (&self.state.runtime, &self.caller.scope);
        let segments: Vec<&str> = location.trim_start_matches('/').split('/').collect();
        let response = match segments[..] {
            ["threads", thread, "runs", run] => {
                let ids = ThreadId::parse(thread).ok().zip(uuid::Uuid::try_parse(run).ok());
                let Some((thread, run)) = ids else { return Ok(None) };
                match runtime.storage().find_run(scope, &thread, run).await? {
                    Some(run) => Some(self.rejoin(run).await?),
                    // It ended, and its thread with it: what is left is its answer.
                    None => None,
                }
            }
            ["threads", thread] => {
                let Ok(id) = ThreadId::parse(thread) else { return Ok(None) };
                match runtime.storage().find_thread(scope, &id).await? {
                    Some(thread) => Some(json_response(document::one_thread(runtime, self.caller, thread).await?)),
                    None => None,
                }
            }
            ["runs", "crons", cron] => {
                let Ok(id) = uuid::Uuid::try_parse(cron) else { return Ok(None) };
                let found = runtime.storage().find_cron(scope, id).await?;
                found.map(|cron| crons::document(&cron).map(json_response)).transpose()?
            }
            ["assistants", assistant] => {
                let Ok(id) = uuid::Uuid::try_parse(assistant) else { return Ok(None) };
                let found = runtime.storage().find_assistants(scope, &[id]).await?.pop();
                found.map(|assistant| axum::Json(assistant).into_response())
            }
            _ => None,
        };
        Ok(response)
    }

    async fn rejoin(&self, run: Run) -> ApiResult {
        let (runtime, scope) = (self.state.runtime.clone(), self.caller.scope);
        let place = content_location(&run);
        if self.route.ends_with("/wait") {
            let headers = [(header::LOCATION, format!("{place}/join")), (header::CONTENT_LOCATION, place)];
            let answer = async move { Ok(runtime.join(&scope, &run.thread_id, run.run_id).await?) };
            return Ok(located(keepalive::respond(self.state, false, answer), &headers));
        }
        if self.route.ends_with(COMMANDS) {
            let refused = || ApiError::Internal("a command that was carried out cannot be read".into());
            let command = Command::read(&parse(&self.body)?).map_err(|_| refused())?;
            let result = match command.method.as_str() {
                "run.start" => Json::from(serde_json::json!({"run_id": run.run_id})),
                _ => Json::object(),
            };
            return Ok(axum::Json(protocol::success(command.id, &result)).into_response());
        }
        if self.route.ends_with("/stream") {
            let headers = [(header::LOCATION, format!("{place}/stream")), (header::CONTENT_LOCATION, place)];
            let is_resumable = run.is_resumable();
            let events = if is_resumable || run.status.is_active() {
                let after = is_resumable.then_some(EventId(0));
                runtime.join_stream(&scope, &run.thread_id, run.run_id, after, false).await?
            } else {
                stream_end::ended(&run, runtime.join(&scope, &run.thread_id, run.run_id).await?)
            };
            return Ok(located(sse::respond(self.state, events, EventFilter::default()), &headers));
        }
        Ok(located(json_response(document::run(&run)?), &[(header::CONTENT_LOCATION, place)]))
    }
}

fn json_response(fields: Fields) -> Response {
    axum::Json(fields).into_response()
}

/// The answer that was given. Which run it is about stands in a header, as it did the first time.
fn replayed(status: u16, answer: Vec<u8>, location: Option<&str>) -> ApiResult {
    let status = StatusCode::from_u16(status).map_err(|error| ApiError::Internal(error.to_string()))?;
    let mut response = match answer.is_empty() {
        true => status.into_response(),
        false => {
            let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            (status, kind, answer).into_response()
        }
    };
    let run = location.filter(|location| location.contains("/runs/"));
    if let Some(Ok(place)) = run.map(HeaderValue::from_str) {
        response.headers_mut().insert(header::CONTENT_LOCATION, place);
    }
    Ok(marked(response))
}

fn marked(mut response: Response) -> Response {
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_static(value));
        }
        key_of(&headers).ok()
    }

    #[test]
    fn keys_are_short_and_printable() {
        assert_eq!(
            key(&["8e03978e-40d5-43dd-bc93-6894a57f9324"]).as_deref(),
            Some("8e03978e-40d5-43dd-bc93-6894a57f9324")
        );
        assert_eq!(key(&["\"a b\""]).as_deref(), Some("a b"));
        for bad in [&[""][..], &["\"\""], &["a", "b"], &["a\tb"], &[]] {
            assert_eq!(key(bad), None, "{bad:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(&"x".repeat(256)).expect("a value"));
        assert!(key_of(&headers).is_err());
        headers.insert(HEADER, HeaderValue::from_bytes(b"\xe4").expect("a value"));
        assert!(key_of(&headers).is_err());
    }

    #[test]
    fn a_fingerprint_is_that_of_the_meaning() {
        let of = |body: &str| fingerprint("/a", body.as_bytes());
        assert_eq!(of(r#"{"a":1,"b":{"c":[1,2],"d":"\u0041"}}"#), of(" {\"b\":{\"d\":\"A\",\"c\":[1, 2]},\n\"a\":1}"));
        for other in [r#"{"a":1}"#, r#"{"a":"1"}"#, r#"{"a":[1]}"#, r#"{"a":{"1":1}}"#, "{", ""] {
            let same: Vec<&str> = [r#"{"a":1}"#, r#"{"a":"1"}"#, r#"{"a":[1]}"#, r#"{"a":{"1":1}}"#, "{", ""]
                .into_iter()
                .filter(|body| of(body) == of(other))
                .collect();
            assert_eq!(same, [other]);
        }
        assert_ne!(fingerprint("/a", b"{}"), fingerprint("/a?x=1", b"{}"));
    }
}
