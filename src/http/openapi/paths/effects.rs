//! External calls of tasks. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{array, boolean, component, text, word};

pub(in crate::http) fn list() -> Operation {
    operation("threads.effects", "The external calls of a thread's tasks, the latest started first")
        .window()
        .query("state", word(&["started", "failed", "recorded"]), "Only those")
        .query("task_id", text(), "Of this task")
        .query("results", boolean().default(false), "With what the calls returned")
        .ok(array(component("Effect")), "A page of them")
        .pages()
        .refuses(404, "There is no such thread")
}
