//! Branches: names, moving the head, going on from there, and what differs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{Checkpointing, Context, Graph, START, StateGraph};
use session_store::http::HttpSettings;
use session_store::update;

use crate::support::server::TestServer;

async fn chat(server: &TestServer, text: &str) -> Vec<Value> {
    let messages = json!([{"role": "user", "content": text}]);
    let run = json!({"assistant_id": "chat", "input": {"messages": messages}});
    let values = server.post("/threads/t/runs/wait", run).await.ok();
    values["messages"].as_array().expect("messages").clone()
}

/// What the human said, in order.
async fn said(server: &TestServer) -> Vec<String> {
    let values = server.get("/threads/t/state").await.ok()["values"].clone();
    let messages = values["messages"].as_array().expect("messages").iter();
    let human = messages.filter(|message| message["type"] == "human");
    human.map(|message| message["content"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn head(server: &TestServer) -> String {
    let state = server.get("/threads/t/state").await.ok();
    state["checkpoint"]["checkpoint_id"].as_str().expect("a checkpoint").to_owned()
}

async fn at_step(server: &TestServer, step: i64) -> String {
    let rows = server.get("/threads/t/checkpoints?limit=100").await.ok();
    let found = rows.as_array().expect("a list").iter().find(|row| row["step"] == step).expect("the step");
    found["checkpoint_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_thread_goes_on_from_where_its_head_is_moved() {
    let server = TestServer::start().await;
    chat(&server, "one").await;
    let first = head(&server).await;
    chat(&server, "two").await;
    let second = head(&server).await;
    let named = server.send_with("PUT", "/threads/t/branches/main", &[("x-actor", "ann")], "").await.ok();
    assert_eq!((&named["checkpoint_id"], &named["updated_by"]), (&json!(second), &json!("ann")));
    let moved = server.post("/threads/t/head", json!({"checkpoint_id": first, "expected_head": second})).await.ok();
    let want = json!({"thread_id": "t", "checkpoint_id": first, "previous_checkpoint_id": second, "branch": null,
        "status": "idle"});
    assert_eq!(moved, want);
    assert_eq!((said(&server).await, head(&server).await), (vec!["one".to_owned()], first.clone()));
    chat(&server, "three").await;
    assert_eq!(said(&server).await, ["one", "three"]);
    let third = head(&server).await;
    let tips = server.get("/threads/t/branches").await.ok();
    let told: Vec<_> = tips.as_array().expect("a list").iter().map(|t| (&t["checkpoint_id"], &t["names"])).collect();
    assert_eq!(told, [(&json!(third), &json!([])), (&json!(second), &json!(["main"]))]);
    assert_eq!((&tips[0]["is_head"], &tips[1]["is_head"]), (&json!(true), &json!(false)));
    // Onto the branch: its name follows the head from now on.
    server.post("/threads/t/branches/side", json!({})).await.ok();
    let moved = server.post("/threads/t/head", json!({"branch": "main"})).await.ok();
    assert_eq!((&moved["checkpoint_id"], &moved["branch"]), (&json!(second), &json!("main")));
    chat(&server, "four").await;
    assert_eq!(said(&server).await, ["one", "two", "four"]);
    let main = server.get("/threads/t/branches/main").await.ok();
    assert_eq!((&main["checkpoint_id"], &main["is_current"]), (&json!(head(&server).await), &json!(true)));
    server.post("/threads/t/head", json!({"branch": "side"})).await.ok();
    assert_eq!(said(&server).await, ["one", "three"]);
    assert_eq!(server.get("/threads/t/branches/main").await.ok()["checkpoint_id"], main["checkpoint_id"]);
}

#[tokio::test]
async fn a_move_from_another_head_is_refused_with_the_head() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post("/threads/t/runs/wait", run).await.ok();
    let (head, early) = (head(&server).await, at_step(&server, 1).await);
    let text =
        server.post("/threads/t/head", json!({"checkpoint_id": early, "expected_head": early})).await.refused(409);
    assert!(text.contains(&format!("is {head}, not {early}")), "{text}");
    let nowhere = "1f1e0000-0000-6000-8000-000000000000";
    assert!(server.post("/threads/t/head", json!({"checkpoint_id": nowhere})).await.refused(404).contains(nowhere));
    assert!(server.post("/threads/t/head", json!({"branch": "x"})).await.refused(404).contains("'x'"));
    assert!(server.post("/threads/t/head", json!({})).await.refused(422).contains("checkpoint_id"));
    server.post("/threads/t/head", json!({"branch": "x", "checkpoint_id": early})).await.refused(422);
    server.post("/threads/nobody/head", json!({"checkpoint_id": early})).await.refused(404);
    let slow = json!({"assistant_id": "slow", "input": {"sleep_ms": 30_000}});
    let run = server.post("/threads/t/runs", slow).await.ok();
    let text = server.post("/threads/t/head", json!({"checkpoint_id": early})).await.refused(409);
    assert!(text.contains("in-flight"), "{text}");
    let run_id = run["run_id"].as_str().expect("an id");
    server.post(&format!("/threads/t/runs/{run_id}/cancel?wait=true"), json!({})).await;
    let moved = server.post("/threads/t/head", json!({"checkpoint_id": early})).await;
    assert_eq!(moved.status, 200, "{moved:?}");
}

#[tokio::test]
async fn what_is_recorded_on_a_revisited_checkpoint_is_not_its_future() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post("/threads/t/runs/wait", run).await.ok();
    let early = at_step(&server, 1).await;
    let moved = server.post("/threads/t/head", json!({"checkpoint_id": early})).await.ok();
    assert_eq!(moved["status"], json!("interrupted"));
    let state = server.get("/threads/t/state").await.ok();
    assert_eq!((&state["values"], &state["next"]), (&json!({"counter": 1}), &json!(["increment"])));
    let thread = server.get("/threads/t").await.ok();
    assert_eq!((&thread["status"], &thread["values"]), (&json!("interrupted"), &json!({"counter": 1})));
    let go_on = json!({"assistant_id": "counter", "input": null});
    assert_eq!(server.post("/threads/t/runs/wait", go_on).await.ok(), json!({"counter": 3}));
    let tips = server.get("/threads/t/branches").await.ok();
    assert_eq!(tips.as_array().map(Vec::len), Some(2), "{tips}");
    // An edit there is an edit of that state.
    server.post("/threads/t/head", json!({"checkpoint_id": early})).await.ok();
    let edit = json!({"values": {"counter": 7}, "as_node": "increment"});
    server.post("/threads/t/state", edit).await.ok();
    let state = server.get("/threads/t/state").await.ok();
    assert_eq!(state["parent_checkpoint"]["checkpoint_id"], json!(early));
    assert_eq!(state["values"], json!({"counter": 7}));
}

#[tokio::test]
async fn an_answered_question_is_answered_otherwise_on_another_branch() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.post("/threads/t/runs/wait", run).await.ok();
    let asked = head(&server).await;
    let answer = |answer: &str| json!({"assistant_id": "approval", "command": {"resume": answer}});
    assert_eq!(server.post("/threads/t/runs/wait", answer("yes")).await.ok()["approved"], json!(true));
    server.send("PUT", "/threads/t/branches/published", "").await.ok();
    server.post("/threads/t/head", json!({"checkpoint_id": asked})).await.ok();
    let state = server.get("/threads/t/state").await.ok();
    assert_eq!(state["next"], json!(["approve"]));
    assert_eq!(server.post("/threads/t/runs/wait", answer("no")).await.ok()["approved"], json!(false));
    server.post("/threads/t/head", json!({"branch": "published"})).await.ok();
    assert_eq!(server.get("/threads/t/state").await.ok()["values"]["approved"], json!(true));
}

#[tokio::test]
async fn a_question_waits_on_the_branch_it_was_asked_on() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.post("/threads/t/runs/wait", run).await.ok();
    let question = server.get("/interrupts").await.ok()[0]["interrupt_id"].clone();
    server.send("PUT", "/threads/t/branches/asked", "").await.ok();
    let start = at_step(&server, -1).await;
    server.post("/threads/t/head", json!({"checkpoint_id": start})).await.ok();
    assert_eq!(server.get("/interrupts").await.ok(), json!([]));
    let again = json!({"assistant_id": "approval", "input": null});
    server.post("/threads/t/runs/wait", again).await.ok();
    let other = server.get("/interrupts").await.ok();
    assert_eq!(other.as_array().map(Vec::len), Some(1));
    assert_ne!(other[0]["interrupt_id"], question);
    server.post("/threads/t/head", json!({"branch": "asked"})).await.ok();
    let pending = server.get("/interrupts").await.ok();
    assert_eq!((pending.as_array().map(Vec::len), &pending[0]["interrupt_id"]), (Some(1), &question));
    let path = format!("/threads/t/interrupts/{}/answer", question.as_str().expect("an id"));
    let run = server.post(&path, json!({"answer": "yes"})).await.ok();
    let run_id = run["run_id"].as_str().expect("an id");
    let values = server.get(&format!("/threads/t/runs/{run_id}/join")).await.ok();
    assert_eq!(values["approved"], json!(true));
    assert_eq!(server.get("/threads/t/branches/asked").await.ok()["is_current"], json!(true));
}

