//! What people see of checkpoints from elsewhere: states, sessions, differences.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use super::foreign::{document, put, refused, stored, value, waiting};
use crate::support::server::TestServer;

const FIRST: &str = "1efa0000-0000-6000-8000-000000000001";
const WAITING: &str = "1efa0000-0000-6000-8000-000000000002";

fn shown(value: &Value) -> Value {
    json!({"type": "json", "base64": STANDARD.encode(value.to_string())})
}

/// A checkpoint of these channels, all at version 2, which `seen` of nodes have seen.
fn checkpoint(id: &str, values: &Value, seen: Value) -> Value {
    let channels = values.as_object().expect("by channel");
    let versions: Value =
        channels.keys().map(|channel| (channel.clone(), json!(2))).collect::<serde_json::Map<_, _>>().into();
    let values = channels.iter().map(|(channel, value)| (channel.clone(), shown(value)));
    let mut body = json!({"checkpoint": document(id, versions), "metadata": {"source": "loop", "step": 1, "parents": {}},
                          "values": values.collect::<serde_json::Map<_, _>>()});
    body["checkpoint"]["versions_seen"] = seen;
    body
}

async fn wrote(server: &TestServer, thread: &str, at: (&str, &str), task: (&str, &str), writes: &[(&str, Value)]) {
    let writes: Vec<Value> = writes
        .iter()
        .map(|(channel, value)| {
            let mut write = shown(value);
            write["channel"] = json!(channel);
            write
        })
        .collect();
    let body =
        json!({"checkpoint_ns": at.0, "checkpoint_id": at.1, "task_path": task.0, "task_id": task.1, "writes": writes});
    assert_eq!(server.post(&format!("/threads/{thread}/checkpoints/writes"), body).await.status, 204);
}

async fn state(server: &TestServer, thread: &str) -> Value {
    server.get(&format!("/threads/{thread}/state")).await.ok()
}

#[tokio::test]
async fn a_session_tells_where_a_graph_elsewhere_stands() {
    let server = TestServer::start().await;
    waiting(&server, "t").await;
    let session = server.get("/threads/t/session").await.ok();
    assert_eq!(session["status"], "interrupted");
    let task =
        json!({"id": "task-1", "name": "approve", "error": null, "interrupt_ids": ["abc"], "is_finished": false});
    assert_eq!(
        session["position"],
        json!({"checkpoint_id": WAITING, "branch": null, "step": 1, "source": "loop", "run_id": null,
               "created_at": "2026-01-01T00:00:00.000000+00:00", "next": ["approve"], "tasks": [task]})
    );
    let question = &session["interrupts"]["pending"][0];
    assert_eq!(
        (&question["interrupt_id"], &question["value"], &question["node"], &question["task_id"], &question["status"]),
        (&json!("abc"), &json!({"question": "ok?"}), &json!("approve"), &json!("task-1"), &json!("pending"))
    );
    assert_eq!((&session["interrupts"]["past"], &session["interrupts"]["more"]), (&json!([]), &json!(0)));
    assert_eq!((&session["counts"]["checkpoints"], &session["counts"]["interrupts"]), (&json!(1), &json!(1)));
    let stored = server.get("/threads/t/storage").await.ok();
    let bytes =
        ["checkpoints", "pending_writes", "channel_values"].iter().filter_map(|part| stored[part]["bytes"].as_i64());
    assert_eq!(session["counts"]["bytes"], json!(bytes.sum::<i64>()), "{stored}");
    // What it may do is not refused, and what is refused is not there.
    let permissions = &session["permissions"];
    assert_eq!(permissions["may"], json!(["read", "label", "copy", "delete", "end", "archive"]));
    assert!(permissions["note"].as_str().is_some_and(|note| note.contains("runs elsewhere")), "{permissions}");
    server.post("/threads/t/end", json!({})).await.ok();
    let may = server.get("/threads/t/session").await.ok()["permissions"]["may"].clone();
    assert_eq!(may, json!(["read", "label", "copy", "delete", "reopen"]));
    server.post("/threads/t/reopen", json!({})).await.ok();
    // The answer to a copy shows what the copy holds.
    let copy = server.post("/threads/t/copy", json!({})).await.ok();
    assert_eq!(copy["values"], state(&server, "t").await["values"]);
    let read = server.get(&format!("/threads/{}", copy["thread_id"].as_str().expect("an id"))).await.ok();
    assert_eq!(
        (&copy["values"], &copy["interrupts"], &copy["status"]),
        (&read["values"], &read["interrupts"], &read["status"])
    );
}

