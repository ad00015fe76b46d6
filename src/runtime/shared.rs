//! What all graphs of one run share while it executes: the way to storage, to listeners, and to a stop.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

use super::Runtime;
use super::commit::Committer;
use super::events::Events;
use super::log::{self, Known};
use super::persist::{Stored, Writer};
use super::questions;
use super::said::Said;
use super::turns::Turns;
use super::worker::StopReason;
use crate::engine::RouterContext;
use crate::engine::chunk::{Chunk, Wanted};
use crate::engine::execution::{Draft, Effect, Snapshot, StrictResume};
use crate::engine::record::TaskRecord;
use crate::model::{
    CheckpointId, Durability, Fields, Interrupt, Json, RunId, Scope, StreamMode, TaskExecution, ThreadId, ThreadKey,
    Timestamp, UsageTotals,
};
use crate::storage::{EffectRow, InterruptRow, StepRows, UsageRow};

/// Locks, whatever happened to the last holder: the data is replaced as a whole, never left half-way.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run in execution.
pub(crate) struct Shared {
    pub(crate) runtime: Runtime,
    pub(crate) scope: Scope,
    pub(crate) thread: ThreadKey,
    pub(crate) thread_id: ThreadId,
    pub(crate) run_id: RunId,
    pub(crate) graph_id: String,
    pub(crate) attempt: u32,
    pub(crate) config: Json,
    pub(crate) context: Json,
    /// Keys that go into the metadata of every checkpoint.
    pub(crate) extra: Fields,
    pub(crate) task_metadata: Json,
    pub(crate) recursion_limit: i64,
    pub(crate) durability: Durability,
    pub(crate) modes: HashSet<StreamMode>,
    pub(crate) subgraphs: bool,
    pub(crate) strict_resume: StrictResume,
    pub(crate) router_context: Arc<RouterContext>,
    pub(crate) explains_strict_resume: bool,
    pub(crate) committer: Committer,
    pub(crate) turns: Turns,
    /// Items are read beside each other, and written when nobody reads.
    pub(crate) items: Arc<RwLock<()>>,
    pub(crate) events: Arc<Events>,
    /// Set when nodes must stop: cancel, timeout, lost lease.
    pub(crate) stop: CancellationToken,
    /// A node asked to stop after this superstep, and why.
    pub(crate) drain: Mutex<Option<String>>,
    /// The process is going down: stop after this superstep, another worker continues.
    pub(crate) hand_over: CancellationToken,
    /// The plain answer given at the root graph's checkpoint, until a question takes it or the superstep is over.
    pub(crate) plain_answer: Mutex<Option<Json>>,
    /// A question took it: to be noted with the root graph's records.
    pub(crate) plain_spent: AtomicBool,
    pub(crate) replay: Option<Replay>,
    pub(crate) moved: Option<MovedHead>,
    /// Ids of messages that listeners have got or that were there before.
    pub(crate) seen_messages: Mutex<HashSet<String>>,
    /// Ids of messages whose usage was counted.
    pub(crate) counted_messages: Mutex<HashSet<String>>,
    /// Messages being generated, as far as they have got.
    pub(crate) partial_messages: Mutex<HashMap<String, Json>>,
    /// What tasks have said and not returned yet.
    pub(crate) said: Said,
    /// Why the run was stopped, if it was.
    pub(crate) stopped_by: Arc<Mutex<Option<StopReason>>>,
    /// What the thread's document will show: the last state planned from, and the questions asked since.
    pub(crate) view: Mutex<View>,
    pub(crate) outgoing: Mutex<Outgoing>,
    /// The newest checkpoint id of the thread: new ones are later.
    pub(crate) newest: Mutex<Option<CheckpointId>>,
    /// The input is spent: said with the first rows.
    pub(crate) input_applied: AtomicBool,
    /// When the last execution of a task started: no two have the same time.
    pub(crate) last_start: AtomicI64,
}

