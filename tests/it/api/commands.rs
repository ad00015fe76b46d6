//! Commands: what protocol v2 sends, and what a run's `command` may hold.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{BuildErrors, Context, END, Graph, START, StateGraph, Update};
use session_store::http::HttpSettings;

use super::protocol::{command, history};
use crate::support::server::TestServer;

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Board {
    said: Vec<Value>,
    note: Value,
}

/// Two members who are asked at once, and one who is only there if somebody goes to them.
fn board() -> Result<Graph, BuildErrors> {
    let member = |name: &'static str| {
        move |(), ctx: Context| async move {
            let answer = ctx.interrupt(json!({"who": name}))?.value().clone();
            Ok(Update::new().set("said", [json!([name, answer])]))
        }
    };
    StateGraph::<Board>::new("board")
        .append("said")
        .node("ann", member("ann"))
        .node("bob", member("bob"))
        .task("guest", async |words: Value, _: Context| Ok(Update::new().set("said", [json!(["guest", words])])))
        .node("clerk", async |(), _: Context| Ok(Update::new().set("said", [json!("minutes")])))
        .edge(START, "ann")
        .edge(START, "bob")
        .edge("ann", END)
        .edge("bob", END)
        .build()
}

async fn server() -> TestServer {
    TestServer::serving(HttpSettings::default(), vec![board().expect("a graph")]).await
}

/// Asks both; returns the ids of their questions, by name.
async fn asked(server: &TestServer, thread: &str) -> (String, String) {
    server.post(&format!("/threads/{thread}/runs/wait"), json!({"input": {}})).await.ok();
    let state = server.get(&format!("/threads/{thread}/state")).await.ok();
    let id = |name: &str| {
        let questions = state["interrupts"].as_array().expect("questions");
        let question = questions.iter().find(|question| question["value"]["who"] == name).expect("is asked");
        question["id"].as_str().expect("an id").to_owned()
    };
    (id("ann"), id("bob"))
}

async fn values(server: &TestServer, thread: &str) -> Value {
    server.get(&format!("/threads/{thread}/state")).await.ok()["values"].clone()
}