#[tokio::test]
async fn ids_need_not_be_uuids_where_a_put_took_others() {
    let server = TestServer::start().await;
    stored(&server, "t", put("c1", None, &value(b"\x01"))).await;
    stored(&server, "t", put("c2", Some("c1"), &value(b"\x02"))).await;
    assert_eq!(server.get("/threads/t/state/c1").await.ok()["values"], json!({"a": 1}));
    let cursor = json!({"checkpoint": {"checkpoint_id": "c1"}});
    assert_eq!(server.post("/threads/t/state/checkpoint", cursor).await.ok()["values"], json!({"a": 1}));
    assert_eq!(server.get("/threads/t/history?before=c2").await.ok()[0]["checkpoint"]["checkpoint_id"], "c1");
    assert_eq!(server.get("/threads/t/state/c9").await.ok()["values"], json!({}), "as an unknown UUID is");
    let found = server.get("/threads/t/diff").await.ok();
    assert_eq!((&found["a"]["checkpoint_id"], &found["b"]["checkpoint_id"]), (&json!("c1"), &json!("c2")));
    assert_eq!((&found["channels"][0]["before"], &found["channels"][0]["after"]), (&json!(1), &json!(2)), "{found}");
    assert_eq!(server.get("/threads/t/diff?a=c2&b=c1").await.ok()["channels"][0]["after"], json!(1));
    server.get("/threads/t/diff?a=c9").await.refused(404);
    refused(&server.post("/threads/t/head", json!({"checkpoint_id": "c1"})).await, 409, "runs elsewhere");
    refused(&server.post("/threads/t/branches/b", json!({"checkpoint_id": "c1"})).await, 404, "c1");
    refused(&server.post("/threads/t/branches/b", json!({})).await, 409, "runs elsewhere");
    let patched = server.send("PATCH", "/threads/t/state", json!({"metadata": {"x": 1}}).to_string()).await;
    refused(&patched, 409, "runs elsewhere");
    // On a thread of this server's graphs an id is a UUID.
    server.post("/threads/native/runs/wait", json!({"assistant_id": "counter", "input": {"counter": 0}})).await.ok();
    refused(&server.get("/threads/native/state/c1").await, 422, "must be a UUID");
}

#[tokio::test]
async fn all_channels_of_the_user_are_shown() {
    let server = TestServer::start().await;
    let values = json!({"a:b": 1, "__x": 2, "join:at": 3, "plain": 4, "branch:to:last": null, "join:s+t:u": ["s", "t"],
                        "join:s+t:v": ["s"]});
    stored(&server, "odd", checkpoint(FIRST, &values, json!({}))).await;
    let odd = state(&server, "odd").await;
    assert_eq!(odd["values"], json!({"a:b": 1, "__x": 2, "join:at": 3, "plain": 4}));
    assert_eq!(odd["next"], json!(["last", "u"]));
    // Nothing told the ids of tasks that have not begun.
    let tasks: Vec<_> =
        odd["tasks"].as_array().expect("a list").iter().map(|t| (&t["id"], &t["name"], &t["interrupts"])).collect();
    assert_eq!(json!(tasks), json!([[null, "last", []], [null, "u", []]]));
    // A function's state is what it returned.
    let values = json!({"__start__": 3, "__end__": {"sum": 7}, "__previous__": 5});
    let seen = json!({"__input__": {}, "sum": {"__start__": 1}});
    stored(&server, "function", checkpoint(FIRST, &values, seen)).await;
    let question = json!([{"value": "sure?", "id": "q"}]);
    wrote(&server, "function", ("", FIRST), ("~__pregel_pull, sum", "main"), &[("__interrupt__", question)]).await;
    let call = "~__pregel_push, ~__pregel_pull, sum, 0000000000, 0000000001";
    wrote(&server, "function", ("", FIRST), (call, "call"), &[("__return__", json!(6))]).await;
    let function = state(&server, "function").await;
    assert_eq!((&function["values"], &function["next"]), (&json!({"sum": 7}), &json!(["sum"])));
    assert_eq!(function["tasks"].as_array().map(Vec::len), Some(1), "what it calls is no task of its state");
    assert_eq!(function["tasks"][0]["interrupts"], json!([{"id": "q", "value": "sure?"}]));
    stored(&server, "number", checkpoint(FIRST, &json!({"__end__": 7, "__previous__": 7}), json!({}))).await;
    assert_eq!(state(&server, "number").await["values"], json!(7));
    assert_eq!(server.get("/threads/number/session").await.ok()["values"], json!(7));
    assert_eq!(server.get("/threads/number/diff").await.ok()["channels"][0]["after"], json!(7));
}

