//! The whole session in one document, for curl and for people.

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;
use futures_util::future::join3;

use super::explain::run_fields;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document::json;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathIds;
use crate::http::query::Query;
use crate::model::{
    CheckpointRef, Fields, InterruptRecord, InterruptStatus, Json, TaskState, Thread, ThreadId, ThreadState,
    ThreadStatus, ThreadTtl,
};
use crate::runtime::{RuntimeError, written_by};
use crate::storage::{InterruptFilter, Session, StoredCheckpoint};

/// Values that are longer are told by their size, unless all are asked for.
const SHOWN_BYTES: usize = 4096;
/// Questions shown, the newest ones.
const SHOWN_QUESTIONS: i64 = 50;

/// How much of the values is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Short,
    Full,
    None,
}

fn values(word: &str) -> Option<Values> {
    match word {
        "short" => Some(Values::Short),
        "full" => Some(Values::Full),
        "none" => Some(Values::None),
        _ => None,
    }
}

/// `GET /threads/{thread_id}/session`.
pub(super) async fn find(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let id = path.thread()?;
    let shown = query.choice("values", &["short", "full", "none"], values)?.unwrap_or(Values::Short);
    let storage = state.runtime.storage();
    let found = storage.find_session(&caller.scope, &id).await?;
    let mut found = found.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    let at = CheckpointRef::default();
    let keys = [found.thread.key];
    let filter = InterruptFilter { thread: Some(id.clone()), ..InterruptFilter::default() };
    let (state_at_head, heads, questions) = join3(
        state.runtime.thread_state(&caller.scope, &id, &at, false),
        storage.load_heads(&caller.scope, &keys),
        storage.list_interrupts(&caller.scope, &filter, false, None, SHOWN_QUESTIONS),
    )
    .await;
    let head = heads?.pop().map(|(_, head)| head);
    let questions: Vec<InterruptRecord> = questions?.into_iter().map(|(_, question)| question).collect();
    // What a graph refuses to show is told; everything else is shown all the same.
    let (state_at_head, refused) = match state_at_head {
        Ok(found) => (Some(found), None),
        Err(error @ RuntimeError::Graph(_)) => (None, Some(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let limit = if shown == Values::Full { usize::MAX } else { SHOWN_BYTES };
    let is_foreign = found.thread.head.is_none() && storage.is_foreign(&caller.scope, found.thread.key).await?;
    let (position, interrupts) = match (is_foreign, &state_at_head) {
        (true, Some(latest)) => {
            let sizes = storage.thread_sizes(&caller.scope, &id).await?.unwrap_or_default();
            let pending = foreign_questions(&id, latest)?;
            found.counts.checkpoints = sizes.checkpoints.count;
            found.counts.bytes = sizes.checkpoints.bytes + sizes.task_writes.bytes + sizes.payloads.bytes;
            found.counts.interrupts = pending.len() as i64;
            (foreign_position(latest)?, lists([pending, Vec::new()], 0, limit)?)
        }
        _ => (
            position(&found, head.as_ref(), state_at_head.as_ref())?,
            interrupts(&questions, found.counts.interrupts, limit)?,
        ),
    };
    let thread = &found.thread;
    let mut out = Fields::from_iter([
        ("session_id".to_owned(), json(&thread.id)?),
        ("owner".to_owned(), thread.metadata.get("owner").unwrap_or_default()),
        ("status".to_owned(), Json::from(thread.status.as_str())),
        ("closed".to_owned(), json(&thread.closed)?),
        ("error".to_owned(), json(&thread.error)?),
        ("graph".to_owned(), graph(thread, head.as_ref())?),
        ("position".to_owned(), position),
        ("interrupts".to_owned(), interrupts),
        ("active_runs".to_owned(), active_runs(&found)?),
    ]);
    if let Some(refused) = refused {
        out.insert("state_error".to_owned(), Json::from(refused));
    }
    if shown != Values::None {
        let all = state_at_head.map_or_else(Json::object, |state| state.values);
        let (values, omitted) = match all.fields() {
            Some(fields) => bounded(fields, limit).map(|(shown, omitted)| (Json::from(&shown), omitted))?,
            // One value that is all of the state, as that of a function is.
            None => {
                let (mut shown, omitted) = bounded(Fields::from_iter([("values".to_owned(), all)]), limit)?;
                (shown.shift_remove("values").unwrap_or_default(), omitted)
            }
        };
        out.insert("values".to_owned(), values);
        if !omitted.is_empty() {
            out.insert("omitted_values".to_owned(), Json::from(&omitted));
        }
    }
    out.insert("counts".to_owned(), counts(&found)?);
    out.insert("usage".to_owned(), thread.usage.to_json());
    out.insert("ttl".to_owned(), found.ttl.as_ref().map(ttl).transpose()?.unwrap_or_default());
    out.insert("permissions".to_owned(), permissions(&caller, thread, &questions, is_foreign)?);
    for (key, at) in [
        ("created_at", thread.created_at),
        ("updated_at", thread.updated_at),
        ("state_updated_at", thread.state_updated_at),
    ] {
        out.insert(key.to_owned(), json(&at)?);
    }
    out.insert("metadata".to_owned(), thread.metadata.clone());
    out.insert("config".to_owned(), thread.config.clone());
    Ok(Reply(out).into_response())
}

/// The graph of the latest run, and which version of it wrote the latest state.
fn graph(thread: &Thread, head: Option<&StoredCheckpoint>) -> ApiResult<Json> {
    let by = head.map(|head| written_by(&head.row)).transpose()?.flatten();
    let (version, topology) = (by.as_ref().map(|by| &by.version), by.as_ref().map(|by| &by.topology));
    Ok(Json::from_fields([
        ("graph_id", &json(&thread.graph_id)?),
        ("assistant_id", &thread.metadata.get("assistant_id").unwrap_or_default()),
        ("version", &json(&version)?),
        ("topology", &json(&topology)?),
    ]))
}

/// Where it is: the checkpoint, what runs next, the tasks of the superstep that is open.
fn position(found: &Session, head: Option<&StoredCheckpoint>, state: Option<&ThreadState>) -> ApiResult<Json> {
    let row = head.map(|head| &head.row);
    let next = match (state, row) {
        (Some(state), _) => json(&state.next)?,
        (None, row) => json(&row.map(|row| &row.next))?,
    };
    Ok(Json::from_fields([
        ("checkpoint_id", &json(&found.thread.head)?),
        ("branch", &json(&found.branch)?),
        ("step", &json(&row.map(|row| row.step))?),
        ("source", &json(&row.map(|row| row.source.as_str()))?),
        ("created_at", &json(&row.map(|row| row.at))?),
        ("run_id", &json(&row.and_then(|row| row.run_id))?),
        ("next", &next),
        ("tasks", &tasks(state.map(|state| state.tasks.as_slice()).unwrap_or_default())?),
    ]))
}

/// Of a thread whose checkpoints come from elsewhere: what its latest one tells.
fn foreign_position(latest: &ThreadState) -> ApiResult<Json> {
    let metadata = |key: &str| latest.metadata.as_ref().and_then(|metadata| metadata.get(key)).unwrap_or_default();
    Ok(Json::from_fields([
        ("checkpoint_id", &json(&latest.checkpoint.as_ref().and_then(|cursor| cursor.at.id.as_ref()))?),
        ("branch", &Json::default()),
        ("step", &metadata("step")),
        ("source", &metadata("source")),
        ("created_at", &json(&latest.created_at)?),
        ("run_id", &metadata("run_id")),
        ("next", &json(&latest.next)?),
        ("tasks", &tasks(&latest.tasks)?),
    ]))
}

fn tasks(of_state: &[TaskState]) -> ApiResult<Json> {
    let mut tasks = Vec::new();
    for task in of_state {
        let ids: Vec<&str> = task.interrupts.iter().map(|interrupt| interrupt.id.as_str()).collect();
        tasks.push(Json::from_fields([
            ("id", &json(&task.id)?),
            ("name", &Json::from(task.name.as_str())),
            ("error", &json(&task.error)?),
            ("interrupt_ids", &json(&ids)?),
            ("is_finished", &Json::from(task.result.is_some())),
        ]));
    }
    Ok(tasks.into_iter().collect())
}

/// Of a thread whose checkpoints come from elsewhere: what its latest one waits for, in the form of other questions. Who
/// asked when is not told by checkpoints.
fn foreign_questions(thread: &ThreadId, latest: &ThreadState) -> ApiResult<Vec<Json>> {
    let at = latest.checkpoint.as_ref().map(|cursor| &cursor.at);
    let run = latest.metadata.as_ref().and_then(|metadata| metadata.get("run_id")).unwrap_or_default();
    let mut questions = Vec::new();
    for task in &latest.tasks {
        for interrupt in &task.interrupts {
            questions.push(Json::from_fields([
                ("interrupt_id", &json(&interrupt.id)?),
                ("thread_id", &json(thread)?),
                ("status", &json(&InterruptStatus::Pending)?),
                ("graph_id", &Json::default()),
                ("assistant_id", &Json::default()),
                ("node", &json(&task.name)?),
                ("task_id", &json(&task.id)?),
                ("checkpoint_ns", &json(&at.map(|at| &at.ns))?),
                ("checkpoint_id", &json(&at.and_then(|at| at.id.as_ref()))?),
                ("run_id", &run),
                ("value", &interrupt.value),
                ("response_schema", &json(&interrupt.response_schema)?),
                ("asked_at", &Json::default()),
                ("answer", &Json::default()),
                ("answered_at", &Json::default()),
                ("answered_by", &Json::default()),
                ("answered_run_id", &Json::default()),
            ]));
        }
    }
    Ok(questions)
}

/// The newest questions: those that wait, and those that do not, with their answers.
fn interrupts(questions: &[InterruptRecord], count: i64, limit: usize) -> ApiResult<Json> {
    let mut rendered: [Vec<Json>; 2] = Default::default();
    for question in questions {
        rendered[usize::from(question.status != InterruptStatus::Pending)].push(json(question)?);
    }
    lists(rendered, count.saturating_sub(questions.len() as i64).max(0), limit)
}

/// Those that wait and those that do not, and how many more there are.
fn lists(questions: [Vec<Json>; 2], more: i64, limit: usize) -> ApiResult<Json> {
    let mut lists: [Vec<Json>; 2] = Default::default();
    for (list, questions) in lists.iter_mut().zip(questions) {
        for question in questions {
            let (mut fields, omitted) = bounded(question.fields().unwrap_or_default(), limit)?;
            if !omitted.is_empty() {
                fields.insert("omitted_values".to_owned(), Json::from(&omitted));
            }
            list.push(Json::from(&fields));
        }
    }
    let [pending, past] = lists.map(|list| list.into_iter().collect::<Json>());
    Ok(Json::from_fields([("pending", &pending), ("past", &past), ("more", &Json::from(more))]))
}

fn active_runs(found: &Session) -> ApiResult<Json> {
    let runs = found.active.iter().map(|run| Ok(Json::from(&run_fields(run, found.now)?)));
    runs.collect::<ApiResult<Json>>()
}

fn counts(found: &Session) -> ApiResult<Json> {
    let counts = &found.counts;
    let all = [
        ("checkpoints", counts.checkpoints),
        ("bytes", counts.bytes),
        ("runs", counts.runs),
        ("active_runs", counts.active_runs),
        ("interrupts", counts.interrupts),
        ("events", counts.events),
        ("branches", counts.branches),
        ("crons", counts.crons),
    ];
    Ok(Json::from(&all.into_iter().map(|(key, count)| (key.to_owned(), Json::from(count))).collect::<Fields>()))
}

fn ttl(ttl: &ThreadTtl) -> ApiResult<Json> {
    Ok(Json::from_fields([
        ("strategy", &json(&ttl.strategy)?),
        ("ttl_minutes", &json(&ttl.minutes())?),
        ("expires_at", &json(&ttl.expires_at)?),
    ]))
}

/// Who asks, and what would be accepted now. Whoever may ask may do all of it: the server has keys, not roles. Where a
/// graph runs elsewhere, so does what changes its state.
fn permissions(caller: &Caller, thread: &Thread, questions: &[InterruptRecord], is_foreign: bool) -> ApiResult<Json> {
    let is_busy = thread.status == ThreadStatus::Busy;
    let mut may = vec!["read", "label", "copy", "delete"];
    if thread.closed.is_some() {
        may.push("reopen");
    } else if is_foreign {
        may.extend(["end", "archive"]);
    } else {
        may.extend(["run", "end", "archive"]);
        may.push(if is_busy { "cancel" } else { "edit_state" });
        if !is_busy {
            may.push("move_head");
        }
        if !is_busy && questions.iter().any(|question| question.status == InterruptStatus::Pending) {
            may.push("answer");
        }
    }
    let mut out = Fields::from_iter([("actor".to_owned(), json(&caller.actor)?), ("may".to_owned(), json(&may)?)]);
    if is_foreign {
        let why = RuntimeError::ThreadForeign(thread.id.to_string()).to_string();
        out.insert("note".to_owned(), Json::from(why));
    }
    Ok(Json::from(&out))
}

/// Splits what is short enough to be shown from the sizes of what is not.
fn bounded(fields: Fields, limit: usize) -> ApiResult<(Fields, Fields)> {
    let (mut shown, mut omitted) = (Fields::new(), Fields::new());
    for (key, value) in fields {
        let bytes = value.as_raw().get().len();
        if bytes <= limit {
            shown.insert(key, value);
            continue;
        }
        let size = match value.items_len() {
            Some(items) => Json::from_fields([("bytes", &json(&bytes)?), ("items", &json(&items)?)]),
            None => Json::from_fields([("bytes", &json(&bytes)?)]),
        };
        omitted.insert(key, size);
    }
    Ok((shown, omitted))
}
