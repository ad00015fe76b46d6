//! [`ApiError`]: the only place where a failure becomes a status code and a text for clients (contract section 1.2).

use std::any::Any;

use axum::Json as Reply;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::jsonrpc;
use crate::clock::Clock;
use crate::runtime::RuntimeError;
use crate::runtime::embed::EmbedError;
use crate::storage::StorageError;

pub(crate) type ApiResult<T = Response> = Result<T, ApiError>;

/// Why a request was not served.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// A business rule was broken (400).
    BadRequest(String),
    /// `GET /store/items` without a key: 400 in a shape of its own.
    ItemKeyMissing,
    /// No credentials (401).
    Unauthorized,
    /// Wrong credentials (403).
    Forbidden,
    /// A web page that may not call (403).
    ForbiddenOrigin(String),
    NotFound(String),
    MethodNotAllowed,
    /// The body did not arrive in time (408).
    BodyTimeout,
    Conflict(String),
    /// The process occupies too much of so many bytes (503).
    NoMemory {
        limit: u64,
    },
    /// The body exceeds so many bytes (413).
    TooLarge(usize),
    /// The request is malformed (422). The text names the field and the rule.
    Invalid(String),
    /// Nothing a client can do about it; the text is logged and never shown.
    Internal(String),
    Runtime(RuntimeError),
}

impl ApiError {
    pub(crate) fn invalid(text: impl Into<String>) -> ApiError {
        ApiError::Invalid(text.into())
    }

    pub(crate) fn thread_not_found(id: &str) -> ApiError {
        RuntimeError::ThreadNotFound(id.to_owned()).into()
    }

    pub(crate) fn not_found() -> ApiError {
        ApiError::NotFound("Not Found".to_owned())
    }

    pub(crate) fn run_not_found() -> ApiError {
        ApiError::NotFound("Run not found".to_owned())
    }

    /// Puts the place of an element of a list before the text: `[2].stream_mode: ..`.
    pub(crate) fn at(self, place: &str) -> ApiError {
        match self {
            ApiError::Invalid(text) => ApiError::Invalid(format!("{place}{text}")),
            ApiError::BadRequest(text) => ApiError::BadRequest(format!("{place}{text}")),
            other => other,
        }
    }

    /// Status and text. Logs what must not be shown.
    fn answer(self) -> (StatusCode, String) {
        match self {
            ApiError::BadRequest(text) => (StatusCode::BAD_REQUEST, text),
            ApiError::ItemKeyMissing => (StatusCode::BAD_REQUEST, "Key is required".to_owned()),
            ApiError::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "Missing credentials: send the header x-api-key, or Authorization: Bearer".to_owned(),
            ),
            ApiError::Forbidden => (StatusCode::FORBIDDEN, "Invalid credentials".to_owned()),
            ApiError::ForbiddenOrigin(origin) => (
                StatusCode::FORBIDDEN,
                format!("Origin '{origin}' is not allowed: the setting mcp.allowed_origins lists those that are"),
            ),
            ApiError::NotFound(text) => (StatusCode::NOT_FOUND, text),
            ApiError::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed".to_owned()),
            ApiError::BodyTimeout => {
                (StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time".to_owned())
            }
            ApiError::Conflict(text) => (StatusCode::CONFLICT, text),
            ApiError::NoMemory { limit } => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "There is no memory for a body of this size now (limit {limit} bytes): try again, or send less at once"
                ),
            ),
            ApiError::TooLarge(limit) => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("Request body is larger than the limit of {limit} bytes"))
            }
            ApiError::Invalid(text) => (StatusCode::UNPROCESSABLE_ENTITY, text),
            ApiError::Internal(text) => internal(&text),
            ApiError::Runtime(error) => runtime(error),
        }
    }

    /// Status and text of a refusal that closes a socket (contract section 5.4).
    pub(crate) fn into_close(self) -> (u16, String) {
        let (status, text) = self.answer();
        (status.as_u16(), text)
    }

    /// Code and text of the error in protocol v2 (contract section 5.1).
    pub(crate) fn into_protocol(self) -> (&'static str, String) {
        let is_checkpoint = matches!(self, ApiError::Runtime(RuntimeError::CheckpointNotFound(_)));
        let (status, text) = self.answer();
        let code = match status {
            _ if is_checkpoint => "no_such_checkpoint",
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "permission_denied",
            status if status.is_client_error() => "invalid_argument",
            _ => "unknown_error",
        };
        (code, text)
    }

    /// Code and text of the error in JSON-RPC.
    pub(crate) fn into_rpc(self) -> (i64, String) {
        let (status, text) = self.answer();
        (if status.is_client_error() { jsonrpc::INVALID_PARAMS } else { jsonrpc::INTERNAL_ERROR }, text)
    }

    /// The error of one item among several: its status and its text.
    pub(crate) fn into_item(self) -> (u16, String) {
        let (status, text) = self.answer();
        (status.as_u16(), text)
    }

    /// The error of a response that has already begun: `{"error", "message"}` (contract sections 3.3 and 3.6).
    pub(crate) fn into_info(self) -> Value {
        let (status, text) = self.answer();
        json!({"error": "HTTPException", "message": format!("{}: {text}", status.as_u16())})
    }
}

