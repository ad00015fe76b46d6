//! The server about itself: health, version, graphs.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::error::ApiResult;
use crate::http::query::Query;
use crate::model::{Scope, system_assistant_id};

/// The LangGraph whose behaviour and wire contract this server follows.
const LANGGRAPH_PY_VERSION: &str = "1.2.22";

/// `GET /ok`: 200 while the server serves; with `check_db=1` only if the database answers.
pub(super) async fn ok(State(state): State<AppState>, query: Query) -> ApiResult {
    let checks = query.bool("check_db")?.unwrap_or(false);
    health(&state, checks).await
}

/// `GET /ready`: 200 while new requests should come here; `sick` names what is not well.
pub(super) async fn ready(State(state): State<AppState>) -> ApiResult {
    health(&state, true).await
}

async fn health(state: &AppState, checks: bool) -> ApiResult {
    let mut services = serde_json::Map::new();
    let mut sick: Vec<String> = Vec::new();
    if state.settings.shutdown.is_cancelled() {
        sick.push("server: shutting down".to_owned());
    }
    if checks {
        let limit = state.settings.check_timeout;
        let ping = state.runtime.storage().ping(&Scope::Server);
        let why = match tokio::time::timeout(limit, ping).await {
            Ok(Ok(())) => None,
            // What exactly is logged; who asks here may be anybody.
            Ok(Err(error)) => {
                tracing::warn!(%error, "the database is not well");
                Some("database: cannot be reached".to_owned())
            }
            Err(_) => Some(format!("database: does not answer within {}s", limit.as_secs_f64())),
        };
        services.insert("database".to_owned(), json!(if why.is_none() { "healthy" } else { "unhealthy" }));
        sick.extend(why);
    }
    let healthy = sick.is_empty();
    if checks && state.runtime.settings().claims {
        // Others execute what is queued, and requests are answered all the same: no reason to send them elsewhere.
        let blocked = state.runtime.are_nodes_blocked();
        services.insert("nodes".to_owned(), json!(if blocked { "unhealthy" } else { "healthy" }));
        sick.extend(blocked.then(|| "nodes: every thread is blocked; no more runs are taken here".to_owned()));
    }
    if checks {
        let short = state.runtime.memory().is_short();
        services.insert("memory".to_owned(), json!(if short { "unhealthy" } else { "healthy" }));
        sick.extend(
            short.then(|| "memory: nine tenths are occupied; large requests and more runs are turned away".to_owned()),
        );
    }
    let database = state.runtime.storage().describe();
    let mut body = json!({"ok": healthy, "services": services});
    if !sick.is_empty() {
        body["sick"] = json!(sick);
    }
    if checks {
        // The detector's: nothing a balancer should act on, since other replicas see the same.
        body["stuck_runs"] = json!(state.runtime.stuck_runs().len());
    }
    if database.volatile {
        body["volatile"] = json!(true);
    }
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Reply(body)).into_response())
}

/// `GET /info`: what LangGraph Studio asks first.
pub(super) async fn info() -> Response {
    let flags = json!({
        "assistants": true,
        "crons": true,
        "langsmith": false,
        "langsmith_tracing_replicas": false,
        "langsmith_tracing_session_on_runs": false,
        // Streams of runs take `namespace`.
        "stream_namespaces": true,
    });
    let host = json!({
        "kind": "self-hosted", "project_id": null, "host_revision_id": null, "revision_id": null, "tenant_id": null,
    });
    Reply(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "langgraph_py_version": LANGGRAPH_PY_VERSION,
        "flags": flags,
        "host": host,
    }))
    .into_response()
}

/// `GET /graphs`: the graphs of this build and how to address them.
pub(super) async fn graphs(State(state): State<AppState>) -> Response {
    let list: Vec<Value> = state
        .runtime
        .graphs()
        .iter()
        .map(|graph| {
            json!({
                "name": graph.name(),
                "description": graph.description(),
                "version": graph.spec().version,
                "assistant_id": system_assistant_id(graph.name()),
                "nodes": graph.spec().nodes.keys().collect::<Vec<_>>(),
            })
        })
        .collect();
    Reply(list).into_response()
}
