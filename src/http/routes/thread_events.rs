//! Protocol v2 on a thread: commands in, events out (contract section 5).

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{AnyBody, Body, PathIds};
use crate::http::protocol::{self, Command};
use crate::http::{AppState, sse};
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
