//! Branches, the head, and what differs. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::threads::attribution;
use crate::http::openapi::schema::{
    Schema, any, array, boolean, component, integer, shape, string, text, time, uuid, whole, word,
};
use crate::http::page::LIMITS;

fn named(operation: Operation) -> Operation {
    let name = string().with("minLength", 1).with("maxLength", 255).with("pattern", "^[A-Za-z0-9._:~@-]+$");
    operation.path("name", name, "The branch; neither `head` nor a UUID")
}

pub(in crate::http::openapi) fn branch() -> Schema {
    shape()
        .required("name", string())
        .required("checkpoint_id", string().nullable())
        .required("is_current", boolean())
        .required("created_at", time())
        .required("updated_at", time())
        .required("updated_by", string().nullable())
        .schema()
}

pub(in crate::http) fn list() -> Operation {
    let tip = shape()
        .required("checkpoint_id", string())
        .required("names", array(string()))
        .required("is_head", boolean())
        .required("is_leaf", boolean())
        .required("parent_checkpoint_id", string().nullable())
        .required("run_id", uuid().nullable())
        .required("step", whole())
        .required("source", word(&["input", "loop", "update", "fork"]))
        .required("next", array(string()))
        .required("created_at", time());
    operation("branches.list", "Leaves, named checkpoints and the head, newest first")
        .query("limit", integer(&LIMITS).default(10), "How many")
        .query("before", text(), "Where the list goes on, from X-Pagination-Next")
        .ok(array(tip.schema()), "A page of them")
        .carries("X-Pagination-Next")
        .refuses(404, "There is no such thread")
}

pub(in crate::http) fn find() -> Operation {
    named(operation("branches.get", "Read a branch"))
        .ok(component("Branch"), "The branch")
        .refuses(404, "There is no such thread or branch")
}

pub(in crate::http) fn put(id: &'static str) -> Operation {
    named(operation(id, "Name a checkpoint"))
        .body(shape().optional("checkpoint_id", text().about("Absent: the head")).and(attribution))
        .ok(component("Branch"), "The branch")
        .refuses(400, "There is no checkpoint yet")
        .refuses(404, "There is no such thread or checkpoint")
        .refuses(
            409,
            "The thread is on this branch, is closed, has too many, or belongs to a graph that runs elsewhere",
        )
}

pub(in crate::http) fn delete() -> Operation {
    named(operation("branches.delete", "Delete a name; its checkpoints stay"))
        .empty(204, "It is gone")
        .refuses(404, "There is no such thread or branch")
}

pub(in crate::http) fn move_head() -> Operation {
    let moved = shape()
        .required("thread_id", component("ThreadId"))
        .required("checkpoint_id", string().nullable())
        .required("previous_checkpoint_id", string().nullable())
        .required("branch", string().nullable())
        .required("status", word(&["idle", "busy", "interrupted", "error"]));
    operation("branches.move_head", "Go on from another checkpoint")
        .body(
            shape()
                .optional("checkpoint_id", text().about("This one, or"))
                .optional("branch", text().about("that of a branch"))
                .optional("expected_head", text().about("Only if the head is there")),
        )
        .ok(moved.schema(), "Where the head is")
        .refuses(400, "It cannot be moved there")
        .refuses(404, "There is no such thread, checkpoint or branch")
        .refuses(
            409,
            "A run is active, the thread is closed or of a graph that runs elsewhere, or its head is elsewhere",
        )
}

pub(in crate::http) fn compare() -> Operation {
    let place = shape()
        .required("checkpoint_id", string().nullable())
        .required("step", any())
        .required("created_at", time().nullable());
    let differs = shape()
        .required("thread_id", component("ThreadId"))
        .required("a", place.clone().schema().nullable())
        .required("b", place.schema())
        .required("unchanged", whole().about("How many channels do not differ"))
        .required("channels", array(super::super::schema::record()).about("How each differs; lists item by item"))
        .sometimes("more_channels", whole());
    operation("branches.diff", "What differs between two checkpoints")
        .query("a", text(), "A checkpoint, a branch or `head`; absent: the parent of `b`")
        .query("b", text().default("head"), "A checkpoint, a branch or `head`")
        .query("channel", array(text()), "These channels only")
        .query("values", word(&["short", "full"]).default("short"), "Whether long values are shown")
        .query("limit", integer(&LIMITS).default(100), "Channels, and items of a list, that are shown")
        .ok(differs.schema(), "By channel")
        .refuses(400, "The graph refuses what is stored")
        .refuses(404, "There is no such thread, checkpoint or branch")
}
