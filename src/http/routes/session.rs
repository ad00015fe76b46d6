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
    CheckpointRef, Fields, InterruptRecord, InterruptStatus, Json, Thread, ThreadState, ThreadStatus, ThreadTtl,
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
    let found = found.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
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
    let thread = &found.thread;
    let mut out = Fields::from_iter([
        ("session_id".to_owned(), json(&thread.id)?),
        ("owner".to_owned(), thread.metadata.get("owner").unwrap_or_default()),
        ("status".to_owned(), Json::from(thread.status.as_str())),
        ("closed".to_owned(), json(&thread.closed)?),
        ("error".to_owned(), json(&thread.error)?),
        ("graph".to_owned(), graph(thread, head.as_ref())?),
        ("position".to_owned(), position(&found, head.as_ref(), state_at_head.as_ref())?),
        ("interrupts".to_owned(), interrupts(&questions, found.counts.interrupts, limit)?),
        ("active_runs".to_owned(), active_runs(&found)?),
    ]);
    if let Some(refused) = refused {
        out.insert("state_error".to_owned(), Json::from(refused));
    }
    if shown != Values::None {
        let all = state_at_head.as_ref().and_then(|state| state.values.fields()).unwrap_or_default();
        let (values, omitted) = bounded(all, limit)?;
        out.insert("values".to_owned(), Json::from(&values));
        if !omitted.is_empty() {
            out.insert("omitted_values".to_owned(), Json::from(&omitted));
        }
    }
    out.insert("counts".to_owned(), counts(&found)?);
    out.insert("usage".to_owned(), thread.usage.to_json());
    out.insert("ttl".to_owned(), found.ttl.as_ref().map(ttl).transpose()?.unwrap_or_default());
    out.insert("permissions".to_owned(), permissions(&caller, thread, &questions)?);
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
    let mut tasks = Vec::new();
    for task in state.map(|state| state.tasks.as_slice()).unwrap_or_default() {
        let ids: Vec<&str> = task.interrupts.iter().map(|interrupt| interrupt.id.as_str()).collect();
        tasks.push(Json::from_fields([
            ("id", &Json::from(task.id.as_str())),
            ("name", &Json::from(task.name.as_str())),
            ("error", &json(&task.error)?),
            ("interrupt_ids", &json(&ids)?),
            ("is_finished", &Json::from(task.result.is_some())),
        ]));
    }
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
        ("tasks", &tasks.into_iter().collect()),
    ]))
}

/// The newest questions: those that wait, and those that do not, with their answers.
fn interrupts(questions: &[InterruptRecord], count: i64, limit: usize) -> ApiResult<Json> {
    let mut lists: [Vec<Json>; 2] = Default::default();
    for question in questions {
        let (fields, omitted) = bounded(json(question)?.fields().unwrap_or_default(), limit)?;
        let mut fields = fields;
        if !omitted.is_empty() {
            fields.insert("omitted_values".to_owned(), Json::from(&omitted));
        }
        lists[usize::from(question.status != InterruptStatus::Pending)].push(Json::from(&fields));
    }
    let [pending, past] = lists.map(|list| list.into_iter().collect::<Json>());
    let more = count.saturating_sub(questions.len() as i64).max(0);
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

/// Who asks, and what would be accepted now. Whoever may ask may do all of it: the server has keys, not roles.
fn permissions(caller: &Caller, thread: &Thread, questions: &[InterruptRecord]) -> ApiResult<Json> {
    let is_busy = thread.status == ThreadStatus::Busy;
    let mut may = vec!["read", "label", "copy", "delete"];
    if thread.closed.is_some() {
        may.push("reopen");
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
    Ok(Json::from_fields([("actor", &json(&caller.actor)?), ("may", &json(&may)?)]))
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
