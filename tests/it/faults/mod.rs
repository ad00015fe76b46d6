//! The fault table of the README: what is done to the server, and what must hold all the same. Processes, databases and
//! networks are real; faults wait for events, not for times.

mod access;
mod blocking;
mod canaries;
mod clocks;
mod cuts;
mod disk;
mod injection;
mod large_values;
mod memory;
mod network;
mod paused;
mod pgbouncer;
mod poison;
mod pruning;
mod receivers;
mod requests;
mod rolling;
mod slow_readers;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::app;
use session_store::clock::Clock;
use session_store::config::{Config, Overrides};
use session_store::graph::{BuildErrors, Context, END, Graph, NodeError, START, StateGraph, Update};
use session_store::update;

use crate::support::process::{PATIENCE, Server, eventually, get, post, send};

/// Where nodes leave traces of what they did, and find out how to behave.
const TRACES: &str = "IT_FAULTS_TRACES";
/// How wrong a server's clock is, in seconds.
const SKEW_SECS: &str = "IT_FAULTS_SKEW_SECS";

/// What is wrong with a node.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Fault {
    how: String,
    name: String,
    done: bool,
}

impl Default for Fault {
    fn default() -> Self {
        Fault { how: "nothing".into(), name: "nobody".into(), done: false }
    }
}

/// Counts `n` up to `steps`, but not beyond the [`Gate`]: tests need not hope that a run lasts until they are there.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Walk {
    name: String,
    n: u64,
    steps: u64,
    /// What each step leaves besides: so many bytes that do not shrink.
    noise_bytes: usize,
    noise: String,
}

/// How far walks may go; all the way when nothing is written. Open for whoever starts the walk and for each process that
/// takes it over.
struct Gate<'a>(&'a Path);

impl Gate<'_> {
    fn path(&self) -> std::path::PathBuf {
        self.0.join("gate")
    }

    /// Lets walks reach `n`, and not go on from there.
    fn opens_until(&self, n: i64) {
        // Renamed, so that nobody reads half of it.
        let new = self.0.join("gate.new");
        std::fs::write(&new, n.to_string()).and_then(|()| std::fs::rename(&new, self.path())).expect("written");
    }

    fn lets_pass(&self, n: u64) -> bool {
        let until = std::fs::read_to_string(self.path());
        until.is_ok_and(|until| until.parse().is_ok_and(|until: u64| n < until))
    }
}

fn walk() -> Result<Graph, BuildErrors> {
    StateGraph::<Walk>::new("walk")
        .node("step", step)
        .edge(START, "step")
        .branch("step", "more", ["step", END], |state: &Walk| if state.n < state.steps { "step" } else { END })
        .build()
}

async fn step(state: Walk, _ctx: Context) -> Result<Update, NodeError> {
    let traces = std::env::var(TRACES).unwrap_or_default();
    leave_trace(Path::new(&traces), &format!("{}-{}", state.name, state.n))?;
    while !Gate(Path::new(&traces)).lets_pass(state.n) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if state.noise_bytes == 0 {
        return Ok(update!(Walk { n: state.n + 1 }));
    }
    let noise = (0..state.noise_bytes / 32).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect::<String>();
    Ok(update!(Walk { n: state.n + 1, noise }))
}

fn leave_trace(traces: &Path, name: &str) -> Result<(), NodeError> {
    let trace = traces.join(format!("{name}.{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(trace, "").map_err(|error| NodeError::new("Trace", error.to_string()))
}

/// A graph whose one node does what its input says.
fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Fault>::new("fault").node("act", act).edge(START, "act").edge("act", END).build()
}

async fn act(state: Fault, _ctx: Context) -> Result<Update, NodeError> {
    let traces = std::env::var(TRACES).unwrap_or_default();
    let traces = Path::new(&traces);
    leave_trace(traces, &state.name)?;
    if !traces.join("cured").exists() {
        match state.how.as_str() {
            "overflow" => {
                std::hint::black_box(overflow(0));
            }
            "memory" => {
                std::hint::black_box(Vec::<u8>::with_capacity(1 << 62));
            }
            "panic" => panic!("a node has its limits"),
            "hang" => std::future::pending().await,
            // Holds its thread until it is told to stop.
            "block" => {
                while !traces.join("go on").exists() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            _ => {}
        }
    }
    Ok(update!(Fault { done: true }))
}

/// Needs more stack than there is.
fn overflow(depth: u64) -> u64 {
    let room = [depth; 64];
    std::hint::black_box(&room);
    if depth == u64::MAX { 0 } else { overflow(depth + 1) + room[7] }
}

/// How often a node of this name was started.
fn started(traces: &Path, name: &str) -> usize {
    let prefix = format!("{name}.");
    let names = std::fs::read_dir(traces).expect("the traces");
    names.filter(|entry| entry.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with(&prefix))).count()
}

/// This test binary as a server of the faulty graph and the shipped ones: the poison needs a process of its own.
fn command(url: &str, traces: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "faults::the_server_of_these_tests", "--ignored", "--nocapture", "--test-threads=1"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SESSION_STORE__") {
            command.env_remove(name);
        }
    }
    command.env("DATABASE_URL", url).env(TRACES, traces).env("SESSION_STORE__SERVER__LISTEN", "127.0.0.1:0");
    command.envs(settings.iter().map(|(key, value)| (format!("SESSION_STORE__{key}"), *value)));
    command
}

