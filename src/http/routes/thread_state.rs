//! The state of a thread: now, at a checkpoint, through time; and changing it (contract section 3.2).

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::json;

use super::branches::no_checkpoint;
use crate::http::auth::Caller;
use crate::http::cursor;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds};
use crate::http::object::{Object, kind};
use crate::http::page::{DEFAULT_LIMIT, LIMITS};
use crate::http::query::Query;
use crate::http::select::StateParts;
use crate::http::{AppState, run_request};
use crate::model::{CheckpointRef, Cursor, InterruptRecord, Json, ThreadId, ThreadState};
use crate::runtime::{HistoryQuery, RuntimeError, StateUpdate};
use crate::storage::{EffectFilter, InterruptFilter, Page};

pub(in crate::http) const MAX_INCLUDED: usize = 10;
/// The most questions, and the most external calls, shown with a page of states.
const MAX_SHOWN: i64 = 10_000;

/// `GET /threads/{thread_id}/state`.
pub(super) async fn latest(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let at = CheckpointRef { ns: query.one("checkpoint_ns")?.unwrap_or_default().to_owned(), ..Default::default() };
    of_query(&state, &caller, &path.thread()?, at, &query).await
}

/// `GET /threads/{thread_id}/state/{checkpoint_id}`.
pub(super) async fn at_checkpoint(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
) -> ApiResult {
    let ns = query.one("checkpoint_ns")?.unwrap_or_default().to_owned();
    let at = CheckpointRef { ns, id: Some(path.checkpoint()?), ..Default::default() };
    of_query(&state, &caller, &path.thread()?, at, &query).await
}

async fn of_query(state: &AppState, caller: &Caller, thread: &ThreadId, at: CheckpointRef, query: &Query) -> ApiResult {
    let subgraphs = query.bool("subgraphs")?.unwrap_or(false);
    let parts = StateParts::new(query.all("select")?)?;
    let include = Include::new(query.all("include")?)?;
    let found = state.runtime.thread_state(&caller.scope, thread, &at, subgraphs).await?;
    let shown = include.add(state, caller, thread, std::slice::from_ref(&found), vec![parts.apply(&found)?]).await?;
    Ok(Reply(shown.into_iter().next()).into_response())
}

/// `POST /threads/{thread_id}/state/checkpoint`: a cursor without an id is the latest.
pub(super) async fn at_cursor(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let at = cursor::take(&mut body, "checkpoint")?.ok_or_else(|| body.missing("checkpoint"))?;
    let subgraphs = body.bool("subgraphs")?.unwrap_or(false);
    let parts = StateParts::of_body(&mut body)?;
    let include = Include::of_body(&mut body)?;
    let found = state.runtime.thread_state(&caller.scope, &thread, &at, subgraphs).await?;
    let shown = vec![parts.apply(&found)?];
    let shown = include.add(&state, &caller, &thread, std::slice::from_ref(&found), shown).await?;
    Ok(Reply(shown.into_iter().next()).into_response())
}

/// `POST /threads/{thread_id}/state`.
pub(super) async fn update(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let values = body.json("values").unwrap_or_default();
    if !(values.is_object() || values.is_array() || values.is_null()) {
        let got = kind(&values);
        return Err(ApiError::invalid(format!("values: expected an object, an array or null, got {got}")));
    }
    let as_node = body.string("as_node")?;
    let mut at = cursor::take(&mut body, "checkpoint")?.unwrap_or_default();
    if let Some(id) = body.uuid("checkpoint_id")? {
        at.id = Some(id.hyphenated().to_string());
    }
    let by = caller.attribution(&mut body)?;
    let update = StateUpdate { values, command: None, as_node, at, actor: by.actor, reason: by.reason };
    let cursor = state.runtime.update_state(&caller.scope, &thread, update).await?;
    Ok(Reply(json!({"checkpoint": cursor, "configurable": cursor, "checkpoint_id": cursor.at.id})).into_response())
}

/// Keys of a checkpoint's metadata that say where it came from.
const OWN_METADATA: [&str; 4] = ["source", "step", "parents", "graph_id"];

/// `PATCH /threads/{thread_id}/state`: merges metadata into that of the latest checkpoint.
pub(super) async fn patch(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let given = run_request::metadata(&mut body, "metadata")?.ok_or_else(|| body.missing("metadata"))?;
    let mut fields = given.fields().unwrap_or_default();
    fields.retain(|key, _| !OWN_METADATA.contains(&key.as_str()));
    let merged = state.runtime.storage().update_head_metadata(&caller.scope, &thread, &Json::from(&fields)).await?;
    let Some(id) = merged else {
        let found = state.runtime.storage().find_thread(&caller.scope, &thread).await?;
        let closed = found.as_ref().and_then(|found| found.closed.as_ref());
        return Err(match closed {
            Some(closed) => RuntimeError::closed(&thread, closed).into(),
            None => ApiError::thread_not_found(thread.as_str()),
        });
    };
    let Some(id) = id else { return Err(no_checkpoint(&state, &caller, &thread).await?) };
    let cursor = Cursor { thread_id: thread, at: CheckpointRef { id: Some(id), ..CheckpointRef::default() } };
    Ok(Reply(json!({"checkpoint": cursor, "configurable": cursor, "checkpoint_id": cursor.at.id})).into_response())
}

