//! Event streams of runs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{BuildErrors, Context, END, Graph, Message, START, StateGraph, Update};
use session_store::http::HttpSettings;
use session_store::update;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use uuid::Uuid;

use crate::fixtures::refapp;
use crate::support::server::{Frame, TestServer};

fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.event.as_str()).collect()
}

fn body(modes: Value, resumable: bool) -> Value {
    json!({"assistant_id": "counter", "input": {"counter": 0}, "stream_mode": modes, "stream_resumable": resumable})
}

#[tokio::test]
async fn a_stream_begins_with_metadata_and_ends_when_the_run_is_stored() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let place = format!("/threads/{id}/runs/stream");
    let frames = server.frames("POST", &place, &[], body(json!(["values", "tools"]), false)).await;
    assert_eq!(names(&frames), ["metadata", "values", "values", "values", "values"]);
    assert_eq!(frames[0].data["attempt"], 1);
    assert_eq!(frames[4].data, json!({"counter": 3}));
    assert!(frames.iter().all(|frame| frame.id.is_none()), "{frames:?}");
    let run = frames[0].data["run_id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/threads/{id}/runs/{run}")).await.ok()["status"], "success");
}

#[tokio::test]
async fn headers_say_how_to_come_back() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let answer = server.post(&format!("/threads/{id}/runs/stream"), body(json!("updates"), false)).await;
    let place = answer.header("content-location").expect("a place");
    assert_eq!(answer.header("location"), Some(format!("{place}/stream").as_str()));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let stateless = server.post("/runs/stream", body(json!("updates"), false)).await;
    assert!(stateless.header("content-location").is_some_and(|place| place.starts_with("/runs/")), "{stateless:?}");
}

#[tokio::test]
async fn resumable_streams_replay_from_any_event() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let place = format!("/threads/{id}/runs/stream");
    let live = server.frames("POST", &place, &[], body(json!(["updates", "values"]), true)).await;
    assert!(live.iter().all(|frame| frame.id.is_some()), "{live:?}");
    let run = live[0].data["run_id"].as_str().expect("an id");
    let join = format!("/threads/{id}/runs/{run}/stream");
    let all = server.frames("GET", &join, &[("last-event-id", "-1")], Value::Null).await;
    assert_eq!(all, live);
    // Cut anywhere, the rest is the rest.
    for at in 0..live.len() {
        let from = live[at].id.clone().expect("an id");
        let rest = server.frames("GET", &join, &[("last-event-id", &from)], Value::Null).await;
        assert_eq!(rest, live[at + 1..]);
    }
    let some =
        server.frames("GET", &format!("{join}?stream_mode=updates"), &[("last-event-id", "-1")], Value::Null).await;
    assert!(some.iter().all(|frame| frame.event == "updates") && some.len() == 3, "{some:?}");
    let stateless = server.frames("GET", &format!("/runs/{run}/stream"), &[("last-event-id", "0")], Value::Null).await;
    assert_eq!(stateless, live);
    assert_eq!(server.frames("GET", &join, &[], Value::Null).await, []);
}

#[tokio::test]
async fn joining_an_unknown_run_is_an_error_event() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    for place in [format!("/threads/{id}/runs/{}/stream", Uuid::nil()), format!("/runs/{}/stream", Uuid::nil())] {
        let frames = server.frames("GET", &place, &[], Value::Null).await;
        assert_eq!(names(&frames), ["error"], "{place}");
        assert_eq!(frames[0].data["message"], "404: Run not found");
    }
}

#[tokio::test]
async fn a_cursor_beyond_the_log_is_told_so() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let live = server.frames("POST", &format!("/threads/{id}/runs/stream"), &[], body(json!("values"), true)).await;
    let run = live[0].data["run_id"].as_str().expect("an id");
    let place = format!("/threads/{id}/runs/{run}/stream?stream_mode=values");
    let last = live.last().and_then(|frame| frame.id.clone()).expect("an id");
    // All was heard, and all of it is there.
    let rest = server.frames("GET", &place, &[("last-event-id", &last)], json!({})).await;
    assert_eq!(names(&rest), [""; 0]);
    // As a client would ask that heard more than a restored backup knows.
    let beyond = "4000000000000-7";
    for place in [place, format!("/threads/{id}/stream")] {
        let mut listener = server.listen("GET", &place, &[("last-event-id", beyond)], json!({})).await;
        let gap = listener.next().await.expect("an event");
        assert_eq!((gap.event.as_str(), &gap.data["to"]), ("resume_gap", &json!(beyond)), "{gap:?}");
        // From where the log ends one can go on.
        let end = gap.id.expect("where the log ends");
        assert!(end >= last && gap.data["from"] == json!(end), "{end} {last}");
    }
}

