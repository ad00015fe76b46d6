//! From the declarations to a graph: every check first, then the topology.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::{BuildError, BuildErrors, Key, Selection, Slot, StateGraph, topology};
use crate::engine::spec::{Layout, branch_to, join_channel};
use crate::engine::{ChannelKind, GraphSpec, Managed, NodeSpec, Writers};
use crate::graph::body::{Node, Reads, Work};
use crate::graph::node::{Graph, GraphInner, Schemas};
use crate::graph::output::{END, START};
use crate::graph::schema;
use crate::model::{Breakpoints, special};

const HANDLER_PREFIX: &str = "__error_handler__";
const DEFAULT_HANDLER: &str = "__default_error_handler__";

impl<S> StateGraph<S> {
    /// Checks everything and builds the graph.
    ///
    /// # Errors
    /// All of what is wrong, each with the node, edge or key it concerns.
    pub fn build(mut self) -> Result<Graph, BuildErrors> {
        self.check_keys();
        self.check_nodes();
        self.check_edges();
        self.check_branches();
        self.check_interrupts();
        self.check_migrations();
        if self.errors.is_empty() {
            Ok(self.compile())
        } else {
            Err(BuildErrors { graph: self.name, errors: self.errors })
        }
    }

    // --- checks -----------------------------------------------------------------------------------------------------

    fn check_keys(&mut self) {
        let reserved = |key: &&String| {
            let engine = [special::START, special::END, special::INPUT, special::TASKS, special::INTERRUPT];
            let more = [special::RESUME, special::ERROR, special::NO_WRITES, special::PULL, special::PUSH];
            engine.iter().chain(&more).any(|name| key == name)
                || key.starts_with("branch:to:")
                || key.starts_with("join:")
        };
        let reserved: Vec<String> = self.keys.keys().filter(reserved).cloned().collect();
        self.errors.extend(reserved.into_iter().map(|key| BuildError::ReservedKey { key }));

        let selected = [("input", &self.input), ("output", &self.output)].into_iter();
        let selected =
            selected.filter_map(|(what, selection)| Some((what.to_owned(), selection.as_ref()?.keys.clone())));
        let nodes = self.nodes.iter().filter_map(|(name, node)| match &node.reads {
            Reads::Keys(keys) => Some((format!("node `{name}` reads"), keys.clone())),
            Reads::All => None,
        });
        let routers = self.router_reads.iter().map(|(node, router, keys)| {
            let what = format!("router `{router}` of node `{node}` reads");
            (what, keys.clone())
        });
        let reads: Vec<(String, Vec<String>)> = selected.chain(nodes).chain(routers).collect();
        for (what, keys) in reads {
            for key in keys.into_iter().filter(|key| !self.keys.contains_key(key)).collect::<Vec<_>>() {
                let error = self.unknown_key(what.clone(), key);
                self.errors.push(error);
            }
        }
    }

    fn check_nodes(&mut self) {
        let mut seen = HashSet::new();
        for (name, _) in &self.nodes {
            let node = name.clone();
            if name.is_empty() {
                self.errors.push(BuildError::EmptyNodeName);
            } else if name == START || name == END || name == DEFAULT_HANDLER || name.starts_with(HANDLER_PREFIX) {
                self.errors.push(BuildError::ReservedNode { node });
            } else if let Some(character) = name.chars().find(|c| matches!(c, '|' | ':')) {
                self.errors.push(BuildError::ReservedCharacter { node, character });
            }
            if !seen.insert(name) {
                self.errors.push(BuildError::DuplicateNode { node: name.clone() });
            }
        }
    }

    fn has_node(&self, name: &str) -> bool {
        self.nodes.iter().any(|(node, _)| node == name)
    }

