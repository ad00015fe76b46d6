//! Protocol v2: commands, and the events of a thread over SSE.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{
    AiChunk, BuildErrors, Context, END, Graph, Message, NodeError, START, StateGraph, ToolCall, Update, Usage,
};
use session_store::http::HttpSettings;
use session_store::update;
use uuid::Uuid;

use super::streams::{ids, talker};
use crate::support::server::{Frame, Listener, TestServer};

pub(super) const ALL: [&str; 9] =
    ["values", "updates", "messages", "tools", "lifecycle", "input", "tasks", "checkpoints", "custom"];

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Talk {
    messages: Vec<Message>,
    ask: bool,
    fail: bool,
    answer: Value,
}

/// A graph that does everything a stream can show: tokens, a tool, a graph inside, a question, a failure.
pub(super) fn agent() -> Result<Graph, BuildErrors> {
    let inner = StateGraph::<Talk>::new("agent/inner")
        .messages("messages")
        .node("look", async |(), ctx: Context| {
            ctx.write(json!({"name": "progress", "payload": 50}))?;
            let found = Message::tool("found it", "call-1").with_id("t1").with_name("search");
            Ok(update!(Talk { messages: vec![found] }))
        })
        .edge(START, "look")
        .edge("look", END)
        .build()?;
    StateGraph::<Talk>::new("agent")
        .messages("messages")
        .node("speak", speak)
        .subgraph("tools", inner)
        .node("ask", ask)
        .edge(START, "speak")
        .edge("speak", "tools")
        .edge("tools", "ask")
        .edge("ask", END)
        .build()
}

async fn speak(state: Talk, ctx: Context) -> Result<Update, NodeError> {
    ctx.write(json!("thinking"))?;
    if state.fail {
        return Err(NodeError::new("ValueError", "it did not work"));
    }
    let usage = Usage::new(1, 2);
    for piece in ["Let me ", "look."] {
        ctx.messages().chunk(&AiChunk::new("a1", piece))?;
    }
    ctx.messages().chunk(&AiChunk::new("a1", "").with_usage(usage.clone()).last())?;
    let args = serde_json::Map::from_iter([("q".to_owned(), json!("tea"))]);
    let call = ToolCall::new("call-1", "search", args);
    let said = Message::ai("Let me look.").with_id("a1").with_usage(usage).with_tool_calls([call]);
    Ok(update!(Talk { messages: vec![said] }))
}

async fn ask(state: Talk, ctx: Context) -> Result<Update, NodeError> {
    let answer = if state.ask { ctx.interrupt(json!({"sure": "?"}))?.value().clone() } else { json!("not asked") };
    Ok(update!(Talk { answer: answer }))
}

pub(super) async fn server() -> TestServer {
    let settings = HttpSettings { heartbeat: Duration::from_millis(300), ..HttpSettings::default() };
    TestServer::serving(settings, vec![agent().expect("a graph")]).await
}

pub(super) async fn command(server: &TestServer, thread: &str, method: &str, params: Value) -> Value {
    let body = json!({"id": 7, "method": method, "params": params});
    let answer = server.post(&format!("/threads/{thread}/commands"), body).await.ok();
    assert_eq!(answer["id"], 7);
    answer
}

pub(super) async fn start(server: &TestServer, thread: &str, input: Value) -> String {
    let params = json!({"assistant_id": "agent", "input": input});
    let answer = command(server, thread, "run.start", params).await;
    assert_eq!(answer["type"], "success", "{answer}");
    assert_eq!(answer["meta"], json!({"applied_through_seq": 0}));
    answer["result"]["run_id"].as_str().expect("a run").to_owned()
}

pub(super) async fn subscribe(server: &TestServer, thread: &str, body: Value) -> Listener {
    server.listen("POST", &format!("/threads/{thread}/stream/events"), &[], body).await
}

pub(super) fn is_terminal(frame: &Frame) -> bool {
    let params = &frame.data["params"];
    let end = params["data"]["event"].as_str().unwrap_or_default();
    frame.event == "lifecycle" && params["namespace"] == json!([]) && end != "running"
}

/// Everything on a thread, up to the end of its `n`-th run.
pub(super) async fn history(server: &TestServer, thread: &str, n: usize) -> Vec<Frame> {
    let mut listener = subscribe(server, thread, json!({"channels": ALL})).await;
    let mut frames = Vec::new();
    for _ in 0..n {
        frames.extend(listener.until(is_terminal).await);
    }
    frames
}

