//! State, history, checkpoints.

use serde_json::{Value, json};

use crate::support::server::TestServer;

async fn counted(server: &TestServer) -> String {
    let id = server.thread().await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post(&format!("/threads/{id}/runs/wait"), run).await.ok();
    id
}

#[tokio::test]
async fn an_empty_thread_has_an_empty_state() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let state = server.get(&format!("/threads/{id}/state")).await.ok();
    let want = json!({"values": {}, "next": [], "tasks": [], "metadata": null, "created_at": null, "checkpoint": null,
        "parent_checkpoint": null, "interrupts": [], "checkpoint_id": null, "parent_checkpoint_id": null});
    assert_eq!(state, want);
    assert_eq!(server.get(&format!("/threads/{id}/history")).await.ok(), json!([]));
    assert_eq!(server.get(&format!("/threads/{id}/checkpoints")).await.ok(), json!([]));
}

#[tokio::test]
async fn every_form_of_a_cursor_finds_the_checkpoint() {
    let server = TestServer::start().await;
    let id = counted(&server).await;
    let history = server.post(&format!("/threads/{id}/history"), json!({"limit": 20})).await.ok();
    let steps: Vec<i64> =
        history.as_array().expect("states").iter().filter_map(|s| s["metadata"]["step"].as_i64()).collect();
    assert_eq!(steps, [3, 2, 1, 0, -1]);
    let middle = &history[2];
    let cursor = &middle["checkpoint"];
    let checkpoint = cursor["checkpoint_id"].as_str().expect("an id");
    assert_eq!(cursor["checkpoint_ns"], "");
    assert_eq!(server.get(&format!("/threads/{id}/state/{checkpoint}")).await.ok()["values"], middle["values"]);
    let place = format!("/threads/{id}/state/checkpoint");
    let at = server.post(&place, json!({"checkpoint": cursor})).await.ok();
    assert_eq!(at["values"], middle["values"]);
    let latest = server.post(&place, json!({"checkpoint": {"thread_id": id}})).await.ok();
    assert_eq!(latest["values"], json!({"counter": 3}));
    for before in [json!(checkpoint), cursor.clone(), json!({"configurable": cursor})] {
        let older = server.post(&format!("/threads/{id}/history"), json!({"before": before})).await.ok();
        assert_eq!(older.as_array().map(Vec::len), Some(2), "{before}");
    }
    let picked = server.get(&format!("/threads/{id}/state?select=values.counter&select=next")).await.ok();
    assert_eq!(picked, json!({"values": {"counter": 3}, "next": []}));
    let unknown = "1f1e0000-0000-6000-8000-000000000000";
    let nothing = server.get(&format!("/threads/{id}/state/{unknown}")).await.ok();
    assert_eq!((&nothing["values"], &nothing["checkpoint"]["checkpoint_id"]), (&json!({}), &json!(unknown)));
}

#[tokio::test]
async fn the_record_is_paged_and_opened() {
    let server = TestServer::start().await;
    let id = counted(&server).await;
    let place = format!("/threads/{id}/checkpoints");
    let mut rows: Vec<Value> = Vec::new();
    let mut next = String::new();
    loop {
        let page = server.get(&format!("{place}?limit=2{next}")).await;
        rows.extend(page.ok().as_array().expect("rows").clone());
        match page.header("x-pagination-next") {
            Some(before) => next = format!("&before={before}"),
            None => break,
        }
    }
    let steps: Vec<i64> = rows.iter().filter_map(|row| row["step"].as_i64()).collect();
    assert_eq!(steps, [3, 2, 1, 0, -1]);
    assert_eq!((&rows[0]["nodes"], &rows[0]["next"]), (&json!(["increment"]), &json!([])));
    assert_eq!(rows[0]["parent_checkpoint_id"], rows[1]["checkpoint_id"]);
    assert_eq!((&rows[4]["source"], &rows[4]["parent_checkpoint_id"]), (&json!("input"), &Value::Null));
    let opened = server.get(&format!("{place}/{}", rows[1]["checkpoint_id"].as_str().expect("an id"))).await.ok();
    assert_eq!((&opened["values"], &opened["nodes"]), (&json!({"counter": 2}), &json!(["increment"])));
    server.get(&format!("{place}/nope")).await.refused(404);
}

