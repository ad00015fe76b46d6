//! What a node's body can ask of its surroundings while it runs.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::items::{ItemQuery, Items, PutOptions};
use super::node::{Graph, NodeError};
use super::question::Question;
use crate::engine::EngineError;
use crate::model::{CheckpointId, Cost, EffectEntry, FoundItem, Item, Json, JsonError, ModelUsage, RunId, Timestamp};

/// Facts about one execution of a node.
#[derive(Debug, Clone)]
pub struct ExecutionInfo {
    /// The name of the thread the run is on.
    pub thread_id: String,
    /// The run that executes the node.
    pub run_id: RunId,
    /// The root graph of the run.
    pub graph_id: String,
    /// The node's name in its own graph.
    pub node: String,
    /// Derived from the checkpoint and the node: the same for every execution of the task.
    pub task_id: String,
    /// `node:task_id`, below the namespaces of the graphs around it.
    pub checkpoint_ns: String,
    /// The checkpoint of the node's graph that the task was planned from.
    pub checkpoint_id: CheckpointId,
    /// The superstep of the node's graph, as in the metadata of the checkpoint that follows.
    pub step: i64,
    /// 1 for the first execution of the task in this run, then 2, ..
    pub attempt: u32,
    /// When the first execution of the task in this run began.
    pub first_attempt_at: Timestamp,
    /// The run's config: `{configurable, metadata, tags, recursion_limit}`.
    pub config: Json,
    /// The run's static context.
    pub context: Json,
}

/// What the runtime offers to a running node. Implemented by the runtime; authors use [`Context`].
#[async_trait]
pub trait Host: Send + Sync {
    /// Sends a `custom` event, at once.
    fn custom(&self, value: Json);
    /// Sends a chunk of a message that is being generated; the chunks of one message share an id.
    fn message(&self, message: Json, complete: bool);
    /// Restarts the idle timeout.
    fn heartbeat(&self);
    /// Asks for the answer to the `index`-th question of this execution.
    fn answer(&self, index: usize, question: &Question) -> Result<Json, NodeError>;
    /// Asks the run to stop after this superstep.
    fn drain(&self, reason: &str);
    /// Runs a graph inside the node. `index` counts the calls of this execution.
    async fn call(&self, index: usize, graph: &Graph, input: Json) -> Result<Json, NodeError>;
    /// Waits until the checkpoint that the task hangs on is durable. Returns the task's idempotency key for a call.
    async fn barrier(&self, key: &str) -> Result<String, NodeError>;
    /// What is known of one of the task's external calls.
    async fn find_effect(&self, key: &str) -> Result<Option<EffectEntry>, NodeError>;
    /// Writes what is known of a call; with `durable`, returns once it is, and with it the checkpoint of the task.
    async fn put_effect(&self, entry: EffectEntry, durable: bool) -> Result<(), NodeError>;
    /// Counts what a model cost; without a cost, at the configured price.
    fn usage(&self, model: &str, usage: ModelUsage, cost: Option<Cost>);
    /// See [`Items::put_with`].
    async fn put_item(
        &self,
        namespace: &[String],
        key: &str,
        value: Json,
        options: PutOptions,
    ) -> Result<(), NodeError>;
    /// See [`Items::get`].
    async fn get_item(&self, namespace: &[String], key: &str) -> Result<Option<Item>, NodeError>;
    /// See [`Items::delete`].
    async fn delete_item(&self, namespace: &[String], key: &str) -> Result<(), NodeError>;
    /// See [`Items::query`].
    async fn search_items(&self, prefix: &[String], query: ItemQuery) -> Result<Vec<FoundItem>, NodeError>;
}

/// What one report of usage may hold at most: sums of millions of reports fit.
const MAX_TOKENS: i64 = 1_000_000_000_000;

/// A node's view of its surroundings. Cheap to clone; valid while the node runs.
#[derive(Clone)]
pub struct Context {
    info: Arc<ExecutionInfo>,
    pub(super) host: Arc<dyn Host>,
    cancelled: CancellationToken,
    /// Questions asked so far in this execution.
    pub(super) questions: Arc<AtomicUsize>,
    /// Keys of effects used so far in this execution.
    pub(super) effects: Arc<Mutex<HashSet<String>>>,
    calls: Arc<AtomicUsize>,
    error: Option<Arc<HandledError>>,
}

/// The failure an error handler was called for.
#[derive(Debug, Clone)]
pub struct HandledError {
    /// The node that failed.
    pub node: String,
    /// Its last failure, after all retries.
    pub error: EngineError,
}

impl Context {
    pub(crate) fn new(info: ExecutionInfo, host: Arc<dyn Host>, cancelled: CancellationToken) -> Context {
        Context {
            info: Arc::new(info),
            host,
            cancelled,
            questions: Arc::default(),
            effects: Arc::default(),
            calls: Arc::default(),
            error: None,
        }
    }

    pub(crate) fn with_error(mut self, error: HandledError) -> Context {
        self.error = Some(Arc::new(error));
        self
    }

    /// Facts about this execution: ids, step, attempt, config, context.
    pub fn info(&self) -> &ExecutionInfo {
        &self.info
    }

    /// A key that is the same for every execution of this task, and that no other task has, on whatever thread: pass it to
    /// external services that deduplicate. For a task with several calls there is [`Context::idempotency_key_of`].
    ///
    /// A commit barrier in every durability mode: it waits until the checkpoint that the task hangs on is durable, so no
    /// crash can make the task another one. Where only an id is needed, `info().task_id` costs nothing.
    ///
    /// # Errors
    /// [`NodeError::Cancelled`] when the run is no longer this process's to execute. Pass it on with `?`.
    pub async fn idempotency_key(&self) -> Result<String, NodeError> {
        self.host.barrier("").await
    }

