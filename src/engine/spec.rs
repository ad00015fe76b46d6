//! The topology of a graph: channels, nodes, edges. What a builder produces and the engine executes. Holds no node
//! bodies: running them is somebody else's job.

#![deny(missing_docs)]

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;

use super::channel::ChannelKind;
use super::command::Destination;
use super::error::EngineError;
use super::migrate::MigrationFrom;
use crate::model::{Breakpoints, Fields, Json, special};

/// A router: a pure function from the state its node sees (own writes applied) and its surroundings to destinations.
/// `None` is the invalid answer "no decision at all"; an empty list ends the path.
pub type Route = Arc<dyn Fn(&Fields, &RouterContext) -> Result<Option<Vec<Destination>>, EngineError> + Send + Sync>;

/// What a router can know besides the state.
#[derive(Debug, Clone, Default)]
pub struct RouterContext {
    /// The name of the thread.
    pub thread_id: String,
    /// The run's config: `{configurable, metadata, tags, recursion_limit}`. Of an update of the state only
    /// `configurable`, with the place it was made at.
    pub config: Json,
    /// The run's static context; an empty object when the state is updated.
    pub context: Json,
}

/// A conditional edge.
#[derive(Clone)]
pub struct Branch {
    /// Unique among the routers of its node.
    pub name: String,
    /// What decides.
    pub route: Route,
    /// Results looked up here, if given; a missing one is a `KeyError`.
    pub path_map: Option<IndexMap<String, String>>,
    /// The possible destinations, for drawing and for checking at build time; `None`: any node.
    pub targets: Option<Vec<String>>,
}

impl fmt::Debug for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Branch").field("name", &self.name).field("targets", &self.targets).finish_non_exhaustive()
    }
}

/// Values the engine computes for a node instead of reading them from a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Managed {
    /// True in the last superstep the recursion limit allows.
    IsLastStep,
    /// Supersteps left, this one included.
    RemainingSteps,
}

/// What a node's task writes besides its output: run in this order after the body.
#[derive(Debug, Clone, Default)]
pub struct Writers {
    /// Static edges, by target; END is left out.
    pub edges: Vec<String>,
    /// Barrier channels this node reports to.
    pub joins: Vec<String>,
    /// Conditional edges, in their order.
    pub branches: Vec<Branch>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name in its graph.
    pub name: String,
    /// The keys its body sees: state keys and managed values.
    pub input: Vec<String>,
    /// Runs only when nothing else is triggered.
    pub defer: bool,
    /// The channels that start it: `branch:to:<name>` and the joins that end here. Empty for error handlers.
    pub triggers: Vec<String>,
    /// What follows its body.
    pub writers: Writers,
    /// The node that handles its failures, if any; handlers are nodes without triggers.
    pub error_handler: Option<String>,
    /// Is itself an error handler.
    pub is_handler: bool,
    /// Is a compiled graph, or calls one, that keeps checkpoints which state reads can find.
    pub is_subgraph: bool,
}

/// A graph, ready to execute. Built by [`crate::graph`]; [`GraphSpec::finish`] derives what follows from the rest.
#[derive(Debug, Clone)]
pub struct GraphSpec {
    /// The name it is registered under.
    pub name: String,
    /// Its author's version.
    pub version: String,
    /// A hash of everything that decides how a thread goes on: nodes, edges, channels, graphs inside.
    pub topology: String,
    /// In the order they are applied: each leads to the version the next one starts from, the last to this one.
    pub migrations: Vec<MigrationFrom>,
    /// State keys (input, output, private and node-input keys), then the engine's own channels.
    pub channels: IndexMap<String, ChannelKind>,
    /// Keys whose values the engine computes.
    pub managed: IndexMap<String, Managed>,
    /// Keys accepted as input.
    pub input: Vec<String>,
    /// Keys that the graph's result shows.
    pub output: Vec<String>,
    /// Keys that `values` streams and state reads show.
    pub stream: Vec<String>,
    /// The hidden node that copies the input and fires the entry edges.
    pub start: NodeSpec,
    /// In the order they were added.
    pub nodes: IndexMap<String, NodeSpec>,
    /// Runs stop before these nodes.
    pub interrupt_before: Breakpoints,
    /// Runs stop after these nodes.
    pub interrupt_after: Breakpoints,
    /// Which nodes each trigger channel starts; derived.
    pub trigger_to_nodes: IndexMap<String, Vec<String>>,
    /// Positions instead of names; derived.
    pub layout: Layout,
}

