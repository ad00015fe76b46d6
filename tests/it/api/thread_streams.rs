//! Joining a thread's stream, and the log behind all streams.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{BuildErrors, END, Graph, START, StateGraph};
use session_store::http::HttpSettings;
use session_store::model::{EventId, Scope, ThreadId};
use session_store::storage::connect::{ConnectOptions, connect};
use session_store::update;

use crate::support::postgres::Database;
use crate::support::server::{Frame, Listener, TestServer};

fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.event.as_str()).collect()
}

async fn join(server: &TestServer, thread: &str, query: &str, from: Option<&str>) -> Listener {
    let headers: Vec<(&str, &str)> = from.iter().map(|id| ("last-event-id", *id)).collect();
    server.listen("GET", &format!("/threads/{thread}/stream{query}"), &headers, Value::Null).await
}

fn is_done(frame: &Frame) -> bool {
    frame.data["status"] == "run_done"
}

async fn run(server: &TestServer, thread: &str, resumable: bool) -> Vec<Frame> {
    let body = json!({"assistant_id": "counter", "input": {"counter": 0}, "stream_mode": ["values", "updates"],
                      "stream_resumable": resumable});
    server.frames("POST", &format!("/threads/{thread}/runs/stream"), &[], body).await
}

#[tokio::test]
async fn a_thread_is_heard_over_all_its_runs() {
    let server = TestServer::start().await;
    let thread = server.thread().await;
    let mut live = join(&server, &thread, "", None).await;
    let mut lifecycle = join(&server, &thread, "?stream_mode=lifecycle", None).await;
    let mut updates = join(&server, &thread, "?stream_modes=lifecycle,state_update", None).await;
    let told = run(&server, &thread, true).await;
    let first = live.until(is_done).await;
    assert_eq!(first[..first.len() - 1], told);
    assert!(first.iter().all(|frame| frame.id.is_some()), "{first:?}");
    // A run that is not resumable is heard while it lasts, with ids.
    let told = run(&server, &thread, false).await;
    let second = live.until(is_done).await;
    assert_eq!(names(&second[..second.len() - 1]), names(&told));
    assert!(second.iter().all(|frame| frame.id.is_some()), "{second:?}");
    assert_eq!(second.last().expect("an end").data["run_id"], told[0].data["run_id"]);
    let frames = lifecycle.until(is_done).await;
    assert_eq!(names(&frames), ["metadata", "metadata"]);
    // Changes of state from outside.
    let place = format!("/threads/{thread}/state");
    server.post(&place, json!({"values": {"counter": 40}})).await.ok();
    let frames = updates.until(|frame| frame.event == "state_update").await;
    let told = frames.last().expect("the update");
    assert_eq!(told.data["thread_id"], thread);
    assert_eq!(told.data["state"]["values"]["counter"], 40);
    assert_eq!(told.data["state"], server.get(&place).await.ok());
    // Whatever runs on the thread since: the change is told as it was.
    let other = json!({"assistant_id": "slow", "input": {"steps": 0, "sleep_ms": 0}});
    server.post(&format!("/threads/{thread}/runs/wait"), other).await.ok();
    let mut again = join(&server, &thread, "?stream_mode=state_update", Some("-")).await;
    assert_eq!(again.next().await.as_ref(), Some(told));
}

#[tokio::test]
async fn a_joined_thread_can_be_left_and_joined_again_anywhere() {
    let server = TestServer::start().await;
    let thread = server.thread().await;
    for _ in 0..2 {
        run(&server, &thread, true).await;
    }
    server.post(&format!("/threads/{thread}/state"), json!({"values": {"counter": 40}})).await.ok();
    let both = "?stream_mode=run_modes&stream_mode=state_update";
    let all = join(&server, &thread, both, Some("-")).await.until(|frame| frame.event == "state_update").await;
    assert_eq!(all.iter().filter(|frame| is_done(frame)).count(), 2);
    for at in 0..all.len() - 1 {
        let from = all[at].id.clone().expect("an id");
        let mut rest = join(&server, &thread, both, Some(&from)).await;
        for frame in &all[at + 1..] {
            assert_eq!(rest.next().await.as_ref(), Some(frame), "after {at}");
        }
    }
    // A millisecond is a cursor, too.
    let millis = all[0].id.as_deref().and_then(|id| id.split('-').next()).expect("an id").to_owned();
    let mut from = join(&server, &thread, both, Some(&format!("{millis}-*"))).await;
    assert_eq!(from.next().await.as_ref(), Some(&all[0]));
}

