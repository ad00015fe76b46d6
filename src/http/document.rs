//! Threads and runs as clients see them (contract section 2).

use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use crate::model::{
    Effect, Fields, HeadView, InterruptRecord, Json, LoggedTask, Run, RunKwargs, Thread, ThreadStatus, UsageTotals,
};
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

/// A thread row together with what its head shows. How it was closed is shown where it is.
pub(crate) fn thread(thread: &Thread, head: &HeadView) -> ApiResult<Fields> {
    let mut fields = Fields::from_iter([
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
    ]);
    if let Some(closed) = &thread.closed {
        fields.insert("closed".to_owned(), json(closed)?);
    }
    Ok(fields)
}

/// Threads with their heads, in the order given.
pub(crate) async fn threads(runtime: &Runtime, caller: &Caller, rows: &[Thread]) -> ApiResult<Vec<Fields>> {
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

/// A rendered state whose tasks show their questions and answers: their own and those of graphs inside them.
pub(crate) fn with_questions(state: Json, questions: &[InterruptRecord]) -> ApiResult<Json> {
    let Some(mut fields) = state.fields() else { return Ok(state) };
    let Some(tasks) = fields.get("tasks").and_then(Json::items) else { return Ok(state) };
    let mut shown = Vec::with_capacity(tasks.len());
    for task in tasks {
        let Some(mut task) = task.fields() else { continue };
        let id = task.get("id").and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_default();
        let inside = format!(":{id}");
        // A graph with a namespace of its own does not name the task around it: that task lists what it waits for.
        let listed = task.get("interrupts").and_then(Json::items).unwrap_or_default();
        let is_listed =
            |wanted: &str| listed.iter().any(|item| item.get("id").is_some_and(|id| id.as_str() == Some(wanted)));
        let is_its = |question: &&InterruptRecord| {
            question.task_id == id
                || question.checkpoint_ns.split('|').any(|segment| segment.ends_with(&inside))
                || is_listed(&question.interrupt_id)
        };
        task.insert("questions".to_owned(), json(&questions.iter().filter(is_its).collect::<Vec<_>>())?);
        if let Some(inner) = task.get("state").filter(|inner| inner.is_object()).cloned() {
            task.insert("state".to_owned(), with_questions(inner, questions)?);
        }
        shown.push(Json::from(&task));
    }
    fields.insert("tasks".to_owned(), shown.into_iter().collect());
    Ok(Json::from(&fields))
}

/// An external call of a task; `results`: with what it returned.
pub(crate) fn effect(effect: &Effect, results: bool) -> ApiResult<Fields> {
    let (place, entry) = (&effect.place, &effect.entry);
    let mut fields = Fields::from_iter([
        ("key".to_owned(), Json::from(entry.key.as_str())),
        ("state".to_owned(), Json::from(entry.state.as_str())),
        ("node".to_owned(), Json::from(place.node.as_str())),
        ("task_id".to_owned(), Json::from(place.task_id.as_str())),
        ("checkpoint_id".to_owned(), Json::from(place.checkpoint_id.as_str())),
        ("checkpoint_ns".to_owned(), Json::from(place.ns.as_str())),
        ("run_id".to_owned(), json(&effect.run_id)?),
        ("attempt".to_owned(), Json::from(i64::from(entry.attempt))),
        ("asked".to_owned(), Json::from(i64::from(entry.asked))),
        ("started_at".to_owned(), json(&effect.started_at)?),
        ("ended_at".to_owned(), json(&effect.ended_at)?),
        ("bytes".to_owned(), Json::from(effect.bytes)),
        ("error".to_owned(), json(&entry.error)?),
    ]);
    if results {
        fields.insert("result".to_owned(), entry.result.clone().unwrap_or_default());
    }
    Ok(fields)
}

/// An execution of a task.
pub(crate) fn execution(logged: &LoggedTask) -> ApiResult<Fields> {
    let (execution, detail) = (&logged.execution, &logged.execution.detail);
    let sum = detail.usage.sum();
    Ok(Fields::from_iter([
        ("step".to_owned(), Json::from(execution.step)),
        ("node".to_owned(), Json::from(execution.node.as_str())),
        ("from".to_owned(), json(&detail.from)?),
        ("next".to_owned(), json(&detail.next)?),
        ("status".to_owned(), Json::from(execution.outcome.as_str())),
        ("attempt".to_owned(), Json::from(i64::from(execution.attempt))),
        ("started_at".to_owned(), json(&execution.started_at)?),
        ("ended_at".to_owned(), json(&execution.ended_at)?),
        ("ms".to_owned(), json(&((execution.ended_at.0 - execution.started_at.0) as f64 / 1_000.0))?),
        ("written".to_owned(), json(&detail.written)?),
        ("error".to_owned(), json(&detail.error)?),
        ("tokens".to_owned(), Json::from(sum.total_tokens)),
        ("cost".to_owned(), Json::from(sum.cost.to_string())),
        ("usage".to_owned(), detail.usage.to_json()),
        ("run_id".to_owned(), json(&logged.run_id)?),
        ("actor".to_owned(), json(&logged.actor)?),
        ("task_id".to_owned(), Json::from(execution.task_id.as_str())),
        ("checkpoint_id".to_owned(), Json::from(execution.checkpoint_id.as_str())),
        ("checkpoint_ns".to_owned(), Json::from(execution.ns.as_str())),
    ]))
}

/// A rendered state whose tasks show their external calls, in the order they were begun.
pub(crate) fn with_effects(state: Json, effects: &[Effect]) -> ApiResult<Json> {
    let Some(mut fields) = state.fields() else { return Ok(state) };
    let Some(tasks) = fields.get("tasks").and_then(Json::items) else { return Ok(state) };
    let mut shown = Vec::with_capacity(tasks.len());
    for task in tasks {
        let Some(mut task) = task.fields() else { continue };
        let id = task.get("id").and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_default();
        let its = effects.iter().filter(|of| of.place.task_id == id);
        task.insert("effects".to_owned(), json(&its.map(|of| effect(of, false)).collect::<ApiResult<Vec<_>>>()?)?);
        if let Some(inner) = task.get("state").filter(|inner| inner.is_object()).cloned() {
            task.insert("state".to_owned(), with_effects(inner, effects)?);
        }
        shown.push(Json::from(&task));
    }
    fields.insert("tasks".to_owned(), shown.into_iter().collect());
    Ok(Json::from(&fields))
}

/// The ids of the tasks of a rendered state, those of graphs inside too.
pub(crate) fn task_ids(state: &Json, into: &mut Vec<String>) {
    for task in state.get("tasks").and_then(|tasks| tasks.items()).into_iter().flatten() {
        into.extend(task.get("id").and_then(|id| id.as_str().map(str::to_owned)));
        if let Some(inner) = task.get("state").filter(Json::is_object) {
            task_ids(&inner, into);
        }
    }
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
        ("kwargs".to_owned(), RunKwargs::shown(&run.kwargs)),
        ("multitask_strategy".to_owned(), Json::from(run.multitask_strategy.as_str())),
        ("langsmith_session_name".to_owned(), Json::null()),
    ]))
}
