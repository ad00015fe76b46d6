//! The bookkeeping of delta channels that clients can see: counters in the metadata, and the row that durability `exit`
//! hangs their writes on (section 2.2). Storage keeps every list as deltas whatever they say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::start::NOTHING;
use super::{Draft, Execution, Json, NewId};
use crate::engine::channel::ChannelKind;
use crate::engine::command::as_overwrite;
use crate::engine::record::TaskRecord;
use crate::engine::step::{Progress, TaskWrite, TaskWrites};
use crate::model::{CheckpointId, CheckpointMetadata, CheckpointSource, STEP_OF_NOTHING, TaskPath, Timestamp};

/// A snapshot is due after so many supersteps, however rarely the channel is written.
const MAX_SUPERSTEPS: u64 = 5000;
/// The metadata key of the counters of delta channels.
pub const COUNTERS: &str = "counters_since_delta_snapshot";

/// Where the delta channels of an execution stand.
#[derive(Debug, Default)]
pub(super) struct Deltas {
    /// Updates and supersteps since the last snapshot; channels at zero are absent.
    counters: BTreeMap<String, (u64, u64)>,
    /// Channels whose content must be shown as a snapshot at the next checkpoint that is stored.
    forced: BTreeSet<String>,
    /// Channels this execution wrote.
    written: BTreeSet<String>,
    /// A checkpoint was made.
    has_moved: bool,
    /// It started from a checkpoint that the caller named.
    is_named: bool,
    /// Durability `exit` on a thread without checkpoints: what the row that comes before the only one is called.
    base: Option<(CheckpointId, Timestamp)>,
}

/// What the one checkpoint of durability `exit` shows instead, known only when it turns out to be the last.
#[derive(Debug, Clone)]
pub struct AtExit {
    counters: Option<Json>,
    /// A row without values that it follows.
    pub base: Option<Box<Draft>>,
}

impl AtExit {
    /// Brings the last checkpoint to what is stored.
    pub fn apply(&self, draft: &mut Draft) {
        draft.counters.clone_from(&self.counters);
    }

    /// The metadata that is shown for it.
    pub(super) fn shown(&self, metadata: &Json) -> Json {
        let mut fields = metadata.fields().unwrap_or_default();
        match &self.counters {
            Some(counters) => fields.insert(COUNTERS.to_owned(), counters.clone()),
            None => fields.shift_remove(COUNTERS),
        };
        Json::from(&fields)
    }
}

impl Execution {
    fn delta_frequency(&self, channel: &str) -> Option<u64> {
        match self.spec.channels.get(channel)? {
            ChannelKind::DeltaAppend { snapshot_frequency } => Some(u64::from(*snapshot_frequency)),
            _ => None,
        }
    }

    fn delta_names(&self) -> impl Iterator<Item = &String> {
        let is_delta = |kind: &ChannelKind| matches!(kind, ChannelKind::DeltaAppend { .. });
        self.spec.channels.iter().filter(move |(_, kind)| is_delta(kind)).map(|(name, _)| name)
    }

