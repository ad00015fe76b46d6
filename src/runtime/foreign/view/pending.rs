//! What runs next at a checkpoint, and what its tasks have left there so far.
//!
//! The graph is not known here. A node runs when a channel that triggers it is newer than what the node has seen: most such
//! channels are named after their node, and what a node has seen names the others. The ids of tasks are derived from what
//! they run at; only an id that is met in the thread, in a write or a namespace, is taken for right.

use std::collections::BTreeMap;

use serde_json::{Value as Shown, json};
use uuid::Uuid;

use super::super::{Checkpoint, Write, decoded};
use super::channels::{START, is_available, is_own, sends, triggered, triggers_of};
use crate::engine::ids::{TaskIds, node_ns};
use crate::model::{Fields, Interrupt, Json, TaskPath, TaskState, special};

/// What came with the input, and belongs to no task.
const NO_TASK: &str = "00000000-0000-0000-0000-000000000000";
/// Who saw channels without being a node.
const NO_NODES: [&str; 3] = ["__input__", "__interrupt__", "__snapshot_bumps__"];
/// Channels that tell what happened to a task; whoever wrote to another one has finished.
const CONTROL: [&str; 4] = ["__error__", "__error_source_node__", "__interrupt__", "__resume__"];

/// A task of the open superstep.
#[derive(Debug)]
pub(super) struct Task {
    pub name: String,
    path: TaskPath,
    /// The triggers that are newer than what the node has seen.
    fired: Vec<String>,
    /// Met in a write.
    pub id: Option<String>,
    is_finished: bool,
    error: Option<String>,
    interrupts: Vec<Interrupt>,
    result: Option<Json>,
}

impl Task {
    fn new(name: String, path: TaskPath, fired: Vec<String>) -> Task {
        Task { name, path, fired, id: None, is_finished: false, error: None, interrupts: Vec::new(), result: None }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.is_finished
    }

    /// The ids it may have: that which was met, or what LangGraph for Python and for JavaScript would give it.
    pub(super) fn ids(&self, found: &Checkpoint) -> Vec<String> {
        match &self.id {
            Some(id) => vec![id.clone()],
            None => self.derived_ids(found),
        }
    }

    fn derived_ids(&self, found: &Checkpoint) -> Vec<String> {
        let document = found.checkpoint.value();
        let Some(step) = found.metadata.value()["step"].as_i64() else { return Vec::new() };
        let step = step.saturating_add(1);
        let mut python = TaskIds::new(&found.id, &found.ns, step);
        let (id, parts) = match &self.path {
            TaskPath::Push(index) => {
                let parts = json!([special::PUSH, index.to_string()]);
                (python.push(&self.name, *index).0, vec![parts])
            }
            _ => {
                let mut triggers = triggers_of(document, &self.name);
                triggers.extend(self.fired.iter().filter(|fired| *fired == START).cloned());
                triggers.sort_unstable();
                triggers.dedup();
                let seed = [&self.name, special::PULL, &triggers.concat()].concat();
                let parts = self.fired.iter().map(|trigger| json!([special::PULL, [trigger]]));
                (python.pull(&self.name, &seed).0, parts.collect())
            }
        };
        let mut ids = vec![id.to_string()];
        if let Ok(namespace) = Uuid::try_parse(&found.id) {
            ids.extend(parts.into_iter().map(|parts| {
                let name = json!([node_ns(&found.ns, &self.name), step.to_string(), self.name, parts[0], parts[1]]);
                Uuid::new_v5(&namespace, name.to_string().as_bytes()).hyphenated().to_string()
            }));
        }
        ids
    }

    /// `is_live`: at the latest checkpoint, where a question of a task that has finished since waits no more.
    pub(super) fn shown(self, is_live: bool) -> TaskState {
        let interrupts = if is_live && self.is_finished { Vec::new() } else { self.interrupts };
        TaskState {
            id: self.id,
            name: self.name,
            path: self.path,
            error: self.error,
            interrupts,
            checkpoint: None,
            state: None,
            result: self.result,
        }
    }
}

/// The tasks of the superstep after a checkpoint, those of Sends first, in the order of names otherwise.
pub(super) fn tasks(found: &Checkpoint) -> Vec<Task> {
    let mut groups: BTreeMap<(&str, &str), Vec<&Write>> = BTreeMap::new();
    for write in found.writes.iter().filter(|write| write.task_id != NO_TASK) {
        groups.entry((&write.path, &write.task_id)).or_default().push(write);
    }
    let mut tasks = planned(found, groups.keys().filter_map(|(path, _)| pulled(path)));
    for task in &mut tasks {
        let path = task.path.sort_key();
        let ids = task.derived_ids(found);
        let is_its =
            |(at, id): &(&str, &str)| if at.is_empty() { ids.iter().any(|own| own == id) } else { *at == path };
        if let Some(key) = groups.keys().find(|key| is_its(key)).copied() {
            task.id = Some(key.1.to_owned());
            let writes = groups.remove(&key).unwrap_or_default();
            tell(task, found, &writes);
        }
    }
    // Tasks whose trigger is not to be seen here are told of while they wait or have failed.
    for ((path, id), writes) in groups {
        let mut unplanned = tasks.iter_mut().filter(|task| task.id.is_none());
        let task = match (pulled(path), unplanned.next(), unplanned.next()) {
            (Some(name), ..) => Task::new(name.to_owned(), TaskPath::Pull(name.into()), Vec::new()),
            (None, Some(only), None) if path.is_empty() => {
                only.id = Some(id.to_owned());
                tell(only, found, &writes);
                continue;
            }
            _ => continue,
        };
        let mut task = Task { id: Some(id.to_owned()), ..task };
        tell(&mut task, found, &writes);
        if task.is_open() {
            tasks.push(task);
        }
    }
    tasks
}