#[tokio::test]
async fn state_is_changed_as_a_node_would() {
    let server = TestServer::start().await;
    let id = counted(&server).await;
    let body = json!({"values": {"counter": 1}, "as_node": "increment"});
    let answer = server.post(&format!("/threads/{id}/state"), body).await.ok();
    assert_eq!(answer["checkpoint"], answer["configurable"]);
    assert_eq!(answer["checkpoint"]["checkpoint_id"], answer["checkpoint_id"]);
    let state = server.get(&format!("/threads/{id}/state")).await.ok();
    assert_eq!((&state["values"], &state["next"]), (&json!({"counter": 1}), &json!(["increment"])));
    let bad = json!({"values": {"counter": 1}, "as_node": "nobody"});
    server.post(&format!("/threads/{id}/state"), bad).await.refused(400);
}

#[tokio::test]
async fn threads_may_start_with_supersteps() {
    let server = TestServer::start().await;
    let step = |values: Value, as_node: &str| json!({"updates": [{"values": values, "as_node": as_node}]});
    let steps = json!([step(json!({"counter": 1}), "__start__"), step(json!({"counter": 2}), "increment")]);
    let thread = server.post("/threads", json!({"metadata": {"graph_id": "counter"}, "supersteps": steps})).await.ok();
    assert_eq!(thread["values"], json!({"counter": 2}));
    let bad = json!({"metadata": {"graph_id": "counter"}, "supersteps": [step(json!({"counter": 1}), "nobody")]});
    let failed = server.post("/threads", bad).await;
    assert!(failed.refused(201).contains("supersteps failed"), "{failed:?}");
}

#[tokio::test]
async fn a_cursor_that_cannot_be_a_checkpoint_is_refused() {
    let server = TestServer::start().await;
    let id = counted(&server).await;
    let place = |path: &str| format!("/threads/{id}{path}");
    let at = json!({"checkpoint": {"checkpoint_id": "x"}});
    for (path, body) in [
        ("/history", json!({"before": "x"})),
        ("/history", json!({"before": {"checkpoint_id": "x"}})),
        ("/history", at.clone()),
        ("/state/checkpoint", at.clone()),
        ("/state", json!({"values": {"counter": 1}, "checkpoint": {"checkpoint_id": "x"}})),
        ("/runs", at),
        ("/runs", json!({"checkpoint_id": "x"})),
        ("/runs", json!({"config": {"configurable": {"checkpoint_id": "x"}}})),
    ] {
        let text = server.post(&place(path), body.clone()).await.refused(422);
        assert!(text.contains("must be a UUID"), "{path} {body}: {text}");
    }
    server.get(&place("/history?before=x")).await.refused(422);
    // What names nothing is the latest.
    let nothing = json!({"input": {"counter": 0}, "checkpoint": {"checkpoint_id": ""},
                         "config": {"configurable": {"checkpoint_id": null}}});
    assert_eq!(server.post(&place("/runs/wait"), nothing).await.ok(), json!({"counter": 3}));
}

#[tokio::test]
async fn a_run_does_not_start_from_a_checkpoint_that_is_not_there() {
    let server = TestServer::start().await;
    let id = counted(&server).await;
    let head = server.get(&format!("/threads/{id}/state")).await.ok();
    let unknown = "1f1e0000-0000-6000-8000-000000000000";
    let inner = json!({"checkpoint_ns": "x:1", "checkpoint_id": unknown, "checkpoint_map": {"": unknown}});
    for named in [
        json!({"checkpoint_id": unknown}),
        json!({"checkpoint": {"checkpoint_id": unknown}}),
        json!({"checkpoint": inner}),
        json!({"config": {"configurable": {"checkpoint_id": unknown}}}),
    ] {
        let mut body = named;
        body["input"] = json!({"counter": 0});
        for path in ["runs", "runs/wait", "runs/stream"] {
            let text = server.post(&format!("/threads/{id}/{path}"), body.clone()).await.refused(404);
            assert!(text.starts_with(&format!("Checkpoint {unknown} not found")), "{body}: {text}");
        }
    }
    let params = json!({"assistant_id": "counter", "input": {"counter": 0},
                        "config": {"configurable": {"checkpoint_id": unknown}}});
    let command = json!({"id": 1, "method": "run.start", "params": params});
    let refused = server.post(&format!("/threads/{id}/commands"), command).await.ok();
    assert_eq!((&refused["type"], &refused["error"]), (&json!("error"), &json!("no_such_checkpoint")), "{refused}");
    assert_eq!(server.get(&format!("/threads/{id}/state")).await.ok(), head, "the head stays where it was");
    assert_eq!(server.get(&format!("/threads/{id}/runs")).await.ok().as_array().map(Vec::len), Some(1));
    // From one that is there it goes on, and a thread without any has nothing to miss.
    let parent = head["parent_checkpoint"].clone();
    let fork = json!({"input": {"counter": 0}, "checkpoint": parent});
    assert_eq!(server.post(&format!("/threads/{id}/runs/wait"), fork).await.ok(), json!({"counter": 3}));
}
