//! The execution log. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{array, boolean, component, integer, text, uuid, word};
use crate::http::page::LIMITS;
use crate::http::routes::executions::STEPS;
use crate::model::TaskOutcome;

pub(in crate::http) fn list() -> Operation {
    operation("threads.log", "The execution log of a thread: what became of each task, the latest first")
        .query("run_id", uuid(), "Of this run")
        .query("node", text(), "Of this node")
        .query("checkpoint_ns", text(), "Of the graph with this namespace")
        .query("root", boolean().default(false), "Of the thread's own graph only")
        .query("status", word(&TaskOutcome::ALL.map(TaskOutcome::as_str)), "Only those; `error`: what failed")
        .query("min_step", integer(&STEPS), "From this superstep on")
        .query("max_step", integer(&STEPS), "Up to this superstep")
        .query("limit", integer(&LIMITS).default(10), "How many")
        .query("cursor", text(), "Where the list goes on, from X-Pagination-Next")
        .ok(array(component("Execution")), "A page of them")
        .carries("X-Pagination-Next")
        .refuses(404, "There is no such thread")
}