/// The node of a task that was triggered: `~__pregel_pull, NODE`. Handlers of errors are no tasks of a state.
fn pulled(path: &str) -> Option<&str> {
    path.strip_prefix("~__pregel_pull, ").filter(|rest| !rest.contains(", node_error_handler, "))
}

fn planned<'a>(found: &Checkpoint, wrote: impl Iterator<Item = &'a str>) -> Vec<Task> {
    let document = found.checkpoint.value();
    let mut nodes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let fires = |node: &str, channel: &str| {
        let value = found.values.iter().find(|(name, _)| name == channel).map(|(_, value)| value);
        let now = document["channel_versions"].get(channel);
        let seen = document["versions_seen"].get(node).and_then(|seen| seen.get(channel));
        value
            .zip(now)
            .is_some_and(|(value, now)| seen.is_none_or(|seen| is_newer(now, seen)) && is_available(channel, value))
    };
    let named = found.values.iter().filter_map(|(channel, _)| Some((triggered(document, channel)?, channel.as_str())));
    let seen = document["versions_seen"].as_object().into_iter().flatten();
    let seen = seen.filter(|(node, _)| !NO_NODES.contains(&node.as_str())).flat_map(|(node, seen)| {
        let channels = seen.as_object().into_iter().flat_map(|seen| seen.keys());
        channels.map(move |channel| (node.as_str(), channel.as_str()))
    });
    for (node, channel) in named.chain(seen).filter(|(node, channel)| fires(node, channel)) {
        let fired = nodes.entry(node).or_default();
        if !fired.iter().any(|known| known == channel) {
            fired.push(channel.to_owned());
        }
    }
    // The first input: a graph takes it by a node of that name, a function by its own, which it may have told meanwhile.
    let is_input = found.values.iter().any(|(channel, _)| channel == START);
    if is_input && !nodes.values().flatten().any(|fired| fired == START) {
        let wrote = wrote.filter(|node| !nodes.contains_key(node)).collect::<Vec<_>>();
        let takes = if wrote.is_empty() { vec![START] } else { wrote };
        nodes.extend(takes.into_iter().map(|node| (node, vec![START.to_owned()])));
    }
    let sent = sends(found).into_iter().enumerate().filter_map(|(index, send)| {
        let name = send["node"].as_str()?.to_owned();
        Some(Task::new(name, TaskPath::Push(index), Vec::new()))
    });
    let pulled = nodes.into_iter().map(|(node, fired)| Task::new(node.to_owned(), TaskPath::Pull(node.into()), fired));
    sent.chain(pulled).collect()
}

/// Versions are numbers, or texts that sort as they grow.
fn is_newer(now: &Shown, seen: &Shown) -> bool {
    match (now, seen) {
        (Shown::String(now), Shown::String(seen)) => now > seen,
        (now, seen) => now.as_f64().zip(seen.as_f64()).is_none_or(|(now, seen)| now > seen),
    }
}

/// What the writes of a task tell of it.
fn tell(task: &mut Task, found: &Checkpoint, writes: &[&Write]) {
    let document = found.checkpoint.value();
    let of = |channel: &'static str| writes.iter().filter(move |write| write.channel == channel);
    task.interrupts = of("__interrupt__").flat_map(|write| interrupts(write)).collect();
    task.error = of("__error__").next().map(|write| {
        let shown = decoded(&write.value);
        shown.as_str().map_or_else(|| shown.text(), str::to_owned)
    });
    task.is_finished = writes.iter().any(|write| !CONTROL.contains(&write.channel.as_str()));
    if !task.is_finished {
        return;
    }
    let returned = ["__return__", "__end__", "__root__"].into_iter().find_map(|channel| of(channel).next_back());
    task.result = Some(match returned {
        Some(returned) => decoded(&returned.value),
        None => results(writes.iter().filter(|write| !is_own(document, &write.channel))),
    });
}

/// By channel; of one that was written to more than once, all of it.
fn results<'a>(writes: impl Iterator<Item = &'a &'a Write>) -> Json {
    let mut by_channel: BTreeMap<&str, Vec<Json>> = BTreeMap::new();
    for write in writes {
        by_channel.entry(&write.channel).or_default().push(decoded(&write.value));
    }
    let results = by_channel.into_iter().map(|(channel, mut values)| {
        let value = match values.len() {
            1 => values.remove(0),
            _ => Json::from_fields([("$writes", &values.into_iter().collect::<Json>())]),
        };
        (channel.to_owned(), value)
    });
    Json::from(&results.collect::<Fields>())
}

/// The questions of a write: a list of `{value, id}`, or one.
fn interrupts(write: &Write) -> Vec<Interrupt> {
    let shown = decoded(&write.value);
    let list = match shown.value() {
        Shown::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    list.into_iter()
        .map(|interrupt| Interrupt {
            id: interrupt["id"].as_str().or(interrupt["interrupt_id"].as_str()).unwrap_or_default().to_owned(),
            value: Json::from(&interrupt["value"]),
            response_schema: None,
        })
        .collect()
}