fn runtime(error: RuntimeError) -> (StatusCode, String) {
    let text = error.to_string();
    match error {
        // The reference's words, which clients and their tests compare.
        RuntimeError::ThreadNotFound(_) | RuntimeError::ThreadOrAssistantNotFound => (StatusCode::NOT_FOUND, text),
        RuntimeError::CronNotFound => (StatusCode::NOT_FOUND, text),
        RuntimeError::RunNotFound(_)
        | RuntimeError::InterruptNotFound(_)
        | RuntimeError::GraphNotFound(_)
        | RuntimeError::BranchNotFound(_)
        | RuntimeError::CheckpointNotFound(_) => (StatusCode::NOT_FOUND, text),
        RuntimeError::AssistantNotFound => (
            StatusCode::NOT_FOUND,
            format!("{text}. GET /graphs lists the graphs; their names are accepted as assistant_id."),
        ),
        RuntimeError::InvalidAssistant(_) => {
            (StatusCode::UNPROCESSABLE_ENTITY, format!("{text} (GET /graphs lists the graphs)"))
        }
        RuntimeError::ThreadRunning
        | RuntimeError::ThreadBusy(_)
        | RuntimeError::ThreadClosed(_)
        | RuntimeError::ThreadForeign(_)
        | RuntimeError::Conflict(_) => (StatusCode::CONFLICT, text),
        RuntimeError::BadRequest(_) | RuntimeError::Graph(_) => (StatusCode::BAD_REQUEST, text),
        RuntimeError::Invalid(_)
        | RuntimeError::InvalidNamespace(_)
        | RuntimeError::Embedding(EmbedError::Refused(_)) => (StatusCode::UNPROCESSABLE_ENTITY, text),
        RuntimeError::Embedding(EmbedError::Unavailable(_)) => {
            tracing::warn!(reason = text, "items cannot be embedded");
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        RuntimeError::Storage(StorageError::Unavailable(reason)) => {
            tracing::warn!(%reason, "storage is unavailable");
            (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable: storage cannot be reached, try again".to_owned())
        }
        RuntimeError::Storage(StorageError::KeyUsed) => (StatusCode::CONFLICT, format!("Idempotency-Key: {text}")),
        RuntimeError::Storage(_) => internal(&text),
    }
}

/// Logs the reason under an id and returns a text that holds only the id.
fn internal(reason: &str) -> (StatusCode, String) {
    let error_id = Clock::default().new_uuid();
    tracing::error!(%error_id, reason, "request failed");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Server Error (error id {error_id})"))
}

/// The answer to a request whose handler panicked.
pub(super) fn panicked(payload: Box<dyn Any + Send>) -> Response {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    ApiError::Internal(format!("panic: {text}")).into_response()
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        ApiError::Runtime(error)
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        ApiError::Runtime(RuntimeError::Storage(error))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let key = if matches!(self, ApiError::ItemKeyMissing) { "error" } else { "detail" };
        // A namespace that is malformed is told as plain text.
        let plain = matches!(self, ApiError::Runtime(RuntimeError::InvalidNamespace(_)));
        let (status, text) = self.answer();
        let mut response =
            if plain { (status, text).into_response() } else { (status, Reply(json!({key: text}))).into_response() };
        let headers = response.headers_mut();
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body is not read: the connection cannot be used again.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(error: impl Into<ApiError>) -> (u16, String) {
        let (status, text) = error.into().answer();
        (status.as_u16(), text)
    }

    #[test]
    fn errors_name_the_next_step() {
        let (status, text) = answer(RuntimeError::ThreadNotFound("user-42".into()));
        assert_eq!(status, 404);
        assert_eq!(text, "Thread with ID user-42 not found");
        let (status, text) = answer(RuntimeError::InvalidAssistant("Invalid assistant: 'x'".into()));
        assert_eq!(status, 422);
        assert!(text.contains("GET /graphs"), "{text}");
    }

    #[test]
    fn internals_are_never_shown() {
        for error in [
            StorageError::Other("SELECT * FROM secrets".into()),
            StorageError::Corrupt { table: "payloads", column: "body", id: "x".into(), reason: "secrets".into() },
        ] {
            let (status, text) = answer(error);
            assert_eq!(status, 500);
            assert!(!text.contains("secrets") && text.contains("error id"), "{text}");
        }
    }

    #[test]
    fn an_unavailable_storage_asks_to_try_again() {
        let response = ApiError::from(StorageError::Unavailable("10.0.0.7 refused".into())).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn conflicts_and_refusals_have_their_codes() {
        assert_eq!(answer(RuntimeError::ThreadRunning).0, 409);
        assert_eq!(answer(RuntimeError::ThreadBusy("t".into())).0, 409);
        assert_eq!(answer(RuntimeError::BadRequest("x".into())), (400, "x".into()));
        assert_eq!(answer(RuntimeError::Invalid("x".into())).0, 422);
        assert_eq!(answer(ApiError::TooLarge(10)), (413, "Request body is larger than the limit of 10 bytes".into()));
        let info = ApiError::run_not_found().into_info();
        assert_eq!(info, json!({"error": "HTTPException", "message": "404: Run not found"}));
    }
}
