//! Executes graphs: drives [`Execution`], runs its jobs, and hands its effects to storage and listeners. One [`Site`] per
//! graph; a graph inside a node has its own within the node's job.
//!
//! A job records its own end when its turn comes ([`super::turns::Turns`]), so that all graphs of a run tell what they do in one
//! order; whoever drives the graph only waits until its jobs have ended.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::alive::Alive;
use super::cache::Place;
use super::chain_events::{self, Chain, NodeChain};
use super::effects::Anchor;
use super::executions::{Track, Trail};
use super::host::{Exchange, TaskHost};
use super::messages;
use super::persist::Reader;
use super::questions;
use super::retry;
use super::said;
use super::shared::{Shared, View, lock};
use super::turns::{Siblings, rounds};
use super::usage::{Ledger, Report};
use super::versions;
use crate::engine::EngineError;
use crate::engine::chunk;
use crate::engine::command::{Command, Output};
use crate::engine::execution::{Effect, Execution, Finished, Input, Job, Loaded, Next, Options, StrictResume, TaskEnd};
use crate::engine::step::{Task, TaskInput};
use crate::graph::context::{Context, ExecutionInfo, HandledError};
use crate::graph::node::{Checkpointing, Graph, NodeError, NodeInput};
use crate::model::{
    Breakpoints, CheckpointId, Durability, Fields, Interrupt, Json, StreamMode, TaskDetail, TaskOutcome, TimeoutPolicy,
    Timestamp, special,
};
use crate::storage::{CacheKey, Which};

/// Ends of jobs are committed together when they come within this time.
const TOGETHER: Duration = Duration::from_millis(2);
/// How long siblings of a failed task may still take to end by themselves.
const GRACE: Duration = Duration::from_millis(20);

/// A graph to run, at the root of a run or inside a task.
pub(crate) struct GraphRun {
    pub(crate) graph: Graph,
    /// As chain events tell it, if they are asked for; set at the start at the root.
    pub(crate) chain: Option<Arc<Chain>>,
    pub(crate) ns: String,
    pub(crate) parents: BTreeMap<String, CheckpointId>,
    pub(crate) input: Input,
    /// Whether the graph around is resuming; `None` at the root.
    pub(crate) resuming: Option<bool>,
    pub(crate) answers_by_id: Fields,
    /// The task it runs in.
    pub(crate) inside: Option<Arc<Task>>,
    pub(crate) step_around: i64,
    /// The namespace of the root graph's task that it runs in.
    pub(crate) outermost: String,
    /// Where signs of life go, if a task around waits for them.
    pub(crate) alive: Option<Arc<Alive>>,
    /// Checkpoints are kept: not for graphs that switched it off.
    pub(crate) has_storage: bool,
    /// What effects hang on when this graph or one around it has no checkpoints.
    pub(crate) anchor: Option<Anchor>,
}

/// How a graph ended.
#[derive(Debug)]
pub(crate) enum GraphEnd {
    Done(Fields),
    /// Questions; none at a breakpoint.
    Interrupted(Vec<Interrupt>),
    Failed(EngineError),
    /// A Command for the graph around.
    Parent(Box<Command>),
    /// Asked to stop after a superstep; the reason.
    Drained(String),
    /// The process is going down: another worker continues.
    HandedOver,
    /// Cancelled, timed out, or the lease is gone: whoever stopped it knows why.
    Stopped,
}

/// What tasks know of the graph they belong to.
pub(crate) struct Around {
    pub(crate) ns: String,
    pub(crate) checkpoint_id: CheckpointId,
    pub(crate) parents: BTreeMap<String, CheckpointId>,
    pub(crate) step: i64,
    pub(crate) resuming: bool,
    pub(crate) answers_by_id: Fields,
    /// The checkpoint its tasks were planned from first: another one if the graph was migrated since.
    pub(crate) planned_at: CheckpointId,
    /// That checkpoint was there before this attempt: its tasks may have run before.
    pub(crate) may_have_run: bool,
    /// See [`GraphRun::anchor`].
    pub(crate) anchor: Option<Anchor>,
    /// The root graph's task around it; empty in the root graph itself.
    pub(crate) outermost: String,
    /// See [`GraphRun::alive`].
    pub(crate) alive: Option<Arc<Alive>>,
    /// The graph as chain events tell it, if they are asked for.
    pub(crate) chain: Option<Arc<Chain>>,
    /// The span of the superstep.
    span: tracing::Span,
}

impl Around {
    /// The root graph's task that a task of this graph runs in, or is.
    pub(crate) fn outermost_of<'a>(&'a self, task: &'a Task) -> &'a str {
        if self.outermost.is_empty() { &task.ns } else { &self.outermost }
    }
}

/// Where the root graph starts, and its breakpoints: what only a run has.
pub(crate) struct Root {
    pub(crate) loaded: Option<Loaded>,
    pub(crate) addressed: bool,
    pub(crate) interrupt_before: Option<Breakpoints>,
    pub(crate) interrupt_after: Option<Breakpoints>,
    /// What the run was given, as chain events show it, if they are asked for.
    pub(crate) given: Option<Json>,
}

/// What became of the root graph.
pub(crate) struct RootEnd {
    pub(crate) end: GraphEnd,
    /// The last `values` payload.
    pub(crate) values: Json,
}

