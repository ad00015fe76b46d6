//! The effect journal of a thread: external calls that its tasks made, and what is known of their outcome.

use axum::extract::State;
use axum::response::Response;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathIds;
use crate::http::page;
use crate::http::query::Query;
use crate::model::EffectState;
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
        tasks: query.one("task_id")?.map(|task| vec![task.to_owned()]),
        results: query.bool("results")?.unwrap_or(false),
    };
    let id = path.thread()?;
    let storage = state.runtime.storage();
    let thread = storage.find_thread(&caller.scope, &id).await?;
    let thread = thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    let mut found = storage.list_effects(&caller.scope, thread.key, &filter, page::with_one_more(page)).await?;
    let more = page::cut(&mut found, page);
    let documents =
        found.iter().map(|effect| document::effect(effect, filter.results)).collect::<ApiResult<Vec<_>>>()?;
    Ok(page::reply(&documents, more, page))
}

fn of_word(word: &str) -> ApiResult<EffectState> {
    EffectState::parse(word).ok_or_else(|| ApiError::invalid("state: must be 'started', 'failed' or 'recorded'"))
}