#[tokio::test]
async fn several_questions_are_answered_by_one_command() {
    let server = server().await;
    let (ann, bob) = asked(&server, "t").await;
    let one = |id: &str, response: Value| json!({"interrupt_id": id, "namespace": [], "response": response});
    let params = json!({"responses": [one(&bob, json!("no")), one(&ann, json!({"yes": true}))],
                        "update": {"note": "voted"}, "goto": "clerk"});
    let answer = command(&server, "t", "input.respond", params).await;
    assert_eq!((&answer["type"], &answer["result"]), (&json!("success"), &json!({})), "{answer}");
    history(&server, "t", 1).await;
    let values = values(&server, "t").await;
    assert_eq!(values["note"], "voted");
    let mut said = values["said"].as_array().expect("a list").clone();
    said.sort_by_key(Value::to_string);
    assert_eq!(said, [json!("minutes"), json!(["ann", {"yes": true}]), json!(["bob", "no"])]);
    // One of them wrong, and nothing happens.
    let (ann, _) = asked(&server, "u").await;
    let params = json!({"responses": [one(&ann, json!(1)), one(&"0".repeat(32), json!(2))]});
    assert_eq!(command(&server, "u", "input.respond", params).await["error"], "no_such_interrupt");
    assert_eq!(server.get("/threads/u").await.ok()["status"], "interrupted");
    assert_eq!(server.get("/threads/u/runs").await.ok().as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_command_says_what_becomes_of_the_run_before() {
    let server = TestServer::start().await;
    let slow = |steps: i64, more: Value| {
        let mut params = json!({"assistant_id": "slow", "input": {"n": 0, "steps": steps, "sleep_ms": 20}});
        params.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        params
    };
    let run = |answer: Value| answer["result"]["run_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    for (strategy, want) in [("interrupt", Some("interrupted")), ("rollback", None)] {
        let thread = format!("t-{strategy}");
        let place = |run: &str| format!("/threads/{thread}/runs/{run}");
        let first = run(command(&server, &thread, "run.start", slow(10_000, json!({}))).await);
        let is_running = async || server.get(&place(&first)).await.ok()["status"] == "running";
        server.until("the first runs", is_running).await;
        let refused = command(&server, &thread, "run.start", slow(1, json!({"multitaskStrategy": "reject"}))).await;
        assert_eq!(refused["error"], "invalid_argument", "{refused}");
        let params = slow(1, json!({"multitaskStrategy": strategy}));
        let second = run(command(&server, &thread, "run.start", params).await);
        server.get(&format!("{}/join", place(&second))).await.ok();
        assert_eq!(server.get(&place(&second)).await.ok()["status"], "success");
        match want {
            Some(status) => assert_eq!(server.get(&place(&first)).await.ok()["status"], status),
            None => drop(server.get(&place(&first)).await.refused(404)),
        }
    }
    // A word nobody knows waits for its turn.
    let first = run(command(&server, "t", "run.start", slow(3, json!({}))).await);
    let second = run(command(&server, "t", "run.start", slow(1, json!({"multitaskStrategy": "shout"}))).await);
    for run in [first, second] {
        server.get(&format!("/threads/t/runs/{run}/join")).await.ok();
        assert_eq!(server.get(&format!("/threads/t/runs/{run}")).await.ok()["status"], "success");
    }
}

#[tokio::test]
async fn a_command_needs_no_assistant_where_it_is_clear() {
    let server = TestServer::start().await;
    let unclear = command(&server, "t", "run.start", json!({"input": {"counter": 0}})).await;
    assert_eq!(unclear["error"], "invalid_argument", "{unclear}");
    assert!(unclear["message"].as_str().is_some_and(|text| text.starts_with("assistant_id: required")), "{unclear}");
    server.get("/threads/t").await.refused(404);
    command(&server, "t", "run.start", json!({"assistant_id": "counter", "input": {"counter": 0}})).await;
    history(&server, "t", 1).await;
    for assistant in [Value::Null, json!("")] {
        let params = json!({"assistant_id": assistant, "input": {"counter": 1}});
        assert_eq!(command(&server, "t", "run.start", params).await["type"], "success");
    }
    history(&server, "t", 3).await;
    assert_eq!(values(&server, "t").await, json!({"counter": 3}));
}

#[tokio::test]
async fn a_command_goes_to_nodes_and_sends_and_updates_in_pairs() {
    let server = server().await;
    let send = |words: &str| json!({"node": "guest", "input": words});
    for (goto, want) in [
        (json!("clerk"), vec![json!("minutes")]),
        (send("hello"), vec![json!(["guest", "hello"])]),
        (
            json!([send("one"), "clerk", send("two")]),
            vec![json!("minutes"), json!(["guest", "one"]), json!(["guest", "two"])],
        ),
    ] {
        let thread = server.thread().await;
        let (ann, bob) = asked(&server, &thread).await;
        let both = json!({"command": {"resume": {ann: 1, bob: 2}}});
        server.post(&format!("/threads/{thread}/runs/wait"), both).await.ok();
        let pairs = json!([["said", ["first"]], ["note", "n"], ["said", ["second"]]]);
        let body = json!({"command": {"goto": goto, "update": pairs}});
        let values = server.post(&format!("/threads/{thread}/runs/wait"), body).await.ok();
        assert_eq!(values["note"], "n");
        let said = values["said"].as_array().expect("a list");
        assert_eq!(said[..4], [json!(["ann", 1]), json!(["bob", 2]), json!("first"), json!("second")], "{goto}");
        let mut went = said[4..].to_vec();
        went.sort_by_key(Value::to_string);
        assert_eq!(went, want, "{goto}");
    }
    for bad in [json!({"goto": 1}), json!({"goto": [{"input": 1}]}), json!({"update": 1})] {
        let text = server.post("/threads/x/runs/wait", json!({"command": bad})).await;
        assert!(text.status == 422 || text.text.contains("__error__"), "{bad}: {text:?}");
    }
}
