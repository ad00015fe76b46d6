//! The table of routes: one file per noun, as in the clients.

pub(super) mod assistants;
mod branches;
mod checkpoints;
pub(super) mod crons;
mod effects;
pub(super) mod executions;
mod explain;
pub(super) mod foreign;
pub(super) mod interrupts;
pub(super) mod quarantine;
pub(super) mod retention;
pub(super) mod runs;
mod session;
mod sessions;
pub(super) mod stateless_runs;
pub(super) mod store;
mod system;
mod thread_events;
pub(super) mod thread_search;
mod thread_socket;
pub(super) mod thread_state;
pub(super) mod threads;
pub(super) mod webhooks;

use axum::Router;
use axum::extract::Request;

use super::AppState;
use super::a2a;
use super::error::ApiError;
use super::extract::discard;
use super::mcp;
use super::metrics;
use super::openapi::{self, Route, delete, get, patch, paths as says, post, put};

pub(super) fn all() -> Router<AppState> {
    openapi::mount(table()).fallback(unknown_path).method_not_allowed_fallback(wrong_method)
}

/// The paths of all routes; one may come more than once.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    table().into_iter().map(|route| route.path())
}

/// Every route: its path, its handler, and what `/openapi.json` says about it.
pub(super) fn table() -> Vec<Route> {
    let mut routes = vec![
        get("/", system::ok, says::system::root()),
        get("/ok", system::ok, says::system::ok()),
        get("/ready", system::ready, says::system::ready()),
        get("/info", system::info, says::system::info()),
        get("/metrics", metrics::show, says::system::metrics()),
        get("/graphs", system::graphs, says::system::graphs()),
        get("/docs", openapi::docs, says::system::docs()),
        get("/openapi.json", openapi::serve, says::system::openapi()),
        get("/quarantine", quarantine::list, says::quarantine::list_quarantine()),
        post("/quarantine/release", quarantine::release, says::quarantine::release()),
        get("/webhooks", webhooks::list, says::webhooks::list_webhooks()),
        post("/webhooks/redrive", webhooks::redrive, says::webhooks::redrive()),
    ];
    routes.extend(assistant_routes());
    routes.extend(thread_routes());
    routes.extend(checkpoint_routes());
    routes.extend(branch_routes());
    routes.extend(run_routes());
    routes.extend(cron_routes());
    routes.extend(interrupt_routes());
    routes.extend(store_routes());
    routes.extend(agent_routes());
    routes
}

async fn unknown_path(request: Request) -> ApiError {
    discard(request).await;
    ApiError::not_found()
}

async fn wrong_method(request: Request) -> ApiError {
    discard(request).await;
    ApiError::MethodNotAllowed
}

fn assistant_routes() -> Vec<Route> {
    vec![
        post("/assistants", assistants::create, says::assistants::create()),
        post("/assistants/search", assistants::search, says::assistants::search()),
        post("/assistants/count", assistants::count, says::assistants::count()),
        get("/assistants/{assistant_id}", assistants::find, says::assistants::find()),
        patch("/assistants/{assistant_id}", assistants::update, says::assistants::update()),
        delete("/assistants/{assistant_id}", assistants::delete, says::assistants::delete()),
        post("/assistants/{assistant_id}/versions", assistants::versions, says::assistants::versions()),
        post("/assistants/{assistant_id}/latest", assistants::set_latest, says::assistants::set_latest()),
        get("/assistants/{assistant_id}/subgraphs", assistants::subgraphs, says::assistants::subgraphs()),
        get(
            "/assistants/{assistant_id}/subgraphs/{namespace}",
            assistants::subgraphs_below,
            says::assistants::subgraphs_below(),
        ),
        get("/assistants/{assistant_id}/graph", assistants::graph, says::assistants::graph()),
        get("/assistants/{assistant_id}/schemas", assistants::schemas, says::assistants::schemas()),
    ]
}