fn data(frames: &[Frame], method: &str) -> Vec<Value> {
    frames.iter().filter(|frame| frame.event == method).map(|frame| frame.data["params"]["data"].clone()).collect()
}

pub(super) fn hello() -> Value {
    json!({"messages": [{"type": "human", "content": "hi", "id": "h1"}]})
}

#[tokio::test]
async fn a_run_is_started_and_told_on_every_channel() {
    let server = server().await;
    let thread = Uuid::from_u128(1).to_string();
    let run = start(&server, &thread, hello()).await;
    let frames = history(&server, &thread, 1).await;
    let first = &frames[0];
    assert_eq!(first.event, "lifecycle");
    assert_eq!(first.data["event_id"], format!("synth:{run}:lc||running"));
    assert_eq!(first.data["params"]["data"], json!({"event": "running", "graph_name": "agent"}));
    let last = frames.last().expect("a terminal");
    assert_eq!(last.data["event_id"], format!("synth:{run}:lc||completed"));
    for method in ["values", "updates", "messages", "tools", "lifecycle", "tasks", "checkpoints", "custom"] {
        assert!(frames.iter().any(|frame| frame.event == method), "{method}");
    }
    let mut seen = std::collections::HashSet::new();
    let mut seq = 0;
    for frame in &frames {
        assert_eq!(frame.data["type"], "event");
        assert!(seen.insert(frame.data["event_id"].as_str().expect("an id").to_owned()), "{frame:?}");
        let next = frame.data["seq"].as_i64().expect("a number");
        assert!(next > seq && frame.id == Some(next.to_string()), "{frame:?}");
        seq = next;
    }
    // The run is as any other.
    assert_eq!(server.get(&format!("/threads/{thread}/runs/{run}")).await.ok()["status"], "success");
}

#[tokio::test]
async fn values_are_plain_and_follow_their_checkpoint() {
    let server = server().await;
    let thread = Uuid::from_u128(2).to_string();
    start(&server, &thread, hello()).await;
    let frames = history(&server, &thread, 1).await;
    let root: Vec<&Frame> = frames.iter().filter(|frame| frame.data["params"]["namespace"] == json!([])).collect();
    let places: Vec<usize> = (0..root.len()).filter(|at| root[*at].event == "values").collect();
    assert!(places.len() >= 4, "{root:?}");
    for at in places {
        let before = &root[at - 1];
        assert_eq!(before.event, "checkpoints", "{before:?}");
        assert!(before.data["params"]["data"]["id"].is_string());
    }
    let checkpoints = data(&frames, "checkpoints");
    assert_eq!(checkpoints[0]["source"], "input");
    assert_eq!(checkpoints[0]["step"], -1);
    assert_eq!(checkpoints[1]["parent_id"], checkpoints[0]["id"]);
    let values = data(&frames, "values");
    let said = &values.last().expect("values")["messages"];
    assert_eq!(said[0], json!({"type": "human", "content": "hi", "id": "h1", "name": null}));
    let keys: Vec<&String> = said[1].as_object().expect("a message").keys().collect();
    assert!(!keys.iter().any(|key| *key == "additional_kwargs" || *key == "usage_metadata"), "{keys:?}");
    assert_eq!(said[1]["tool_calls"][0]["name"], "search");
}

#[tokio::test]
async fn messages_are_streams_of_blocks_and_tools_are_told() {
    let server = server().await;
    let thread = Uuid::from_u128(3).to_string();
    start(&server, &thread, hello()).await;
    let frames = history(&server, &thread, 1).await;
    let spoken: Vec<&Value> = frames
        .iter()
        .filter(|frame| frame.event == "messages" && frame.data["params"]["node"] == "speak")
        .map(|frame| &frame.data["params"]["data"])
        .collect();
    let events: Vec<&str> = spoken.iter().map(|data| data["event"].as_str().expect("an event")).collect();
    assert_eq!(
        events,
        [
            "message-start",
            "content-block-start",
            "content-block-delta",
            "content-block-delta",
            "content-block-finish",
            "message-finish"
        ]
    );
    assert_eq!(spoken[0]["role"], "ai");
    assert_eq!(spoken[0]["id"], "a1");
    assert_eq!(spoken[2]["delta"], json!({"type": "text-delta", "text": "Let me "}));
    assert_eq!(spoken[4]["content"], json!({"type": "text", "text": "Let me look."}));
    assert_eq!(spoken[5]["usage"], json!({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}));
    let tools: Vec<&Frame> = frames.iter().filter(|frame| frame.event == "tools").collect();
    assert_eq!(tools[0].data["params"]["data"]["event"], "tool-started");
    assert_eq!(tools[0].data["params"]["data"]["tool_name"], "search");
    assert_eq!(
        tools[1].data["params"]["data"],
        json!({"event": "tool-finished", "tool_call_id": "call-1", "output": "found it"})
    );
    let place = tools[1].data["params"]["namespace"][0].as_str().expect("a namespace").to_owned();
    let mirror = json!([place, "tools:call-1"]);
    assert!(frames.iter().any(|frame| frame.event == "messages"
        && frame.data["params"]["namespace"] == mirror
        && frame.data["params"]["data"]["role"] == "tool"));
    let custom = data(&frames, "custom");
    assert_eq!(custom, [json!({"payload": "thinking"}), json!({"name": "progress", "payload": 50})]);
}

