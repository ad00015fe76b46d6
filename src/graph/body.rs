//! [`Node`]: an async function with its options, ready to be added to a graph.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::context::Context;
use super::node::{CachePolicy, Graph, NodeBody, NodeError, NodeInput, Policies, RetryPolicy};
use super::output::IntoOutput;
use super::schema::Keys;
use crate::engine::Output;
use crate::model::{RefreshOn, TimeoutPolicy};

/// A node before it is added to a graph: what it does, what it reads, how it is limited and repeated.
///
/// [`StateGraph::node`](super::StateGraph::node) is the short form for a function without options.
///
/// ```
/// use std::time::Duration;
/// use session_store::graph::{Context, Node, NodeError, RetryPolicy, Update};
/// # use schemars::JsonSchema;
/// # #[derive(serde::Deserialize, JsonSchema)] struct Question { question: String }
///
/// async fn ask(state: Question, _ctx: Context) -> Result<Update, NodeError> {
///     Ok(Update::new().set("answer", state.question.len()))
/// }
///
/// let node = Node::new(ask).retry(RetryPolicy::default()).timeout(Duration::from_secs(30));
/// ```
#[derive(Clone)]
pub struct Node {
    pub(super) work: Work,
    pub(super) reads: Reads,
    pub(super) defer: bool,
    pub(super) policies: Policies,
    pub(super) handler: Option<Arc<dyn NodeBody>>,
    pub(super) calls: Option<Graph>,
}

#[derive(Clone)]
pub(super) enum Work {
    Body(Arc<dyn NodeBody>),
    Graph(Graph),
}

/// The state keys a node is handed.
#[derive(Debug, Clone)]
pub(super) enum Reads {
    /// All that are not private.
    All,
    Keys(Vec<String>),
}

impl Node {
    /// A node that reads the state, or those of its keys that `I` names.
    ///
    /// `I` is the state type, a smaller type with some of its fields, [`Json`](crate::model::Json) for the whole state
    /// undecoded, or `()` for a node that reads nothing.
    ///
    /// An `async |state, ctx| ..` closure works here as long as it captures nothing; to capture, return an async block:
    /// `move |state, ctx| { let client = client.clone(); async move { .. } }`, or use [`Node::with`].
    pub fn new<I, F, Fut, O>(function: F) -> Node
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
        O: IntoOutput + 'static,
    {
        let keys = Keys::of::<I>();
        let reads = match &keys {
            Keys::Nothing => Reads::Keys(Vec::new()),
            Keys::Named(keys) => Reads::Keys(keys.clone()),
            Keys::All => Reads::All,
        };
        Node::of(Work::Body(Arc::new(Function { function, keys, input: PhantomData })), reads)
    }

    /// [`Node::new`] with something of the author's that every execution gets a clone of: a client, settings.
    pub fn with<R, I, F, Fut, O>(resource: R, function: F) -> Node
    where
        R: Clone + Send + Sync + 'static,
        I: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(R, I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
        O: IntoOutput + 'static,
    {
        Node::new(move |input: I, context| function(resource.clone(), input, context))
    }

    /// A node that only Sends start: `I` is decoded from the Send's argument and need not be part of the state.
    pub fn task<I, F, Fut, O>(function: F) -> Node
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
        O: IntoOutput + 'static,
    {
        Node { reads: Reads::Keys(Vec::new()), ..Node::new(function) }
    }

    /// A graph as a node: it gets the state keys it has in common with this graph and writes back what it outputs of
    /// them. A failing or interrupted child fails or interrupts the node.
    pub fn subgraph(graph: Graph) -> Node {
        Node::of(Work::Graph(graph), Reads::All)
    }

    /// A body of the author's own making, which reads all of the state unless [`Node::input_keys`] says otherwise.
    pub fn body(body: impl NodeBody + 'static) -> Node {
        Node::of(Work::Body(Arc::new(body)), Reads::All)
    }

    fn of(work: Work, reads: Reads) -> Node {
        Node { work, reads, defer: false, policies: Policies::default(), handler: None, calls: None }
    }

    /// Hands the node these state keys and no others; private ones may be among them.
    pub fn input_keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Node {
        self.reads = Reads::Keys(keys.into_iter().map(Into::into).collect());
        self
    }

    /// Lets the node wait until nothing else is left to do.
    pub fn defer(mut self) -> Node {
        self.defer = true;
        self
    }

    /// Repeats failed executions. Of several policies the first whose `retry_on` holds applies.
    pub fn retry(mut self, policy: RetryPolicy) -> Node {
        self.policies.retry.push(policy);
        self
    }

    /// Ends an execution that takes longer; counted for each attempt. A Send may bring a limit of its own:
    /// [`Packet::timeout`](super::Packet::timeout).
    pub fn timeout(mut self, limit: Duration) -> Node {
        self.policies.timeout.run_timeout = Some(limit);
        self
    }

    /// Ends an execution that shows no sign of life for longer: stream writes, [`Context::heartbeat`], and what a graph
    /// inside does are such signs.
    pub fn idle_timeout(mut self, limit: Duration) -> Node {
        self.policies.timeout.idle_timeout = Some(limit);
        self
    }

    /// What restarts the idle timeout: every sign of life, unless this says that only heartbeats do.
    pub fn refresh_on(mut self, signs: RefreshOn) -> Node {
        self.policies.timeout.refresh_on = signs;
        self
    }

    /// Reuses what an earlier execution with the same input returned, whichever process executed it, on any thread.
    pub fn cache(mut self, policy: CachePolicy) -> Node {
        self.policies.cache = Some(policy);
        self
    }

    /// Handles the node's failure after the last attempt: the handler gets the failed node's input, finds the failure in
    /// [`Context::error`], and what it returns replaces what the node would have returned. The node's edges do not fire;
    /// the handler goes on with [`Update::goto`](super::Update::goto).
    pub fn error_handler<I, F, Fut, O>(mut self, handler: F) -> Node
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
        O: IntoOutput + 'static,
    {
        self.handler = Some(function(handler));
        self
    }

    /// [`Node::error_handler`] with a body of the author's own making.
    pub fn error_body(mut self, handler: impl NodeBody + 'static) -> Node {
        self.handler = Some(Arc::new(handler));
        self
    }

    /// Declares that the node's function runs this graph with [`Context::call`], so that reads of the state find it.
    pub fn calls(mut self, graph: &Graph) -> Node {
        self.calls = Some(graph.clone());
        self
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("reads", &self.reads).field("defer", &self.defer).finish_non_exhaustive()
    }
}

/// What holds for every node that does not say otherwise itself; see
/// [`StateGraph::node_defaults`](super::StateGraph::node_defaults).
#[derive(Clone, Default)]
pub struct NodeDefaults {
    pub(super) policies: Policies,
    pub(super) handler: Option<Arc<dyn NodeBody>>,
}

impl NodeDefaults {
    /// No policies.
    pub fn new() -> NodeDefaults {
        NodeDefaults::default()
    }

