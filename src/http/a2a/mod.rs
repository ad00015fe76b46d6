//! `/a2a/{assistant_id}`: every assistant whose graph has `messages` is an agent of the Agent2Agent protocol, over
//! JSON-RPC (contract section 3.10): version 1.0, and 0.3 in its own words. A context is a thread, a task is a run
//! (`thread:run`), and nothing else is kept.

mod card;
mod send;
mod tasks;
mod wire;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{AnyBody, PathIds};
use super::jsonrpc::{Message, PARSE_ERROR, Refusal, Request, answer, failure};
use super::query::Query;
use crate::model::{Assistant, Json};
use crate::runtime::{AssistantName, RuntimeError};
use wire::{Dialect, NO_PUSH_NOTIFICATIONS, UNSUPPORTED_OPERATION};

pub(crate) use card::{of_path, of_query};

/// What is asked, in the words of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Send,
    Stream,
    Get,
    Cancel,
    List,
    Card,
    /// Push notifications: there are none.
    Push,
    Resubscribe,
}

impl Method {
    fn parse(name: &str) -> Option<(Method, Dialect)> {
        Some(match name {
            "SendMessage" => (Method::Send, Dialect::V1),
            "message/send" => (Method::Send, Dialect::V03),
            "SendStreamingMessage" => (Method::Stream, Dialect::V1),
            "message/stream" => (Method::Stream, Dialect::V03),
            "GetTask" => (Method::Get, Dialect::V1),
            "tasks/get" => (Method::Get, Dialect::V03),
            "CancelTask" => (Method::Cancel, Dialect::V1),
            "tasks/cancel" => (Method::Cancel, Dialect::V03),
            "ListTasks" => (Method::List, Dialect::V1),
            "tasks/list" => (Method::List, Dialect::V03),
            "GetExtendedAgentCard" => (Method::Card, Dialect::V1),
            "agent/getAuthenticatedExtendedCard" => (Method::Card, Dialect::V03),
            "SubscribeToTask" => (Method::Resubscribe, Dialect::V1),
            "tasks/resubscribe" => (Method::Resubscribe, Dialect::V03),
            name if name.starts_with("tasks/pushNotificationConfig/") => (Method::Push, Dialect::V03),
            name if name.contains("TaskPushNotificationConfig") => (Method::Push, Dialect::V1),
            _ => return None,
        })
    }
}

/// `POST /a2a/{assistant_id}`: one message.
pub(crate) async fn message(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    headers: axum::http::HeaderMap,
    query: Query,
    body: Result<AnyBody, ApiError>,
) -> ApiResult {
    let body = match body {
        Ok(AnyBody(body)) => body,
        Err(ApiError::Invalid(text)) => return Ok(refused(&failure(&Json::null(), &Refusal::new(PARSE_ERROR, text)))),
        Err(other) => return Err(other),
    };
    let request = match Message::read(&body) {
        Ok(Message::Request(request)) => request,
        Ok(Message::Quiet) => return Ok(StatusCode::ACCEPTED.into_response()),
        Err(answer) => return Ok(refused(&answer)),
    };
    let assistant = agent(&state, &caller, path.text("assistant_id")?).await?;
    let Request { id, method, params } = request;
    let Some((method, dialect)) = Method::parse(&method) else {
        return Ok(Reply(failure(&id, &Refusal::method_not_found(&method))).into_response());
    };
    let result = match method {
        Method::Send => {
            let pretty = query.flag("pretty");
            return Ok(send::message(&state, &caller, &assistant, id, params, dialect, pretty).await);
        }
        Method::Stream => return Ok(send::stream(&state, &caller, &assistant, id, params, dialect).await),
        Method::Get => tasks::get(&state, &caller, &assistant, params, dialect).await,
        Method::Cancel => tasks::cancel(&state, &caller, &assistant, params, dialect).await,
        Method::List => tasks::list(&state, &caller, &assistant, params, dialect).await,
        Method::Card => Ok(Json::from(card::card(&assistant, &headers))),
        Method::Push => Err(Refusal::new(NO_PUSH_NOTIFICATIONS, "Push notifications are not supported")),
        Method::Resubscribe => {
            Err(Refusal::new(UNSUPPORTED_OPERATION, "A task cannot be subscribed to: get it instead"))
        }
    };
    Ok(Reply(answer(&id, result)).into_response())
}

fn refused(answer: &Json) -> Response {
    (StatusCode::BAD_REQUEST, Reply(answer)).into_response()
}

/// The assistant in a path, if it can talk.
async fn agent(state: &AppState, caller: &Caller, name: &str) -> ApiResult<Assistant> {
    let found = state.runtime.find_assistant(&caller.scope, &AssistantName::parse(name)).await;
    let assistant = found.map_err(|error| match error {
        RuntimeError::InvalidAssistant(text) => ApiError::NotFound(text),
        error => error.into(),
    })?;
    let schema = state.runtime.graph(&assistant.graph_id).map(|graph| &graph.schemas().input);
    if schema.is_some_and(|schema| schema.pointer("/properties/messages").is_some()) {
        return Ok(assistant);
    }
    let graph = &assistant.graph_id;
    Err(ApiError::BadRequest(format!("Graph '{graph}' has no `messages` in its input: it cannot be an agent")))
}
