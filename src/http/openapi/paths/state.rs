//! The state of a thread (section 3.2).

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::threads::attribution;
use crate::http::openapi::schema::{
    Schema, any, array, boolean, component, either, integer, list, record, selected, shape, text, uuid, word,
};
use crate::http::page::LIMITS;
use crate::http::routes::thread_state::MAX_INCLUDED;
use crate::http::select::MAX_COLUMNS;

fn parts() -> Schema {
    list(text(), MAX_COLUMNS).about("Answer with these members only; `values.<key>` for single values")
}

fn included() -> Schema {
    list(word(&["answers", "effects"]), MAX_INCLUDED)
        .about("With each task its questions and their answers, or its external calls")
}

/// A graph that has changed may refuse what an earlier one wrote.
fn rendered(operation: Operation) -> Operation {
    operation.refuses(400, "The graph refuses what is stored").refuses(404, "There is no such thread")
}

fn of_query(operation: Operation) -> Operation {
    rendered(operation)
        .query("select", array(text()), "These members only; `values.<key>` for single values")
        .query(
            "include",
            array(word(&["answers", "effects"])),
            "With each task its questions and their answers, or its external calls",
        )
        .query("checkpoint_ns", text(), "A subgraph's namespace")
}

pub(in crate::http) fn latest() -> Operation {
    of_query(operation("state.get", "The latest state"))
        .query("subgraphs", boolean().default(false), "The states of subgraphs, too")
        .ok(selected("ThreadState"), "The state; empty on a thread that never ran")
}

pub(in crate::http) fn at_checkpoint() -> Operation {
    of_query(operation("state.get_at", "The state at a checkpoint"))
        .query("subgraphs", boolean().default(false), "The states of subgraphs, too")
        .ok(selected("ThreadState"), "The state; without values if there is no such checkpoint")
}

pub(in crate::http) fn at_cursor() -> Operation {
    rendered(operation("state.get_at_cursor", "The state at a cursor"))
        .body(
            shape()
                .required("checkpoint", component("Cursor"))
                .optional("subgraphs", boolean().default(false))
                .optional("select", parts())
                .optional("include", included()),
        )
        .ok(selected("ThreadState"), "The state; without values if there is no such checkpoint")
}

pub(in crate::http) fn update() -> Operation {
    operation("state.update", "Edit the state, as if a node had written it")
        .body(
            shape()
                .optional("values", either([record(), array(any())]))
                .optional("as_node", text())
                .optional("checkpoint", component("Cursor"))
                .optional("checkpoint_id", uuid())
                .and(attribution),
        )
        .ok(component("StateUpdated"), "The new checkpoint")
        .refuses(400, "The thread has no graph, or the graph refuses the update")
        .refuses(404, "There is no such thread")
        .refuses(409, "A run is active on the thread, or it is closed")
}

pub(in crate::http) fn patch() -> Operation {
    operation("state.patch", "Merge metadata into that of the latest checkpoint")
        .body(shape().required("metadata", record()))
        .ok(component("StateUpdated"), "The checkpoint")
        .refuses(400, "There is no checkpoint yet")
        .refuses(404, "There is no such thread")
        .refuses(409, "The thread is closed, or of a graph that runs elsewhere")
}

pub(in crate::http) fn recent_history() -> Operation {
    of_query(operation("state.recent_history", "Earlier states, newest first"))
        .query("limit", integer(&LIMITS).default(10), "How many")
        .query("before", text(), "The id of a checkpoint: those before it")
        .ok(array(selected("ThreadState")), "States")
}

pub(in crate::http) fn history() -> Operation {
    rendered(operation("state.history", "Earlier states, newest first"))
        .body(
            shape()
                .optional("limit", integer(&LIMITS).default(10))
                .optional("before", either([component("Cursor"), text()]).about("Those before it"))
                .optional("metadata", record().about("Contained in the checkpoint's metadata"))
                .optional("checkpoint", component("Cursor"))
                .optional("select", parts())
                .optional("include", included()),
        )
        .ok(array(selected("ThreadState")), "States")
}
