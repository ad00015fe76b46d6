//! Runs without a thread of their own, batches, and cancelling many (contract section 3.3).

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Json as Reply};
use uuid::Uuid;

use super::runs::{accept, answer, cancel_action, events, joined, located, submit};
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{AnyBody, Body, PathIds, thread_id};
use crate::http::object::{Object, kind, parse_uuid};
use crate::http::query::Query;
use crate::http::sse::{self, EventFilter};
use crate::http::{AppState, run_request, stream_end};
use crate::model::{Fields, RunStatus};
use crate::storage::idempotency;
use crate::storage::{CancelRequest, CancelTarget};

/// The most runs of a batch.
pub(in crate::http) const MAX_BATCH: usize = 100;
pub(in crate::http) const MAX_CANCELLED: usize = 1000;

/// `POST /runs`.
pub(super) async fn create(State(state): State<AppState>, caller: Caller, Body(body): Body) -> ApiResult {
    let run = submit(&state, &caller, None, body, false).await?.run;
    let place = format!("/runs/{}", run.run_id);
    Ok(located(Reply(document::run(&run)?).into_response(), &[(header::CONTENT_LOCATION, place)]))
}

/// `POST /runs/stream`.
pub(super) async fn stream(State(state): State<AppState>, caller: Caller, query: Query, Body(body): Body) -> ApiResult {
    let filter = EventFilter::of_namespaces(&query)?;
    let request = run_request::read(&caller, None, body, true)?;
    // Under a key its end is kept, since its thread is not; unless the client's leaving is what ends it.
    let is_followed = idempotency::is_keyed() && request.kwargs.temporary && !request.cancel_on_disconnect;
    let submitted = accept(&state, &caller, request).await?;
    let place = format!("/runs/{}", submitted.run.run_id);
    let headers = [(header::LOCATION, format!("{place}/stream")), (header::CONTENT_LOCATION, place)];
    if is_followed && submitted.events.is_some() {
        let (events, end) = stream_end::follow(&state.runtime, caller.scope, submitted);
        return Ok(located((Extension(end), sse::respond(&state, events, filter)).into_response(), &headers));
    }
    Ok(located(events(&state, &caller, submitted, filter).await?, &headers))
}

/// `POST /runs/wait`. `Location` names the temporary thread.
pub(super) async fn wait(State(state): State<AppState>, caller: Caller, query: Query, Body(body): Body) -> ApiResult {
    let submitted = submit(&state, &caller, None, body, true).await?;
    let place = format!("/threads/{}/runs/{}/join", submitted.run.thread_id, submitted.run.run_id);
    Ok(located(answer(&state, &caller, submitted, &query), &[(header::LOCATION, place)]))
}

/// `POST /runs/batch`: all bodies are read before the first run is accepted.
pub(super) async fn batch(State(state): State<AppState>, caller: Caller, AnyBody(body): AnyBody) -> ApiResult {
    let Some(items) = body.items() else {
        return Err(ApiError::invalid(format!("Request body: expected an array, got {}", kind(&body))));
    };
    if items.len() > MAX_BATCH {
        let count = items.len();
        return Err(ApiError::invalid(format!("Request body: at most {MAX_BATCH} runs, got {count}")));
    }
    let mut requests = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let request = Object::body(item).and_then(|object| run_request::read(&caller, None, object, false));
        let request = request.map_err(|error| error.at(&format!("[{index}].")))?;
        state.runtime.check_webhook(&request).map_err(|error| ApiError::invalid(format!("[{index}].{error}")))?;
        match &request.assistant {
            Some(name) => drop(state.runtime.find_assistant(&caller.scope, name).await?),
            None if state.runtime.graphs().len() == 1 => {}
            None => {
                let text = format!("[{index}].assistant_id: field required (GET /graphs lists the graphs)");
                return Err(ApiError::invalid(text));
            }
        }
        requests.push(request);
    }
    let mut runs: Vec<Fields> = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        // Under an idempotency key every run has its own: a repeat accepts what is left.
        let run = idempotency::part(index, state.runtime.submit_once(&caller.scope, request)).await?;
        runs.push(document::run(&run)?);
    }
    Ok(Reply(runs).into_response())
}

/// `POST /runs/cancel`: by status, or by thread and ids.
pub(super) async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
    Body(mut body): Body,
) -> ApiResult {
    let action = cancel_action(&query)?;
    let reason = query.one("reason")?.map(str::to_owned);
    let target = cancel_target(&mut body)?;
    let request = CancelRequest { action, actor: caller.actor.clone(), reason };
    let cancelled = state.runtime.storage().cancel_runs(&caller.scope, &target, &request).await?;
    if cancelled.is_empty() {
        return Err(ApiError::NotFound("No runs found to cancel.".to_owned()));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn cancel_target(body: &mut Object) -> ApiResult<CancelTarget> {
    let status = body.choice("status", &["pending", "running", "all"], |word| match word {
        "pending" => Some(vec![RunStatus::Pending]),
        "running" => Some(vec![RunStatus::Running]),
        "all" => Some(vec![RunStatus::Pending, RunStatus::Running]),
        _ => None,
    })?;
    let thread = body.string("thread_id")?;
    let ids = body.strings("run_ids", MAX_CANCELLED)?;
    match (status, thread, ids) {
        (Some(status), None, None) => Ok(CancelTarget::Status(status)),
        (None, Some(thread), Some(ids)) => {
            let run_ids: Vec<Uuid> = ids.iter().map(|id| parse_uuid("run ID", id)).collect::<ApiResult<_>>()?;
            Ok(CancelTarget::Runs { thread_id: thread_id(&thread)?, run_ids })
        }
        _ => Err(ApiError::invalid("Send either status, or thread_id together with run_ids")),
    }
}

/// `GET /runs/{run_id}/stream`.
pub(super) async fn join_stream(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    let id = path.run()?;
    let thread = state.runtime.storage().locate_run(&caller.scope, id).await?.map(|run| run.thread_id);
    let place = format!("/runs/{id}");
    let headers_out = [(header::LOCATION, format!("{place}/stream")), (header::CONTENT_LOCATION, place)];
    Ok(located(joined(&state, &caller, thread, id, &query, &headers).await?, &headers_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Json;

    #[test]
    fn many_runs_are_named_in_one_of_two_ways() {
        let read = |text: &str| cancel_target(&mut Object::body(&Json::parse(text).expect("JSON")).expect("an object"));
        assert!(matches!(read(r#"{"status":"all"}"#), Ok(CancelTarget::Status(all)) if all.len() == 2));
        let id = Uuid::nil();
        assert!(matches!(
            read(&format!(r#"{{"thread_id":"user-42","run_ids":["{id}"]}}"#)),
            Ok(CancelTarget::Runs { run_ids, .. }) if run_ids == [id]
        ));
        for bad in [
            "{}",
            r#"{"status":"done"}"#,
            r#"{"thread_id":"t"}"#,
            r#"{"status":"all","thread_id":"t","run_ids":[]}"#,
            r#"{"thread_id":"t","run_ids":["x"]}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
