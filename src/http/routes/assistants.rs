//! Assistants: made, found, changed in versions; their graphs' drawings and schemas (contract section 3.1).

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds};
use crate::http::object::Object;
use crate::http::page;
use crate::http::query::Query;
use crate::http::run_request::{MAX_METADATA_BYTES, given_config, metadata};
use crate::http::select::Columns;
use crate::model::{Assistant, Fields, Json};
use crate::runtime::{AssistantName, Runtime, RuntimeError};
use crate::storage::idempotency;
use crate::storage::{AssistantFilter, AssistantPatch, AssistantSort, NewAssistant};

pub(in crate::http) const COLUMNS: [&str; 10] = [
    "assistant_id",
    "graph_id",
    "config",
    "context",
    "metadata",
    "name",
    "description",
    "created_at",
    "updated_at",
    "version",
];
pub(in crate::http) const SORTS: [&str; 5] = ["assistant_id", "created_at", "updated_at", "name", "graph_id"];

/// `POST /assistants`.
pub(super) async fn create(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let graph_id = known_graph(&state, &mut body)?.ok_or_else(|| body.missing("graph_id"))?;
    let keep_existing = body
        .choice("if_exists", &["raise", "do_nothing"], |word| match word {
            "do_nothing" => Some(true),
            "raise" => Some(false),
            _ => None,
        })?
        .unwrap_or(false);
    let given = given_config(&mut body)?;
    let mut config = given.config.unwrap_or_default();
    if !given.configurable.is_empty() {
        config.insert("configurable".to_owned(), Json::from(&given.configurable));
    }
    let new = NewAssistant {
        created_at: None,
        assistant_id: body.uuid("assistant_id")?.unwrap_or_else(|| state.runtime.clock().new_uuid()),
        graph_id,
        name: body.string("name")?.unwrap_or_else(|| "Untitled".to_owned()),
        description: body.string("description")?,
        config: small("config", Json::from(&config))?,
        context: Json::from(&given.configurable),
        metadata: metadata(&mut body, "metadata")?.unwrap_or_else(Json::object),
    };
    idempotency::leads_to(|| format!("/assistants/{}", new.assistant_id));
    Ok(Reply(state.runtime.create_assistant(&caller.scope, new, keep_existing).await?).into_response())
}

/// `POST /assistants/search`.
pub(super) async fn search(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let window = page::of_body(&mut body, page::DEFAULT_LIMIT)?;
    let columns = Columns::of_body(&mut body, &COLUMNS)?;
    let ascending = page::ascending(&mut body)?;
    let sort = body.choice("sort_by", &SORTS, parse_sort)?.unwrap_or_default();
    let filter = filter(&state, &mut body)?;
    let wanted = page::with_one_more(window);
    let mut rows = state.runtime.search_assistants(&caller.scope, &filter, sort, ascending, wanted).await?;
    let more = page::cut(&mut rows, window);
    let rows: Vec<Fields> = rows.iter().map(|row| Ok(columns.apply(document(row)?))).collect::<ApiResult<_>>()?;
    Ok(page::reply(&rows, more, window))
}

/// `POST /assistants/count`.
pub(super) async fn count(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let filter = filter(&state, &mut body)?;
    Ok(Reply(state.runtime.count_assistants(&caller.scope, &filter).await?).into_response())
}

/// `GET /assistants/{assistant_id}`.
pub(super) async fn find(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let name = AssistantName::Id(path.assistant()?);
    Ok(Reply(state.runtime.find_assistant(&caller.scope, &name).await.map_err(unknown)?).into_response())
}

/// `PATCH /assistants/{assistant_id}`: every change is a new version.
pub(super) async fn update(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let id = path.assistant()?;
    let graph_id = known_graph(&state, &mut body)?;
    let given = given_config(&mut body)?;
    let config = given.config.map(|mut config| {
        if !given.configurable.is_empty() {
            config.insert("configurable".to_owned(), Json::from(&given.configurable));
        }
        Json::from(&config)
    });
    // An empty context beside a config says nothing.
    let has_context = given.has_context && (config.is_none() || !given.configurable.is_empty());
    let patch = AssistantPatch {
        graph_id,
        name: body.string("name")?,
        description: body.string("description")?,
        config: config.map(|config| small("config", config)).transpose()?,
        context: has_context.then(|| small("context", Json::from(&given.configurable))).transpose()?,
        metadata: metadata(&mut body, "metadata")?,
    };
    Ok(Reply(state.runtime.update_assistant(&caller.scope, id, patch).await.map_err(unknown)?).into_response())
}

