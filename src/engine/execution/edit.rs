//! Changing state from outside a run: `update_state` and its special nodes (section 6.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::start::NOTHING;
use super::{Effect, Execution, Loaded, NewId, Options};
use crate::engine::command::Output;
use crate::engine::record::TaskRecord;
use crate::engine::spec::GraphSpec;
use crate::engine::step::{Task, TaskInput, TaskWrite, TaskWrites, WriteError, writes_of};
use crate::engine::{EngineError, ids, py};
use crate::model::{CheckpointSource, Json, TaskPath, special};

/// One change, as if a node had returned it.
#[derive(Debug, Clone)]
pub struct Edit {
    pub values: Output,
    /// `None`: the node that updated the state last.
    pub as_node: Option<String>,
}

impl Edit {
    /// Reads what clients send as `values`: an object, null, or what will be refused.
    pub fn from_json(values: &Json, as_node: Option<String>) -> Edit {
        let values = match values.fields() {
            Some(fields) => Output::Update(fields),
            None if values.is_null() => Output::Nothing,
            None => Output::Other(values.clone()),
        };
        Edit { values, as_node }
    }
}

impl Execution {
    /// Applies supersteps of edits, one checkpoint each. The returned execution stands on the last one.
    ///
    /// # Errors
    /// The first edit that cannot be applied; `effects` must be dropped then.
    pub fn edit(
        spec: &Arc<GraphSpec>,
        loaded: Option<Loaded>,
        supersteps: &[Vec<Edit>],
        options: Options,
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<Execution, EngineError> {
        if supersteps.is_empty() {
            return Err(EngineError::value("No supersteps provided"));
        }
        let (mut execution, is_head) = Execution::load(spec, loaded, options, false, new_id)?;
        execution.is_editing = true;
        execution.put_migrated(new_id, effects);
        execution.note_branch();
        for (index, edits) in supersteps.iter().enumerate() {
            if index > 0 {
                execution.say_where();
            }
            execution.edit_superstep(edits, index == 0 && !is_head, new_id, effects)?;
            execution.records.clear();
        }
        execution.tasks = execution.plan();
        Ok(execution)
    }

    /// A superstep after another says only where it stands.
    fn say_where(&mut self) {
        let thread = Json::from(self.options.thread_id.as_str());
        let before = Json::from(self.checkpoint_id.as_str());
        self.extra = Arc::new([("thread_id".to_owned(), thread), ("checkpoint_id".to_owned(), before)].into());
    }

    /// `is_superseded`: the checkpoint that is edited has been followed by others.
    fn edit_superstep(
        &mut self,
        edits: &[Edit],
        is_superseded: bool,
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), EngineError> {
        let Some(first) = edits.first() else {
            return Err(EngineError::value("No updates provided"));
        };
        let alone = |what: &str| {
            if edits.len() == 1 { Ok(()) } else { Err(EngineError::invalid_update(format!("Cannot {what}"))) }
        };
        match first.as_node.as_deref() {
            Some(special::END) if first.values == Output::Nothing => {
                alone("apply multiple updates when clearing state")?;
                self.clear_tasks(new_id, effects)
            }
            Some(special::INPUT) => {
                alone("apply multiple updates when updating as input")?;
                self.edit_input(&first.values, new_id, effects)
            }
            Some(special::COPY) => {
                alone("copy checkpoint with multiple updates")?;
                self.copy(&first.values, new_id, effects)
            }
            _ => self.edit_as_nodes(edits, is_superseded, new_id, effects),
        }
    }

    /// No values as END: what had finished is applied, what was pending is dropped.
    fn clear_tasks(&mut self, new_id: NewId<'_>, effects: &mut Vec<Effect>) -> Result<(), EngineError> {
        if self.checkpoint_id != NOTHING {
            self.updated = None;
            self.tasks = self.plan();
            self.apply_null_writes()?;
            let tasks = std::mem::take(&mut self.tasks);
            let records = self.records.clone();
            let outputs = |task: &Arc<Task>| records.get(&task.id).map_or(&[][..], |record| &record.writes);
            let writes: Vec<TaskWrites<'_>> = tasks.iter().map(|task| TaskWrites::of(task, outputs(task))).collect();
            self.updated = Some(Arc::new(self.apply(&writes)?));
        }
        self.put_update(new_id, effects);
        Ok(())
    }

    fn put_update(&mut self, new_id: NewId<'_>, effects: &mut Vec<Effect>) {
        if self.checkpoint_id == NOTHING {
            // A fresh thread's first update is step 0: the input it stands for was step -1.
            self.step = self.step.max(0);
        }
        self.note_first_edit();
        self.put_checkpoint(CheckpointSource::Update, new_id, effects);
        self.updated = None;
    }

    fn edit_input(&mut self, values: &Output, new_id: NewId<'_>, effects: &mut Vec<Effect>) -> Result<(), EngineError> {
        let input = match values {
            Output::Update(fields) => Json::from(fields),
            Output::Other(value) => value.clone(),
            _ => return Err(EngineError::invalid_update("Received no input writes for __start__")),
        };
        let writes = [(special::START.into(), input)];
        self.updated = Some(Arc::new(self.apply(&[TaskWrites::from_outside(&writes)])?));
        self.note_first_edit();
        self.put_checkpoint(CheckpointSource::Input, new_id, effects);
        self.updated = None;
        Ok(())
    }

    /// A sibling of the checkpoint with the same values; a list of `[values, node]` pairs is applied to the copy.
    fn copy(&mut self, values: &Output, new_id: NewId<'_>, effects: &mut Vec<Effect>) -> Result<(), EngineError> {
        if self.checkpoint_id == NOTHING {
            return Err(EngineError::invalid_update("Cannot copy a non-existent checkpoint"));
        }
        self.checkpoint_id = self.parent.clone().unwrap_or_else(|| NOTHING.to_owned());
        self.updated = None;
        self.records.clear();
        // A copy takes its place from its parent, which says nothing else: it carries no metadata of its own. Without
        // a parent it says what the caller said, if that named the checkpoint.
        if self.parent.is_some() || !self.options.addressed {
            self.extra = Arc::default();
        }
        self.is_copying = true;
        self.put_checkpoint(CheckpointSource::Fork, new_id, effects);
        self.is_copying = false;
        let Output::Other(list) = values else { return Ok(()) };
        let Some(items) = list.items() else { return Ok(()) };
        let edits: Vec<Edit> = items
            .iter()
            .map(|item| {
                let pair = item.items().filter(|pair| pair.len() >= 2);
                let node = pair.as_ref().and_then(|pair| pair[1].as_str().map(str::to_owned));
                match (pair, node) {
                    (Some(pair), Some(node)) => Ok(Edit::from_json(&pair[0], Some(node))),
                    _ => {
                        let item = py::repr(item.value());
                        Err(EngineError::invalid_update(format!("Invalid update item: {item} when copying checkpoint")))
                    }
                }
            })
            .collect::<Result<_, _>>()?;
        if edits.is_empty() {
            return Ok(());
        }
        self.say_where();
        self.edit_as_nodes(&edits, false, new_id, effects)
    }

    fn edit_as_nodes(
        &mut self,
        edits: &[Edit],
        is_superseded: bool,
        new_id: NewId<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), EngineError> {
        self.updated = None;
        // The ids of the tasks that would run now: an edit as one of their nodes is recorded as that task's result.
        let mut planned: BTreeMap<usize, Vec<Arc<Task>>> = BTreeMap::new();
        for task in self.plan().into_iter().rev() {
            planned.entry(task.node).or_default().push(task);
        }
        let mut done: Vec<(Task, Vec<TaskWrite>)> = Vec::new();
        for (index, edit) in edits.iter().enumerate() {
            let name = match &edit.as_node {
                Some(name) => name.clone(),
                None if edits.len() > 1 => {
                    return Err(EngineError::invalid_update("as_node is required when applying multiple updates"));
                }
                None => {
                    self.last_node().ok_or_else(|| EngineError::invalid_update("Ambiguous update, specify as_node"))?
                }
            };
            let node = self
                .spec
                .node_position(&name)
                .ok_or_else(|| EngineError::invalid_update(format!("Node {name} does not exist")))?;
            let reused = planned.get_mut(&node).and_then(Vec::pop);
            let is_planned = reused.is_some();
            let mut task = reused.map(Arc::unwrap_or_clone).unwrap_or_else(|| Task {
                id: ids::derived(&self.checkpoint_id, &[index]).into(),
                name: Arc::clone(&self.spec.layout.nodes[node].name),
                path: TaskPath::Null,
                triggers: Arc::default(),
                input: TaskInput::State(Arc::default()),
                ns: Arc::default(),
                node,
                timeout: None,
            });
            let writes = match writes_of(
                &self.spec,
                &self.channels,
                &task,
                self.at(),
                &edit.values,
                &self.options.router_context,
                None,
            ) {
                Ok(writes) => writes,
                Err(WriteError::Failed(error) | WriteError::Router { error, .. }) => return Err(error),
                Err(WriteError::Parent(_)) => {
                    return Err(EngineError::invalid_update("There is no parent graph"));
                }
            };
            let unplanned = self.note_edit(index, &writes, is_superseded);
            let kept = if is_planned && !is_superseded { self.keep_as_result(&task, &writes) } else { unplanned };
            if let Some(record) = kept {
                effects.push(Effect::Writes { checkpoint_id: self.checkpoint_id.clone(), record });
            }
            // Applied in the given order, and as a superstep: all other pending triggers and Sends are dropped.
            task.path = TaskPath::Null;
            done.push((task, writes));
        }
        let writes: Vec<TaskWrites<'_>> = done.iter().map(|(task, writes)| TaskWrites::of(task, writes)).collect();
        self.note_delta_writes(&writes);
        self.updated = Some(Arc::new(self.apply(&writes)?));
        self.put_update(new_id, effects);
        Ok(())
    }

    /// An edit as the node of a task that is planned: what it writes is recorded as the task's result. Where the task has
    /// a result, writes keep the positions they were first made at, the answers it took among them: the edit's fill only
    /// those that are free.
    fn keep_as_result(&mut self, task: &Task, writes: &[TaskWrite]) -> Option<Arc<TaskRecord>> {
        let mut record = match self.records.remove(&task.id) {
            Some(record) => Arc::unwrap_or_clone(record),
            None => TaskRecord::new(Arc::clone(&task.id), task.path.clone()),
        };
        if record.is_finished() {
            let (first, results) = (record.answers().len(), record.outputs());
            if first == 0 && writes.len() <= results.len() {
                return None;
            }
            let before = writes.iter().take(first);
            let after = writes.iter().skip(first + results.len());
            let merged = before.chain(&results).chain(after).cloned().collect();
            record.set_outputs(merged);
        } else {
            record.set_outputs(writes.to_vec());
        }
        Some(self.storable(&Arc::new(record)))
    }

    /// The node that updated the state last: START while no node has read anything, else the one that saw the greatest
    /// version, unless two did.
    fn last_node(&self) -> Option<String> {
        let mut seen = self.progress.seen(&self.spec).peekable();
        if seen.peek().is_none() {
            return Some(special::START.to_owned());
        }
        let mut last: Vec<(u64, &str)> = seen
            .filter(|(name, ..)| self.spec.node_position(name).is_some())
            .map(|(name, _, version)| (version, name))
            .collect();
        last.sort();
        match last.as_slice() {
            [] => None,
            [(_, only)] => Some((*only).to_owned()),
            [.., (before, _), (version, name)] => (before != version).then(|| (*name).to_owned()),
        }
    }
}
