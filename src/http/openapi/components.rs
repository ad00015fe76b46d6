//! What answers are made of (contract section 2), by name, and the headers they carry.

use serde_json::{Map, Value, json};

use super::operation::{common_parameters, common_refusals};
use super::paths::{branches, crons, foreign, run_body, session, threads};
use super::schema::{
    Schema, Shape, any, array, boolean, component, map, record, shape, string, time, uuid, whole, word,
};
use crate::model::TaskOutcome;

/// The components of the document.
pub(super) fn all() -> Value {
    json!({
        "securitySchemes": {
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        },
        "parameters": common_parameters(),
        "headers": headers(),
        "responses": common_refusals(),
        "schemas": schemas(),
    })
}

fn headers() -> Value {
    let of = |about: &str, kind: &str| json!({"description": about, "schema": {"type": kind}});
    json!({
        "X-Pagination-Total": of("At least how many rows there are", "integer"),
        "X-Pagination-Next": of("Where the list goes on: absent on its last page", "string"),
        "Location": of("Where the answer can be had again", "string"),
        "Content-Location": of("The path of the run", "string"),
    })
}

fn schemas() -> Map<String, Value> {
    let mut all: Vec<(&str, Schema)> = vec![
        ("Error", shape().required("detail", string().about("What is wrong, and often what to do")).schema()),
        ("ThreadId", thread_id()),
        ("Interrupt", interrupt().schema()),
        ("Checkpoint", cursor().schema()),
        ("Task", task().schema()),
        ("Question", question().schema()),
        ("Drawing", drawing().schema()),
        ("Graph", graph().schema()),
        ("AssistantVersion", assistant().without(&["updated_at"]).schema()),
        ("CheckpointRow", checkpoint_row().schema()),
        ("CheckpointWithState", checkpoint_with_state().schema()),
        ("Failure", shape().required("error", string()).required("message", string()).schema()),
        ("Item", item().schema()),
        ("FoundItem", item().required("score", any().about("A number; null where nothing was compared")).schema()),
        ("Schemas", schemas_of_a_graph().schema()),
        ("GraphSchemas", schemas_of_a_graph().required("graph_id", string()).schema()),
        ("StateUpdated", state_updated().schema()),
        ("Webhook", webhook().schema()),
        ("QuarantinedRun", quarantined_run().schema()),
        ("CommandAnswer", command_answer()),
        ("RunBody", run_body::run(shape()).schema()),
        ("CronBody", crons::body().schema()),
        ("CronChange", crons::change().schema()),
        ("Config", run_body::config()),
        ("RunDetail", session::run_detail().schema()),
        ("Branch", branches::branch()),
        ("Cursor", run_body::cursor()),
        ("Effect", effect().schema()),
        ("Execution", execution().schema()),
        ("ForeignRow", foreign::row().schema()),
        ("ForeignCheckpoint", foreign_checkpoint().schema()),
        ("TimeToLive", threads::ttl()),
        ("RpcRequest", rpc_request().schema()),
        ("RpcAnswer", rpc_answer().schema()),
    ];
    for (name, part, whole) in [
        ("Assistant", "AssistantPart", assistant()),
        ("Thread", "ThreadPart", thread()),
        ("ThreadState", "ThreadStatePart", thread_state()),
        ("Run", "RunPart", run()),
        ("Cron", "CronPart", cron()),
    ] {
        all.push((part, whole.clone().part().schema().about("What `select` chose")));
        all.push((name, whole.schema()));
    }
    all.sort_by_key(|(name, _)| *name);
    all.into_iter().map(|(name, schema)| (name.to_owned(), schema.json())).collect()
}

fn thread_id() -> Schema {
    string()
        .with("minLength", 1)
        .with("maxLength", 255)
        .with("pattern", "^[A-Za-z0-9._:~@-]+$")
        .about("A UUID, or any name. `search`, `count`, `prune`, `.` and `..` are none")
}

fn assistant() -> Shape {
    shape()
        .required("assistant_id", uuid())
        .required("graph_id", string())
        .required("config", record())
        .required("context", record())
        .required("metadata", record())
        .required("name", string())
        .required("description", string().nullable())
        .required("created_at", time())
        .required("updated_at", time())
        .required("version", whole())
}

fn thread() -> Shape {
    let statuses = word(&["idle", "busy", "interrupted", "error"]);
    let ttl = shape()
        .required("strategy", word(&["delete", "keep_latest"]))
        .required("ttl_minutes", Schema::number())
        .required("expires_at", time());
    let closed = shape()
        .required("as", word(&["ended", "archived"]))
        .required("at", time())
        .required("by", string().nullable())
        .required("reason", string().nullable());
    shape()
        .required("thread_id", component("ThreadId"))
        .required("created_at", time())
        .required("updated_at", time())
        .required("state_updated_at", time())
        .required("metadata", record())
        .required("config", record())
        .required("status", statuses)
        .required("values", any().about("Usually an object; null while there is no state"))
        .required("interrupts", map(array(component("Interrupt"))).about("Pending questions by task"))
        .required("error", component("Failure").nullable())
        .sometimes("ttl", ttl.schema().nullable().about("With `include=ttl`"))
        .sometimes("closed", closed.schema().about("How it was closed, where it was"))
        .sometimes("extracted", record().about("With `extract`: values by alias"))
}