/// Runs the root graph of a run.
pub(crate) async fn run_root(shared: &Arc<Shared>, mut run: GraphRun, root: Root) -> RootEnd {
    let chain = root.given.as_ref().and_then(|_| Chain::root(shared)).map(Arc::new);
    run.chain = chain.clone();
    if let (Some(chain), Some(given)) = (&chain, &root.given) {
        chain_events::tell(shared, chain.started(given));
    }
    let options = options(shared, &run, root.addressed, root.interrupt_before, root.interrupt_after);
    if let Some(loaded) = root.loaded.as_ref().filter(|_| !matches!(run.input, Input::Value(_)))
        && let Err(error) = versions::check_inner(shared, &run.graph, loaded).await
    {
        return RootEnd { end: GraphEnd::Failed(error), values: Json::object() };
    }
    let site = match Site::start(shared, run, root.loaded, options) {
        Ok(site) => site,
        Err(error) => return RootEnd { end: GraphEnd::Failed(error), values: Json::object() },
    };
    *lock(&shared.plain_answer) = lock(&site.core).execution.null_resume();
    let end = site.drive().await;
    let is_kept = matches!(end, GraphEnd::Stopped) && site.keep_said();
    let values = site.last_values(&end);
    if shared.durability == Durability::Exit && (is_kept || !matches!(end, GraphEnd::Stopped)) {
        shared.store_held("");
    }
    if let (Some(chain), GraphEnd::Done(_) | GraphEnd::Interrupted(_)) = (&chain, &end) {
        let mut output = values.fields().unwrap_or_default();
        output.shift_remove(special::INTERRUPT);
        chain_events::tell(shared, chain.ended(&Json::from(&output), None));
    }
    shared.put_report();
    shared.push(false);
    RootEnd { end, values }
}

/// Runs a graph inside a task.
pub(crate) fn run_graph(shared: Arc<Shared>, run: GraphRun) -> BoxFuture<'static, GraphEnd> {
    async move {
        let (way, loaded) = match load_inner(&shared, &run).await {
            Ok(loaded) => loaded,
            Err(error) => return GraphEnd::Failed(error),
        };
        let run = GraphRun { resuming: run.resuming.map(|resuming| resuming && way != Way::Replay), ..run };
        let options = options(&shared, &run, way == Way::Named, None, None);
        let ns = run.ns.clone();
        let is_own = run.graph.checkpointing() == Checkpointing::Own;
        let site = match Site::start(&shared, run, loaded, options) {
            Ok(site) => site,
            Err(error) => return GraphEnd::Failed(error),
        };
        let end = site.drive().await;
        if shared.durability == Durability::Exit {
            // Inner checkpoints are kept only where they are needed to go on (section 4).
            if is_own || !matches!(end, GraphEnd::Done(_) | GraphEnd::Parent(_) | GraphEnd::Stopped) {
                shared.store_held(&ns);
            } else {
                shared.drop_held(&ns);
            }
        }
        end
    }
    .boxed()
}

/// How a graph inside comes to the checkpoint it starts from.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// As the graph around goes on.
    Plain,
    /// The run is a replay: the graph gets its input again, on the state it had.
    Replay,
    /// The run names this checkpoint.
    Named,
}

async fn load_inner(shared: &Shared, run: &GraphRun) -> Result<(Way, Option<Loaded>), EngineError> {
    let Some((way, which)) = way_in(shared, run) else { return Ok((Way::Plain, None)) };
    let reader = Reader { storage: shared.runtime.storage(), scope: &shared.scope, thread: shared.thread };
    if shared.has_written(&run.ns) {
        // What an earlier call of the same graph left may not be committed yet.
        shared.push(true);
        shared.turns.hold(shared.committer.flush()).await;
    }
    let load = async {
        let mut found = reader.load(&run.ns, &which).await?;
        if let (None, Which::During(at)) = (&found, &which) {
            found = reader.load(&run.ns, &Which::Before(at.clone())).await?;
        }
        let Some((mut loaded, mut stored)) = found else { return Ok(None) };
        if way == Way::Named {
            let latest = reader.load(&run.ns, &Which::Latest).await?;
            loaded.is_head = latest.is_none_or(|(latest, _)| latest.checkpoint.id == loaded.checkpoint.id);
        }
        reader.freeze(&run.ns, &mut stored).await?;
        // A copied thread's checkpoints name the thread they were copied from.
        if let Some(id) = loaded.metadata.extra.get_mut("thread_id") {
            *id = Json::from(shared.thread_id.as_str());
        }
        Ok(Some((loaded, stored)))
    };
    let found = shared.turns.hold(load).await.map_err(|error| storage_error(&error))?;
    let Some((loaded, stored)) = found else { return Ok((way, None)) };
    shared.loaded(&run.ns, Some(loaded.checkpoint.id.clone()), stored);
    Ok((way, Some(loaded)))
}

/// Where a graph inside looks for its state; `None`: it has none yet.
fn way_in(shared: &Shared, run: &GraphRun) -> Option<(Way, Which)> {
    if !run.has_storage {
        return None;
    }
    let is_own = run.graph.checkpointing() == Checkpointing::Own;
    let is_first = |visited: &Mutex<HashSet<String>>| lock(visited).insert(run.ns.clone());
    if let Some(replay) = &shared.replay {
        match (replay.named.get(&run.ns), &replay.before) {
            (None, None) => {}
            _ if !is_first(&replay.visited) => return Some((Way::Replay, Which::Latest)),
            (Some(id), _) => return Some((Way::Named, Which::Id(id.clone()))),
            (None, Some(before)) => return Some((Way::Replay, Which::Before(before.clone()))),
        }
    }
    let which = match &shared.moved {
        Some(moved) if is_own && is_first(&moved.visited) => Which::During(moved.at.clone()),
        // A namespace of its own per call is new unless an earlier execution of the same task left something.
        _ if !is_own && run.resuming != Some(true) && shared.attempt <= 1 => return None,
        _ => Which::Latest,
    };
    Some((Way::Plain, which))
}

pub(crate) fn storage_error(error: &crate::storage::StorageError) -> EngineError {
    tracing::error!(%error, "storage failed under a run");
    EngineError::new("StorageError", error.to_string())
}

