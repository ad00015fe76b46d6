//! `explain`: why a run is where it is.

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document::json;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathIds;
use crate::model::{Fields, Json, ThreadId, Timestamp};
use crate::runtime::{Explanation, RuntimeError};
use crate::storage::RunDetail;

/// `GET /runs/{run_id}/explain`.
pub(super) async fn run(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    explain(&state, &caller, &path, None).await
}

/// `GET /threads/{thread_id}/runs/{run_id}/explain`.
pub(super) async fn run_of_thread(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let thread = path.thread()?;
    explain(&state, &caller, &path, Some(&thread)).await
}

async fn explain(state: &AppState, caller: &Caller, path: &PathIds, thread: Option<&ThreadId>) -> ApiResult {
    let found = state.runtime.explain(&caller.scope, thread, path.run()?).await.map_err(|error| match error {
        RuntimeError::RunNotFound(_) => ApiError::run_not_found(),
        error => error.into(),
    })?;
    Ok(Reply(document(&found)?).into_response())
}

fn document(found: &Explanation) -> ApiResult<Fields> {
    let mut fields = run_fields(&found.detail, found.now)?;
    fields.insert("queue_ms".to_owned(), json(&found.queue_ms())?);
    fields.insert("ended_at".to_owned(), json(&found.ended_at())?);
    fields.insert("usage".to_owned(), found.detail.run.usage.to_json());
    fields.insert("slowest_superstep".to_owned(), json(&found.slowest)?);
    fields.insert("slowest_node".to_owned(), json(&found.slowest_node)?);
    fields.insert("retried".to_owned(), json(&found.retried)?);
    fields.insert("waits_for".to_owned(), json(&found.waits_for)?);
    fields.insert("summary".to_owned(), Json::from(found.summary.as_str()));
    Ok(fields)
}

/// A run as its queue sees it.
pub(super) fn run_fields(detail: &RunDetail, now: Timestamp) -> ApiResult<Fields> {
    let run = &detail.run;
    let lease = detail.lease_until.map(|until| {
        let (worker, until_text) = (json(&detail.worker)?, json(&until)?);
        let (epoch, is_held) = (Json::from(detail.claims), Json::from(until > now));
        Ok::<Json, ApiError>(Json::from_fields([
            ("worker", &worker),
            ("epoch", &epoch),
            ("until", &until_text),
            ("is_held", &is_held),
        ]))
    });
    let cancel = detail.cancel.as_ref().map(|cancel| {
        let (by, reason) = (json(&cancel.actor)?, json(&cancel.reason)?);
        let action = Json::from(cancel.action.as_str());
        Ok::<Json, ApiError>(Json::from_fields([("action", &action), ("by", &by), ("reason", &reason)]))
    });
    Ok(Fields::from_iter([
        ("run_id".to_owned(), json(&run.run_id)?),
        ("thread_id".to_owned(), json(&run.thread_id)?),
        ("assistant_id".to_owned(), json(&run.assistant_id)?),
        ("graph_id".to_owned(), Json::from(run.graph_id.as_str())),
        ("status".to_owned(), Json::from(run.status.as_str())),
        ("created_at".to_owned(), json(&run.created_at)?),
        ("created_by".to_owned(), json(&run.actor)?),
        ("due_at".to_owned(), json(&detail.run_at)?),
        ("started_at".to_owned(), json(&detail.started_at)?),
        ("multitask_strategy".to_owned(), Json::from(run.multitask_strategy.as_str())),
        ("attempt".to_owned(), Json::from(i64::from(run.attempts))),
        ("claims".to_owned(), Json::from(detail.claims)),
        ("input_applied".to_owned(), Json::from(detail.input_applied)),
        ("worker".to_owned(), json(&detail.worker)?),
        ("lease".to_owned(), lease.transpose()?.unwrap_or_default()),
        ("cancel".to_owned(), cancel.transpose()?.unwrap_or_default()),
        ("error".to_owned(), json(&run.error)?),
    ]))
}