fn interrupt() -> Shape {
    shape()
        .required("id", string())
        .required("value", any())
        .sometimes("response_schema", any().about("A JSON Schema for the answer"))
}

fn cursor() -> Shape {
    shape()
        .sometimes("checkpoint_id", string())
        .required("thread_id", component("ThreadId"))
        .required("checkpoint_ns", string().about("Empty: the root graph"))
        .sometimes("checkpoint_map", map(string()))
}

fn task() -> Shape {
    shape()
        .required("id", string().nullable().about("Null where the graph runs elsewhere and has not told it"))
        .required("name", string())
        .required("path", array(any()))
        .required("error", string().nullable())
        .required("interrupts", array(component("Interrupt")))
        .required("checkpoint", component("Checkpoint").nullable())
        .required("state", component("ThreadState").nullable())
        .required("result", any())
        .sometimes("questions", array(component("Question")).about("With `include=answers`"))
        .sometimes("effects", array(component("Effect")).about("With `include=effects`"))
}

fn execution() -> Shape {
    shape()
        .required("step", whole().about("The superstep"))
        .required("node", string())
        .required("from", array(string()).about("The nodes that led here; empty where the run took the task up"))
        .required("next", array(string()).about("The nodes it led to"))
        .required("status", word(&TaskOutcome::ALL.map(TaskOutcome::as_str)))
        .required("attempt", whole().about("1 for the first; 0: the output came from a cache"))
        .required("started_at", time())
        .required("ended_at", time())
        .required("ms", any().about("How long it took, in milliseconds"))
        .required("written", array(string()).about("The keys it wrote"))
        .required("error", any().about("`{error, message}` where it failed"))
        .required("tokens", whole())
        .required("cost", string())
        .required("usage", record().about("Tokens and cost by model"))
        .required("run_id", uuid())
        .required("actor", string().nullable().about("Who asked for the run"))
        .required("task_id", string())
        .required("checkpoint_id", string().about("The checkpoint it was planned from"))
        .required("checkpoint_ns", string())
}

fn thread_state() -> Shape {
    shape()
        .required("values", any().about("Usually an object"))
        .required("next", array(string()).about("The nodes to run next"))
        .required("tasks", array(component("Task")))
        .required("metadata", record().nullable())
        .required("created_at", time().nullable())
        .required("checkpoint", component("Checkpoint").nullable())
        .required("parent_checkpoint", component("Checkpoint").nullable())
        .required("interrupts", array(component("Interrupt")))
        .required("checkpoint_id", string().nullable())
        .required("parent_checkpoint_id", string().nullable())
}

fn checkpoint_row() -> Shape {
    shape()
        .required("checkpoint_id", string())
        .required("checkpoint_ns", string())
        .required("parent_checkpoint_id", string().nullable())
        .required("run_id", uuid().nullable())
        .required("step", whole())
        .required("source", word(&["input", "loop", "update", "fork"]))
        .required("nodes", array(string()).about("The nodes that ran"))
        .required("next", array(string()))
        .required("graph_version", string().nullable())
        .required("topology", string().nullable())
        .required("bytes", whole())
        .required("created_at", time())
}

fn checkpoint_with_state() -> Shape {
    let row = checkpoint_row().without(&["next", "created_at"]);
    thread_state().merged(row)
}

fn effect() -> Shape {
    shape()
        .required("key", string())
        .required("state", word(&["started", "failed", "recorded"]))
        .required("node", string())
        .required("task_id", string())
        .required("checkpoint_id", string())
        .required("checkpoint_ns", string())
        .required("run_id", uuid().nullable())
        .required("attempt", whole())
        .required("asked", whole().about("How many questions about this call humans have answered"))
        .required("started_at", time())
        .required("ended_at", time().nullable())
        .required("bytes", whole())
        .required("error", component("Failure").nullable())
        .sometimes("result", any().about("With `results`: what the call returned"))
}

fn foreign_checkpoint() -> Shape {
    let write = foreign::value()
        .required("task_id", string())
        .required("task_path", string())
        .required("idx", whole())
        .required("channel", string());
    shape()
        .required("thread_id", component("ThreadId"))
        .required("checkpoint_ns", string())
        .required("checkpoint_id", string())
        .required("parent_checkpoint_id", string().nullable())
        .required("checkpoint", record())
        .required("metadata", record())
        .required("values", map(foreign::value().schema()).about("By channel"))
        .required("pending_writes", array(write.schema()))
        .required("created_at", time())
}

