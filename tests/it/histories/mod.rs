//! A hundred clients race on one thread with all strategies and cancels. What they were told has a legal serial order: a
//! checker finds it, by a model of what a thread may do.

mod checker;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::clock::Clock;
use session_store::graph::{END, Graph, START, StateGraph};
use session_store::http::HttpSettings;
use session_store::storage::SharedStorage;
use session_store::storage::connect::{ConnectOptions, connect};
use session_store::update;

use crate::support::postgres::Database;
use crate::support::server::TestServer;
use checker::{Timed, serial_order};

const RACERS: usize = 100;
/// Of whom so many race at once: what may have happened in any order stays little enough to be tried.
const AT_ONCE: usize = 12;
const STEPS: usize = 3;

/// Which stops a run was asked for.
const INTERRUPT: u8 = 1;
const ROLLBACK: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Enqueue,
    Reject,
    Stops(u8),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    /// A run was asked for and accepted.
    Started(usize, Strategy),
    /// It was refused: the thread was busy.
    Busy,
    /// Everything active was asked to stop.
    Cancelled(u8),
    /// A run ended; its entries stand in the trail from `at`.
    Ended { run: usize, status: Status, at: usize, entries: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Success,
    Interrupted,
    /// Rolled back.
    Gone,
}

/// What the model knows of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Thread {
    /// Accepted and not ended, oldest first, with the stops asked for.
    active: Vec<(usize, u8)>,
    /// Entries that ended runs have left.
    trail: usize,
}