/// `GET /threads/{thread_id}/history`.
pub(super) async fn recent_history(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
) -> ApiResult {
    let before = query.one("before")?.map(|id| Json::from_fields([("before", &Json::from(id))]));
    let before = before.map(|body| cursor::take_or_id(&mut Object::body(&body)?, "before")).transpose()?.flatten();
    let ns = query.one("checkpoint_ns")?.unwrap_or_default().to_owned();
    let wanted = HistoryQuery {
        limit: query.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT),
        before,
        metadata: None,
        checkpoint: CheckpointRef { ns, ..Default::default() },
    };
    let include = Include::new(query.all("include")?)?;
    reply(&state, &caller, &path.thread()?, &wanted, &StateParts::new(query.all("select")?)?, include).await
}

/// `POST /threads/{thread_id}/history`.
pub(super) async fn history(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let wanted = HistoryQuery {
        limit: body.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT),
        before: cursor::take_or_id(&mut body, "before")?,
        metadata: body.object("metadata")?,
        checkpoint: cursor::take(&mut body, "checkpoint")?.unwrap_or_default(),
    };
    let include = Include::of_body(&mut body)?;
    reply(&state, &caller, &path.thread()?, &wanted, &StateParts::of_body(&mut body)?, include).await
}

async fn reply(
    state: &AppState,
    caller: &Caller,
    thread: &ThreadId,
    wanted: &HistoryQuery,
    parts: &StateParts,
    include: Include,
) -> ApiResult {
    let states = state.runtime.history(&caller.scope, thread, wanted).await?;
    let shown: Vec<Json> = states.iter().map(|state| parts.apply(state)).collect::<ApiResult<_>>()?;
    Ok(Reply(include.add(state, caller, thread, &states, shown).await?).into_response())
}

/// What a client wants to see beyond the contract.
#[derive(Debug, Clone, Copy, Default)]
struct Include {
    /// With each task, its questions and their answers.
    answers: bool,
    /// With each task, its external calls.
    effects: bool,
}

impl Include {
    fn of_body(body: &mut Object) -> ApiResult<Include> {
        Include::new(body.strings("include", MAX_INCLUDED)?)
    }

    fn new(names: Option<Vec<String>>) -> ApiResult<Include> {
        let mut include = Include::default();
        for name in names.unwrap_or_default() {
            match name.as_str() {
                "answers" => include.answers = true,
                "effects" => include.effects = true,
                _ => return Err(ApiError::invalid("include: what can be included is 'answers' and 'effects'")),
            }
        }
        Ok(include)
    }

    async fn add(
        self,
        state: &AppState,
        caller: &Caller,
        thread: &ThreadId,
        states: &[ThreadState],
        shown: Vec<Json>,
    ) -> ApiResult<Vec<Json>> {
        let shown = self.answers(state, caller, thread, states, shown).await?;
        self.effects(state, caller, thread, shown).await
    }

    /// Adds `effects` to the tasks of rendered states: what is known of each external call, without results. The latest, if
    /// there are very many.
    async fn effects(
        self,
        state: &AppState,
        caller: &Caller,
        thread: &ThreadId,
        shown: Vec<Json>,
    ) -> ApiResult<Vec<Json>> {
        let mut tasks = Vec::new();
        if self.effects {
            shown.iter().for_each(|state| document::task_ids(state, &mut tasks));
        }
        if tasks.is_empty() {
            return Ok(shown);
        }
        let filter = EffectFilter { tasks: Some(tasks), ..EffectFilter::default() };
        let page = Page { limit: MAX_SHOWN, offset: 0 };
        let key = thread.key(caller.scope.tenant());
        let mut found = state.runtime.storage().list_effects(&caller.scope, key, &filter, page).await?;
        found.reverse();
        shown.into_iter().map(|state| document::with_effects(state, &found)).collect()
    }

    /// Adds `questions` to the tasks of rendered states: each question with its answer, who gave it and when. Those that
    /// were asked last, if there are very many.
    async fn answers(
        self,
        state: &AppState,
        caller: &Caller,
        thread: &ThreadId,
        states: &[ThreadState],
        shown: Vec<Json>,
    ) -> ApiResult<Vec<Json>> {
        let ids = states.iter().filter_map(|state| state.checkpoint.as_ref()?.at.id.clone()).collect::<Vec<_>>();
        if !self.answers || ids.is_empty() {
            return Ok(shown);
        }
        let filter = InterruptFilter { thread: Some(thread.clone()), checkpoints: Some(ids), ..Default::default() };
        let storage = state.runtime.storage();
        let rows = storage.list_interrupts(&caller.scope, &filter, false, None, MAX_SHOWN).await?;
        let questions: Vec<InterruptRecord> = rows.into_iter().rev().map(|(_, record)| record).collect();
        shown.into_iter().map(|state| document::with_questions(state, &questions)).collect()
    }
}
