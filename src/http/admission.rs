//! Requests are turned away (503) before their bodies are read when there is no memory for them: an answer to come back is
//! better than the end of the process, and of everybody's requests and runs in it.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;

use super::AppState;
use super::error::ApiError;

/// How long the body of a request that is turned away may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// Holds the room that the body of a request needs until its answer begins.
pub(super) async fn admit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let limit = state.settings.body_limit as u64;
    let headers = request.headers();
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    // What is not announced may become as long as is allowed; what is longer is refused unread.
    let body = match announced {
        Some(length) if length > limit => 0,
        Some(length) => length,
        None if headers.contains_key(TRANSFER_ENCODING) => limit,
        None => 0,
    };
    let memory = state.runtime.memory();
    match memory.admit(body) {
        Some(_admitted) => next.run(request).await,
        None => {
            skip_body(request).await;
            ApiError::NoMemory { limit: memory.limit().unwrap_or_default() }.into_response()
        }
    }
}

/// Reads what is not wanted, and keeps nothing of it: a client that is still writing when the connection closes does not get
/// to see why.
async fn skip_body(request: Request) {
    let mut body = request.into_body().into_data_stream();
    let _unwanted = tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = body.next().await {} }).await;
}
