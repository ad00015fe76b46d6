//! The verbs of a superstep, under LangGraph's names: plan, write, apply, and whether to stop at a breakpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::channel::{Channel, ChannelKind, ReduceContext, Write};
use super::command::{Command, CommandUpdate, Destination, Output, Packet, is_end};
use super::ids::TaskIds;
use super::spec::{Branch, GraphSpec, Managed, NodeLayout, RouterContext, Slot, branch_to};
use super::{EngineError, migrate, py};
use crate::model::checkpoint::{Checkpoint, Versions};
use crate::model::{Breakpoints, Fields, Json, Origin, TaskPath, TimeoutPolicy, special};

/// All channels of a graph, in the order of its spec.
pub type Channels = Vec<Channel>;

/// Restores every channel from a checkpoint's values; channels it does not mention are empty.
pub fn channels_from(spec: &GraphSpec, values: &Fields) -> Result<Channels, EngineError> {
    let channels = spec.layout.channels.iter();
    channels.map(|def| Channel::restore(def, values.get(&*def.name))).collect()
}

/// The available ones among the channels at these positions, in that order, by name.
pub fn read_channels(channels: &Channels, positions: &[usize]) -> Fields {
    let read = |position: &usize| {
        let channel = &channels[*position];
        Some((channel.name().to_owned(), channel.get()?))
    };
    positions.iter().filter_map(read).collect()
}

/// Versions and what nodes have seen of them: the part of a checkpoint that planning reads and applying moves. Held by
/// position ([`super::spec::Layout`]); 0 stands for none.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// By channel.
    versions: Vec<u64>,
    /// By node and trigger.
    seen: Vec<u64>,
    /// By channel: what the breakpoints have let pass.
    passed: Option<Arc<[u64]>>,
    foreign: Arc<Foreign>,
}

/// What a checkpoint says of channels and nodes that this graph does not have: kept as it is.
#[derive(Debug, Clone, Default)]
struct Foreign {
    versions: Versions,
    seen: BTreeMap<String, Versions>,
}

impl Progress {
    pub fn new(spec: &GraphSpec) -> Progress {
        let layout = &spec.layout;
        Progress { versions: vec![0; layout.channels.len()], seen: vec![0; layout.seen], ..Progress::default() }
    }

    pub fn of(spec: &GraphSpec, checkpoint: &Checkpoint) -> Progress {
        let mut progress = Progress::new(spec);
        let mut foreign = Foreign::default();
        for (channel, version) in &checkpoint.versions {
            match spec.channels.get_index_of(channel) {
                Some(position) => progress.versions[position] = *version,
                None => {
                    foreign.versions.insert(channel.clone(), *version);
                }
            }
        }
        for (node, versions) in &checkpoint.versions_seen {
            let position = spec.node_position(node);
            let mut passed = vec![0; progress.versions.len()];
            for (channel, version) in versions {
                let place = match (position, spec.channels.get_index_of(channel)) {
                    (Some(node), Some(channel)) => {
                        let node = &spec.layout.nodes[node];
                        let trigger = node.triggers.iter().position(|trigger| *trigger == channel);
                        trigger.map(|trigger| &mut progress.seen[node.seen + trigger])
                    }
                    (None, Some(channel)) if node == special::INTERRUPT => Some(&mut passed[channel]),
                    _ => None,
                };
                match place {
                    Some(place) => *place = *version,
                    None => {
                        foreign.seen.entry(node.clone()).or_default().insert(channel.clone(), *version);
                    }
                }
            }
            if node == special::INTERRUPT {
                progress.passed = Some(passed.into());
            }
        }
        progress.foreign = Arc::new(foreign);
        progress
    }

