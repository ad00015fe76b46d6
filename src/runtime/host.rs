//! What a running node can ask for, answered: the runtime's side of [`crate::graph::Context`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::alive::Alive;
use super::chain_events::{self, NodeChain};
use super::effects::Journal;
use super::executor::{Around, GraphEnd, GraphRun, run_graph};
use super::messages;
use super::shared::{Shared, lock};
use super::tasks;
use super::turns::rounds;
use super::usage::Report;
use super::{ItemSearch, PutItem, RuntimeError};
use crate::engine::command::Command;
use crate::engine::execution::{Input, Job};
use crate::engine::ids;
use crate::engine::step::Task;
use crate::graph::context::Host;
use crate::graph::node::{Checkpointing, Graph, NodeError};
use crate::graph::{ItemQuery, PutOptions, Question};
use crate::model::{Cost, EffectEntry, FoundItem, Interrupt, Item, Json, ModelUsage, StreamMode, TimeoutPolicy};
use crate::storage::Page;
use async_trait::async_trait;

/// The surroundings of one task.
pub(crate) struct TaskHost {
    pub(crate) shared: Arc<Shared>,
    pub(crate) around: Arc<Around>,
    pub(crate) task: Arc<Task>,
    pub(crate) answers: Mutex<Answers>,
    /// Where signs of life go, if anybody waits for them.
    pub(crate) alive: Option<Arc<Alive>>,
    /// Calls of graphs so far, over all attempts: each has a namespace of its own.
    pub(crate) calls: Mutex<usize>,
    /// The attempt as chain events tell it, if they are asked for.
    pub(crate) chain: Mutex<Option<Arc<NodeChain>>>,
    pub(crate) effects: Journal,
    /// What models cost in this task.
    pub(crate) report: Arc<Mutex<Report>>,
}

/// The questions of an execution and their answers.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) given: Vec<Json>,
    /// How many of them an earlier execution took: they were good then.
    recorded: usize,
    /// What this execution asked, in order.
    asked: Vec<Asked>,
    /// The first question whose answer was not what it asks for.
    refused: Option<usize>,
    /// Asked, without an answer.
    pub(crate) pending: Vec<Interrupt>,
    /// A graph inside stopped at a breakpoint, or ended otherwise than by an output.
    pub(crate) inner: Option<GraphEnd>,
}

/// A question of a task.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Its place among the task's questions. An effect whose outcome is known asks no more, but its questions keep theirs.
    pub(crate) index: usize,
    pub(crate) interrupt: Interrupt,
    /// Its response schema refuses answers; otherwise it is only shown.
    pub(crate) checked: bool,
}

/// What a job asked and the answers it took, in order; an answer is that of the question with its index. There may be more
/// answers than questions: those that were never reached stay with the question they were given for.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) asked: Vec<Asked>,
    pub(crate) answers: Vec<Json>,
}

impl TaskHost {
    pub(crate) fn new(
        shared: Arc<Shared>,
        around: Arc<Around>,
        job: &Job,
        limits: &TimeoutPolicy,
        report: Arc<Mutex<Report>>,
    ) -> TaskHost {
        let answers = Answers { given: job.answers.clone(), recorded: job.recorded, ..Answers::default() };
        let (answers, task) = (Mutex::new(answers), Arc::clone(&job.task));
        let effects = Journal::of(&around, &task);
        let alive = Alive::of(limits, around.alive.as_ref());
        TaskHost {
            shared,
            around,
            task,
            answers,
            alive,
            calls: Mutex::new(0),
            effects,
            report,
            chain: Mutex::default(),
        }
    }

    /// Something happens that can be seen from outside.
    pub(crate) fn stir(&self) {
        if let Some(alive) = &self.alive {
            alive.stir();
        }
    }

    /// Forgets what an attempt asked; answers stay.
    pub(crate) fn begin_attempt(&self, attempt: u32) {
        self.stir();
        let mut answers = lock(&self.answers);
        answers.asked.clear();
        answers.refused = None;
        answers.pending.clear();
        answers.inner = None;
        let chain = NodeChain::begin(&self.shared, &self.around, &self.task, attempt);
        *lock(&self.chain) = chain.map(Arc::new);
    }

    /// What was asked and answered, once the job has ended. An answer that was refused is not among them: its question
    /// stays open.
    pub(crate) fn exchange(&self) -> Exchange {
        let mut answers = lock(&self.answers);
        let mut given = std::mem::take(&mut answers.given);
        given.truncate(answers.refused.unwrap_or(usize::MAX));
        Exchange { asked: std::mem::take(&mut answers.asked), answers: given }
    }