/// How often the talkative node says something: more than is kept for a listener that cannot catch up, and than fits
/// into what is on its way.
const SAID: usize = 40_000;

fn talkative() -> Graph {
    let talk = async |(), ctx: Context| {
        let text = "x".repeat(512);
        for n in 0..SAID {
            ctx.write(&text)?;
            if n % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    };
    StateGraph::dynamic("talkative").append("log").node("talk", talk).edge(START, "talk").build().expect("builds")
}

#[tokio::test]
async fn a_listener_that_falls_behind_is_told_so() {
    let server = TestServer::serving(HttpSettings::default(), vec![talkative()]).await;
    let id = server.thread().await;
    let body = json!({"assistant_id": "talkative", "input": {}, "stream_mode": "custom"}).to_string();
    let (head, length) = (format!("POST /threads/{id}/runs/stream HTTP/1.1"), body.len());
    let request = format!("{head}\r\nhost: it\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    let socket = TcpSocket::new_v4().expect("a socket");
    // What it has not read waits in the server, not here.
    socket.set_recv_buffer_size(64 << 10).expect("a small buffer");
    let address = server.url.trim_start_matches("http://").parse().expect("an address");
    let mut stream = socket.connect(address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    // It reads nothing until the run is over; the run does not wait for it.
    let runs = format!("/threads/{id}/runs");
    server.until("the run ends", async || server.get(&runs).await.ok()[0]["status"] == "success").await;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.expect("the stream ends");
    let last = String::from_utf8_lossy(&heard[heard.len().saturating_sub(1024)..]).into_owned();
    let (_, last) = last.rsplit_once("event: ").expect("a frame");
    assert!(last.starts_with("error\ndata: {\"error\":\"StreamLagged\""), "{last}");
    assert!(last.contains("resumable"), "it says what to do: {last}");
    assert!(heard.len() < SAID * 512, "it missed some");
}

#[tokio::test]
async fn a_namespace_selects_the_events_of_its_graph() {
    let graphs = refapp::all().into_iter().map(|graph| graph.expect("builds")).collect();
    let server = TestServer::serving(HttpSettings::default(), graphs).await;
    let id = server.thread().await;
    let body = json!({
        "assistant_id": "nested", "input": {"trail": []}, "stream_mode": "updates", "stream_subgraphs": true,
        "stream_resumable": true,
    });
    let all = server.frames("POST", &format!("/threads/{id}/runs/stream"), &[], body.clone()).await;
    let (root, inner): (Vec<&Frame>, Vec<&Frame>) = all[1..].iter().partition(|frame| frame.event == "updates");
    assert_eq!((root.len(), inner.len()), (3, 2), "{all:?}");
    let (_, place) = inner[0].event.split_once('|').expect("the graph it is of");
    assert!(place.starts_with("child:"), "{place}");
    // Joined: the node's name stands for its tasks, an empty one for the root, and a graph is without those inside it.
    let join = format!("/threads/{id}/runs/{}/stream", all[0].data["run_id"].as_str().expect("an id"));
    let both: Vec<&Frame> = all[1..].iter().collect();
    for (query, wanted) in [
        ("namespace=child".to_owned(), &inner),
        (format!("namespace={}", place.replace(':', "%3A")), &inner),
        ("namespace=".to_owned(), &root),
        ("namespace=&namespace=child".to_owned(), &both),
        ("namespace=elsewhere".to_owned(), &Vec::new()),
    ] {
        let heard = server.frames("GET", &format!("{join}?{query}"), &[("last-event-id", "-1")], Value::Null).await;
        assert_eq!(heard[0], all[0], "the run's own metadata are of no namespace");
        assert_eq!(heard[1..].iter().collect::<Vec<_>>(), *wanted, "{query}");
    }
    // Where a run is started, too.
    let started = server.frames("POST", &format!("/threads/{id}/runs/stream?namespace=child"), &[], body).await;
    assert_eq!(started.len(), 3, "{started:?}");
    assert!(started[1..].iter().all(|frame| frame.event.starts_with("updates|child:")), "{started:?}");
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Talk {
    messages: Vec<Message>,
}

/// A graph that says whole messages, all without an id, in every form a node may return them.
pub(super) fn talker() -> Result<Graph, BuildErrors> {
    let inner = StateGraph::<Talk>::new("talker/inner")
        .messages("messages")
        .node("inside", async |(), _ctx| Ok(update!(Talk { messages: vec![Message::ai("from inside")] })))
        .edge(START, "inside")
        .edge("inside", END)
        .build()?;
    StateGraph::<Talk>::new("talker")
        .messages("messages")
        .node("list", async |(), _ctx| {
            let short = json!({"role": "user", "content": "short"});
            let whole = |text: &str| serde_json::to_value(Message::ai(text)).expect("JSON");
            Ok(Update::new().set("other", 1).set("messages", json!([whole("first"), short, whole("second")])))
        })
        .node("several", async |(), _ctx| {
            Ok(vec![
                Update::new().set("messages", Message::ai("alone")),
                update!(Talk { messages: vec![Message::ai("in a Command")] }).goto("inner"),
            ])
        })
        .subgraph("inner", inner)
        .edge(START, "list")
        .edge("list", "several")
        .edge("inner", END)
        .build()
}

/// The ids of whole messages by their texts, of which none may have two.
pub(super) fn ids(messages: impl IntoIterator<Item = Value>) -> BTreeMap<String, String> {
    let mut ids = BTreeMap::new();
    for message in messages {
        let id = message["id"].as_str().filter(|id| !id.is_empty()).unwrap_or_else(|| panic!("no id: {message}"));
        let before = ids.insert(message["content"].as_str().expect("a text").to_owned(), id.to_owned());
        assert_eq!(before, None, "told twice: {message}");
    }
    ids
}

#[tokio::test]
async fn a_whole_message_has_the_id_it_gets_in_the_state() {
    let graphs = vec![talker().expect("a graph")];
    let server = TestServer::serving(HttpSettings::default(), graphs).await;
    for modes in [json!(["messages-tuple", "updates"]), json!(["messages", "updates"])] {
        let id = server.thread().await;
        let body = json!({"input": {}, "stream_mode": modes, "stream_subgraphs": true});
        let frames = server.frames("POST", &format!("/threads/{id}/runs/stream"), &[], body).await;
        let state = server.get(&format!("/threads/{id}/state")).await.ok();
        let mut kept = ids(state["values"]["messages"].as_array().expect("a list").clone());
        assert_eq!(kept.len(), 6, "{state}");
        // A short form becomes a message when it is applied: nobody is told of it before.
        kept.remove("short").expect("a message");
        let of = |event: &str, at: fn(&Value) -> Value| -> BTreeMap<String, String> {
            ids(frames.iter().filter(|frame| frame.event.split('|').next() == Some(event)).map(|frame| at(&frame.data)))
        };
        if modes[0] == "messages-tuple" {
            assert_eq!(of("messages", |pair| pair[0].clone()), kept);
        } else {
            assert_eq!(of("messages/complete", |list| list[0].clone()), kept);
            let described = frames.iter().filter(|frame| frame.event == "messages/metadata");
            let described: Vec<&String> =
                described.flat_map(|frame| frame.data.as_object().expect("ids").keys()).collect();
            assert_eq!(described.len(), kept.len());
            assert!(kept.values().all(|id| described.contains(&id)), "{described:?} {kept:?}");
        }
        let mut updated = Vec::new();
        for frame in frames.iter().filter(|frame| frame.event.split('|').next() == Some("updates")) {
            // The graph inside shows its message once, and its caller once more.
            if frame.data.get("inner").is_none() {
                messages_in(&frame.data, &mut updated);
            }
        }
        assert_eq!(ids(updated), kept);
    }
}

/// All complete messages in a document.
fn messages_in(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) if fields.contains_key("additional_kwargs") => found.push(value.clone()),
        Value::Object(fields) => fields.values().for_each(|value| messages_in(value, found)),
        Value::Array(items) => items.iter().for_each(|value| messages_in(value, found)),
        _ => {}
    }
}
