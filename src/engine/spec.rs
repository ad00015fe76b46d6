//! The topology of a graph: channels, nodes, edges. What a builder produces and the engine executes. Holds no node
//! bodies: running them is somebody else's job.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;

use super::channel::ChannelKind;
use super::command::Destination;
use super::error::EngineError;
use crate::model::{Breakpoints, Fields, special};

/// A router: a pure function from the state its node sees (own writes applied) to destinations. `None` is the invalid
/// answer "no decision at all"; an empty list ends the path.
pub type Route = Arc<dyn Fn(&Fields) -> Result<Option<Vec<Destination>>, EngineError> + Send + Sync>;

/// A conditional edge.
#[derive(Clone)]
pub struct Branch {
    /// Unique among the routers of its node.
    pub name: String,
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
    pub branches: Vec<Branch>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    pub name: String,
    /// The keys its body sees: state keys and managed values.
    pub input: Vec<String>,
    /// Runs only when nothing else is triggered.
    pub defer: bool,
    /// The channels that start it: `branch:to:<name>` and the joins that end here. Empty for error handlers.
    pub triggers: Vec<String>,
    pub writers: Writers,
    /// The node that handles its failures, if any; handlers are nodes without triggers.
    pub error_handler: Option<String>,
    /// Is itself an error handler.
    pub is_handler: bool,
    /// Is a compiled graph, or calls one that state reads can find.
    pub is_subgraph: bool,
}

/// A graph, ready to execute. Built by [`crate::graph`]; [`GraphSpec::finish`] derives what follows from the rest.
#[derive(Debug, Clone)]
pub struct GraphSpec {
    pub name: String,
    pub version: String,
    /// State keys (input, output, private and node-input keys), then the engine's own channels.
    pub channels: IndexMap<String, ChannelKind>,
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
    pub interrupt_before: Breakpoints,
    pub interrupt_after: Breakpoints,
    /// Which nodes each trigger channel starts; derived.
    pub trigger_to_nodes: IndexMap<String, Vec<String>>,
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
        self
    }
}
