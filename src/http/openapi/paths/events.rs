//! Protocol v2 and the thread's legacy stream (sections 3.2 and 5).

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{array, component, integer, list, record, shape, string, text, word};
use crate::http::protocol::{MAX_CHANNELS, MAX_DEPTH, MAX_NAMESPACES};

pub(in crate::http) fn command() -> Operation {
    operation("events.command", "Carry out a command of protocol v2")
        .about("`run.start` and `input.respond`. A command that is refused is answered with 200 and `type` `error`.")
        .body(
            shape()
                .required("id", integer(&(i64::MIN..=i64::MAX)))
                .required("method", string())
                .optional("params", record()),
        )
        .ok(component("CommandAnswer"), "What became of it")
        .json(400, crate::http::openapi::schema::either([component("CommandAnswer"), component("Error")]), "No command")
}

pub(in crate::http) fn subscribe() -> Operation {
    operation("events.subscribe", "The events of a thread: all of its past, then what happens")
        .about("Server-sent events that never end by themselves; `data` is an event of protocol v2.")
        .body(
            shape()
                .required("channels", list(text(), MAX_CHANNELS).with("minItems", 1).about(
                    "Of values, updates, messages, tools, lifecycle, input, tasks, checkpoints, custom, custom:<name>",
                ))
                .optional("namespaces", list(array(string()), MAX_NAMESPACES).about("Prefixes; absent: everything"))
                .optional("depth", integer(&(0..=MAX_DEPTH)).about("Levels below the prefixes"))
                .optional("since", integer(&(0..=i64::MAX)).about("Only events with a greater `seq`")),
        )
        .stream("Events")
        .refuses(400, "The subscription is malformed")
}

pub(in crate::http) fn connect() -> Operation {
    operation("events.connect", "The same and commands over one WebSocket")
        .about("Subscribe with `subscription.subscribe`. A browser may send its key as `?api_key=`.")
        .query("api_key", text(), "A key, for who cannot send headers")
        .header("Upgrade", string(), "`websocket`")
        .empty(101, "The socket is open; refusals close it with 4000 plus their status")
        .refuses(400, "No upgrade was asked for, or the connection cannot be upgraded")
}

pub(in crate::http) fn join() -> Operation {
    let modes = || array(word(&["run_modes", "lifecycle", "state_update"]));
    operation("threads.stream", "The events of all runs of a thread, as they happen")
        .about("Server-sent events that never end by themselves.")
        .query("stream_mode", modes(), "What to hear of: `run_modes` unless it says otherwise")
        .query("stream_modes", modes(), "The same by its other name")
        .header("Last-Event-ID", text(), "Begin after this event; `-1`: at the start")
        .stream("Events")
        .refuses(404, "There is no such thread")
}