/// A graph inside that counts its calls in a memory of its own.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Counted {
    calls: i64,
    told: i64,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Told {
    told: i64,
    n: i64,
}

fn remembering() -> Graph {
    let inner = StateGraph::<Counted>::new("inner")
        .checkpointing(Checkpointing::Own)
        .node("count", async |state: Counted, _: Context| {
            let calls = state.calls + 1;
            Ok(update!(Counted { calls, told: calls }))
        })
        .edge(START, "count")
        .build();
    let inner = inner.expect("builds");
    StateGraph::<Told>::new("remembering").subgraph("sub", inner).edge(START, "sub").build().expect("builds")
}

#[tokio::test]
async fn graphs_inside_remember_what_they_knew_where_the_head_was_moved() {
    let server = TestServer::serving(HttpSettings::default(), vec![remembering()]).await;
    let call = async || {
        let values = server.post("/threads/t/runs/wait", json!({"input": {"n": 1}})).await.ok();
        values["told"].as_i64().expect("a number")
    };
    assert_eq!(call().await, 1);
    let first = head(&server).await;
    assert_eq!(call().await, 2);
    assert_eq!(call().await, 3);
    server.send("PUT", "/threads/t/branches/main", "").await.ok();
    server.post("/threads/t/head", json!({"checkpoint_id": first})).await.ok();
    assert_eq!(call().await, 2, "as after the first call");
    assert_eq!(call().await, 3);
    server.post("/threads/t/head", json!({"branch": "main"})).await.ok();
    assert_eq!(call().await, 4);
    // What is pruned to where the head was moved keeps that memory.
    server.post("/threads/t/head", json!({"checkpoint_id": first})).await.ok();
    server.post("/threads/prune", json!({"thread_ids": ["t"], "strategy": "keep_latest"})).await.ok();
    assert_eq!(call().await, 2);
}