/// A state as thread documents show it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// What it showed before the run, which stays until the run has planned a superstep.
    pub(crate) before: Option<Json>,
    /// Whose state: `""` is the root graph's.
    pub(crate) ns: String,
    pub(crate) values: Option<Snapshot>,
    /// Nodes are left to run.
    pub(crate) is_pending: bool,
    /// It shows something that the stored checkpoint does not.
    pub(crate) is_special: bool,
    pub(crate) interrupts: BTreeMap<String, Vec<Interrupt>>,
}

impl View {
    /// `{values, interrupts}` when the head alone would show something else.
    pub(crate) fn document(&self) -> Option<Json> {
        if self.before.is_some() {
            return self.before.clone();
        }
        if !self.is_special {
            return None;
        }
        let values = self.values.as_ref().map(Snapshot::values).unwrap_or_default();
        let interrupts = Json::of(&self.interrupts).ok()?;
        Some(Json::from_fields([("values", &Json::from(&values)), ("interrupts", &interrupts)]))
    }
}

/// The run starts at a checkpoint the caller named: where subgraphs look for their state, on their first visit.
pub(crate) struct Replay {
    /// Time travel: they load what they had before this checkpoint. A new input starts from what they have.
    pub(crate) before: Option<CheckpointId>,
    /// Checkpoints the caller named for inner namespaces.
    pub(crate) named: BTreeMap<String, CheckpointId>,
    pub(crate) visited: Mutex<HashSet<String>>,
}

/// The run starts where the head was moved: graphs with checkpoints of their own go on from what they had there, on their
/// first visit.
pub(crate) struct MovedHead {
    pub(crate) at: CheckpointId,
    pub(crate) visited: Mutex<HashSet<String>>,
}

/// Rows on their way to the committer.
pub(crate) struct Outgoing {
    writer: Writer,
    /// What the last stored checkpoint of each namespace refers to.
    bases: HashMap<String, Stored>,
    /// The lists of each namespace as they are stored, for events to refer to.
    known: HashMap<String, Known>,
    /// Durability `exit`: the last checkpoint of each namespace and the records on it, until the end.
    held: BTreeMap<String, Held>,
    /// Durability `exit`: what was asked and answered, until the end.
    held_questions: Vec<InterruptRow>,
    /// What models cost since the last commit, by namespace.
    usage: BTreeMap<String, UsageTotals>,
    /// Tasks executed since the last commit.
    executions: Vec<TaskExecution>,
}

#[derive(Default)]
struct Held {
    /// The last stored checkpoint of the namespace.
    parent: Option<CheckpointId>,
    draft: Option<Box<Draft>>,
    /// With whether they are still to be stored.
    records: BTreeMap<(CheckpointId, Arc<str>), (Arc<TaskRecord>, bool)>,
    /// The checkpoint was stored before the end, because an effect hangs on it.
    was_stored: bool,
}

impl Outgoing {
    pub(crate) fn new(run_id: RunId) -> Outgoing {
        Outgoing {
            writer: Writer::new(Some(run_id)),
            bases: HashMap::new(),
            known: HashMap::new(),
            held: BTreeMap::new(),
            held_questions: Vec::new(),
            usage: BTreeMap::new(),
            executions: Vec::new(),
        }
    }

    fn put_record(&mut self, ns: &str, checkpoint_id: CheckpointId, record: Arc<TaskRecord>, durability: Durability) {
        if durability == Durability::Exit {
            let held = self.held.entry(ns.to_owned()).or_default();
            held.records.insert((checkpoint_id, record.task_id.clone()), (record, true));
        } else {
            self.writer.put_record(ns, &checkpoint_id, &record);
        }
    }