#[tokio::test]
async fn tasks_are_told_by_what_they_wrote() {
    let server = TestServer::start().await;
    let sends = json!([{"node": "p", "args": 1}, {"node": "q", "args": 2}, {"node": "p", "args": 3}]);
    let values = json!({"a": [], "__pregel_tasks": sends, "branch:to:ask": null, "branch:to:done": null});
    stored(&server, "t", checkpoint(FIRST, &values, json!({"done": {"branch:to:done": 1}}))).await;
    let question = |id: &str| json!([{"value": id, "id": id}]);
    let push = |index: usize| format!("~__pregel_push, {index:010}, 0000000000");
    wrote(&server, "t", ("", FIRST), (&push(2), "third"), &[("__interrupt__", question("3"))]).await;
    wrote(&server, "t", ("", FIRST), (&push(1), "second"), &[("a", json!([1])), ("a", json!([2]))]).await;
    // LangGraph for JavaScript tells no paths; a task's id is derived from what it runs at.
    let id = Uuid::new_v5(&FIRST.parse().expect("a UUID"), br#"["ask","2","ask","__pregel_pull",["branch:to:ask"]]"#);
    wrote(&server, "t", ("", FIRST), ("", &id.to_string()), &[("__interrupt__", question("ask"))]).await;
    let nobody = "00000000-0000-0000-0000-000000000000";
    wrote(&server, "t", ("", FIRST), ("", nobody), &[("a", json!([0]))]).await;
    let found = state(&server, "t").await;
    assert_eq!(found["next"], json!(["p", "p", "ask", "done"]), "the one that has finished does not run next");
    let tasks = found["tasks"].as_array().expect("a list").clone();
    let told: Vec<_> = tasks.iter().map(|t| (&t["name"], &t["id"], &t["interrupts"][0]["id"], &t["result"])).collect();
    assert_eq!(
        json!(told),
        json!([["p", null, null, null], ["q", "second", null, {"a": {"$writes": [[1], [2]]}}], ["p", "third", "3", null],
               ["ask", id, "ask", null], ["done", null, null, null]])
    );
    assert_eq!(tasks[1]["path"], json!(["__pregel_push", 1, false]));
    assert_eq!(
        server.get("/threads/t").await.ok()["interrupts"],
        json!({"third": [{"id": "3", "value": "3"}], id.to_string(): [{"id": "ask", "value": "ask"}]})
    );
    // As a record of the superstep, all of them are next.
    let then = server.get(&format!("/threads/t/state/{FIRST}")).await.ok();
    assert_eq!(then["next"], json!(["p", "q", "p", "ask", "done"]));
}

#[tokio::test]
async fn graphs_inside_tasks_are_shown_within_them() {
    let server = TestServer::start().await;
    let outer = checkpoint(FIRST, &json!({"a": 1, "branch:to:m": null}), json!({}));
    stored(&server, "t", outer).await;
    let question = json!([{"value": "sure?", "id": "q"}]);
    wrote(&server, "t", ("", FIRST), ("~__pregel_pull, m", "id-1"), &[("__interrupt__", question.clone())]).await;
    let (middle, inmost) = ("m:id-1", "m:id-1|in:id-2");
    for (ns, node, task, parents) in
        [(middle, "in", "id-2", json!({"": FIRST})), (inmost, "y", "id-3", json!({"": FIRST, middle: WAITING}))]
    {
        let mut inner = checkpoint(WAITING, &json!({"of": ns, format!("branch:to:{node}"): null}), json!({}));
        inner["checkpoint_ns"] = json!(ns);
        inner["metadata"]["parents"] = parents;
        stored(&server, "t", inner).await;
        let path = format!("~__pregel_pull, {node}");
        wrote(&server, "t", (ns, WAITING), (&path, task), &[("__interrupt__", question.clone())]).await;
    }
    let plain = state(&server, "t").await;
    assert_eq!(plain["tasks"][0]["checkpoint"], json!({"thread_id": "t", "checkpoint_ns": middle}));
    assert_eq!(plain["tasks"][0]["state"], Value::Null);
    let all = server.get("/threads/t/state?subgraphs=true").await.ok();
    let task = &all["tasks"][0];
    assert_eq!((&task["checkpoint"], &task["state"]["values"]), (&Value::Null, &json!({"of": middle})));
    let inner = &task["state"]["tasks"][0];
    assert_eq!(
        (&inner["name"], &inner["state"]["values"], &inner["state"]["next"]),
        (&json!("in"), &json!({"of": inmost}), &json!(["y"]))
    );
    assert_eq!(inner["state"]["tasks"][0]["interrupts"], json!([{"id": "q", "value": "sure?"}]));
    assert_eq!(inner["state"]["checkpoint"]["checkpoint_map"], json!({"": FIRST, middle: WAITING, inmost: WAITING}));
    let alone = server.get("/threads/t/state?checkpoint_ns=m%3Aid-1").await.ok();
    assert_eq!(alone["values"], json!({"of": middle}));
}

/// Tasks can share a graph that keeps its state, and so on inside it: few checkpoints are many states then.
#[tokio::test]
async fn what_is_shown_of_graphs_inside_graphs_is_bounded() {
    let server = TestServer::start().await;
    let sends: Value = vec![json!({"node": "p", "args": 1}); 8].into();
    for depth in 0..12 {
        let mut body = checkpoint(FIRST, &json!({"__pregel_tasks": sends}), json!({}));
        body["checkpoint_ns"] = json!(vec!["p"; depth].join("|"));
        stored(&server, "t", body).await;
    }
    let text = server.get("/threads/t/state?subgraphs=true").await.text;
    assert_eq!(text.matches(r#""values":{}"#).count(), 65, "of 64 tasks, and its own");
}

#[tokio::test]
async fn values_that_only_the_graph_can_make_are_shown_as_changes() {
    let server = TestServer::start().await;
    let ids = ["c1", "c2", "c3"];
    for (id, parent) in ids.iter().zip([None, Some("c1"), Some("c2")]) {
        let mut body = put(id, parent, &shown(&json!([0])));
        if *id != "c1" {
            body["values"] = json!({});
        }
        body["metadata"]["counters_since_delta_snapshot"] = json!({"a": [1, 1], "branch:to:x": [1, 1]});
        stored(&server, "t", body).await;
        wrote(&server, "t", ("", id), ("~__pregel_pull, n", id), &[("a", json!([id]))]).await;
    }
    let found = state(&server, "t").await;
    assert_eq!(found["values"], json!({"a": {"type": "delta", "seed": [0], "writes": [["c1"], ["c2"]]}}));
    assert_eq!(server.get("/threads/t/state/c1").await.ok()["values"], json!({"a": [0]}));
    // Where many are listed, it is only told.
    let delta = json!({"a": {"type": "delta"}});
    assert_eq!(server.get("/threads/t/history").await.ok()[0]["values"], delta);
    assert_eq!(server.get("/threads/t").await.ok()["values"], delta);
}
