//! Ending, archiving and reopening threads. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::threads::attribution;
use crate::http::openapi::schema::{component, shape, word};

fn close(id: &'static str, summary: &'static str) -> Operation {
    operation(id, summary)
        .body(
            shape()
                .optional("if_active", word(&["cancel", "reject"]).default("cancel").about("What about active runs"))
                .optional("ttl", component("TimeToLive"))
                .and(attribution),
        )
        .ok(component("Thread"), "The thread, closed")
        .refuses(404, "There is none")
        .refuses(409, "A run is active and `if_active` is `reject`")
}

pub(in crate::http) fn end() -> Operation {
    close("threads.end", "End a thread: it takes no run and no change of its state")
}

pub(in crate::http) fn archive() -> Operation {
    close("threads.archive", "End a thread and leave it out of lists")
}

pub(in crate::http) fn reopen() -> Operation {
    operation("threads.reopen", "Open a thread again")
        .body(shape())
        .ok(component("Thread"), "The thread")
        .refuses(404, "There is none")
}