    /// Turns what a namespace holds into rows: its last checkpoint, and what is recorded on that.
    fn store(&mut self, ns: &str) {
        if ns.is_empty() {
            questions::merge(&mut self.writer.rows.interrupts, std::mem::take(&mut self.held_questions));
        }
        let Some(held) = self.held.get_mut(ns) else { return };
        if let Some(mut draft) = held.draft.take() {
            draft.parent = held.parent.take();
            if let Some(at_exit) = draft.at_exit.take() {
                at_exit.apply(&mut draft);
                if let Some(nothing) = at_exit.base.filter(|_| draft.parent.is_none()) {
                    draft.parent = Some(nothing.id.clone());
                    self.writer.put_checkpoint(&nothing, &mut Stored::default());
                }
            }
            held.parent = Some(draft.id.clone());
            held.was_stored = true;
            let base = self.bases.entry(ns.to_owned()).or_default();
            self.writer.put_checkpoint(&draft, base);
        }
        for ((checkpoint_id, _), (record, is_new)) in &mut held.records {
            if held.parent.as_ref() == Some(checkpoint_id) && std::mem::take(is_new) {
                self.writer.put_record(ns, checkpoint_id, record);
            }
        }
        // Counted together with what the tasks did that reported it.
        if let Some(usage) = self.usage.remove(ns) {
            self.put_rows_of(usage);
        }
    }

    fn spend(&mut self, ns: &str, usage: &UsageTotals) {
        if !usage.is_empty() {
            self.usage.entry(ns.to_owned()).or_default().merge(usage);
        }
    }

    /// What was executed, and what it cost.
    fn put_report(&mut self) {
        self.writer.rows.executions.append(&mut self.executions);
        for (_, usage) in std::mem::take(&mut self.usage) {
            self.put_rows_of(usage);
        }
    }

    fn put_rows_of(&mut self, usage: UsageTotals) {
        self.writer.rows.usage.extend(usage.0.into_iter().map(|(model, usage)| UsageRow { model, usage, seq: 0 }));
    }
}

impl Shared {
    /// A new checkpoint id, later than all of the thread.
    pub(crate) fn new_checkpoint_id(&self, step: i64) -> (CheckpointId, Timestamp) {
        let mut newest = lock(&self.newest);
        let (id, at) = self.runtime.clock().new_checkpoint_id(step, newest.as_deref());
        *newest = Some(id.clone());
        (id, at)
    }

    /// What the payloads of a graph are built for.
    pub(crate) fn wanted(&self, ns: &str) -> Wanted {
        // Chain events tell of all graphs.
        let routers = self.modes.contains(&StreamMode::Events);
        if !ns.is_empty() && !self.subgraphs {
            return Wanted { routers, ..Wanted::default() };
        }
        let debug = self.modes.contains(&StreamMode::Debug);
        Wanted {
            values: self.modes.contains(&StreamMode::Values),
            updates: self.modes.contains(&StreamMode::Updates),
            tasks: debug || self.modes.contains(&StreamMode::Tasks),
            checkpoints: debug || self.modes.contains(&StreamMode::Checkpoints),
            routers,
        }
    }

    /// Remembers what a namespace's checkpoint refers to, so that the next one can refer to the same.
    pub(crate) fn loaded(&self, ns: &str, checkpoint_id: Option<CheckpointId>, stored: Stored) {
        let mut store = lock(&self.outgoing);
        store.bases.insert(ns.to_owned(), stored);
        store.held.entry(ns.to_owned()).or_default().parent = checkpoint_id;
    }

    /// Something of a namespace was loaded or written by this run.
    pub(crate) fn has_written(&self, ns: &str) -> bool {
        lock(&self.outgoing).bases.contains_key(ns)
    }

