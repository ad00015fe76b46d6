//! [`StateGraph`]: declares a graph's state, nodes and edges, and builds it.

mod build;
mod error;
mod topology;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use error::{BuildError, BuildErrors};

use super::body::{Node, NodeDefaults};
use super::context::Context;
use super::destinations::{Destinations, Targets};
use super::node::{Checkpointing, Graph, NodeError};
use super::output::IntoOutput;
use super::schema::{self, Keys};
use crate::engine::channel::reducers;
use crate::engine::migrate::{FIRST_VERSION, Migration, MigrationFrom};
use crate::engine::{Branch, ChannelKind, EngineError, Managed, Reduce, RouterContext};
use crate::model::{Breakpoints, Durability, Fields, Json};

/// A graph in the making, typed by its state.
///
/// The fields of `S` are the state's keys, each a channel that keeps its last value unless declared otherwise. Nodes are
/// async functions from the state (or a part of it) to an [`Update`](super::Update). Every method takes and returns the
/// builder; nothing fails before [`StateGraph::build`], which reports all errors at once.
///
/// ```
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
/// use session_store::graph::{BuildErrors, END, Graph, START, StateGraph};
/// use session_store::update;
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// struct Counter {
///     counter: i64,
/// }
///
/// fn graph() -> Result<Graph, BuildErrors> {
///     StateGraph::<Counter>::new("counter")
///         .node("increment", async |state: Counter, _ctx| Ok(update!(Counter { counter: state.counter + 1 })))
///         .edge(START, "increment")
///         .branch("increment", "check_done", ["increment", END], |state: &Counter| {
///             if state.counter >= 3 { END } else { "increment" }
///         })
///         .build()
/// }
/// # graph().expect("builds");
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StateGraph<S = Json> {
    name: String,
    version: String,
    description: Option<String>,
    /// The schema of the state type; `None`: keys are declared at run time.
    state: Option<Value>,
    keys: IndexMap<String, Key>,
    input: Option<Selection>,
    output: Option<Selection>,
    config: Value,
    context: Value,
    nodes: Vec<(String, Node)>,
    edges: Vec<(String, String)>,
    joins: Vec<(Vec<String>, String)>,
    branches: Vec<(String, Branch)>,
    /// What each router reads, by its node and name; checked when built, as keys may be declared later.
    router_reads: Vec<(String, String, Vec<String>)>,
    interrupt_before: Breakpoints,
    interrupt_after: Breakpoints,
    checkpointing: Checkpointing,
    durability: Option<Durability>,
    step_timeout: Option<Duration>,
    migrations: Vec<MigrationFrom>,
    defaults: NodeDefaults,
    errors: Vec<BuildError>,
    typed: PhantomData<fn() -> S>,
}

/// A declared key of the state.
#[derive(Debug, Clone)]
struct Key {
    slot: Slot,
    private: bool,
}

#[derive(Debug, Clone)]
enum Slot {
    Channel(ChannelKind),
    Managed(Managed),
}

/// The keys of an input or output, with their schema if a type gave them.
#[derive(Debug, Clone)]
struct Selection {
    keys: Vec<String>,
    schema: Option<Value>,
}

impl<S> StateGraph<S>
where
    S: Serialize + DeserializeOwned + JsonSchema,
{
    /// A graph whose state keys are the fields of `S`.
    pub fn new(name: impl Into<String>) -> StateGraph<S> {
        let mut graph = StateGraph::empty(name.into());
        let schema = schema::of::<S>();
        if !schema::is_object(&schema) {
            let hint = "; for keys declared at run time use `StateGraph::dynamic`";
            graph.errors.push(BuildError::NotAnObject { role: "state", name: S::schema_name().into_owned(), hint });
        }
        if let Keys::Named(keys) = Keys::of_schema(&schema) {
            let last_value = Key { slot: Slot::Channel(ChannelKind::LastValue), private: false };
            graph.keys = keys.into_iter().map(|key| (key, last_value.clone())).collect();
        }
        graph.state = Some(schema);
        graph
    }
}

impl StateGraph<Json> {
    /// A graph whose state keys are declared at run time, with [`StateGraph::channel`] and its relatives. Its nodes take
    /// the state as [`Json`], or as any type that names declared keys.
    pub fn dynamic(name: impl Into<String>) -> StateGraph<Json> {
        StateGraph::empty(name.into())
    }
}

