//! Threads and runs as clients see them (contract section 2).

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use crate::model::{Fields, HeadView, Json, Run, Thread, ThreadStatus, UsageTotals};
use crate::runtime::Runtime;

pub(crate) const THREAD_COLUMNS: [&str; 10] = [
    "thread_id",
    "created_at",
    "updated_at",
    "state_updated_at",
    "metadata",
    "config",
    "status",
    "values",
    "interrupts",
    "error",
];

pub(crate) const RUN_COLUMNS: [&str; 10] = [
    "run_id",
    "thread_id",
    "assistant_id",
    "created_at",
    "updated_at",
    "status",
    "metadata",
    "kwargs",
    "multitask_strategy",
    "langsmith_session_name",
];

/// Renders anything that serializes.
pub(crate) fn json<T: serde::Serialize + ?Sized>(value: &T) -> ApiResult<Json> {
    Json::of(value).map_err(|error| ApiError::Internal(error.0))
}

/// Metadata with what models cost, if they cost anything: `usage` is the server's key then.
fn with_usage(metadata: &Json, usage: &UsageTotals) -> Json {
    if usage.is_empty() {
        return metadata.clone();
    }
    let mut fields = metadata.fields().unwrap_or_default();
    fields.insert("usage".to_owned(), usage.to_json());
    Json::from(&fields)
}

/// A thread row together with what its head shows.
pub(crate) fn thread(thread: &Thread, head: &HeadView) -> ApiResult<Fields> {
    Ok(Fields::from_iter([
        ("thread_id".to_owned(), json(&thread.id)?),
        ("created_at".to_owned(), json(&thread.created_at)?),
        ("updated_at".to_owned(), json(&thread.updated_at)?),
        ("state_updated_at".to_owned(), json(&thread.state_updated_at)?),
        ("metadata".to_owned(), with_usage(&thread.metadata, &thread.usage)),
        ("config".to_owned(), thread.config.clone()),
        ("status".to_owned(), Json::from(thread.status.as_str())),
        ("values".to_owned(), head.values.clone().unwrap_or_default()),
        ("interrupts".to_owned(), json(&head.interrupts)?),
        ("error".to_owned(), json(&head.error.as_ref().or(thread.error.as_ref()))?),
    ]))
}

/// Threads with their heads, in the order given.
pub(crate) async fn threads(runtime: &Runtime, caller: &Caller, rows: &[Thread]) -> ApiResult<Vec<Fields>> {
    if rows.iter().all(|row| row.head.is_none()) {
        return rows.iter().map(|row| thread(row, &HeadView::default())).collect();
    }
    let heads = runtime.head_views(&caller.scope, rows).await?;
    rows.iter().zip(&heads).map(|(row, head)| thread(row, head)).collect()
}

/// A thread that was just made: its row alone, at rest.
pub(crate) fn fresh_thread(row: &Thread) -> ApiResult<Fields> {
    let row = Thread { status: ThreadStatus::Idle, ..row.clone() };
    thread(&row, &HeadView::default())
}

/// One thread with its head.
pub(crate) async fn one_thread(runtime: &Runtime, caller: &Caller, row: Thread) -> ApiResult<Fields> {
    let mut documents = threads(runtime, caller, std::slice::from_ref(&row)).await?;
    documents.pop().ok_or_else(|| ApiError::Internal("no view of a thread's head".to_owned()))
}

pub(crate) fn run(run: &Run) -> ApiResult<Fields> {
    Ok(Fields::from_iter([
        ("run_id".to_owned(), json(&run.run_id)?),
        ("thread_id".to_owned(), json(&run.thread_id)?),
        ("assistant_id".to_owned(), json(&run.assistant_id)?),
        ("created_at".to_owned(), json(&run.created_at)?),
        ("updated_at".to_owned(), json(&run.updated_at)?),
        ("status".to_owned(), Json::from(run.status.as_str())),
        ("metadata".to_owned(), with_usage(&run.metadata, &run.usage)),
        ("kwargs".to_owned(), run.kwargs.clone()),
        ("multitask_strategy".to_owned(), Json::from(run.multitask_strategy.as_str())),
        ("langsmith_session_name".to_owned(), Json::null()),
    ]))
}
