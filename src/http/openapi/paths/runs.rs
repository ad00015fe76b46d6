//! Runs: of threads and without (section 3.3).

use crate::http::document::RUN_COLUMNS;
use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::run_body::mode;
use crate::http::openapi::schema::{any, array, boolean, component, list, record, selected, shape, text, uuid, word};
use crate::http::routes::runs::STATUSES;
use crate::http::routes::stateless_runs::{MAX_BATCH, MAX_CANCELLED};

const RESULT: &str = "The final values, with `__interrupt__` if it stopped to ask, or `{\"__error__\": ..}`. Blank lines \
    before it keep the connection alive";

fn starts(operation: Operation) -> Operation {
    operation.refuses(400, "The run contradicts itself").refuses(404, "There is no such thread or assistant").refuses(
        409,
        "The thread has an active run and `multitask_strategy` is `reject`, or is closed, or changed meanwhile",
    )
}

fn created(operation: Operation) -> Operation {
    starts(
        operation
            .any_body(component("RunBody"), false)
            .ok(component("Run"), "The run, pending")
            .carries("Content-Location"),
    )
}

/// Which events of subgraphs are wanted.
fn by_namespace(operation: Operation) -> Operation {
    operation.query("namespace", array(text()), "Only events of these namespaces and below; may repeat")
}

fn streamed(operation: Operation) -> Operation {
    let streamed = by_namespace(operation).any_body(component("RunBody"), false).stream("Events");
    starts(streamed.carries("Location").carries("Content-Location"))
}

pub(in crate::http) fn create() -> Operation {
    created(operation("runs.create", "Start a run in the background"))
}

pub(in crate::http) fn stream() -> Operation {
    streamed(operation("runs.stream", "Start a run and hear its events"))
}

pub(in crate::http) fn wait() -> Operation {
    let waited = operation("runs.wait", "Start a run and wait for its result")
        .any_body(component("RunBody"), false)
        .ok(any(), RESULT);
    starts(waited.carries("Location").carries("Content-Location"))
}

pub(in crate::http) fn create_stateless() -> Operation {
    created(operation("stateless.create", "Start a run on a thread of its own"))
}

pub(in crate::http) fn stream_stateless() -> Operation {
    streamed(operation("stateless.stream", "Start a run on a thread of its own and hear its events"))
}

pub(in crate::http) fn wait_stateless() -> Operation {
    let summary = "Start a run on a thread of its own and wait for its result";
    starts(
        operation("stateless.wait", summary)
            .any_body(component("RunBody"), false)
            .ok(any(), RESULT)
            .carries("Location"),
    )
}

pub(in crate::http) fn batch() -> Operation {
    let runs = list(component("RunBody"), MAX_BATCH);
    starts(operation("stateless.batch", "Start many runs, each on a thread of its own").any_body(runs, true))
        .ok(array(component("Run")), "The runs, in the order given")
}

pub(in crate::http) fn list_runs() -> Operation {
    operation("runs.list", "The runs of a thread, newest first")
        .window()
        .query("status", word(&STATUSES), "Only those")
        .query("select", array(word(&RUN_COLUMNS)), "These columns only")
        .ok(array(selected("Run")), "A page of them")
        .refuses(404, "There is no such thread")
}

pub(in crate::http) fn find() -> Operation {
    operation("runs.get", "Read a run").ok(component("Run"), "The run").refuses(404, "There is none")
}

pub(in crate::http) fn delete() -> Operation {
    operation("runs.delete", "Delete a run and what it wrote")
        .about("One that is active is stopped first, and rolled back.")
        .empty(204, "It is gone")
        .refuses(404, "There is none")
        .refuses(409, "It is still being stopped, and goes then")
}

pub(in crate::http) fn join() -> Operation {
    operation("runs.join", "Wait for the result of a run")
        .query("cancel_on_disconnect", boolean().default(false), "Cancel the run when this request breaks off")
        .ok(any(), RESULT)
}

fn joined(operation: Operation) -> Operation {
    by_namespace(operation)
        .query("stream_mode", array(mode()), "Only events of these modes")
        .query("cancel_on_disconnect", boolean().default(false), "Cancel the run when this request breaks off")
        .header("Last-Event-ID", text(), "Begin after this event; `-1`: at the start")
        .stream("Events; of an unknown run one `error` event")
        .carries("Location")
        .carries("Content-Location")
}

pub(in crate::http) fn join_stream() -> Operation {
    joined(operation("runs.join_stream", "Hear the events of a run"))
}

pub(in crate::http) fn join_stream_stateless() -> Operation {
    joined(operation("stateless.join_stream", "Hear the events of a run, wherever it is"))
}

fn action(operation: Operation) -> Operation {
    let action = word(&["interrupt", "rollback"]).default("interrupt");
    operation.query("action", action, "`rollback`: what it wrote is deleted").query(
        "reason",
        text(),
        "Why, for the record",
    )
}

pub(in crate::http) fn cancel() -> Operation {
    action(operation("runs.cancel", "Cancel a run"))
        .query("wait", boolean().default(false), "Answer when it has stopped")
        .ok(record(), "It has stopped (with `wait`)")
        .carries("Location")
        .empty(202, "It will stop")
        .refuses(404, "There is no such run, or it is not active")
}

pub(in crate::http) fn cancel_all() -> Operation {
    action(operation("runs.cancel_all", "Cancel what is active on a thread"))
        .query("wait", boolean().default(false), "Answer when it has stopped")
        .ok(record(), "It has stopped (with `wait`)")
        .empty(202, "It will stop; nothing active is fine")
        .refuses(404, "There is no such thread")
}

pub(in crate::http) fn cancel_many() -> Operation {
    let body = shape()
        .optional("status", word(&["pending", "running", "all"]))
        .optional("thread_id", component("ThreadId"))
        .optional("run_ids", list(uuid(), MAX_CANCELLED));
    action(operation("stateless.cancel", "Cancel many runs"))
        .about("Those of a status, or those of a thread by their ids.")
        .body(body)
        .empty(204, "They will stop")
        .refuses(404, "There are none to cancel")
}
