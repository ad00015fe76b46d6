//! Reading a thread's state at a checkpoint (section 6.1).

use std::sync::Arc;

use super::chunk::result_of;
use super::execution::Loaded;
use super::record::TaskRecord;
use super::step::{
    At, Channels, Progress, TaskWrite, TaskWrites, apply_what_fits, apply_writes, channels_from, prepare_next_tasks,
    read_channels,
};
use super::{EngineError, GraphSpec, migrate};
use crate::model::checkpoint::Checkpoint;
use crate::model::{Fields, Interrupt, Json, TaskPath, special};

/// A task of a state.
#[derive(Debug, Clone)]
pub struct TaskView {
    pub id: String,
    pub name: String,
    pub path: TaskPath,
    /// Where the checkpoints of a graph inside it are.
    pub ns: String,
    pub error: Option<String>,
    pub interrupts: Vec<Interrupt>,
    /// Its questions wait for answers: it did not fail after asking.
    pub is_asking: bool,
    pub result: Option<Json>,
}

/// A state.
#[derive(Debug, Clone)]
pub struct StateView {
    pub values: Fields,
    pub next: Vec<String>,
    pub tasks: Vec<TaskView>,
    /// Why writes of finished tasks could not be applied: their run failed with it. The keys they are about have the values
    /// of the superstep's start.
    pub refused: Option<EngineError>,
}

/// The state at a checkpoint. `live`: outputs of finished tasks of the unfinished superstep are applied, their nodes are
/// not in `next`, and answered questions are left out; otherwise the state is that of the superstep's start.
pub fn state_at(spec: &GraphSpec, loaded: &Loaded, ns: &str, live: bool) -> Result<StateView, EngineError> {
    let checkpoint = &loaded.checkpoint;
    let mut channels = channels_from(spec, &readable(spec, checkpoint))?;
    let mut progress = Progress::of(spec, checkpoint);
    let step = loaded.metadata.step + 1;
    let at = At { checkpoint_id: &checkpoint.id, ns, step, stop: step + 1, origin: checkpoint.origin.as_ref() };
    let tasks = prepare_next_tasks(spec, &channels, &progress, None, at);
    let record_of = |id: &str| loaded.records.iter().find(|record| *record.task_id == *id);
    apply_null_writes(spec, loaded, &mut channels, preview);
    let mut refused = None;
    if live {
        let outputs: Vec<_> = tasks
            .iter()
            .filter_map(|task| Some((task, record_of(&task.id).filter(|record| record.is_finished())?)))
            .collect();
        if !outputs.is_empty() {
            let mut applied = channels.clone();
            let previewed: Vec<Vec<TaskWrite>> =
                outputs.iter().map(|(_, record)| preview(spec, &mut applied, &record.writes)).collect();
            let of_tasks = outputs.iter().zip(&previewed);
            let writes: Vec<TaskWrites<'_>> =
                of_tasks.map(|((task, _), writes)| TaskWrites::of(task, writes)).collect();
            refused = apply_what_fits(spec, &mut applied, &mut progress, &writes)?;
            // Values that last for one superstep belong to the one that follows: not shown.
            for channel in applied.iter_mut().filter(|channel| channel.is_available()) {
                channel.update(&[])?;
            }
            channels = applied;
        }
    }
    let is_open = |id: &str| !record_of(id).is_some_and(TaskRecord::is_finished);
    let planned = tasks.iter().filter(|task| !live || is_open(&task.id)).map(|task| task.name.to_string());
    // Nodes that this build no longer has are waited for all the same.
    let next = planned.chain(migrate::gone(spec, loaded)).collect();
    let tasks = tasks
        .iter()
        .map(|task| {
            let record = record_of(&task.id);
            let finished = record.filter(|record| record.is_finished());
            let shows_questions = !live || finished.is_none();
            TaskView {
                error: record.and_then(TaskRecord::error),
                is_asking: record.is_some_and(TaskRecord::is_asking),
                interrupts: record.filter(|_| shows_questions).map(TaskRecord::interrupts).unwrap_or_default(),
                result: finished.map(|record| result_of(&record.writes, &spec.stream)),
                id: task.id.to_string(),
                name: task.name.to_string(),
                path: task.path.clone(),
                ns: task.ns.to_string(),
            }
        })
        .collect();
    Ok(StateView { values: read_channels(&channels, &spec.layout.stream), next, tasks, refused })
}

/// Turns channels, and the writes that are to be folded into them, into what the live view reads.
fn preview(spec: &GraphSpec, channels: &mut Channels, writes: &[TaskWrite]) -> Vec<TaskWrite> {
    let one = |(name, value): &TaskWrite| match spec.channels.get_index_of(&**name) {
        Some(position) => {
            channels[position].preview();
            (Arc::clone(name), channels[position].preview_write(value))
        }
        None => (Arc::clone(name), value.clone()),
    };
    writes.iter().map(one).collect()
}

/// The values of a checkpoint alone, under the keys streams show, with what a Command wrote on it.
pub fn values_at(spec: &GraphSpec, loaded: &Loaded) -> Result<Fields, EngineError> {
    let mut channels = channels_from(spec, &readable(spec, &loaded.checkpoint))?;
    apply_null_writes(spec, loaded, &mut channels, |_, _, writes| writes.to_vec());
    Ok(read_channels(&channels, &spec.layout.stream))
}

/// The values of a checkpoint, in the shapes that the channels of this build have.
fn readable(spec: &GraphSpec, checkpoint: &Checkpoint) -> Fields {
    let mut values = checkpoint.values.clone();
    migrate::fit_triggers(spec, checkpoint.written_by.as_ref(), &mut values);
    values
}

/// What a Command wrote; nothing if that is refused, as its run was. `read`: what channels and writes are taken for.
fn apply_null_writes(
    spec: &GraphSpec,
    loaded: &Loaded,
    channels: &mut Channels,
    read: impl FnOnce(&GraphSpec, &mut Channels, &[TaskWrite]) -> Vec<TaskWrite>,
) {
    let null = loaded.records.iter().find(|record| &*record.task_id == special::NULL_TASK);
    let Some(null) = null else { return };
    let mut progress = Progress::of(spec, &loaded.checkpoint);
    let mut applied = channels.clone();
    let writes = read(spec, &mut applied, &null.writes);
    let task = TaskWrites::from_outside(&writes);
    if apply_writes(spec, &mut applied, &mut progress, &[task]).is_ok() {
        *channels = applied;
    }
}