impl<S> StateGraph<S> {
    fn empty(name: String) -> StateGraph<S> {
        StateGraph {
            name,
            version: FIRST_VERSION.to_owned(),
            description: None,
            state: None,
            keys: IndexMap::new(),
            input: None,
            output: None,
            config: Value::Null,
            context: Value::Null,
            nodes: Vec::new(),
            edges: Vec::new(),
            joins: Vec::new(),
            branches: Vec::new(),
            router_reads: Vec::new(),
            interrupt_before: Breakpoints::default(),
            interrupt_after: Breakpoints::default(),
            checkpointing: Checkpointing::default(),
            durability: None,
            step_timeout: None,
            migrations: Vec::new(),
            defaults: NodeDefaults::default(),
            errors: Vec::new(),
            typed: PhantomData,
        }
    }

    // --- what the graph is ------------------------------------------------------------------------------------------

    /// The graph's version, which every checkpoint it writes remembers. `"1"` unless said.
    ///
    /// Give it another one when threads that wait at the old graph could not go on with the new one as they are, and say
    /// with [`StateGraph::migrate`] what becomes of them. `session-store graphs --check` lists the threads of a database
    /// that a build could not resume.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Says how the stored state of a thread that an older version wrote becomes one that this graph can go on with.
    ///
    /// Migrations are declared oldest first, and form a chain: each leads to the version that the next one starts from, the
    /// last to the version of this graph. A thread is migrated when it is run or edited, never for reading: the result
    /// is a checkpoint of its own (`source: "update"`, with `migrated_from` in its metadata), and history before it
    /// stays as it was. If the migration fails, so does the run or the edit, with the class `GraphVersionError`, and
    /// nothing is changed. What a migration may do, with an example: [`Migration`].
    ///
    /// A version without a migration is run as it is, which is right as long as the nodes it waits for still exist. If
    /// they do not, a run fails with `GraphVersionError` before anything is executed.
    pub fn migrate(
        mut self,
        from: impl Into<String>,
        migration: impl Fn(&mut Migration) -> Result<(), NodeError> + Send + Sync + 'static,
    ) -> Self {
        let apply = move |old: &mut Migration| match migration(old) {
            Ok(()) => Ok(()),
            Err(NodeError::Failed(error)) => Err(error),
            Err(other) => Err(EngineError::new("RuntimeError", format!("a migration cannot {other:?}"))),
        };
        self.migrations.push(MigrationFrom { from: from.into(), apply: Arc::new(apply) });
        self
    }

    /// When the supersteps of this graph's runs are committed, unless the run or its assistant says otherwise; the
    /// server's setting if nobody does.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Ends a superstep of this graph that takes longer, and with it the run (or the node that the graph is in), with
    /// `TimeoutError`. What tasks had finished by then is kept: null input repeats only the others. Attempts and error
    /// handlers count towards it, unlike [`super::Node::timeout`].
    pub fn step_timeout(mut self, limit: Duration) -> Self {
        self.step_timeout = Some(limit);
        self
    }

    /// What the graph does, for people.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// The type of the run's static context, for `/schemas`; nodes read it with [`Context::context`].
    pub fn context<C: JsonSchema>(mut self) -> Self {
        self.context = schema::of::<C>();
        self
    }

    /// The type of `config.configurable`, for `/schemas`.
    pub fn config<C: JsonSchema>(mut self) -> Self {
        self.config = schema::of::<C>();
        self
    }

    /// Where this graph keeps its checkpoints when it runs inside another one.
    pub fn checkpointing(mut self, checkpointing: Checkpointing) -> Self {
        self.checkpointing = checkpointing;
        self
    }

    // --- the state --------------------------------------------------------------------------------------------------

    /// Says how a key keeps its value. With a state type the key must be one of its fields.
    pub fn channel(self, key: impl Into<String>, kind: ChannelKind) -> Self {
        self.declare(key.into(), Slot::Channel(kind), "channel")
    }

    /// Folds writes of a key into its value: `.reducer("messages", reducers::messages())`, or an author's function,
    /// `.reducer("best", |best: Json, new: Json| ..)`; typed ones are made with `reducers::fold` and `combine`.
    pub fn reducer(self, key: impl Into<String>, reducer: impl Reduce + 'static) -> Self {
        self.declare(key.into(), Slot::Channel(ChannelKind::Reducer(Arc::new(reducer))), "reducer")
    }

    /// A list: writes are lists whose items are added at the end.
    pub fn append(self, key: impl Into<String>) -> Self {
        self.reducer(key, reducers::append())
    }

