//! The state of a thread whose checkpoints come from elsewhere, as clients see states.
//!
//! The graph is not known here. What runs next is read from the checkpoint: LangGraph triggers a node through a channel of the
//! node's own, `branch:to:NODE`, whose version is newer than what the node has seen.

use std::collections::BTreeMap;

use serde_json::Value as Shown;

use super::{Checkpoint, Write, decoded};
use crate::model::{
    CheckpointRef, Cursor, Fields, HeadView, Interrupt, Json, Scope, TaskPath, TaskState, Thread, ThreadState,
    Timestamp,
};
use crate::runtime::request::HistoryQuery;
use crate::runtime::{Runtime, RuntimeError};
use crate::storage::ForeignFilter;

/// What channels that trigger a node are called.
const TRIGGER: &str = "branch:to:";
/// The channel of Sends.
const SENDS: &str = "__pregel_tasks";

impl Runtime {
    /// The state at a checkpoint, the latest without an id; empty if it is not there.
    pub(crate) async fn foreign_state(
        &self,
        scope: &Scope,
        thread: &Thread,
        at: &CheckpointRef,
    ) -> Result<ThreadState, RuntimeError> {
        let id = at.id.clone().or_else(|| at.map.get(&at.ns).cloned());
        let found = self.foreign_checkpoint(scope, thread.key, &at.ns, id.as_deref()).await?;
        Ok(match found {
            Some(found) => state(thread, &found),
            None => ThreadState {
                values: Json::object(),
                next: Vec::new(),
                tasks: Vec::new(),
                metadata: None,
                created_at: None,
                checkpoint: id.map(|id| cursor(thread, &at.ns, id)),
                parent_checkpoint: None,
                interrupts: Vec::new(),
            },
        })
    }

    pub(crate) async fn foreign_states(
        &self,
        scope: &Scope,
        thread: &Thread,
        query: &HistoryQuery,
        limit: i64,
    ) -> Result<Vec<ThreadState>, RuntimeError> {
        let filter = ForeignFilter {
            ns: Some(query.checkpoint.ns.clone()),
            id: query.checkpoint.id.clone(),
            before: query.before.as_ref().and_then(|before| before.id.clone()),
            after: None,
        };
        let limit = usize::try_from(limit).unwrap_or(0);
        let found = self.foreign_checkpoints(scope, thread.key, filter, query.metadata.as_ref(), limit).await?;
        Ok(found.iter().map(|found| state(thread, found)).collect())
    }

    /// What the document of a thread shows, if its checkpoints come from elsewhere.
    pub(crate) async fn foreign_view(
        &self,
        scope: &Scope,
        thread: &Thread,
        view: &mut HeadView,
    ) -> Result<(), RuntimeError> {
        let Some(found) = self.foreign_checkpoint(scope, thread.key, "", None).await? else { return Ok(()) };
        let shown = state(thread, &found);
        view.values = Some(shown.values);
        view.interrupts = shown
            .tasks
            .into_iter()
            .filter(|task| !task.interrupts.is_empty())
            .map(|task| (task.id, task.interrupts))
            .collect();
        Ok(())
    }
}

fn cursor(thread: &Thread, ns: &str, id: String) -> Cursor {
    let at = CheckpointRef { ns: ns.to_owned(), id: Some(id), map: BTreeMap::new() };
    Cursor { thread_id: thread.id.clone(), at }
}

fn state(thread: &Thread, found: &Checkpoint) -> ThreadState {
    let values: Fields = found
        .values
        .iter()
        .filter(|(channel, value)| !channel.starts_with("__") && !channel.contains(':') && value.tag != "empty")
        .map(|(channel, value)| (channel.clone(), decoded(value)))
        .collect();
    let next = next_nodes(found);
    let tasks = tasks(found, &next);
    let at = found.checkpoint.get("ts").and_then(|at| at.as_str().and_then(Timestamp::parse));
    ThreadState {
        values: Json::from(&values),
        next,
        interrupts: tasks.iter().flat_map(|task| task.interrupts.clone()).collect(),
        tasks,
        metadata: Some(found.metadata.clone()),
        created_at: Some(at.unwrap_or(found.at)),
        checkpoint: Some(cursor(thread, &found.ns, found.id.clone())),
        parent_checkpoint: found.parent.clone().map(|id| cursor(thread, &found.ns, id)),
    }
}

