//! A hundred clients race on one thread with all strategies and cancels. What they were told has a legal serial order: a
//! checker finds it, by a model of what a thread may do.

mod checker;
mod thread;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::clock::Clock;
use session_store::graph::{END, Graph, START, StateGraph};
use session_store::runtime::Settings;
use session_store::storage::SharedStorage;
use session_store::storage::connect::{ConnectOptions, connect};
use session_store::update;

use crate::support::postgres::Database;
use crate::support::server::{TestServer, runtime_settings};
use checker::{Timed, Verdict};
use thread::{Op, STEPS, Status, Stop, Strategy, judge};

const RACERS: usize = 100;
/// How many of them race at once, history by history.
const AT_ONCE: [usize; 3] = [100, 24, 8];
const PATIENCE: Duration = Duration::from_secs(90);

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
    Cancelled(Stop, String, Timed<()>),
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
        let (action, stop) =
            if choice.is_multiple_of(2) { ("interrupt", Stop::Interrupt) } else { ("rollback", Stop::Rollback) };
        let answer = server.post(&format!("/threads/t/runs/cancel?action={action}"), json!({})).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let at = Clock::default().now().to_iso();
        return Told::Cancelled(stop, at, timed(ticks.now()));
    }
    let (word, strategy) = [
        ("enqueue", Strategy::Enqueue),
        ("enqueue", Strategy::Enqueue),
        ("reject", Strategy::Reject),
        ("interrupt", Strategy::Stops(Stop::Interrupt)),
        ("rollback", Strategy::Stops(Stop::Rollback)),
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

/// Lets them race, so many at once; what they were told, and the trail that is left.
async fn history(storage: SharedStorage, seed: u64, at_once: usize) -> (Vec<Timed<Op>>, Vec<String>) {
    // However long they wait for each other: no lease runs out meanwhile.
    let settings = Settings { lease: PATIENCE, ..runtime_settings() };
    let server = Arc::new(TestServer::set(storage, settings, vec![graph()]).await);
    // So that there is a thread to cancel on.
    server.post("/threads", json!({"thread_id": "t"})).await.ok();
    let ticks = Arc::new(Ticks::default());
    let places = Arc::new(tokio::sync::Semaphore::new(at_once));
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
    let told = tokio::time::timeout(PATIENCE, racing.join_all()).await.expect("all come to an end");
    let state = server.get("/threads/t/state").await.ok();
    let trail: Vec<String> = match &state["values"]["trail"] {
        Value::Array(list) => list.iter().map(|entry| entry.as_str().expect("text").to_owned()).collect(),
        _ => Vec::new(),
    };
    // Nothing goes on behind the next history.
    server.runtime.drain().await;
    (ops(told, &trail), trail)
}

/// The operations, in the order in which a thread most likely did them.
fn ops(told: Vec<Told>, trail: &[String]) -> Vec<Timed<Op>> {
    let mut places: HashMap<usize, Vec<usize>> = HashMap::new();
    for (place, entry) in trail.iter().enumerate() {
        let run = entry.split('.').next().and_then(|tag| tag.parse().ok()).expect("a tag");
        places.entry(run).or_default().push(place);
    }
    let started = told.iter().filter_map(|one| match one {
        Told::Ran { created_at, .. } => Some(created_at.clone()),
        _ => None,
    });
    let mut started: Vec<String> = started.collect();
    started.sort();
    let mut keyed: Vec<((String, u8, u64), Timed<Op>)> = Vec::new();
    for one in told {
        match one {
            Told::Busy(Timed { begin, end, .. }) => {
                keyed.push(((String::new(), 0, begin), Timed { op: Op::Busy, begin, end }));
            }
            Told::Cancelled(stop, at, Timed { begin, end, .. }) => {
                keyed.push(((at, 2, begin), Timed { op: Op::Cancelled(stop), begin, end }));
            }
            Told::Ran { run, strategy, created_at, start, status, ended } => {
                let mine = places.get(&run).cloned().unwrap_or_default();
                let (at, entries) = (mine.first().copied().unwrap_or(0), mine.len());
                let in_a_row = mine.iter().enumerate().all(|(n, place)| *place == at + n);
                assert!(in_a_row, "two runs took turns: {run} has {mine:?}");
                let after = started.partition_point(|other| *other < created_at);
                let op = Op::Ended { run, status, at, entries };
                keyed.push(((created_at.clone(), 0, start.begin), Timed { op, begin: start.begin, end: ended }));
                let op = Op::Started { run, strategy, after };
                keyed.push(((created_at, 1, start.begin), Timed { op, begin: start.begin, end: start.end }));
            }
        }
    }
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, op)| op).collect()
}