fn options(
    shared: &Shared,
    run: &GraphRun,
    addressed: bool,
    interrupt_before: Option<Breakpoints>,
    interrupt_after: Option<Breakpoints>,
) -> Options {
    let mut extra = shared.extra.clone();
    if let Some(task) = &run.inside {
        let triggers: Json = task.triggers.iter().map(|trigger| Json::from(trigger.as_str())).collect();
        extra.insert("checkpoint_ns".into(), Json::from(run.outermost.as_str()));
        extra.insert("checkpoint_map".into(), Json::of(&run.parents).unwrap_or_default());
        extra.insert("langgraph_step".into(), Json::from(run.step_around));
        extra.insert("langgraph_node".into(), Json::from(&*task.name));
        extra.insert("langgraph_triggers".into(), triggers);
        extra.insert("langgraph_path".into(), Json::from(task.path.to_json()));
        extra.insert("langgraph_checkpoint_ns".into(), Json::from(&*task.ns));
    }
    Options {
        thread_id: shared.thread_id.as_str().to_owned(),
        ns: run.ns.clone(),
        parents: run.parents.clone(),
        extra,
        task_metadata: shared.task_metadata.clone(),
        recursion_limit: shared.recursion_limit,
        interrupt_before,
        interrupt_after,
        strict_resume: if run.inside.is_none() { shared.strict_resume } else { StrictResume::Off },
        router_context: Arc::clone(&shared.router_context),
        resuming: run.resuming,
        addressed,
        answers_by_id: run.answers_by_id.clone(),
        exact_answers: shared.attempt > 1,
        exit: shared.durability == Durability::Exit,
        has_storage: run.has_storage,
        wanted: shared.wanted(&run.ns),
    }
}

/// One graph in execution: what its driver and its jobs share.
struct Site {
    shared: Arc<Shared>,
    run: GraphRun,
    core: Mutex<Core>,
    /// The checkpoint it was loaded from.
    loaded: Option<CheckpointId>,
    /// A job has ended.
    ended: Notify,
}

/// What changes while a graph executes.
struct Core {
    execution: Execution,
    hold_chunks: bool,
    held: Vec<Effect>,
    /// The superstep's jobs that have not ended, with their places in its plan.
    open: HashMap<Arc<str>, (usize, Job)>,
    outcome: Outcome,
    usage: Ledger,
    trail: Trail,
}

impl Site {
    fn start(
        shared: &Arc<Shared>,
        mut run: GraphRun,
        loaded: Option<Loaded>,
        options: Options,
    ) -> Result<Arc<Site>, EngineError> {
        let input = std::mem::replace(&mut run.input, Input::Null);
        let usage = loaded.as_ref().map(|loaded| Ledger::of(&loaded.records)).unwrap_or_default();
        let at = loaded.as_ref().map(|loaded| loaded.checkpoint.id.clone());
        let mut effects = Vec::new();
        let mut new_id = |step| shared.new_checkpoint_id(step);
        let execution = Execution::start(run.graph.spec(), loaded, input, options, &mut new_id, &mut effects)?;
        shared.take(&run.ns, &mut effects);
        let core = Core {
            execution,
            hold_chunks: false,
            held: Vec::new(),
            open: HashMap::new(),
            outcome: Outcome::default(),
            usage,
            trail: Trail::default(),
        };
        let (shared, core) = (Arc::clone(shared), Mutex::new(core));
        Ok(Arc::new(Site { shared, run, core, loaded: at, ended: Notify::new() }))
    }

    fn is_root(&self) -> bool {
        self.run.inside.is_none()
    }