#[tokio::test]
async fn a_whole_message_is_told_under_the_id_it_gets_in_the_state() {
    let server = TestServer::serving(HttpSettings::default(), vec![talker().expect("a graph")]).await;
    let thread = Uuid::from_u128(40).to_string();
    command(&server, &thread, "run.start", json!({"assistant_id": "talker", "input": {}})).await;
    let frames = history(&server, &thread, 1).await;
    let state = server.get(&format!("/threads/{thread}/state")).await.ok();
    let mut kept = ids(state["values"]["messages"].as_array().expect("a list").clone());
    kept.remove("short").expect("a message");
    let events = data(&frames, "messages");
    let (mut told, mut open) = (Vec::new(), Value::Null);
    for event in &events {
        match event["event"].as_str().expect("a word") {
            "message-start" => open = event["id"].clone(),
            "content-block-finish" => told.push(json!({"content": event["content"]["text"], "id": event["id"]})),
            _ => {}
        }
        assert_eq!(event["id"], open, "{events:?}");
    }
    assert_eq!(ids(told), kept);
}

#[tokio::test]
async fn graphs_inside_have_a_life_of_their_own() {
    let server = server().await;
    let thread = Uuid::from_u128(4).to_string();
    let run = start(&server, &thread, hello()).await;
    let frames = history(&server, &thread, 1).await;
    let inner: Vec<&Frame> = frames
        .iter()
        .filter(|frame| frame.event == "lifecycle" && frame.data["params"]["namespace"] != json!([]))
        .collect();
    assert_eq!(inner.len(), 2, "{inner:?}");
    let place = inner[0].data["params"]["namespace"][0].as_str().expect("a segment").to_owned();
    let task = place.strip_prefix("tools:").expect("the task");
    assert_eq!(
        inner[0].data["params"]["data"],
        json!({"event": "started", "namespace": [place], "graph_name": "tools", "trigger_call_id": task})
    );
    assert_eq!(inner[0].data["event_id"], format!("synth:{run}:lc|{place}|started"));
    assert_eq!(inner[1].data["params"]["data"]["event"], "completed");
    // Namespaces and depth narrow a stream.
    let root = json!({"channels": ["lifecycle"], "namespaces": [[]], "depth": 0});
    let frames = subscribe(&server, &thread, root).await.until(is_terminal).await;
    assert_eq!(frames.len(), 2, "{frames:?}");
    let below = json!({"channels": ["values", "lifecycle"], "namespaces": [["tools"]]});
    let is_end = |frame: &Frame| frame.data["params"]["data"]["event"] == "completed";
    let frames = subscribe(&server, &thread, below).await.until(is_end).await;
    assert!(frames.iter().all(|frame| frame.data["params"]["namespace"][0] == place.as_str()), "{frames:?}");
    let named = json!({"channels": ["custom:progress"]});
    let frame = subscribe(&server, &thread, named).await.next().await.expect("a frame");
    assert_eq!(frame.data["params"]["data"]["payload"], 50);
}

