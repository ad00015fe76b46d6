//! Random graphs: what their nodes do is a pure function of what they are given.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;
use session_store::engine::execution::{Execution, Job, TaskEnd};
use session_store::engine::step::TaskInput;
use session_store::engine::{Command, CommandUpdate, Destination, EngineError, Output, ids};
use session_store::graph::{
    ChannelKind, Context, END, Graph, Node, NodeBody, NodeError, NodeInput, START, StateGraph, reducers,
};
use session_store::model::{Fields, Interrupt, Json};

/// How often nodes with a way back take it: until the sum of all executions is this.
const ROUNDS: i64 = 9;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Last,
    Any,
    Append,
    Messages,
    Topic,
    Accumulate,
    Ephemeral,
    Untracked,
    Delta,
    Longest,
}

/// One node. Targets are counted onwards from the node, so that there are no loops but those through `back`.
#[derive(Debug, Clone)]
pub(crate) struct NodePlan {
    writes: Vec<usize>,
    edges: Vec<usize>,
    routes: Vec<usize>,
    sends: Vec<usize>,
    back: bool,
    defer: bool,
    asks: bool,
    /// In the first run of the client; the next one resumes.
    fails: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    kinds: Vec<Kind>,
    nodes: Vec<NodePlan>,
    entries: Vec<usize>,
    joins: Vec<(usize, usize, usize)>,
    before: Vec<usize>,
    after: Vec<usize>,
}

pub(crate) fn plans() -> impl Strategy<Value = Plan> {
    use Kind::{Accumulate, Any, Append, Delta, Ephemeral, Last, Longest, Messages, Topic, Untracked};
    let rarely = || prop::bool::weighted(0.15);
    let kind = prop::sample::select(vec![
        Last, Any, Append, Messages, Topic, Accumulate, Ephemeral, Untracked, Delta, Longest, Append, Messages,
    ]);
    let place = || 0..6_usize;
    let node = (
        vec(place(), 0..3),
        vec(place(), 0..3),
        prop_oneof![4 => Just(Vec::new()), 1 => vec(place(), 1..3)],
        prop_oneof![4 => Just(Vec::new()), 1 => vec(place(), 1..4)],
        (rarely(), rarely(), rarely(), rarely()),
    );
    let node = node.prop_map(|(writes, edges, routes, sends, (back, defer, asks, fails))| NodePlan {
        writes,
        edges,
        routes,
        sends,
        back,
        defer,
        asks,
        fails,
    });
    let stops = || prop_oneof![5 => Just(Vec::new()), 1 => vec(place(), 1..2)];
    let joins = vec((place(), place(), place()), 0..2);
    (vec(kind, 1..5), vec(node, 1..6), vec(place(), 1..3), joins, stops(), stops())
        .prop_map(|(kinds, nodes, entries, joins, before, after)| Plan { kinds, nodes, entries, joins, before, after })
}

fn key(channel: usize) -> String {
    format!("k{channel}")
}

fn name(node: usize) -> String {
    // Not in alphabetical order: nodes run in one order and are applied in another.
    format!("{}{node}", ["m", "c", "x", "a", "q", "f"][node % 6])
}

impl Plan {
    /// The `offset`-th node after `from`, if there is one.
    fn after_node(&self, from: usize, offset: usize) -> Option<usize> {
        Some(from + 1 + offset).filter(|node| *node < self.nodes.len())
    }

    fn target(&self, from: usize, offset: usize) -> String {
        self.after_node(from, offset).map_or_else(|| END.to_owned(), name)
    }

    /// Asks somebody, or stops somewhere.
    pub(crate) fn waits(&self) -> bool {
        !self.before.is_empty() || !self.after.is_empty() || self.nodes.iter().any(|node| node.asks)
    }

    pub(crate) fn graph(&self) -> Graph {
        self.named("random")
    }

    /// The graph under a name. Its bodies do what [`Plan::run`] does, but none fails.
    pub(crate) fn named(&self, name_of_graph: &str) -> Graph {
        let plan = Arc::new(self.clone());
        let mut graph = StateGraph::dynamic(name_of_graph).sum("n");
        for (channel, kind) in self.kinds.iter().enumerate() {
            let longest = |a: String, b: String| if (b.len(), &b) > (a.len(), &a) { b } else { a };
            let key = key(channel);
            graph = match kind {
                Kind::Last => graph.channel(key, ChannelKind::LastValue),
                Kind::Any => graph.channel(key, ChannelKind::Any),
                Kind::Append => graph.append(key),
                Kind::Messages => graph.messages(key),
                Kind::Topic => graph.channel(key, ChannelKind::Topic { accumulate: false }),
                Kind::Accumulate => graph.channel(key, ChannelKind::Topic { accumulate: true }),
                Kind::Ephemeral => graph.channel(key, ChannelKind::Ephemeral { guard: channel % 2 == 0 }),
                Kind::Untracked => graph.channel(key, ChannelKind::Untracked { guard: false }),
                Kind::Delta => graph.channel(key, ChannelKind::DeltaAppend { snapshot_frequency: 2 }),
                Kind::Longest => graph.reducer(key, reducers::combine(longest)),
            };
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let body = Node::body(Body { plan: Arc::clone(&plan), index });
            graph = graph.node_with(name(index), if node.defer { body.defer() } else { body });
        }
        for entry in &self.entries {
            graph = graph.edge(START, name(entry % self.nodes.len()));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for edge in &node.edges {
                graph = graph.edge(name(index), self.target(index, *edge));
            }
            if !node.routes.is_empty() {
                let targets: Vec<String> = node.routes.iter().map(|route| self.target(index, *route)).collect();
                graph = graph.branch(name(index), "route", session_store::graph::Any, move |state: &Json| {
                    let n = state.get("n").and_then(|n| n.as_i64()).unwrap_or_default();
                    targets[n.unsigned_abs() as usize % targets.len()].clone()
                });
            }
            if node.back {
                let entry = name(self.entries[0] % self.nodes.len());
                graph = graph.branch(name(index), "back", session_store::graph::Any, move |state: &Json| {
                    let n = state.get("n").and_then(|n| n.as_i64()).unwrap_or_default();
                    if n < ROUNDS { entry.clone() } else { END.to_owned() }
                });
            }
        }
        for (a, b, to) in &self.joins {
            let (a, b) = (a % self.nodes.len(), b % self.nodes.len());
            let to = to % self.nodes.len();
            if a != b && to > a.max(b) {
                graph = graph.join([name(a), name(b)], name(to));
            }
        }
        let names = |nodes: &[usize]| nodes.iter().map(|node| name(node % self.nodes.len())).collect::<Vec<_>>();
        let graph = graph.interrupt_before(names(&self.before)).interrupt_after(names(&self.after));
        graph.build().expect("every plan is a graph")
    }

