//! Crons (contract section 3.8).

use std::sync::Arc;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;

use crate::http::auth::Caller;
use crate::http::document::json;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds, thread_id};
use crate::http::object::{Object, parse_uuid};
use crate::http::select::Columns;
use crate::http::{AppState, page, run_request};
use crate::model::{Cron, Fields, Json, OnCompletion, ThreadId, Timestamp};
use crate::runtime::{CronRequest, RuntimeError};
use crate::storage::{CronFilter, CronSort};

pub(in crate::http) const COLUMNS: [&str; 14] = [
    "cron_id",
    "assistant_id",
    "thread_id",
    "user_id",
    "end_time",
    "schedule",
    "timezone",
    "payload",
    "next_run_date",
    "metadata",
    "on_run_completed",
    "enabled",
    "created_at",
    "updated_at",
];
pub(in crate::http) const SORTS: [&str; 7] =
    ["cron_id", "assistant_id", "thread_id", "next_run_date", "end_time", "created_at", "updated_at"];
/// What of a cron can be changed; other members say nothing.
pub(in crate::http) const CHANGEABLE: [&str; 29] = [
    "schedule",
    "timezone",
    "end_time",
    "enabled",
    "on_run_completed",
    "assistant_id",
    "input",
    "command",
    "checkpoint",
    "checkpoint_id",
    "config",
    "context",
    "metadata",
    "stream_mode",
    "stream_subgraphs",
    "stream_resumable",
    "interrupt_before",
    "interrupt_after",
    "multitask_strategy",
    "if_not_exists",
    "on_disconnect",
    "on_completion",
    "durability",
    "checkpoint_during",
    "after_seconds",
    "webhook",
    "feedback_keys",
    "strict_resume",
    "langsmith_tracer",
];
/// Part of the payload that the server adds.
const OWN_KEY: &str = "cron_id";

/// `POST /runs/crons`: every run gets a thread of its own.
pub(super) async fn create(State(state): State<AppState>, caller: Caller, Body(body): Body) -> ApiResult {
    make(&state, &caller, None, &body.rest()).await
}

/// `POST /threads/{thread_id}/runs/crons`: all runs go to one thread.
pub(super) async fn create_for_thread(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(body): Body,
) -> ApiResult {
    make(&state, &caller, Some(path.thread()?), &body.rest()).await
}

async fn make(state: &AppState, caller: &Caller, thread: Option<ThreadId>, body: &Fields) -> ApiResult {
    let request = read(caller, thread, body)?;
    let cron = state.runtime.create_cron(&caller.scope, request).await?;
    Ok(Reply(document(&cron)?).into_response())
}

/// `GET /runs/crons/{cron_id}`.
pub(super) async fn find(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let found = state.runtime.storage().find_cron(&caller.scope, cron_id(&path)?).await?;
    Ok(Reply(document(&found.ok_or(RuntimeError::CronNotFound)?)?).into_response())
}

/// `PATCH /runs/crons/{cron_id}`: given fields replace, others stay; `end_time: null` takes the end away.
pub(super) async fn update(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(body): Body,
) -> ApiResult {
    let mut changes = body.rest();
    changes.retain(|key, _| CHANGEABLE.contains(&key.as_str()));
    if changes.is_empty() {
        return Err(ApiError::BadRequest("Request body: at least one field to change is required".to_owned()));
    }
    let change = |cron: &Cron| read(&caller, cron.thread_id.clone(), &changed(&cron.payload, &changes));
    let cron = state.runtime.update_cron(&caller.scope, cron_id(&path)?, change).await?;
    Ok(Reply(document(&cron)?).into_response())
}

/// `DELETE /runs/crons/{cron_id}`.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    match state.runtime.storage().delete_cron(&caller.scope, cron_id(&path)?).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(RuntimeError::CronNotFound.into()),
    }
}

/// `POST /runs/crons/search`.
pub(super) async fn search(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let window = page::of_body(&mut body, page::DEFAULT_LIMIT)?;
    let columns = Columns::of_body(&mut body, &COLUMNS)?;
    let sort = body.choice("sort_by", &SORTS, parse_sort)?.unwrap_or_default();
    let ascending = page::ascending(&mut body)?;
    let filter = filter(&mut body)?;
    let storage = state.runtime.storage();
    let mut rows = storage.search_crons(&caller.scope, &filter, sort, ascending, page::with_one_more(window)).await?;
    let more = page::cut(&mut rows, window);
    let rows: Vec<Fields> =
        rows.iter().map(|row| Ok(columns.apply(document(row)?))).collect::<ApiResult<Vec<Fields>>>()?;
    Ok(page::reply(&rows, more, window))
}

/// `POST /runs/crons/count`.
pub(super) async fn count(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let count = state.runtime.storage().count_crons(&caller.scope, &filter(&mut body)?).await?;
    Ok(Reply(count).into_response())
}

fn cron_id(path: &PathIds) -> ApiResult<uuid::Uuid> {
    parse_uuid("cron ID", path.text("cron_id")?)
}

fn filter(body: &mut Object) -> ApiResult<CronFilter> {
    Ok(CronFilter {
        assistant_id: body.uuid("assistant_id")?,
        thread_id: body.string("thread_id")?.map(|id| thread_id(&id)).transpose()?,
        enabled: body.bool("enabled")?,
        metadata: body.object("metadata")?,
    })
}

