//! The effect journal of a thread: external calls that its tasks made, and what is known of their outcome.

use axum::extract::State;
use axum::response::Response;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document::json;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathIds;
use crate::http::page;
use crate::http::query::Query;
use crate::model::{Effect, EffectState, Fields, Json};
use crate::storage::EffectFilter;

/// `GET /threads/{thread_id}/effects`: the latest started first. `state` and `task_id` choose; `results=true` shows what
/// the calls returned.
pub(super) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
) -> ApiResult<Response> {
    let page = page::of_query(&query)?;
    let filter = EffectFilter {
        state: query.one("state")?.map(of_word).transpose()?,
        task_id: query.one("task_id")?.map(str::to_owned),
        results: query.bool("results")?.unwrap_or(false),
    };
    let id = path.thread()?;
    let storage = state.runtime.storage();
    let thread = storage.find_thread(&caller.scope, &id).await?;
    let thread = thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    let mut found = storage.list_effects(&caller.scope, thread.key, &filter, page::with_one_more(page)).await?;
    let more = page::cut(&mut found, page);
    let documents = found.iter().map(|effect| document(effect, filter.results)).collect::<ApiResult<Vec<Fields>>>()?;
    Ok(page::reply(&documents, more, page))
}

fn of_word(word: &str) -> ApiResult<EffectState> {
    EffectState::parse(word).ok_or_else(|| ApiError::invalid("state: must be 'started', 'failed' or 'recorded'"))
}

fn document(effect: &Effect, results: bool) -> ApiResult<Fields> {
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