    pub(crate) fn input(&self) -> Json {
        let first = self.value(0, "input", 1);
        Json::from_fields([("n", &Json::from(1_i64)), (key(0).as_str(), &first)])
    }

    /// Keys that are never stored: a crash may lose them, so nothing depends on them.
    pub(crate) fn is_unstored(&self, key: &str) -> bool {
        let channel = key.strip_prefix('k').and_then(|channel| channel.parse::<usize>().ok());
        channel.is_some_and(|channel| self.kinds[channel] == Kind::Untracked)
    }

    fn value(&self, channel: usize, node: &str, digest: u64) -> Json {
        let text = format!("{node}:{:x}", digest % 65_536);
        match self.kinds[channel] {
            Kind::Append | Kind::Delta => Json::from(json!([text])),
            Kind::Messages => Json::from(json!([{
                "content": text, "additional_kwargs": {}, "response_metadata": {}, "type": "human", "name": null,
                "id": format!("m{}", digest % 5),
            }])),
            _ => Json::from(text),
        }
    }

    /// Runs a task's node. `first_run`: in the first run of the client.
    pub(crate) fn run(&self, job: &Job, first_run: bool) -> TaskEnd {
        if job.task.is_hidden() {
            return TaskEnd::Output(Execution::start_output(&job.task));
        }
        let index = (0..self.nodes.len()).find(|node| name(*node) == *job.task.name).expect("a node of the plan");
        let node = &self.nodes[index];
        if node.asks && job.answers.is_empty() {
            let interrupt =
                Interrupt { id: ids::interrupt(&job.task.ns, 0), value: Json::from("what?"), response_schema: None };
            return TaskEnd::Interrupted(vec![interrupt]);
        }
        if node.fails && first_run {
            return TaskEnd::Failed(EngineError::value(format!("{} fails", name(index))));
        }
        let seen = match &job.task.input {
            TaskInput::Arg(arg) => arg.clone(),
            TaskInput::State(fields) => self.stored(fields),
        };
        TaskEnd::Output(self.output(index, job.answers.len(), &seen))
    }

    /// What a node does with what it sees.
    fn output(&self, index: usize, answers: usize, seen: &Json) -> Output {
        let node = &self.nodes[index];
        let mut hasher = DefaultHasher::new();
        (index, answers, seen.text()).hash(&mut hasher);
        let digest = hasher.finish();
        let mut update = Fields::from([("n".to_owned(), Json::from(1_i64))]);
        for channel in &node.writes {
            let channel = channel % self.kinds.len();
            update.insert(key(channel), self.value(channel, &name(index), digest));
        }
        if node.sends.is_empty() {
            return Output::Update(update);
        }
        let sends = node.sends.iter().filter_map(|send| self.after_node(index, *send)).enumerate();
        let goto =
            sends.map(|(at, node)| Destination::send(name(node), Json::from(format!("{digest}-{at}")))).collect();
        let update = Some(CommandUpdate::Fields(update));
        Output::Command(Command { update, goto, ..Command::default() })
    }

    fn stored(&self, fields: &Fields) -> Json {
        let stored = fields.iter().filter(|(key, _)| !self.is_unstored(key));
        Json::from_fields(stored.map(|(key, value)| (key.as_str(), value)))
    }
}

/// A node's body.
struct Body {
    plan: Arc<Plan>,
    index: usize,
}

#[async_trait]
impl NodeBody for Body {
    async fn run(&self, input: NodeInput, ctx: Context) -> Result<Output, NodeError> {
        let asks = self.plan.nodes[self.index].asks;
        if asks {
            ctx.interrupt("what?")?;
        }
        let seen = match &input {
            NodeInput::Arg(arg) => arg.clone(),
            NodeInput::State(fields) => self.plan.stored(fields),
        };
        Ok(self.plan.output(self.index, usize::from(asks), &seen))
    }
}