/// A channel of a graph: what never changes about it.
#[derive(Debug, Clone)]
pub struct ChannelDef {
    /// Its name.
    pub name: Arc<str>,
    /// How it combines what is written to it.
    pub kind: ChannelKind,
    /// A state key, which nodes may write; not one of the engine's own channels.
    pub is_state: bool,
    /// Accepted as input.
    pub is_input: bool,
}

impl ChannelDef {
    /// A state key.
    pub fn new(name: &str, kind: ChannelKind) -> ChannelDef {
        ChannelDef { name: name.into(), kind, is_state: true, is_input: false }
    }
}

/// Where a node's input comes from.
#[derive(Debug, Clone, Copy)]
pub enum Slot {
    /// The position of a channel.
    Channel(usize),
    /// The engine.
    Managed(Managed),
    /// Nowhere: the key names nothing.
    Missing,
}

/// What supersteps need of a node.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    /// Its name.
    pub name: Arc<str>,
    /// Its name, as it reports to joins.
    pub mark: Json,
    /// The channels that start it, in its own order.
    pub triggers: Vec<usize>,
    /// Their names, sorted: what its tasks say.
    pub trigger_names: Arc<[String]>,
    /// Where the versions it has seen of them begin in [`super::step::Progress`].
    pub seen: usize,
    /// Which of [`Layout::inputs`] it reads.
    pub input: usize,
    /// Names of the channels its static edges write.
    pub edges: Vec<Arc<str>>,
    /// Names of the barrier channels it reports to.
    pub joins: Vec<Arc<str>>,
    /// What its task ids are derived from besides checkpoint, namespace and step.
    pub seed: String,
}

/// Positions: a superstep looks names up where they come from outside, nowhere else.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// In the order of [`GraphSpec::channels`].
    pub channels: Vec<Arc<ChannelDef>>,
    /// The start node, then the nodes in their order.
    pub nodes: Vec<NodeLayout>,
    /// By channel: the nodes it starts.
    pub subscribers: Vec<Vec<usize>>,
    /// By node: its rank among all names.
    pub ranks: Vec<usize>,
    /// The different inputs of nodes: nodes that read the same share one.
    pub inputs: Vec<Vec<(String, Slot)>>,
    /// How many trigger versions nodes remember in all.
    pub seen: usize,
    /// Positions of [`GraphSpec::output`].
    pub output: Vec<usize>,
    /// Positions of [`GraphSpec::stream`].
    pub stream: Vec<usize>,
    /// The position of the channel that takes the input.
    pub start: usize,
    /// The position of the channel that takes Sends.
    pub tasks: usize,
    /// Some channel is never stored.
    pub has_untracked: bool,
    /// Some channel counts its deltas.
    pub has_delta: bool,
    /// What tasks of Sends and of failures say started them.
    pub push: Arc<[String]>,
}

impl Layout {
    fn of(spec: &GraphSpec) -> Layout {
        let at = |name: &str| spec.channels.get_index_of(name);
        let all_at = |names: &[String]| names.iter().filter_map(|name| at(name)).collect();
        let is_own = |name: &str| {
            name == special::START
                || name == special::TASKS
                || name.starts_with("branch:to:")
                || (name.starts_with("join:") && spec.trigger_to_nodes.contains_key(name))
        };
        let def = |(name, kind): (&String, &ChannelKind)| {
            let (is_state, is_input) = (!is_own(name), spec.input.contains(name));
            Arc::new(ChannelDef { name: name.as_str().into(), kind: kind.clone(), is_state, is_input })
        };
        let mut layout = Layout {
            channels: spec.channels.iter().map(def).collect(),
            output: all_at(&spec.output),
            stream: all_at(&spec.stream),
            start: at(special::START).unwrap_or_default(),
            tasks: at(special::TASKS).unwrap_or_default(),
            has_untracked: spec.channels.values().any(|kind| matches!(kind, ChannelKind::Untracked { .. })),
            has_delta: spec.channels.values().any(|kind| matches!(kind, ChannelKind::DeltaAppend { .. })),
            subscribers: vec![Vec::new(); spec.channels.len()],
            push: [special::PUSH.to_owned()].into(),
            ..Layout::default()
        };
        for node in std::iter::once(&spec.start).chain(spec.nodes.values()) {
            let node = layout.node(spec, node);
            for trigger in &node.triggers {
                layout.subscribers[*trigger].push(layout.nodes.len());
            }
            layout.seen += node.triggers.len();
            layout.nodes.push(node);
        }
        let mut by_name: Vec<usize> = (0..layout.nodes.len()).collect();
        by_name.sort_by(|a, b| layout.nodes[*a].name.cmp(&layout.nodes[*b].name));
        layout.ranks = vec![0; by_name.len()];
        for (rank, node) in by_name.into_iter().enumerate() {
            layout.ranks[node] = rank;
        }
        layout
    }