    /// Keeps what tasks had said when somebody stopped the run: a state of its own. False: there is nothing to keep.
    fn keep_said(&self) -> bool {
        let Some(marks) = said::marks(&self.shared) else { return false };
        let mut effects = Vec::new();
        let mut new_id = |step| self.shared.new_checkpoint_id(step);
        let mut core = lock(&self.core);
        let said = self.shared.said.take(self.run.graph.spec());
        match core.execution.keep_said(&said, &mut new_id, &mut effects) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                let run = self.shared.run_id;
                tracing::warn!(run.id = %run, error = %error.message, "what a stopped run had said is not kept");
                return false;
            }
        }
        core.open.clear();
        for effect in &mut effects {
            if let Effect::Checkpoint(draft) = effect {
                Arc::make_mut(&mut draft.extra).extend(marks.clone());
            }
        }
        self.shared.take(&self.run.ns, &mut effects);
        let (values, is_pending) = core.execution.view();
        *lock(&self.shared.view) = View { values: Some(values), is_pending, ..View::default() };
        true
    }

    /// The last `values` payload of a run that ended here.
    fn last_values(&self, end: &GraphEnd) -> Json {
        let mut core = lock(&self.core);
        if let GraphEnd::Interrupted(list) = end {
            // Questions are answered for the state they were asked in; a breakpoint shows what is there now.
            let asked = core.execution.output();
            let mut effects = Vec::new();
            core.execution.suspend(&mut effects);
            self.shared.take(&self.run.ns, &mut effects);
            if !list.is_empty() {
                return chunk::values_with_interrupts(&asked, list);
            }
        }
        Json::from(&core.execution.result())
    }

    async fn drive(self: &Arc<Site>) -> GraphEnd {
        loop {
            if self.shared.stop.is_cancelled() {
                return GraphEnd::Stopped;
            }
            let next = {
                let mut effects = Vec::new();
                let mut core = lock(&self.core);
                let next = core.execution.tick(&mut effects);
                self.shared.take(&self.run.ns, &mut effects);
                self.note_view(&core.execution);
                match next {
                    // The result is what was told last: a value that went without another coming is still in it.
                    Next::Done => return GraphEnd::Done(core.execution.result()),
                    Next::OutOfSteps => return GraphEnd::Failed(core.execution.out_of_steps_error()),
                    next => next,
                }
            };
            let Next::Run(jobs) = next else { return GraphEnd::Interrupted(Vec::new()) };
            if self.shared.hand_over.is_cancelled() {
                return GraphEnd::HandedOver;
            }
            let drain = lock(&self.shared.drain).clone();
            if let Some(reason) = drain {
                return GraphEnd::Drained(reason);
            }
            // The start node runs no code: its superstep is stored with the one before it.
            if !jobs.iter().all(|job| job.task.is_hidden()) {
                // Not urgent: quick supersteps share a commit, and what a slow node waits on is durable soon.
                self.shared.push(false);
                let committer = &self.shared.committer;
                let durable = async {
                    match self.shared.durability {
                        Durability::Sync => drop(self.shared.turns.hold(committer.flush()).await),
                        Durability::Async => self.shared.turns.hold(committer.keep_up()).await,
                        Durability::Exit => {}
                    }
                };
                tokio::select! {
                    biased;
                    // A database that does not answer must not hold up the stop.
                    () = self.shared.stop.cancelled() => return GraphEnd::Stopped,
                    () = durable => {}
                }
            }
            if let Err(end) = self.superstep(jobs).await {
                // What jobs have reported that were stopped.
                let left = {
                    let mut core = lock(&self.core);
                    self.log_stopped(&mut core);
                    core.usage.abandon()
                };
                self.shared.spend(&self.run.ns, &left);
                self.shared.push(true);
                return end;
            }
            match self.after_superstep() {
                Ok(false) => {}
                Ok(true) => return GraphEnd::Interrupted(Vec::new()),
                Err(error) => {
                    self.shared.push(true);
                    return GraphEnd::Failed(error);
                }
            }
        }
    }

    /// Logs the jobs that were stopped.
    fn log_stopped(&self, core: &mut Core) {
        let Core { execution, open, trail, .. } = core;
        for (_, job) in open.values() {
            let cancelled = TaskOutcome::Cancelled;
            trail.log(&self.shared, &self.run.ns, execution, &job.task, cancelled, TaskDetail::default());
        }
    }

    /// Applies a superstep. True: a breakpoint stops the graph here.
    fn after_superstep(&self) -> Result<bool, EngineError> {
        let mut effects = Vec::new();
        let mut new_id = |step| self.shared.new_checkpoint_id(step);
        let mut core = lock(&self.core);
        let is_exit = self.shared.durability == Durability::Exit;
        if is_exit && self.shared.take_was_stored(&self.run.ns) {
            core.execution.note_stored();
            core.usage.note_stored();
        }
        let tasks = if core.usage.is_idle() { HashSet::new() } else { core.execution.task_ids() };
        let stopped = core.execution.after_tick(&mut new_id, &mut effects);
        core.usage.apply(&tasks, &mut effects, is_exit);
        if stopped.is_ok() && self.is_root() {
            // A plain answer is for a question of the checkpoint it was given at, or of a graph in one of its tasks.
            lock(&self.shared.plain_answer).take();
        }
        let mut held = std::mem::take(&mut core.held);
        if stopped.is_ok() {
            self.shared.take(&self.run.ns, &mut held);
        }
        self.shared.take(&self.run.ns, &mut effects);
        if matches!(stopped, Ok(true)) {
            self.note_view(&core.execution);
        }
        stopped
    }

    /// Keeps what the thread's document will show: the last state a superstep was planned from, of the root graph or,
    /// when inner graphs are streamed, of whichever came last.
    fn note_view(&self, execution: &Execution) {
        // Inner graphs are seen by their checkpoints: when these are streamed, and if they have any.
        let is_seen = self.run.ns.is_empty() || (self.shared.subgraphs && self.run.has_storage);
        if !is_seen {
            return;
        }
        let (values, is_pending) = execution.view();
        let (interrupts, has_answered) = execution.questions();
        let is_special = !self.run.ns.is_empty() || has_answered || execution.shows_more_than_stored();
        let ns = self.run.ns.clone();
        let view = View { before: None, ns, values: Some(values), is_pending, is_special, interrupts };
        *lock(&self.shared.view) = view;
    }

    fn around(&self) -> Arc<Around> {
        let core = lock(&self.core);
        Arc::new(Around {
            ns: self.run.ns.clone(),
            checkpoint_id: core.execution.checkpoint_id().to_owned(),
            parents: self.run.parents.clone(),
            step: core.execution.step(),
            resuming: core.execution.is_resuming(),
            answers_by_id: core.execution.answers_by_id().clone(),
            planned_at: core.execution.planned_at().to_owned(),
            may_have_run: core.execution.is_migrated()
                || self.loaded.as_deref() == Some(core.execution.checkpoint_id()),
            anchor: self.run.anchor.clone(),
            outermost: self.run.outermost.clone(),
            alive: self.run.alive.clone(),
            chain: self.run.chain.clone(),
            span: tracing::debug_span!(
                "superstep",
                step = core.execution.step(),
                checkpoint.id = core.execution.checkpoint_id(),
                checkpoint.ns = self.run.ns
            ),
        })
    }

    /// Runs all jobs of a superstep. The first failure cancels the siblings that still run; questions do not.
    async fn superstep(self: &Arc<Site>, jobs: Vec<Job>) -> Result<(), GraphEnd> {
        let around = self.around();
        let deadline = self.run.graph.inner.step_timeout.map(|limit| Instant::now() + limit);
        let mut cached = HashMap::new();
        let keys = self.cache_keys(&jobs);
        if !keys.is_empty() {
            cached = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return Err(GraphEnd::Stopped),
                cached = self.shared.turns.hold(self.find_cached(keys)) => cached,
            };
        }
        let mut work = {
            let mut core = lock(&self.core);
            core.hold_chunks = false;
            core.outcome = Outcome::default();
            core.trail.plan(&self.shared, &jobs);
            let mut work = Vec::with_capacity(jobs.len());
            for job in jobs {
                if job.task.is_hidden() {
                    let end = End::Task(TaskEnd::Output(Execution::start_output(&job.task)));
                    self.finish(&mut core, &job, end, &Exchange::default(), Listeners::default());
                } else if !cached.get(&job.task.id).is_some_and(|output| self.finish_cached(&mut core, &job, output)) {
                    self.open(&mut core, &job);
                    work.push(job);
                }
            }
            core.hold_chunks = work.len() == 1 && self.holds_chunks();
            work
        };
        if work.len() == 1 && !self.is_root() {
            // A lone task inside a job goes on in the job's own turns.
            let lone = work.pop().map(|job| self.carry_out(job, &around, true));
            if let Some(lone) = lone {
                let is_late = tokio::select! {
                    biased;
                    () = self.shared.stop.cancelled() => return Err(GraphEnd::Stopped),
                    () = lone => false,
                    () = at(deadline) => true,
                };
                if is_late {
                    self.time_out();
                }
            }
        } else if !work.is_empty() {
            self.run_siblings(work, &around, deadline).await?;
        }
        std::mem::take(&mut lock(&self.core).outcome).into_result()
    }

    /// Whether the outcome of a lone task is told once its superstep is applied: if that fails, only the failure is. Not
    /// where something may be told while the task runs, as LangGraph has it.
    fn holds_chunks(&self) -> bool {
        let modes = &self.shared.modes;
        let is_eager = self.shared.subgraphs
            || [StreamMode::Custom, StreamMode::Messages, StreamMode::MessagesTuple]
                .iter()
                .any(|mode| modes.contains(mode));
        self.is_root() && !is_eager && self.run.graph.inner.step_timeout.is_none()
    }

    async fn run_siblings(
        self: &Arc<Site>,
        work: Vec<Job>,
        around: &Arc<Around>,
        deadline: Option<Instant>,
    ) -> Result<(), GraphEnd> {
        let is_lone = work.len() == 1;
        let work = work.into_iter().map(|job| {
            let (site, around) = (Arc::clone(self), Arc::clone(around));
            async move { site.carry_out(job, &around, is_lone).await }.boxed()
        });
        let before = self.shared.turns.given();
        let siblings = Siblings::spawn(&self.shared.turns, work.collect());
        // Nodes of other runs hold every thread of this process, and none of these has begun: another process takes them.
        let is_stranded = async {
            self.shared.runtime.nodes_blocked().await;
            // Jobs inside a job have begun with it.
            if !self.is_root() || self.shared.turns.given() != before {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(is_stranded);
        let mut push: Option<Instant> = None;
        // Set by the first failure: siblings that are about to end anyway keep what they did.
        let mut give_up: Option<Instant> = None;
        loop {
            let has_failed = {
                let core = lock(&self.core);
                if core.open.is_empty() {
                    return Ok(());
                }
                core.outcome.failure.is_some()
            };
            if has_failed && give_up.is_none() {
                give_up = Some(Instant::now() + GRACE);
            }
            tokio::select! {
                biased;
                // Not waited for: a node that blocks its thread must not hold up the stop.
                () = self.shared.stop.cancelled() => return Err(GraphEnd::Stopped),
                () = &mut is_stranded => {
                    drop(siblings);
                    lock(&self.core).open.clear();
                    return Err(GraphEnd::HandedOver);
                }
                () = self.ended.notified() => {
                    push.get_or_insert_with(|| Instant::now() + TOGETHER);
                }
                () = at(give_up) => {
                    drop(siblings);
                    self.cancel_open();
                    return Ok(());
                }
                () = at(deadline) => {
                    drop(siblings);
                    self.time_out();
                    return Ok(());
                }
                () = at(push) => {
                    push = None;
                    // Paid work is not repeated because a sibling crashes later.
                    self.shared.push(false);
                }
            }
        }
    }

    /// Notes a job that is about to run.
    fn open(&self, core: &mut Core, job: &Job) {
        if messages::wanted(&self.shared, &self.run.ns) {
            messages::note_input(&self.shared, &job.task);
        }
        let place = core.open.len();
        core.open.insert(Arc::clone(&job.task.id), (place, job.clone()));
    }

    /// Fails the superstep because it took too long. What has ended stays.
    fn time_out(&self) {
        let late = || EngineError::new("TimeoutError", "Timed out");
        lock(&self.core).outcome.failure.get_or_insert_with(late);
        self.cancel_open();
    }

    /// Records the jobs that are left as cancelled.
    fn cancel_open(&self) {
        let mut core = lock(&self.core);
        let mut open: Vec<(usize, Job)> = std::mem::take(&mut core.open).into_values().collect();
        open.sort_by_key(|(place, _)| *place);
        for (_, job) in open {
            let end = End::Task(TaskEnd::Cancelled);
            self.finish(&mut core, &job, end, &Exchange::default(), Listeners::default());
        }
    }

    /// Runs a job and, if it fails, the error handler it is owed; records how they end.
    async fn carry_out(self: &Arc<Site>, job: Job, around: &Arc<Around>, is_lone: bool) {
        let turns = &self.shared.turns;
        let (before, after) = if is_lone {
            (if self.is_root() { 0 } else { rounds::TO_LONE_BODY }, rounds::TO_LONE_RECORD)
        } else {
            (rounds::TO_BODY, rounds::TO_RECORD)
        };
        turns.pass(before).await;
        let mut next = Some(job);
        while let Some(job) = next.take() {
            let id = Arc::clone(&job.task.id);
            let routers = self.run.graph.spec().node(&job.task.name).map_or(0, |node| node.writers.branches.len());
            let (report, track) = {
                let mut core = lock(&self.core);
                (core.usage.open(&job.task.id), core.trail.track(&job.task.id))
            };
            let span = tracing::debug_span!(
                parent: &around.span,
                "task",
                node = &*job.task.name,
                task.id = &*job.task.id,
                outcome = tracing::field::Empty
            );
            let work = run_job(self, job, Arc::clone(around), report, track).instrument(span.clone());
            // A panic of a node is caught here: an error of that node, not of the run.
            let ended = std::panic::AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
                let error = EngineError::panicked(&*panic);
                JobEnd {
                    task_id: id,
                    end: End::Task(TaskEnd::Failed(error)),
                    exchange: Exchange::default(),
                    chain: None,
                    has_returned: false,
                }
            });
            span.record("outcome", ended.end.name());
            drop(span);
            let has_routed = matches!(&ended.end, End::Task(end) if end.output().is_some());
            turns.pass(after + if has_routed { routers * rounds::ROUTER } else { 0 }).await;
            next = self.record(ended, around);
        }
        self.ended.notify_one();
    }

    /// Records how a job ended; returns the error handler to run, if one is owed.
    fn record(&self, ended: JobEnd, around: &Around) -> Option<Job> {
        let mut core = lock(&self.core);
        // Absent: given up meanwhile.
        let (_, job) = core.open.remove(&ended.task_id)?;
        if self.is_root() {
            self.shared.said.forget(&job.task);
        }
        let says = ended.has_returned && messages::wanted(&self.shared, &self.run.ns);
        let listeners = Listeners { chain: ended.chain.as_deref(), messages: says.then_some(around) };
        let handler = self.finish(&mut core, &job, ended.end, &ended.exchange, listeners)?;
        // Told as it ends, like whatever runs beside others.
        core.hold_chunks = false;
        self.open(&mut core, &handler);
        Some(handler)
    }

    /// What a job's output is found by, if its node has a cache policy, with its time to live. An error handler's output
    /// stands for a failure, and those are not cached.
    fn cache_key(&self, job: &Job) -> Option<(CacheKey, Option<Duration>)> {
        let policy = self.run.graph.inner.policies.get(&*job.task.name)?.cache.as_ref()?;
        if job.handles.is_some() {
            return None;
        }
        let names: Vec<&str> =
            job.task.ns.split('|').map(|segment| segment.split(':').next().unwrap_or(segment)).collect();
        let shared = &self.shared;
        let root = shared.runtime.graph(&shared.graph_id).map_or("", |graph| graph.spec().version.as_str());
        let place = Place {
            scope: shared.scope,
            graph: &shared.graph_id,
            versions: [root, &self.run.graph.spec().version],
            path: &names.join("|"),
        };
        Some((place.key(&job.task.input, policy)?, policy.ttl))
    }

    /// The keys of the jobs whose output may be there already, by task. Empty for most graphs.
    fn cache_keys(&self, jobs: &[Job]) -> Vec<(Arc<str>, CacheKey)> {
        let fresh = jobs.iter().filter(|job| job.answers.is_empty());
        fresh.filter_map(|job| Some((Arc::clone(&job.task.id), self.cache_key(job)?.0))).collect()
    }

    /// The outputs that are there, by task.
    async fn find_cached(&self, keys: Vec<(Arc<str>, CacheKey)>) -> HashMap<Arc<str>, Output> {
        let wanted = keys.iter().map(|(_, key)| *key).collect();
        let found = self.shared.runtime.find_cached(&self.shared.scope, wanted, self.has_stored_cache()).await;
        keys.into_iter().filter_map(|(task, key)| Some((task, found.get(&key)?.clone()))).collect()
    }

    /// Whether outputs may leave the process: untracked values are never stored, here neither.
    fn has_stored_cache(&self) -> bool {
        !self.run.graph.spec().layout.has_untracked
    }

    fn finish_cached(&self, core: &mut Core, job: &Job, output: &Output) -> bool {
        let mut effects = Vec::new();
        let open = core.execution.questions_of(&job.task.id);
        let used = core.execution.finish_cached(job, output, &mut effects).is_ok();
        if used {
            core.trail.cached(&self.shared, &self.run.ns, &core.execution, job);
            questions::note(&self.shared, &self.run, &core.execution, job, &Exchange::default(), &open);
            self.shared.take(&self.run.ns, &mut effects);
            self.note_questions(job, &Finished::Done);
        }
        used
    }

    fn keep_in_cache(&self, key: CacheKey, ttl: Option<Duration>, output: Output) {
        let (scope, graph) = (self.shared.scope, &self.shared.graph_id);
        self.shared.runtime.keep_cached(scope, graph, key, output, ttl, self.has_stored_cache());
    }

    /// What the thread's document shows of a task's questions is what it asked last.
    fn note_questions(&self, job: &Job, finished: &Finished) {
        let mut view = lock(&self.shared.view);
        if view.ns != self.run.ns {
            return;
        }
        match finished {
            Finished::Interrupted(list) if !list.is_empty() => {
                view.interrupts.insert(job.task.id.to_string(), list.clone());
            }
            Finished::Interrupted(_) | Finished::Parent(_) => {}
            Finished::Done | Finished::Handle(_) | Finished::Failed(_) => {
                view.interrupts.remove(&*job.task.id);
            }
        }
    }

    /// Turns a job's end into effects and the superstep's outcome; returns the error handler to run, if one is owed.
    fn finish(
        &self,
        core: &mut Core,
        job: &Job,
        end: End,
        exchange: &Exchange,
        listeners: Listeners<'_>,
    ) -> Option<Job> {
        let Core { execution, hold_chunks, held, outcome, usage, trail, .. } = core;
        let output = match &end {
            End::Task(end) => end.output(),
            End::Parent(_) | End::Inner(_) => None,
        };
        let spent = usage.close(&self.shared, execution, &job.task.id, output);
        let end = match end {
            End::Task(end) => end,
            End::Parent(command) => {
                if self.run.ns.is_empty() {
                    TaskEnd::Failed(EngineError::new("ParentCommand", "there is no parent graph"))
                } else {
                    questions::note(&self.shared, &self.run, execution, job, exchange, &[]);
                    self.shared.spend(&self.run.ns, &spent);
                    let detail = TaskDetail { usage: spent, ..TaskDetail::default() };
                    trail.log(&self.shared, &self.run.ns, execution, &job.task, TaskOutcome::Success, detail);
                    outcome.parent.get_or_insert(command);
                    return None;
                }
            }
            End::Inner(end) => {
                self.shared.spend(&self.run.ns, &spent);
                let detail = TaskDetail { usage: spent, ..TaskDetail::default() };
                trail.log(&self.shared, &self.run.ns, execution, &job.task, TaskOutcome::Cancelled, detail);
                outcome.inner.get_or_insert(end);
                return None;
            }
        };
        let output = end.output();
        let kept = output.and_then(|output| self.cache_key(job).map(|(key, ttl)| (key, ttl, output.clone())));
        let mut effects: Vec<Effect> = Vec::new();
        let open = execution.questions_of(&job.task.id);
        let returned = listeners.chain.zip(output).map(|(chain, output)| (chain, chain_events::returned(output)));
        let said = listeners.messages.zip(output.cloned());
        let finished = execution.finish_task(job, end, &exchange.answers, &mut effects);
        questions::note(&self.shared, &self.run, execution, job, exchange, &open);
        // Not of an output that could not be written, or that was for the graph around.
        if let Some((around, output)) = said.filter(|_| matches!(finished, Finished::Done)) {
            messages::tell_output(&self.shared, around, execution.spec(), &job.task, &output);
        }
        if let Some((chain, output)) = &returned {
            let is_done = matches!(finished, Finished::Done);
            chain.end(&self.shared, &execution.take_routed(), is_done.then_some(output));
        }
        if let Some((key, ttl, output)) = kept.filter(|_| matches!(finished, Finished::Done)) {
            self.keep_in_cache(key, ttl, output);
        }
        if self.run.ns.is_empty() && self.shared.plain_spent.swap(false, Ordering::Relaxed) {
            execution.spend_plain_answer(&mut effects);
        }
        trail.finish(&self.shared, &self.run.ns, execution, job, &finished, &spent);
        usage.record(&self.shared, &self.run.ns, &job.task.id, &spent, &mut effects);
        if *hold_chunks && matches!(finished, Finished::Done) {
            let (chunks, rest) = effects.into_iter().partition(|effect| matches!(effect, Effect::Chunk(_)));
            *held = chunks;
            effects = rest;
        }
        self.shared.take(&self.run.ns, &mut effects);
        self.note_questions(job, &finished);
        match finished {
            Finished::Done => None,
            Finished::Handle(handler) => Some(*handler),
            Finished::Failed(error) => {
                outcome.failure.get_or_insert(error);
                None
            }
            Finished::Interrupted(list) => {
                outcome.interrupted = true;
                outcome.questions.extend(list);
                None
            }
            Finished::Parent(command) if self.run.ns.is_empty() => {
                let _ = command;
                let error = EngineError::new("ParentCommand", "there is no parent graph");
                self.finish(core, job, End::Task(TaskEnd::Failed(error)), exchange, Listeners::default())
            }
            Finished::Parent(command) => {
                outcome.parent.get_or_insert(command);
                None
            }
        }
    }
}