    /// Takes in effects, in order: tells what is to be told, turns the rest into rows.
    pub(crate) fn take(&self, ns: &str, effects: &mut Vec<Effect>) {
        // Rows first: what is told may refer to them.
        let mut chunks = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Chunk(chunk) => chunks.push(chunk),
                Effect::Checkpoint(draft) => {
                    let mut store = lock(&self.outgoing);
                    if self.durability == Durability::Exit {
                        store.held.entry(ns.to_owned()).or_default().draft = Some(draft);
                    } else {
                        let store = &mut *store;
                        let base = store.bases.entry(ns.to_owned()).or_default();
                        store.writer.put_checkpoint(&draft, base);
                        if self.events.is_stored() {
                            store.known.insert(ns.to_owned(), Known::of(&draft, base));
                        }
                    }
                }
                Effect::Writes { checkpoint_id, record } => {
                    lock(&self.outgoing).put_record(ns, checkpoint_id, record, self.durability);
                }
            }
        }
        for chunk in chunks {
            self.tell(ns, chunk);
        }
    }

    /// Takes in what was asked and answered, to be stored with the writes it belongs to.
    pub(crate) fn take_questions(&self, rows: Vec<InterruptRow>) {
        let mut store = lock(&self.outgoing);
        let is_held = self.durability == Durability::Exit;
        let store = &mut *store;
        questions::merge(if is_held { &mut store.held_questions } else { &mut store.writer.rows.interrupts }, rows);
    }

    /// Hands the rows collected so far, and what was told of them, to the committer.
    pub(crate) fn push(&self, urgent: bool) {
        self.push_rows(&mut lock(&self.outgoing), urgent);
    }

    /// The lock is held until the rows are queued: whoever waits for the queue then waits for them, too.
    fn push_rows(&self, outgoing: &mut Outgoing, urgent: bool) {
        // With `exit` what was spent is counted with what is stored, and what was executed is told at the end.
        if self.durability != Durability::Exit {
            outgoing.put_report();
        }
        let rows = outgoing.writer.take();
        let applies = |rows: &StepRows| {
            // Neither an effect nor a cost says what became of the input.
            let spends = !rows.checkpoints.is_empty() || !rows.task_writes.is_empty();
            spends && !self.input_applied.swap(true, Ordering::Relaxed)
        };
        self.events.push(rows, applies, urgent);
    }

    /// Records the end of a task together with what it cost: a crash takes both or none.
    pub(crate) fn record(&self, ns: &str, checkpoint_id: CheckpointId, record: Arc<TaskRecord>, usage: &UsageTotals) {
        let mut outgoing = lock(&self.outgoing);
        outgoing.put_record(ns, checkpoint_id, record, self.durability);
        outgoing.spend(ns, usage);
    }

    /// Counts what a task cost that left no record.
    pub(crate) fn spend(&self, ns: &str, usage: &UsageTotals) {
        lock(&self.outgoing).spend(ns, usage);
    }

    /// Queues what is known of a task's external call.
    pub(crate) fn put_effect(&self, row: EffectRow) {
        lock(&self.outgoing).writer.rows.effects.push(row);
    }

    /// When an execution of a task starts: later than all before it.
    pub(crate) fn start_time(&self) -> Timestamp {
        let now = self.runtime.clock().now().0;
        let later = |last: i64| now.max(last.saturating_add(1));
        let last = self.last_start.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(later(last)));
        Timestamp(later(last.unwrap_or_else(|last| last)))
    }

    /// Queues an execution of a task for the log.
    pub(crate) fn log(&self, row: TaskExecution) {
        lock(&self.outgoing).executions.push(row);
    }

    /// The rows of the end carry what was executed and what was spent, whatever else they hold.
    pub(crate) fn put_report(&self) {
        lock(&self.outgoing).put_report();
    }

    /// Waits until everything so far is durable, and with it the checkpoints of these namespaces: with durability `exit`
    /// they are stored before the end. False: the lease is gone.
    pub(crate) async fn settle<'a>(&self, namespaces: impl IntoIterator<Item = &'a str>) -> bool {
        {
            let mut outgoing = lock(&self.outgoing);
            if self.durability == Durability::Exit {
                namespaces.into_iter().for_each(|ns| outgoing.store(ns));
            }
            self.push_rows(&mut outgoing, true);
        }
        self.committer.flush().await
    }

    /// Durability `exit`: whether the last checkpoint of a namespace was stored before the end. Asked once.
    pub(crate) fn take_was_stored(&self, ns: &str) -> bool {
        lock(&self.outgoing).held.get_mut(ns).is_some_and(|held| std::mem::take(&mut held.was_stored))
    }

    /// Durability `exit`: stores the last checkpoint of a namespace and what is recorded on it.
    pub(crate) fn store_held(&self, ns: &str) {
        let mut outgoing = lock(&self.outgoing);
        outgoing.store(ns);
        outgoing.held.remove(ns);
    }

    /// Durability `exit`: forgets what a namespace holds.
    pub(crate) fn drop_held(&self, ns: &str) {
        lock(&self.outgoing).held.remove(ns);
    }

    fn tell(&self, ns: &str, chunk: Chunk) {
        let debug = self.modes.contains(&StreamMode::Debug);
        match chunk {
            Chunk::Values(payload) => self.emit(ns, "values", payload),
            Chunk::Updates(payload) => self.emit(ns, "updates", payload),
            Chunk::Checkpoint { step, payload } => {
                if self.modes.contains(&StreamMode::Checkpoints) {
                    self.emit(ns, "checkpoints", payload.clone());
                }
                if debug {
                    self.emit(ns, "debug", self.debug(step, "checkpoint", &with_cursors(&payload)));
                }
            }
            Chunk::TaskStart { step, payload } => self.tell_task(ns, debug, step, "task", payload),
            Chunk::TaskEnd { step, payload } => self.tell_task(ns, debug, step, "task_result", payload),
        }
    }

    fn tell_task(&self, ns: &str, debug: bool, step: i64, kind: &str, payload: Json) {
        if self.modes.contains(&StreamMode::Tasks) {
            self.emit(ns, "tasks", payload.clone());
        }
        if debug {
            self.emit(ns, "debug", self.debug(step, kind, &payload));
        }
    }

    fn debug(&self, step: i64, kind: &str, payload: &Json) -> Json {
        let at = Json::from(self.runtime.clock().now().to_iso());
        let (step, kind) = (Json::from(step), Json::from(kind));
        Json::from_fields([("step", &step), ("timestamp", &at), ("type", &kind), ("payload", payload)])
    }

    /// Sends an event of a graph: `mode` at the root, `mode|node:task|..` below it.
    pub(crate) fn emit(&self, ns: &str, mode: &str, data: Json) {
        if !ns.is_empty() && !self.subgraphs {
            return;
        }
        let name = if ns.is_empty() { mode.to_owned() } else { format!("{mode}|{ns}") };
        // With durability `exit` nothing is stored on the way that an event could refer to. What a node tells while it
        // runs waits for no rows.
        let refers = matches!(mode, "values" | "updates" | "tasks" | "checkpoints" | "debug");
        if !refers || !self.events.is_stored() || self.durability == Durability::Exit {
            return self.emit_named(name, data);
        }
        let mut store = lock(&self.outgoing);
        let store = &mut *store;
        let stored = log::cut(&mut store.writer, store.known.get(ns), ns, &name, &data);
        let hold = stored.is_some() && !store.writer.rows.is_empty();
        self.events.store(name, data, stored, hold);
    }

    pub(crate) fn emit_named(&self, name: String, data: Json) {
        self.events.tell(name, data);
    }
}

/// The server's addition to checkpoint payloads of `debug`: the cursors themselves.
fn with_cursors(payload: &Json) -> Json {
    let mut fields = payload.fields().unwrap_or_default();
    for (from, to) in [("config", "checkpoint"), ("parent_config", "parent_checkpoint")] {
        let cursor = fields.get(from).and_then(|config| config.get("configurable")).unwrap_or_default();
        fields.insert(to.to_owned(), cursor);
    }
    if let Some(tasks) = fields.get("tasks").and_then(Json::items) {
        fields.insert("tasks".to_owned(), tasks.iter().map(task_with_cursor).collect());
    }
    Json::from(&fields)
}

/// A task whose state is elsewhere shows the cursor to it.
fn task_with_cursor(task: &Json) -> Json {
    let mut fields = task.fields().unwrap_or_default();
    if let Some(cursor) = fields.get("state").and_then(|state| state.get("configurable")) {
        fields.shift_remove("state");
        fields.insert("checkpoint".to_owned(), cursor);
    }
    Json::from(&fields)
}
