//! Runs that were attempted too often without progress: for operators. Not part of the contract.

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::Body;
use crate::http::object::parse_uuid;
use crate::http::query::Query;
use crate::http::{AppState, page};
use crate::storage::Release;

/// The most runs of one request.
pub(in crate::http) const MAX_RELEASED: usize = 100;

/// `GET /quarantine`: one page, oldest first, each with its reason.
pub(super) async fn list(State(state): State<AppState>, caller: Caller, query: Query) -> ApiResult {
    let window = page::of_query(&query)?;
    let storage = state.runtime.storage();
    let mut rows = storage.list_quarantined(&caller.scope, page::with_one_more(window)).await?;
    let more = page::cut(&mut rows, window);
    let rows: Vec<Value> = rows
        .iter()
        .map(|run| {
            json!({
                "run_id": run.run_id, "thread_id": run.thread_id, "graph_id": run.graph_id, "attempts": run.attempts,
                "last_worker": run.worker, "error": run.error, "created_at": run.created_at,
                "quarantined_at": run.quarantined_at,
            })
        })
        .collect();
    Ok(page::reply(&rows, more, window))
}

/// `POST /quarantine/release`: the runs of `run_ids` are pending again; a result for each.
pub(super) async fn release(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let ids = body.strings("run_ids", MAX_RELEASED)?.ok_or_else(|| body.missing("run_ids"))?;
    let ids = ids.iter().map(|id| parse_uuid("run ID", id)).collect::<ApiResult<Vec<_>>>()?;
    let mut results = Vec::with_capacity(ids.len());
    for run_id in ids {
        let released = state.runtime.storage().release_run_from_quarantine(&caller.scope, run_id).await?;
        let detail = match released {
            Release::Released => {
                tracing::info!(run.id = %run_id, actor = caller.actor, "released from quarantine");
                None
            }
            Release::NotQuarantined => Some("the run is not in quarantine"),
            Release::Superseded => {
                Some("the thread has gone on with a later run, or is closed: start a new run instead")
            }
        };
        results.push(json!({"run_id": run_id, "released": detail.is_none(), "detail": detail}));
    }
    Ok(Reply(results).into_response())
}