    fn node(&mut self, spec: &GraphSpec, node: &NodeSpec) -> NodeLayout {
        let at = |name: &str| spec.channels.get_index_of(name);
        // The start node's routers see the whole state.
        let keys = if node.name == special::START { &spec.stream } else { &node.input };
        let slot = |key: &String| match (spec.managed.get(key), at(key)) {
            (Some(managed), _) => Slot::Managed(*managed),
            (None, Some(channel)) => Slot::Channel(channel),
            (None, None) => Slot::Missing,
        };
        let is_same = |slots: &Vec<(String, Slot)>| slots.iter().map(|(key, _)| key).eq(keys);
        let input = self.inputs.iter().position(is_same).unwrap_or_else(|| {
            self.inputs.push(keys.iter().map(|key| (key.clone(), slot(key))).collect());
            self.inputs.len() - 1
        });
        let mut sorted = node.triggers.clone();
        sorted.sort();
        NodeLayout {
            name: node.name.as_str().into(),
            mark: Json::from(node.name.as_str()),
            triggers: node.triggers.iter().filter_map(|trigger| at(trigger)).collect(),
            seen: self.seen,
            input,
            edges: node.writers.edges.iter().map(|target| branch_to(target).into()).collect(),
            joins: node.writers.joins.iter().map(|join| join.as_str().into()).collect(),
            seed: format!("{}{}{}", node.name, special::PULL, sorted.concat()),
            trigger_names: sorted.into(),
        }
    }
}

/// The channel that starts a node.
pub fn branch_to(node: &str) -> String {
    format!("branch:to:{node}")
}

/// The channel of a barrier edge.
pub fn join_channel(sources: &[String], target: &str) -> String {
    format!("join:{}:{target}", sources.join("+"))
}

impl GraphSpec {
    /// The node or the hidden start node.
    pub fn node(&self, name: &str) -> Option<&NodeSpec> {
        if name == special::START { Some(&self.start) } else { self.nodes.get(name) }
    }

    /// The position of a node in [`Layout::nodes`].
    pub fn node_position(&self, name: &str) -> Option<usize> {
        if name == special::START { Some(0) } else { self.nodes.get_index_of(name).map(|index| index + 1) }
    }

    /// Adds the engine's own channels (`__start__`, `__pregel_tasks`, one trigger per node) and the trigger index. Call
    /// once, after state channels, nodes and join channels are in place.
    pub fn finish(mut self) -> GraphSpec {
        self.channels.insert(special::START.to_owned(), ChannelKind::Ephemeral { guard: true });
        self.channels.insert(special::TASKS.to_owned(), ChannelKind::Topic { accumulate: false });
        for node in self.nodes.values().filter(|node| !node.is_handler) {
            let kind = if node.defer { ChannelKind::AfterFinish } else { ChannelKind::Ephemeral { guard: false } };
            self.channels.insert(branch_to(&node.name), kind);
        }
        let mut index: IndexMap<String, Vec<String>> = IndexMap::new();
        for node in std::iter::once(&self.start).chain(self.nodes.values()) {
            for trigger in &node.triggers {
                index.entry(trigger.clone()).or_default().push(node.name.clone());
            }
        }
        self.trigger_to_nodes = index;
        self.layout = Layout::of(&self);
        self
    }
}