/// What a thread may do.
fn step(thread: &Thread, op: &Op) -> Option<Thread> {
    let mut after = thread.clone();
    match op {
        Op::Started(run, strategy) => {
            match strategy {
                Strategy::Enqueue => {}
                Strategy::Reject if !thread.active.is_empty() => return None,
                Strategy::Reject => {}
                Strategy::Stops(stop) => after.active.iter_mut().for_each(|(_, stops)| *stops |= stop),
            }
            after.active.push((*run, 0));
        }
        Op::Busy if thread.active.is_empty() => return None,
        Op::Busy => {}
        Op::Cancelled(stop) => after.active.iter_mut().for_each(|(_, stops)| *stops |= stop),
        Op::Ended { run, status, at, entries } => {
            let place = thread.active.iter().position(|(other, _)| other == run)?;
            let (_, stops) = after.active.remove(place);
            let may = match status {
                Status::Success => *entries == STEPS,
                Status::Interrupted => stops & INTERRUPT != 0,
                Status::Gone => stops & ROLLBACK != 0 && *entries == 0,
            };
            // Only the oldest runs; one that is stopped before its turn leaves nothing.
            let had_its_turn = place == 0;
            let is_next = *entries == 0 || (had_its_turn && *at == thread.trail);
            if !may || !is_next {
                return None;
            }
            after.trail += entries;
        }
    }
    Some(after)
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Race {
    tag: usize,
    n: usize,
    trail: Vec<String>,
}

fn graph() -> Graph {
    let graph = StateGraph::<Race>::new("race")
        .append("trail")
        .node("step", async |state: Race, _ctx| {
            tokio::task::yield_now().await;
            let entry = format!("{}.{}", state.tag, state.n);
            Ok(update!(Race { n: state.n + 1, trail: vec![entry] }))
        })
        .edge(START, "step")
        .branch("step", "more", ["step", END], |state: &Race| if state.n < STEPS { "step" } else { END })
        .build();
    graph.expect("a graph")
}

/// What one racer was told, before the trail is known.
enum Told {
    Busy(Timed<()>),
    Cancelled(u8, String, Timed<()>),
    Ran { run: usize, strategy: Strategy, created_at: String, start: Timed<()>, status: Status, ended: u64 },
}

/// A clock for the order of things in this process.
#[derive(Default)]
struct Ticks(AtomicU64);

impl Ticks {
    fn now(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

async fn race(server: &TestServer, ticks: &Ticks, run: usize, choice: u64) -> Told {
    let begin = ticks.now();
    let timed = |end| Timed { op: (), begin, end };
    if choice % 9 == 8 {
        let (action, stop) = if choice % 2 == 0 { ("interrupt", INTERRUPT) } else { ("rollback", ROLLBACK) };
        let answer = server.post(&format!("/threads/t/runs/cancel?action={action}"), json!({})).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let at = Clock::default().now().to_iso();
        return Told::Cancelled(stop, at, timed(ticks.now()));
    }
    let (word, strategy) = [
        ("enqueue", Strategy::Enqueue),
        ("enqueue", Strategy::Enqueue),
        ("reject", Strategy::Reject),
        ("interrupt", Strategy::Stops(INTERRUPT)),
        ("rollback", Strategy::Stops(ROLLBACK)),
    ][(choice % 5) as usize];
    let body = json!({"assistant_id": "race", "input": {"tag": run, "n": 0}, "multitask_strategy": word});
    let answer = server.post("/threads/t/runs", body).await;
    let start = timed(ticks.now());
    if answer.status == 409 {
        assert_eq!(strategy, Strategy::Reject, "only these are refused");
        return Told::Busy(start);
    }
    let created = answer.ok();
    let text = |key: &str| created[key].as_str().unwrap_or_default().to_owned();
    let place = format!("/threads/t/runs/{}", text("run_id"));
    let status = loop {
        // A run that is rolled back may go while it is waited for.
        server.get(&format!("{place}/join")).await;
        let answer = server.get(&place).await;
        if answer.status == 404 {
            break Status::Gone;
        }
        match answer.ok()["status"].as_str() {
            Some("success") => break Status::Success,
            Some("interrupted") => break Status::Interrupted,
            Some("pending" | "running") => {}
            other => panic!("ended as {other:?}"),
        }
    };
    Told::Ran { run, strategy, created_at: text("created_at"), start, status, ended: ticks.now() }
}

/// Lets them race; what they were told, and the trail that is left.
async fn history(storage: SharedStorage, seed: u64) -> (Vec<Timed<Op>>, Vec<String>) {
    let server = Arc::new(TestServer::over(storage, HttpSettings::default(), vec![graph()]).await);
    // So that there is a thread to cancel on.
    server.post("/threads", json!({"thread_id": "t"})).await.ok();
    let ticks = Arc::new(Ticks::default());
    let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut racing = tokio::task::JoinSet::new();
    let mut choice = seed;
    for run in 0..RACERS {
        choice = choice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (server, ticks, choice) = (Arc::clone(&server), Arc::clone(&ticks), choice >> 33);
        let places = Arc::clone(&places);
        racing.spawn(async move {
            let _place = places.acquire().await.expect("open");
            race(&server, &ticks, run, choice).await
        });
    }
    let told = tokio::time::timeout(Duration::from_secs(60), racing.join_all()).await.expect("all come to an end");
    let state = server.get("/threads/t/state").await.ok();
    let trail: Vec<String> = match &state["values"]["trail"] {
        Value::Array(list) => list.iter().map(|entry| entry.as_str().expect("text").to_owned()).collect(),
        _ => Vec::new(),
    };
    (ops(told, &trail), trail)
}

/// The operations, in the order in which a thread most likely did them.
fn ops(told: Vec<Told>, trail: &[String]) -> Vec<Timed<Op>> {
    let mut places: HashMap<usize, Vec<usize>> = HashMap::new();
    for (place, entry) in trail.iter().enumerate() {
        let run = entry.split('.').next().and_then(|tag| tag.parse().ok()).expect("a tag");
        places.entry(run).or_default().push(place);
    }
    let mut keyed: Vec<((usize, String, u64), Timed<Op>)> = Vec::new();
    for one in told {
        match one {
            Told::Busy(Timed { begin, end, .. }) => {
                keyed.push(((2, String::new(), begin), Timed { op: Op::Busy, begin, end }));
            }
            Told::Cancelled(stop, at, Timed { begin, end, .. }) => {
                keyed.push(((1, at, begin), Timed { op: Op::Cancelled(stop), begin, end }));
            }
            Told::Ran { run, strategy, created_at, start, status, ended } => {
                let mine = places.get(&run).cloned().unwrap_or_default();
                let (at, entries) = (mine.first().copied().unwrap_or(0), mine.len());
                let in_a_row = mine.iter().enumerate().all(|(n, place)| *place == at + n);
                assert!(in_a_row, "two runs took turns: {run} has {mine:?}");
                let op = Op::Started(run, strategy);
                keyed.push(((1, created_at.clone(), start.begin), Timed { op, begin: start.begin, end: start.end }));
                let op = Op::Ended { run, status, at, entries };
                keyed.push(((0, created_at, start.begin), Timed { op, begin: start.begin, end: ended }));
            }
        }
    }
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, op)| op).collect()
}

async fn has_a_serial_order(storage: SharedStorage, seed: u64) {
    let (history, trail) = history(storage, seed).await;
    let count = |wanted: fn(&Op) -> bool| history.iter().filter(|timed| wanted(&timed.op)).count();
    eprintln!(
        "seed {seed}: {} started, {} refused, {} cancels, {} entries",
        count(|op| matches!(op, Op::Started(..))),
        count(|op| matches!(op, Op::Busy)),
        count(|op| matches!(op, Op::Cancelled(_))),
        trail.len()
    );
    let order = serial_order(&history, Thread::default(), step, |op| *op == Op::Busy);
    assert!(order.is_some(), "seed {seed}: no serial order of {history:#?}\n{trail:?}");
}

/// Whether a made-up history has a serial order: operations with their beginnings and ends.
fn is_legal(history: &[(Op, u64, u64)]) -> bool {
    let history: Vec<Timed<Op>> =
        history.iter().map(|(op, begin, end)| Timed { op: op.clone(), begin: *begin, end: *end }).collect();
    serial_order(&history, Thread::default(), step, |op| *op == Op::Busy).is_some()
}

#[test]
fn what_a_thread_may_not_do_is_seen() {
    let start = |run, strategy, begin, end| (Op::Started(run, strategy), begin, end);
    let ended = |run, status, at, entries, end| (Op::Ended { run, status, at, entries }, 0, end);
    let (enqueue, reject) = (Strategy::Enqueue, Strategy::Reject);
    let success = |run, at, end| ended(run, Status::Success, at, STEPS, end);
    assert!(is_legal(&[start(0, enqueue, 1, 2), start(1, enqueue, 3, 4), success(0, 0, 9), success(1, STEPS, 9)]));
    assert!(
        !is_legal(&[start(0, enqueue, 1, 2), start(1, enqueue, 3, 4), success(0, STEPS, 9), success(1, 0, 9)]),
        "the later one ran first"
    );
    assert!(!is_legal(&[start(0, enqueue, 1, 2), ended(0, Status::Success, 0, 2, 9)]), "a lost step");
    assert!(!is_legal(&[start(0, enqueue, 1, 2), ended(0, Status::Interrupted, 0, 1, 9)]), "nobody stopped it");
    assert!(!is_legal(&[start(0, enqueue, 1, 2), success(0, 0, 5), (Op::Busy, 6, 7)]), "refused by an idle thread");
    assert!(is_legal(&[start(0, enqueue, 1, 2), success(0, 0, 8), (Op::Busy, 6, 7)]));
    let early =
        [start(0, enqueue, 1, 2), (Op::Busy, 3, 4), start(1, reject, 3, 4), success(0, 0, 9), success(1, STEPS, 9)];
    assert!(is_legal(&early), "the first may have ended between the two");
    let late =
        [start(0, enqueue, 1, 2), start(1, reject, 3, 4), (Op::Busy, 5, 6), success(1, 0, 7), success(0, STEPS, 9)];
    assert!(!is_legal(&late), "accepted beside an active one");
    let stops = Strategy::Stops(ROLLBACK);
    let gone = ended(0, Status::Gone, 0, 0, 9);
    assert!(is_legal(&[start(0, enqueue, 1, 2), start(1, stops, 3, 4), gone.clone(), success(1, 0, 9)]));
    assert!(!is_legal(&[start(0, enqueue, 1, 2), gone, start(1, stops, 10, 11), success(1, 0, 12)]), "gone before");
    assert!(is_legal(&[
        start(0, enqueue, 1, 2),
        (Op::Cancelled(INTERRUPT), 3, 4),
        ended(0, Status::Interrupted, 0, 2, 9)
    ]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racers_on_one_thread_have_a_serial_order() {
    for seed in 1..=3 {
        has_a_serial_order(connect("memory", &ConnectOptions::default()).await.expect("a database"), seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racers_on_one_thread_have_a_serial_order_on_postgres() {
    for seed in 1..=3 {
        let Some(database) = Database::create().await else { return };
        let storage = connect(&database.url(), &ConnectOptions::default()).await.expect("a database");
        has_a_serial_order(storage.clone(), seed).await;
        storage.close().await;
        database.drop().await;
    }
}