#[tokio::test]
async fn every_replay_is_the_same_and_since_cuts_it() {
    let server = server().await;
    let thread = Uuid::from_u128(5).to_string();
    // Listening may begin before there is a thread; the stream goes on over runs.
    let mut early = subscribe(&server, &thread, json!({"channels": ALL})).await;
    let first = start(&server, &thread, hello()).await;
    let mut live = early.until(is_terminal).await;
    let second = start(&server, &thread, json!({"messages": []})).await;
    live.extend(early.until(is_terminal).await);
    assert_eq!(history(&server, &thread, 2).await, live);
    let runs: Vec<&str> = live
        .iter()
        .filter(|frame| frame.data["params"]["data"]["event"] == "running")
        .map(|frame| frame.data["event_id"].as_str().expect("an id"))
        .collect();
    assert_eq!(runs, [format!("synth:{first}:lc||running"), format!("synth:{second}:lc||running")]);
    // Cut anywhere, the rest is the rest.
    for at in 0..live.len() - 1 {
        let since = live[at].data["seq"].clone();
        let mut rest = subscribe(&server, &thread, json!({"channels": ALL, "since": since})).await;
        for frame in &live[at + 1..] {
            assert_eq!(rest.next().await.as_ref(), Some(frame), "after {at}");
        }
    }
    // It stays open, and shows that it lives.
    let mut idle = subscribe(&server, &thread, json!({"channels": ["custom:none"]})).await;
    let waited = tokio::time::timeout(Duration::from_millis(1500), idle.next()).await;
    assert!(waited.is_err() && idle.heartbeats >= 2, "{waited:?}, {} heartbeats", idle.heartbeats);
}

#[tokio::test]
async fn questions_are_told_and_answered() {
    let server = server().await;
    let thread = Uuid::from_u128(6).to_string();
    let run = start(&server, &thread, json!({"messages": [], "ask": true})).await;
    let mut listener = subscribe(&server, &thread, json!({"channels": ["lifecycle", "input"], "depth": 0})).await;
    let frames = listener.until(is_terminal).await;
    let question = &frames[frames.len() - 2];
    assert_eq!(question.event, "input.requested");
    let id = question.data["params"]["data"]["interrupt_id"].as_str().expect("an id").to_owned();
    assert_eq!(question.data["params"]["data"]["payload"], json!({"sure": "?"}));
    assert_eq!(question.data["params"]["data"]["value"], json!({"sure": "?"}));
    assert_eq!(question.data["event_id"], format!("synth:{run}:input||{id}"));
    assert_eq!(frames.last().expect("an end").data["params"]["data"]["event"], "interrupted");
    let strange = json!({"interrupt_id": "nope", "namespace": [], "response": 1});
    let refused = command(&server, &thread, "input.respond", strange).await;
    assert_eq!(refused["error"], "no_such_interrupt");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("nope")));
    let answer = json!({"interrupt_id": id, "namespace": [], "response": "yes", "strict_resume": true});
    let answered = command(&server, &thread, "input.respond", answer.clone()).await;
    assert_eq!(answered["result"], json!({}));
    // Asked again at once: it waits for the run, and finds the question gone.
    assert_eq!(command(&server, &thread, "input.respond", answer).await["error"], "no_such_interrupt");
    let frames = listener.until(is_terminal).await;
    assert_eq!(frames.last().expect("an end").data["params"]["data"]["event"], "completed");
    let state = server.get(&format!("/threads/{thread}/state")).await.ok();
    assert_eq!(state["values"]["answer"], "yes");
}

#[tokio::test]
async fn input_is_the_answer_while_a_question_is_open() {
    let server = server().await;
    let thread = Uuid::from_u128(7).to_string();
    start(&server, &thread, json!({"messages": [], "ask": true})).await;
    let asked = history(&server, &thread, 1).await;
    let id = data(&asked, "input.requested")[0]["interrupt_id"].clone();
    start(&server, &thread, json!("by input")).await;
    history(&server, &thread, 2).await;
    let state = server.get(&format!("/threads/{thread}/state")).await.ok();
    assert_eq!(state["values"]["answer"], "by input");
    let other = Uuid::from_u128(8).to_string();
    start(&server, &other, json!({"messages": [], "ask": true})).await;
    history(&server, &other, 1).await;
    let many = json!({"responses": [{"interrupt_id": id, "namespace": [], "response": 1}]});
    // Interrupt ids belong to their thread.
    assert_eq!(command(&server, &other, "input.respond", many).await["error"], "no_such_interrupt");
}

#[tokio::test]
async fn a_failure_is_a_terminal_with_its_reason() {
    let server = server().await;
    let thread = Uuid::from_u128(9).to_string();
    start(&server, &thread, json!({"messages": [], "fail": true})).await;
    let frames = history(&server, &thread, 1).await;
    assert_eq!(
        frames.last().expect("an end").data["params"]["data"],
        json!({"event": "failed", "graph_name": "agent", "error": "it did not work"})
    );
}

