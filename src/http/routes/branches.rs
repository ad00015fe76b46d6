//! Branches: the leaves of a thread's tree of checkpoints, their names, moving the head, and what differs.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;
use uuid::Uuid;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds};
use crate::http::object::check_text;
use crate::http::page::{self, DEFAULT_LIMIT, LIMITS, X_PAGINATION_NEXT};
use crate::http::query::Query;
use crate::model::{CheckpointId, CheckpointRef, Fields, Json, Thread, ThreadId, ThreadState};
use crate::runtime::{Change, ChannelDiff, HEAD, HeadTarget, ItemDiff, RuntimeError, checkpoint_id, diff};
use crate::storage::{Branch, BranchPut, MAX_BRANCHES, Page, Tip};

/// Values of a diff that are longer are told by their size, unless all are asked for.
const SHOWN_BYTES: usize = 4096;
/// Items of a list and channels that a diff tells of, unless it is asked for more.
const SHOWN_ITEMS: i64 = 100;

/// `GET /threads/{thread_id}/branches`: leaves, named checkpoints and the head, newest first. `before` continues a list:
/// `x-pagination-next` holds its value.
pub(super) async fn list(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let limit = query.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT);
    let before = query.one("before")?.map(str::to_owned);
    let thread = thread(&state, &caller, &path).await?;
    let storage = state.runtime.storage();
    let mut tips = storage.list_tips(&caller.scope, thread.key, before.as_ref(), limit + 1).await?;
    let names = storage.list_branches(&caller.scope, thread.key, None).await?;
    let more = page::cut(&mut tips, Page { limit, offset: 0 });
    let documents = tips.iter().map(|tip| tip_document(tip, &names)).collect::<ApiResult<Vec<_>>>()?;
    let mut response = Reply(documents).into_response();
    if let Some(last) = tips.last().filter(|_| more)
        && let Ok(next) = HeaderValue::from_str(&last.checkpoint_id)
    {
        response.headers_mut().insert(X_PAGINATION_NEXT, next);
    }
    Ok(response)
}

fn tip_document(tip: &Tip, names: &[Branch]) -> ApiResult<Fields> {
    let names: Vec<&str> = names
        .iter()
        .filter(|branch| branch.checkpoint_id.as_ref() == Some(&tip.checkpoint_id))
        .map(|branch| branch.name.as_str())
        .collect();
    Ok(Fields::from_iter([
        ("checkpoint_id".to_owned(), Json::from(tip.checkpoint_id.as_str())),
        ("names".to_owned(), document::json(&names)?),
        ("is_head".to_owned(), Json::from(tip.is_head)),
        ("is_leaf".to_owned(), Json::from(tip.is_leaf)),
        ("parent_checkpoint_id".to_owned(), document::json(&tip.parent)?),
        ("run_id".to_owned(), document::json(&tip.run_id)?),
        ("step".to_owned(), Json::from(tip.step)),
        ("source".to_owned(), Json::from(tip.source.as_str())),
        ("next".to_owned(), document::json(&tip.next)?),
        ("created_at".to_owned(), document::json(&tip.at)?),
    ]))
}

/// `GET /threads/{thread_id}/branches/{name}`.
pub(super) async fn find(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let name = name(&path)?;
    let thread = thread(&state, &caller, &path).await?;
    let found = state.runtime.storage().list_branches(&caller.scope, thread.key, Some(&name)).await?.pop();
    let found = found.ok_or_else(|| ApiError::from(RuntimeError::BranchNotFound(name)))?;
    Ok(Reply(branch_document(&found)?).into_response())
}

/// `PUT` and `POST /threads/{thread_id}/branches/{name}`: names a checkpoint, the head unless `checkpoint_id` is another.
pub(super) async fn put(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let (id, name) = (path.thread()?, name(&path)?);
    let by = caller.attribution(&mut body)?;
    let wanted = body.string("checkpoint_id")?.map(|text| checkpoint_id(&text));
    let storage = state.runtime.storage();
    let put = storage.put_branch(&caller.scope, &id, &name, wanted.as_ref(), by.actor.as_deref()).await?;
    match put {
        BranchPut::Put(branch) => Ok(Reply(branch_document(&branch)?).into_response()),
        BranchPut::ThreadMissing => Err(ApiError::thread_not_found(id.as_str())),
        BranchPut::ThreadClosed => Err(state.runtime.why_closed(&caller.scope, &id).await?.into()),
        BranchPut::CheckpointMissing => Err(match wanted {
            Some(wanted) => RuntimeError::CheckpointNotFound(wanted).into(),
            None => no_checkpoint(&state, &caller, &id).await?,
        }),
        BranchPut::IsCurrent => Err(ApiError::Conflict(format!(
            "Thread {id} is on branch '{name}', which follows its head: move that with POST /threads/{id}/head"
        ))),
        BranchPut::TooMany => {
            Err(ApiError::Conflict(format!("Thread {id} has {MAX_BRANCHES} branches: delete one first")))
        }
    }
}