#[tokio::test]
async fn branches_are_listed_page_by_page_and_named_with_care() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post("/threads/t/runs/wait", run).await.ok();
    for step in 0..3 {
        let body = json!({"checkpoint_id": at_step(&server, step).await});
        server.post(&format!("/threads/t/branches/step-{step}"), body).await.ok();
    }
    let (mut found, mut path) = (Vec::new(), "/threads/t/branches?limit=2".to_owned());
    loop {
        let page = server.get(&path).await;
        found.extend(page.ok().as_array().expect("a list").iter().map(|tip| tip["names"].clone()));
        let Some(next) = page.header("x-pagination-next") else { break };
        path = format!("/threads/t/branches?limit=2&before={next}");
    }
    assert_eq!(found, [json!([]), json!(["step-2"]), json!(["step-1"]), json!(["step-0"])]);
    for bad in ["head", "1f1e0000-0000-6000-8000-000000000000", "a%20b", "%E2%82%AC"] {
        assert!(server.send("PUT", &format!("/threads/t/branches/{bad}"), "").await.refused(422).contains("name"));
    }
    server.send("PUT", "/threads/nobody/branches/x", "").await.refused(404);
    server.get("/threads/nobody/branches").await.refused(404);
    server.get("/threads/t/branches/x").await.refused(404);
    server.send("DELETE", "/threads/t/branches/x", "").await.refused(404);
    assert_eq!(server.send("DELETE", "/threads/t/branches/step-0", "").await.status, 204);
    server.get("/threads/t/branches/step-0").await.refused(404);
    let empty = server.thread().await;
    assert_eq!(server.get(&format!("/threads/{empty}/branches")).await.ok(), json!([]));
    server.send("PUT", &format!("/threads/{empty}/branches/x"), "").await.refused(400);
}

#[tokio::test]
async fn a_diff_tells_by_channel_what_is_different() {
    let server = TestServer::start().await;
    chat(&server, "one").await;
    let first = head(&server).await;
    server.send("PUT", "/threads/t/branches/first", "").await.ok();
    let long = "x".repeat(5_000);
    let messages = chat(&server, &long).await;
    let diff = server.get("/threads/t/diff?a=first").await.ok();
    assert_eq!(
        (&diff["a"]["checkpoint_id"], &diff["b"]["checkpoint_id"]),
        (&json!(first), &json!(head(&server).await))
    );
    let channel = &diff["channels"][0];
    assert_eq!((&channel["channel"], &channel["change"]), (&json!("messages"), &json!("changed")));
    assert_eq!(
        (&channel["length_before"], &channel["length_after"], &channel["added"]),
        (&json!(2), &json!(4), &json!(2))
    );
    let item = &channel["items"][0];
    assert_eq!((&item["change"], &item["id"], &item["index_after"]), (&json!("added"), &messages[2]["id"], &json!(2)));
    assert!(item.get("after").is_none() && item["after_bytes"].as_u64().is_some_and(|bytes| bytes > 5_000), "{item}");
    let full = server.get("/threads/t/diff?a=first&b=head&values=full&limit=1").await.ok();
    let channel = &full["channels"][0];
    assert_eq!((&channel["items"][0]["after"]["content"], &channel["more_items"]), (&json!(long), &json!(1)));
    let back = server.get(&format!("/threads/t/diff?a=head&b={first}")).await.ok();
    assert_eq!(back["channels"][0]["removed"], json!(2));
    // What the last step did.
    let step = server.get("/threads/t/diff").await.ok();
    assert_eq!(step["channels"][0]["items"].as_array().map(Vec::len), Some(1), "{step}");
    let same = server.get("/threads/t/diff?a=head").await.ok();
    assert_eq!((&same["channels"], &same["unchanged"]), (&json!([]), &json!(1)));
    assert_eq!(server.get("/threads/t/diff?a=first&channel=other").await.ok()["channels"], json!([]));
    assert!(server.get("/threads/t/diff?a=nowhere").await.refused(404).contains("nowhere"));
    server.get("/threads/t/diff?values=x").await.refused(422);
    server.get("/threads/nobody/diff").await.refused(404);
    let empty = server.thread().await;
    server.get(&format!("/threads/{empty}/diff")).await.refused(400);
}
