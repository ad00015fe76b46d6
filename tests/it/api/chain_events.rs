//! The `events` stream mode: what LangGraph's own server tells of the same graphs, event for event.

use serde_json::{Value, json};
use session_store::http::HttpSettings;

use crate::fixtures::refapp;
use crate::support::server::{Frame, TestServer};

async fn server() -> TestServer {
    let graphs = refapp::all().into_iter().map(|graph| graph.expect("builds")).collect();
    TestServer::serving(HttpSettings::default(), graphs).await
}

async fn stream(server: &TestServer, thread: &str, body: Value) -> Vec<Frame> {
    server.frames("POST", &format!("/threads/{thread}/runs/stream"), &[], body).await
}

/// Runs a graph on a new thread, with `more` members of the request.
async fn run(server: &TestServer, graph: &str, input: Value, more: Value) -> Vec<Frame> {
    let thread = server.thread().await;
    let mut body = json!({"assistant_id": graph, "input": input, "stream_mode": ["events"]});
    for (key, value) in more.as_object().expect("members") {
        body[key] = value.clone();
    }
    stream(server, &thread, body).await
}

/// Events as `start bump`, frames of other modes by their name.
fn told(frames: &[Frame]) -> Vec<String> {
    let short = |frame: &Frame| match frame.data["event"].as_str() {
        Some(event) => format!("{} {}", event.trim_start_matches("on_"), frame.data["name"].as_str().expect("a name")),
        None => frame.event.clone(),
    };
    frames.iter().map(short).collect()
}

/// The first event of this kind and name.
fn find<'a>(frames: &'a [Frame], event: &str, name: &str) -> &'a Value {
    let is_it = |frame: &&Frame| frame.data["event"] == event && frame.data["name"] == name;
    &frames.iter().find(is_it).unwrap_or_else(|| panic!("no {event} of {name}: {:?}", told(frames))).data
}

#[tokio::test]
async fn graphs_nodes_and_routers_are_chains() {
    let server = server().await;
    let more = json!({"config": {"tags": ["mine"]}});
    let frames = run(&server, "counter", json!({"target": 1}), more).await;
    let names = [
        "metadata",
        "chain_start counter",
        "chain_start bump",
        "chain_start more",
        "chain_end more",
        "chain_stream bump",
        "chain_end bump",
        "chain_end counter",
    ];
    assert_eq!(told(&frames), names);
    assert!(frames[1..].iter().all(|frame| frame.event == "events" && frame.id.is_none()), "{frames:?}");
    let (root, node, router) = (&frames[1].data, &frames[2].data, &frames[3].data);
    assert_eq!(root["run_id"], frames[0].data["run_id"]);
    assert_eq!((&root["parent_ids"], &root["tags"]), (&json!([]), &json!(["mine"])));
    assert_eq!(root["data"], json!({"input": {"target": 1}}));
    assert!(root["metadata"].get("langgraph_node").is_none(), "{root}");
    assert_eq!(root["metadata"]["graph_id"], "counter");
    assert_eq!(node["parent_ids"], json!([root["run_id"]]));
    assert_eq!(node["tags"], json!(["graph:step:1", "mine"]));
    let metadata = &node["metadata"];
    assert_eq!((&metadata["langgraph_step"], &metadata["langgraph_node"]), (&json!(1), &json!("bump")));
    assert_eq!(metadata["langgraph_triggers"], json!(["branch:to:bump"]));
    assert_eq!(metadata["langgraph_path"], json!(["__pregel_pull", "bump"]));
    assert!(metadata["langgraph_checkpoint_ns"].as_str().is_some_and(|ns| ns.starts_with("bump:")), "{metadata}");
    assert_eq!((&metadata["run_id"], &metadata["thread_id"].is_string()), (&root["run_id"], &true));
    assert_eq!(router["parent_ids"], json!([root["run_id"], node["run_id"]]));
    assert_eq!(router["tags"], json!(["seq:step:3", "mine"]));
    assert_eq!(router["data"]["input"]["count"], 1, "the state with what the node wrote");
    assert_eq!(frames[4].data["data"]["output"], "__end__");
    let update = json!({"count": 1, "steps": ["0->1"]});
    assert_eq!(frames[5].data["data"], json!({"chunk": update}));
    assert_eq!(frames[6].data["data"], json!({"output": update, "input": node["data"]["input"]}));
    assert_eq!(frames[6].data["run_id"], node["run_id"]);
    assert_eq!(frames[7].data["data"]["output"]["count"], 1);
    assert!(frames[7].data["data"].get("input").is_none(), "{:?}", frames[7]);
}