    fn check_edges(&mut self) {
        let mut errors = Vec::new();
        for (from, to) in &self.edges {
            let edge = format!("edge `{from}` -> `{to}`");
            self.check_ends(&edge, from, to, true, &mut errors);
        }
        for (sources, to) in &self.joins {
            let edge = format!("join `{}` -> `{to}`", sources.join("+"));
            if sources.is_empty() {
                errors.push(BuildError::EmptyJoin { edge: edge.clone() });
            }
            for from in sources {
                self.check_ends(&edge, from, to, false, &mut errors);
            }
        }
        let from_start = self.edges.iter().map(|(from, _)| from).chain(self.branches.iter().map(|(from, _)| from));
        if !from_start.into_iter().any(|from| from == START) {
            errors.push(BuildError::NoEntrypoint);
        }
        for error in errors {
            if !self.errors.contains(&error) {
                self.errors.push(error);
            }
        }
    }

    fn check_ends(&self, edge: &str, from: &str, to: &str, start_allowed: bool, errors: &mut Vec<BuildError>) {
        let edge = edge.to_owned();
        if from == END {
            errors.push(BuildError::EndAsSource { edge: edge.clone() });
        } else if !(self.has_node(from) || start_allowed && from == START) {
            errors.push(BuildError::UnknownSource { edge: edge.clone(), node: from.to_owned() });
        }
        if to == START {
            errors.push(BuildError::StartAsTarget { edge });
        } else if to != END && !self.has_node(to) {
            errors.push(BuildError::UnknownTarget { edge, node: to.to_owned() });
        }
    }

    fn check_branches(&mut self) {
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for (node, branch) in &self.branches {
            let (node, router) = (node.clone(), branch.name.clone());
            let edge = format!("router `{router}` of node `{node}`");
            if node == END {
                errors.push(BuildError::EndAsSource { edge });
            } else if node != START && !self.has_node(&node) {
                errors.push(BuildError::UnknownSource { edge, node: node.clone() });
            }
            if !seen.insert((node.clone(), router.clone())) {
                errors.push(BuildError::DuplicateRouter { node: node.clone(), router: router.clone() });
            }
            for target in branch.targets.iter().flatten().filter(|target| *target != END && !self.has_node(target)) {
                let target = target.clone();
                errors.push(BuildError::UnknownBranchTarget { node: node.clone(), router: router.clone(), target });
            }
        }
        self.errors.extend(errors);
    }

    fn check_interrupts(&mut self) {
        for (when, breakpoints) in [("before", self.interrupt_before.clone()), ("after", self.interrupt_after.clone())]
        {
            let Breakpoints::Nodes(nodes) = breakpoints else { continue };
            for node in nodes.into_iter().filter(|node| !self.has_node(node)).collect::<Vec<_>>() {
                self.errors.push(BuildError::UnknownInterruptNode { when, node });
            }
        }
    }

    fn check_migrations(&mut self) {
        let mut seen = HashSet::new();
        if self.version.is_empty() {
            self.errors.push(BuildError::EmptyVersion);
        }
        for migration in &self.migrations {
            let from = migration.from.clone();
            if from == self.version {
                self.errors.push(BuildError::MigrationFromCurrent { version: from });
            } else if !seen.insert(from.clone()) {
                self.errors.push(BuildError::DuplicateMigration { version: from });
            }
        }
    }

    // --- topology ---------------------------------------------------------------------------------------------------

