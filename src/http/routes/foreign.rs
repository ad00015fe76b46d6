//! Checkpoints of graphs that run elsewhere: put, read, copied, deleted. README, "Checkpoints of your own graphs".

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds, thread_id};
use crate::http::object::Object;
use crate::http::page::{self, DEFAULT_LIMIT, X_PAGINATION_NEXT};
use crate::http::query::Query;
use crate::http::typed::{Answer, Attached, Typed, Wanted, take};
use crate::model::{Fields, Json, Thread, ThreadId};
use crate::runtime::foreign::{Checkpoint, Operation, PutCheckpoint, PutWrites, Sent, hex, special_index};
use crate::storage::{ForeignCopied, ForeignFilter, ForeignOutcome, Page};

/// The longest id of a checkpoint or a task.
pub(in crate::http) const MAX_ID: usize = 255;
/// Values of a checkpoint, and writes of a task.
pub(in crate::http) const MAX_VALUES: usize = 10_000;
/// Operations of one request.
pub(in crate::http) const MAX_OPERATIONS: usize = 1_000;
pub(in crate::http) const MAX_CHANNELS: usize = 1_000;
pub(in crate::http) const MAX_RUNS: usize = 1_000;
/// A word of the routes: no checkpoint can be addressed by it.
const LATEST: &str = "latest";

/// `POST /threads/{thread_id}/checkpoints`: puts one.
pub(super) async fn put(State(state): State<AppState>, caller: Caller, path: PathIds, typed: Typed) -> ApiResult {
    let thread = path.thread()?;
    let put = checkpoint(typed.body, &typed.bytes)?;
    let shown = json!({"thread_id": thread, "checkpoint_ns": put.ns, "checkpoint_id": put.id});
    store(&state, &caller, &thread, &[Operation::Put(put)]).await?;
    Ok(Reply(shown).into_response())
}