fn parse_sort(word: &str) -> Option<CronSort> {
    Some(match word {
        "cron_id" => CronSort::CronId,
        "assistant_id" => CronSort::AssistantId,
        "thread_id" => CronSort::ThreadId,
        "next_run_date" => CronSort::NextRunDate,
        "end_time" => CronSort::EndTime,
        "created_at" => CronSort::CreatedAt,
        "updated_at" => CronSort::UpdatedAt,
        _ => return None,
    })
}

/// Reads a whole cron: what it is, and the run it starts.
fn read(caller: &Caller, thread: Option<ThreadId>, fields: &Fields) -> ApiResult<CronRequest> {
    let payload = Json::from(fields);
    let mut body = Object::body(&payload)?;
    let schedule = body.required_string("schedule")?;
    let end_time = body.string("end_time")?.map(|text| {
        Timestamp::parse(&text)
            .ok_or_else(|| ApiError::invalid("end_time: expected a time, as in 2026-11-21T09:00:00Z"))
    });
    let completed = body.choice("on_run_completed", &["delete", "keep"], OnCompletion::parse)?;
    Ok(CronRequest {
        schedule,
        timezone: body.string("timezone")?,
        end_time: end_time.transpose()?,
        enabled: body.bool("enabled")?.unwrap_or(true),
        on_run_completed: if thread.is_some() { None } else { Some(completed.unwrap_or_default()) },
        metadata: run_request::metadata(&mut Object::body(&payload)?, "metadata")?.unwrap_or_else(Json::object),
        // A tick is no part of the request that made the cron.
        run: run_request::read(&Caller { carried: Arc::default(), ..caller.clone() }, thread, body, false)?,
        payload,
    })
}

/// The body a cron is made of after a change. `context` and `config.configurable` mirror each other, so a new one of them
/// takes the place of the other, too.
fn changed(payload: &Json, changes: &Fields) -> Fields {
    let mut fields = payload.fields().unwrap_or_default();
    let mut config = fields.shift_remove("config").and_then(|config| config.fields()).unwrap_or_default();
    let mut configurable = config.shift_remove("configurable").and_then(|c| c.fields()).unwrap_or_default();
    configurable.shift_remove(OWN_KEY);
    let given = |key: &str| changes.get(key).filter(|value| !value.is_null());
    if given("context").is_some() {
        configurable.clear();
    }
    if given("config").is_some_and(|config| config.get("configurable").is_some_and(|c| !c.is_null())) {
        fields.shift_remove("context");
    }
    if !configurable.is_empty() {
        config.insert("configurable".to_owned(), Json::from(&configurable));
    }
    if !config.is_empty() {
        fields.insert("config".to_owned(), Json::from(&config));
    }
    for (key, value) in changes {
        if !value.is_null() {
            fields.insert(key.clone(), value.clone());
        } else if key == "end_time" {
            fields.shift_remove(key);
        }
    }
    fields
}

pub(in crate::http) fn document(cron: &Cron) -> ApiResult<Fields> {
    Ok(Fields::from_iter([
        ("cron_id".to_owned(), json(&cron.cron_id)?),
        ("assistant_id".to_owned(), json(&cron.assistant_id)?),
        ("thread_id".to_owned(), json(&cron.thread_id)?),
        ("user_id".to_owned(), Json::null()),
        ("end_time".to_owned(), json(&cron.end_time)?),
        ("schedule".to_owned(), json(&cron.schedule)?),
        ("timezone".to_owned(), json(&cron.timezone)?),
        ("payload".to_owned(), cron.payload.clone()),
        ("next_run_date".to_owned(), json(&cron.next_run_date)?),
        ("metadata".to_owned(), cron.metadata.clone()),
        ("on_run_completed".to_owned(), json(&cron.on_run_completed.map(OnCompletion::as_str))?),
        ("enabled".to_owned(), Json::from(cron.enabled)),
        ("created_at".to_owned(), json(&cron.created_at)?),
        ("updated_at".to_owned(), json(&cron.updated_at)?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let merged = |payload: &str, changes: &str| {
            let changes = Json::parse(changes).expect("JSON").fields().expect("an object");
            Json::from(&changed(&Json::parse(payload).expect("JSON"), &changes)).text()
        };
        let payload = r#"{"schedule":"* * * * *","end_time":"2030","config":{"configurable":{"cron_id":"x"}}}"#;
        assert_eq!(merged(payload, r#"{"end_time":null,"timezone":null}"#), r#"{"schedule":"* * * * *"}"#);
        assert_eq!(merged(r#"{"a":1}"#, r#"{"a":2,"b":null}"#), r#"{"a":2}"#);
        let payload = r#"{"config":{"tags":["t"],"configurable":{"a":1,"cron_id":"x"}}}"#;
        assert_eq!(merged(payload, r#"{"b":1}"#), r#"{"config":{"tags":["t"],"configurable":{"a":1}},"b":1}"#);
        assert_eq!(merged(payload, r#"{"context":{"c":1}}"#), r#"{"config":{"tags":["t"]},"context":{"c":1}}"#);
        let payload = r#"{"context":{"a":1},"config":{"configurable":{"cron_id":"x"}}}"#;
        let changes = r#"{"config":{"configurable":{"b":2}}}"#;
        assert_eq!(merged(payload, changes), r#"{"config":{"configurable":{"b":2}}}"#);
    }
}
