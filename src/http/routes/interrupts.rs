//! Interrupts: the questions of all threads, and their answers.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::IntoResponse;
use uuid::Uuid;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds, thread_id};
use crate::http::object::{Object, check_text, parse_uuid};
use crate::http::page::{self, DEFAULT_LIMIT, LIMITS, X_PAGINATION_NEXT};
use crate::http::query::Query;
use crate::model::{Fields, InterruptRecord, InterruptStatus, Json, ThreadId, ThreadKey, Timestamp};
use crate::runtime::{Answer, Answerer};
use crate::storage::{InterruptCursor, InterruptFilter, Page};

/// The most answers of one request.
pub(in crate::http) const MAX_ANSWERS: usize = 100;
pub(in crate::http) const STATUSES: [&str; 4] = ["pending", "answered", "dropped", "any"];

/// `GET /interrupts`: the questions of all threads, the pending ones unless `status` says otherwise.
pub(super) async fn list(State(state): State<AppState>, caller: Caller, query: Query) -> ApiResult {
    let thread = query.one("thread_id")?.map(thread_id).transpose()?;
    answer_with_page(&state, &caller, &query, thread, Some(InterruptStatus::Pending)).await
}

/// `GET /threads/{thread_id}/interrupts`: all questions of a thread with their answers.
pub(super) async fn of_thread(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let thread = path.thread()?;
    if state.runtime.storage().find_thread(&caller.scope, &thread).await?.is_none() {
        return Err(ApiError::thread_not_found(thread.as_str()));
    }
    answer_with_page(&state, &caller, &query, Some(thread), None).await
}

async fn answer_with_page(
    state: &AppState,
    caller: &Caller,
    query: &Query,
    thread: Option<ThreadId>,
    status: Option<InterruptStatus>,
) -> ApiResult {
    let limit = query.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT);
    let ascending = query.choice("sort_order", &["asc", "desc"], ascending)?.unwrap_or(false);
    let after = query.one("cursor")?.map(read_cursor).transpose()?;
    let filter = InterruptFilter {
        status: query.choice("status", &STATUSES, statuses)?.unwrap_or(status),
        thread,
        graph_id: query.one("graph_id")?.map(str::to_owned),
        assistant_id: query.one("assistant_id")?.map(|id| parse_uuid("assistant ID", id)).transpose()?,
        node: query.one("node")?.map(str::to_owned),
        thread_metadata: metadata(query)?,
        asked_after: time(query, "asked_after")?,
        asked_before: time(query, "asked_before")?,
        ..InterruptFilter::default()
    };
    let storage = state.runtime.storage();
    let mut rows = storage.list_interrupts(&caller.scope, &filter, ascending, after.as_ref(), limit + 1).await?;
    let more = page::cut(&mut rows, Page { limit, offset: 0 });
    let records: Vec<&InterruptRecord> = rows.iter().map(|(_, record)| record).collect();
    let mut response = Reply(&records).into_response();
    if let Some((thread, record)) = rows.last().filter(|_| more)
        && let Ok(next) = HeaderValue::from_str(&cursor(*thread, record))
    {
        response.headers_mut().insert(X_PAGINATION_NEXT, next);
    }
    Ok(response)
}

fn answerer(caller: &Caller, body: &mut Object) -> ApiResult<Answerer> {
    Ok(Answerer { actor: caller.attribution(body)?.actor, carried: Fields::clone(&caller.carried) })
}

/// `POST /threads/{thread_id}/interrupts/{interrupt_id}/answer`: starts the run that goes on with the answer.
pub(super) async fn answer(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let interrupt_id = path.text("interrupt_id")?.to_owned();
    check_text("interrupt_id", &interrupt_id)?;
    let by = answerer(&caller, &mut body)?;
    let answer = body.json("answer").ok_or_else(|| body.missing("answer"))?;
    let answer = Answer { thread: path.thread()?, interrupt_id, answer, place: String::new() };
    let started = state.runtime.answer(&caller.scope, vec![answer], &by).await?.pop();
    let run = started.ok_or_else(|| ApiError::Internal("one answer, no outcome".to_owned()))??;
    Ok(Reply(document::run(&run)?).into_response())
}

