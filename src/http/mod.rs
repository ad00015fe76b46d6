//! How it is asked for: routes, wire formats, status codes, event streams. The contract is that of the LangGraph Server
//! (README, "Sources"); section numbers in comments are those of `http-api.md`.
//!
//! A request passes: path normalization, request id, span and access line, CORS, `?pretty`, panics, authentication,
//! admission, idempotency, then its route. Handlers read (`extract`, `object`, `query`), ask the [`Runtime`] or, for plain rows, the storage
//! behind it, and render (`document`, `sse`, `keepalive`). Only `error` knows status codes of failures.

mod a2a;
mod admission;
mod auth;
mod carried;
mod contain;
mod cursor;
mod document;
mod error;
mod extract;
mod feed;
mod idempotency;
mod jsonrpc;
mod keepalive;
mod mcp;
mod metrics;
mod named_headers;
mod object;
mod openapi;
mod origin;
mod page;
mod pretty;
mod protocol;
mod query;
mod reserved;
mod routes;
mod run_request;
mod select;
mod sse;
mod stream_end;
mod trace;
mod typed;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, header};
use axum::middleware::from_fn_with_state;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower::util::MapRequestLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, AllowPrivateNetwork, CorsLayer};
use tower_http::request_id::{PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;

pub use auth::ApiKey;
pub use named_headers::HeaderPatterns;

use crate::runtime::Runtime;

/// Settings of the HTTP layer; the defaults are those of `config.toml`.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// The largest request body in bytes.
    pub body_limit: usize,
    /// How long a request body may take to arrive.
    pub body_timeout: Duration,
    /// Keys that open the server; none: everybody may ask for everything.
    pub api_keys: Vec<ApiKey>,
    /// Headers that runs find in their `configurable`.
    pub configurable_headers: HeaderPatterns,
    /// Web pages of other machines that may speak MCP, as in `https://app.example.com`; `*`: all.
    pub mcp_origins: Vec<String>,
    /// How often an idle stream or a long answer shows that it is alive. Clients learn this rhythm: keep it steady.
    pub heartbeat: Duration,
    /// How long `/ok?check_db=1` waits for the database.
    pub check_timeout: Duration,
    /// Cancelled when the server stops: streams end, answers in progress break off.
    pub shutdown: CancellationToken,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings {
            body_limit: 32 * 1024 * 1024,
            body_timeout: Duration::from_secs(120),
            api_keys: Vec::new(),
            configurable_headers: HeaderPatterns::default(),
            mcp_origins: Vec::new(),
            heartbeat: Duration::from_secs(5),
            check_timeout: Duration::from_secs(5),
            shutdown: CancellationToken::new(),
        }
    }
}

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) runtime: Runtime,
    pub(crate) settings: Arc<HttpSettings>,
    pub(crate) requests: Arc<metrics::Requests>,
}

/// The whole HTTP interface.
pub fn router(runtime: Runtime, settings: HttpSettings) -> Router {
    let requests = Arc::new(metrics::Requests::of(routes::paths()));
    let state = AppState { runtime: runtime.clone(), settings: Arc::new(settings), requests };
    let api_key = HeaderName::from_static("x-api-key");
    let routes = routes::all()
        .layer(from_fn_with_state(state.clone(), idempotency::once))
        .layer(from_fn_with_state(state.clone(), admission::admit))
        .layer(from_fn_with_state(state.clone(), auth::authenticate))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn_with_state(state.clone(), pretty::prettify))
        .layer(cors())
        .layer(from_fn_with_state(state.clone(), metrics::count))
        .layer(PropagateRequestIdLayer::new(trace::X_REQUEST_ID))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(trace::span)
                .on_response(trace::log_response::<Body>)
                .on_request(())
                .on_failure(()),
        )
        .layer(SetRequestIdLayer::new(trace::X_REQUEST_ID, trace::RequestIds(runtime)))
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION, api_key]))
        .with_state(state);
    // Layers of a router run after its routing; a path must be normal before.
    let normalized = ServiceBuilder::new().layer(MapRequestLayer::new(trace::normalize)).service(routes);
    Router::new().fallback_service(normalized)
}

/// Browsers of any origin may call; no cookies are involved.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::any())
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            page::X_PAGINATION_TOTAL,
            page::X_PAGINATION_NEXT,
            header::CONTENT_LOCATION,
            header::LOCATION,
            trace::X_REQUEST_ID,
        ])
        // Pages of the open web may call a server on the machine or in the network of whoever looks at them.
        .allow_private_network(AllowPrivateNetwork::yes())
        .vary([
            header::ORIGIN,
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            HeaderName::from_static("access-control-request-private-network"),
        ])
        .max_age(Duration::from_secs(600))
}

#[cfg(test)]
mod tests;