#[tokio::test]
async fn joining_a_thread_is_refused_clearly() {
    let server = TestServer::start().await;
    let thread = server.thread().await;
    let place = format!("/threads/{thread}/stream");
    assert!(server.get(&format!("{place}?stream_mode=values")).await.refused(422).contains("stream_mode"));
    assert!(server.get("/threads/nobody/stream").await.refused(404).contains("nobody"));
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Big {
    n: u64,
    steps: u64,
    blob: String,
    seen: Vec<String>,
}

/// Counts, with a state that is large from the start and grows.
fn big() -> Result<Graph, BuildErrors> {
    StateGraph::<Big>::new("big")
        .append("seen")
        .node("step", async |state: Big, _ctx| {
            Ok(update!(Big { n: state.n + 1, seen: vec![format!("step {} of a long list of small things", state.n)] }))
        })
        .edge(START, "step")
        .branch("step", "more", ["step", END], |state: &Big| if state.n < state.steps { "step" } else { END })
        .build()
}

async fn stored_bytes(server: &TestServer, thread: &str) -> usize {
    let scope = Scope::default();
    let key = ThreadId::parse(thread).expect("a name").key(scope.tenant());
    let (mut bytes, mut after) = (0, EventId(0));
    loop {
        let page = server.runtime.storage().read_events(&scope, key, None, after, 500).await.expect("reads");
        let Some(last) = page.last() else { return bytes };
        after = last.id;
        bytes += page.iter().map(|event| event.name.len() + event.data.text().len()).sum::<usize>();
    }
}

/// States are not stored a second time by the events that tell them, and come back byte for byte.
#[tokio::test]
async fn a_long_run_with_a_large_state_has_a_small_log() {
    let steps = 60;
    let server = TestServer::serving(HttpSettings::default(), vec![big().expect("a graph")]).await;
    let thread = server.thread().await;
    let input = json!({"steps": steps, "blob": "x".repeat(100_000)});
    let body = json!({"assistant_id": "big", "input": input, "stream_resumable": true,
                      "stream_mode": ["values", "updates", "tasks", "checkpoints", "debug"]});
    let live = server.frames("POST", &format!("/threads/{thread}/runs/stream"), &[], body).await;
    let run = live[0].data["run_id"].as_str().expect("an id");
    let join = format!("/threads/{thread}/runs/{run}/stream");
    let again = server.frames("GET", &join, &[("last-event-id", "-1")], Value::Null).await;
    assert_eq!(live.len(), again.len());
    assert!(live == again, "a replay differs from the live stream");
    let whole: usize = live.iter().map(|frame| frame.data.to_string().len()).sum();
    let stored = stored_bytes(&server, &thread).await;
    eprintln!("{} events of {whole} bytes are stored in {stored} bytes", live.len());
    assert!(whole > steps * 4 * 100_000 && stored * 50 < whole, "{stored} of {whole} bytes");
}

/// A stream on one replica shows what a run on another one tells, as it is told.
#[tokio::test]
async fn streams_reach_over_replicas() {
    let Some(database) = Database::create().await else { return };
    let open = async || connect(&database.url(), &ConnectOptions::default()).await.expect("a database");
    let graphs = || vec![super::protocol::agent().expect("a graph")];
    let here = TestServer::over(open().await, HttpSettings::default(), graphs()).await;
    let there = TestServer::over(open().await, HttpSettings::default(), graphs()).await;
    let thread = "over-replicas";
    let mut listener = super::protocol::subscribe(&there, thread, json!({"channels": super::protocol::ALL})).await;
    super::protocol::start(&here, thread, super::protocol::hello()).await;
    let heard = tokio::time::timeout(Duration::from_secs(20), listener.until(super::protocol::is_terminal)).await;
    assert_eq!(heard.expect("in time"), super::protocol::history(&here, thread, 1).await);
    drop((here, there));
    database.drop().await;
}
