//! Protocol v2 on a thread: commands in, events out (contract section 5).

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{AnyBody, Body, PathIds};
use crate::http::protocol::{self, Command};
use crate::http::query::Query;
use crate::http::{AppState, sse};
use crate::model::Json;
use crate::model::event::RESUME_GAP;
use crate::runtime::RuntimeError;
use crate::runtime::protocol::ProtocolEvent;

/// `POST /threads/{thread_id}/commands`.
pub(super) async fn command(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    body: ApiResult<AnyBody>,
) -> ApiResult {
    let thread = path.thread()?;
    let AnyBody(body) = body.map_err(malformed)?;
    let command = match Command::read(&body) {
        Ok(command) => command,
        Err(refusal) => return Ok((StatusCode::BAD_REQUEST, Reply(refusal)).into_response()),
    };
    let id = command.id;
    let answer = match protocol::execute(&state, &caller, &thread, &command.method, command.params).await {
        Ok(result) => protocol::success(id, &result),
        Err(refusal) => protocol::failure(Some(id), &refusal),
    };
    Ok(Reply(answer).into_response())
}

/// `POST /threads/{thread_id}/stream/events`.
pub(super) async fn subscribe(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    body: ApiResult<Body>,
) -> ApiResult<Response> {
    let thread = path.thread()?;
    let Body(mut body) = body.map_err(malformed)?;
    let (filter, since) = protocol::subscription(&mut body).map_err(malformed)?;
    let events = state.runtime.protocol_events(&caller.scope, &thread, filter, since.unwrap_or(0));
    let frames = events.map(frame).boxed();
    Ok(sse::respond_frames(&state, frames, false))
}

/// `GET /threads/{thread_id}/stream`.
pub(super) async fn join(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    let thread = path.thread()?;
    let modes = ThreadModes::of_query(&query)?;
    let after = sse::last_event_id(&headers)?;
    let events = state.runtime.thread_stream(&caller.scope, &thread, after).await?;
    let frames = events.filter_map(move |event| {
        let frame = match event {
            Ok(event) => modes.passes(&event.name).then(|| sse::frame(&event)),
            Err(error) => {
                let info = Json::from(ApiError::from(error).into_info());
                Some(sse::write_frame("error", &info, None::<i64>))
            }
        };
        std::future::ready(frame)
    });
    Ok(sse::respond_frames(&state, frames.boxed(), false))
}

/// What a listener of a thread wants.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct ThreadModes {
    runs: bool,
    lifecycle: bool,
    state_update: bool,
}

impl ThreadModes {
    /// Reads `stream_mode` or `stream_modes`: one value, repeated ones, a comma list, or a JSON array.
    fn of_query(query: &Query) -> ApiResult<ThreadModes> {
        let mut modes = ThreadModes::default();
        let mut names = query.all("stream_mode")?.unwrap_or_default();
        names.extend(query.all("stream_modes")?.unwrap_or_default());
        if names.is_empty() {
            names.push("run_modes".to_owned());
        }
        for name in names {
            match name.as_str() {
                "run_modes" => modes.runs = true,
                "lifecycle" => modes.lifecycle = true,
                "state_update" => modes.state_update = true,
                other => {
                    let got: String = other.chars().take(64).collect();
                    let known = "run_modes, lifecycle, state_update";
                    return Err(ApiError::invalid(format!("stream_mode: expected one of {known}, got '{got}'")));
                }
            }
        }
        Ok(modes)
    }

    fn passes(self, name: &str) -> bool {
        match name {
            "state_update" => self.state_update,
            RESUME_GAP => true,
            "metadata" => self.runs || self.lifecycle,
            _ => self.runs,
        }
    }
}

/// This protocol answers 400 where the others answer 422.
fn malformed(error: ApiError) -> ApiError {
    match error {
        ApiError::Invalid(text) => ApiError::BadRequest(text),
        other => other,
    }
}

fn frame(event: Result<ProtocolEvent, RuntimeError>) -> axum::body::Bytes {
    match event {
        Ok(event) => sse::write_frame(event.method, &event.to_json(), Some(event.seq)),
        Err(error) => {
            let refusal = protocol::Refusal::from(error);
            sse::write_frame("error", &protocol::failure(None, &refusal), None::<i64>)
        }
    }
}
