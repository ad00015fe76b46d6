//! Threads (section 3.2).

use crate::http::document::THREAD_COLUMNS;
use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::run_body::{columns, page};
use crate::http::openapi::schema::{
    Schema, Shape, any, array, component, either, list, map, number, record, selected, shape, string, text, whole, word,
};
use crate::http::routes::retention::MAX_PRUNED;
use crate::http::routes::thread_search::{CLOSED, MAX_IDS, SORTS, STATUSES};
use crate::http::routes::threads::{MAX_SUPERSTEPS, MAX_TTL_MINUTES};
use crate::http::select::MAX_ALIASES;

pub(in crate::http::openapi) fn ttl() -> Schema {
    let minutes = || number(0.0..=MAX_TTL_MINUTES);
    let whole = shape()
        .required("ttl", minutes())
        .optional("strategy", word(&["delete", "keep_latest"]).default("delete"))
        .schema();
    either([whole, minutes()]).about("Minutes after its last use that a thread is kept")
}

/// Who acted and why, for the record.
pub(super) fn attribution(shape: Shape) -> Shape {
    let actor = text().with("maxLength", 256).about("Instead of the header x-actor");
    shape.optional("actor", actor).optional("reason", text())
}

pub(in crate::http) fn create() -> Operation {
    let update = shape().required("as_node", text()).optional("values", any()).optional("command", record()).schema();
    let superstep = shape().required("updates", list(update, MAX_SUPERSTEPS)).schema();
    let made = shape().required("detail", string()).required("thread_id", component("ThreadId")).schema();
    operation("threads.create", "Create a thread")
        .body(
            shape()
                .optional("thread_id", component("ThreadId").about("Made by the server when absent"))
                .optional("metadata", record().about("`graph_id` in it names the graph"))
                .optional("if_exists", word(&["raise", "do_nothing"]).default("raise"))
                .optional("ttl", component("TimeToLive"))
                .optional("supersteps", list(superstep, MAX_SUPERSTEPS).about("States to begin with"))
                .and(attribution),
        )
        .ok(component("Thread"), "The new thread, or with `do_nothing` the one that is there")
        .json(201, made, "It was created, but its supersteps failed")
        .refuses(400, "A superstep without updates")
        .refuses(409, "The id is taken")
}

fn filter(shape: Shape) -> Shape {
    shape
        .optional("ids", list(component("ThreadId"), MAX_IDS))
        .optional("metadata", record().about("Contained in the thread's metadata"))
        .optional("exclude_metadata", either([record(), list(record(), MAX_IDS)]).about("Contained in none of it"))
        .optional("values", record().about("Contained in the thread's values"))
        .optional("status", word(&STATUSES))
        .optional("closed", word(&CLOSED).about("Absent: all but archived ones"))
        .optional("sort_by", word(&SORTS).default("updated_at"))
        .optional("sort_order", text().about("`asc`; anything else is descending"))
}

pub(in crate::http) fn search() -> Operation {
    let path = string().about("As `values.messages[-1].content`");
    operation("threads.search", "Find threads")
        .body(
            shape()
                .and(filter)
                .and(page)
                .optional("select", columns(&THREAD_COLUMNS))
                .optional("extract", map(path).with("maxProperties", MAX_ALIASES).about("Values by alias and path")),
        )
        .ok(array(selected("Thread")), "A page of them")
        .pages()
        .refuses(400, "A malformed id, or more threads would have to be read than is allowed")
}

pub(in crate::http) fn count() -> Operation {
    operation("threads.count", "Count threads")
        .body(shape().and(filter))
        .ok(whole(), "How many there are")
        .refuses(400, "A malformed id, or more threads would have to be read than is allowed")
}

pub(in crate::http) fn prune() -> Operation {
    operation("threads.prune", "Delete threads, or all of them but their latest states")
        .body(
            shape()
                .required("thread_ids", list(component("ThreadId"), MAX_PRUNED))
                .optional("strategy", word(&["delete", "keep_latest"]).default("delete")),
        )
        .ok(shape().required("pruned_count", whole()).schema(), "How many; unknown ones are left out")
}

pub(in crate::http) fn find() -> Operation {
    operation("threads.get", "Read a thread")
        .query("include", array(word(&["ttl"])), "What else to tell: how long it is kept")
        .ok(component("Thread"), "The thread")
        .refuses(404, "There is none")
}

pub(in crate::http) fn update() -> Operation {
    operation("threads.update", "Change a thread's metadata or how long it is kept")
        .header("Prefer", string(), "`return=minimal`: answer 204")
        .body(
            shape()
                .optional("metadata", record().about("Merged in, member by member"))
                .optional("ttl", component("TimeToLive")),
        )
        .ok(component("Thread"), "The thread")
        .empty(204, "Done; with `Prefer: return=minimal`")
        .refuses(404, "There is none")
}

pub(in crate::http) fn delete() -> Operation {
    operation("threads.delete", "Delete a thread and everything that belongs to it")
        .empty(204, "It is gone")
        .refuses(404, "There is none")
}

pub(in crate::http) fn copy() -> Operation {
    operation("threads.copy", "Copy a thread with its history")
        .ok(component("Thread"), "The new thread")
        .refuses(409, "There is no such thread")
}

pub(in crate::http) fn storage() -> Operation {
    let size = || shape().required("count", whole()).required("bytes", whole());
    let by_channel = map(size().schema()).about("Small values, too, which stand in `checkpoints`");
    let values = size().required("by_channel", by_channel);
    let report = shape()
        .required("thread_id", component("ThreadId"))
        .required("total_bytes", whole())
        .required("checkpoints", size().schema())
        .required("channel_values", values.schema())
        .required("pending_writes", size().schema())
        .required("events", size().schema())
        .required("runs", size().schema())
        .required("interrupts", size().schema())
        .required("effects", size().schema())
        .required("log", size().schema());
    operation("threads.storage", "What a thread occupies")
        .ok(report.schema(), "Bytes by kind")
        .refuses(404, "There is none")
}