/// `POST /threads/{thread_id}/checkpoints/writes`: puts what a task wrote.
pub(super) async fn put_writes(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    typed: Typed,
) -> ApiResult {
    let thread = path.thread()?;
    let put = writes(typed.body, &typed.bytes)?;
    store(&state, &caller, &thread, &[Operation::PutWrites(put)]).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /threads/{thread_id}/checkpoints/batch`: all of `operations`, or none.
pub(super) async fn batch(State(state): State<AppState>, caller: Caller, path: PathIds, typed: Typed) -> ApiResult {
    let thread = path.thread()?;
    let operations = operations(typed.body, &typed.bytes)?;
    store(&state, &caller, &thread, &operations).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /checkpoints/batch`: batches of several threads, each of them all or nothing, with an answer for each.
pub(super) async fn batch_of_many(State(state): State<AppState>, caller: Caller, typed: Typed) -> ApiResult {
    let Typed { mut body, bytes } = typed;
    let parts = body.objects("threads", MAX_OPERATIONS)?.ok_or_else(|| body.missing("threads"))?;
    let mut threads = Vec::with_capacity(parts.len());
    let mut results: Vec<Option<Value>> = Vec::with_capacity(parts.len());
    for mut part in parts {
        let read = part.required_string("thread_id").and_then(|id| {
            let id = thread_id(&id)?;
            Ok((id, operations(part, &bytes)?))
        });
        match read {
            Ok(read) => {
                threads.push(read);
                results.push(None);
            }
            Err(error) => results.push(Some(refused(error))),
        }
    }
    let outcomes = state.runtime.put_foreign_each(&caller.scope, &threads).await;
    let mut shown = threads.iter().zip(outcomes).map(|((thread, _), outcome)| match outcome {
        Ok(ForeignOutcome::Stored) => json!({"status": 204}),
        Ok(outcome) => {
            let missing = match &outcome {
                ForeignOutcome::PayloadsMissing(hashes) => Some(hashes.iter().map(hex).collect::<Vec<_>>()),
                _ => None,
            };
            let mut shown = refused(refusal(thread, outcome));
            if let Some(missing) = missing {
                shown["missing_hashes"] = json!(missing);
            }
            shown
        }
        Err(error) => refused(error.into()),
    });
    let results: Vec<Value> = results.into_iter().filter_map(|result| result.or_else(|| shown.next())).collect();
    Ok(Reply(json!({"results": results})).into_response())
}

fn refused(error: ApiError) -> Value {
    let (status, detail) = error.into_item();
    json!({"status": status, "detail": detail})
}

async fn store(state: &AppState, caller: &Caller, thread: &ThreadId, operations: &[Operation]) -> ApiResult<()> {
    match state.runtime.put_foreign(&caller.scope, thread, operations).await? {
        ForeignOutcome::Stored => Ok(()),
        outcome => Err(refusal(thread, outcome)),
    }
}

/// Why nothing was stored.
fn refusal(thread: &ThreadId, outcome: ForeignOutcome) -> ApiError {
    let conflict = |text: String| ApiError::Conflict(text);
    match outcome {
        ForeignOutcome::Stored => ApiError::Internal("stored after all".to_owned()),
        ForeignOutcome::ThreadMissing => ApiError::thread_not_found(thread.as_str()),
        ForeignOutcome::ThreadNative => conflict(format!(
            "thread_id: graphs of this server ran on thread {thread}; checkpoints of others need another thread"
        )),
        ForeignOutcome::ThreadClosed => conflict(format!(
            "thread_id: thread {thread} was ended or archived; it takes checkpoints when it is opened again"
        )),
        ForeignOutcome::ParentMissing(ns, id) => conflict(format!(
            "parent_checkpoint_id: checkpoint {} is not on thread {thread} in namespace '{}'; put it first",
            id.escape_default(),
            ns.escape_default()
        )),
        ForeignOutcome::LatestMoved(ns, latest) => conflict(format!(
            "if_latest: the latest checkpoint of thread {thread} in namespace '{}' is {}",
            ns.escape_default(),
            latest.map_or_else(|| "none".to_owned(), |id| id.escape_default().to_string())
        )),
        ForeignOutcome::PayloadsMissing(hashes) => {
            let hashes: Vec<String> = hashes.iter().map(hex).collect();
            conflict(format!("values: thread {thread} has no bytes with the hash {}; send them", hashes.join(", ")))
        }
    }
}

fn operations(mut body: Object, bytes: &Attached) -> ApiResult<Vec<Operation>> {
    let list = body.objects("operations", MAX_OPERATIONS)?.ok_or_else(|| body.missing("operations"))?;
    list.into_iter()
        .map(|mut operation| {
            let words = ["put", "put_writes"];
            let is_put = operation.choice("op", &words, |word| words.contains(&word).then_some(word == "put"))?;
            match is_put.ok_or_else(|| operation.missing("op"))? {
                true => Ok(Operation::Put(checkpoint(operation, bytes)?)),
                false => Ok(Operation::PutWrites(writes(operation, bytes)?)),
            }
        })
        .collect()
}

/// A short text that must be there.
fn id(body: &mut Object, key: &str) -> ApiResult<String> {
    let id = body.required_string(key)?;
    checked(body, key, id)
}

fn checked(body: &Object, key: &str, id: String) -> ApiResult<String> {
    if id.is_empty() || id.len() > MAX_ID || id == LATEST {
        return Err(body.wrong(key, &format!("must be 1-{MAX_ID} bytes long, and not '{LATEST}'")));
    }
    Ok(id)
}

fn checkpoint(mut body: Object, bytes: &Attached) -> ApiResult<PutCheckpoint> {
    let ns = body.string("checkpoint_ns")?.unwrap_or_default();
    let document = body.object("checkpoint")?.ok_or_else(|| body.missing("checkpoint"))?;
    let mut inside = body.inside("checkpoint", &document)?;
    let id = id(&mut inside, "id")?;
    let versions = inside.object("channel_versions")?.and_then(|versions| versions.fields()).unwrap_or_default();
    for (channel, version) in &versions {
        if version.as_str().is_none() && !version.value().is_number() {
            return Err(inside.wrong(&format!("channel_versions.{channel}"), "must be a string or a number"));
        }
    }
    if inside.json("channel_values").is_some_and(|values| values.fields().is_none_or(|values| !values.is_empty())) {
        return Err(inside.wrong("channel_values", "must be empty: values are sent beside the checkpoint, as `values`"));
    }
    let parent = body.string("parent_checkpoint_id")?;
    let parent = parent.map(|parent| checked(&body, "parent_checkpoint_id", parent)).transpose()?;
    if parent.as_ref() == Some(&id) {
        return Err(body.wrong("parent_checkpoint_id", "must be another checkpoint"));
    }
    let metadata = body.object("metadata")?.unwrap_or_else(Json::object);
    let mut values: Vec<(String, Sent)> = Vec::new();
    for (channel, value) in body.objects_of("values", MAX_VALUES)? {
        if !versions.contains_key(&channel) {
            let rule = "has no version in checkpoint.channel_versions";
            return Err(body.wrong(&format!("values.{channel}"), rule));
        }
        values.push((channel, take(bytes, value)?));
    }
    let if_latest = match body.raw("if_latest") {
        None => None,
        Some(latest) if latest.is_null() => Some(None),
        Some(latest) => {
            let latest = latest.as_str().map(str::to_owned);
            Some(Some(latest.ok_or_else(|| body.wrong("if_latest", "expected a checkpoint id or null"))?))
        }
    };
    Ok(PutCheckpoint {
        ns,
        id,
        parent,
        allow_missing_parent: body.bool("allow_missing_parent")?.unwrap_or(false),
        if_latest,
        checkpoint: document,
        metadata,
        values,
    })
}

fn writes(mut body: Object, bytes: &Attached) -> ApiResult<PutWrites> {
    let ns = body.string("checkpoint_ns")?.unwrap_or_default();
    let checkpoint_id = id(&mut body, "checkpoint_id")?;
    let task_id = id(&mut body, "task_id")?;
    let path = body.string("task_path")?.unwrap_or_default();
    let list = body.objects("writes", MAX_VALUES)?.ok_or_else(|| body.missing("writes"))?;
    let mut writes = Vec::with_capacity(list.len());
    for (at, mut write) in (0..).zip(list) {
        let channel = write.required_string("channel")?;
        let idx = write.integer("idx", -100..=i64::from(i32::MAX))?;
        let idx = idx.or_else(|| special_index(&channel)).unwrap_or(at);
        writes.push((channel, idx, take(bytes, write)?));
    }
    Ok(PutWrites { ns, checkpoint_id, task_id, path, writes })
}

/// `GET /threads/{thread_id}/checkpoints` of such a thread.
pub(super) async fn list(state: &AppState, caller: &Caller, thread: &Thread, query: &Query, limit: i64) -> ApiResult {
    let filter = ForeignFilter {
        ns: Some(query.one("ns")?.unwrap_or_default().to_owned()),
        before: query.one("before")?.map(str::to_owned),
        ..ForeignFilter::default()
    };
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1);
    let mut rows = state.runtime.foreign_checkpoints(&caller.scope, thread.key, filter, None, wanted).await?;
    let more = page::cut(&mut rows, Page { limit, offset: 0 });
    let documents = rows.iter().map(row).collect::<ApiResult<Vec<_>>>()?;
    let mut response = Reply(documents).into_response();
    if let Some(last) = rows.last().filter(|_| more)
        && let Ok(next) = axum::http::HeaderValue::from_str(&last.id)
    {
        response.headers_mut().insert(X_PAGINATION_NEXT, next);
    }
    Ok(response)
}

