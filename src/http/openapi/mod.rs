//! `/openapi.json`: what every route takes and answers, in OpenAPI 3.1.
//!
//! A route is mounted and described by one [`Route`]: there is no other way to mount one, so none can be forgotten.
//! Bodies are read member by member ([`super::object`]), not derived, so their description is written by hand, one file
//! per noun in [`paths`]; that it is true is tested from both sides. `http/tests/described.rs` compares the members and
//! parameters that handlers read with those described and probes every limit; the integration tests hold every answer
//! they get against the schemas.

mod components;
mod operation;
pub(super) mod paths;
mod schema;

use std::sync::LazyLock;

use axum::Router;
use axum::body::Bytes;
use axum::handler::Handler;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use serde_json::{Map, Value, json};

use operation::Operation;

use super::{AppState, auth};

/// How a method of a path is served, and what is said about it.
pub(super) struct Route {
    path: &'static str,
    method: Method,
    serve: MethodRouter<AppState>,
    operation: Operation,
}

impl Route {
    fn new(path: &'static str, method: Method, serve: MethodRouter<AppState>, operation: Operation) -> Route {
        Route { path, method, serve, operation }
    }

    pub(super) fn path(&self) -> &'static str {
        self.path
    }
}

pub(super) fn get<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H, says: Operation) -> Route {
    Route::new(path, Method::GET, routing::get(handler), says)
}

pub(super) fn post<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H, says: Operation) -> Route {
    Route::new(path, Method::POST, routing::post(handler), says)
}

pub(super) fn put<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H, says: Operation) -> Route {
    Route::new(path, Method::PUT, routing::put(handler), says)
}

pub(super) fn patch<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H, says: Operation) -> Route {
    Route::new(path, Method::PATCH, routing::patch(handler), says)
}

pub(super) fn delete<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H, says: Operation) -> Route {
    Route::new(path, Method::DELETE, routing::delete(handler), says)
}

/// All routes as a router.
pub(super) fn mount(routes: Vec<Route>) -> Router<AppState> {
    routes.into_iter().fold(Router::new(), |router, route| router.route(route.path, route.serve))
}

/// `GET /openapi.json`.
pub(super) async fn serve() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(document().to_string()));
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

/// `GET /docs`: a page that shows the document. It loads nothing from elsewhere.
pub(super) async fn docs() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    (headers, include_str!("docs.html")).into_response()
}

/// The document of this build.
pub(super) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in super::routes::table() {
        let is_open = auth::OPEN.contains(&route.path);
        let operation = route.operation.render(route.path, &route.method, is_open);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": env!("CARGO_PKG_LICENSE")},
        },
        "security": [{"apiKey": []}, {"bearer": []}, {}],
        "tags": paths::TAGS.map(|(name, about)| json!({"name": name, "description": about})),
        "paths": paths,
        "components": components::all(),
    })
}

const ABOUT: &str = "A self-hosted session store and runtime for LangGraph-style agents, with the API of the LangGraph \
    Server. Bodies are JSON whatever their Content-Type; members that are null count as absent and unknown ones are \
    ignored. Lengths of texts are limits in bytes. A key is only needed where the server has keys.";