    /// See [`Node::retry`].
    pub fn retry(mut self, policy: RetryPolicy) -> NodeDefaults {
        self.policies.retry.push(policy);
        self
    }

    /// See [`Node::timeout`].
    pub fn timeout(mut self, limit: Duration) -> NodeDefaults {
        self.policies.timeout.run_timeout = Some(limit);
        self
    }

    /// See [`Node::idle_timeout`].
    pub fn idle_timeout(mut self, limit: Duration) -> NodeDefaults {
        self.policies.timeout.idle_timeout = Some(limit);
        self
    }

    /// See [`Node::refresh_on`].
    pub fn refresh_on(mut self, signs: RefreshOn) -> NodeDefaults {
        self.policies.timeout.refresh_on = signs;
        self
    }

    /// See [`Node::cache`].
    pub fn cache(mut self, policy: CachePolicy) -> NodeDefaults {
        self.policies.cache = Some(policy);
        self
    }

    /// See [`Node::error_handler`].
    pub fn error_handler<I, F, Fut, O>(mut self, handler: F) -> NodeDefaults
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(I, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
        O: IntoOutput + 'static,
    {
        self.handler = Some(function(handler));
        self
    }

    /// A node's own policies where it has them, these elsewhere.
    pub(super) fn apply(&self, own: &Policies) -> Policies {
        Policies {
            retry: if own.retry.is_empty() { self.policies.retry.clone() } else { own.retry.clone() },
            timeout: TimeoutPolicy {
                run_timeout: own.timeout.run_timeout.or(self.policies.timeout.run_timeout),
                idle_timeout: own.timeout.idle_timeout.or(self.policies.timeout.idle_timeout),
                refresh_on: match (own.timeout.refresh_on, own.timeout.idle_timeout) {
                    (RefreshOn::Auto, None) => self.policies.timeout.refresh_on,
                    (signs, _) => signs,
                },
            },
            cache: own.cache.clone().or_else(|| self.policies.cache.clone()),
        }
    }
}

impl fmt::Debug for NodeDefaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeDefaults").field("policies", &self.policies).finish_non_exhaustive()
    }
}

fn function<I, F, Fut, O>(function: F) -> Arc<dyn NodeBody>
where
    I: DeserializeOwned + JsonSchema + Send + 'static,
    F: Fn(I, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, NodeError>> + Send + 'static,
    O: IntoOutput + 'static,
{
    Arc::new(Function { function, keys: Keys::of::<I>(), input: PhantomData })
}

/// An async function as a node's body.
struct Function<F, I> {
    function: F,
    keys: Keys,
    input: PhantomData<fn(I)>,
}

#[async_trait]
impl<F, I, Fut, O> NodeBody for Function<F, I>
where
    I: DeserializeOwned + Send + 'static,
    F: Fn(I, Context) -> Fut + Send + Sync,
    Fut: Future<Output = Result<O, NodeError>> + Send,
    O: IntoOutput,
{
    async fn run(&self, input: NodeInput, context: Context) -> Result<Output, NodeError> {
        let future = match self.keys.decode::<I>(&input) {
            Ok(input) => (self.function)(input, context),
            Err(error) => {
                let node = &context.info().node;
                let message = format!("the input of node `{node}` does not fit its type: {error}");
                return Err(NodeError::new("ValidationError", message));
            }
        };
        future.await?.into_output()
    }
}