/// Whether only such a checkpoint can be meant: then it is read at once, as every run elsewhere begins with that.
pub(super) fn is_asked_for(id: &str, wanted: Wanted) -> bool {
    id == LATEST || wanted.is_frame()
}

/// `GET /threads/{thread_id}/checkpoints/{checkpoint_id}` of such a thread; `latest` is an id, too.
pub(super) async fn find(
    state: &AppState,
    caller: &Caller,
    thread: &ThreadId,
    ns: &str,
    id: &str,
    wanted: Wanted,
) -> ApiResult {
    let at = (id != LATEST).then_some(id);
    let key = thread.key(caller.scope.tenant());
    let found = state.runtime.foreign_checkpoint(&caller.scope, key, ns, at).await?;
    let Some(found) = found else {
        return Err(ApiError::NotFound(format!(
            "Checkpoint {} not found. GET /threads/{thread}/checkpoints lists those there are.",
            id.escape_default()
        )));
    };
    let mut answer = wanted.answer();
    let document = whole(&mut answer, thread, &found)?;
    Ok(answer.reply(&document))
}

/// `POST /threads/{thread_id}/checkpoints/search`: checkpoints with their values, newest first by namespace. A thread that
/// is not there has none.
pub(super) async fn search(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    wanted: Wanted,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let limit = body.integer("limit", page::LIMITS)?.unwrap_or(DEFAULT_LIMIT);
    let metadata = body.object("metadata")?;
    let after = match body.nested("after")? {
        Some(mut after) => {
            let ns = after.string("checkpoint_ns")?.unwrap_or_default();
            Some((ns, after.required_string("checkpoint_id")?))
        }
        None => None,
    };
    let filter = ForeignFilter {
        ns: body.string("checkpoint_ns")?,
        id: body.string("checkpoint_id")?,
        before: body.string("before")?,
        after,
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let key = thread.key(caller.scope.tenant());
    let found = state.runtime.foreign_checkpoints(&caller.scope, key, filter, metadata.as_ref(), limit).await?;
    let mut answer = wanted.answer();
    let documents: Vec<Json> =
        found.iter().map(|found| whole(&mut answer, &thread, found)).collect::<ApiResult<_>>()?;
    Ok(answer.reply(&documents.into_iter().collect()))
}

/// `POST /threads/{thread_id}/checkpoints/deltas`: what channels contributed on the way to a checkpoint.
pub(super) async fn deltas(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    wanted: Wanted,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let ns = body.string("checkpoint_ns")?.unwrap_or_default();
    let id = body.string("checkpoint_id")?;
    let channels = body.strings("channels", MAX_CHANNELS)?.ok_or_else(|| body.missing("channels"))?;
    let key = thread.key(caller.scope.tenant());
    let found = state.runtime.foreign_history(&caller.scope, key, &ns, id.as_deref(), &channels).await?;
    let mut answer = wanted.answer();
    let mut documents = Fields::new();
    for (channel, history) in found {
        let writes: Json = history
            .writes
            .iter()
            .map(|(task, value)| {
                let mut members = Fields::from_iter(answer.value(value));
                members.insert("task_id".to_owned(), Json::from(task.as_str()));
                Json::from(&members)
            })
            .collect();
        let mut document = Fields::from_iter([("writes".to_owned(), writes)]);
        if let Some(seed) = &history.seed {
            document.insert("seed".to_owned(), Json::from(&Fields::from_iter(answer.value(seed))));
        }
        documents.insert(channel, Json::from(&document));
    }
    Ok(answer.reply(&Json::from(&Fields::from_iter([("channels".to_owned(), Json::from(&documents))]))))
}

/// `POST /threads/{thread_id}/checkpoints/copy`: the whole thread under a name that is free.
pub(super) async fn copy(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let from = path.thread()?;
    let to = thread_id(&body.required_string("thread_id")?)?;
    match state.runtime.storage().copy_foreign(&caller.scope, &from, &to).await? {
        ForeignCopied::Copied => Ok(Reply(json!({"thread_id": to})).into_response()),
        ForeignCopied::Missing => Err(ApiError::thread_not_found(from.as_str())),
        ForeignCopied::Taken => Err(ApiError::Conflict(format!("thread_id: thread {to} exists"))),
    }
}

/// `POST /checkpoints/delete`: the checkpoints of runs, by the `run_id` in their metadata, on any thread.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let run_ids = body.strings("run_ids", MAX_RUNS)?.ok_or_else(|| body.missing("run_ids"))?;
    let deleted = match run_ids.is_empty() {
        true => 0,
        false => state.runtime.delete_foreign_runs(&caller.scope, &run_ids).await?,
    };
    Ok(Reply(json!({"deleted_count": deleted})).into_response())
}

