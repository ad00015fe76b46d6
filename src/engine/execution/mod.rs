//! The loop of one graph as a state machine. Whoever drives it runs the jobs it asks for and stores the effects it
//! returns, in order; it decides everything else (section 1.2).
//!
//! ```text
//! start -> tick -> Run(jobs) -> finish_task for each -> after_tick -> tick -> .. -> Done
//! ```

mod delta;
mod edit;
mod start;
mod stop;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::channel::{Channel, ChannelKind};
use super::chunk::{self, Chunk, Wanted};
use super::command::{Output, Packet};
use super::migrate::Migrated;
use super::record::TaskRecord;
use super::spec::{GraphSpec, RouterContext};
use super::step::{
    At, Channels, Progress, Routed, Task, TaskInput, TaskWrite, TaskWrites, Updated, WriteError, apply_writes,
    is_control, next_names, prepare_next_tasks, read_channels, should_interrupt, writes_of,
};
use super::{Command, EngineError, ids, migrate, py};
use crate::model::checkpoint::{Checkpoint, Versions};
use crate::model::{
    Breakpoints, CheckpointId, CheckpointMetadata, CheckpointSource, Fields, Interrupt, Json, Origin, TaskPath,
    Timestamp, WrittenBy, special,
};

use delta::Deltas;
pub use delta::{AtExit, COUNTERS};
pub use edit::Edit;
pub use start::{Input, metadata_json};

/// A checkpoint to start from, with what is recorded on it.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub checkpoint: Checkpoint,
    pub metadata: CheckpointMetadata,
    pub parent: Option<CheckpointId>,
    pub records: Vec<TaskRecord>,
    /// No later checkpoint exists in its namespace.
    pub is_head: bool,
    /// The nodes that were to run next when it was written.
    pub next: Vec<String>,
}

/// Which answers are refused, before anything is written, because no pending question waits for them (section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StrictResume {
    #[default]
    Off,
    /// LangGraph's flag: ids that are not pending, an empty map, and one plain answer for several questions; not where
    /// other checkpoints have followed the one that is resumed.
    Ids,
    /// Also a plain answer while nothing is pending, and wherever the run resumes.
    All,
}

/// How an execution is set up.
#[derive(Debug, Clone)]
pub struct Options {
    pub thread_id: String,
    /// `""` for the root graph.
    pub ns: String,
    /// The checkpoint of every graph around this one.
    pub parents: BTreeMap<String, CheckpointId>,
    /// Further keys of stored metadata: `run_id`, `graph_id`, the user's.
    pub extra: Fields,
    /// The `metadata` of task events.
    pub task_metadata: Json,
    pub recursion_limit: i64,
    pub interrupt_before: Option<Breakpoints>,
    pub interrupt_after: Option<Breakpoints>,
    pub strict_resume: StrictResume,
    /// What routers can know besides the state.
    pub router_context: Arc<RouterContext>,
    /// Whether the graph around this one is resuming; `None` at the root.
    pub resuming: Option<bool>,
    /// The caller named the checkpoint: time travel.
    pub addressed: bool,
    /// Answers by interrupt id, from the graph around this one.
    pub answers_by_id: Fields,
    /// The answers were given in an earlier attempt: those already taken must not answer a later question.
    pub exact_answers: bool,
    /// Only the last checkpoint is stored (durability `exit`).
    pub exit: bool,
    /// Checkpoints are kept at all.
    pub has_storage: bool,
    pub wanted: Wanted,
}

/// A new checkpoint: what the execution holds at this moment, shared with it.
#[derive(Debug, Clone)]
pub struct Draft {
    pub ns: String,
    pub id: CheckpointId,
    pub at: Timestamp,
    pub parent: Option<CheckpointId>,
    pub source: CheckpointSource,
    pub step: i64,
    /// For a subgraph: the checkpoint id of every ancestor namespace.
    pub parents: Arc<BTreeMap<String, CheckpointId>>,
    /// See [`Options::extra`].
    pub extra: Arc<Fields>,
    /// The counters of delta channels, if there are any to show: one more key of the metadata.
    pub counters: Option<Json>,
    pub spec: Arc<GraphSpec>,
    /// The channels; those that are lists know how much of them is stored with the checkpoint before.
    pub channels: Arc<Channels>,
    pub progress: Arc<Progress>,
    /// The channels the superstep updated; `None` (update, fork) means "plan every node".
    pub updated: Option<Arc<Updated>>,
    /// The nodes that run next, as record views show them.
    pub next: Vec<String>,
    /// Set by a migration: where its pending tasks were planned first.
    pub origin: Option<Origin>,
    /// What is different if durability `exit` stores this one.
    pub at_exit: Option<AtExit>,
}

impl Draft {
    /// What is known about it besides its state.
    pub fn metadata(&self) -> CheckpointMetadata {
        let mut extra = Fields::clone(&self.extra);
        if let Some(counters) = &self.counters {
            extra.insert(COUNTERS.to_owned(), counters.clone());
        }
        CheckpointMetadata { source: self.source, step: self.step, parents: BTreeMap::clone(&self.parents), extra }
    }