fn state_updated() -> Shape {
    shape()
        .required("checkpoint", component("Checkpoint"))
        .required("configurable", component("Checkpoint"))
        .required("checkpoint_id", string().nullable())
}

fn question() -> Shape {
    shape()
        .required("interrupt_id", string())
        .required("thread_id", component("ThreadId"))
        .required("status", word(&["pending", "answered", "dropped"]))
        .required("graph_id", string())
        .required("assistant_id", uuid())
        .required("node", string())
        .required("task_id", string())
        .required("checkpoint_ns", string())
        .required("checkpoint_id", string())
        .required("run_id", uuid())
        .required("value", any())
        .required("response_schema", any())
        .required("asked_at", time())
        .required("answer", any())
        .required("answered_at", time().nullable())
        .required("answered_by", string().nullable())
        .required("answered_run_id", uuid().nullable())
}

fn run() -> Shape {
    shape()
        .required("run_id", uuid())
        .required("thread_id", component("ThreadId"))
        .required("assistant_id", uuid())
        .required("created_at", time().about("Includes the delay of `after_seconds`"))
        .required("updated_at", time())
        .required("status", word(&["pending", "running", "error", "success", "timeout", "interrupted"]))
        .required("metadata", record())
        .required("kwargs", record().about("What the run was asked to do"))
        .required("multitask_strategy", word(&["enqueue", "reject", "interrupt", "rollback"]))
        .required("langsmith_session_name", any().about("Always null"))
}

fn cron() -> Shape {
    shape()
        .required("cron_id", uuid())
        .required("assistant_id", uuid())
        .required("thread_id", component("ThreadId").nullable())
        .required("user_id", any().about("Always null"))
        .required("end_time", time().nullable())
        .required("schedule", string())
        .required("timezone", string().nullable())
        .required("payload", record().about("The body it was made of"))
        .required("next_run_date", time().nullable())
        .required("metadata", record())
        .required("on_run_completed", word(&["delete", "keep"]).nullable())
        .required("enabled", boolean())
        .required("created_at", time())
        .required("updated_at", time())
}

fn item() -> Shape {
    shape()
        .required("namespace", array(string()))
        .required("key", string())
        .required("value", record())
        .required("created_at", time())
        .required("updated_at", time())
}

fn graph() -> Shape {
    shape()
        .required("name", string())
        .required("description", string().nullable())
        .required("version", string())
        .required("assistant_id", uuid())
        .required("nodes", array(string()))
}

fn schemas_of_a_graph() -> Shape {
    let kinds = ["input_schema", "output_schema", "state_schema", "config_schema", "context_schema"];
    kinds.into_iter().fold(shape(), |shape, kind| shape.required(kind, any().about("A JSON Schema, or null")))
}

fn drawing() -> Shape {
    let node = shape()
        .required("id", string())
        .sometimes("type", string())
        .sometimes("data", shape().required("name", string()).schema())
        .sometimes("metadata", record());
    let edge = shape()
        .required("source", string())
        .required("target", string())
        .sometimes("data", string().about("A router's answer, where it is not the target's name"))
        .sometimes("conditional", boolean());
    shape().required("nodes", array(node.schema())).required("edges", array(edge.schema()))
}

fn webhook() -> Shape {
    shape()
        .required("run_id", uuid())
        .required("thread_id", component("ThreadId"))
        .required("url", string())
        .required("state", word(&["waiting", "due", "dead"]))
        .required("attempts", whole())
        .required("next_attempt_at", time().nullable())
        .required("last_error", string().nullable())
        .required("created_at", time())
}

fn quarantined_run() -> Shape {
    shape()
        .required("run_id", uuid())
        .required("thread_id", component("ThreadId"))
        .required("graph_id", string())
        .required("attempts", whole())
        .required("last_worker", string().nullable())
        .required("error", component("Failure").nullable())
        .required("created_at", time())
        .required("quarantined_at", time())
}

/// The envelopes of protocol v2 (contract section 5.1).
fn command_answer() -> Schema {
    let meta = shape().required("applied_through_seq", whole());
    let success = shape()
        .required("type", word(&["success"]))
        .required("id", whole())
        .required("result", record())
        .required("meta", meta.schema());
    let refusal = shape()
        .required("type", word(&["error"]))
        .required("id", whole().nullable())
        .required("error", string().about("A code, as `invalid_argument`"))
        .required("message", string());
    super::schema::either([success.schema(), refusal.schema()])
}

fn rpc_id() -> Schema {
    super::schema::either([string(), Schema::number()])
}

fn rpc_request() -> Shape {
    shape()
        .required("jsonrpc", word(&["2.0"]))
        .sometimes("id", rpc_id())
        .required("method", string())
        .optional("params", record())
}

fn rpc_answer() -> Shape {
    let error = shape().required("code", whole()).required("message", string()).sometimes("data", any());
    shape()
        .required("jsonrpc", word(&["2.0"]))
        .required("id", rpc_id().nullable())
        .sometimes("result", any())
        .sometimes("error", error.schema())
}