fn server(url: &str, traces: &Path, settings: &[(&str, &str)]) -> Server {
    Server::spawn(command(url, traces, settings))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the server process that the tests beside it start"]
async fn the_server_of_these_tests() {
    let env = std::env::vars().collect();
    let config = Config::read(None, &env, &Overrides::default()).expect("settings");
    session_store::telemetry::init(&config.log).expect("a filter");
    let graphs = session_store::graphs::all().into_iter().chain([graph(), walk()]);
    let graphs = graphs.map(|graph| graph.expect("a graph that builds")).collect();
    let Some(secs) = std::env::var(SKEW_SECS).ok().and_then(|secs| secs.parse::<i64>().ok()) else {
        return app::serve(config, graphs).await.expect("served");
    };
    let server = app::Server::new(config, graphs).with_clock(Clock::skewed(secs * 1_000_000));
    let running = server.start().await.expect("it starts");
    println!("{}", running.greeting());
    std::future::pending::<()>().await;
}

/// Starts a background run on a thread of its own; returns the run's URL.
async fn start(server: &Server, thread: &str, assistant: &str, input: Value) -> String {
    let url = format!("{}/threads/{thread}/runs", server.url);
    let run = post(&url, json!({"assistant_id": assistant, "input": input})).await;
    format!("{url}/{}", run["run_id"].as_str().expect("an id"))
}

/// A run of `walk` under the thread's name.
async fn start_walk(server: &Server, thread: &str, steps: i64) -> String {
    start(server, thread, "walk", json!({"name": thread, "n": 0, "steps": steps})).await
}

/// The latest committed `n` of a thread; -1 when there is none or nobody answers.
async fn progress(server: &Server, thread: &str) -> i64 {
    match send(reqwest::Method::GET, &format!("{}/threads/{thread}/state", server.url), None).await {
        Ok((200, state)) => state["values"]["n"].as_i64().unwrap_or(-1),
        _ => -1,
    }
}

async fn reaches(server: &Server, thread: &str, n: i64) -> Duration {
    let ask = async || Some(progress(server, thread).await).filter(|now| *now >= n);
    eventually(&format!("{thread} reaches {n}"), PATIENCE, ask).await.1
}

/// A run's status, once it has ended.
async fn ended(server: &Server, run: &str) -> String {
    let path = run.split_once("/threads/").expect("a URL of a run").1;
    let url = format!("{}/threads/{path}", server.url);
    let ask = async || {
        let Ok((200, run)) = send(reqwest::Method::GET, &url, None).await else { return None };
        let status = run["status"].as_str()?;
        (!matches!(status, "pending" | "running")).then(|| status.to_owned())
    };
    eventually("the run ends", PATIENCE, ask).await.0
}

/// Fails unless each step of a walk had its effect once, in order, in one line of checkpoints.
async fn has_each_step_once(server: &Server, thread: &str, steps: i64) {
    let url = format!("{}/threads/{thread}", server.url);
    let Value::Array(mut history) = post(&format!("{url}/history"), json!({"limit": 1000})).await else {
        panic!("the history is a list")
    };
    history.reverse();
    let numbers: Vec<i64> = history.iter().filter_map(|state| state["metadata"]["step"].as_i64()).collect();
    assert_eq!(numbers, (-1..=steps).collect::<Vec<_>>(), "the steps are consecutive");
    let counts: Vec<i64> = history.iter().skip(2).filter_map(|state| state["values"]["n"].as_i64()).collect();
    assert_eq!(counts, (1..=steps).collect::<Vec<_>>(), "each step had its effect once");
    for pair in history.windows(2) {
        assert_eq!(pair[1]["parent_checkpoint"]["checkpoint_id"], pair[0]["checkpoint"]["checkpoint_id"]);
    }
    assert_eq!(get(&url).await["status"], "idle");
}