/// Waits until then; for ever if there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[derive(Default)]
struct Outcome {
    failure: Option<EngineError>,
    parent: Option<Box<Command>>,
    /// A graph inside ended in a way that ends this one too.
    inner: Option<GraphEnd>,
    interrupted: bool,
    questions: Vec<Interrupt>,
}

impl Outcome {
    fn into_result(self) -> Result<(), GraphEnd> {
        if let Some(error) = self.failure {
            return Err(GraphEnd::Failed(error));
        }
        if let Some(command) = self.parent {
            return Err(GraphEnd::Parent(command));
        }
        if let Some(end) = self.inner {
            return Err(end);
        }
        if self.interrupted { Err(GraphEnd::Interrupted(self.questions)) } else { Ok(()) }
    }
}

/// How a job ended, with its questions and the answers they took.
struct JobEnd {
    task_id: Arc<str>,
    end: End,
    exchange: Exchange,
    /// As chain events tell it, if they are asked for.
    chain: Option<Arc<NodeChain>>,
    /// Its output, if it has one, is what its node returned.
    has_returned: bool,
}

/// Who is told how a job ended, besides those who follow the graph.
#[derive(Default)]
struct Listeners<'a> {
    chain: Option<&'a NodeChain>,
    /// Set if the messages in its output are told.
    messages: Option<&'a Around>,
}

