//! What is kept of a task on its checkpoint: its writes, its failure, its questions and their answers (section 3.2).

use std::sync::Arc;

use super::step::TaskWrite;
use super::step::is_control;
use crate::model::{Interrupt, Json, TaskPath, special};

/// All writes of one task on a checkpoint. At most one write each of the control kinds, then the outputs in order.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRecord {
    pub task_id: Arc<str>,
    pub path: TaskPath,
    pub writes: Vec<TaskWrite>,
}

impl TaskRecord {
    pub fn new(task_id: impl Into<Arc<str>>, path: TaskPath) -> TaskRecord {
        TaskRecord { task_id: task_id.into(), path, writes: Vec::new() }
    }

    /// The record of the Command given as input.
    pub fn null() -> TaskRecord {
        TaskRecord::new(special::NULL_TASK, TaskPath::Null)
    }

    pub fn get(&self, channel: &str) -> Option<&Json> {
        self.writes.iter().find(|(name, _)| **name == *channel).map(|(_, value)| value)
    }

    /// Sets a control write, replacing an earlier one. The latest stands first.
    pub fn set(&mut self, channel: &str, value: Json) {
        self.remove(channel);
        self.writes.insert(0, (channel.into(), value));
    }

    /// Unfinished, and the last thing it did was to ask.
    pub fn is_asking(&self) -> bool {
        let at = |name: &str| self.writes.iter().position(|(channel, _)| **channel == *name);
        let failed = at(special::ERROR).unwrap_or(usize::MAX);
        !self.is_finished() && at(special::INTERRUPT).is_some_and(|asked| asked < failed)
    }

    pub fn remove(&mut self, channel: &str) {
        self.writes.retain(|(name, _)| **name != *channel);
    }

    /// Finished: it has a write that says more than a failure, a question or an answer. What views go by.
    pub fn is_finished(&self) -> bool {
        self.writes.iter().any(|(channel, _)| **channel == *special::NO_WRITES || !is_control(channel))
    }

    /// Finished, and nothing of it failed: it does not run again.
    pub fn is_done(&self) -> bool {
        self.is_finished() && self.get(special::ROUTER_FAILED).is_none()
    }

    /// The outputs: what is applied to channels.
    pub fn outputs(&self) -> Vec<TaskWrite> {
        self.writes.iter().filter(|(channel, _)| !is_control(channel)).cloned().collect()
    }

    /// Takes the outputs away: it has not finished.
    pub fn clear_outputs(&mut self) {
        self.writes.retain(|(channel, _)| {
            is_control(channel) && !matches!(&**channel, special::NO_WRITES | special::ROUTER_FAILED)
        });
    }

    /// Replaces the outputs; none at all is recorded as such.
    pub fn set_outputs(&mut self, outputs: Vec<TaskWrite>) {
        self.clear_outputs();
        if outputs.is_empty() {
            self.writes.push((special::NO_WRITES.into(), Json::null()));
        }
        self.writes.extend(outputs);
    }

    /// The failure, as Python's `repr`.
    pub fn error(&self) -> Option<String> {
        self.get(special::ERROR).map(|error| error.as_str().map_or_else(|| error.text(), str::to_owned))
    }

    pub fn interrupts(&self) -> Vec<Interrupt> {
        self.get(special::INTERRUPT).and_then(|list| list.decode().ok()).unwrap_or_default()
    }

    /// Answers so far, in the order of the questions.
    pub fn answers(&self) -> Vec<Json> {
        self.get(special::RESUME).and_then(Json::items).map(|items| items.into_iter().collect()).unwrap_or_default()
    }
}
