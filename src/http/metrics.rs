//! Requests counted by route, and `GET /metrics`: everything that is counted, as Prometheus reads it.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use axum::Json as Reply;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::AppState;
use super::error::ApiResult;
use super::query::Query;
use crate::model::Scope;
use crate::runtime::metrics::{Histogram, head};

/// The forms of the answer, the first one unless `format` says otherwise.
pub(crate) const FORMATS: [&str; 2] = ["prometheus", "json"];
/// Methods of requests that are counted by themselves; others count as `other`.
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "other"];
/// Statuses that are counted by themselves; others count as 0.
const STATUSES: [u16; 24] = [
    101, 200, 201, 202, 204, 304, 400, 401, 403, 404, 405, 406, 408, 409, 412, 413, 415, 422, 429, 500, 501, 503, 504,
    0,
];

/// The requests of one method and path.
#[derive(Default)]
struct Counts {
    statuses: [AtomicU64; STATUSES.len()],
    took: Histogram,
}

/// All requests.
pub(crate) struct Requests {
    routes: HashMap<&'static str, [Counts; METHODS.len()]>,
    /// Of paths that lead nowhere.
    unknown: [Counts; METHODS.len()],
}

impl Requests {
    pub(super) fn of(paths: impl Iterator<Item = &'static str>) -> Requests {
        Requests { routes: paths.map(|path| (path, Default::default())).collect(), unknown: Default::default() }
    }

    fn counts(&self, path: Option<&MatchedPath>, method: &Method) -> &Counts {
        let counts = path.and_then(|path| self.routes.get(path.as_str())).unwrap_or(&self.unknown);
        let at = METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1);
        &counts[at]
    }

    /// All of them, by path and method.
    fn each(&self) -> Vec<(&str, &str, &Counts)> {
        let mut routes: Vec<(&str, &[Counts; METHODS.len()])> =
            self.routes.iter().map(|(path, counts)| (*path, counts)).collect();
        routes.push(("(none)", &self.unknown));
        routes.sort_by_key(|(path, _)| *path);
        let mut each = Vec::with_capacity(routes.len() * METHODS.len());
        for (path, counts) in routes {
            each.extend(METHODS.iter().zip(counts).map(|(method, counts)| (path, *method, counts)));
        }
        each
    }

    /// How many there were, and how many of them failed here.
    fn totals(&self) -> (u64, u64) {
        let mut totals = (0, 0);
        for (_, _, counts) in self.each() {
            for (status, count) in STATUSES.iter().zip(&counts.statuses) {
                let count = count.load(Relaxed);
                totals.0 += count;
                totals.1 += if *status >= 500 { count } else { 0 };
            }
        }
        totals
    }

    fn write(&self, text: &mut String) {
        let each = self.each();
        let name = "session_store_http_requests_total";
        head(text, name, "counter", "Requests by path, method and status; status 0: a rare one");
        for (path, method, counts) in &each {
            for (status, count) in STATUSES.iter().zip(&counts.statuses) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let labels = format!("path=\"{path}\",method=\"{method}\",status=\"{status}\"");
                    let _ = writeln!(text, "{name}{{{labels}}} {count}");
                }
            }
        }
        let name = "session_store_http_request_seconds";
        head(text, name, "histogram", "How long requests took until their answers began");
        for (path, method, counts) in &each {
            counts.took.write(text, name, &format!("path=\"{path}\",method=\"{method}\""));
        }
    }
}

/// Counts a request when its answer begins.
pub(super) async fn count(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let began = state.runtime.clock().instant();
    let response = next.run(request).await;
    let counts = state.requests.counts(path.as_ref(), &method);
    let status = response.status();
    let at = STATUSES.iter().position(|known| *known == status.as_u16()).unwrap_or(STATUSES.len() - 1);
    counts.statuses[at].fetch_add(1, Relaxed);
    counts.took.observe(began.elapsed());
    response
}

/// `GET /metrics`. What the database knows is left out while it does not answer.
pub(crate) async fn show(State(state): State<AppState>, query: Query) -> ApiResult {
    let place = |word: &str| FORMATS.iter().position(|known| *known == word);
    let is_json = query.choice("format", &FORMATS, place)? == Some(1);
    let storage = state.runtime.storage();
    let counted = tokio::time::timeout(state.settings.check_timeout, storage.count_active(&Scope::Server)).await;
    let queue = counted.ok().and_then(Result::ok);
    let places = state.runtime.places();
    if is_json {
        let (pending, running) = queue.unzip();
        let active = places.all.saturating_sub(places.free);
        let (requests, errors) = state.requests.totals();
        let body = json!({
            "api": {"n_requests": requests, "n_errors": errors},
            "queue": {"n_pending": pending, "n_running": running},
            "workers": {"max": places.all, "active": active, "available": places.free},
        });
        return Ok(Reply(body).into_response());
    }
    let mut text = String::with_capacity(16 * 1024);
    state.requests.write(&mut text);
    state.runtime.metrics().write(&mut text);
    gauge(&mut text, "session_store_database_up", "1 while the database answers", u8::from(queue.is_some()));
    if let Some((pending, running)) = queue {
        gauge(&mut text, "session_store_runs_pending", "Runs of all processes that wait to be executed", pending);
        gauge(&mut text, "session_store_runs_running", "Runs of all processes that are executed", running);
    }
    gauge(&mut text, "session_store_run_slots", "Runs that this process executes at once", places.all);
    gauge(&mut text, "session_store_run_slots_free", "How many more it would take now", places.free);
    let stuck = state.runtime.stuck_runs().len();
    gauge(&mut text, "session_store_stuck_runs", "Runs that nothing moves, 100 at most", stuck);
    let pool = storage.connections();
    gauge(&mut text, "session_store_database_connections", "Open connections to the database", pool.open);
    gauge(&mut text, "session_store_database_connections_idle", "Open connections that nobody uses", pool.idle);
    gauge(&mut text, "session_store_database_connections_max", "Connections that may be open", pool.most);
    let name = "session_store_database_writes_total";
    head(&mut text, name, "counter", "Write transactions that this process committed");
    let _ = writeln!(text, "{name} {}", storage.write_transactions());
    process(&mut text, &state);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

fn gauge(text: &mut String, name: &str, help: &str, value: impl std::fmt::Display) {
    head(text, name, "gauge", help);
    let _ = writeln!(text, "{name} {value}");
}

/// The process by the names that exporters of other languages use.
fn process(text: &mut String, state: &AppState) {
    let started = state.runtime.started_at().0 as f64 / 1e6;
    gauge(text, "process_start_time_seconds", "When the process started", started);
    // Linux tells; elsewhere it is left out.
    let memory = state.runtime.memory();
    if let Some(bytes) = memory.resident() {
        gauge(text, "process_resident_memory_bytes", "Memory that the process occupies", bytes);
    }
    if let Some(bytes) = memory.limit() {
        gauge(text, "session_store_memory_limit_bytes", "Memory that the process may occupy", bytes);
    }
    let name = "session_store_requests_turned_away_total";
    head(text, name, "counter", "Requests that there was no memory for");
    let _ = writeln!(text, "{name} {}", memory.turned_away());
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        gauge(text, "process_open_fds", "File descriptors that are open", open.count());
    }
    let name = "session_store_build_info";
    head(text, name, "gauge", "1; what is running");
    let _ = writeln!(text, "{name}{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
}