    /// Nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.versions.iter().all(|version| *version == 0) && self.foreign.versions.is_empty()
    }

    /// A channel's version, by its position; 0: none.
    pub fn version(&self, channel: usize) -> u64 {
        self.versions[channel]
    }

    /// All versions, by channel.
    pub fn versions<'a>(&'a self, spec: &'a GraphSpec) -> impl Iterator<Item = (&'a str, u64)> {
        let own = spec.layout.channels.iter().zip(&self.versions).map(|(def, version)| (&*def.name, *version));
        let foreign = self.foreign.versions.iter().map(|(name, version)| (name.as_str(), *version));
        own.filter(|(_, version)| *version > 0).chain(foreign)
    }

    /// What nodes, and the breakpoints, have seen: (node, channel, version), grouped by node.
    pub fn seen<'a>(&'a self, spec: &'a GraphSpec) -> impl Iterator<Item = (&'a str, &'a str, u64)> {
        let names = &spec.layout.channels;
        let of_node = move |node: &'a NodeLayout| {
            let seen = self.seen[node.seen..].iter();
            node.triggers.iter().zip(seen).map(|(trigger, version)| (&*node.name, &*names[*trigger].name, *version))
        };
        let passed = self.passed.iter().flat_map(move |passed| {
            names.iter().zip(passed.iter()).map(|(def, version)| (special::INTERRUPT, &*def.name, *version))
        });
        let foreign = self.foreign.seen.iter().flat_map(|(node, versions)| {
            versions.iter().map(move |(channel, version)| (node.as_str(), channel.as_str(), *version))
        });
        let own = spec.layout.nodes.iter().flat_map(of_node).chain(passed).filter(|(.., version)| *version > 0);
        own.chain(foreign)
    }

    /// The version that the writes of the next superstep get.
    pub fn next_version(&self) -> u64 {
        self.versions.iter().chain(self.foreign.versions.values()).max().copied().unwrap_or(0) + 1
    }

    /// Marks everything as seen by the breakpoints, so that they are passed (section 1.4).
    pub fn pass_breakpoints(&mut self) {
        let passed = self.passed.iter().flat_map(|passed| passed.iter()).copied().chain(std::iter::repeat(0));
        let now =
            self.versions.iter().zip(passed).map(|(version, passed)| if *version > 0 { *version } else { passed });
        self.passed = Some(now.collect());
        if !self.foreign.versions.is_empty() {
            let foreign = Arc::make_mut(&mut self.foreign);
            let seen = foreign.seen.entry(special::INTERRUPT.to_owned()).or_default();
            seen.extend(foreign.versions.iter().map(|(channel, version)| (channel.clone(), *version)));
        }
    }

    /// Whether anything changed since the breakpoints were last passed.
    fn has_moved(&self) -> bool {
        let foreign_seen = self.foreign.seen.get(special::INTERRUPT);
        let passed = |position: usize| self.passed.as_ref().map_or(0, |passed| passed[position]);
        self.versions.iter().enumerate().any(|(position, version)| *version > passed(position))
            || self.foreign.versions.iter().any(|(channel, version)| {
                *version > foreign_seen.and_then(|seen| seen.get(channel)).copied().unwrap_or(0)
            })
    }
}

/// The channels that a superstep changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Updated {
    /// Positions, ascending.
    positions: Vec<usize>,
    /// Nothing at all; not the same as nothing that this graph knows.
    is_empty: bool,
}

impl Updated {
    fn of(mut positions: Vec<usize>) -> Updated {
        positions.sort_unstable();
        positions.dedup();
        Updated { is_empty: positions.is_empty(), positions }
    }

    /// As a checkpoint names them.
    pub fn load(spec: &GraphSpec, names: &[String]) -> Updated {
        let known = names.iter().filter_map(|name| spec.channels.get_index_of(name)).collect();
        Updated { is_empty: names.is_empty(), ..Updated::of(known) }
    }

    pub fn contains(&self, position: usize) -> bool {
        self.positions.binary_search(&position).is_ok()
    }

    pub fn contains_any(&self, positions: &[usize]) -> bool {
        positions.iter().any(|position| self.contains(*position))
    }