    /// Runs a graph inside this task. `Err` is control flow: the caller must stop.
    pub(crate) async fn run_inner(&self, graph: &Graph, input: Json) -> Result<Json, NodeError> {
        let index = {
            let mut calls = lock(&self.calls);
            *calls += 1;
            *calls - 1
        };
        let ns = inner_ns(graph.checkpointing(), &self.task.ns, index);
        let mut parents = self.around.parents.clone();
        parents.insert(self.around.ns.clone(), self.around.checkpoint_id.clone());
        let chain = lock(&self.chain).as_ref().map(|node| Arc::new(node.graph(index)));
        if let Some(chain) = &chain {
            chain_events::tell(&self.shared, chain.started(&input));
        }
        let told = chain.clone().map(|chain| (chain, input.clone()));
        let is_off = graph.checkpointing() == Checkpointing::Off;
        let run = GraphRun {
            graph: graph.clone(),
            chain,
            ns,
            parents,
            input: Input::Value(input),
            resuming: Some(self.around.resuming),
            answers_by_id: self.around.answers_by_id.clone(),
            inside: Some(self.task.clone()),
            step_around: self.around.step,
            outermost: self.around.outermost_of(&self.task).to_owned(),
            alive: self.alive.clone(),
            has_storage: !is_off,
            anchor: (is_off || self.around.anchor.is_some()).then(|| self.effects.anchor(index)),
        };
        let end = run_graph(Arc::clone(&self.shared), run).await;
        if let (Some((chain, input)), GraphEnd::Done(fields)) = (told, &end) {
            chain_events::tell(&self.shared, chain.ended(&Json::from(fields), Some(&input)));
        }
        let way_out = match &end {
            GraphEnd::Interrupted(_) => rounds::OUT_OF_INTERRUPTED_GRAPH,
            GraphEnd::Parent(_) => rounds::OUT_OF_GRAPH_BY_COMMAND,
            _ => rounds::OUT_OF_GRAPH,
        };
        self.shared.turns.pass(way_out).await;
        match end {
            GraphEnd::Done(fields) => {
                lock(&self.report).note_inner(&fields);
                Ok(Json::from(&fields))
            }
            GraphEnd::Failed(error) => Err(NodeError::Failed(error)),
            // Has arrived: the graph of this task is the one it is for.
            GraphEnd::Parent(command) => Err(NodeError::Parent(Box::new(Command { parent: false, ..*command }))),
            GraphEnd::Interrupted(list) => {
                let mut answers = lock(&self.answers);
                answers.pending = list;
                Err(NodeError::Interrupted)
            }
            end @ (GraphEnd::Drained(_) | GraphEnd::HandedOver | GraphEnd::Stopped) => {
                lock(&self.answers).inner = Some(end);
                Err(NodeError::Cancelled)
            }
        }
    }
}

impl TaskHost {
    /// Siblings read items beside each other; each goes on in the turn it would have without the wait.
    async fn read_items<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, NodeError>> + Send + 'static,
    ) -> Result<T, NodeError> {
        let turns = &self.shared.turns;
        if turns.is_alone() {
            return work.await;
        }
        let reading = match Arc::clone(&self.shared.items).try_read_owned() {
            Ok(reading) => reading,
            Err(_) => turns.hold(Arc::clone(&self.shared.items).read_owned()).await,
        };
        let work = tasks::spawn(async move {
            let found = work.await;
            drop(reading);
            found
        });
        turns.pass(rounds::ITEM).await;
        let found = turns.hold(work).await;
        found.unwrap_or_else(|error| Err(NodeError::new("StorageError", error.to_string())))
    }

    /// Writes wait for the reads of siblings that asked before.
    async fn write_items<T>(&self, work: impl Future<Output = T>) -> T {
        let turns = &self.shared.turns;
        turns.pass(1).await;
        let written = turns
            .hold(async {
                let _alone = self.shared.items.write().await;
                work.await
            })
            .await;
        turns.pass(rounds::ITEM - 1).await;
        written
    }
}

/// Where a graph called inside a task keeps its checkpoints (section 3.3).
fn inner_ns(checkpointing: Checkpointing, task_ns: &str, index: usize) -> String {
    let ns = match checkpointing {
        Checkpointing::Own => {
            let names: Vec<&str> =
                task_ns.split('|').map(|segment| segment.split(':').next().unwrap_or(segment)).collect();
            names.join("|")
        }
        Checkpointing::Inherit | Checkpointing::Off => task_ns.to_owned(),
    };
    if index == 0 { ns } else { format!("{ns}|{index}") }
}

#[async_trait]
impl Host for TaskHost {
    fn custom(&self, value: Json) {
        self.stir();
        if self.shared.modes.contains(&StreamMode::Custom) {
            self.shared.emit(&self.around.ns, "custom", value);
        }
    }