/// `DELETE /assistants/{assistant_id}`.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let id = path.assistant()?;
    let threads = query.bool("delete_threads")?.unwrap_or(false);
    state.runtime.delete_assistant(&caller.scope, id, threads, caller.actor.clone()).await.map_err(unknown)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /assistants/{assistant_id}/versions`.
pub(super) async fn versions(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let id = path.assistant()?;
    let window = page::of_body(&mut body, page::DEFAULT_LIMIT)?;
    let part = body.object("metadata")?;
    let versions = state.runtime.assistant_versions(&caller.scope, id, part.as_ref(), window).await.map_err(unknown)?;
    let rows: Vec<Fields> = versions
        .iter()
        .map(|version| {
            let mut row = document(version)?;
            row.shift_remove("updated_at");
            Ok(row)
        })
        .collect::<ApiResult<_>>()?;
    Ok(Reply(rows).into_response())
}

/// `POST /assistants/{assistant_id}/latest`.
pub(super) async fn set_latest(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let id = path.assistant()?;
    let version = body.integer("version", 1..=i64::MAX)?.ok_or_else(|| body.missing("version"))?;
    let assistant = state.runtime.set_assistant_version(&caller.scope, id, version).await.map_err(unknown)?;
    Ok(Reply(assistant).into_response())
}

/// `GET /assistants/{id or graph name}/graph`.
pub(super) async fn graph(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let levels = xray(&query)?;
    let name = AssistantName::parse(path.text("assistant_id")?);
    let assistant = state.runtime.find_assistant(&caller.scope, &name).await.map_err(unknown)?;
    let drawing = draw(&state.runtime, &assistant.graph_id, levels);
    drawing.map(|drawing| Reply(drawing).into_response()).ok_or_else(|| graph_not_found(&state, &assistant.graph_id))
}

/// `GET /assistants/{assistant_id}/schemas`.
pub(super) async fn schemas(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let graph_id = graph_of(&state, &caller, path.assistant()?).await?;
    let graph = state.runtime.graph(&graph_id).ok_or_else(|| graph_not_found(&state, &graph_id))?;
    let mut document = json!(graph.schemas());
    document["graph_id"] = Value::from(graph_id);
    Ok(Reply(document).into_response())
}

/// `GET /assistants/{assistant_id}/subgraphs`.
pub(super) async fn subgraphs(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    below(&state, &caller, path.assistant()?, None, &query).await
}

/// `GET /assistants/{assistant_id}/subgraphs/{namespace}`: that one alone; none when the graph has no such subgraph.
pub(super) async fn subgraphs_below(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
) -> ApiResult {
    below(&state, &caller, path.assistant()?, Some(path.text("namespace")?), &query).await
}

async fn below(state: &AppState, caller: &Caller, id: Uuid, namespace: Option<&str>, query: &Query) -> ApiResult {
    let recurse = query.bool("recurse")?.unwrap_or(false);
    let graph_id = graph_of(state, caller, id).await?;
    let graph = state.runtime.graph(&graph_id).ok_or_else(|| graph_not_found(state, &graph_id))?;
    let found: Map<String, Value> = graph
        .descendants(recurse || namespace.is_some())
        .into_iter()
        .filter(|(ns, _)| namespace.is_none_or(|wanted| wanted == ns))
        .map(|(ns, child)| (ns, json!(child.schemas())))
        .collect();
    Ok(Reply(found).into_response())
}

async fn graph_of(state: &AppState, caller: &Caller, id: Uuid) -> ApiResult<String> {
    let found = state.runtime.find_assistant(&caller.scope, &AssistantName::Id(id)).await;
    Ok(found.map_err(unknown)?.graph_id)
}

fn filter(state: &AppState, body: &mut Object) -> ApiResult<AssistantFilter> {
    Ok(AssistantFilter {
        metadata: body.object("metadata")?,
        graph_id: known_graph(state, body)?,
        name: body.string("name")?,
    })
}

/// `graph_id`: a graph of this build.
fn known_graph(state: &AppState, body: &mut Object) -> ApiResult<Option<String>> {
    let Some(graph_id) = body.string("graph_id")? else { return Ok(None) };
    match state.runtime.graph(&graph_id) {
        Some(_) => Ok(Some(graph_id)),
        None => Err(graph_not_found(state, &graph_id)),
    }
}

/// Refuses what is larger than metadata may be: every version keeps a copy.
fn small(field: &str, json: Json) -> ApiResult<Json> {
    if json.as_raw().get().len() > MAX_METADATA_BYTES {
        return Err(ApiError::invalid(format!("{field}: larger than {MAX_METADATA_BYTES} bytes")));
    }
    Ok(json)
}

fn parse_sort(word: &str) -> Option<AssistantSort> {
    Some(match word {
        "assistant_id" => AssistantSort::AssistantId,
        "created_at" => AssistantSort::CreatedAt,
        "updated_at" => AssistantSort::UpdatedAt,
        "name" => AssistantSort::Name,
        "graph_id" => AssistantSort::GraphId,
        _ => return None,
    })
}

fn document(assistant: &Assistant) -> ApiResult<Fields> {
    Ok(crate::http::document::json(assistant)?.fields().unwrap_or_default())
}

/// An id nobody has: in the contract's words.
fn unknown(error: RuntimeError) -> ApiError {
    match error {
        RuntimeError::AssistantNotFound => ApiError::not_found(),
        error => error.into(),
    }
}

fn graph_not_found(state: &AppState, graph_id: &str) -> ApiError {
    let names: Vec<String> = state.runtime.graphs().iter().map(|graph| format!("'{}'", graph.name())).collect();
    let shown: String = graph_id.chars().take(64).collect();
    ApiError::NotFound(format!(
        "Graph '{shown}' not found. Expected one of: [{}]. GET /graphs describes them.",
        names.join(", ")
    ))
}

/// How many levels of subgraphs to draw: `xray=true` is all of them.
fn xray(query: &Query) -> ApiResult<usize> {
    match query.one("xray")?.map(str::to_ascii_lowercase).as_deref() {
        None | Some("false") => Ok(0),
        Some("true") => Ok(usize::MAX),
        Some(_) => query.integer("xray", 1..=1000).map(|levels| levels.unwrap_or(0) as usize),
    }
}

/// The drawing of a graph (contract section 2). The only place that draws.
fn draw(runtime: &Runtime, graph_id: &str, levels: usize) -> Option<Value> {
    serde_json::to_value(runtime.graph(graph_id)?.drawing(levels)).ok()
}