    /// Their names, sorted.
    pub fn names<'a>(&self, spec: &'a GraphSpec) -> Vec<&'a str> {
        let mut names: Vec<&str> = self.positions.iter().map(|at| &*spec.layout.channels[*at].name).collect();
        names.sort_unstable();
        names
    }

    pub fn extend(&mut self, positions: impl IntoIterator<Item = usize>) {
        let is_empty = self.is_empty;
        self.positions.extend(positions);
        *self = Updated::of(std::mem::take(&mut self.positions));
        self.is_empty &= is_empty;
    }

    pub fn merge(&mut self, other: &Updated) {
        self.extend(other.positions.iter().copied());
    }
}

/// What a task hands to its node.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskInput {
    /// Shared by the tasks of a superstep that read the same keys.
    State(Arc<Fields>),
    Arg(Json),
}

impl TaskInput {
    pub fn to_json(&self) -> Json {
        match self {
            TaskInput::State(fields) => Json::from(&**fields),
            TaskInput::Arg(arg) => arg.clone(),
        }
    }
}

/// One execution of a node in a superstep.
#[derive(Debug, Clone)]
pub struct Task {
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub path: TaskPath,
    pub triggers: Arc<[String]>,
    pub input: TaskInput,
    /// `node:task_id` below the graph's namespace.
    pub ns: Arc<str>,
    /// The position of its node ([`GraphSpec::node_position`]).
    pub node: usize,
    /// Set by the Send that started it: limits it in place of its node's own timeouts.
    pub timeout: Option<TimeoutPolicy>,
}

impl Task {
    /// The start node: shown in checkpoints and task lists, never in `updates` or `tasks` streams.
    pub fn is_hidden(&self) -> bool {
        &*self.name == special::START
    }
}

/// Where a superstep happens: what task ids are derived from.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub checkpoint_id: &'a str,
    pub ns: &'a str,
    pub step: i64,
    pub stop: i64,
    /// Set on a migrated checkpoint: what ids are derived from instead.
    pub origin: Option<&'a Origin>,
}

impl At<'_> {
    /// Derives the ids of the tasks planned here.
    pub fn task_ids(&self) -> TaskIds {
        match self.origin {
            None => TaskIds::new(self.checkpoint_id, self.ns, self.step),
            Some(origin) => TaskIds::new(&origin.checkpoint_id, self.ns, origin.step),
        }
    }
}

/// Plans the next tasks: pending Sends first, then the triggered nodes: among `updated`'s subscribers by name when it is
/// known, else all in graph order (section 1.3).
pub fn prepare_next_tasks(
    spec: &GraphSpec,
    channels: &Channels,
    progress: &Progress,
    updated: Option<&Updated>,
    at: At<'_>,
) -> Vec<Arc<Task>> {
    let layout = &spec.layout;
    let mut tasks = Vec::new();
    let mut ids = at.task_ids();
    for (index, node, packet) in pending_sends(spec, channels) {
        let name = Arc::clone(&layout.nodes[node].name);
        let (id, ns) = match at.origin {
            None => ids.push(&name, index),
            Some(origin) => migrate::push_id(origin, &mut ids, at.ns, &name, index),
        };
        let (path, triggers) = (TaskPath::Push(index), Arc::clone(&layout.push));
        let (input, timeout) = (TaskInput::Arg(packet.arg), packet.timeout);
        tasks.push(Arc::new(Task { id, name, path, triggers, input, ns, node, timeout }));
    }
    let mut inputs: Vec<Option<Arc<Fields>>> = vec![None; layout.inputs.len()];
    for position in triggered(spec, channels, progress, updated) {
        let node = &layout.nodes[position];
        let input = if position == 0 {
            TaskInput::Arg(channels[layout.start].get().unwrap_or_default())
        } else {
            let read = || Arc::new(node_input(&layout.inputs[node.input], channels, at));
            TaskInput::State(Arc::clone(inputs[node.input].get_or_insert_with(read)))
        };
        let (id, ns) = match at.origin {
            None => ids.pull(&node.name, &node.seed),
            Some(origin) => migrate::pull_id(origin, &mut ids, at.ns, node),
        };
        let (name, path) = (Arc::clone(&node.name), TaskPath::Pull(Arc::clone(&node.name)));
        let triggers = Arc::clone(&node.trigger_names);
        tasks.push(Arc::new(Task { id, name, path, triggers, input, ns, node: position, timeout: None }));
    }
    tasks
}

