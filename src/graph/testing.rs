//! For authors' tests: runs a node without a server.
//!
//! ```
//! use session_store::graph::testing::Probe;
//! use session_store::graph::{Context, NodeError};
//!
//! async fn greet((): (), ctx: Context) -> Result<(), NodeError> {
//!     ctx.write("hello")?;
//!     Ok(())
//! }
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
//! # runtime.block_on(async {
//! let probe = Probe::new();
//! greet((), probe.context("greet")).await.expect("greets");
//! assert_eq!(probe.custom(), ["hello"]);
//! # });
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::context::{Context, ExecutionInfo, HandledError, Host};
use super::items::{ItemQuery, PutOptions};
use super::node::{Graph, NodeError, NodeInput};
use super::question::Question;
use crate::engine::{EngineError, Output};
use crate::model::{Cost, EffectEntry, FoundItem, Item, Json, ModelUsage, RunId, Timestamp, UsageTotals};

/// Surroundings for a node that remember what it did.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    custom: Vec<Json>,
    messages: Vec<Json>,
    questions: Vec<Json>,
    answers: Vec<Json>,
    drained: Option<String>,
    items: BTreeMap<(Vec<String>, String), Json>,
    effects: BTreeMap<String, EffectEntry>,
    usage: UsageTotals,
}

impl Probe {
    /// Nothing seen, nothing answered.
    pub fn new() -> Probe {
        Probe::default()
    }

    /// Answers the next question nodes ask, in order.
    ///
    /// # Panics
    /// If the answer cannot be encoded.
    #[must_use]
    pub fn answering(self, answer: impl Serialize) -> Probe {
        let answer = Json::of(&answer).expect("an answer that can be encoded");
        self.seen().answers.push(answer);
        self
    }

    /// A context for one execution of `node`.
    pub fn context(&self, node: &str) -> Context {
        self.context_with(node, |_| {})
    }

    /// A context with other facts: config, run context, attempt, ..
    pub fn context_with(&self, node: &str, change: impl FnOnce(&mut ExecutionInfo)) -> Context {
        let mut info = ExecutionInfo {
            thread_id: "thread".to_owned(),
            run_id: RunId::nil(),
            graph_id: "graph".to_owned(),
            node: node.to_owned(),
            task_id: Uuid::nil().to_string(),
            checkpoint_ns: format!("{node}:{}", Uuid::nil()),
            checkpoint_id: Uuid::nil().to_string(),
            step: 1,
            attempt: 1,
            first_attempt_at: Timestamp::default(),
            config: Json::from(json!({"configurable": {"thread_id": "thread"}})),
            context: Json::object(),
        };
        change(&mut info);
        Context::new(info, Arc::new(self.clone()), CancellationToken::new())
    }

    /// A context for an error handler.
    pub fn context_after(&self, node: &str, error: EngineError) -> Context {
        self.context(node).with_error(HandledError { node: node.to_owned(), error })
    }

    /// Runs a node of a built graph with this state, or with a Send's argument.
    ///
    /// # Errors
    /// The node's.
    ///
    /// # Panics
    /// If the graph has no such node with a function.
    pub async fn run(&self, graph: &Graph, node: &str, input: NodeInput) -> Result<Output, NodeError> {
        let body = graph.inner.bodies.get(node).expect("a node with a function");
        body.run(input, self.context(node)).await
    }

    /// The `custom` events.
    pub fn custom(&self) -> Vec<Value> {
        self.seen().custom.iter().map(|json| json.value().clone()).collect()
    }

    /// The streamed messages and chunks.
    pub fn messages(&self) -> Vec<Value> {
        self.seen().messages.iter().map(|json| json.value().clone()).collect()
    }

    /// The questions asked so far.
    pub fn questions(&self) -> Vec<Value> {
        self.seen().questions.iter().map(|json| json.value().clone()).collect()
    }

    /// Why a node asked the run to stop, if one did.
    pub fn drained(&self) -> Option<String> {
        self.seen().drained.clone()
    }

    /// The effects so far, by key: a further execution with the same probe finds them, as after a crash.
    pub fn effects(&self) -> Vec<EffectEntry> {
        self.seen().effects.values().cloned().collect()
    }

    /// What nodes reported with [`Context::usage`].
    pub fn usage(&self) -> UsageTotals {
        self.seen().usage.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Host for Probe {
    fn custom(&self, value: Json) {
        self.seen().custom.push(value);
    }

    fn message(&self, message: Json, _complete: bool) {
        self.seen().messages.push(message);
    }

    fn heartbeat(&self) {}

    fn answer(&self, index: usize, question: &Question) -> Result<Json, NodeError> {
        let mut seen = self.seen();
        seen.questions.push(question.value().clone());
        let answer = seen.answers.get(index).cloned().ok_or(NodeError::Interrupted)?;
        question.check(&answer)?;
        Ok(answer)
    }

    fn drain(&self, reason: &str) {
        self.seen().drained = Some(reason.to_owned());
    }

    async fn call(&self, _index: usize, graph: &Graph, _input: Json) -> Result<Json, NodeError> {
        Err(NodeError::new("NotImplementedError", format!("a probe does not run graphs (`{}`)", graph.name())))
    }

    async fn barrier(&self, key: &str) -> Result<String, NodeError> {
        Ok(format!("probe-{key}"))
    }

    async fn find_effect(&self, key: &str) -> Result<Option<EffectEntry>, NodeError> {
        Ok(self.seen().effects.get(key).cloned())
    }

    async fn put_effect(&self, entry: EffectEntry, _durable: bool) -> Result<(), NodeError> {
        self.seen().effects.insert(entry.key.clone(), entry);
        Ok(())
    }

    fn usage(&self, model: &str, usage: ModelUsage, cost: Option<Cost>) {
        self.seen().usage.add(model, ModelUsage { cost: cost.unwrap_or_default(), ..usage });
    }

    async fn put_item(
        &self,
        namespace: &[String],
        key: &str,
        value: Json,
        _options: PutOptions,
    ) -> Result<(), NodeError> {
        self.seen().items.insert((namespace.to_vec(), key.to_owned()), value);
        Ok(())
    }

    async fn get_item(&self, namespace: &[String], key: &str) -> Result<Option<Item>, NodeError> {
        let place = (namespace.to_vec(), key.to_owned());
        Ok(self.seen().items.get(&place).map(|value| item(&place, value)))
    }

    async fn delete_item(&self, namespace: &[String], key: &str) -> Result<(), NodeError> {
        self.seen().items.remove(&(namespace.to_vec(), key.to_owned()));
        Ok(())
    }

    /// By prefix and equal members of the value only; nothing is embedded.
    async fn search_items(&self, prefix: &[String], query: ItemQuery) -> Result<Vec<FoundItem>, NodeError> {
        let wanted = query.filter.and_then(|filter| filter.fields()).unwrap_or_default();
        let seen = self.seen();
        let found = seen.items.iter().filter(|((namespace, _), value)| {
            namespace.starts_with(prefix) && wanted.iter().all(|(key, wanted)| value.get(key).as_ref() == Some(wanted))
        });
        let count = |number: i64| usize::try_from(number).unwrap_or(0);
        let page = found.skip(count(query.offset)).take(count(query.limit));
        Ok(page.map(|(place, value)| FoundItem { item: item(place, value), score: None }).collect())
    }
}

fn item((namespace, key): &(Vec<String>, String), value: &Json) -> Item {
    let never = Timestamp::default();
    Item { namespace: namespace.clone(), key: key.clone(), value: value.clone(), created_at: never, updated_at: never }
}