/// The nodes that run next, as far as the checkpoint tells: in the order of their names, then those that were sent to.
fn next_nodes(found: &Checkpoint) -> Vec<String> {
    let document = found.checkpoint.value();
    let version = |of: &Shown, channel: &str| of.get(channel).cloned();
    let mut nodes: Vec<String> = found
        .values
        .iter()
        .filter_map(|(channel, _)| {
            let node = channel.strip_prefix(TRIGGER)?;
            let now = version(&document["channel_versions"], channel)?;
            let seen = version(&document["versions_seen"][node], channel);
            seen.is_none_or(|seen| is_newer(&now, &seen)).then(|| node.to_owned())
        })
        .collect();
    // A checkpoint of an input has not begun.
    let is_input = found.values.iter().any(|(channel, _)| channel == "__start__");
    if is_input && nodes.is_empty() {
        nodes.push("__start__".to_owned());
    }
    nodes.sort();
    let sends = found.values.iter().filter(|(channel, _)| channel == SENDS);
    for (_, sends) in sends {
        let sent = decoded(sends);
        let sent = sent.value().as_array().cloned().unwrap_or_default();
        nodes.extend(sent.iter().filter_map(|send| send["node"].as_str().map(str::to_owned)));
    }
    nodes
}

/// Versions are numbers, or texts that sort as they grow.
fn is_newer(now: &Shown, seen: &Shown) -> bool {
    match (now, seen) {
        (Shown::String(now), Shown::String(seen)) => now > seen,
        (now, seen) => now.as_f64().zip(seen.as_f64()).is_none_or(|(now, seen)| now > seen),
    }
}

/// The tasks that left writes, by the name in their path; and those that run next and left none.
fn tasks(found: &Checkpoint, next: &[String]) -> Vec<TaskState> {
    let mut by_task: BTreeMap<(&str, &str), Vec<&Write>> = BTreeMap::new();
    for write in &found.writes {
        by_task.entry((&write.path, &write.task_id)).or_default().push(write);
    }
    let mut named = next.to_vec();
    let mut tasks = Vec::new();
    for ((path, task_id), writes) in by_task {
        let Some(name) = name_of(path, &mut named) else { continue };
        let interrupts =
            writes.iter().filter(|write| write.channel == "__interrupt__").flat_map(|write| interrupts(write));
        let error = writes.iter().find(|write| write.channel == "__error__").map(|write| {
            let shown = decoded(&write.value);
            shown.as_str().map_or_else(|| shown.text(), str::to_owned)
        });
        let done: Fields = writes
            .iter()
            .filter(|write| write.idx >= 0 && !write.channel.starts_with("__") && !write.channel.contains(':'))
            .map(|write| (write.channel.clone(), decoded(&write.value)))
            .collect();
        tasks.push(TaskState {
            id: task_id.to_owned(),
            path: TaskPath::Pull(name.as_str().into()),
            name,
            error,
            interrupts: interrupts.collect(),
            checkpoint: None,
            state: None,
            result: (!done.is_empty()).then(|| Json::from(&done)),
        });
    }
    tasks
}

/// `~__pregel_pull, NODE`, or one of those that are next: `~__pregel_push, ..` says no name.
fn name_of(path: &str, next: &mut Vec<String>) -> Option<String> {
    let pulled = path.strip_prefix("~__pregel_pull, ").map(|rest| rest.split(", ").next().unwrap_or(rest).to_owned());
    let at = match &pulled {
        Some(name) => next.iter().position(|node| node == name),
        None if path.starts_with("~__pregel_push") => next.len().checked_sub(1),
        // Writes of no task: what a Command brought.
        None => return None,
    };
    match at {
        Some(at) => Some(next.remove(at)),
        None => pulled,
    }
}

/// The questions of a write: a list of `{value, id}`.
fn interrupts(write: &Write) -> Vec<Interrupt> {
    let shown = decoded(&write.value);
    let list = shown.value().as_array().cloned().unwrap_or_default();
    list.into_iter()
        .map(|interrupt| Interrupt {
            id: interrupt["id"].as_str().or(interrupt["interrupt_id"].as_str()).unwrap_or_default().to_owned(),
            value: Json::from(&interrupt["value"]),
            response_schema: None,
        })
        .collect()
}
