//! A compiled graph: topology, node bodies, policies and schemas; and the seam through which the runtime runs a body.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::context::Context;
use crate::engine::{Command, EngineError, GraphSpec, Output};
use crate::model::{Durability, Fields, Json, TimeoutPolicy};

/// What a task hands to its node.
#[derive(Debug, Clone)]
pub enum NodeInput {
    /// The node's input keys that have a value.
    State(Arc<Fields>),
    /// A Send's argument, verbatim.
    Arg(Json),
}

impl NodeInput {
    /// The input as one JSON value, as `tasks` events show it.
    pub fn to_json(&self) -> Json {
        match self {
            NodeInput::State(fields) => Json::from(&**fields),
            NodeInput::Arg(arg) => arg.clone(),
        }
    }
}

/// How a node ends other than by an output.
#[derive(Debug, Clone)]
pub enum NodeError {
    /// It failed.
    Failed(EngineError),
    /// Control flow, not a failure: an [`Context::interrupt`] without an answer. Pass it on with `?`.
    Interrupted,
    /// Control flow: a Command for the graph that hosts this one, or one that has come out of a graph this node called
    /// (no longer marked [`Command::parent`]) and ends the node as its output. Pass it on with `?`.
    Parent(Box<Command>),
    /// The run was cancelled while the node waited. Pass it on with `?`.
    Cancelled,
}

impl NodeError {
    /// A failure with a class (`ValueError`, `RateLimited`, ..) and a message. Which classes are shown to clients:
    /// [`EngineError::PUBLIC`].
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> NodeError {
        NodeError::Failed(EngineError::new(class, message))
    }
}

/// The class of an answer that a service gives again to the same request.
const CLIENT_ERROR: &str = "HTTPClientError";

/// Any error becomes a failure of the class `NodeError`: masked on streams, whole in task errors. An [`EngineError`]
/// keeps its class. A `reqwest::Error` (0.13) about a status of 400 to 499 has the class `HTTPClientError`, which is not
/// tried again unless a policy says so.
impl<E: std::error::Error + 'static> From<E> for NodeError {
    fn from(error: E) -> Self {
        let any = &error as &dyn std::error::Error;
        if let Some(error) = any.downcast_ref::<EngineError>() {
            return NodeError::Failed(error.clone());
        }
        let status = any.downcast_ref::<reqwest::Error>().and_then(reqwest::Error::status);
        let is_refused = status.is_some_and(|status| status.is_client_error());
        NodeError::new(if is_refused { CLIENT_ERROR } else { "NodeError" }, error.to_string())
    }
}

/// A node's body. Implemented by the builder for async functions; the runtime calls it.
#[async_trait]
pub trait NodeBody: Send + Sync {
    /// Runs the node once. Dropped at an await when the run is stopped: what must be undone then belongs into guards.
    async fn run(&self, input: NodeInput, context: Context) -> Result<Output, NodeError>;
}

/// Which failures to retry, and how often. The defaults are the reference's.
#[derive(Clone)]
pub struct RetryPolicy {
    /// The wait before the second attempt.
    pub initial_interval: Duration,
    /// What each further wait is multiplied by.
    pub backoff_factor: f64,
    /// No wait is longer, jitter aside.
    pub max_interval: Duration,
    /// Attempts in all, the first included.
    pub max_attempts: u32,
    /// Adds up to a second to each wait.
    pub jitter: bool,
    /// Which failures; the default spares errors that would only repeat (`ValueError`, `TypeError`, ..).
    pub retry_on: Arc<dyn Fn(&EngineError) -> bool + Send + Sync>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            initial_interval: Duration::from_millis(500),
            backoff_factor: 2.0,
            max_interval: Duration::from_secs(128),
            max_attempts: 3,
            jitter: true,
            retry_on: Arc::new(default_retry_on),
        }
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("initial_interval", &self.initial_interval)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}

/// Errors of programming and of input repeat themselves; everything else may pass. The same classes as in LangGraph, those
/// derived from them included.
pub fn default_retry_on(error: &EngineError) -> bool {
    const FINAL: [&str; 28] = [
        "ValueError",
        "UnicodeDecodeError",
        "ValidationError",
        "TypeError",
        "ArithmeticError",
        "ZeroDivisionError",
        "OverflowError",
        "ImportError",
        "ModuleNotFoundError",
        "LookupError",
        "KeyError",
        "IndexError",
        "NameError",
        "SyntaxError",
        "RuntimeError",
        "NotImplementedError",
        "RecursionError",
        "GraphRecursionError",
        "ReferenceError",
        "StopIteration",
        "StopAsyncIteration",
        "OSError",
        "TimeoutError",
        "FileNotFoundError",
        "PermissionError",
        "GraphVersionError",
        "Panic",
        CLIENT_ERROR,
    ];
    !FINAL.contains(&error.class.as_str())
}

/// How a node's executions are limited and repeated.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// The first policy whose `retry_on` holds applies.
    pub retry: Vec<RetryPolicy>,
    /// How long an attempt may take; a Send may bring limits of its own.
    pub timeout: TimeoutPolicy,
    /// Reuse the writes of an earlier execution with the same input for this long (`None` inside: for ever).
    pub cache: Option<CachePolicy>,
}

