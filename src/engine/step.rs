//! The verbs of a superstep, under LangGraph's names: plan, write, apply, and whether to stop at a breakpoint.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

use super::channel::{Channel, Write};
use super::command::{Command, CommandUpdate, Destination, Output, is_end};
use super::spec::{Branch, GraphSpec, Managed, NodeSpec, branch_to};
use super::{EngineError, ids, py};
use crate::model::checkpoint::{Checkpoint, Versions};
use crate::model::{Breakpoints, Fields, Json, TaskPath, special};

/// All channels of a graph, in the order of its spec.
pub type Channels = IndexMap<String, Channel>;

/// Restores every channel from a checkpoint's values; channels it does not mention are empty.
pub fn channels_from(spec: &GraphSpec, values: &Fields) -> Result<Channels, EngineError> {
    spec.channels
        .iter()
        .map(|(name, kind)| Ok((name.clone(), Channel::restore(name, kind, values.get(name))?)))
        .collect()
}

/// The available ones among `keys`, in that order.
pub fn read_channels(channels: &Channels, keys: &[String]) -> Fields {
    keys.iter().filter_map(|key| Some((key.clone(), channels.get(key)?.get()?))).collect()
}

/// Versions and what nodes have seen of them: the part of a checkpoint that planning reads and applying moves.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pub versions: Versions,
    pub versions_seen: BTreeMap<String, Versions>,
}

impl Progress {
    pub fn of(checkpoint: &Checkpoint) -> Progress {
        Progress { versions: checkpoint.versions.clone(), versions_seen: checkpoint.versions_seen.clone() }
    }

    /// The version that the writes of the next superstep get.
    pub fn next_version(&self) -> u64 {
        self.versions.values().max().copied().unwrap_or(0) + 1
    }

    /// Marks everything as seen by the breakpoints, so that they are passed (section 1.4).
    pub fn pass_breakpoints(&mut self) {
        self.versions_seen
            .entry(special::INTERRUPT.to_owned())
            .or_default()
            .extend(self.versions.iter().map(|(channel, version)| (channel.clone(), *version)));
    }
}

/// What a task hands to its node.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskInput {
    State(Fields),
    Arg(Json),
}

impl TaskInput {
    pub fn to_json(&self) -> Json {
        match self {
            TaskInput::State(fields) => Json::from(fields),
            TaskInput::Arg(arg) => arg.clone(),
        }
    }
}

/// One execution of a node in a superstep.
#[derive(Debug, Clone)]
pub struct Task {
    pub id: String,
    pub name: String,
    pub path: TaskPath,
    pub triggers: Vec<String>,
    pub input: TaskInput,
    /// `node:task_id` below the graph's namespace.
    pub ns: String,
}

impl Task {
    /// The start node: shown in checkpoints and task lists, never in `updates` or `tasks` streams.
    pub fn is_hidden(&self) -> bool {
        self.name == special::START
    }
}

/// Where a superstep happens: what task ids are derived from.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub checkpoint_id: &'a str,
    pub ns: &'a str,
    pub step: i64,
    pub stop: i64,
}

/// Plans the next tasks: pending Sends first, then the triggered nodes: among `updated`'s subscribers by name when it is
/// known, else all in graph order (section 1.3).
pub fn prepare_next_tasks(
    spec: &GraphSpec,
    channels: &Channels,
    progress: &Progress,
    updated: Option<&BTreeSet<String>>,
    at: At<'_>,
) -> Vec<Task> {
    let mut tasks = Vec::new();
    let sends = channels.get(special::TASKS).and_then(Channel::get).and_then(|sends| sends.items());
    for (index, send) in sends.into_iter().flatten().enumerate() {
        // A Send to a node that does not exist is dropped, as the reference does (section 1.5).
        let Some((name, arg)) = Destination::send_from_json(&send) else { continue };
        if !spec.nodes.contains_key(&name) {
            continue;
        }
        let id = ids::push_task(at.checkpoint_id, at.ns, at.step, &name, index);
        tasks.push(Task {
            ns: ids::task_ns(at.ns, &name, &id),
            id,
            path: TaskPath::Push(index),
            triggers: vec![special::PUSH.to_owned()],
            input: TaskInput::Arg(arg),
            name,
        });
    }
    let candidates: Vec<&NodeSpec> = match updated.filter(|updated| !updated.is_empty()) {
        Some(updated) => {
            let names: BTreeSet<&String> =
                updated.iter().filter_map(|channel| spec.trigger_to_nodes.get(channel)).flatten().collect();
            names.into_iter().filter_map(|name| spec.node(name)).collect()
        }
        None if progress.versions.is_empty() => Vec::new(),
        None => std::iter::once(&spec.start).chain(spec.nodes.values()).collect(),
    };
    for node in candidates.into_iter().filter(|node| is_triggered(node, channels, progress)) {
        let id = ids::pull_task(at.checkpoint_id, at.ns, at.step, &node.name, &node.triggers);
        let mut triggers = node.triggers.clone();
        triggers.sort();
        tasks.push(Task {
            ns: ids::task_ns(at.ns, &node.name, &id),
            id,
            name: node.name.clone(),
            path: TaskPath::Pull(node.name.clone()),
            triggers,
            input: node_input(spec, node, channels, at),
        });
    }
    tasks
}