    /// A sum: writes are numbers to add.
    pub fn sum(self, key: impl Into<String>) -> Self {
        self.reducer(key, reducers::add())
    }

    /// A list of messages, kept apart by their ids.
    pub fn messages(self, key: impl Into<String>) -> Self {
        self.reducer(key, reducers::messages())
    }

    /// A key that is not part of the state type: only nodes whose input names it see it; every node may write it.
    pub fn private(mut self, key: impl Into<String>, kind: ChannelKind) -> Self {
        let key = key.into();
        let private = Key { slot: Slot::Channel(kind), private: true };
        if self.keys.insert(key.clone(), private).is_some() {
            self.errors.push(BuildError::DuplicateKey { key });
        }
        self
    }

    /// A value the engine computes for nodes that read it: supersteps left, or whether this is the last one.
    pub fn managed(self, key: impl Into<String>, managed: Managed) -> Self {
        self.declare(key.into(), Slot::Managed(managed), "managed value")
    }

    fn declare(mut self, key: String, slot: Slot, what: &str) -> Self {
        let typed = self.state.is_some();
        match self.keys.get_mut(&key) {
            Some(known) => known.slot = slot,
            None if typed => self.errors.push(self.unknown_key(what.to_owned(), key)),
            None => {
                self.keys.insert(key, Key { slot, private: false });
            }
        }
        self
    }

    fn unknown_key(&self, what: String, key: String) -> BuildError {
        let known: Vec<String> = self.keys.keys().map(|key| format!("`{key}`")).collect();
        let known = if known.is_empty() { "no keys".to_owned() } else { known.join(", ") };
        BuildError::UnknownKey { what, key, known }
    }

    /// The keys a run's input may write are the fields of `I`; others in an input are dropped. Fields that the state
    /// type does not have become keys of the state.
    pub fn input<I: JsonSchema>(mut self) -> Self {
        self.input = self.selection::<I>("input");
        self
    }