    fn compile(self) -> Graph {
        let schemas = self.schemas();
        let is_public_channel = |(_, key): &(&String, &Key)| !key.private && matches!(key.slot, Slot::Channel(_));
        let public: Vec<String> = self.keys.iter().filter(is_public_channel).map(|(key, _)| key.clone()).collect();
        let seen: Vec<String> = self.keys.iter().filter(|(_, key)| !key.private).map(|(key, _)| key.clone()).collect();
        let writable = |keys: &[String]| -> Vec<String> {
            let is_channel = |key: &&String| matches!(self.keys[*key].slot, Slot::Channel(_));
            keys.iter().filter(is_channel).cloned().collect()
        };
        let selected = |selection: &Option<Selection>| match selection {
            Some(selection) => writable(&selection.keys),
            None => public.clone(),
        };
        let (input, output) = (selected(&self.input), selected(&self.output));

        let mut channels: IndexMap<String, ChannelKind> = IndexMap::new();
        let mut managed: IndexMap<String, Managed> = IndexMap::new();
        for (name, key) in &self.keys {
            match &key.slot {
                Slot::Channel(kind) => {
                    channels.insert(name.clone(), kind.clone());
                }
                Slot::Managed(value) => {
                    managed.insert(name.clone(), *value);
                }
            }
        }
        let stream = channels.keys().cloned().collect();
        for (sources, target) in self.joins.iter().filter(|(_, target)| target != END) {
            let deferred = self.nodes.iter().any(|(name, node)| name == target && node.defer);
            let barrier = ChannelKind::Barrier { names: sources.clone(), deferred };
            channels.insert(join_channel(sources, target), barrier);
        }

        let start = NodeSpec {
            name: START.to_owned(),
            input: input.clone(),
            defer: false,
            triggers: vec![START.to_owned()],
            writers: self.writers(START),
            error_handler: None,
            is_handler: false,
            is_subgraph: false,
        };
        let mut inner = Parts::default();
        for (name, node) in &self.nodes {
            let mut input = match &node.reads {
                Reads::All => seen.clone(),
                Reads::Keys(keys) => keys.clone(),
            };
            // Routers are shown what their node is shown, so a node is shown what its routers read, too.
            for (_, _, keys) in self.router_reads.iter().filter(|(from, ..)| from == name) {
                input.extend(keys.iter().filter(|key| !input.contains(key)).cloned().collect::<Vec<_>>());
            }
            inner.add(&self, name, node, input);
        }
        if inner.uses_default_handler
            && let Some(handler) = &self.defaults.handler
        {
            inner.bodies.insert(DEFAULT_HANDLER.to_owned(), Arc::clone(handler));
            inner.nodes.insert(DEFAULT_HANDLER.to_owned(), handler_spec(DEFAULT_HANDLER.to_owned(), seen));
        }
        let Parts { nodes, bodies, policies, subgraphs, children, .. } = inner;
        let spec = GraphSpec {
            name: self.name,
            version: self.version,
            topology: String::new(),
            migrations: self.migrations,
            channels,
            managed,
            input,
            output,
            stream,
            start,
            nodes,
            interrupt_before: self.interrupt_before,
            interrupt_after: self.interrupt_after,
            trigger_to_nodes: IndexMap::new(),
            layout: Layout::default(),
        };
        let mut spec = spec.finish();
        spec.topology = topology::hash(&spec, [&subgraphs, &children]);
        let inner = GraphInner {
            spec: Arc::new(spec),
            bodies,
            policies,
            subgraphs,
            children,
            checkpointing: self.checkpointing,
            durability: self.durability,
            step_timeout: self.step_timeout,
            schemas,
            description: self.description,
        };
        Graph { inner: Arc::new(inner) }
    }

    fn writers(&self, node: &str) -> Writers {
        let mut edges: Vec<String> = Vec::new();
        for (_, to) in self.edges.iter().filter(|(from, to)| from == node && to != END) {
            if !edges.contains(to) {
                edges.push(to.clone());
            }
        }
        let joins = self.joins.iter().filter(|(sources, to)| to != END && sources.iter().any(|source| source == node));
        let mut channels: Vec<String> = Vec::new();
        for channel in joins.map(|(sources, to)| join_channel(sources, to)) {
            if !channels.contains(&channel) {
                channels.push(channel);
            }
        }
        let branches =
            self.branches.iter().filter(|(from, _)| from == node).map(|(_, branch)| branch.clone()).collect();
        Writers { edges, joins: channels, branches }
    }

