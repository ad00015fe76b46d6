//! The execution log of a thread.

use std::ops::RangeInclusive;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::IntoResponse;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathIds;
use crate::http::object::parse_uuid;
use crate::http::page::{self, DEFAULT_LIMIT, LIMITS, X_PAGINATION_NEXT};
use crate::http::query::Query;
use crate::model::{TaskOutcome, Timestamp};
use crate::storage::{ExecutionCursor, ExecutionFilter, Page};

/// Supersteps: the input of a thread is the one before the first.
pub(in crate::http) const STEPS: RangeInclusive<i64> = -1..=1_000_000_000;

/// `GET /threads/{thread_id}/log`: the latest started first.
pub(super) async fn list(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let limit = query.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT);
    let after = query.one("cursor")?.map(read_cursor).transpose()?;
    let words = TaskOutcome::ALL.map(TaskOutcome::as_str);
    let is_root = query.bool("root")?.unwrap_or(false);
    let filter = ExecutionFilter {
        run_id: query.one("run_id")?.map(|id| parse_uuid("run ID", id)).transpose()?,
        node: query.one("node")?.map(str::to_owned),
        ns: if is_root { Some(String::new()) } else { query.one("checkpoint_ns")?.map(str::to_owned) },
        outcome: query.choice("status", &words, TaskOutcome::parse)?,
        min_step: query.integer("min_step", STEPS)?,
        max_step: query.integer("max_step", STEPS)?,
    };
    let id = path.thread()?;
    let storage = state.runtime.storage();
    let thread = storage.find_thread(&caller.scope, &id).await?;
    let thread = thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    let mut rows = storage.list_executions(&caller.scope, thread.key, &filter, after, limit + 1).await?;
    let more = page::cut(&mut rows, Page { limit, offset: 0 });
    let documents = rows.iter().map(document::execution).collect::<ApiResult<Vec<_>>>()?;
    let mut response = Reply(&documents).into_response();
    if let Some(last) = rows.last().filter(|_| more)
        && let Ok(next) = HeaderValue::from_str(&format!("{}.{}", last.execution.started_at.0, last.run_id))
    {
        response.headers_mut().insert(X_PAGINATION_NEXT, next);
    }
    Ok(response)
}

fn read_cursor(text: &str) -> ApiResult<ExecutionCursor> {
    let refused = || ApiError::invalid("cursor: must be taken from X-Pagination-Next");
    let (at, run_id) = text.split_once('.').ok_or_else(refused)?;
    Ok(ExecutionCursor {
        started_at: Timestamp(at.parse().map_err(|_| refused())?),
        run_id: run_id.parse().map_err(|_| refused())?,
    })
}
