//! The effect journal of one task: where its calls are recorded, what is known of them, and the commit barrier.

use std::collections::HashMap;
use std::sync::Mutex;

use super::executor::Around;
use super::shared::{Shared, lock};
use crate::engine::ids;
use crate::engine::step::Task;
use crate::graph::node::NodeError;
use crate::model::{EffectEntry, EffectPlace};
use crate::storage::EffectRow;

/// What the effects of a graph without checkpoints, and of graphs inside it, hang on: the task around it that has one.
#[derive(Debug, Clone)]
pub(crate) struct Anchor {
    /// The place of the innermost task around that is stored; its task id names the call, too.
    place: EffectPlace,
    may_have_run: bool,
}

/// The calls of one task, over all attempts of this process.
pub(crate) struct Journal {
    place: EffectPlace,
    /// An earlier execution may have left something.
    may_have_run: bool,
    /// `None`: not read yet.
    known: Mutex<Option<HashMap<String, EffectEntry>>>,
}

impl Journal {
    pub(crate) fn of(around: &Around, task: &Task) -> Journal {
        let node = task.name.to_string();
        let (place, may_have_run) = match &around.anchor {
            // Its checkpoints are gone with the process, and their ids with them: what stays the same is the task
            // around, and where in the graph this one stands.
            Some(anchor) => {
                let at = format!("{}/{}/{}", anchor.place.task_id, task.path.sort_key(), task.name);
                let step = usize::try_from(around.step).unwrap_or(0);
                (EffectPlace { task_id: ids::derived(&at, &[step]), node, ..anchor.place.clone() }, anchor.may_have_run)
            }
            None => {
                let (ns, checkpoint_id) = (around.ns.clone(), around.planned_at.clone());
                (EffectPlace { ns, checkpoint_id, task_id: task.id.to_string(), node }, around.may_have_run)
            }
        };
        Journal { place, may_have_run, known: Mutex::new((!may_have_run).then(HashMap::new)) }
    }

    /// What the effects of the `index`-th graph called in this task hang on, if that or a graph around has no checkpoints.
    pub(crate) fn anchor(&self, index: usize) -> Anchor {
        let task_id = ids::derived(&self.place.task_id, &[index]);
        Anchor { place: EffectPlace { task_id, ..self.place.clone() }, may_have_run: self.may_have_run }
    }

    /// Waits until the checkpoint of the task is durable, with those of the graphs around it. Returns the key that is the
    /// same for every execution of the task, and another one on a copy of the thread.
    pub(crate) async fn barrier(&self, shared: &Shared, around: &Around, key: &str) -> Result<String, NodeError> {
        settle(shared, around).await?;
        Ok(ids::derived(&format!("{}/{}/{key}", shared.thread.0, self.place.task_id), &[]))
    }

    /// What is known of a call. Reads what earlier executions left, once.
    pub(crate) async fn find(&self, shared: &Shared, key: &str) -> Result<Option<EffectEntry>, NodeError> {
        if let Some(known) = &*lock(&self.known) {
            return Ok(known.get(key).cloned());
        }
        let found = shared.runtime.storage().task_effects(&shared.scope, shared.thread, &self.place).await?;
        let mut known = lock(&self.known);
        let known = known.get_or_insert_with(HashMap::new);
        for entry in found {
            // A call made meanwhile, beside this one, is known better here.
            known.entry(entry.key.clone()).or_insert(entry);
        }
        Ok(known.get(key).cloned())
    }

    /// Writes what is known of a call.
    pub(crate) async fn put(
        &self,
        shared: &Shared,
        around: &Around,
        entry: EffectEntry,
        durable: bool,
    ) -> Result<(), NodeError> {
        lock(&self.known).get_or_insert_with(HashMap::new).insert(entry.key.clone(), entry.clone());
        shared.put_effect(EffectRow { place: self.place.clone(), entry });
        if durable {
            return settle(shared, around).await;
        }
        shared.push(false);
        Ok(())
    }
}

async fn settle(shared: &Shared, around: &Around) -> Result<(), NodeError> {
    let namespaces = around.parents.keys().map(String::as_str).chain([around.ns.as_str()]);
    if shared.settle(namespaces).await { Ok(()) } else { Err(NodeError::Cancelled) }
}
