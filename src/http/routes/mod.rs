//! The table of routes: one file per noun, as in the clients.

mod assistants;
mod branches;
mod checkpoints;
pub(super) mod crons;
mod effects;
mod foreign;
mod interrupts;
mod quarantine;
mod retention;
pub(super) mod runs;
mod sessions;
mod stateless_runs;
mod store;
mod system;
mod thread_events;
mod thread_search;
mod thread_socket;
mod thread_state;
mod threads;
mod webhooks;

use axum::Router;
use axum::extract::Request;
use axum::routing::{get, post, put};

use super::AppState;
use super::a2a;
use super::error::ApiError;
use super::extract::discard;
use super::mcp;

pub(super) fn all() -> Router<AppState> {
    Router::new()
        .route("/", get(system::ok))
        .route("/ok", get(system::ok))
        .route("/ready", get(system::ready))
        .route("/info", get(system::info))
        .route("/graphs", get(system::graphs))
        .merge(assistant_routes())
        .merge(thread_routes())
        .merge(run_routes())
        .merge(cron_routes())
        .route("/quarantine", get(quarantine::list))
        .route("/quarantine/release", post(quarantine::release))
        .route("/webhooks", get(webhooks::list))
        .route("/webhooks/redrive", post(webhooks::redrive))
        .merge(interrupt_routes())
        .route("/store/items", put(store::put).get(store::get).delete(store::delete))
        .route("/store/items/search", post(store::search))
        .route("/store/namespaces", post(store::namespaces))
        .route("/mcp", post(mcp::message).delete(mcp::end_session))
        .route("/a2a/{assistant_id}", post(a2a::message).get(a2a::of_path))
        .route("/a2a/{assistant_id}/.well-known/agent-card.json", get(a2a::of_path))
        .route("/a2a/{assistant_id}/.well-known/agent.json", get(a2a::of_path))
        .route("/.well-known/agent-card.json", get(a2a::of_query))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
}

async fn unknown_path(request: Request) -> ApiError {
    discard(request).await;
    ApiError::not_found()
}

async fn wrong_method(request: Request) -> ApiError {
    discard(request).await;
    ApiError::MethodNotAllowed
}

fn assistant_routes() -> Router<AppState> {
    Router::new()
        .route("/assistants/search", post(assistants::search))
        .route("/assistants/count", post(assistants::count))
        .route("/assistants", post(assistants::create))
        .route("/assistants/{assistant_id}", get(assistants::find).patch(assistants::update).delete(assistants::delete))
        .route("/assistants/{assistant_id}/versions", post(assistants::versions))
        .route("/assistants/{assistant_id}/latest", post(assistants::set_latest))
        .route("/assistants/{assistant_id}/subgraphs", get(assistants::subgraphs))
        .route("/assistants/{assistant_id}/subgraphs/{namespace}", get(assistants::subgraphs_below))
        .route("/assistants/{assistant_id}/graph", get(assistants::graph))
        .route("/assistants/{assistant_id}/schemas", get(assistants::schemas))
}

fn thread_routes() -> Router<AppState> {
    Router::new()
        .route("/threads", post(threads::create))
        .route("/threads/search", post(thread_search::search))
        .route("/threads/count", post(thread_search::count))
        .route("/threads/{thread_id}", get(threads::find).patch(threads::update).delete(threads::delete))
        .route("/threads/prune", post(retention::prune))
        .route("/threads/{thread_id}/copy", post(threads::copy))
        .route("/threads/{thread_id}/storage", get(retention::storage))
        .route("/threads/{thread_id}/branches", get(branches::list))
        .route(
            "/threads/{thread_id}/branches/{name}",
            get(branches::find).put(branches::put).post(branches::put).delete(branches::delete),
        )
        .route("/threads/{thread_id}/head", post(branches::move_head))
        .route("/threads/{thread_id}/diff", get(branches::compare))
        .route("/threads/{thread_id}/end", post(sessions::end))
        .route("/threads/{thread_id}/archive", post(sessions::archive))
        .route("/threads/{thread_id}/reopen", post(sessions::reopen))
        .route(
            "/threads/{thread_id}/state",
            get(thread_state::latest).post(thread_state::update).patch(thread_state::patch),
        )
        .route("/threads/{thread_id}/state/checkpoint", post(thread_state::at_cursor))
        .route("/threads/{thread_id}/state/{checkpoint_id}", get(thread_state::at_checkpoint))
        .route("/threads/{thread_id}/history", get(thread_state::recent_history).post(thread_state::history))
        .route("/threads/{thread_id}/commands", post(thread_events::command))
        .route("/threads/{thread_id}/stream/events", post(thread_events::subscribe).get(thread_socket::connect))
        .route("/threads/{thread_id}/stream", get(thread_events::join))
        .merge(checkpoint_routes())
}

fn checkpoint_routes() -> Router<AppState> {
    Router::new()
        .route("/threads/{thread_id}/checkpoints", get(checkpoints::list).post(foreign::put))
        .route("/threads/{thread_id}/effects", get(effects::list))
        .route("/threads/{thread_id}/checkpoints/{checkpoint_id}", get(checkpoints::find))
        .route("/threads/{thread_id}/checkpoints/writes", post(foreign::put_writes))
        .route("/threads/{thread_id}/checkpoints/batch", post(foreign::batch))
        .route("/threads/{thread_id}/checkpoints/search", post(foreign::search))
        .route("/threads/{thread_id}/checkpoints/deltas", post(foreign::deltas))
        .route("/threads/{thread_id}/checkpoints/copy", post(foreign::copy))
        .route("/checkpoints/batch", post(foreign::batch_of_many))
        .route("/checkpoints/delete", post(foreign::delete))
}

fn cron_routes() -> Router<AppState> {
    Router::new()
        .route("/runs/crons", post(crons::create))
        .route("/runs/crons/search", post(crons::search))
        .route("/runs/crons/count", post(crons::count))
        .route("/runs/crons/{cron_id}", get(crons::find).patch(crons::update).delete(crons::delete))
        .route("/threads/{thread_id}/runs/crons", post(crons::create_for_thread))
}

fn interrupt_routes() -> Router<AppState> {
    Router::new()
        .route("/interrupts", get(interrupts::list))
        .route("/interrupts/answer", post(interrupts::answer_many))
        .route("/threads/{thread_id}/interrupts", get(interrupts::of_thread))
        .route("/threads/{thread_id}/interrupts/{interrupt_id}/answer", post(interrupts::answer))
}

fn run_routes() -> Router<AppState> {
    Router::new()
        .route("/threads/{thread_id}/runs", post(runs::create).get(runs::list))
        .route("/threads/{thread_id}/runs/stream", post(runs::stream))
        .route("/threads/{thread_id}/runs/wait", post(runs::wait))
        .route("/threads/{thread_id}/runs/cancel", post(runs::cancel_all))
        .route("/threads/{thread_id}/runs/{run_id}", get(runs::find).delete(runs::delete))
        .route("/threads/{thread_id}/runs/{run_id}/join", get(runs::join))
        .route("/threads/{thread_id}/runs/{run_id}/stream", get(runs::join_stream))
        .route("/threads/{thread_id}/runs/{run_id}/cancel", post(runs::cancel))
        .route("/runs", post(stateless_runs::create))
        .route("/runs/stream", post(stateless_runs::stream))
        .route("/runs/wait", post(stateless_runs::wait))
        .route("/runs/batch", post(stateless_runs::batch))
        .route("/runs/cancel", post(stateless_runs::cancel))
        .route("/runs/{run_id}/stream", get(stateless_runs::join_stream))
}