/// What a list shows: the members that rows of this server's own checkpoints have.
fn row(found: &Checkpoint) -> ApiResult<Fields> {
    let of_metadata = |key: &str| found.metadata.get(key).unwrap_or_default();
    Ok(Fields::from_iter([
        ("checkpoint_id".to_owned(), Json::from(found.id.as_str())),
        ("checkpoint_ns".to_owned(), Json::from(found.ns.as_str())),
        ("parent_checkpoint_id".to_owned(), document::json(&found.parent)?),
        ("run_id".to_owned(), document::json(&found.run_id)?),
        ("step".to_owned(), of_metadata("step")),
        ("source".to_owned(), of_metadata("source")),
        ("channels".to_owned(), found.values.iter().map(|(channel, _)| Json::from(channel.as_str())).collect()),
        ("bytes".to_owned(), Json::from(found.bytes)),
        ("created_at".to_owned(), document::json(&found.at)?),
    ]))
}

/// A checkpoint with its values and the writes on it.
fn whole(answer: &mut Answer, thread: &ThreadId, found: &Checkpoint) -> ApiResult<Json> {
    let values: Fields = found
        .values
        .iter()
        .map(|(name, value)| (name.clone(), Json::from(&Fields::from_iter(answer.value(value)))))
        .collect();
    let writes: Json = found
        .writes
        .iter()
        .map(|write| {
            let mut members = Fields::from_iter([
                ("task_id".to_owned(), Json::from(write.task_id.as_str())),
                ("task_path".to_owned(), Json::from(write.path.as_str())),
                ("idx".to_owned(), Json::from(write.idx)),
                ("channel".to_owned(), Json::from(write.channel.as_str())),
            ]);
            members.extend(answer.value(&write.value));
            Json::from(&members)
        })
        .collect();
    Ok(Json::from(&Fields::from_iter([
        ("thread_id".to_owned(), Json::from(thread.as_str())),
        ("checkpoint_ns".to_owned(), Json::from(found.ns.as_str())),
        ("checkpoint_id".to_owned(), Json::from(found.id.as_str())),
        ("parent_checkpoint_id".to_owned(), document::json(&found.parent)?),
        ("checkpoint".to_owned(), found.checkpoint.clone()),
        ("metadata".to_owned(), found.metadata.clone()),
        ("values".to_owned(), Json::from(&values)),
        ("pending_writes".to_owned(), writes),
        ("created_at".to_owned(), document::json(&found.at)?),
    ])))
}