/// Why a thread has no head.
pub(super) async fn no_checkpoint(state: &AppState, caller: &Caller, id: &ThreadId) -> ApiResult<ApiError> {
    let thread = state.runtime.storage().find_thread(&caller.scope, id).await?;
    let thread = thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    Ok(match state.runtime.check_native(&caller.scope, &thread).await {
        Ok(()) => ApiError::BadRequest(format!("Thread {id} has no checkpoint yet: run something on it")),
        Err(refused) => refused.into(),
    })
}

/// `DELETE /threads/{thread_id}/branches/{name}`: the name; its checkpoints stay.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let (id, name) = (path.thread()?, name(&path)?);
    match state.runtime.storage().delete_branch(&caller.scope, &id, &name).await? {
        None => Err(ApiError::thread_not_found(id.as_str())),
        Some(false) => Err(RuntimeError::BranchNotFound(name).into()),
        Some(true) => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// `POST /threads/{thread_id}/head`: `{checkpoint_id}` or `{branch}`, and `expected_head` if it matters.
pub(super) async fn move_head(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let id = path.thread()?;
    let target = match (body.string("checkpoint_id")?, body.string("branch")?) {
        (Some(text), None) => HeadTarget::Checkpoint(checkpoint_id(&text)),
        (None, Some(name)) => HeadTarget::Branch(name),
        (None, None) => return Err(ApiError::invalid("checkpoint_id: field required, or branch")),
        (Some(_), Some(_)) => return Err(ApiError::invalid("checkpoint_id: not together with branch")),
    };
    let expected = body.string("expected_head")?.map(|text| checkpoint_id(&text));
    let moved = state.runtime.move_head(&caller.scope, &id, &target, expected.as_ref()).await?;
    Ok(Reply(json!({
        "thread_id": id,
        "checkpoint_id": moved.checkpoint_id,
        "previous_checkpoint_id": moved.previous,
        "branch": moved.branch,
        "status": moved.status.as_str(),
    }))
    .into_response())
}

/// `GET /threads/{thread_id}/diff?a=..&b=..`: from `a` (the parent of `b` unless given) to `b` (the head unless given). Each
/// is a checkpoint's id, a branch, or `head`.
pub(super) async fn compare(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let all = query.choice("values", &["short", "full"], |word| match word {
        "short" => Some(false),
        "full" => Some(true),
        _ => None,
    })?;
    let limit = query.integer("limit", LIMITS)?.unwrap_or(SHOWN_ITEMS);
    let shown = Shown {
        bytes: if all == Some(true) { usize::MAX } else { SHOWN_BYTES },
        items: usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let (a, b) = (query.one("a")?.map(str::to_owned), query.one("b")?.unwrap_or(HEAD).to_owned());
    let only = query.all("channel")?;
    let thread = thread(&state, &caller, &path).await?;
    let after = at(&state, &caller, &thread, &b).await?;
    let before = match a {
        Some(a) => Some(at(&state, &caller, &thread, &a).await?),
        None => match after.parent_checkpoint.as_ref().and_then(|parent| parent.at.id.clone()) {
            Some(parent) => Some(at(&state, &caller, &thread, &parent).await?),
            None => None,
        },
    };
    let old = before.as_ref().map(channels_of).unwrap_or_default();
    let (mut channels, unchanged) = diff(&old, &channels_of(&after));
    if let Some(only) = only {
        channels.retain(|channel| only.contains(&channel.channel));
    }
    let more = channels.len().saturating_sub(shown.items);
    channels.truncate(shown.items);
    let channels = channels.iter().map(|channel| shown.channel(channel)).collect::<ApiResult<Vec<_>>>()?;
    let mut out = Fields::from_iter([
        ("thread_id".to_owned(), document::json(&thread.id)?),
        ("a".to_owned(), before.as_ref().map(place).transpose()?.unwrap_or_default()),
        ("b".to_owned(), place(&after)?),
        ("unchanged".to_owned(), document::json(&unchanged)?),
        ("channels".to_owned(), document::json(&channels)?),
    ]);
    if more > 0 {
        out.insert("more_channels".to_owned(), document::json(&more)?);
    }
    Ok(Reply(out).into_response())
}

/// Values by channel; one value that is all of the state, as that of a function is, goes by what `/state` calls it.
fn channels_of(state: &ThreadState) -> Fields {
    let whole = || Fields::from_iter((!state.values.is_null()).then(|| ("values".to_owned(), state.values.clone())));
    state.values.fields().unwrap_or_else(whole)
}

/// The state at the checkpoint that a word stands for.
async fn at(state: &AppState, caller: &Caller, thread: &Thread, word: &str) -> ApiResult<ThreadState> {
    let id = state.runtime.place(&caller.scope, thread, word).await?;
    // A word that is no branch: nothing here is called that.
    if thread.head.is_some() && Uuid::try_parse(&id).is_err() {
        return Err(RuntimeError::CheckpointNotFound(id).into());
    }
    let at = CheckpointRef { id: Some(id.clone()), ..CheckpointRef::default() };
    let found = state.runtime.thread_state(&caller.scope, &thread.id, &at, false).await?;
    if found.metadata.is_none() {
        return Err(RuntimeError::CheckpointNotFound(id).into());
    }
    Ok(found)
}

fn place(state: &ThreadState) -> ApiResult<Json> {
    let step = state.metadata.as_ref().and_then(|metadata| metadata.get("step")).unwrap_or_default();
    let id: Option<&CheckpointId> = state.checkpoint.as_ref().and_then(|cursor| cursor.at.id.as_ref());
    let (id, at) = (document::json(&id)?, document::json(&state.created_at)?);
    Ok(Json::from_fields([("checkpoint_id", &id), ("step", &step), ("created_at", &at)]))
}

/// How much of a diff is shown.
struct Shown {
    bytes: usize,
    items: usize,
}

impl Shown {
    fn channel(&self, diff: &ChannelDiff) -> ApiResult<Fields> {
        let mut out = Fields::from_iter([
            ("channel".to_owned(), Json::from(diff.channel.as_str())),
            ("change".to_owned(), Json::from(diff.change.as_str())),
        ]);
        let Some(items) = &diff.items else {
            self.values(diff.before.as_ref(), diff.after.as_ref(), &mut out)?;
            return Ok(out);
        };
        for (key, list) in [("length_before", &diff.before), ("length_after", &diff.after)] {
            out.insert(key.to_owned(), document::json(&list.as_ref().and_then(Json::items_len))?);
        }
        for change in [Change::Added, Change::Removed, Change::Changed] {
            let count = items.iter().filter(|item| item.change == change).count();
            out.insert(change.as_str().to_owned(), document::json(&count)?);
        }
        let shown = items.iter().take(self.items).map(|item| self.item(item)).collect::<ApiResult<Vec<_>>>()?;
        if items.len() > shown.len() {
            out.insert("more_items".to_owned(), document::json(&(items.len() - shown.len()))?);
        }
        out.insert("items".to_owned(), document::json(&shown)?);
        Ok(out)
    }

    fn item(&self, item: &ItemDiff) -> ApiResult<Fields> {
        let mut out = Fields::from_iter([("change".to_owned(), Json::from(item.change.as_str()))]);
        if let Some(id) = &item.id {
            out.insert("id".to_owned(), Json::from(id.as_str()));
        }
        for (key, index) in [("index_before", item.index_before), ("index_after", item.index_after)] {
            if let Some(index) = index {
                out.insert(key.to_owned(), document::json(&index)?);
            }
        }
        self.values(item.before.as_ref(), item.after.as_ref(), &mut out)?;
        Ok(out)
    }

    /// `before` and `after`, or how long they are.
    fn values(&self, before: Option<&Json>, after: Option<&Json>, out: &mut Fields) -> ApiResult<()> {
        for (key, value) in [("before", before), ("after", after)] {
            let Some(value) = value else { continue };
            let bytes = value.as_raw().get().len();
            if bytes <= self.bytes {
                out.insert(key.to_owned(), value.clone());
            } else {
                out.insert(format!("{key}_bytes"), document::json(&bytes)?);
            }
        }
        Ok(())
    }
}

async fn thread(state: &AppState, caller: &Caller, path: &PathIds) -> ApiResult<Thread> {
    let id = path.thread()?;
    let thread = state.runtime.storage().find_thread(&caller.scope, &id).await?;
    thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))
}

/// A branch's name: nothing that could be taken for a checkpoint.
fn name(path: &PathIds) -> ApiResult<String> {
    let name = path.text("name")?;
    check_text("name", name)?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._:~@-".contains(c);
    if name.is_empty() || name.len() > 255 || !name.chars().all(is_allowed) {
        return Err(ApiError::invalid("name: expected 1 to 255 characters of A-Z a-z 0-9 . _ : ~ @ -"));
    }
    if name == HEAD || Uuid::try_parse(name).is_ok() {
        return Err(ApiError::invalid("name: 'head' and UUIDs stand for checkpoints"));
    }
    Ok(name.to_owned())
}

fn branch_document(branch: &Branch) -> ApiResult<Fields> {
    Ok(Fields::from_iter([
        ("name".to_owned(), Json::from(branch.name.as_str())),
        ("checkpoint_id".to_owned(), document::json(&branch.checkpoint_id)?),
        ("is_current".to_owned(), Json::from(branch.is_current)),
        ("created_at".to_owned(), document::json(&branch.created_at)?),
        ("updated_at".to_owned(), document::json(&branch.updated_at)?),
        ("updated_by".to_owned(), document::json(&branch.updated_by)?),
    ]))
}
