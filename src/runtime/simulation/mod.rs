//! A simulation by seeds: several replicas of the real runtime over a made-up database and a made-up time. Processes die
//! and fall silent, calls are slow, fail, or succeed without an answer; clocks are an hour off. Whatever happens, each
//! accepted run ends, and each of its supersteps is there once.
//!
//! All is one thread with paused time: a minute of theirs takes milliseconds of ours. `SESSION_STORE_SEEDS=100000` runs as
//! many seeds, `SESSION_STORE_SEED=7` that one. Choices follow from the seed; the order in which ready tasks of one moment
//! are polled is the async runtime's.

mod world;

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::nodes::NodeThreads;
use super::shared::lock;
use super::{AssistantName, CronSettings, RunRequest, Runtime, Settings, WebhookSettings};
use crate::clock::Clock;
use crate::graph::{END, Graph, START, StateGraph};
use crate::model::{
    CheckpointRef, Durability, Json, MultitaskStrategy, OnCompletion, RunId, RunKwargs, RunStatus, Scope, ThreadId,
};
use crate::storage::nowhere::Nowhere;
use crate::update;
use world::{Link, State, World};

/// Seeds of a usual run of the tests.
const SEEDS: u64 = 2000;
const REPLICAS: usize = 3;
const THREADS: usize = 3;
const LEASE: Duration = Duration::from_secs(4);
/// How long faults are made, and how long all may take to come to an end afterwards, in simulated time.
const STORM: Duration = Duration::from_secs(20);
const DRAIN: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Steps {
    turn: u64,
    n: u64,
    to: u64,
    pause_ms: u64,
    trail: Vec<String>,
}

fn graph() -> Graph {
    let graph = StateGraph::<Steps>::new("steps")
        .append("trail")
        .node("step", async |state: Steps, _ctx| {
            tokio::time::sleep(Duration::from_millis(state.pause_ms)).await;
            let n = state.n + 1;
            Ok(update!(Steps { n, trail: vec![format!("{}.{n}", state.turn)] }))
        })
        .edge(START, "step")
        .branch("step", "more", ["step", END], |state: &Steps| if state.n < state.to { "step" } else { END })
        .build();
    graph.expect("a graph")
}

fn settings(number: usize) -> Settings {
    Settings {
        worker: format!("replica {number}"),
        concurrency: 4,
        lease: LEASE,
        renew_every: Duration::from_secs(1),
        poll_every: Duration::from_secs(1),
        max_attempts: 1000,
        run_timeout: Duration::from_secs(3600),
        recursion_limit: 10_007,
        durability: Durability::Async,
        default_ttl: None,
        // What the simulation has not is looked for rarely.
        sweep_every: Duration::from_secs(3600),
        cache_bytes: 0,
        claims: true,
        crons: CronSettings { poll_every: Duration::from_secs(3600), ..CronSettings::default() },
        webhooks: WebhookSettings::default(),
    }
}

/// A process.
struct Replica {
    runtime: Runtime,
    link: Link,
}

impl Replica {
    fn start(world: &Arc<World>, began: Instant, number: usize) -> Replica {
        let link = Link::new(world);
        let storage = Arc::new(Nowhere { simulated: Some(Box::new(link.clone())) });
        let skew_us = (world.roll(3) as i64 - 1) * 3_600_000_000;
        let clock = Clock::simulated(world.roll(u64::MAX), began, skew_us);
        let runtime = Runtime::over(storage, vec![graph()], clock, settings(number), NodeThreads::here());
        runtime.start();
        Replica { runtime, link }
    }
}

fn request(thread: &ThreadId, turn: u64, world: &World) -> (RunRequest, u64) {
    let to = 1 + world.roll(6);
    let input = json!({"turn": turn, "n": 0, "to": to, "pause_ms": world.roll(3) * world.roll(900)});
    let durability = if world.roll(2) == 0 { Durability::Sync } else { Durability::Async };
    let kwargs = RunKwargs {
        input: Some(Json::from(input)),
        config: Json::object(),
        context: Json::object(),
        stream_mode: vec!["values".to_owned()],
        resumable: world.roll(2) == 0,
        ..RunKwargs::default()
    };
    let request = RunRequest {
        thread: Some(thread.clone()),
        assistant: Some(AssistantName::Graph("steps".to_owned())),
        kwargs,
        durability: Some(durability),
        metadata: Json::object(),
        multitask_strategy: MultitaskStrategy::Enqueue,
        create_thread: Some(true),
        after: Duration::ZERO,
        on_completion: OnCompletion::Keep,
        cancel_on_disconnect: false,
        start_here: false,
        actor: None,
    };
    (request, to)
}

