//! Runs as tasks: reading, listing and cancelling them.

use serde_json::{Value, json};

use super::wire::{self, Dialect, TASK_NOT_CANCELABLE, TASK_NOT_FOUND, Task, TaskState};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::extract::thread_id;
use crate::http::jsonrpc::{INVALID_PARAMS, Refusal};
use crate::http::object::Object;
use crate::http::page::{cut, with_one_more};
use crate::model::{Assistant, CancelAction, Json, Run, RunId, RunStatus, ThreadId, ThreadStatus, special};
use crate::runtime::{Runtime, RuntimeError};
use crate::storage::{CancelRequest, ClosedFilter, Page, RunFilter, ThreadFilter, ThreadSort};

const DEFAULT_PAGE: i64 = 50;
const MAX_OFFSET: i64 = 1_000_000_000;

pub(super) fn not_found(id: &str) -> Refusal {
    let shown: String = id.chars().take(300).collect();
    Refusal::new(TASK_NOT_FOUND, format!("Task {shown} not found"))
}

/// The run that a task's id means, if it is one of this assistant.
pub(super) async fn find(state: &AppState, caller: &Caller, assistant: &Assistant, id: &str) -> Result<Run, Refusal> {
    let Some((thread, run)) = split(id) else { return Err(not_found(id)) };
    match state.runtime.find_run(&caller.scope, &thread, run).await {
        Ok(run) if run.assistant_id == assistant.assistant_id => Ok(run),
        Ok(_) | Err(RuntimeError::RunNotFound(_)) => Err(not_found(id)),
        Err(error) => Err(error.into()),
    }
}

/// Thread and run; the name of a thread may have colons of its own.
fn split(id: &str) -> Option<(ThreadId, RunId)> {
    let (thread, run) = id.rsplit_once(':')?;
    Some((thread_id(thread).ok()?, RunId::try_parse(run).ok()?))
}

/// A run as a task, with what it ended with if it has ended.
pub(super) async fn task(runtime: &Runtime, caller: &Caller, run: &Run) -> Result<Task, Refusal> {
    if run.status.is_active() {
        return Ok(rendered(run, None));
    }
    let result = runtime.join(&caller.scope, &run.thread_id, run.run_id).await?;
    Ok(rendered(run, Some(&result)))
}

/// A run as a task. `result`: what waiting for it answers.
pub(super) fn rendered(run: &Run, result: Option<&Json>) -> Task {
    let questions = result.and_then(|result| result.get(special::INTERRUPT)).filter(Json::is_array);
    let failure = result.and_then(|result| result.get("__error__"));
    let (state, says) = match (run.status, questions, failure) {
        (RunStatus::Error | RunStatus::Timeout, _, failure) => {
            let stored = run.error.as_ref().map(|error| format!("{}: {}", error.error, error.message));
            (TaskState::Failed, stored.or_else(|| failure.map(|failure| failure.text())))
        }
        (RunStatus::Interrupted, ..) => (TaskState::Canceled, None),
        (RunStatus::Pending, ..) => (TaskState::Submitted, None),
        (RunStatus::Running, ..) => (TaskState::Working, None),
        (RunStatus::Success, Some(questions), _) => (TaskState::InputRequired, Some(question(&questions))),
        (RunStatus::Success, None, _) => (TaskState::Completed, None),
    };
    let is_over = matches!(state, TaskState::Completed | TaskState::InputRequired);
    Task {
        id: format!("{}:{}", run.thread_id, run.run_id),
        context: run.thread_id.to_string(),
        state,
        says,
        at: run.updated_at,
        artifact: result.filter(|_| is_over).and_then(wire::last_answer),
    }
}

/// What the first of several questions asks: its words, or its JSON.
fn question(questions: &Json) -> String {
    let first = questions.items().and_then(|items| items.front().cloned()).unwrap_or_default();
    let value = first.get("value").unwrap_or_default();
    value.as_str().map_or_else(|| value.text(), str::to_owned)
}

/// `GetTask`.
pub(super) async fn get(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    mut params: Object,
    dialect: Dialect,
) -> Result<Json, Refusal> {
    let run = find(state, caller, assistant, &params.required_string("id")?).await?;
    Ok(Json::from(dialect.task(&task(&state.runtime, caller, &run).await?)))
}

/// `CancelTask`: waits until it has stopped.
pub(super) async fn cancel(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    mut params: Object,
    dialect: Dialect,
) -> Result<Json, Refusal> {
    let id = params.required_string("id")?;
    let run = find(state, caller, assistant, &id).await?;
    let (thread, reason) = (run.thread_id, Some("cancelled as an A2A task".to_owned()));
    let request = CancelRequest { action: CancelAction::Interrupt, actor: caller.actor.clone(), reason };
    let cancelled = state.runtime.cancel(&caller.scope, &thread, run.run_id, &request, true).await;
    match cancelled {
        Ok(()) => {}
        Err(RuntimeError::RunNotFound(_)) => {
            return Err(Refusal::new(TASK_NOT_CANCELABLE, format!("Task {id} is over: it cannot be cancelled")));
        }
        Err(error) => return Err(error.into()),
    }
    let run = state.runtime.find_run(&caller.scope, &thread, run.run_id).await?;
    Ok(Json::from(dialect.task(&task(&state.runtime, caller, &run).await?)))
}

