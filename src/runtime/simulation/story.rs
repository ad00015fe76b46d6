//! What clients ask for in a simulation, and what must be there afterwards if each superstep is there once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::process::Process;
use super::world::World;
use crate::graph::{Context, END, Graph, Node, NodeError, RetryPolicy, START, StateGraph, Update};
use crate::model::{Durability, Json, MultitaskStrategy, OnCompletion, RunKwargs, ThreadId};
use crate::runtime::{AssistantName, RunRequest};
use crate::update;

/// The input of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    /// Which run of the simulation it is, from 1 on.
    pub(super) turn: u64,
    /// Where it starts to count, and how far it gets.
    n: u64,
    to: u64,
    pause_ms: u64,
    /// Two tasks at once between one step and the next.
    is_wide: bool,
    /// Steps that fail now and then, and are tried again.
    is_flaky: bool,
    /// The step that fails for good; 0: none.
    pub(super) fail_at: u64,
    /// The step that kills its process, whenever it is tried; 0: none.
    pub(super) kill_at: u64,
}

impl Asked {
    pub(super) fn roll(world: &World, turn: u64, may_kill: bool) -> Asked {
        let to = 1 + world.roll(4);
        let some_step = |is_so: bool| if is_so { 1 + world.roll(to) } else { 0 };
        Asked {
            turn,
            n: 0,
            to,
            pause_ms: [0, 1, 30, 300, 1500, 5500][world.roll(6) as usize] * world.roll(2),
            is_wide: world.one_in(3),
            is_flaky: world.one_in(4),
            fail_at: some_step(world.one_in(12)),
            kill_at: some_step(may_kill && world.one_in(10)),
        }
    }

    /// What the run leaves on the trail, by supersteps.
    fn supersteps(&self) -> Vec<Vec<String>> {
        let (turn, last) = (self.turn, if self.fail_at > 0 { self.fail_at - 1 } else { self.to });
        let mut steps = Vec::new();
        for n in 1..=last {
            steps.push(vec![format!("{turn}.{n}")]);
            if self.is_wide && n < self.to {
                steps.push(vec![format!("{turn}.{n}.left"), format!("{turn}.{n}.right")]);
            }
        }
        steps
    }

    /// How many supersteps of the run these entries of the trail are, and whether a sibling of the next one is among them
    /// that had finished; `None`: they are none that it could have left.
    pub(super) fn measure(&self, trail: &[String]) -> Option<Progress> {
        let steps = self.supersteps();
        let mut left = trail;
        for (done, step) in steps.iter().enumerate() {
            let of_step = |is_partial| Some(Progress { is_complete: false, is_partial, supersteps: done });
            match left {
                [] => return of_step(false),
                [one] if step.len() > 1 && step.contains(one) => return of_step(true),
                _ => left = left.strip_prefix(step.as_slice())?,
            }
        }
        let is_complete = self.fail_at == 0;
        left.is_empty().then_some(Progress { is_complete, is_partial: false, supersteps: steps.len() })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) is_complete: bool,
    /// A superstep was left in the middle: what its finished siblings wrote stays.
    pub(super) is_partial: bool,
    pub(super) supersteps: usize,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Steps {
    turn: u64,
    n: u64,
    to: u64,
    pause_ms: u64,
    is_wide: bool,
    is_flaky: bool,
    fail_at: u64,
    kill_at: u64,
    trail: Vec<String>,
}

/// The graph of all runs: counts, and leaves a trail.
pub(super) fn graph() -> Graph {
    static GRAPH: OnceLock<Graph> = OnceLock::new();
    let build = || {
        let flaky = RetryPolicy {
            initial_interval: Duration::from_millis(20),
            max_interval: Duration::from_secs(1),
            max_attempts: 100,
            retry_on: Arc::new(|error| error.class == "Flaky"),
            ..RetryPolicy::default()
        };
        let sides = |side: &'static str, share: u64| {
            Node::new(move |state: Steps, _ctx: Context| async move {
                tokio::time::sleep(Duration::from_millis(state.pause_ms / share)).await;
                Ok::<_, NodeError>(update!(Steps { trail: vec![format!("{}.{}.{side}", state.turn, state.n)] }))
            })
        };
        StateGraph::<Steps>::new("steps")
            .append("trail")
            .node_with("step", Node::new(step).retry(flaky))
            .node_with("left", sides("left", 3))
            .node_with("right", sides("right", 2))
            .edge(START, "step")
            .branch("step", "more", ["step", "left", "right", END], |state: &Steps| {
                if state.n >= state.to {
                    vec![END]
                } else if state.is_wide {
                    vec!["left", "right"]
                } else {
                    vec!["step"]
                }
            })
            .edge("left", "step")
            .edge("right", "step")
            .build()
            .expect("a graph")
    };
    GRAPH.get_or_init(build).clone()
}

async fn step(state: Steps, _ctx: Context) -> Result<Update, NodeError> {
    tokio::time::sleep(Duration::from_millis(state.pause_ms)).await;
    let n = state.n + 1;
    let process = Process::current().expect("nodes run in a process");
    if n == state.kill_at {
        process.kill();
        return std::future::pending().await;
    }
    if n == state.fail_at {
        return Err(NodeError::new("Broken", "as asked"));
    }
    if state.is_flaky && process.roll(3) == 0 {
        return Err(NodeError::new("Flaky", "as asked"));
    }
    Ok(update!(Steps { n, trail: vec![format!("{}.{n}", state.turn)] }))
}

/// A request for a run on a thread.
pub(super) fn request(world: &World, thread: &ThreadId, asked: &Asked) -> RunRequest {
    let durability = [Durability::Sync, Durability::Async, Durability::Async, Durability::Exit][world.roll(4) as usize];
    let multitask_strategy = match world.roll(10) {
        0 => MultitaskStrategy::Interrupt,
        1 => MultitaskStrategy::Rollback,
        2 => MultitaskStrategy::Reject,
        _ => MultitaskStrategy::Enqueue,
    };
    let kwargs = RunKwargs {
        input: Json::of(asked).ok(),
        config: Json::object(),
        context: Json::object(),
        stream_mode: vec!["updates".to_owned()],
        resumable: world.one_in(3),
        ..RunKwargs::default()
    };
    RunRequest {
        thread: Some(thread.clone()),
        assistant: Some(AssistantName::Graph("steps".to_owned())),
        kwargs,
        durability: Some(durability),
        metadata: Json::object(),
        multitask_strategy,
        create_thread: Some(true),
        after: Duration::ZERO,
        on_completion: OnCompletion::Keep,
        cancel_on_disconnect: false,
        start_here: world.one_in(2),
        actor: None,
    }
}
