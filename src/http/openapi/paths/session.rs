//! Sessions as a whole, and why runs are where they are. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{
    Shape, any, array, boolean, component, map, record, shape, string, time, uuid, whole, word,
};

const STATUSES: [&str; 4] = ["idle", "busy", "interrupted", "error"];

pub(in crate::http) fn find() -> Operation {
    let interrupts =
        shape().required("pending", array(record())).required("past", array(record())).required("more", whole());
    let may = shape().required("actor", string().nullable()).required("may", array(string())).sometimes(
        "note",
        string().about("Why some things are missing, where a graph that runs elsewhere keeps its state"),
    );
    let session = shape()
        .required("session_id", component("ThreadId"))
        .required("owner", any())
        .required("status", word(&STATUSES))
        .required("closed", record().nullable())
        .required("error", component("Failure").nullable())
        .required("graph", record())
        .required("position", record().about("Checkpoint, next nodes, and the tasks of the open superstep"))
        .required("interrupts", interrupts.schema())
        .required("active_runs", array(component("RunDetail")))
        .sometimes("state_error", string().about("Why the graph refuses to show the state"))
        .sometimes("values", any().about("Usually an object"))
        .sometimes("omitted_values", record().about("Sizes of values that are too long to be shown"))
        .required("counts", map(whole()))
        .required("usage", record())
        .required("ttl", record().nullable())
        .required("permissions", may.schema())
        .required("created_at", time())
        .required("updated_at", time())
        .required("state_updated_at", time())
        .required("metadata", record())
        .required("config", record());
    operation("threads.session", "The whole session in one document")
        .query("values", word(&["short", "full", "none"]).default("short"), "How much of the values is shown")
        .ok(session.schema(), "The session")
        .refuses(404, "There is no such thread")
}

/// A run as its queue sees it.
pub(in crate::http::openapi) fn run_detail() -> Shape {
    let lease = shape()
        .required("worker", string().nullable())
        .required("epoch", whole())
        .required("until", time())
        .required("is_held", boolean());
    let cancel = shape()
        .required("action", word(&["interrupt", "rollback"]))
        .required("by", string().nullable())
        .required("reason", string().nullable());
    shape()
        .required("run_id", uuid())
        .required("thread_id", component("ThreadId"))
        .required("assistant_id", uuid())
        .required("graph_id", string())
        .required("status", word(&["pending", "running", "error", "success", "timeout", "interrupted"]))
        .required("created_at", time())
        .required("created_by", string().nullable())
        .required("due_at", time())
        .required("started_at", time().nullable())
        .required("multitask_strategy", word(&["enqueue", "reject", "interrupt", "rollback"]))
        .required("attempt", whole())
        .required("claims", whole())
        .required("input_applied", boolean())
        .required("worker", string().nullable())
        .required("lease", lease.schema().nullable())
        .required("cancel", cancel.schema().nullable())
        .required("error", component("Failure").nullable())
}

pub(in crate::http) fn explain(id: &'static str) -> Operation {
    let explanation = run_detail()
        .required("queue_ms", any().about("How long it waited"))
        .required("ended_at", time().nullable())
        .required("usage", record())
        .required("slowest_superstep", any())
        .required("slowest_node", any().about("The execution of a task that took longest"))
        .required("retried", any().about("Tasks with attempts that failed"))
        .required("waits_for", any())
        .required("summary", string());
    operation(id, "Why a run is where it is")
        .ok(explanation.schema(), "Who, when, by which worker, and what it waits for")
        .refuses(404, "There is none")
}
