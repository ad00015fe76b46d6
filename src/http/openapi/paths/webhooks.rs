//! Webhooks. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{array, component, list, shape, uuid, whole, word};
use crate::http::routes::webhooks::{MAX_REDRIVEN, STATES};

pub(in crate::http) fn list_webhooks() -> Operation {
    operation("webhooks.list", "Webhooks in a state, oldest first")
        .window()
        .query("state", word(&STATES).default("dead"), "Which")
        .ok(array(component("Webhook")), "A page of them")
        .pages()
}

pub(in crate::http) fn redrive() -> Operation {
    operation("webhooks.redrive", "Try dead ones again")
        .body(shape().optional("run_ids", list(uuid(), MAX_REDRIVEN).about("Absent: all")))
        .ok(shape().required("redriven", whole()).schema(), "How many")
}