    /// [`Context::idempotency_key`] of one of several calls: `key` tells them apart, as in [`Context::effect`].
    ///
    /// # Errors
    /// As there.
    pub async fn idempotency_key_of(&self, key: &str) -> Result<String, NodeError> {
        self.host.barrier(key).await
    }

    /// Counts what a model was asked for, in the totals of the superstep, the run and the thread.
    ///
    /// Without a cost it is the price of the model in `[models]` of the configuration, or nothing. Attempts that fail
    /// count too: the money was spent. Messages that a node returns with `usage_metadata` are counted without this call:
    /// do not report them twice.
    ///
    /// A model's name is cut at 255 bytes, numbers of tokens at a trillion.
    pub fn usage(&self, model: &str, input_tokens: u64, output_tokens: u64, cost: Option<Cost>) {
        let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX).min(MAX_TOKENS);
        let (input_tokens, output_tokens) = (tokens(input_tokens), tokens(output_tokens));
        let total_tokens = input_tokens + output_tokens;
        self.host.usage(model, ModelUsage { input_tokens, output_tokens, total_tokens, cost: Cost::default() }, cost);
    }

    /// In an error handler: the failure it handles.
    pub fn error(&self) -> Option<&HandledError> {
        self.error.as_deref()
    }

    /// The run's static context, decoded.
    pub fn context<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        self.info.context.decode()
    }

    /// Sends a `custom` stream event, at once.
    pub fn write(&self, value: impl Serialize) -> Result<(), JsonError> {
        self.host.custom(Json::of(&value)?);
        Ok(())
    }

    /// Streams a message while it is generated; see [`MessageStream`].
    pub fn messages(&self) -> MessageStream<'_> {
        MessageStream { context: self }
    }

    /// Asks a human and returns the answer. Without an answer the run stops here; when it is resumed the node runs again
    /// from its first line and this call returns. Questions are matched to answers by their order.
    ///
    /// # Errors
    /// [`NodeError::Interrupted`], to be passed on with `?`.
    pub fn interrupt(&self, question: impl Serialize) -> Result<Json, NodeError> {
        self.interrupt_with(&Question::new(question)?)
    }

    /// [`Context::interrupt`], with a JSON Schema that the answer must satisfy.
    ///
    /// # Errors
    /// Those of [`Context::interrupt_with`]; `ValueError` if the schema is none.
    pub fn interrupt_with_schema(&self, question: impl Serialize, schema: Json) -> Result<Json, NodeError> {
        self.interrupt_with(&Question::new(question)?.requiring(schema)?)
    }

    /// Asks for an answer of a type: clients see the type's JSON Schema, and only an answer that satisfies it is taken.
    ///
    /// ```
    /// # use session_store::graph::{Context, NodeError};
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct Decision {
    ///     approved: bool,
    /// }
    ///
    /// async fn approve((): (), ctx: Context) -> Result<(), NodeError> {
    ///     let decision: Decision = ctx.ask("Publish this draft?")?;
    ///     # drop(decision.approved);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of [`Context::interrupt_with`].
    pub fn ask<T: JsonSchema + DeserializeOwned>(&self, question: impl Serialize) -> Result<T, NodeError> {
        let answer = self.interrupt_with(&Question::new(question)?.requiring_type::<T>()?)?;
        Ok(answer.decode()?)
    }

    /// Asks a question that says what its answer must look like.
    ///
    /// # Errors
    /// [`NodeError::Interrupted`] without an answer; a failure of the class `ValidationError` when the answer is not what
    /// was asked for: it is not taken, and the question stays open (section 5.2). Both are to be passed on with `?`.
    pub fn interrupt_with(&self, question: &Question) -> Result<Json, NodeError> {
        let index = self.questions.fetch_add(1, Ordering::Relaxed);
        self.host.answer(index, question)
    }

    /// Runs another graph inside this node, with the node's thread and checkpoints.
    ///
    /// # Errors
    /// The graph's failure; or control flow, to be passed on with `?`: a question of the graph, a stop of the run, or a
    /// Command the graph gave for the graph around it, which becomes this node's output.
    pub async fn call(&self, graph: &Graph, input: Json) -> Result<Json, NodeError> {
        let index = self.calls.fetch_add(1, Ordering::Relaxed);
        self.host.call(index, graph, input).await
    }

    /// Restarts the node's idle timeout.
    pub fn heartbeat(&self) {
        self.host.heartbeat();
    }

    /// Asks the run to stop after this superstep; null input continues it.
    pub fn request_drain(&self, reason: &str) {
        self.host.drain(reason);
    }

    /// True once the run is being cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Resolves when the run is being cancelled. Nodes are dropped at their next await anyway; this is for cleaning up.
    pub fn cancelled(&self) -> impl Future<Output = ()> + '_ {
        self.cancelled.cancelled()
    }

    /// The long-term memory shared by all threads.
    pub fn items(&self) -> Items<'_> {
        Items { host: &*self.host }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Feeds a message to the `messages` streams while it is generated.
#[derive(Debug)]
pub struct MessageStream<'a> {
    context: &'a Context,
}

impl MessageStream<'_> {
    /// One chunk: an `AIMessageChunk` with the id all chunks of the message share.
    pub fn chunk(&self, chunk: &impl Serialize) -> Result<(), JsonError> {
        self.context.host.message(Json::of(chunk)?, false);
        Ok(())
    }

    /// A whole message.
    pub fn complete(&self, message: &impl Serialize) -> Result<(), JsonError> {
        self.context.host.message(Json::of(message)?, true);
        Ok(())
    }
}
