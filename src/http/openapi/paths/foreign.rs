//! Checkpoints of graphs that run elsewhere. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{
    Schema, Shape, any, array, boolean, component, either, integer, list, map, record, shape, string, text, whole, word,
};
use crate::http::page::LIMITS;
use crate::http::routes::foreign::{MAX_CHANNELS, MAX_ID, MAX_OPERATIONS, MAX_RUNS, MAX_VALUES};
use crate::http::typed::{FRAME_TYPE, MAX_TAG};

fn id() -> Schema {
    text().with("minLength", 1).with("maxLength", MAX_ID)
}

/// Typed bytes as they are sent.
fn sent(shape: Shape) -> Shape {
    shape
        .required(
            "type",
            text().with("minLength", 1).with("maxLength", MAX_TAG).with("pattern", "^[A-Za-z0-9._+:/-]+$"),
        )
        .optional("base64", string().about("The bytes; or else `bytes` or `hash`"))
        .optional("bytes", list(whole(), 2).about("Offset and length in a frame"))
        .optional("hash", text().about("Of bytes that the thread has"))
}

/// Typed bytes as they are answered.
pub(in crate::http::openapi) fn value() -> Shape {
    shape()
        .required("type", string())
        .sometimes("hash", string())
        .sometimes("base64", string())
        .sometimes("bytes", array(whole()).about("Offset and length in a frame"))
}

/// The least of a LangGraph checkpoint; its other members are kept as they are.
fn document() -> Schema {
    shape()
        .required("id", id())
        .optional("channel_versions", map(either([string(), Schema::number()])))
        .optional("channel_values", record().with("maxProperties", 0).about("Values are sent beside it"))
        .schema()
}

pub(in crate::http::openapi) fn put_body(shape: Shape) -> Shape {
    shape
        .optional("checkpoint_ns", text().default(""))
        .required("checkpoint", document())
        .optional("parent_checkpoint_id", id())
        .optional("metadata", record())
        .optional("values", map(sent(Shape::default()).schema()).with("maxProperties", MAX_VALUES).about("By channel"))
        .optional("if_latest", string().about("The latest checkpoint must be this; null: there must be none"))
        .optional("allow_missing_parent", boolean().default(false))
}

pub(in crate::http::openapi) fn writes_body(shape: Shape) -> Shape {
    let write = Shape::default()
        .required("channel", text())
        .optional("idx", integer(&(-100..=i64::from(i32::MAX))).about("Absent: its place in the list"))
        .and(sent)
        .schema();
    shape
        .optional("checkpoint_ns", text().default(""))
        .required("checkpoint_id", id())
        .required("task_id", id())
        .optional("task_path", text().default(""))
        .required("writes", list(write, MAX_VALUES))
}

fn operations(shape: Shape) -> Shape {
    let put = Shape::default().required("op", word(&["put"])).and(put_body).schema();
    let writes = Shape::default().required("op", word(&["put_writes"])).and(writes_body).schema();
    shape.required("operations", list(either([put, writes]), MAX_OPERATIONS))
}

fn stored(operation: Operation) -> Operation {
    operation
        .refuses(404, "There is no such thread, and this does not make it")
        .refuses(409, "The thread is of this server's graphs, is closed, or lacks what is referred to")
}

/// JSON, or a frame for who accepts it.
fn typed(operation: Operation, schema: Schema, about: &'static str) -> Operation {
    operation.ok(schema, about).answer(200, FRAME_TYPE, string(), "").header(
        "Accept",
        string(),
        "`application/vnd.session-store.frame`: values as bytes behind the JSON instead of base64 in it",
    )
}

pub(in crate::http) fn put() -> Operation {
    let made = shape()
        .required("thread_id", component("ThreadId"))
        .required("checkpoint_ns", string())
        .required("checkpoint_id", string());
    stored(operation("checkpoints.put", "Put a checkpoint of a graph that runs elsewhere"))
        .body(shape().and(put_body))
        .ok(made.schema(), "Where it is")
}

pub(in crate::http) fn put_writes() -> Operation {
    stored(operation("checkpoints.put_writes", "Put what a task wrote"))
        .body(shape().and(writes_body))
        .empty(204, "They are stored")
}

pub(in crate::http) fn batch() -> Operation {
    stored(operation("checkpoints.batch", "Put many, or none"))
        .body(shape().and(operations))
        .empty(204, "They are stored")
}

pub(in crate::http) fn batch_of_many() -> Operation {
    let part = shape().required("thread_id", component("ThreadId")).and(operations).schema();
    let result = shape()
        .required("status", whole().about("As the batch alone would have had it"))
        .sometimes("detail", string())
        .sometimes("missing_hashes", array(string()))
        .schema();
    operation("checkpoints.batch_of_many", "Batches of several threads, each of them all or nothing")
        .body(shape().required("threads", list(part, MAX_OPERATIONS)))
        .ok(shape().required("results", array(result)).schema(), "A result for each, in order")
}

pub(in crate::http) fn search() -> Operation {
    let after = shape().optional("checkpoint_ns", text().default("")).required("checkpoint_id", text()).schema();
    let search = operation("checkpoints.search", "Checkpoints from elsewhere with their values").body(
        shape()
            .optional("checkpoint_ns", text().about("Absent: all"))
            .optional("checkpoint_id", text())
            .optional("before", text().about("Those before it"))
            .optional("after", after.about("Where the list goes on"))
            .optional("metadata", record().about("Contained in the checkpoint's metadata"))
            .optional("limit", integer(&LIMITS).default(10)),
    );
    typed(search, array(component("ForeignCheckpoint")), "Newest first; none on a thread that is not there")
}

pub(in crate::http) fn deltas() -> Operation {
    let write = value().required("task_id", string()).schema();
    let history = shape().required("writes", array(write)).sometimes("seed", value().schema()).schema();
    let deltas = operation("checkpoints.deltas", "What channels contributed on the way to a checkpoint").body(
        shape()
            .optional("checkpoint_ns", text().default(""))
            .optional("checkpoint_id", text().about("Absent: the latest"))
            .required("channels", list(text(), MAX_CHANNELS)),
    );
    typed(deltas, shape().required("channels", map(history)).schema(), "By channel")
}

pub(in crate::http) fn copy() -> Operation {
    operation("checkpoints.copy", "Copy a thread's checkpoints to a new thread")
        .body(shape().required("thread_id", component("ThreadId").about("A name that is free")))
        .ok(shape().required("thread_id", component("ThreadId")).schema(), "The new thread")
        .refuses(404, "There is no such thread")
        .refuses(409, "The name is taken")
}

pub(in crate::http) fn delete() -> Operation {
    operation("checkpoints.delete", "Delete the checkpoints of runs, on any thread")
        .body(shape().required("run_ids", list(text(), MAX_RUNS).about("The `run_id` in their metadata")))
        .ok(shape().required("deleted_count", whole()).schema(), "How many")
}

pub(in crate::http::openapi) fn row() -> Shape {
    shape()
        .required("checkpoint_id", string())
        .required("checkpoint_ns", string())
        .required("parent_checkpoint_id", string().nullable())
        .required("run_id", string().nullable())
        .required("step", any().about("As its metadata says"))
        .required("source", any().about("As its metadata says"))
        .required("channels", array(string()))
        .required("bytes", whole())
        .required("created_at", crate::http::openapi::schema::time())
}
