//! Agent cards: what an agent is, and where. One card serves both versions of the protocol.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::agent;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathIds;
use crate::http::query::Query;
use crate::model::Assistant;

/// `GET /a2a/{assistant_id}`, and the well-known paths below it.
pub(crate) async fn of_path(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    headers: HeaderMap,
) -> ApiResult {
    let assistant = agent(&state, &caller, path.text("assistant_id")?).await?;
    Ok(Reply(card(&assistant, &headers)).into_response())
}

/// `GET /.well-known/agent-card.json?assistant_id=`.
pub(crate) async fn of_query(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    let name = query.one("assistant_id")?;
    let name = name.ok_or_else(|| ApiError::invalid("assistant_id: field required (GET /graphs lists the graphs)"))?;
    let assistant = agent(&state, &caller, name).await?;
    Ok(Reply(card(&assistant, &headers)).into_response())
}

pub(super) fn card(assistant: &Assistant, headers: &HeaderMap) -> Value {
    let url = format!("{}/a2a/{}", origin(headers), assistant.assistant_id);
    let description = assistant.description.as_deref().unwrap_or("An assistant of this server.");
    json!({
        "name": assistant.name,
        "description": description,
        "version": assistant.version.to_string(),
        "supportedInterfaces": [
            {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
            {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "0.3"},
        ],
        "protocolVersion": "0.3.0",
        "url": url,
        "preferredTransport": "JSONRPC",
        "capabilities": {"streaming": true, "pushNotifications": false},
        "defaultInputModes": ["text/plain", "application/json"],
        "defaultOutputModes": ["text/plain"],
        "skills": [
            {"id": assistant.graph_id, "name": assistant.name, "description": description, "tags": [assistant.graph_id]},
        ],
    })
}

/// How the client reached this server; what is in front of it may have been asked with TLS.
fn origin(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_secure = text(header::HeaderName::from_static("x-forwarded-proto")).is_some_and(|proto| proto == "https");
    let scheme = if is_secure { "https" } else { "http" };
    text(header::HOST).map(|host| format!("{scheme}://{host}")).unwrap_or_default()
}