    /// The graph that writes it.
    pub fn written_by(&self) -> WrittenBy {
        WrittenBy { version: self.spec.version.clone(), topology: self.spec.topology.clone() }
    }

    /// The channels that have a version, with it: those whose content the checkpoint keeps.
    pub fn written(&self) -> impl Iterator<Item = (&Channel, u64)> {
        let versions = (0..).map(|position| self.progress.version(position));
        self.channels.iter().zip(versions).filter(|(_, version)| *version > 0)
    }

    /// As it will be loaded.
    pub fn checkpoint(&self) -> Checkpoint {
        let mut versions_seen: BTreeMap<String, Versions> = BTreeMap::new();
        for (node, channel, version) in self.progress.seen(&self.spec) {
            versions_seen.entry(node.to_owned()).or_default().insert(channel.to_owned(), version);
        }
        let values = self.written().filter_map(|(channel, _)| Some((channel.name().to_owned(), channel.persisted()?)));
        let updated = self.updated.as_ref();
        Checkpoint {
            id: self.id.clone(),
            at: self.at,
            values: values.collect(),
            versions: self.progress.versions(&self.spec).map(|(name, version)| (name.to_owned(), version)).collect(),
            versions_seen,
            updated: updated.map(|updated| updated.names(&self.spec).into_iter().map(str::to_owned).collect()),
            written_by: Some(self.written_by()),
            origin: self.origin.clone(),
        }
    }
}

/// Something to store or to tell, in order.
#[derive(Debug, Clone)]
pub enum Effect {
    Chunk(Chunk),
    Checkpoint(Box<Draft>),
    /// The writes of a task on a checkpoint of this graph: all of them, replacing what was stored for the task.
    Writes {
        checkpoint_id: CheckpointId,
        record: Arc<TaskRecord>,
    },
}

/// A task to run.
#[derive(Debug, Clone)]
pub struct Job {
    pub task: Arc<Task>,
    /// Answers to the task's questions so far, in order.
    pub answers: Vec<Json>,
    /// How many of them an earlier execution of the task took; the rest is new.
    pub recorded: usize,
    /// Set for an error handler: the failed node and its failure.
    pub handles: Option<(String, EngineError)>,
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    Run(Vec<Job>),
    Done,
    /// A static breakpoint.
    Interrupted,
    OutOfSteps,
}

/// An output, and what it makes its task write: its node's routers have been asked.
#[derive(Debug)]
pub struct Written {
    output: Output,
    writes: Result<Vec<TaskWrite>, WriteError>,
    routed: Vec<Routed>,
}

impl Written {
    /// Why it cannot be written: the node returned what no node may return, or a router failed.
    pub fn failure(&self) -> Option<&EngineError> {
        match &self.writes {
            Err(WriteError::Failed(error) | WriteError::Router { error, .. }) => Some(error),
            Ok(_) | Err(WriteError::Parent(_)) => None,
        }
    }

    /// What the node returned.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// What its routers were asked and answered, if that is told: [`Wanted::routers`].
    pub fn routed(&self) -> &[Routed] {
        &self.routed
    }
}

/// How a job ended.
#[derive(Debug)]
pub enum TaskEnd {
    Output(Output),
    /// An output whose routers have been asked already.
    Written(Box<Written>),
    /// Unanswered questions of the task (or of a graph inside it).
    Interrupted(Vec<Interrupt>),
    Failed(EngineError),
    /// Stopped because a sibling failed.
    Cancelled,
}

impl TaskEnd {
    /// The output, if it ended with one.
    pub fn output(&self) -> Option<&Output> {
        match self {
            TaskEnd::Output(output) => Some(output),
            TaskEnd::Written(written) => Some(&written.output),
            TaskEnd::Interrupted(_) | TaskEnd::Failed(_) | TaskEnd::Cancelled => None,
        }
    }
}

/// What follows from a job's end.
#[derive(Debug)]
pub enum Finished {
    /// Its writes are recorded.
    Done,
    /// It failed and its node has an error handler: run this job in the same superstep.
    Handle(Box<Job>),
    /// It failed, finally.
    Failed(EngineError),
    /// It asked.
    Interrupted(Vec<Interrupt>),
    /// It returned a Command for the graph around this one.
    Parent(Box<Command>),
}

/// Gives new checkpoint ids: `(step) -> (id, time)`, later than every id of the thread.
pub type NewId<'a> = &'a mut dyn FnMut(i64) -> (CheckpointId, Timestamp);

/// What checkpoint events show as metadata.
#[derive(Debug)]
enum Shown {
    /// Of the checkpoint that was loaded.
    Loaded(CheckpointMetadata),
    /// Of one this execution made.
    Made {
        source: CheckpointSource,
        step: i64,
        counters: Option<Json>,
    },
    Nothing,
}

/// Values at one moment, shared with the execution.
#[derive(Debug, Clone)]
pub struct Snapshot {
    spec: Arc<GraphSpec>,
    channels: Arc<Channels>,
}

impl Snapshot {
    /// What state reads show.
    pub fn values(&self) -> Fields {
        read_channels(&self.channels, &self.spec.layout.stream)
    }
}