#[tokio::test]
async fn commands_are_refused_in_their_envelope() {
    let server = server().await;
    let thread = server.thread().await;
    let place = format!("/threads/{thread}/commands");
    let detail = server.send("POST", &place, "{").await.refused(400);
    assert!(detail.contains("JSON"), "{detail}");
    for (body, id) in [
        (json!({"method": "run.start"}), Value::Null),
        (json!({"id": "x", "method": "run.start"}), Value::Null),
        (json!({"id": 3}), json!(3)),
        (json!([]), Value::Null),
    ] {
        let answer = server.post(&place, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(answer.json()["error"], "invalid_argument");
        assert_eq!(answer.json()["id"], id);
    }
    for (method, params, code) in [
        ("run.start", json!({"assistant_id": "nobody"}), "invalid_argument"),
        ("run.start", json!({"assistant_id": Uuid::from_u128(5)}), "invalid_argument"),
        (
            "run.start",
            json!({"assistant_id": "agent", "config": {"configurable": {"checkpoint_id": "x"}}}),
            "invalid_argument",
        ),
        ("run.start", json!({"assistant_id": "agent", "config": 1}), "invalid_argument"),
        ("input.respond", json!({}), "invalid_argument"),
        ("input.respond", json!({"responses": []}), "invalid_argument"),
        ("input.respond", json!({"interrupt_id": "x"}), "no_such_interrupt"),
        ("agent.getTree", json!({}), "no_such_run"),
        ("subscription.subscribe", json!({"channels": ["values"]}), "not_supported"),
        ("state.get", json!({}), "unknown_command"),
        ("input.inject", json!({}), "unknown_command"),
    ] {
        let answer = command(&server, &thread, method, params.clone()).await;
        assert_eq!(answer["type"], "error", "{method} {params}");
        assert_eq!(answer["error"], code, "{method} {params}: {answer}");
    }
    // Well-formed envelopes whose `params` are no object: refused inside one, too.
    for params in [json!([]), json!("x"), json!(1)] {
        let answer = command(&server, &thread, "run.start", params).await;
        assert_eq!((&answer["id"], &answer["error"]), (&json!(7), &json!("invalid_argument")), "{answer}");
        assert_eq!(answer["message"], "params: expected an object");
    }
    let events = format!("/threads/{thread}/stream/events");
    for body in [
        json!({}),
        json!({"channels": []}),
        json!({"channels": ["debug"]}),
        json!({"channels": ["custom:"]}),
        json!({"channels": ["values"], "depth": -1}),
        json!({"channels": ["values"], "namespaces": ["a"]}),
        json!({"channels": ["values"], "since": "x"}),
    ] {
        server.post(&events, body.clone()).await.refused(400);
    }
    server.send("POST", "/threads/bad%20id/commands", "{}").await.refused(422);
    assert!(server.get(&events).await.refused(400).contains("WebSocket"), "a socket, without asking for one");
}

#[tokio::test]
async fn older_clients_see_such_a_run_wrapped() {
    let server = server().await;
    let thread = Uuid::from_u128(10).to_string();
    let run = start(&server, &thread, hello()).await;
    let told = history(&server, &thread, 1).await;
    let join = format!("/threads/{thread}/runs/{run}/stream");
    let all = server.frames("GET", &join, &[("last-event-id", "-1")], Value::Null).await;
    assert_eq!(all[1].event, "metadata");
    let wrapped: Vec<&Value> = all.iter().filter(|frame| frame.event != "metadata").map(|frame| &frame.data).collect();
    assert_eq!(wrapped, told.iter().map(|frame| &frame.data).collect::<Vec<_>>());
    // Only a whole stored event has an id to come back with.
    for at in (0..all.len()).filter(|at| all[*at].id.is_some()) {
        let from = all[at].id.clone().expect("an id");
        let rest = server.frames("GET", &join, &[("last-event-id", &from)], Value::Null).await;
        assert_eq!(rest, all[at + 1..], "after {at}");
    }
    assert_eq!(server.frames("GET", &join, &[], Value::Null).await, []);
    // The joined thread shows it the same way.
    let place = format!("/threads/{thread}/stream");
    let mut joined = server.listen("GET", &place, &[("last-event-id", "-")], Value::Null).await;
    let frames = joined.until(|frame| frame.data["status"] == "run_done").await;
    assert_eq!(frames[..frames.len() - 1], all);
}