fn thread_routes() -> Vec<Route> {
    vec![
        post("/threads", threads::create, says::threads::create()),
        post("/threads/search", thread_search::search, says::threads::search()),
        post("/threads/count", thread_search::count, says::threads::count()),
        post("/threads/prune", retention::prune, says::threads::prune()),
        get("/threads/{thread_id}", threads::find, says::threads::find()),
        patch("/threads/{thread_id}", threads::update, says::threads::update()),
        delete("/threads/{thread_id}", threads::delete, says::threads::delete()),
        post("/threads/{thread_id}/copy", threads::copy, says::threads::copy()),
        get("/threads/{thread_id}/storage", retention::storage, says::threads::storage()),
        get("/threads/{thread_id}/session", session::find, says::session::find()),
        post("/threads/{thread_id}/end", sessions::end, says::sessions::end()),
        post("/threads/{thread_id}/archive", sessions::archive, says::sessions::archive()),
        post("/threads/{thread_id}/reopen", sessions::reopen, says::sessions::reopen()),
        get("/threads/{thread_id}/state", thread_state::latest, says::state::latest()),
        post("/threads/{thread_id}/state", thread_state::update, says::state::update()),
        patch("/threads/{thread_id}/state", thread_state::patch, says::state::patch()),
        post("/threads/{thread_id}/state/checkpoint", thread_state::at_cursor, says::state::at_cursor()),
        get("/threads/{thread_id}/state/{checkpoint_id}", thread_state::at_checkpoint, says::state::at_checkpoint()),
        get("/threads/{thread_id}/history", thread_state::recent_history, says::state::recent_history()),
        post("/threads/{thread_id}/history", thread_state::history, says::state::history()),
        post("/threads/{thread_id}/commands", thread_events::command, says::events::command()),
        post("/threads/{thread_id}/stream/events", thread_events::subscribe, says::events::subscribe()),
        get("/threads/{thread_id}/stream/events", thread_socket::connect, says::events::connect()),
        get("/threads/{thread_id}/stream", thread_events::join, says::events::join()),
    ]
}

fn checkpoint_routes() -> Vec<Route> {
    vec![
        get("/threads/{thread_id}/checkpoints", checkpoints::list, says::checkpoints::list()),
        get("/threads/{thread_id}/effects", effects::list, says::effects::list()),
        get("/threads/{thread_id}/log", executions::list, says::executions::list()),
        post("/threads/{thread_id}/checkpoints", foreign::put, says::foreign::put()),
        get("/threads/{thread_id}/checkpoints/{checkpoint_id}", checkpoints::find, says::checkpoints::find()),
        post("/threads/{thread_id}/checkpoints/writes", foreign::put_writes, says::foreign::put_writes()),
        post("/threads/{thread_id}/checkpoints/batch", foreign::batch, says::foreign::batch()),
        post("/threads/{thread_id}/checkpoints/search", foreign::search, says::foreign::search()),
        post("/threads/{thread_id}/checkpoints/deltas", foreign::deltas, says::foreign::deltas()),
        post("/threads/{thread_id}/checkpoints/copy", foreign::copy, says::foreign::copy()),
        post("/checkpoints/batch", foreign::batch_of_many, says::foreign::batch_of_many()),
        post("/checkpoints/delete", foreign::delete, says::foreign::delete()),
    ]
}

fn branch_routes() -> Vec<Route> {
    vec![
        get("/threads/{thread_id}/branches", branches::list, says::branches::list()),
        get("/threads/{thread_id}/branches/{name}", branches::find, says::branches::find()),
        put("/threads/{thread_id}/branches/{name}", branches::put, says::branches::put("branches.put")),
        post("/threads/{thread_id}/branches/{name}", branches::put, says::branches::put("branches.post")),
        delete("/threads/{thread_id}/branches/{name}", branches::delete, says::branches::delete()),
        post("/threads/{thread_id}/head", branches::move_head, says::branches::move_head()),
        get("/threads/{thread_id}/diff", branches::compare, says::branches::compare()),
    ]
}