fn is_triggered(node: &NodeSpec, channels: &Channels, progress: &Progress) -> bool {
    let seen = progress.versions_seen.get(&node.name);
    node.triggers.iter().any(|trigger| {
        let available = channels.get(trigger).is_some_and(Channel::is_available);
        let version = progress.versions.get(trigger).copied().unwrap_or(0);
        available && seen.is_none_or(|seen| version > seen.get(trigger).copied().unwrap_or(0))
    })
}

fn node_input(spec: &GraphSpec, node: &NodeSpec, channels: &Channels, at: At<'_>) -> TaskInput {
    if node.name == special::START {
        let input = channels.get(special::START).and_then(Channel::get).unwrap_or_default();
        return TaskInput::Arg(input);
    }
    let mut input = Fields::new();
    for key in &node.input {
        let value = match spec.managed.get(key) {
            Some(Managed::IsLastStep) => Some(Json::from(at.step == at.stop - 1)),
            Some(Managed::RemainingSteps) => Some(Json::from(at.stop - at.step)),
            None => channels.get(key).and_then(Channel::get),
        };
        if let Some(value) = value {
            input.insert(key.clone(), value);
        }
    }
    TaskInput::State(input)
}

/// One write of a task.
pub type TaskWrite = (String, Json);

/// The writes of a finished task, for applying.
#[derive(Debug, Clone)]
pub struct TaskWrites<'a> {
    pub name: &'a str,
    pub id: &'a str,
    pub path: &'a TaskPath,
    pub triggers: &'a [String],
    pub writes: &'a [TaskWrite],
}

impl<'a> TaskWrites<'a> {
    /// What a task wrote.
    pub fn of(task: &'a Task, writes: &'a [TaskWrite]) -> TaskWrites<'a> {
        TaskWrites { name: &task.name, id: &task.id, path: &task.path, triggers: &task.triggers, writes }
    }

    /// What a client wrote: an input, or a Command's updates and destinations. Belongs to no task.
    pub fn from_outside(writes: &'a [TaskWrite]) -> TaskWrites<'a> {
        TaskWrites { name: special::INPUT, id: special::NULL_TASK, path: &TaskPath::Null, triggers: &[], writes }
    }
}

/// Names in task writes that say something about the task instead of writing to a channel.
pub fn is_control(channel: &str) -> bool {
    matches!(
        channel,
        special::NO_WRITES
            | special::PUSH
            | special::RESUME
            | special::INTERRUPT
            | special::ERROR
            | special::ERROR_SOURCE_NODE
            | special::ROUTER_FAILED
    )
}