async fn has_a_serial_order(storage: SharedStorage, seed: u64, at_once: usize) {
    let (history, trail) = history(storage, seed, at_once).await;
    let count = |wanted: fn(&Op) -> bool| history.iter().filter(|timed| wanted(&timed.op)).count();
    let (verdict, states) = judge(&history);
    eprintln!(
        "seed {seed}, {at_once} at once: {} accepted, {} refused, {} cancels, {} stopped, {} entries; {states} states",
        count(|op| matches!(op, Op::Started { .. })),
        count(|op| *op == Op::Busy),
        count(|op| matches!(op, Op::Cancelled(_))),
        count(|op| matches!(op, Op::Ended { status: Status::Interrupted | Status::Gone, .. })),
        trail.len()
    );
    if let Verdict::None { explained, left } = verdict {
        let shown = |list: &[usize]| list.iter().map(|index| format!("{:?}\n", history[*index])).collect::<String>();
        panic!("seed {seed}: no serial order. Explained:\n{}left:\n{}{trail:?}", shown(&explained), shown(&left));
    }
    assert_eq!(count(|op| matches!(op, Op::Ended { .. })), count(|op| matches!(op, Op::Started { .. })));
    is_refused_when_it_is_damaged(&history);
}

/// The same history with a lie in it has no order.
fn is_refused_when_it_is_damaged(history: &[Timed<Op>]) {
    let is_refused = |what: &str, damaged: &[Timed<Op>]| {
        assert!(matches!(judge(damaged).0, Verdict::None { .. }), "{what} was not seen in {damaged:#?}");
    };
    let last = history.iter().map(|timed| timed.end).max().expect("something happened");
    let mut damaged = history.to_vec();
    damaged.push(Timed { op: Op::Busy, begin: last + 1, end: last + 2 });
    is_refused("that an idle thread refused", &damaged);
    let done = |timed: &Timed<Op>| matches!(timed.op, Op::Ended { entries: STEPS, .. });
    let done: Vec<usize> = (0..history.len()).filter(|index| done(&history[*index])).collect();
    if let [first, .., second] = done[..] {
        let mut damaged = history.to_vec();
        for (index, other) in [(first, second), (second, first)] {
            let (Op::Ended { at, .. }, Op::Ended { at: new, .. }) = (&mut damaged[index].op, &history[other].op) else {
                unreachable!("chosen so")
            };
            *at = *new;
        }
        is_refused("that a later run ran first", &damaged);
        let mut damaged = history.to_vec();
        if let Op::Ended { entries, .. } = &mut damaged[first].op {
            *entries -= 1;
        }
        is_refused("a lost step", &damaged);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racers_on_one_thread_have_a_serial_order() {
    for (seed, at_once) in (1..).zip(AT_ONCE) {
        let storage = connect("memory", &ConnectOptions::default()).await.expect("a database");
        has_a_serial_order(storage, first_seed() + seed, at_once).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racers_on_one_thread_have_a_serial_order_on_postgres() {
    for (seed, at_once) in (1..).zip(AT_ONCE) {
        let Some(database) = Database::create().await else { return };
        // On a busy machine a hundred racers wait for each other, and are not told to come back later.
        let options =
            ConnectOptions { acquire_timeout: PATIENCE, statement_timeout: PATIENCE, ..ConnectOptions::default() };
        let storage = connect(&database.url(), &options).await.expect("a database");
        has_a_serial_order(storage.clone(), first_seed() + seed, at_once).await;
        storage.close().await;
        database.drop().await;
    }
}

/// `IT_HISTORIES_SEED` for others than those of CI.
fn first_seed() -> u64 {
    std::env::var("IT_HISTORIES_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}