fn run_routes() -> Vec<Route> {
    vec![
        post("/threads/{thread_id}/runs", runs::create, says::runs::create()),
        get("/threads/{thread_id}/runs", runs::list, says::runs::list_runs()),
        post("/threads/{thread_id}/runs/stream", runs::stream, says::runs::stream()),
        post("/threads/{thread_id}/runs/wait", runs::wait, says::runs::wait()),
        post("/threads/{thread_id}/runs/cancel", runs::cancel_all, says::runs::cancel_all()),
        get("/threads/{thread_id}/runs/{run_id}", runs::find, says::runs::find()),
        delete("/threads/{thread_id}/runs/{run_id}", runs::delete, says::runs::delete()),
        get("/threads/{thread_id}/runs/{run_id}/join", runs::join, says::runs::join()),
        get("/threads/{thread_id}/runs/{run_id}/stream", runs::join_stream, says::runs::join_stream()),
        post("/threads/{thread_id}/runs/{run_id}/cancel", runs::cancel, says::runs::cancel()),
        get(
            "/threads/{thread_id}/runs/{run_id}/explain",
            explain::run_of_thread,
            says::session::explain("runs.explain"),
        ),
        get("/runs/{run_id}/explain", explain::run, says::session::explain("stateless.explain")),
        post("/runs", stateless_runs::create, says::runs::create_stateless()),
        post("/runs/stream", stateless_runs::stream, says::runs::stream_stateless()),
        post("/runs/wait", stateless_runs::wait, says::runs::wait_stateless()),
        post("/runs/batch", stateless_runs::batch, says::runs::batch()),
        post("/runs/cancel", stateless_runs::cancel, says::runs::cancel_many()),
        get("/runs/{run_id}/stream", stateless_runs::join_stream, says::runs::join_stream_stateless()),
    ]
}

fn cron_routes() -> Vec<Route> {
    vec![
        post("/runs/crons", crons::create, says::crons::create()),
        post("/runs/crons/search", crons::search, says::crons::search()),
        post("/runs/crons/count", crons::count, says::crons::count()),
        get("/runs/crons/{cron_id}", crons::find, says::crons::find()),
        patch("/runs/crons/{cron_id}", crons::update, says::crons::update()),
        delete("/runs/crons/{cron_id}", crons::delete, says::crons::delete()),
        post("/threads/{thread_id}/runs/crons", crons::create_for_thread, says::crons::create_for_thread()),
    ]
}

fn interrupt_routes() -> Vec<Route> {
    vec![
        get("/interrupts", interrupts::list, says::interrupts::list_all()),
        post("/interrupts/answer", interrupts::answer_many, says::interrupts::answer_many()),
        get("/threads/{thread_id}/interrupts", interrupts::of_thread, says::interrupts::of_thread()),
        post("/threads/{thread_id}/interrupts/{interrupt_id}/answer", interrupts::answer, says::interrupts::answer()),
    ]
}

fn store_routes() -> Vec<Route> {
    vec![
        put("/store/items", store::put, says::store::put()),
        get("/store/items", store::get, says::store::get()),
        delete("/store/items", store::delete, says::store::delete()),
        post("/store/items/search", store::search, says::store::search()),
        post("/store/namespaces", store::namespaces, says::store::namespaces()),
    ]
}

fn agent_routes() -> Vec<Route> {
    let card = |id| says::a2a::card_of(id);
    vec![
        post("/mcp", mcp::message, says::mcp::message()),
        delete("/mcp", mcp::end_session, says::mcp::end_session()),
        post("/a2a/{assistant_id}", a2a::message, says::a2a::message()),
        get("/a2a/{assistant_id}", a2a::of_path, card("agents.card_of")),
        get("/a2a/{assistant_id}/.well-known/agent-card.json", a2a::of_path, card("agents.card_known")),
        get("/a2a/{assistant_id}/.well-known/agent.json", a2a::of_path, card("agents.card_known_03")),
        get("/.well-known/agent-card.json", a2a::of_query, says::a2a::card()),
    ]
}