#[tokio::test]
async fn a_model_speaks_inside_its_node() {
    let server = server().await;
    let input = json!({"messages": [{"role": "user", "content": "hi", "id": "m1"}]});
    let more = json!({"stream_mode": ["values", "events", "messages-tuple", "updates"]});
    let frames = run(&server, "chat", input, more).await;
    let mut names = vec!["metadata", "chain_start chat", "values", "chain_start reply", "chat_model_start ChatModel"];
    for _ in 0..5 {
        names.extend(["chat_model_stream ChatModel", "messages"]);
    }
    names.extend(["chat_model_end ChatModel", "chain_stream reply", "chain_end reply"]);
    names.extend(["updates", "values", "chain_end chat"]);
    assert_eq!(told(&frames), names);
    let start = find(&frames, "on_chat_model_start", "ChatModel");
    let node = find(&frames, "on_chain_start", "reply");
    assert_eq!(start["parent_ids"], json!([frames[0].data["run_id"], node["run_id"]]));
    assert_eq!(start["tags"], json!(["seq:step:1"]));
    assert_eq!(start["data"]["input"]["messages"][0][0]["content"], "hi");
    assert_eq!(start["metadata"]["checkpoint_ns"], node["metadata"]["langgraph_checkpoint_ns"]);
    let chunk = find(&frames, "on_chat_model_stream", "ChatModel");
    assert_eq!(chunk["run_id"], start["run_id"]);
    assert_eq!(
        (&chunk["data"]["chunk"]["type"], &chunk["data"]["chunk"]["content"]),
        (&json!("AIMessageChunk"), &json!("Hello "))
    );
    let end = find(&frames, "on_chat_model_end", "ChatModel");
    assert_eq!(end["run_id"], start["run_id"]);
    let output = &end["data"]["output"];
    assert_eq!((&output["type"], &output["content"]), (&json!("ai"), &json!("Hello from a fixed reply.")));
    assert_eq!(output["usage_metadata"]["output_tokens"], 5);
    assert_eq!(end["data"]["input"], start["data"]["input"]);
    let reply = find(&frames, "on_chain_end", "reply");
    assert_eq!(reply["data"]["output"]["messages"][0]["id"], output["id"]);
}

const NESTED: [&str; 17] = [
    "chain_start nested",
    "chain_start p_one",
    "chain_stream p_one",
    "chain_end p_one",
    "chain_start child",
    "chain_start LangGraph",
    "chain_start c_one",
    "chain_stream c_one",
    "chain_end c_one",
    "chain_start c_two",
    "chain_stream c_two",
    "chain_end c_two",
    "chain_end LangGraph",
    "chain_stream child",
    "chain_end child",
    "chain_start p_end",
    "chain_stream p_end",
];