/// Applies the writes of a superstep in the fixed order of section 1.5 and returns the channels that changed and are
/// available. On an error nothing the caller holds should be used further: the channels are half-way.
pub fn apply_writes(
    spec: &GraphSpec,
    channels: &mut Channels,
    progress: &mut Progress,
    tasks: &[TaskWrites<'_>],
) -> Result<BTreeSet<String>, EngineError> {
    let mut order: Vec<&TaskWrites<'_>> = tasks.iter().collect();
    order.sort_by_cached_key(|task| task.path.sort_key());
    let bump = order.iter().any(|task| !task.triggers.is_empty());
    for task in &order {
        let seen = progress.versions_seen.entry(task.name.to_owned()).or_default();
        for trigger in task.triggers {
            if let Some(version) = progress.versions.get(trigger) {
                seen.insert(trigger.clone(), *version);
            }
        }
    }
    let next = progress.next_version();
    let triggers: BTreeSet<&String> = order.iter().flat_map(|task| task.triggers).collect();
    for trigger in triggers {
        if channels.get_mut(trigger).is_some_and(Channel::consume) {
            progress.versions.insert(trigger.clone(), next);
        }
    }
    let mut by_channel: IndexMap<&str, Vec<Write<'_>>> = IndexMap::new();
    for task in &order {
        for (index, (channel, value)) in task.writes.iter().enumerate() {
            // Writes to channels that do not exist are dropped: `goto` to an unknown node does nothing (section 1.5).
            if !is_control(channel) && channels.contains_key(channel) {
                by_channel.entry(channel).or_default().push(Write { value, task_id: task.id, index });
            }
        }
    }
    let mut updated = BTreeSet::new();
    for (name, writes) in by_channel {
        let Some(channel) = channels.get_mut(name) else { continue };
        if channel.update(&writes)? {
            progress.versions.insert(name.to_owned(), next);
            if channel.is_available() {
                updated.insert(name.to_owned());
            }
        }
    }
    if bump {
        for (name, channel) in channels.iter_mut() {
            if !updated.contains(name) && channel.is_available() && channel.update(&[])? {
                progress.versions.insert(name.clone(), next);
                if channel.is_available() {
                    updated.insert(name.clone());
                }
            }
        }
        if !updated.iter().any(|channel| spec.trigger_to_nodes.contains_key(channel)) {
            for (name, channel) in channels.iter_mut() {
                if channel.finish() {
                    progress.versions.insert(name.clone(), next);
                    if channel.is_available() {
                        updated.insert(name.clone());
                    }
                }
            }
        }
    }
    Ok(updated)
}

/// The tasks a breakpoint stops before or after: none unless something changed since the last stop (section 5.1).
pub fn should_interrupt<'a>(progress: &Progress, at: &Breakpoints, tasks: &'a [Task]) -> Vec<&'a Task> {
    let seen = progress.versions_seen.get(special::INTERRUPT);
    let moved = progress
        .versions
        .iter()
        .any(|(channel, version)| *version > seen.and_then(|seen| seen.get(channel)).copied().unwrap_or(0));
    if !moved {
        return Vec::new();
    }
    tasks
        .iter()
        .filter(|task| match at {
            Breakpoints::All => !task.is_hidden(),
            Breakpoints::Nodes(_) => at.contains(&task.name),
        })
        .collect()
}

/// What a node's output makes it write: state, Command gotos, static edges and joins, then the routers' decisions.
/// `Err(Ok(command))` is a Command for the parent graph.
pub fn writes_of(
    spec: &GraphSpec,
    node: &NodeSpec,
    channels: &Channels,
    task: &Task,
    at: At<'_>,
    output: &Output,
) -> Result<Vec<TaskWrite>, WriteError> {
    let mut writes = Vec::new();
    state_writes(spec, node, output, &mut writes)?;
    gotos(output, &mut writes)?;
    let own = writes.len();
    // A handler's output stands for its node's, but the node's edges do not fire (section 9).
    for target in &node.writers.edges {
        writes.push((branch_to(target), Json::null()));
    }
    for join in &node.writers.joins {
        writes.push((join.clone(), Json::from(node.name.as_str())));
    }
    for branch in &node.writers.branches {
        let routed = router_state(spec, node, channels, task, at, output, &writes)
            .and_then(|state| decide(branch, &state))
            .and_then(|destinations| {
                destinations.iter().try_for_each(|to| push_destination(to, Json::null(), &mut writes))
            });
        if let Err(error) = routed {
            writes.truncate(own);
            return Err(WriteError::Router { error, own: writes });
        }
    }
    Ok(writes)
}

/// Why an output could not be turned into writes.
#[derive(Debug)]
pub enum WriteError {
    Failed(EngineError),
    /// A router failed after the node's own output was collected.
    Router {
        error: EngineError,
        own: Vec<TaskWrite>,
    },
    /// Not a failure: the Command belongs to the graph around this one.
    Parent(Box<Command>),
}

impl From<EngineError> for WriteError {
    fn from(error: EngineError) -> Self {
        WriteError::Failed(error)
    }
}

fn expected_dict(value: &Json) -> EngineError {
    EngineError::invalid_update(format!("Expected dict, got {}", py::str_of(value)))
}

