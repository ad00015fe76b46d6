//! Runs of a thread (contract section 3.3).

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::http::auth::Caller;
use crate::http::document::{self, RUN_COLUMNS};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds};
use crate::http::object::Object;
use crate::http::query::Query;
use crate::http::select::Columns;
use crate::http::sse::{self, EventFilter, last_event_id};
use crate::http::{AppState, keepalive, page, run_request};
use crate::model::{CancelAction, EventId, Fields, Json, Run, RunId, RunStatus, ThreadId};
use crate::runtime::{RunRequest, Runtime, RuntimeError, Submitted};
use crate::storage::{CancelRequest, RunFilter};

pub(in crate::http) const STATUSES: [&str; 6] = ["pending", "running", "error", "success", "timeout", "interrupted"];

/// `POST /threads/{thread_id}/runs`.
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(body): Body,
) -> ApiResult {
    let run = submit(&state, &caller, Some(path.thread()?), body, false).await?.run;
    let place = content_location(&run);
    Ok(located(Reply(document::run(&run)?).into_response(), &[(header::CONTENT_LOCATION, place)]))
}

/// `POST /threads/{thread_id}/runs/stream`.
pub(super) async fn stream(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
    Body(body): Body,
) -> ApiResult {
    let filter = EventFilter::of_namespaces(&query)?;
    let submitted = submit(&state, &caller, Some(path.thread()?), body, true).await?;
    let place = content_location(&submitted.run);
    let headers = [(header::LOCATION, format!("{place}/stream")), (header::CONTENT_LOCATION, place)];
    Ok(located(events(&state, &caller, submitted, filter).await?, &headers))
}

/// `POST /threads/{thread_id}/runs/wait`.
pub(super) async fn wait(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
    Body(body): Body,
) -> ApiResult {
    let submitted = submit(&state, &caller, Some(path.thread()?), body, true).await?;
    let place = content_location(&submitted.run);
    let headers = [(header::LOCATION, format!("{place}/join")), (header::CONTENT_LOCATION, place)];
    Ok(located(answer(&state, &caller, submitted, &query), &headers))
}

/// `GET /threads/{thread_id}/runs`.
pub(super) async fn list(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let thread = path.thread()?;
    let filter = RunFilter { status: query.choice("status", &STATUSES, RunStatus::parse)? };
    let columns = Columns::new(query.all("select")?, &RUN_COLUMNS)?;
    let window = page::of_query(&query)?;
    let runs = state.runtime.storage().list_runs(&caller.scope, &thread, &filter, window).await?;
    let runs = runs.ok_or_else(|| ApiError::thread_not_found(thread.as_str()))?;
    let runs: Vec<Fields> = runs.iter().map(|run| Ok(columns.apply(document::run(run)?))).collect::<ApiResult<_>>()?;
    Ok(Reply(runs).into_response())
}

/// `GET /threads/{thread_id}/runs/{run_id}`.
pub(super) async fn find(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let run = state.runtime.find_run(&caller.scope, &path.thread()?, path.run()?).await;
    let run = run.map_err(|error| match error {
        RuntimeError::RunNotFound(_) => ApiError::not_found(),
        error => error.into(),
    })?;
    Ok(Reply(document::run(&run)?).into_response())
}