/// What an output is found by besides its node, made of the node's input.
pub type KeyFunc = Arc<dyn Fn(&NodeInput) -> String + Send + Sync>;

/// Cached outputs: by the graph with its version, the node and its input. Entries outlive the process: give the graph a new
/// [`version`](super::StateGraph::version) when what a cached node does changes.
#[derive(Clone, Default)]
pub struct CachePolicy {
    /// How long an output is used; `None`: until there is no room.
    pub ttl: Option<Duration>,
    /// Which inputs count as the same; `None`: equal ones. See [`CachePolicy::key`].
    pub key_func: Option<KeyFunc>,
}

impl CachePolicy {
    /// Outputs that are used for this long.
    pub fn lasting(ttl: Duration) -> CachePolicy {
        CachePolicy { ttl: Some(ttl), key_func: None }
    }

    /// Inputs with the same key count as the same. The function must depend on nothing but the input; when it panics the
    /// node runs uncached.
    pub fn key(mut self, key: impl Fn(&NodeInput) -> String + Send + Sync + 'static) -> CachePolicy {
        self.key_func = Some(Arc::new(key));
        self
    }
}

impl fmt::Debug for CachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_key = self.key_func.is_some();
        f.debug_struct("CachePolicy").field("ttl", &self.ttl).field("has_key", &has_key).finish_non_exhaustive()
    }
}

/// Where a subgraph keeps its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpointing {
    /// In a namespace of its own per call: fresh state each time, resumable within the call.
    #[default]
    Inherit,
    /// In one stable namespace: state accumulates across calls and runs.
    Own,
    /// None: restarts from its beginning when resumed.
    Off,
}

/// The JSON Schemas of a graph, as `/assistants/{id}/schemas` shows them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Schemas {
    /// All keys of the state but the private ones.
    #[serde(rename = "state_schema")]
    pub state: Value,
    /// What a run accepts as input.
    #[serde(rename = "input_schema")]
    pub input: Value,
    /// What a run answers.
    #[serde(rename = "output_schema")]
    pub output: Value,
    /// What `config.configurable` may hold.
    #[serde(rename = "config_schema")]
    pub config: Value,
    /// What the run's context may hold.
    #[serde(rename = "context_schema")]
    pub context: Value,
}

/// A compiled graph. Cheap to clone.
#[derive(Clone)]
pub struct Graph {
    pub(crate) inner: Arc<GraphInner>,
}

pub(crate) struct GraphInner {
    pub(crate) spec: Arc<GraphSpec>,
    pub(crate) bodies: HashMap<String, Arc<dyn NodeBody>>,
    pub(crate) policies: HashMap<String, Policies>,
    /// Graphs that are nodes, by node name.
    pub(crate) subgraphs: HashMap<String, Graph>,
    /// Graphs that a node's body calls, by node name; declared so that state reads can find them.
    pub(crate) children: HashMap<String, Graph>,
    pub(crate) checkpointing: Checkpointing,
    pub(crate) durability: Option<Durability>,
    pub(crate) step_timeout: Option<Duration>,
    pub(crate) schemas: Schemas,
    pub(crate) description: Option<String>,
}

impl Graph {
    /// The name it is registered and addressed under.
    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    /// Its topology, as the engine executes it.
    pub fn spec(&self) -> &Arc<GraphSpec> {
        &self.inner.spec
    }

    /// The JSON Schemas of what it takes and gives.
    pub fn schemas(&self) -> &Schemas {
        &self.inner.schemas
    }

    /// What it is for, in its author's words.
    pub fn description(&self) -> Option<&str> {
        self.inner.description.as_deref()
    }

    /// The version its checkpoints remember.
    pub fn version(&self) -> &str {
        &self.inner.spec.version
    }

    /// The hash of its nodes, edges and channels that its checkpoints remember: 16 hexadecimal digits.
    pub fn topology(&self) -> &str {
        &self.inner.spec.topology
    }

    /// When its supersteps are committed, if it says so itself.
    pub fn durability(&self) -> Option<Durability> {
        self.inner.durability
    }

    /// The graph that a node is or calls.
    pub fn child(&self, node: &str) -> Option<&Graph> {
        self.inner.subgraphs.get(node).or_else(|| self.inner.children.get(node))
    }

    /// The graphs inside, by namespace (`node`, `node|node`), in the order of the nodes; with `deep`, those inside them.
    pub fn descendants(&self, deep: bool) -> Vec<(String, &Graph)> {
        let mut found = Vec::new();
        for node in self.inner.spec.nodes.keys() {
            let Some(child) = self.child(node) else { continue };
            found.push((node.clone(), child));
            if deep {
                found.extend(child.descendants(true).into_iter().map(|(ns, graph)| (format!("{node}|{ns}"), graph)));
            }
        }
        found
    }

    pub(crate) fn checkpointing(&self) -> Checkpointing {
        self.inner.checkpointing
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("name", &self.name()).finish_non_exhaustive()
    }
}