/// What was accepted on one thread.
struct Accepted {
    thread: ThreadId,
    runs: Vec<RunId>,
    trail: Vec<String>,
}

/// Lives through one seed; what is wrong afterwards.
async fn live(seed: u64) -> Result<(), String> {
    let began = Instant::now();
    let world = World::new(seed, began);
    *lock(&world.failures) = world.roll(15);
    let mut replicas: Vec<Replica> = (0..REPLICAS).map(|number| Replica::start(&world, began, number)).collect();
    let mut accepted: Vec<Accepted> = (0..THREADS)
        .map(|number| {
            let thread = ThreadId::parse(&format!("sim-{number}")).expect("a name");
            Accepted { thread, runs: Vec::new(), trail: Vec::new() }
        })
        .collect();
    let mut turn = 0;
    while began.elapsed() < STORM {
        let index = world.roll(REPLICAS as u64) as usize;
        match world.roll(10) {
            0..=3 => {
                let story = &mut accepted[world.roll(THREADS as u64) as usize];
                turn += 1;
                let (request, to) = request(&story.thread, turn, &world);
                // A process that says nothing is not waited for; what it may have accepted is not known then.
                if *lock(&replicas[index].link.state) != State::Alive {
                    continue;
                }
                if let Ok(submitted) = replicas[index].runtime.submit(&Scope::default(), request).await {
                    story.runs.push(submitted.run.run_id);
                    story.trail.extend((1..=to).map(|n| format!("{turn}.{n}")));
                }
            }
            4..=5 => {
                *lock(&replicas[index].link.state) = State::Dead;
                replicas[index] = Replica::start(&world, began, index);
            }
            6..=7 => {
                let until = Instant::now() + Duration::from_millis(world.roll(9000));
                *lock(&replicas[index].link.state) = State::SilentUntil(until);
            }
            8 => {
                // Told to stop: it hands over what it has, and another one comes.
                let old = std::mem::replace(&mut replicas[index], Replica::start(&world, began, index));
                tokio::spawn(async move { old.runtime.drain().await });
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(world.roll(800))).await;
    }
    *lock(&world.failures) = 0;
    let calm = Instant::now();
    let judge = Replica::start(&world, began, REPLICAS);
    for story in &accepted {
        loop {
            let (runs, _) = world.shown(&story.thread);
            if !runs.iter().any(|(_, status)| status.is_active()) {
                break;
            }
            if calm.elapsed() > DRAIN {
                return Err(format!("stuck: {} has {runs:?}", story.thread));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        judge_one(&judge.runtime, &world, story).await?;
    }
    Ok(())
}

async fn judge_one(runtime: &Runtime, world: &World, story: &Accepted) -> Result<(), String> {
    let (runs, history) = world.shown(&story.thread);
    let thread = &story.thread;
    let ids: Vec<RunId> = runs.iter().map(|(id, _)| *id).collect();
    if ids != story.runs {
        return Err(format!("{thread}: accepted {:?}, there are {ids:?}", story.runs));
    }
    if let Some(bad) = runs.iter().find(|(_, status)| *status != RunStatus::Success) {
        return Err(format!("{thread}: ended as {bad:?}"));
    }
    if story.runs.is_empty() {
        return Ok(());
    }
    for pair in history.windows(2) {
        if pair[1].step != pair[0].step + 1 || pair[1].parent.as_ref() != Some(&pair[0].id) {
            return Err(format!("{thread}: superstep {} follows on {}", pair[1].step, pair[0].step));
        }
    }
    let state = runtime.thread_state(&Scope::default(), thread, &CheckpointRef::default(), false).await;
    let state = state.map_err(|error| format!("{thread}: {error}"))?;
    let state = Json::of(&state).map_err(|error| error.to_string())?;
    let trail: Vec<String> = state
        .get("values")
        .and_then(|values| values.get("trail"))
        .and_then(|trail| trail.decode().ok())
        .ok_or_else(|| format!("{thread}: no trail in {state}"))?;
    if trail != story.trail { Err(format!("{thread}: expected {:?}, found {trail:?}", story.trail)) } else { Ok(()) }
}

#[test]
fn accepted_runs_end_and_each_superstep_is_there_once() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SESSION_STORE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..number("SESSION_STORE_SEEDS").unwrap_or(SEEDS) + 1,
    };
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        if let Err(finding) = runtime.block_on(live(seed)) {
            panic!("seed {seed}: {finding}");
        }
    }
    eprintln!("{count} seeds");
}
