//! Assistants: one per graph, their drawings and schemas (contract section 3.1).

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contain::contains;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds};
use crate::http::object::Object;
use crate::http::page;
use crate::http::query::Query;
use crate::http::select::Columns;
use crate::model::{Assistant, Fields};
use crate::runtime::{AssistantName, Runtime};

const COLUMNS: [&str; 10] = [
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
const SORTS: [&str; 5] = ["assistant_id", "created_at", "updated_at", "name", "graph_id"];

/// `POST /assistants/search`.
pub(super) async fn search(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let window = page::of_body(&mut body, page::DEFAULT_LIMIT)?;
    let columns = Columns::of_body(&mut body, &COLUMNS)?;
    let ascending = page::ascending(&mut body)?;
    let by = body.choice("sort_by", &SORTS, |word| SORTS.into_iter().find(|sort| *sort == word))?;
    let mut found = matching(&state, &caller, &mut body).await?;
    sort(&mut found, by.unwrap_or("created_at"), ascending);
    let offset = usize::try_from(window.offset).unwrap_or(usize::MAX);
    let mut rows: Vec<Assistant> = found.into_iter().skip(offset).collect();
    let more = page::cut(&mut rows, window);
    let rows: Vec<Fields> = rows.iter().map(|row| Ok(columns.apply(document(row)?))).collect::<ApiResult<_>>()?;
    Ok(page::reply(&rows, more, window))
}

/// `POST /assistants/count`.
pub(super) async fn count(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    Ok(Reply(matching(&state, &caller, &mut body).await?.len()).into_response())
}

/// `GET /assistants/{assistant_id}`.
pub(super) async fn find(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let assistant = state.runtime.find_assistant(&caller.scope, &AssistantName::Id(path.assistant()?)).await?;
    Ok(Reply(assistant).into_response())
}

/// `GET /assistants/{id or graph name}/graph`.
pub(super) async fn graph(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let levels = xray(&query)?;
    let name = AssistantName::parse(path.text("assistant_id")?);
    let assistant = state.runtime.find_assistant(&caller.scope, &name).await?;
    let drawing = draw(&state.runtime, &assistant.graph_id, levels);
    drawing.map(|drawing| Reply(drawing).into_response()).ok_or_else(|| graph_not_found(&state, &assistant.graph_id))
}

/// `GET /assistants/{assistant_id}/schemas`.
pub(super) async fn schemas(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let name = AssistantName::Id(path.assistant()?);
    let assistant = state.runtime.find_assistant(&caller.scope, &name).await?;
    let Some(graph) = state.runtime.graph(&assistant.graph_id) else {
        return Err(graph_not_found(&state, &assistant.graph_id));
    };
    let schemas = graph.schemas();
    Ok(Reply(json!({
        "graph_id": assistant.graph_id,
        "input_schema": schemas.input,
        "output_schema": schemas.output,
        "state_schema": schemas.state,
        "config_schema": schemas.config,
        "context_schema": schemas.context,
    }))
    .into_response())
}

async fn matching(state: &AppState, caller: &Caller, body: &mut Object) -> ApiResult<Vec<Assistant>> {
    let metadata = body.object("metadata")?;
    let graph_id = body.string("graph_id")?;
    let name = body.string("name")?.map(|name| name.to_lowercase());
    if let Some(graph_id) = &graph_id
        && state.runtime.graph(graph_id).is_none()
    {
        return Err(graph_not_found(state, graph_id));
    }
    let mut found = state.runtime.list_assistants(&caller.scope).await?;
    found.retain(|assistant| {
        graph_id.as_ref().is_none_or(|graph_id| assistant.graph_id == *graph_id)
            && name.as_ref().is_none_or(|name| assistant.name.to_lowercase().contains(name.as_str()))
            && metadata.as_ref().is_none_or(|part| contains(assistant.metadata.value(), part.value()))
    });
    Ok(found)
}

/// Sorts; the list comes newest first, and equal keys keep that order.
fn sort(found: &mut [Assistant], by: &str, ascending: bool) {
    found.sort_by(|a, b| {
        let order = match by {
            "assistant_id" => a.assistant_id.cmp(&b.assistant_id),
            "updated_at" => a.updated_at.cmp(&b.updated_at),
            "name" => a.name.cmp(&b.name),
            "graph_id" => a.graph_id.cmp(&b.graph_id),
            _ => a.created_at.cmp(&b.created_at),
        };
        let order = if ascending { order } else { order.reverse() };
        order.then_with(|| a.assistant_id.cmp(&b.assistant_id))
    });
}

fn document(assistant: &Assistant) -> ApiResult<Fields> {
    Ok(crate::http::document::json(assistant)?.fields().unwrap_or_default())
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
fn draw(runtime: &Runtime, graph_id: &str, _levels: usize) -> Option<Value> {
    let spec = runtime.graph(graph_id)?.spec();
    let ends = |name: &str| json!({"id": name, "type": "schema", "data": name});
    let node = |name: &String| json!({"id": name, "type": "runnable", "data": {"id": [], "name": name}});
    let mut nodes = vec![ends("__start__")];
    nodes.extend(spec.nodes.keys().map(node));
    nodes.push(ends("__end__"));
    let mut edges = Vec::new();
    for source in std::iter::once(&spec.start).chain(spec.nodes.values()) {
        let before = edges.len();
        edges.extend(source.writers.edges.iter().map(|target| json!({"source": source.name, "target": target})));
        for target in source.writers.branches.iter().flat_map(|branch| branch.targets.iter().flatten()) {
            edges.push(json!({"source": source.name, "target": target, "conditional": true}));
        }
        if edges.len() == before && !source.is_handler {
            edges.push(json!({"source": source.name, "target": "__end__"}));
        }
    }
    Some(json!({"nodes": nodes, "edges": edges}))
}