    fn message(&self, message: Json, complete: bool) {
        self.stir();
        let chain = lock(&self.chain).clone();
        if let Some(chain) = &chain {
            chain.say(&self.shared, &message, complete);
        }
        if messages::wanted(&self.shared, &self.around.ns) {
            messages::tell_chunk(&self.shared, &self.around, &self.task, &message, complete);
        }
        if let Some(chain) = &chain {
            chain.end_message(&self.shared, &message, complete);
        }
    }

    fn heartbeat(&self) {
        if let Some(alive) = &self.alive {
            alive.beat();
        }
    }

    fn answer(&self, index: usize, question: &Question) -> Result<Json, NodeError> {
        let mut answers = lock(&self.answers);
        let interrupt = question.with_id(ids::interrupt(&self.task.ns, index));
        answers.asked.push(Asked { index, interrupt: interrupt.clone(), checked: question.is_checked() });
        if index >= answers.given.len() {
            let mut plain = lock(&self.shared.plain_answer);
            if let Some(answer) = plain.as_ref() {
                // One that is refused stays where it is: null input is refused again, until another answer comes.
                question.check(answer)?;
                answers.given.extend(plain.take());
                self.shared.plain_spent.store(true, Ordering::Relaxed);
            }
        }
        let Some(answer) = answers.given.get(index).cloned() else {
            answers.pending = vec![interrupt];
            return Err(NodeError::Interrupted);
        };
        if index >= answers.recorded
            && let Err(error) = question.check(&answer)
        {
            answers.refused.get_or_insert(index);
            return Err(error.into());
        }
        Ok(answer)
    }

    fn drain(&self, reason: &str) {
        *lock(&self.shared.drain) = Some(reason.to_owned());
    }

    async fn call(&self, _index: usize, graph: &Graph, input: Json) -> Result<Json, NodeError> {
        self.run_inner(graph, input).await
    }

    async fn barrier(&self, key: &str) -> Result<String, NodeError> {
        self.effects.barrier(&self.shared, &self.around, key).await
    }

    async fn find_effect(&self, key: &str) -> Result<Option<EffectEntry>, NodeError> {
        self.effects.find(&self.shared, key).await
    }

    async fn put_effect(&self, entry: EffectEntry, durable: bool) -> Result<(), NodeError> {
        self.stir();
        self.effects.put(&self.shared, &self.around, entry, durable).await
    }

    fn usage(&self, model: &str, usage: ModelUsage, cost: Option<Cost>) {
        lock(&self.report).add(&self.shared.runtime.settings().prices, model, usage, 0, cost);
    }

    async fn put_item(
        &self,
        namespace: &[String],
        key: &str,
        value: Json,
        options: PutOptions,
    ) -> Result<(), NodeError> {
        let PutOptions { indexing, ttl_minutes } = options;
        let item = PutItem { namespace: namespace.to_vec(), key: key.to_owned(), value, indexing, ttl_minutes };
        self.write_items(self.shared.runtime.put_item(&self.shared.scope, item)).await.map_err(refused)
    }

    async fn get_item(&self, namespace: &[String], key: &str) -> Result<Option<Item>, NodeError> {
        let (shared, namespace, key) = (Arc::clone(&self.shared), namespace.to_vec(), key.to_owned());
        self.read_items(
            async move { shared.runtime.get_item(&shared.scope, &namespace, &key, None).await.map_err(refused) },
        )
        .await
    }

    async fn delete_item(&self, namespace: &[String], key: &str) -> Result<(), NodeError> {
        self.write_items(self.shared.runtime.delete_item(&self.shared.scope, namespace, key)).await.map_err(refused)
    }

    async fn search_items(&self, prefix: &[String], query: ItemQuery) -> Result<Vec<FoundItem>, NodeError> {
        let ItemQuery { query, filter, limit, offset } = query;
        let page = Page { limit, offset };
        let search = ItemSearch { prefix: prefix.to_vec(), filter, query, page, refresh: None };
        let shared = Arc::clone(&self.shared);
        self.read_items(async move { shared.runtime.search_items(&shared.scope, search).await.map_err(refused) }).await
    }
}

/// Why an item was not read or written, as LangGraph calls it.
fn refused(error: RuntimeError) -> NodeError {
    let class = match &error {
        RuntimeError::InvalidNamespace(_) => "InvalidNamespaceError",
        RuntimeError::Invalid(_) => "ValueError",
        RuntimeError::Embedding(_) => "EmbeddingError",
        _ => return error.into(),
    };
    NodeError::new(class, error.to_string())
}