    /// The channels among these writes that are delta channels.
    fn deltas_in<'a>(&'a self, writes: impl IntoIterator<Item = &'a TaskWrite>) -> BTreeSet<String> {
        let names = writes.into_iter().map(|(channel, _)| channel);
        names.filter(|channel| self.delta_frequency(channel).is_some()).map(|channel| channel.to_string()).collect()
    }

    /// Takes over what the loaded checkpoint's metadata says; on an empty thread, names the row durability `exit` needs.
    pub(super) fn load_deltas(&mut self, metadata: Option<&CheckpointMetadata>, new_id: NewId<'_>) {
        self.deltas.is_named = self.options.addressed;
        if let Some(counters) = metadata.and_then(|metadata| metadata.extra.get(COUNTERS)) {
            let counters: BTreeMap<String, [u64; 2]> = counters.decode().unwrap_or_default();
            let pairs = counters.into_iter().map(|(name, [updates, steps])| (name, (updates, steps)));
            self.deltas.counters = pairs.collect();
        }
        if metadata.is_none() && self.options.exit && self.delta_names().next().is_some() {
            self.deltas.base = Some(new_id(STEP_OF_NOTHING));
        }
    }

    pub(super) fn note_delta_writes(&mut self, tasks: &[TaskWrites<'_>]) {
        if !self.spec.layout.has_delta {
            return;
        }
        let writes = || tasks.iter().flat_map(|task| task.writes);
        let written = self.deltas_in(writes());
        let overwritten = self.deltas_in(writes().filter(|(_, value)| as_overwrite(value).is_some()));
        self.deltas.written.extend(written);
        self.deltas.forced.extend(overwritten);
    }

    /// A branch begins: what is recorded on the base belongs to the other branch, so delta channels it touches are
    /// shown as snapshots.
    pub(super) fn note_branch(&mut self) {
        let touched = self.deltas_in(self.records.values().flat_map(|record| &record.writes));
        self.deltas.forced.extend(touched);
    }

    /// An edit builds on the thread's latest checkpoint, whose other children read the writes that are kept on it; or on
    /// one that has children already, or on none: then it is shown as a snapshot. Returns the record to keep.
    pub(super) fn note_edit(
        &mut self,
        edit: usize,
        writes: &[TaskWrite],
        is_superseded: bool,
    ) -> Option<Arc<TaskRecord>> {
        let written = self.deltas_in(writes);
        if is_superseded {
            self.deltas.forced.extend(written);
            return None;
        }
        if written.is_empty() || self.checkpoint_id == NOTHING {
            return None;
        }
        let id = crate::engine::ids::derived(&self.checkpoint_id, &[edit]);
        let mut record = TaskRecord::new(id, TaskPath::Null);
        record.writes = writes.iter().filter(|(channel, _)| written.contains(&**channel)).cloned().collect();
        Some(Arc::new(record))
    }

    /// The first checkpoint of a thread, when it is an edit, is a snapshot throughout.
    pub(super) fn note_first_edit(&mut self) {
        if self.checkpoint_id == NOTHING {
            let all: Vec<String> = self.delta_names().cloned().collect();
            self.deltas.forced.extend(all);
        }
    }

    /// Moves the counters for the checkpoint that is being made; `None` when there is nothing to show. A copy has those
    /// of its original.
    pub(super) fn count_deltas(&mut self, source: CheckpointSource) -> Option<Json> {
        self.deltas.has_moved = true;
        let is_copy = source == CheckpointSource::Fork && self.is_copying;
        let names: Vec<String> = self.delta_names().filter(|_| !is_copy).cloned().collect();
        for name in names {
            let position = self.spec.channels.get_index_of(&name);
            // A fork writes nothing: what its base updated is counted there.
            let updated = self.updated.as_ref().filter(|_| source != CheckpointSource::Fork);
            let written = updated.zip(position).is_some_and(|(updated, at)| updated.contains(at));
            let (updates, supersteps) = self.deltas.counters.get(&name).copied().unwrap_or((0, 0));
            let (updates, supersteps) = (updates + u64::from(written), supersteps + 1);
            self.deltas.counters.insert(name, (updates, supersteps));
        }
        // With durability `exit` no checkpoint is stored yet that could hold a snapshot.
        if !self.options.exit && !is_copy {
            let due = self.due_snapshots();
            self.deltas.counters.retain(|name, _| !due.contains(name));
            self.deltas.forced.clear();
        }
        self.shown_counters(&BTreeSet::new())
    }

    fn due_snapshots(&self) -> BTreeSet<String> {
        let reached = self.deltas.counters.iter().filter(|(name, (updates, supersteps))| {
            let frequency = self.delta_frequency(name).unwrap_or(u64::MAX);
            *updates >= frequency || *supersteps >= MAX_SUPERSTEPS
        });
        reached.map(|(name, _)| name).chain(&self.deltas.forced).cloned().collect()
    }

    fn shown_counters(&self, without: &BTreeSet<String>) -> Option<Json> {
        let shown: BTreeMap<&String, [u64; 2]> = self
            .deltas
            .counters
            .iter()
            .filter(|(name, _)| !without.contains(*name))
            .map(|(name, (updates, steps))| (name, [*updates, *steps]))
            .collect();
        if shown.is_empty() { None } else { Json::of(&shown).ok() }
    }

    /// What changes if the checkpoint just made is the one that durability `exit` stores.
    pub(super) fn at_exit(&self) -> Option<AtExit> {
        if !self.options.exit || !self.deltas.has_moved || self.delta_names().next().is_none() {
            return None;
        }
        let mut snapshots = self.due_snapshots();
        if self.deltas.is_named {
            snapshots.extend(self.deltas.written.iter().cloned());
        }
        let counters = self.shown_counters(&snapshots);
        let is_needed = self.deltas.written.iter().any(|name| !snapshots.contains(name));
        let base = self.deltas.base.clone().filter(|_| is_needed).map(|(id, at)| {
            Box::new(Draft {
                ns: self.options.ns.clone(),
                id,
                at,
                parent: None,
                source: CheckpointSource::Input,
                step: STEP_OF_NOTHING,
                parents: Arc::default(),
                extra: Arc::default(),
                counters: None,
                spec: Arc::clone(&self.spec),
                channels: Arc::default(),
                progress: Arc::new(Progress::new(&self.spec)),
                updated: None,
                next: Vec::new(),
                origin: None,
                at_exit: None,
            })
        });
        Some(AtExit { counters, base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Output;
    use crate::engine::chunk::Wanted;
    use crate::engine::execution::{Effect, Input, Next, Options, StrictResume, TaskEnd};
    use crate::graph::{Context, START, StateGraph};
    use crate::model::Fields;

    /// A list that is written with the input and never again, in a graph that does not end.
    #[test]
    fn a_snapshot_is_due_after_so_many_supersteps() {
        let graph = StateGraph::dynamic("endless")
            .channel("l", ChannelKind::DeltaAppend { snapshot_frequency: 100 })
            .node("again", async |_: Json, _: Context| Ok(()))
            .edge(START, "again")
            .branch("again", "always", ["again"], |_: &Json| "again")
            .build()
            .expect("builds");
        let options = Options {
            thread_id: "thread".to_owned(),
            ns: String::new(),
            parents: BTreeMap::new(),
            extra: Fields::new(),
            task_metadata: Json::object(),
            recursion_limit: 5_010,
            interrupt_before: None,
            interrupt_after: None,
            strict_resume: StrictResume::Off,
            router_context: Arc::default(),
            resuming: None,
            addressed: false,
            answers_by_id: Fields::new(),
            exact_answers: false,
            exit: false,
            has_storage: true,
            wanted: Wanted { values: false, updates: false, tasks: false, checkpoints: false, routers: false },
        };
        let mut time = 0;
        let mut new_id = |_| {
            time += 1;
            (format!("{time:08x}-0000-6000-8000-000000000000"), Timestamp(time))
        };
        let (mut effects, mut shown) = (Vec::new(), Vec::new());
        let input = Input::Value(Json::parse(r#"{"l": [1]}"#).expect("JSON"));
        let started = Execution::start(graph.spec(), None, input, options, &mut new_id, &mut effects);
        let mut execution = started.expect("it starts");
        while let Next::Run(jobs) = execution.tick(&mut effects) {
            for job in &jobs {
                let output = if job.task.is_hidden() { Execution::start_output(&job.task) } else { Output::Nothing };
                execution.finish_task(job, TaskEnd::Output(output), &job.answers, &mut effects);
            }
            execution.after_tick(&mut new_id, &mut effects).expect("applied");
            for effect in effects.drain(..) {
                if let Effect::Checkpoint(draft) = effect {
                    let counters = draft.metadata().extra.get(COUNTERS).and_then(|counters| counters.get("l"));
                    shown.push(counters.map(|counters| counters.text()));
                }
            }
        }
        let at = shown.iter().position(Option::is_none).expect("a snapshot");
        let around = [&shown[0], &shown[at - 1], &shown[at + 1]].map(|counters| counters.as_deref());
        assert_eq!((at, around), (4_999, [Some("[0,1]"), Some("[1,4999]"), Some("[0,1]")]));
    }
}