#[tokio::test]
async fn graphs_inside_are_told_whether_subgraphs_are_streamed_or_not() {
    let server = server().await;
    for subgraphs in [false, true] {
        let more = json!({"stream_subgraphs": subgraphs, "stream_mode": ["events", "updates"]});
        let frames = run(&server, "nested", json!({"trail": []}), more).await;
        let events: Vec<Frame> = frames.iter().filter(|frame| frame.event == "events").cloned().collect();
        let names = told(&events);
        assert_eq!(names[..NESTED.len()], NESTED);
        assert_eq!(names[NESTED.len()..], ["chain_end p_end", "chain_end nested"]);
        let has_inner = frames.iter().any(|frame| frame.event.starts_with("updates|child:"));
        assert_eq!(has_inner, subgraphs);
        let id = |name: &str| find(&events, "on_chain_start", name)["run_id"].clone();
        let inner = find(&events, "on_chain_start", "c_two");
        assert_eq!(inner["parent_ids"], json!([id("nested"), id("child"), id("LangGraph")]));
        assert_eq!(inner["tags"], json!(["graph:step:2"]));
        assert_eq!(inner["data"], json!({"input": {}}), "these nodes ask for no state");
        let child = find(&events, "on_chain_start", "child");
        let ns = &child["metadata"]["langgraph_checkpoint_ns"];
        assert!(child["metadata"].get("checkpoint_ns").is_none(), "{child}");
        assert_eq!(&inner["metadata"]["checkpoint_ns"], ns);
        let graph = find(&events, "on_chain_end", "LangGraph");
        assert_eq!((&graph["tags"], &graph["metadata"]["checkpoint_ns"]), (&json!(["seq:step:1"]), ns));
        let data = json!({"output": {"trail": ["p_one", "c_one", "c_two"]}, "input": {"trail": ["p_one"]}});
        assert_eq!(graph["data"], data);
    }
}

#[tokio::test]
async fn what_fails_or_asks_ends_without_a_word() {
    let server = server().await;
    let frames = run(&server, "counter", json!({"target": 1, "fail_at": 0}), json!({})).await;
    assert_eq!(told(&frames), ["metadata", "chain_start counter", "chain_start bump", "error"]);
    let thread = server.thread().await;
    let body = json!({"assistant_id": "counter", "stream_mode": "events"});
    let with = |key: &str, value: Value| {
        let mut body = body.clone();
        body[key] = value;
        body
    };
    let asked = stream(&server, &thread, with("input", json!({"target": 1, "ask_at": 0}))).await;
    assert_eq!(told(&asked), ["metadata", "chain_start counter", "chain_start bump", "chain_end counter"]);
    assert!(asked[3].data["data"]["output"].get("__interrupt__").is_none(), "{:?}", asked[3]);
    let answered = stream(&server, &thread, with("command", json!({"resume": "yes"}))).await;
    let given = json!({"graph": null, "update": null, "resume": "yes", "goto": null});
    assert_eq!(answered[1].data["data"]["input"], given);
    assert_eq!(find(&answered, "on_chain_end", "bump")["data"]["output"]["note"], "yes");
    // The same task in another run is another execution.
    assert_ne!(answered[2].data["run_id"], asked[2].data["run_id"]);
    let (before, after) = (&asked[2].data["metadata"], &answered[2].data["metadata"]);
    assert_eq!(before["langgraph_checkpoint_ns"], after["langgraph_checkpoint_ns"]);
}

#[tokio::test]
async fn resumable_events_are_replayed_as_they_were_told() {
    let server = server().await;
    let thread = server.thread().await;
    let body = json!({
        "assistant_id": "nested", "input": {"trail": []}, "stream_mode": ["events", "values"], "stream_resumable": true,
    });
    let live = stream(&server, &thread, body).await;
    assert!(live.iter().all(|frame| frame.id.is_some()), "{live:?}");
    let run = live[0].data["run_id"].as_str().expect("an id");
    let join = format!("/threads/{thread}/runs/{run}/stream");
    assert_eq!(server.frames("GET", &join, &[("last-event-id", "-1")], Value::Null).await, live);
    let from = live[7].id.clone().expect("an id");
    assert_eq!(server.frames("GET", &join, &[("last-event-id", &from)], Value::Null).await, live[8..]);
    let only = format!("{join}?stream_mode=events");
    let events = server.frames("GET", &only, &[("last-event-id", "-1")], Value::Null).await;
    assert_eq!(told(&events)[..NESTED.len()], NESTED);
    assert!(events.iter().all(|frame| frame.event == "events"), "{events:?}");
}