/// One graph in execution.
#[derive(Debug)]
pub struct Execution {
    spec: Arc<GraphSpec>,
    options: Options,
    /// What the options say of these, in the form that drafts share.
    parents: Arc<BTreeMap<String, CheckpointId>>,
    extra: Arc<Fields>,
    channels: Arc<Channels>,
    /// The channels are in a stored checkpoint as they are: lists must know before they change.
    is_stored: bool,
    progress: Arc<Progress>,
    /// Channels updated by the last superstep; `None`: unknown, plan every node.
    updated: Option<Arc<Updated>>,
    checkpoint_id: CheckpointId,
    parent: Option<CheckpointId>,
    /// Where the tasks of a migrated checkpoint were planned first.
    origin: Option<Origin>,
    /// The loaded state was brought to this build's version, and is to be stored so.
    migrated: Option<Migrated>,
    /// The channels when values were last told: what `wait` answers with.
    last_values: Option<Arc<Channels>>,
    shown: Shown,
    shown_parents: Arc<BTreeMap<String, CheckpointId>>,
    step: i64,
    stop: i64,
    records: BTreeMap<Arc<str>, Arc<TaskRecord>>,
    tasks: Vec<Arc<Task>>,
    answers_by_id: Fields,
    /// Answers that tasks of a fork take over from the tasks they repeat.
    answers_by_path: BTreeMap<String, Vec<Json>>,
    deltas: Deltas,
    /// State is changed from outside a run: what its checkpoints updated is not kept, so that all that waits is planned.
    is_editing: bool,
    /// All tasks of the superstep run, whatever is recorded of them.
    is_replaying: bool,
    /// The next checkpoint is a copy of the one before it.
    is_copying: bool,
    interrupted: bool,
    resuming: bool,
    /// What the routers of the last task that finished were asked, if that is told.
    routed: Vec<Routed>,
}

impl Execution {
    /// The channels' values under the graph's output keys: its result, and what `values` events show.
    pub fn output(&self) -> Fields {
        read_channels(&self.channels, &self.spec.layout.output)
    }

    /// What the routers of the task that finished last were asked and answered: [`Wanted::routers`].
    pub fn take_routed(&mut self) -> Vec<Routed> {
        std::mem::take(&mut self.routed)
    }

    fn output_keys(&self) -> &[String] {
        &self.spec.output
    }

    fn is_nested(&self) -> bool {
        !self.options.ns.is_empty()
    }

    /// The plain answer of the Command this execution was started with, until a question takes it.
    pub fn null_resume(&self) -> Option<Json> {
        self.records.get(special::NULL_TASK)?.get(special::RESUME).cloned()
    }

    /// A question took the plain answer: it answers one question only, so it is not offered again.
    pub fn spend_plain_answer(&mut self, effects: &mut Vec<Effect>) {
        if let Some(null) = self.records.remove(special::NULL_TASK) {
            let mut null = Arc::unwrap_or_clone(null);
            null.remove(special::RESUME);
            self.store_record(null, effects);
        }
    }

    /// Answers by interrupt id, for graphs inside this one.
    pub fn answers_by_id(&self) -> &Fields {
        &self.answers_by_id
    }

    /// Still passing what an earlier run left: graphs inside continue instead of starting anew.
    pub fn is_resuming(&self) -> bool {
        self.resuming
    }

    pub fn checkpoint_id(&self) -> &str {
        &self.checkpoint_id
    }

    /// The checkpoint that the tasks were planned from first: of a migrated one, that before the migration.
    pub fn planned_at(&self) -> &str {
        self.origin.as_ref().map_or(&self.checkpoint_id, |origin| &origin.checkpoint_id)
    }

    /// The tasks of the superstep in progress were planned by another version of the graph.
    pub fn is_migrated(&self) -> bool {
        self.origin.is_some()
    }

    /// What is recorded of a task of the superstep.
    pub fn record_of(&self, task_id: &str) -> Option<&TaskRecord> {
        self.records.get(task_id).map(|record| &**record)
    }

    pub fn spec(&self) -> &GraphSpec {
        &self.spec
    }

    /// The value of a channel now.
    pub fn value_of(&self, channel: &str) -> Option<Json> {
        self.channels.iter().find(|known| known.name() == channel)?.persisted()
    }

    /// The ids of the tasks of the superstep in progress, error handlers included.
    pub fn task_ids(&self) -> HashSet<Arc<str>> {
        self.tasks.iter().map(|task| Arc::clone(&task.id)).collect()
    }

    /// Durability `exit`: the checkpoint it stands on was stored all the same, since something outside depends on it.
    pub fn note_stored(&mut self) {
        self.parent = Some(self.checkpoint_id.clone());
        self.is_stored = true;
    }

    pub fn step(&self) -> i64 {
        self.step
    }

    /// A task of the superstep does not run: what it did before counts.
    fn is_restored(&self, task_id: &str) -> bool {
        !self.is_replaying && self.records.get(task_id).is_some_and(|record| record.is_done())
    }