/// `DELETE /threads/{thread_id}/runs/{run_id}`. An active one is rolled back, which deletes it.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let (thread, run) = (path.thread()?, path.run()?);
    state.runtime.delete_run(&caller.scope, &thread, run, caller.actor.clone()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /threads/{thread_id}/runs/{run_id}/join`.
pub(super) async fn join(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let (thread, run) = (path.thread()?, path.run()?);
    let cancel = query.bool("cancel_on_disconnect")?.unwrap_or(false);
    let runtime = state.runtime.clone();
    let guard = CancelOnDrop { what: cancel.then(|| (runtime.clone(), caller.clone(), thread.clone(), run)) };
    let answer = async move {
        let answer = runtime.join(&caller.scope, &thread, run).await;
        guard.disarm();
        Ok(answer?)
    };
    Ok(keepalive::respond(&state, query.flag("pretty"), answer))
}

/// `GET /threads/{thread_id}/runs/{run_id}/stream`.
pub(super) async fn join_stream(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    let (thread, run) = (path.thread()?, path.run()?);
    let place = format!("/threads/{thread}/runs/{run}");
    let headers_out = [(header::LOCATION, format!("{place}/stream")), (header::CONTENT_LOCATION, place)];
    Ok(located(joined(&state, &caller, Some(thread), run, &query, &headers).await?, &headers_out))
}

/// `POST /threads/{thread_id}/runs/{run_id}/cancel`.
pub(super) async fn cancel(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let (thread, run) = (path.thread()?, path.run()?);
    let wait = query.bool("wait")?.unwrap_or(false);
    let action = cancel_action(&query)?;
    let reason = query.one("reason")?.map(str::to_owned);
    let request = CancelRequest { action, actor: caller.actor.clone(), reason };
    state.runtime.cancel(&caller.scope, &thread, run, &request, false).await?;
    if !wait {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let runtime = state.runtime.clone();
    let place = format!("/threads/{thread}/runs/{run}/join");
    let answer = async move {
        match runtime.cancel(&caller.scope, &thread, run, &request, true).await {
            // It stopped between the two calls.
            Ok(()) | Err(RuntimeError::RunNotFound(_)) => Ok(Json::object()),
            Err(error) => Err(error.into()),
        }
    };
    let response = keepalive::respond(&state, query.flag("pretty"), answer);
    Ok(located(response, &[(header::LOCATION, place)]))
}

/// `POST /threads/{thread_id}/runs/cancel`: whatever is active on the thread, for who does not know the run yet. Nothing
/// active is fine.
pub(super) async fn cancel_all(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
) -> ApiResult {
    let thread = path.thread()?;
    let wait = query.bool("wait")?.unwrap_or(false);
    let action = cancel_action(&query)?;
    let reason = query.one("reason")?.map(str::to_owned);
    let request = CancelRequest { action, actor: caller.actor.clone(), reason };
    state.runtime.cancel_thread(&caller.scope, &thread, request.clone(), false).await?;
    if !wait {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let runtime = state.runtime.clone();
    let answer = async move {
        runtime.cancel_thread(&caller.scope, &thread, request, true).await?;
        Ok(Json::object())
    };
    Ok(keepalive::respond(&state, query.flag("pretty"), answer))
}

/// `action`: `interrupt` unless it says `rollback`.
pub(super) fn cancel_action(query: &Query) -> ApiResult<CancelAction> {
    let action = query.choice("action", &["interrupt", "rollback"], CancelAction::parse)?;
    Ok(action.unwrap_or(CancelAction::Interrupt))
}

/// Reads the body and has the run accepted: committed when this returns.
pub(super) async fn submit(
    state: &AppState,
    caller: &Caller,
    thread: Option<ThreadId>,
    body: Object,
    start_here: bool,
) -> ApiResult<Submitted> {
    accept(state, caller, run_request::read(caller, thread, body, start_here)?).await
}

/// [`submit`] with a body that was read.
pub(super) async fn accept(state: &AppState, caller: &Caller, request: RunRequest) -> ApiResult<Submitted> {
    let submitted = state.runtime.submit(&caller.scope, request).await?;
    tracing::Span::current().record("run.id", submitted.run.run_id.to_string());
    Ok(submitted)
}

/// The events of a run that was just accepted.
pub(super) async fn events(state: &AppState, caller: &Caller, submitted: Submitted, filter: EventFilter) -> ApiResult {
    let Submitted { run, events, .. } = submitted;
    let events = match events {
        Some(events) => events,
        None => {
            let first = Some(EventId(0));
            state.runtime.join_stream(&caller.scope, &run.thread_id, run.run_id, first, false).await?
        }
    };
    Ok(sse::respond(state, events, filter))
}

/// The result of a run that was just accepted, once there is one.
pub(super) fn answer(state: &AppState, caller: &Caller, submitted: Submitted, query: &Query) -> Response {
    let (runtime, scope) = (state.runtime.clone(), caller.scope);
    let answer = async move { Ok(runtime.wait(&scope, submitted).await?) };
    keepalive::respond(state, query.flag("pretty"), answer)
}

/// The events of a run somebody else started; what cannot be joined is a stream of one error.
pub(super) async fn joined(
    state: &AppState,
    caller: &Caller,
    thread: Option<ThreadId>,
    run: RunId,
    query: &Query,
    headers: &HeaderMap,
) -> ApiResult {
    let filter = EventFilter::of_query(query)?;
    let cancel = query.bool("cancel_on_disconnect")?.unwrap_or(false);
    let after = last_event_id(headers)?;
    let Some(thread) = thread else { return Ok(sse::failed(state, run, ApiError::run_not_found())) };
    match state.runtime.join_stream(&caller.scope, &thread, run, after, cancel).await {
        Ok(events) => Ok(sse::respond(state, events, filter)),
        Err(error @ (RuntimeError::RunNotFound(_) | RuntimeError::ThreadNotFound(_))) => {
            Ok(sse::failed(state, run, error.into()))
        }
        Err(error) => Err(error.into()),
    }
}

pub(in crate::http) fn content_location(run: &Run) -> String {
    format!("/threads/{}/runs/{}", run.thread_id, run.run_id)
}

/// Adds headers that say where something is.
pub(in crate::http) fn located(mut response: Response, headers: &[(HeaderName, String)]) -> Response {
    for (name, place) in headers {
        if let Ok(value) = HeaderValue::from_str(place) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Cancels a run when the one who waits for it goes away.
struct CancelOnDrop {
    what: Option<(Runtime, Caller, ThreadId, RunId)>,
}

impl CancelOnDrop {
    fn disarm(mut self) {
        self.what = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some((runtime, caller, thread, run)) = self.what.take() else { return };
        tokio::spawn(async move {
            let reason = Some("client disconnected".to_owned());
            let request = CancelRequest { action: CancelAction::Interrupt, actor: caller.actor, reason };
            let cancelled = runtime.cancel(&caller.scope, &thread, run, &request, false).await;
            if let Err(error) = cancelled {
                tracing::debug!(run.id = %run, %error, "nothing to cancel after a disconnect");
            }
        });
    }
}
