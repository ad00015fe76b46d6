//! The body of everything that starts a run (section 3.4), and members that many bodies share.

use crate::http::openapi::schema::{
    Schema, Shape, any, array, boolean, component, either, integer, list, map, number, record, shape, string, text,
    uuid, word,
};
use crate::http::page::{LIMITS, OFFSETS};
use crate::http::run_request::{MAX_AFTER_SECONDS, MAX_NODES, MAX_RECURSION, MAX_TAGS};
use crate::http::select::MAX_COLUMNS;
use crate::model::StreamMode;

/// `limit` and `offset`.
pub(super) fn page(shape: Shape) -> Shape {
    shape.optional("limit", integer(&LIMITS).default(10)).optional("offset", integer(&OFFSETS).default(0))
}

/// `select`: columns of a row.
pub(super) fn columns(known: &[&str]) -> Schema {
    list(word(known), MAX_COLUMNS).about("Answer with these columns only")
}

/// A place in a thread's history.
pub(in crate::http::openapi) fn cursor() -> Schema {
    shape()
        .optional("thread_id", text().ignored())
        .optional("checkpoint_ns", text().default(""))
        .optional("checkpoint_id", text().about("Absent: the latest"))
        .optional("checkpoint_map", map(text()))
        .optional("configurable", record().about("The same members, one level down"))
        .schema()
}

pub(in crate::http::openapi) fn config() -> Schema {
    shape()
        .optional("tags", list(text(), MAX_TAGS))
        .optional("recursion_limit", integer(&(i64::MIN..=MAX_RECURSION)).about("The most supersteps of a run"))
        .optional("durability", word(&["sync", "async", "exit"]))
        .optional("metadata", record())
        .optional("configurable", record())
        .schema()
}

fn breakpoints() -> Schema {
    either([text(), list(text(), MAX_NODES)]).about("`*`, or names of nodes")
}

fn command() -> Schema {
    let send = shape().required("node", string()).sometimes("input", any()).schema();
    let goto = either([string(), send.clone(), array(either([string(), send]))]);
    let pairs = array(array(any()).with("minItems", 2).with("maxItems", 2));
    shape()
        .optional("update", either([record(), pairs]).about("Members, or pairs of name and value"))
        .optional("resume", any().about("An answer, or answers by interrupt id"))
        .optional("goto", goto.about("A node, `{node, input}`, or several"))
        .schema()
}

/// A stream mode. `tools` is taken, and nothing is streamed for it.
pub(super) fn mode() -> Schema {
    let mut modes: Vec<&str> = StreamMode::ALL.iter().map(|mode| mode.as_str()).collect();
    modes.push("tools");
    word(&modes)
}

/// What every run takes.
pub(in crate::http::openapi) fn run(shape: Shape) -> Shape {
    shape
        .optional("assistant_id", text().about("A UUID or the name of a graph; may be left out where it is clear"))
        .optional("input", any().about("Null: go on from the current checkpoint"))
        .optional("command", command().about("Instead of input"))
        .optional("checkpoint", component("Cursor"))
        .optional("checkpoint_id", uuid().about("The same, by its id alone"))
        .optional("config", component("Config"))
        .optional("context", record().about("Of the graph; `config.configurable` by its other name: send one of them"))
        .optional("metadata", record())
        .optional("stream_mode", either([mode(), list(mode(), 100)]).default("values"))
        .optional("stream_subgraphs", boolean().default(false))
        .optional("stream_resumable", boolean().default(false).about("Number the events, for replay"))
        .optional("interrupt_before", breakpoints())
        .optional("interrupt_after", breakpoints())
        .optional("multitask_strategy", word(&["enqueue", "reject", "interrupt", "rollback"]).default("enqueue"))
        .optional("if_not_exists", word(&["reject", "create"]).about("What if the thread does not exist"))
        .optional("on_disconnect", word(&["continue", "cancel"]).default("continue"))
        .optional("on_completion", word(&["delete", "keep"]).default("delete").about("Of a thread made for the run"))
        .optional("durability", word(&["sync", "async", "exit"]).default("async"))
        .optional("checkpoint_during", boolean().about("False: `durability` `exit`, by its old name"))
        .optional("after_seconds", number(0.0..=MAX_AFTER_SECONDS).default(0))
        .optional("webhook", string().about("A URL to tell when the run has ended"))
        .optional("feedback_keys", list(text(), 100))
        .optional("strict_resume", boolean().about("True: an answer nobody waits for fails the run"))
        .optional("langsmith_tracer", record().ignored())
}