    fn triggers(&self, node: &str) -> Vec<String> {
        let joins = self.joins.iter().filter(|(_, to)| to == node).map(|(sources, to)| join_channel(sources, to));
        let mut triggers = vec![branch_to(node)];
        for join in joins {
            if !triggers.contains(&join) {
                triggers.push(join);
            }
        }
        triggers
    }

    fn schemas(&self) -> Schemas {
        let is_public_channel = |(_, key): &(&String, &Key)| !key.private && matches!(key.slot, Slot::Channel(_));
        let public = || self.keys.iter().filter(is_public_channel).map(|(key, _)| key.as_str());
        let is_public = |key: &str| public().any(|public| public == key);
        let state = match &self.state {
            Some(schema) => schema::restricted(schema, is_public),
            None => schema::of_keys(format!("{}_state", self.name), public()),
        };
        let selected = |selection: &Option<Selection>, role: &str| match selection {
            None => state.clone(),
            Some(Selection { schema: Some(schema), .. }) => schema.clone(),
            Some(Selection { keys, schema: None }) => match &self.state {
                Some(schema) => schema::restricted(schema, |key| keys.iter().any(|chosen| chosen == key)),
                None => schema::of_keys(format!("{}_{role}", self.name), keys.iter().map(String::as_str)),
            },
        };
        let (input, output) = (selected(&self.input, "input"), selected(&self.output, "output"));
        Schemas { state, input, output, config: self.config.clone(), context: self.context.clone() }
    }
}

/// The per-node parts of a graph while they are gathered.
#[derive(Default)]
struct Parts {
    nodes: IndexMap<String, NodeSpec>,
    bodies: HashMap<String, Arc<dyn crate::graph::NodeBody>>,
    policies: HashMap<String, crate::graph::Policies>,
    subgraphs: HashMap<String, Graph>,
    children: HashMap<String, Graph>,
    uses_default_handler: bool,
}

impl Parts {
    fn add<S>(&mut self, graph: &StateGraph<S>, name: &str, node: &Node, input: Vec<String>) {
        let name = name.to_owned();
        let is_subgraph = match &node.work {
            Work::Body(body) => {
                self.bodies.insert(name.clone(), Arc::clone(body));
                node.calls.as_ref().is_some_and(keeps_state)
            }
            Work::Graph(child) => {
                self.subgraphs.insert(name.clone(), child.clone());
                keeps_state(child)
            }
        };
        if let Some(child) = &node.calls {
            self.children.insert(name.clone(), child.clone());
        }
        self.policies.insert(name.clone(), graph.defaults.apply(&node.policies));

        let handler = node.handler.as_ref().map(|body| (format!("{HANDLER_PREFIX}{name}"), Arc::clone(body)));
        let error_handler = match &handler {
            Some((handler, _)) => Some(handler.clone()),
            None if graph.defaults.handler.is_some() => {
                self.uses_default_handler = true;
                Some(DEFAULT_HANDLER.to_owned())
            }
            None => None,
        };
        let spec = NodeSpec {
            name: name.clone(),
            input: input.clone(),
            defer: node.defer,
            triggers: graph.triggers(&name),
            writers: graph.writers(&name),
            error_handler,
            is_handler: false,
            is_subgraph,
        };
        self.nodes.insert(name, spec);
        if let Some((handler, body)) = handler {
            self.bodies.insert(handler.clone(), body);
            self.nodes.insert(handler.clone(), handler_spec(handler, input));
        }
    }
}

/// Whether state reads can find anything of a graph inside a node.
fn keeps_state(child: &Graph) -> bool {
    child.checkpointing() != crate::graph::Checkpointing::Off
}

/// A node that only a failure starts.
fn handler_spec(name: String, input: Vec<String>) -> NodeSpec {
    NodeSpec {
        name,
        input,
        defer: false,
        triggers: Vec::new(),
        writers: Writers::default(),
        error_handler: None,
        is_handler: true,
        is_subgraph: false,
    }
}