    /// [`StateGraph::input`] by name.
    pub fn input_keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.input = Some(Selection { keys: keys.into_iter().map(Into::into).collect(), schema: None });
        self
    }

    /// The keys a run's result shows are the fields of `O`; all that are not private, unless said.
    pub fn output<O: JsonSchema>(mut self) -> Self {
        self.output = self.selection::<O>("output");
        self
    }

    /// [`StateGraph::output`] by name.
    pub fn output_keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.output = Some(Selection { keys: keys.into_iter().map(Into::into).collect(), schema: None });
        self
    }

    fn selection<T: JsonSchema>(&mut self, role: &'static str) -> Option<Selection> {
        let schema = schema::of::<T>();
        let Keys::Named(keys) = Keys::of_schema(&schema) else {
            self.errors.push(BuildError::NotAnObject { role, name: T::schema_name().into_owned(), hint: "" });
            return None;
        };
        for key in &keys {
            let last_value = || Key { slot: Slot::Channel(ChannelKind::LastValue), private: true };
            self.keys.entry(key.clone()).or_insert_with(last_value);
        }
        Some(Selection { keys, schema: Some(schema) })
    }

    // --- nodes ------------------------------------------------------------------------------------------------------

    /// Adds an async function as a node; see [`Node::new`] for what it may read and how closures capture.
    pub fn node<I, F, Fut, O>(self, name: impl Into<String>, function: F) -> Self
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
        O: IntoOutput + 'static,
    {
        self.node_with(name, Node::new(function))
    }

    /// Adds an async function that only Sends start; see [`Node::task`].
    pub fn task<I, F, Fut, O>(self, name: impl Into<String>, function: F) -> Self
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
        O: IntoOutput + 'static,
    {
        self.node_with(name, Node::task(function))
    }

    /// Adds a graph as a node; see [`Node::subgraph`].
    pub fn subgraph(self, name: impl Into<String>, graph: Graph) -> Self {
        self.node_with(name, Node::subgraph(graph))
    }

    /// Adds a node with options: `.node_with("ask", Node::new(ask).defer())`.
    pub fn node_with(mut self, name: impl Into<String>, node: Node) -> Self {
        self.nodes.push((name.into(), node));
        self
    }

    /// Policies for every node that has none of its own, and an error handler for every node without one.
    pub fn node_defaults(mut self, defaults: NodeDefaults) -> Self {
        self.defaults = defaults;
        self
    }

    // --- edges ------------------------------------------------------------------------------------------------------

    /// After `from` comes `to`. [`START`](super::START) and [`END`](super::END) are where runs begin and paths end.
    pub fn edge(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.edges.push((from.into(), to.into()));
        self
    }

    /// After all of `from` comes `to`, once.
    pub fn join<N: Into<String>>(mut self, from: impl IntoIterator<Item = N>, to: impl Into<String>) -> Self {
        self.joins.push((from.into_iter().map(Into::into).collect(), to.into()));
        self
    }

    /// After `from` comes what `router` decides from the state as `from` left it.
    ///
    /// `targets` are the nodes it may name, `[("yes", "approve"), ("no", END)]` if its answers stand for nodes, or
    /// [`Any`](super::Any). `I` is the state type or a smaller one, or [`Json`] for what `from` itself reads; what the
    /// router may return: [`Destinations`].
    /// Routers must be pure functions: they also run when a client updates the state. One that must know more than the
    /// state: [`StateGraph::branch_with`].
    pub fn branch<I, R>(
        self,
        from: impl Into<String>,
        name: impl Into<String>,
        targets: impl Into<Targets>,
        router: impl Fn(&I) -> R + Send + Sync + 'static,
    ) -> Self
    where
        I: DeserializeOwned + JsonSchema + 'static,
        R: Into<Destinations>,
    {
        self.branch_with(from, name, targets, move |state: &I, _: &RouterContext| router(state))
    }

    /// [`StateGraph::branch`], with a router that also sees the thread, the run's config and its static context.
    ///
    /// ```
    /// # use session_store::graph::{END, RouterContext, START, StateGraph, update, Context, NodeError};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, schemars::JsonSchema)]
    /// # struct State {}
    /// # async fn draft(_: State, _: Context) -> Result<(), NodeError> { Ok(()) }
    /// # async fn review(_: State, _: Context) -> Result<(), NodeError> { Ok(()) }
    /// let graph = StateGraph::<State>::new("letters")
    ///     .node("draft", draft)
    ///     .node("review", review)
    ///     .edge(START, "draft")
    ///     .branch_with("draft", "by plan", ["review", END], |_: &State, ctx: &RouterContext| {
    ///         let is_reviewed = ctx.context.get("plan").is_some_and(|plan| plan.as_str() == Some("reviewed"));
    ///         if is_reviewed { "review" } else { END }
    ///     })
    ///     .build();
    /// # assert!(graph.is_ok());
    /// ```
    pub fn branch_with<I, R>(
        mut self,
        from: impl Into<String>,
        name: impl Into<String>,
        targets: impl Into<Targets>,
        router: impl Fn(&I, &RouterContext) -> R + Send + Sync + 'static,
    ) -> Self
    where
        I: DeserializeOwned + JsonSchema + 'static,
        R: Into<Destinations>,
    {
        let (from, name, Targets(path_map)) = (from.into(), name.into(), targets.into());
        let keys = Keys::of::<I>();
        if let Keys::Named(keys) = &keys {
            self.router_reads.push((from.clone(), name.clone(), keys.clone()));
        }
        let label = name.clone();
        let route = move |fields: &Fields, context: &RouterContext| {
            let state: I = keys.decode_fields(fields).map_err(|error| {
                let message = format!("the state does not fit the type of router `{label}`: {error}");
                EngineError::new("ValidationError", message)
            })?;
            router(&state, context).into().0
        };
        let targets = path_map.as_ref().map(|map| map.values().cloned().collect());
        self.branches.push((from, Branch { name, route: Arc::new(route), path_map, targets }));
        self
    }

    // --- breakpoints ------------------------------------------------------------------------------------------------

    /// Stops runs before these nodes, `["*"]` for all; null input continues them.
    pub fn interrupt_before<N: Into<String>>(mut self, nodes: impl IntoIterator<Item = N>) -> Self {
        self.interrupt_before = breakpoints(nodes);
        self
    }

    /// Stops runs after these nodes, `["*"]` for all.
    pub fn interrupt_after<N: Into<String>>(mut self, nodes: impl IntoIterator<Item = N>) -> Self {
        self.interrupt_after = breakpoints(nodes);
        self
    }
}

fn breakpoints<N: Into<String>>(nodes: impl IntoIterator<Item = N>) -> Breakpoints {
    let nodes: Vec<String> = nodes.into_iter().map(Into::into).collect();
    if nodes.iter().any(|node| node == "*") { Breakpoints::All } else { Breakpoints::Nodes(nodes) }
}
