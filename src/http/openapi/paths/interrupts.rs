//! Questions to humans. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::threads::attribution;
use crate::http::openapi::schema::{any, array, component, integer, list, shape, string, text, uuid, whole, word};
use crate::http::page::LIMITS;
use crate::http::routes::interrupts::{MAX_ANSWERS, STATUSES};

fn listed(operation: Operation, status: &'static str) -> Operation {
    operation
        .query("status", word(&STATUSES).default(status), "Which")
        .query("graph_id", text(), "Asked by this graph")
        .query("assistant_id", uuid(), "Asked by this assistant")
        .query("node", text(), "Asked by this node")
        .query("metadata", text(), "A JSON object contained in the thread's metadata")
        .query("asked_after", text(), "A time")
        .query("asked_before", text(), "A time")
        .query("sort_order", word(&["asc", "desc"]).default("desc"), "By when it was asked")
        .query("limit", integer(&LIMITS).default(10), "How many")
        .query("cursor", text(), "Where the list goes on, from X-Pagination-Next")
        .ok(array(component("Question")), "A page of them")
        .carries("X-Pagination-Next")
}

pub(in crate::http) fn list_all() -> Operation {
    listed(operation("interrupts.list", "The questions of all threads"), "pending").query(
        "thread_id",
        component("ThreadId"),
        "Asked on this thread",
    )
}

pub(in crate::http) fn of_thread() -> Operation {
    listed(operation("interrupts.of_thread", "The questions of a thread"), "any")
        .refuses(404, "There is no such thread")
}

pub(in crate::http) fn answer() -> Operation {
    operation("interrupts.answer", "Answer a question: starts the run that goes on with it")
        .body(shape().required("answer", any()).and(attribution))
        .ok(component("Run"), "The run")
        .refuses(404, "There is no such question")
        .refuses(409, "It is answered, or the thread is elsewhere by now")
}

pub(in crate::http) fn answer_many() -> Operation {
    let answer = shape()
        .required("thread_id", component("ThreadId"))
        .required("interrupt_id", text())
        .required("answer", any())
        .schema();
    let result = shape()
        .required("thread_id", component("ThreadId"))
        .required("interrupt_id", string())
        .required("status", whole().about("As the answer alone would have had it"))
        .sometimes("run_id", uuid())
        .sometimes("detail", string())
        .schema();
    operation("interrupts.answer_many", "Answer questions; those of one thread share a run")
        .body(shape().required("answers", list(answer, MAX_ANSWERS)).and(attribution))
        .ok(array(result), "A result for each, in order")
}