/// The names of the tasks that [`prepare_next_tasks`] plans when all nodes are asked.
pub fn next_names(spec: &GraphSpec, channels: &Channels, progress: &Progress) -> Vec<String> {
    let sends = pending_sends(spec, channels).map(|(_, node, _)| node);
    let nodes = sends.chain(triggered(spec, channels, progress, None));
    nodes.map(|node| spec.layout.nodes[node].name.to_string()).collect()
}

/// Index and node of every pending Send, and the Send. One to a node that does not exist is dropped, as the reference does
/// (section 1.5).
fn pending_sends<'a>(spec: &'a GraphSpec, channels: &Channels) -> impl Iterator<Item = (usize, usize, Packet)> + 'a {
    let sends = channels[spec.layout.tasks].get().and_then(|sends| sends.items());
    sends.into_iter().flatten().enumerate().filter_map(|(index, send)| {
        let packet = Packet::from_json(&send)?;
        Some((index, spec.nodes.get_index_of(&packet.node)? + 1, packet))
    })
}

/// The positions of the nodes to run: among the subscribers of `updated` by name when it is known and says anything,
/// else all, in graph order.
fn triggered(spec: &GraphSpec, channels: &Channels, progress: &Progress, updated: Option<&Updated>) -> Vec<usize> {
    let layout = &spec.layout;
    let mut candidates: Vec<usize> = match updated.filter(|updated| !updated.is_empty) {
        Some(updated) => {
            let mut nodes: Vec<usize> =
                updated.positions.iter().flat_map(|channel| &layout.subscribers[*channel]).copied().collect();
            nodes.sort_unstable_by_key(|node| layout.ranks[*node]);
            nodes.dedup();
            nodes
        }
        None if progress.is_empty() => Vec::new(),
        None => (0..layout.nodes.len()).collect(),
    };
    candidates.retain(|node| is_triggered(&layout.nodes[*node], channels, progress));
    candidates
}

fn is_triggered(node: &NodeLayout, channels: &Channels, progress: &Progress) -> bool {
    let seen = &progress.seen[node.seen..];
    node.triggers
        .iter()
        .zip(seen)
        .any(|(trigger, seen)| progress.versions[*trigger] > *seen && channels[*trigger].is_available())
}

fn node_input(slots: &[(String, Slot)], channels: &Channels, at: At<'_>) -> Fields {
    let read = |(key, slot): &(String, Slot)| Some((key.clone(), read_slot(*slot, channels, at)?));
    slots.iter().filter_map(read).collect()
}

fn read_slot(slot: Slot, channels: &Channels, at: At<'_>) -> Option<Json> {
    match slot {
        Slot::Managed(Managed::IsLastStep) => Some(Json::from(at.step == at.stop - 1)),
        Slot::Managed(Managed::RemainingSteps) => Some(Json::from(at.stop - at.step)),
        Slot::Channel(channel) => channels[channel].get(),
        Slot::Missing => None,
    }
}

/// One write of a task.
pub type TaskWrite = (Arc<str>, Json);

/// The writes of a finished task, for applying.
#[derive(Debug, Clone)]
pub struct TaskWrites<'a> {
    pub id: &'a str,
    pub path: &'a TaskPath,
    /// Control writes among them are left out.
    pub writes: &'a [TaskWrite],
    /// The node whose triggers are consumed.
    consumes: Option<usize>,
    /// Part of a superstep: what nobody wrote is told so.
    ends_superstep: bool,
}

impl<'a> TaskWrites<'a> {
    /// What a task wrote.
    pub fn of(task: &'a Task, writes: &'a [TaskWrite]) -> TaskWrites<'a> {
        let consumes = matches!(task.path, TaskPath::Pull(_)).then_some(task.node);
        TaskWrites { id: &task.id, path: &task.path, writes, consumes, ends_superstep: true }
    }

    /// What a client wrote: an input, or a Command's updates and destinations. Belongs to no task.
    pub fn from_outside(writes: &'a [TaskWrite]) -> TaskWrites<'a> {
        let (id, path) = (special::NULL_TASK, &TaskPath::Null);
        TaskWrites { id, path, writes, consumes: None, ends_superstep: false }
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
            | special::USAGE
    )
}