enum End {
    Task(TaskEnd),
    Parent(Box<Command>),
    Inner(GraphEnd),
}

impl End {
    /// For spans: a word, or the class of the failure.
    fn name(&self) -> &str {
        match self {
            End::Task(TaskEnd::Output(_) | TaskEnd::Written(_)) | End::Parent(_) => "success",
            End::Task(TaskEnd::Failed(error)) => &error.class,
            End::Task(TaskEnd::Interrupted(_)) => "interrupted",
            End::Task(TaskEnd::Cancelled) => "cancelled",
            End::Inner(_) => "stopped",
        }
    }
}

/// Runs a job: its node's body or the graph that is the node, with the node's policies. What is retried is the whole of
/// it: also an output that cannot be written, because of what it is or because a router failed.
async fn run_job(
    site: &Site,
    job: Job,
    around: Arc<Around>,
    report: Arc<Mutex<Report>>,
    track: Option<Arc<Track>>,
) -> JobEnd {
    let (shared, graph) = (&site.shared, &site.run.graph);
    let task_id = job.task.id.clone();
    let name = &*job.task.name;
    let policies = graph.inner.policies.get(name).cloned().unwrap_or_default();
    let limits = job.task.timeout.unwrap_or(policies.timeout);
    let host = TaskHost::new(Arc::clone(shared), Arc::clone(&around), &job, &limits, Arc::clone(&report));
    let host = Arc::new(host);
    let first_at = shared.runtime.clock().now();
    let retry_after = |error: &EngineError, attempt: u32| {
        retry::after(&policies.retry, error, attempt, || shared.runtime.clock().random_fraction())
    };
    let mut attempt = 1;
    let mut has_returned = true;
    let end = loop {
        host.begin_attempt(attempt);
        if let Some(track) = &track {
            track.begin(shared, attempt);
        }
        let which = Attempt { number: attempt, first_at };
        let result = one_attempt(shared, graph, &job, &around, &host, &limits, which).await;
        host.stir();
        if let Some(track) = &track {
            track.end(shared);
        }
        let (error, wait) = match result {
            Ok(output) if policies.retry.is_empty() => break End::Task(TaskEnd::Output(output)),
            Ok(output) => {
                let written = Box::new(lock(&site.core).execution.write(&job, output));
                let again = written.failure().and_then(|error| {
                    let wait = retry_after(error, attempt)?;
                    Some((error.clone(), wait))
                });
                let Some(again) = again else { break End::Task(TaskEnd::Written(written)) };
                let chain = lock(&host.chain).clone();
                if let Some(chain) = chain {
                    chain.end(shared, written.routed(), None);
                }
                // What is not used was paid for all the same.
                let core = lock(&site.core);
                lock(&report).add_messages(shared, &core.execution, written.output());
                again
            }
            Err(NodeError::Parent(command)) if !command.parent => {
                // A Command from a graph inside: the node's own output here (section 1.6). The graph did not end by
                // itself, and neither did the node.
                *lock(&host.chain) = None;
                has_returned = false;
                break End::Task(TaskEnd::Output(Output::Command(*command)));
            }
            Err(NodeError::Parent(command)) => break End::Parent(command),
            Err(NodeError::Interrupted) => {
                let pending = std::mem::take(&mut lock(&host.answers).pending);
                break End::Task(TaskEnd::Interrupted(pending));
            }
            Err(NodeError::Cancelled) => {
                break End::Inner(lock(&host.answers).inner.take().unwrap_or(GraphEnd::Stopped));
            }
            Err(NodeError::Failed(error)) => match retry_after(&error, attempt) {
                Some(wait) => (error, wait),
                None => break End::Task(TaskEnd::Failed(error)),
            },
        };
        if let Some(track) = &track {
            track.log_retry(shared, &around, &job.task, &error);
        }
        shared.runtime.clock().sleep(wait).await;
        attempt += 1;
    };
    let chain = lock(&host.chain).take();
    JobEnd { task_id, end, exchange: host.exchange(), chain, has_returned }
}

