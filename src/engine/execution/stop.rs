//! Stopping a superstep half-way without losing what its tasks had said. The reference drops it.

use std::sync::Arc;

use super::{Effect, Execution, NewId};
use crate::engine::EngineError;
use crate::engine::command::Output;
use crate::engine::record::TaskRecord;
use crate::engine::step::{Task, TaskWrite, TaskWrites, WriteError, writes_of};
use crate::model::CheckpointSource;

impl Execution {
    /// Ends a superstep that was stopped, as an edit of the state would: what had finished is applied, and what unfinished
    /// tasks had said so far (by the namespace of the task), as if their nodes had returned it. Tasks that said nothing
    /// are left to be run. False: nobody had said anything, and nothing is changed.
    ///
    /// # Errors
    /// Some of it cannot be applied; `effects` must be dropped then.
    pub fn keep_said(
        &mut self,
        said: &[(Arc<str>, Output)],
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, EngineError> {
        let mut done: Vec<(Arc<Task>, Vec<TaskWrite>)> = Vec::new();
        let mut is_kept = false;
        for task in self.tasks.clone() {
            if let Some(record) = self.records.get(&task.id).filter(|record| record.is_done()) {
                let writes = record.writes.clone();
                done.push((task, writes));
                continue;
            }
            let Some((_, output)) = said.iter().find(|(ns, _)| *ns == task.ns) else { continue };
            let writes =
                writes_of(&self.spec, &self.channels, &task, self.at(), output, &self.options.router_context, None)
                    .map_err(|error| match error {
                        WriteError::Failed(error) | WriteError::Router { error, .. } => error,
                        WriteError::Parent(_) => EngineError::invalid_update("There is no parent graph"),
                    })?;
            let mut record = TaskRecord::new(Arc::clone(&task.id), task.path.clone());
            record.set_outputs(writes.clone());
            let record = self.storable(&Arc::new(record));
            effects.push(Effect::Writes { checkpoint_id: self.checkpoint_id.clone(), record });
            done.push((task, writes));
            is_kept = true;
        }
        if !is_kept {
            return Ok(false);
        }
        let writes: Vec<TaskWrites<'_>> = done.iter().map(|(task, writes)| TaskWrites::of(task, writes)).collect();
        self.note_delta_writes(&writes);
        let before = Arc::clone(&self.channels);
        match self.apply(&writes) {
            Ok(updated) => self.updated = Some(Arc::new(updated)),
            Err(error) => {
                self.channels = before;
                return Err(error);
            }
        }
        self.emit_values(effects);
        self.put_checkpoint(CheckpointSource::Update, new_id, effects);
        self.updated = None;
        self.records.clear();
        self.tasks = self.plan();
        Ok(true)
    }
}