/// Applies the writes of a superstep in the fixed order of section 1.5 and returns the channels that changed and are
/// available. On an error nothing the caller holds should be used further: the channels are half-way.
pub fn apply_writes(
    spec: &GraphSpec,
    channels: &mut Channels,
    progress: &mut Progress,
    tasks: &[TaskWrites<'_>],
) -> Result<Updated, EngineError> {
    apply(spec, channels, progress, tasks, |_, channel, writes| channel.update(writes))
}

/// [`apply_writes`] for reading a superstep that was refused: a channel that refuses its writes keeps what it has. Returns
/// why the first one did.
pub fn apply_what_fits(
    spec: &GraphSpec,
    channels: &mut Channels,
    progress: &mut Progress,
    tasks: &[TaskWrites<'_>],
) -> Result<Option<EngineError>, EngineError> {
    let before = channels.clone();
    let mut refused = None;
    apply(spec, channels, progress, tasks, |position, channel, writes| {
        channel.update(writes).or_else(|error| {
            *channel = before[position].clone();
            refused.get_or_insert(error);
            Ok(false)
        })
    })?;
    Ok(refused)
}

/// `update`: how a channel, at its position, takes its writes in.
fn apply(
    spec: &GraphSpec,
    channels: &mut Channels,
    progress: &mut Progress,
    tasks: &[TaskWrites<'_>],
    mut update: impl FnMut(usize, &mut Channel, &[Write<'_>]) -> Result<bool, EngineError>,
) -> Result<Updated, EngineError> {
    let layout = &spec.layout;
    let mut order: Vec<&TaskWrites<'_>> = tasks.iter().collect();
    order.sort_by(|a, b| a.path.cmp_order(b.path));
    let consumed = || order.iter().filter_map(|task| task.consumes).map(|node| &layout.nodes[node]);
    for node in consumed() {
        for (at, trigger) in node.triggers.iter().enumerate() {
            if progress.versions[*trigger] > 0 {
                progress.seen[node.seen + at] = progress.versions[*trigger];
            }
        }
    }
    let next = progress.next_version();
    for trigger in consumed().flat_map(|node| &node.triggers) {
        if channels[*trigger].consume() {
            progress.versions[*trigger] = next;
        }
    }
    let mut updated: Vec<usize> = Vec::new();
    let mut is_updated = vec![false; channels.len()];
    let (places, writes) = by_channel(spec, &order);
    let mut rest = writes.as_slice();
    for place in places.chunk_by(|a, b| a == b) {
        let (writes, others) = rest.split_at(place.len());
        rest = others;
        let channel = &mut channels[place[0]];
        if update(place[0], channel, writes)? {
            progress.versions[place[0]] = next;
            if channel.is_available() {
                is_updated[place[0]] = true;
                updated.push(place[0]);
            }
        }
    }
    if order.iter().any(|task| task.ends_superstep) {
        for (position, channel) in channels.iter_mut().enumerate() {
            if !is_updated[position] && channel.is_available() && channel.update(&[])? {
                progress.versions[position] = next;
                if channel.is_available() {
                    updated.push(position);
                }
            }
        }
        if updated.iter().all(|position| layout.subscribers[*position].is_empty()) {
            for (position, channel) in channels.iter_mut().enumerate() {
                if channel.finish() {
                    progress.versions[position] = next;
                    if channel.is_available() {
                        updated.push(position);
                    }
                }
            }
        }
    }
    Ok(Updated::of(updated))
}

/// The writes in order, those to one channel together, channels as they are first written; and the channel of each.
/// Writes to channels that do not exist are dropped: `goto` to an unknown node does nothing (section 1.5).
fn by_channel<'a>(spec: &GraphSpec, order: &[&TaskWrites<'a>]) -> (Vec<usize>, Vec<Write<'a>>) {
    let mut first_at: Vec<usize> = vec![usize::MAX; spec.channels.len()];
    let mut writes: Vec<(usize, Write<'a>)> = Vec::new();
    for task in order {
        let outputs = task.writes.iter().filter(|(channel, _)| !is_control(channel));
        for (index, (channel, value)) in outputs.enumerate() {
            if let Some(position) = spec.channels.get_index_of(&**channel) {
                first_at[position] = first_at[position].min(writes.len());
                writes.push((position, Write { value, task_id: task.id, index }));
            }
        }
    }
    writes.sort_by_key(|(position, _)| first_at[*position]);
    writes.into_iter().unzip()
}

/// The tasks a breakpoint stops before or after: none unless something changed since the last stop (section 5.1).
pub fn should_interrupt<'a>(progress: &Progress, at: &Breakpoints, tasks: &'a [Arc<Task>]) -> Vec<&'a Task> {
    if !progress.has_moved() {
        return Vec::new();
    }
    let is_stopped = |task: &&Task| match at {
        Breakpoints::All => !task.is_hidden(),
        Breakpoints::Nodes(_) => at.contains(&task.name),
    };
    tasks.iter().map(|task| &**task).filter(is_stopped).collect()
}

/// What a node's output makes it write: state, Command gotos, static edges and joins, then the routers' decisions.
/// `Err(Ok(command))` is a Command for the parent graph. What routers were asked and answered goes into `routed`.
pub fn writes_of(
    spec: &GraphSpec,
    channels: &Channels,
    task: &Task,
    at: At<'_>,
    output: &Output,
    context: &RouterContext,
    mut routed: Option<&mut Vec<Routed>>,
) -> Result<Vec<TaskWrite>, WriteError> {
    let node = &spec.layout.nodes[task.node];
    let branches: &[Branch] = spec.node(&node.name).map_or(&[], |node| &node.writers.branches);
    let mut writes = Vec::with_capacity(1 + node.edges.len() + node.joins.len());
    state_writes(spec, task, output, &mut writes)?;
    gotos(output, &mut writes);
    let own = writes.len();
    // A handler's output stands for its node's, but the node's edges do not fire (section 9).
    writes.extend(node.edges.iter().map(|edge| (Arc::clone(edge), Json::null())));
    writes.extend(node.joins.iter().map(|join| (Arc::clone(join), node.mark.clone())));
    for branch in branches {
        let went = router_state(spec, node, channels, task, at, output, &writes).and_then(|state| {
            let answer = ask(branch, &state, context);
            if let Some(routed) = routed.as_deref_mut() {
                let destinations = answer.as_ref().ok().cloned();
                routed.push(Routed { name: branch.name.clone(), state, destinations });
            }
            decide(branch, answer?)
        });
        match went {
            Ok(destinations) => writes.extend(destinations.iter().map(start_of)),
            Err(error) => {
                let has_written = !writes.is_empty();
                writes.truncate(own);
                return Err(WriteError::Router { error, own: writes, has_written });
            }
        }
    }
    Ok(writes)
}

/// What a router was asked, and what it answered.
#[derive(Debug, Clone)]
pub struct Routed {
    pub name: String,
    pub state: Fields,
    /// Its own words, before they are looked up; `None`: it failed.
    pub destinations: Option<Vec<Destination>>,
}

/// Why an output could not be turned into writes.
#[derive(Debug)]
pub enum WriteError {
    Failed(EngineError),
    /// A router failed after the node's own output was collected.
    Router {
        error: EngineError,
        own: Vec<TaskWrite>,
        /// It had written something, if only to an edge.
        has_written: bool,
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

/// The write of a task to a key of the state, as its `index`-th; `None` if it may not write this key. What the reducer
/// would name, is named already: it is told before it is applied.
pub fn state_write(spec: &GraphSpec, task: &Task, index: usize, key: &str, value: &Json) -> Option<TaskWrite> {
    let def = &spec.layout.channels[spec.channels.get_index_of(key)?];
    let may_write = if task.node == 0 { def.is_input } else { def.is_state };
    may_write.then(|| {
        let named = match &def.kind {
            ChannelKind::Reducer(reducer) => reducer.identify(value, ReduceContext { task_id: &task.id, index }),
            _ => None,
        };
        (Arc::clone(&def.name), named.unwrap_or_else(|| value.clone()))
    })
}

fn state_writes(spec: &GraphSpec, task: &Task, output: &Output, writes: &mut Vec<TaskWrite>) -> Result<(), WriteError> {
    let mut push = |key: &str, value: &Json| writes.extend(state_write(spec, task, writes.len(), key, value));
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
                state_writes(spec, task, output, writes)?;
            }
        }
        Output::Other(value) => return Err(expected_dict(value).into()),
    }
    Ok(())
}

/// A Send to a node that does not exist, END among them, is dropped when it is planned.
fn gotos(output: &Output, writes: &mut Vec<TaskWrite>) {
    match output {
        Output::Command(command) => {
            let is_path_end = |to: &&Destination| matches!(to, Destination::Node(name) if is_end(name));
            writes.extend(command.goto.iter().filter(|to| !is_path_end(to)).map(start_of));
        }
        Output::Many(outputs) => outputs.iter().for_each(|output| gotos(output, writes)),
        _ => {}
    }
}

/// What starts a destination; END is left out by callers.
pub fn start_of(destination: &Destination) -> TaskWrite {
    match destination {
        Destination::Node(name) => (branch_to(name).into(), Json::null()),
        Destination::Send(packet) => (special::TASKS.into(), packet.to_json()),
    }
}

/// The state a router sees: what its node sees, read again with the node's own writes applied, and below it the keys
/// the node returned that are not part of the state (section 1.6).
fn router_state(
    spec: &GraphSpec,
    node: &NodeLayout,
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
    for (key, slot) in &spec.layout.inputs[node.input] {
        let value = match slot {
            Slot::Channel(position) => {
                let channel = &channels[*position];
                let own: Vec<Write<'_>> = writes
                    .iter()
                    .enumerate()
                    .filter(|(_, (channel, _))| **channel == **key)
                    .map(|(index, (_, value))| Write { value, task_id: &task.id, index })
                    .collect();
                if own.is_empty() {
                    channel.get()
                } else {
                    let mut local = channel.clone();
                    local.update(&own)?;
                    local.get()
                }
            }
            slot => read_slot(*slot, channels, at),
        };
        match value {
            Some(value) => state.insert(key.clone(), value),
            None => state.shift_remove(key),
        };
    }
    Ok(state)
}

fn no_destination() -> EngineError {
    EngineError::value("Branch did not return a valid destination")
}

fn ask(branch: &Branch, state: &Fields, context: &RouterContext) -> Result<Vec<Destination>, EngineError> {
    EngineError::guard(|| (branch.route)(state, context))?.ok_or_else(no_destination)
}

fn decide(branch: &Branch, answer: Vec<Destination>) -> Result<Vec<Destination>, EngineError> {
    let looked_up = |destination| match (destination, &branch.path_map) {
        (Destination::Node(name), Some(map)) => match map.get(&name) {
            Some(target) => Ok(Destination::Node(target.clone())),
            None => Err(EngineError::new("KeyError", name)),
        },
        (destination, _) => Ok(destination),
    };
    let mut destinations: Vec<Destination> = answer.into_iter().map(looked_up).collect::<Result<_, _>>()?;
    let is = |to: &Destination, node: &str| matches!(to, Destination::Node(name) if name == node);
    if destinations.iter().any(|to| is(to, special::START)) {
        return Err(no_destination());
    }
    if destinations.iter().any(|to| matches!(to, Destination::Send(packet) if is_end(&packet.node))) {
        return Err(EngineError::invalid_update("Cannot send a packet to the END node"));
    }
    destinations.retain(|to| !is(to, special::END));
    Ok(destinations)
}
