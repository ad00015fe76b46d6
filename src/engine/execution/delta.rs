//! The bookkeeping of delta channels that clients can see: counters in the metadata (section 2.2). Storage keeps
//! every list as deltas whatever they say.

use std::collections::BTreeMap;

use super::{Execution, Json, special};
use crate::engine::channel::ChannelKind;
use crate::engine::command::as_overwrite;
use crate::engine::step::TaskWrites;

const MAX_SUPERSTEPS: u64 = 5000;

impl Execution {
    pub(super) fn note_delta_overwrites(&mut self, tasks: &[TaskWrites<'_>]) {
        let overwritten: Vec<String> = tasks
            .iter()
            .flat_map(|task| task.writes)
            .filter(|(channel, value)| self.delta_frequency(channel).is_some() && as_overwrite(value).is_some())
            .map(|(channel, _)| channel.clone())
            .collect();
        self.delta_snapshot.extend(overwritten);
    }

    fn delta_frequency(&self, channel: &str) -> Option<u64> {
        match self.spec.channels.get(channel)? {
            ChannelKind::DeltaAppend { snapshot_frequency } => Some(u64::from(*snapshot_frequency)),
            _ => None,
        }
    }

    /// A branch begins: what is recorded on the base belongs to the other branch, so delta channels it touches are
    /// shown as snapshots.
    pub(super) fn note_branch(&mut self) {
        let touched: Vec<String> = self
            .records
            .values()
            .filter(|record| record.task_id != special::NULL_TASK)
            .flat_map(|record| &record.writes)
            .filter(|(channel, _)| self.delta_frequency(channel).is_some())
            .map(|(channel, _)| channel.clone())
            .collect();
        self.delta_snapshot.extend(touched);
    }

    /// Moves the counters for the checkpoint that is being made; `None` when there is nothing to show.
    pub(super) fn count_deltas(&mut self) -> Option<Json> {
        let names: Vec<String> = self
            .spec
            .channels
            .iter()
            .filter(|(_, kind)| matches!(kind, ChannelKind::DeltaAppend { .. }))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            let frequency = self.delta_frequency(&name).unwrap_or(u64::MAX);
            let written = self.updated.as_ref().is_some_and(|updated| updated.contains(&name));
            let (updates, supersteps) = self.delta.get(&name).copied().unwrap_or((0, 0));
            let (updates, supersteps) = (updates + u64::from(written), supersteps + 1);
            let forced = self.delta_snapshot.remove(&name);
            if forced || updates >= frequency || supersteps >= MAX_SUPERSTEPS {
                self.delta.remove(&name);
            } else {
                self.delta.insert(name, (updates, supersteps));
            }
        }
        let shown: BTreeMap<&String, [u64; 2]> =
            self.delta.iter().map(|(name, (updates, steps))| (name, [*updates, *steps])).collect();
        if shown.is_empty() { None } else { Json::of(&shown).ok() }
    }
}