/// `ListTasks`: a page of a context's tasks, or of the agent's in all contexts, newest first, without their artifacts.
pub(super) async fn list(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    mut params: Object,
    dialect: Dialect,
) -> Result<Json, Refusal> {
    let limit = params.integer("pageSize", 0..=100)?.filter(|size| *size > 0).unwrap_or(DEFAULT_PAGE);
    let token = wire::filled(&mut params, "pageToken")?;
    let Some(context) = wire::filled(&mut params, "contextId")? else {
        return all(state, caller, assistant, limit, token, dialect).await;
    };
    let offset = match token {
        Some(token) => {
            let offset = token.parse().ok().filter(|offset| (0..=MAX_OFFSET).contains(offset));
            offset.ok_or_else(bad_token)?
        }
        None => 0,
    };
    let page = Page { limit, offset };
    let thread = thread_id(&context)?;
    let storage = state.runtime.storage();
    let status = storage.find_thread(&caller.scope, &thread).await?.map(|thread| thread.status);
    let runs = storage.list_runs(&caller.scope, &thread, &RunFilter { status: None }, with_one_more(page)).await?;
    let mut runs = runs.unwrap_or_default();
    let more = cut(&mut runs, page);
    let total = page.offset + runs.len() as i64 + i64::from(more);
    let is_asking = status == Some(ThreadStatus::Interrupted);
    let tasks: Vec<Value> = runs
        .iter()
        .enumerate()
        .filter(|(_, run)| run.assistant_id == assistant.assistant_id)
        .map(|(index, run)| dialect.task(&listed(run, is_asking && index == 0 && page.offset == 0)))
        .collect();
    let next = if more { (page.offset + page.limit).to_string() } else { String::new() };
    Ok(page_of(&tasks, &next, page.limit, total))
}

/// The agent's tasks in all contexts. A token says how many came before, and after which run it goes on.
async fn all(
    state: &AppState,
    caller: &Caller,
    assistant: &Assistant,
    limit: i64,
    token: Option<String>,
    dialect: Dialect,
) -> Result<Json, Refusal> {
    let (seen, before) = match &token {
        Some(token) => {
            let (seen, run) = token.split_once('.').ok_or_else(bad_token)?;
            let seen: i64 = seen.parse().ok().filter(|seen| (0..=MAX_OFFSET).contains(seen)).ok_or_else(bad_token)?;
            (seen, Some(RunId::try_parse(run).map_err(|_| bad_token())?))
        }
        None => (0, None),
    };
    let storage = state.runtime.storage();
    let mut runs = storage.list_assistant_runs(&caller.scope, assistant.assistant_id, before, limit + 1).await?;
    let more = cut(&mut runs, Page { limit, offset: 0 });
    let mut ids: Vec<ThreadId> = runs.iter().map(|run| run.thread_id.clone()).collect();
    ids.sort();
    ids.dedup();
    let filter = ThreadFilter {
        ids: Some(ids),
        status: Some(ThreadStatus::Interrupted),
        closed: ClosedFilter::Any,
        ..ThreadFilter::default()
    };
    let page = Page { limit, offset: 0 };
    let asking = storage.search_threads(&caller.scope, &filter, ThreadSort::ThreadId, true, page).await?;
    let mut latest = Vec::with_capacity(asking.len());
    for thread in asking {
        let page = Page { limit: 1, offset: 0 };
        let run = storage.list_runs(&caller.scope, &thread.id, &RunFilter { status: None }, page).await?;
        latest.extend(run.into_iter().flatten().map(|run| run.run_id));
    }
    let tasks: Vec<Value> = runs.iter().map(|run| dialect.task(&listed(run, latest.contains(&run.run_id)))).collect();
    let count = seen + runs.len() as i64;
    let next = match runs.last() {
        Some(last) if more => format!("{count}.{}", last.run_id),
        _ => String::new(),
    };
    Ok(page_of(&tasks, &next, limit, count + i64::from(more)))
}

/// A task in a list. `is_asking`: its thread waits for an answer, and it is the thread's latest.
fn listed(run: &Run, is_asking: bool) -> Task {
    let mut task = rendered(run, None);
    if is_asking && task.state == TaskState::Completed {
        task.state = TaskState::InputRequired;
    }
    task
}

fn page_of(tasks: &[Value], next: &str, size: i64, total: i64) -> Json {
    Json::from(json!({"tasks": tasks, "nextPageToken": next, "pageSize": size, "totalSize": total}))
}

fn bad_token() -> Refusal {
    Refusal::new(INVALID_PARAMS, "params.pageToken: expected a nextPageToken")
}