fn state_writes(
    spec: &GraphSpec,
    node: &NodeSpec,
    output: &Output,
    writes: &mut Vec<TaskWrite>,
) -> Result<(), WriteError> {
    let writable = |key: &str| {
        if node.name == special::START { spec.input.iter().any(|k| k == key) } else { is_state_key(spec, key) }
    };
    let mut push = |key: &str, value: &Json| {
        if writable(key) {
            writes.push((key.to_owned(), value.clone()));
        }
    };
    match output {
        Output::Nothing => {}
        Output::Update(fields) => fields.iter().for_each(|(key, value)| push(key, value)),
        Output::Command(command) => {
            if command.parent {
                return Err(WriteError::Parent(Box::new(command.clone())));
            }
            match &command.update {
                None => {}
                Some(CommandUpdate::Fields(fields)) => fields.iter().for_each(|(key, value)| push(key, value)),
                Some(CommandUpdate::Pairs(pairs)) => pairs.iter().for_each(|(key, value)| push(key, value)),
                Some(CommandUpdate::Other(value)) => return Err(expected_dict(value).into()),
            }
        }
        Output::Many(outputs) => {
            for output in outputs {
                state_writes(spec, node, output, writes)?;
            }
        }
        Output::Other(value) => return Err(expected_dict(value).into()),
    }
    Ok(())
}

/// True for the keys nodes may write: everything that is not one of the engine's own channels.
pub fn is_state_key(spec: &GraphSpec, key: &str) -> bool {
    spec.channels.contains_key(key)
        && key != special::START
        && key != special::TASKS
        && !key.starts_with("branch:to:")
        && !(key.starts_with("join:") && spec.trigger_to_nodes.contains_key(key))
}

fn gotos(output: &Output, writes: &mut Vec<TaskWrite>) -> Result<(), WriteError> {
    match output {
        Output::Command(command) => {
            for destination in &command.goto {
                if !matches!(destination, Destination::Node(name) if is_end(name)) {
                    push_destination(destination, Json::null(), writes)?;
                }
            }
            Ok(())
        }
        Output::Many(outputs) => outputs.iter().try_for_each(|output| gotos(output, writes)),
        _ => Ok(()),
    }
}

/// Writes what starts a destination; END is left out by callers, a Send to END is refused.
pub fn push_destination(
    destination: &Destination,
    value: Json,
    writes: &mut Vec<TaskWrite>,
) -> Result<(), EngineError> {
    match destination {
        Destination::Node(name) => writes.push((branch_to(name), value)),
        Destination::Send { node, .. } if is_end(node) => {
            return Err(EngineError::invalid_update("Cannot send a packet to the END node"));
        }
        Destination::Send { node, arg } => {
            writes.push((special::TASKS.to_owned(), Destination::send_to_json(node, arg)));
        }
    }
    Ok(())
}

/// The state a router sees: what its node sees, read again with the node's own writes applied, and below it the keys
/// the node returned that are not part of the state (section 1.6).
fn router_state(
    spec: &GraphSpec,
    node: &NodeSpec,
    channels: &Channels,
    task: &Task,
    at: At<'_>,
    output: &Output,
    writes: &[TaskWrite],
) -> Result<Fields, EngineError> {
    let mut state = match output {
        Output::Update(fields) => fields.clone(),
        _ => Fields::new(),
    };
    let keys: &[String] = if node.name == special::START { &spec.stream } else { &node.input };
    for key in keys {
        let value = match spec.managed.get(key) {
            Some(Managed::IsLastStep) => Some(Json::from(at.step == at.stop - 1)),
            Some(Managed::RemainingSteps) => Some(Json::from(at.stop - at.step)),
            None => {
                let own: Vec<Write<'_>> = writes
                    .iter()
                    .enumerate()
                    .filter(|(_, (channel, _))| channel == key)
                    .map(|(index, (_, value))| Write { value, task_id: &task.id, index })
                    .collect();
                match channels.get(key) {
                    Some(channel) if !own.is_empty() => {
                        let mut local = channel.clone();
                        local.update(&own)?;
                        local.get()
                    }
                    Some(channel) => channel.get(),
                    None => None,
                }
            }
        };
        match value {
            Some(value) => state.insert(key.clone(), value),
            None => state.shift_remove(key),
        };
    }
    Ok(state)
}

fn decide(branch: &Branch, state: &Fields) -> Result<Vec<Destination>, EngineError> {
    let invalid = || EngineError::value("Branch did not return a valid destination");
    let mut destinations = Vec::new();
    for destination in EngineError::guard(|| (branch.route)(state))?.ok_or_else(invalid)? {
        let destination = match (destination, &branch.path_map) {
            (Destination::Node(name), Some(map)) => {
                let target = map.get(&name).ok_or_else(|| EngineError::new("KeyError", name))?;
                Destination::Node(target.clone())
            }
            (destination, _) => destination,
        };
        match &destination {
            Destination::Node(name) if name == special::START => return Err(invalid()),
            Destination::Node(name) if is_end(name) => {}
            _ => destinations.push(destination),
        }
    }
    Ok(destinations)
}