/// One execution among those of a task in this run.
#[derive(Clone, Copy)]
struct Attempt {
    /// 1, 2, ..
    number: u32,
    /// When the first one began.
    first_at: Timestamp,
}

async fn one_attempt(
    shared: &Arc<Shared>,
    graph: &Graph,
    job: &Job,
    around: &Arc<Around>,
    host: &Arc<TaskHost>,
    limits: &TimeoutPolicy,
    attempt: Attempt,
) -> Result<Output, NodeError> {
    let name = &*job.task.name;
    let stop = shared.stop.child_token();
    let work = async {
        if let Some(inner) = graph.inner.subgraphs.get(name) {
            let output = host.run_inner(inner, job.task.input.to_json()).await?;
            return Ok(output.fields().map_or(Output::Other(output), Output::Update));
        }
        let body = graph.inner.bodies.get(name).ok_or_else(|| {
            NodeError::new("GraphVersionError", format!("node '{name}' is not in this build of '{}'", graph.name()))
        })?;
        let context = context(shared, job, around, host, attempt, stop.clone());
        let input = match &job.task.input {
            TaskInput::State(fields) => NodeInput::State(Arc::clone(fields)),
            TaskInput::Arg(arg) => NodeInput::Arg(arg.clone()),
        };
        body.run(input, context).await
    };
    limited(work, host, limits, name, shared).await
}