    fn at(&self) -> At<'_> {
        At {
            checkpoint_id: &self.checkpoint_id,
            ns: &self.options.ns,
            step: self.step,
            stop: self.stop,
            origin: self.origin.as_ref(),
        }
    }

    fn plan(&self) -> Vec<Arc<Task>> {
        prepare_next_tasks(&self.spec, &self.channels, &self.progress, self.updated.as_deref(), self.at())
    }

    /// Applies writes to the state. On an error it is half-way.
    fn apply(&mut self, writes: &[TaskWrites<'_>]) -> Result<Updated, EngineError> {
        let channels = Arc::make_mut(&mut self.channels);
        if std::mem::take(&mut self.is_stored) {
            channels.iter_mut().for_each(Channel::mark_stored);
        }
        apply_writes(&self.spec, channels, Arc::make_mut(&mut self.progress), writes)
    }

    fn pass_breakpoints(&mut self) {
        Arc::make_mut(&mut self.progress).pass_breakpoints();
    }

    /// Why there is no further superstep, if there is none.
    fn end_of_loop(&self) -> Option<Next> {
        if self.step > self.stop {
            return Some(Next::OutOfSteps);
        }
        if self.tasks.is_empty() {
            return Some(Next::Done);
        }
        let before = self.options.interrupt_before.as_ref().unwrap_or(&self.spec.interrupt_before);
        let stops = !before.is_empty() && !should_interrupt(&self.progress, before, &self.tasks).is_empty();
        stops.then_some(Next::Interrupted)
    }

    /// Plans the superstep and says what to do.
    pub fn tick(&mut self, effects: &mut Vec<Effect>) -> Next {
        self.tasks = self.plan();
        let end = self.end_of_loop();
        if self.options.wanted.checkpoints && self.options.has_storage {
            effects.push(Effect::Chunk(self.checkpoint_chunk(end.is_some())));
        }
        if let Some(end) = end {
            return end;
        }
        let jobs = self.jobs();
        let is_told = |task: &&Arc<Task>| !task.is_hidden();
        if self.options.wanted.tasks {
            for task in self.tasks.iter().filter(is_told) {
                let payload = chunk::task_start(task, &self.options.task_metadata);
                effects.push(Effect::Chunk(Chunk::TaskStart { step: self.step, payload }));
            }
        }
        if self.options.wanted.updates {
            for task in self.tasks.iter().filter(is_told) {
                if !self.is_restored(&task.id) {
                    continue;
                }
                let Some(record) = self.records.get(&task.id) else { continue };
                let payload = chunk::updates(task, &record.writes, self.output_keys(), true);
                effects.push(Effect::Chunk(Chunk::Updates(payload)));
            }
        }
        Next::Run(jobs)
    }

    /// What is left to run of the planned tasks: those without an outcome, then the error handlers owed to failed ones.
    fn jobs(&mut self) -> Vec<Job> {
        let mut jobs = Vec::with_capacity(self.tasks.len());
        let mut handlers = Vec::new();
        for task in self.tasks.clone() {
            if self.is_restored(&task.id) {
                continue;
            }
            let record = self.records.get(&task.id).filter(|_| !self.is_replaying);
            match record.filter(|record| record.get(special::ERROR_SOURCE_NODE).is_some()) {
                Some(record) => {
                    let error = stored_error(record);
                    handlers.extend(self.handler_job(&task, error));
                }
                None => {
                    let (answers, recorded) = self.answers_of(&task);
                    jobs.push(Job { task, answers, recorded, handles: None });
                }
            }
        }
        jobs.extend(handlers);
        jobs
    }

    /// The answers a task starts with: recorded ones, and one given by id for its current question. And how many are
    /// recorded.
    fn answers_of(&mut self, task: &Task) -> (Vec<Json>, usize) {
        let mut answers = self.records.get(&task.id).map(|record| record.answers()).unwrap_or_default();
        let recorded = answers.len();
        if !self.answers_by_path.is_empty()
            && let Some(carried) = self.answers_by_path.get(&task.path.sort_key())
        {
            answers.extend(carried.iter().cloned());
        }
        if self.answers_by_id.is_empty() {
            return (answers, recorded);
        }
        let current = ids::interrupt(&task.ns, answers.len());
        let mut answer = self.answers_by_id.get(&current);
        let is_asking = self.records.get(&task.id).is_some_and(|record| record.get(special::INTERRUPT).is_some());
        if answer.is_none() && is_asking && !self.options.exact_answers {
            // A task's first id stays valid for its later questions.
            answer = self.answers_by_id.get(&ids::interrupt(&task.ns, 0));
        }
        answers.extend(answer.cloned());
        (answers, recorded)
    }

    /// The questions that a task waits for, its own or those of graphs inside it; none once it has finished.
    pub fn questions_of(&self, task_id: &str) -> Vec<Interrupt> {
        let open = self.records.get(task_id).filter(|record| !record.is_finished());
        open.map(|record| record.interrupts()).unwrap_or_default()
    }

    fn handler_job(&mut self, failed: &Task, error: EngineError) -> Option<Job> {
        let handler = self.spec.nodes.get(&*failed.name)?.error_handler.as_ref()?;
        let node = self.spec.node_position(handler)?;
        let name = Arc::clone(&self.spec.layout.nodes[node].name);
        let path = match &failed.path {
            TaskPath::Push(index) => TaskPath::Handler(Arc::clone(&failed.name), Some(*index)),
            _ => TaskPath::Handler(Arc::clone(&failed.name), None),
        };
        let mut ids = self.at().task_ids();
        let (id, ns) = match &self.origin {
            None => ids.handler(&name, &failed.id),
            Some(origin) => migrate::handler_id(origin, &mut ids, &self.options.ns, &name, &path, &failed.id),
        };
        let (triggers, input) = (Arc::clone(&self.spec.layout.push), failed.input.clone());
        let task = Arc::new(Task { id, name, path, triggers, input, ns, node, timeout: None });
        // Also a handler that has finished is a task of this superstep: its writes are applied with the others.
        self.tasks.push(Arc::clone(&task));
        if self.is_restored(&task.id) {
            return None;
        }
        let (answers, recorded) = self.answers_of(&task);
        Some(Job { task, answers, recorded, handles: Some((failed.name.to_string(), error)) })
    }

    /// What the hidden start node returns.
    pub fn start_output(task: &Task) -> Output {
        match &task.input {
            TaskInput::Arg(input) => input.fields().map_or_else(|| Output::Other(input.clone()), Output::Update),
            TaskInput::State(fields) => Output::Update(Fields::clone(fields)),
        }
    }

    /// Asks the routers of a job's node about its output: once, since they may be costly and need not answer alike twice.
    /// Changes nothing.
    pub fn write(&self, job: &Job, output: Output) -> Written {
        let (at, context) = (self.at(), &self.options.router_context);
        let mut routed = Vec::new();
        let told = self.options.wanted.routers.then_some(&mut routed);
        let writes = writes_of(&self.spec, &self.channels, &job.task, at, &output, context, told);
        Written { output, writes, routed }
    }

    /// Records a job's end. `answers`: all answers its questions took, in order.
    pub fn finish_task(&mut self, job: &Job, end: TaskEnd, answers: &[Json], effects: &mut Vec<Effect>) -> Finished {
        let task = &job.task;
        let mut record = match self.records.remove(&task.id) {
            Some(record) => Arc::unwrap_or_clone(record),
            None => TaskRecord::new(Arc::clone(&task.id), task.path.clone()),
        };
        // What it wrote before its router failed: it ran again.
        record.clear_outputs();
        if !answers.is_empty() {
            record.set(special::RESUME, answers.iter().cloned().collect());
        }
        let finished = match end {
            TaskEnd::Output(output) => {
                let written = self.write(job, output);
                self.record_output(job, written, &mut record, effects)
            }
            TaskEnd::Written(written) => self.record_output(job, *written, &mut record, effects),
            // A graph inside stopped at a breakpoint: nothing was asked.
            TaskEnd::Interrupted(list) if list.is_empty() => return Finished::Interrupted(list),
            TaskEnd::Interrupted(list) => {
                record.set(special::INTERRUPT, Json::of(&list).unwrap_or_default());
                self.interrupted = true;
                if !task.is_hidden() {
                    self.emit_interrupts(task, &list, effects);
                }
                Finished::Interrupted(list)
            }
            TaskEnd::Failed(error) => self.record_failure(job, error, false, &mut record, effects),
            TaskEnd::Cancelled => {
                let error = EngineError::new("CancelledError", "");
                record.set(special::ERROR, Json::from(error.repr()));
                self.emit_task_end(task, Some(&error), &[], &[], effects);
                Finished::Failed(error)
            }
        };
        self.store_record(record, effects);
        finished
    }

    /// Records an output taken from a cache: applied and stored like any other, told as cached.
    ///
    /// # Errors
    /// The output cannot be turned into writes; the task should run instead.
    pub fn finish_cached(&mut self, job: &Job, output: &Output, effects: &mut Vec<Effect>) -> Result<(), EngineError> {
        let task = &job.task;
        let outputs =
            match writes_of(&self.spec, &self.channels, task, self.at(), output, &self.options.router_context, None) {
                Ok(outputs) => outputs,
                Err(WriteError::Failed(error) | WriteError::Router { error, .. }) => return Err(error),
                Err(WriteError::Parent(_)) => return Err(EngineError::value("a cached Command for a parent graph")),
            };
        if self.options.wanted.updates {
            let payload = chunk::updates(task, &outputs, self.output_keys(), true);
            effects.push(Effect::Chunk(Chunk::Updates(payload)));
        }
        let mut record = match self.records.remove(&task.id) {
            Some(record) => Arc::unwrap_or_clone(record),
            None => TaskRecord::new(Arc::clone(&task.id), task.path.clone()),
        };
        record.set_outputs(outputs);
        self.store_record(record, effects);
        Ok(())
    }

    fn store_record(&mut self, record: TaskRecord, effects: &mut Vec<Effect>) {
        let record = Arc::new(record);
        let stored = self.storable(&record);
        if !stored.writes.is_empty() || &*record.task_id == special::NULL_TASK {
            effects.push(Effect::Writes { checkpoint_id: self.checkpoint_id.clone(), record: stored });
        }
        self.records.insert(Arc::clone(&record.task_id), record);
    }

    /// The record without what is never stored: writes to untracked channels, also inside the arguments of Sends.
    fn storable(&self, record: &Arc<TaskRecord>) -> Arc<TaskRecord> {
        // Durability `exit` stores at the end what was pending, as it is: a resume gets it back.
        if !self.spec.layout.has_untracked || self.options.exit {
            return Arc::clone(record);
        }
        let untracked = |key: &str| matches!(self.spec.channels.get(key), Some(ChannelKind::Untracked { .. }));
        let mut stored = TaskRecord::clone(record);
        stored.writes.retain(|(channel, _)| !untracked(channel));
        for (channel, value) in &mut stored.writes {
            if &**channel == special::TASKS
                && let Some(packet) = Packet::from_json(value)
                && let Some(mut fields) = packet.arg.fields()
            {
                fields.retain(|key, _| !untracked(key));
                *value = Packet { arg: Json::from(&fields), ..packet }.to_json();
            }
        }
        Arc::new(stored)
    }

    fn record_output(
        &mut self,
        job: &Job,
        written: Written,
        record: &mut TaskRecord,
        effects: &mut Vec<Effect>,
    ) -> Finished {
        let task = &job.task;
        self.routed = written.routed;
        match written.writes {
            Ok(outputs) => {
                record.set_outputs(outputs);
                if !task.is_hidden() {
                    if self.options.wanted.updates {
                        let payload = chunk::updates(task, &record.writes, self.output_keys(), false);
                        effects.push(Effect::Chunk(Chunk::Updates(payload)));
                    }
                    self.emit_task_end(task, None, &record.writes, &[], effects);
                }
                Finished::Done
            }
            Err(WriteError::Parent(command)) => Finished::Parent(command),
            Err(WriteError::Router { error, own, has_written }) => {
                // What the node wrote stays visible, but its superstep cannot be applied: resuming runs the task again.
                if has_written {
                    record.set_outputs(own);
                    record.set(special::ROUTER_FAILED, Json::null());
                }
                self.record_failure(job, error, has_written, record, effects)
            }
            Err(WriteError::Failed(error)) => self.record_failure(job, error, false, record, effects),
        }
    }

    /// `has_written`: it got as far as writing something, which is in the record as far as it is state.
    fn record_failure(
        &mut self,
        job: &Job,
        error: EngineError,
        has_written: bool,
        record: &mut TaskRecord,
        effects: &mut Vec<Effect>,
    ) -> Finished {
        let task = &job.task;
        record.set(special::ERROR, Json::from(error.repr()));
        // A task that took an answer before it failed says that it wrote nothing, as LangGraph's does.
        let is_told = has_written || record.get(special::RESUME).is_some();
        if self.options.wanted.updates && is_told && !task.is_hidden() {
            let payload = chunk::updates(task, &record.writes, self.output_keys(), false);
            effects.push(Effect::Chunk(Chunk::Updates(payload)));
        }
        self.emit_task_end(task, Some(&error), &record.writes, &[], effects);
        let handler = self.spec.nodes.get(&*task.name).and_then(|node| node.error_handler.as_ref());
        if handler.is_some() && job.handles.is_none() {
            record.set(special::ERROR_SOURCE_NODE, Json::from(&*task.name));
            if let Some(job) = self.handler_job(task, error.clone()) {
                return Finished::Handle(Box::new(job));
            }
        }
        Finished::Failed(error)
    }

    fn emit_task_end(
        &self,
        task: &Task,
        error: Option<&EngineError>,
        outputs: &[TaskWrite],
        questions: &[Interrupt],
        effects: &mut Vec<Effect>,
    ) {
        if self.options.wanted.tasks && !task.is_hidden() {
            let result = chunk::result_of(outputs, &self.spec.stream);
            let payload = chunk::task_end(task, error, &result, questions);
            effects.push(Effect::Chunk(Chunk::TaskEnd { step: self.step, payload }));
        }
    }

    fn emit_interrupts(&self, task: &Task, list: &[Interrupt], effects: &mut Vec<Effect>) {
        if self.options.wanted.updates {
            let payload = Json::from_fields([(special::INTERRUPT, &chunk::interrupts(list))]);
            effects.push(Effect::Chunk(Chunk::Updates(payload)));
        }
        if self.options.wanted.values {
            let values = self.output();
            effects.push(Effect::Chunk(Chunk::Values(chunk::values_with_interrupts(&values, list))));
        }
        self.emit_task_end(task, None, &[], list, effects);
    }

    /// Applies the superstep and makes its checkpoint. True: a breakpoint after one of the nodes stops the run here.
    ///
    /// # Errors
    /// A channel refused its writes. The superstep is not applied; the execution must not be used further.
    pub fn after_tick(&mut self, new_id: NewId<'_>, effects: &mut Vec<Effect>) -> Result<bool, EngineError> {
        let (ran, records) = (std::mem::take(&mut self.tasks), std::mem::take(&mut self.records));
        let outputs = |task: &Arc<Task>| records.get(&task.id).map_or(&[][..], |record| &record.writes);
        let writes: Vec<TaskWrites<'_>> = ran.iter().map(|task| TaskWrites::of(task, outputs(task))).collect();
        self.note_delta_writes(&writes);
        // What is told of a run whose superstep was refused is the state before it.
        let before = Arc::clone(&self.channels);
        let applied = self.apply(&writes);
        drop(writes);
        let updated = match applied {
            Ok(updated) => updated,
            Err(error) => {
                self.channels = before;
                self.records = records;
                return Err(error);
            }
        };
        self.emit_values_if(&updated, effects);
        self.updated = Some(Arc::new(updated));
        self.answers_by_path.clear();
        self.is_replaying = false;
        self.put_checkpoint(CheckpointSource::Loop, new_id, effects);
        let after = self.options.interrupt_after.as_ref().unwrap_or(&self.spec.interrupt_after);
        if !after.is_empty() && !should_interrupt(&self.progress, after, &ran).is_empty() {
            self.tasks = self.plan();
            if self.options.wanted.checkpoints && self.options.has_storage {
                effects.push(Effect::Chunk(self.checkpoint_chunk(true)));
            }
            return Ok(true);
        }
        self.resuming = false;
        Ok(false)
    }

    fn emit_values_if(&mut self, updated: &Updated, effects: &mut Vec<Effect>) {
        if updated.contains_any(&self.spec.layout.output) {
            self.emit_values(effects);
        }
    }

    fn emit_values(&mut self, effects: &mut Vec<Effect>) {
        if self.options.wanted.values {
            effects.push(Effect::Chunk(Chunk::Values(Json::from(&self.output()))));
        }
        self.last_values = Some(Arc::clone(&self.channels));
    }

    /// What the execution answers with: the last `values` payload, or the state if there was none.
    pub fn result(&self) -> Fields {
        let told = self.last_values.as_ref().map(|channels| read_channels(channels, &self.spec.layout.output));
        told.unwrap_or_else(|| self.output())
    }

    /// What a thread's document shows of the graph: its values now, and whether nodes are left to run.
    pub fn view(&self) -> (Snapshot, bool) {
        let (spec, channels) = (Arc::clone(&self.spec), Arc::clone(&self.channels));
        (Snapshot { spec, channels }, !self.tasks.is_empty())
    }

    /// The recorded questions of the superstep's tasks, by task id, and whether some of them are answered: a task that
    /// has finished keeps its question until the superstep is over.
    pub fn questions(&self) -> (BTreeMap<String, Vec<Interrupt>>, bool) {
        let asked: Vec<&Arc<TaskRecord>> = self
            .tasks
            .iter()
            .filter_map(|task| self.records.get(&task.id))
            .filter(|record| record.get(special::INTERRUPT).is_some())
            .collect();
        let has_answered = asked.iter().any(|record| record.is_done());
        (asked.into_iter().map(|record| (record.task_id.to_string(), record.interrupts())).collect(), has_answered)
    }

    /// True when the state holds something that reading the stored checkpoint does not show: values that are never
    /// stored, or tasks that a Command started.
    pub fn shows_more_than_stored(&self) -> bool {
        let null = self.records.get(special::NULL_TASK);
        let starts = |channel: &str| channel == special::TASKS || self.spec.trigger_to_nodes.contains_key(channel);
        let is_unstored =
            |channel: &Channel| matches!(channel.kind(), ChannelKind::Untracked { .. }) && channel.is_available();
        null.is_some_and(|null| null.writes.iter().any(|(channel, _)| starts(channel)))
            || (self.spec.layout.has_untracked && self.channels.iter().any(is_unstored))
    }

    /// The run stops at a breakpoint or at questions: what is told last. Outputs of finished siblings are applied to the
    /// values shown, in memory only (section 5.2).
    pub fn suspend(&mut self, effects: &mut Vec<Effect>) {
        let outputs: Vec<(Arc<Task>, Arc<TaskRecord>)> = self
            .tasks
            .iter()
            .filter_map(|task| Some((Arc::clone(task), Arc::clone(self.records.get(&task.id)?))))
            .filter(|(_, record)| record.writes.iter().any(|(channel, _)| !is_control(channel)))
            .collect();
        if !outputs.is_empty() {
            let writes: Vec<TaskWrites<'_>> =
                outputs.iter().map(|(task, record)| TaskWrites::of(task, &record.writes)).collect();
            if let Ok(updated) = self.apply(&writes) {
                self.emit_values_if(&updated, effects);
            }
        }
        if !self.interrupted && self.options.wanted.updates {
            let none = Json::list(imbl::Vector::new());
            effects.push(Effect::Chunk(Chunk::Updates(Json::from_fields([(special::INTERRUPT, &none)]))));
        }
    }

    /// Stores a state that was brought to this build's version as a checkpoint of its own, an update by nobody: the
    /// tasks it waits for keep their ids, and with them what is recorded of them.
    fn put_migrated(&mut self, new_id: NewId<'_>, effects: &mut Vec<Effect>) {
        let Some(migrated) = self.migrated.take() else { return };
        let changed = |channel: &&mut Channel| migrated.changed.contains(channel.name());
        Arc::make_mut(&mut self.channels).iter_mut().filter(changed).for_each(Channel::mark_replaced);
        let records = self.records.values().map(|record| &**record);
        let origin = migrated.origin(&self.checkpoint_id, self.step, self.origin.take(), records);
        self.updated = None;
        let extra = Arc::clone(&self.extra);
        Arc::make_mut(&mut self.extra).insert("migrated_from".to_owned(), Json::from(migrated.from.as_str()));
        self.put_checkpoint_at(CheckpointSource::Update, Some(origin), new_id, effects);
        self.extra = extra;
        for record in self.records.values() {
            let record = self.storable(record);
            effects.push(Effect::Writes { checkpoint_id: self.checkpoint_id.clone(), record });
        }
    }

    fn put_checkpoint(&mut self, source: CheckpointSource, new_id: NewId<'_>, effects: &mut Vec<Effect>) {
        self.put_checkpoint_at(source, None, new_id, effects);
    }

    fn put_checkpoint_at(
        &mut self,
        source: CheckpointSource,
        origin: Option<Origin>,
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let (id, at) = new_id(self.step);
        let counters = self.count_deltas(source);
        let parent = (!self.checkpoint_id.is_empty() && self.parent_exists()).then(|| self.checkpoint_id.clone());
        let step = self.step;
        self.shown = Shown::Made { source, step, counters: counters.clone() };
        self.shown_parents = Arc::clone(&self.parents);
        // With durability `exit` the steps between are not stored: the parent shown is the last one that is.
        if !self.options.exit {
            self.parent = parent.clone();
        }
        self.checkpoint_id = id.clone();
        self.origin = origin;
        self.step += 1;
        if self.options.has_storage {
            // A fork that only durability `exit` stores is stored as what the run went on from.
            let plans_all = self.is_editing || (source == CheckpointSource::Fork && !self.options.exit);
            effects.push(Effect::Checkpoint(Box::new(Draft {
                ns: self.options.ns.clone(),
                id,
                at,
                parent,
                source,
                step,
                parents: Arc::clone(&self.parents),
                extra: Arc::clone(&self.extra),
                counters,
                spec: Arc::clone(&self.spec),
                channels: Arc::clone(&self.channels),
                progress: Arc::clone(&self.progress),
                updated: self.updated.clone().filter(|_| !plans_all),
                next: next_names(&self.spec, &self.channels, &self.progress),
                origin: self.origin.clone(),
                at_exit: self.at_exit(),
            })));
        }
        self.is_stored |= !self.options.exit;
    }

    /// False while the execution stands on the empty checkpoint before the first one.
    fn parent_exists(&self) -> bool {
        self.checkpoint_id != start::NOTHING
    }

    fn shown_metadata(&self) -> Json {
        match &self.shown {
            Shown::Nothing => Json::null(),
            Shown::Loaded(metadata) => metadata_json(metadata),
            Shown::Made { source, step, counters } => {
                let (source, step) = (Json::from(source.as_str()), Json::from(*step));
                let parents = Json::of(&*self.shown_parents).unwrap_or_default();
                let fields = [("source", &source), ("step", &step), ("parents", &parents)];
                Json::from_fields(fields.into_iter().chain(counters.iter().map(|counters| (COUNTERS, counters))))
            }
        }
    }

    /// `is_last`: durability `exit` stores this checkpoint, and tells it as it is stored.
    fn checkpoint_chunk(&self, is_last: bool) -> Chunk {
        let (thread, ns) = (&self.options.thread_id, &self.options.ns);
        let parents = &self.shown_parents;
        // What a run was told of the checkpoints of other graphs is shown where the checkpoint itself says nothing of them.
        let told = if parents.is_empty() { &self.parents } else { parents };
        let config = chunk::config(thread, ns, Some(&self.checkpoint_id), told);
        let parent_config =
            self.parent.as_ref().map_or_else(Json::null, |id| chunk::config(thread, ns, Some(id), parents));
        let values = Json::from(&read_channels(&self.channels, &self.spec.layout.stream));
        let mut metadata = self.shown_metadata();
        if is_last && let Some(at_exit) = self.at_exit() {
            metadata = at_exit.shown(&metadata);
        }
        let next: Json = self.tasks.iter().map(|task| Json::from(&*task.name)).collect();
        let tasks = chunk::checkpoint_tasks(&self.spec, thread, &self.tasks, |id| self.records.get(id).cloned());
        let payload = Json::from_fields([
            ("config", &config),
            ("parent_config", &parent_config),
            ("values", &values),
            ("metadata", &metadata),
            ("next", &next),
            ("tasks", &tasks),
        ]);
        Chunk::Checkpoint { step: self.step - 1, payload }
    }

    /// Why a run that is out of steps fails.
    pub fn out_of_steps_error(&self) -> EngineError {
        EngineError::new(
            "GraphRecursionError",
            format!(
                "Recursion limit of {} reached without hitting a stop condition. You can increase the limit by setting \
                 the `recursion_limit` config key.",
                self.options.recursion_limit
            ),
        )
    }
}

/// A stored failure, for the handler that is owed to it.
fn stored_error(record: &TaskRecord) -> EngineError {
    let repr = record.error().unwrap_or_default();
    match repr.split_once('(') {
        Some((class, rest)) => {
            let message = rest.strip_suffix(')').unwrap_or(rest);
            EngineError::new(class, py::str_from_repr(message).unwrap_or_else(|| message.to_owned()))
        }
        None => EngineError::new("NodeError", repr),
    }
}