/// `POST /interrupts/answer`: `{answers: [{thread_id, interrupt_id, answer}, ..]}`. Answers for one thread share a run.
/// Each has a result; a malformed one refuses them all.
pub(super) async fn answer_many(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let by = answerer(&caller, &mut body)?;
    let items = body.objects("answers", MAX_ANSWERS)?.ok_or_else(|| body.missing("answers"))?;
    let answers: Vec<Answer> = items.into_iter().enumerate().map(read_answer).collect::<ApiResult<_>>()?;
    let places: Vec<(ThreadId, String)> =
        answers.iter().map(|answer| (answer.thread.clone(), answer.interrupt_id.clone())).collect();
    let outcomes = state.runtime.answer(&caller.scope, answers, &by).await?;
    let mut results: Vec<Fields> = Vec::with_capacity(outcomes.len());
    for ((thread, interrupt_id), outcome) in places.into_iter().zip(outcomes) {
        let mut result = Fields::from_iter([
            ("thread_id".to_owned(), document::json(&thread)?),
            ("interrupt_id".to_owned(), Json::from(interrupt_id)),
        ]);
        let (status, key, value) = match outcome {
            Ok(run) => (200, "run_id", document::json(&run.run_id)?),
            Err(error) => {
                let (status, text) = ApiError::from(error).into_item();
                (status, "detail", Json::from(text))
            }
        };
        result.insert("status".to_owned(), Json::from(i64::from(status)));
        result.insert(key.to_owned(), value);
        results.push(result);
    }
    Ok(Reply(results).into_response())
}

fn read_answer((index, mut item): (usize, Object)) -> ApiResult<Answer> {
    let place = format!("answers[{index}].");
    Ok(Answer {
        thread: thread_id(&item.required_string("thread_id")?).map_err(|error| error.at(&place))?,
        interrupt_id: item.required_string("interrupt_id")?,
        answer: item.json("answer").ok_or_else(|| item.missing("answer"))?,
        place,
    })
}

fn ascending(word: &str) -> Option<bool> {
    match word {
        "asc" => Some(true),
        "desc" => Some(false),
        _ => None,
    }
}

/// `any` is no condition.
fn statuses(word: &str) -> Option<Option<InterruptStatus>> {
    if word == "any" { Some(None) } else { InterruptStatus::parse(word).map(Some) }
}

fn metadata(query: &Query) -> ApiResult<Option<Json>> {
    let Some(text) = query.one("metadata")? else { return Ok(None) };
    let object = Json::parse(text).ok().filter(Json::is_object);
    object.map(Some).ok_or_else(|| ApiError::invalid("metadata: expected a JSON object"))
}

fn time(query: &Query, key: &str) -> ApiResult<Option<Timestamp>> {
    let Some(text) = query.one(key)? else { return Ok(None) };
    // A plus sign that was not escaped arrives as a space.
    let found = Timestamp::parse(text).or_else(|| Timestamp::parse(&text.replace(' ', "+")));
    let refused = || ApiError::invalid(format!("{key}: expected a time like 2026-11-21T00:05:53Z"));
    found.map(Some).ok_or_else(refused)
}

/// A place in the list as text: time, thread, question.
fn cursor(thread: ThreadKey, record: &InterruptRecord) -> String {
    format!("{}.{}.{}", record.asked_at.0, thread.0.simple(), record.interrupt_id)
}

fn read_cursor(text: &str) -> ApiResult<InterruptCursor> {
    let read = |(asked_at, rest): (&str, &str)| {
        let (thread, id) = rest.split_once('.')?;
        let (asked_at, thread) = (Timestamp(asked_at.parse().ok()?), ThreadKey(Uuid::try_parse(thread).ok()?));
        Some(InterruptCursor { asked_at, thread, id: id.to_owned() })
    };
    let found = text.split_once('.').and_then(read);
    found.ok_or_else(|| ApiError::invalid("cursor: expected a value of the header x-pagination-next"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        let at = read_cursor("17.00000000000000000000000000000007.ab.c").expect("valid");
        assert_eq!((at.asked_at.0, at.thread.0.as_u128(), at.id.as_str()), (17, 7, "ab.c"));
        for bad in ["", "x", "1.2", "1.zz.a"] {
            assert!(read_cursor(bad).is_err(), "{bad}");
        }
    }
}