/// Applies a task's run and idle timeouts.
async fn limited(
    work: impl Future<Output = Result<Output, NodeError>>,
    host: &TaskHost,
    limits: &TimeoutPolicy,
    name: &str,
    shared: &Shared,
) -> Result<Output, NodeError> {
    if limits.is_empty() {
        return work.await;
    }
    let began = shared.runtime.clock().instant();
    let far = Duration::from_secs(60 * 60 * 24 * 365);
    let deadline = tokio::time::sleep(limits.run_timeout.unwrap_or(far));
    let idle = limits.idle_timeout.unwrap_or(far);
    // Without an idle timeout the signs of this task are for those around it.
    let alive = host.alive.as_ref().filter(|_| limits.idle_timeout.is_some());
    tokio::pin!(work, deadline);
    let late = |kind: &str, limit: Duration| {
        let elapsed = began.elapsed().as_secs_f64();
        let limit = limit.as_secs_f64();
        Err(NodeError::new(
            "NodeTimeoutError",
            format!("Node '{name}' exceeded its {kind} timeout of {limit:.3}s (elapsed: {elapsed:.3}s)."),
        ))
    };
    loop {
        let seen = async {
            match alive {
                Some(alive) => alive.seen().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = &mut work => return result,
            () = &mut deadline => return late("run", limits.run_timeout.unwrap_or(far)),
            () = seen => {}
            () = tokio::time::sleep(idle) => return late("idle", idle),
        }
    }
}

fn context(
    shared: &Shared,
    job: &Job,
    around: &Around,
    host: &Arc<TaskHost>,
    attempt: Attempt,
    stop: CancellationToken,
) -> Context {
    let info = ExecutionInfo {
        thread_id: shared.thread_id.as_str().to_owned(),
        run_id: shared.run_id,
        graph_id: shared.graph_id.clone(),
        node: job.task.name.to_string(),
        task_id: job.task.id.to_string(),
        checkpoint_ns: job.task.ns.to_string(),
        checkpoint_id: around.checkpoint_id.clone(),
        step: around.step,
        attempt: attempt.number,
        first_attempt_at: attempt.first_at,
        config: shared.config.clone(),
        context: shared.context.clone(),
    };
    let context = Context::new(info, Arc::clone(host) as Arc<dyn crate::graph::context::Host>, stop);
    match &job.handles {
        Some((node, error)) => context.with_error(HandledError { node: node.clone(), error: error.clone() }),
        None => context,
    }
}
