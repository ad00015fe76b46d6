//! What channels that are stored as changes contributed on the way to a checkpoint: LangGraph's delta channels.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checkpoint, Value};
use crate::model::{CheckpointId, Scope, ThreadKey};
use crate::runtime::{Runtime, RuntimeError};
use crate::storage::ForeignFilter;

/// Ancestors read at once.
const PAGE: i64 = 64;

/// What one channel contributed.
#[derive(Debug, Clone, Default)]
pub struct ChannelHistory {
    /// The value at the nearest ancestor that stored one.
    pub seed: Option<Value>,
    /// The writes since, oldest first, with the ids of their tasks.
    pub writes: Vec<(String, Value)>,
}

impl Runtime {
    /// Follows the parents of a checkpoint (the latest if none is named) until each channel has a seed. Writes on the
    /// checkpoint itself belong to its next step and are left out.
    pub async fn foreign_history(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        id: Option<&str>,
        channels: &[String],
    ) -> Result<BTreeMap<String, ChannelHistory>, RuntimeError> {
        let mut history: BTreeMap<String, ChannelHistory> =
            channels.iter().map(|channel| (channel.clone(), ChannelHistory::default())).collect();
        let target = self.storage().load_foreign(scope, thread, ns, id).await?;
        let mut next = target.as_ref().and_then(|target| target.row.parent.clone());
        let mut before = target.map(|target| target.row.id);
        // Ancestors usually follow each other, so they are read in pages; one elsewhere begins another page.
        let mut page: Vec<Checkpoint> = Vec::new();
        // A checkpoint that was put again may have got a child of its own as its parent.
        let mut seen: BTreeSet<CheckpointId> = before.iter().cloned().collect();
        while let Some(wanted) = next.take().filter(|_| history.values().any(|channel| channel.seed.is_none())) {
            if !seen.insert(wanted.clone()) {
                break;
            }
            let at = match page.iter().position(|checkpoint| checkpoint.id == wanted) {
                Some(at) => at,
                None => {
                    // A parent's id is smaller than its child's, but for ids that are not LangGraph's.
                    let in_order = before.as_ref().is_some_and(|before| wanted < *before);
                    let filter = ForeignFilter {
                        ns: Some(ns.to_owned()),
                        id: (!in_order).then(|| wanted.clone()),
                        before: before.clone().filter(|_| in_order),
                        after: None,
                    };
                    page = self.foreign_checkpoints(scope, thread, filter, None, PAGE as usize).await?;
                    match page.iter().position(|checkpoint| checkpoint.id == wanted) {
                        Some(at) => at,
                        None => {
                            page =
                                self.foreign_checkpoint(scope, thread, ns, Some(&wanted)).await?.into_iter().collect();
                            if page.is_empty() {
                                break;
                            }
                            0
                        }
                    }
                }
            };
            let ancestor = &page[at];
            for write in ancestor.writes.iter().rev() {
                if let Some(channel) = history.get_mut(&write.channel).filter(|channel| channel.seed.is_none()) {
                    channel.writes.push((write.task_id.clone(), write.value.clone()));
                }
            }
            for (name, value) in &ancestor.values {
                if let Some(channel) = history.get_mut(name).filter(|channel| channel.seed.is_none()) {
                    channel.seed = Some(value.clone());
                }
            }
            next = ancestor.parent.clone();
            before = Some(ancestor.id.clone());
        }
        for channel in history.values_mut() {
            channel.writes.reverse();
        }
        Ok(history)
    }
}
