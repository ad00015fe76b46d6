//! One run from its claim to its end: what it starts from, what it shares, and how its end is told and committed.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::chain_events;
use super::commit::Committer;
use super::events::{Events, RunOutcome};
use super::executor::{GraphEnd, GraphRun, Root, RootEnd, run_root};
use super::live::LiveRun;
use super::persist::Reader;
use super::runs::merged;
use super::said::Said;
use super::shared::{MovedHead, Outgoing, Replay, Shared, View, lock};
use super::turns::Turns;
use super::worker::{Active, StopReason};
use super::{EXPLAIN_STRICT_RESUME, Runtime};
use crate::engine::command::Command;
use crate::engine::execution::{Input, Loaded, StrictResume};
use crate::engine::{EngineError, RouterContext, ids};
use crate::graph::Graph;
use crate::model::{
    CancelAction, CheckpointId, CheckpointSource, ErrorInfo, Fields, Json, RunId, RunKwargs, RunStatus, Scope,
    StreamMode, Thread, ThreadStatus, special,
};
use crate::storage::{ClaimedRun, RunEnd, StorageError, WebhookEnd, Which};

/// How a run ends, before it is committed.
struct Ending {
    status: RunStatus,
    error: Option<ErrorInfo>,
    thread_status: ThreadStatus,
    /// What the thread's document shows, if it is not what the head gives.
    view: Option<Json>,
    /// What `wait` answers.
    result: Json,
    /// The last root values, if there are any.
    values: Option<Json>,
}

impl Ending {
    fn failed(info: ErrorInfo) -> Ending {
        Ending {
            view: None,
            status: RunStatus::Error,
            result: Json::from(json!({"__error__": info})),
            values: None,
            error: Some(info),
            thread_status: ThreadStatus::Error,
        }
    }
}

/// The checkpoint of the root graph that a run's `configurable` names. With that of a graph inside, the root starts from
/// its entry in the map.
pub(super) fn root_checkpoint(configurable: &Fields) -> Option<CheckpointId> {
    let text = |key: &str| configurable.get(key).and_then(|value| value.as_str().map(str::to_owned));
    if text("checkpoint_ns").unwrap_or_default().is_empty() {
        return text("checkpoint_id");
    }
    configurable.get("checkpoint_map")?.get("")?.as_str().map(str::to_owned)
}

/// Where a run starts.
struct Position {
    loaded: Option<Loaded>,
    addressed: bool,
    /// The checkpoints of inner graphs that go with the one the caller named.
    parents: BTreeMap<String, CheckpointId>,
    replay: Option<Replay>,
}

fn stopped_here(run_id: RunId) {
    tracing::warn!(run.id = %run_id, "lease lost; the run was stopped here");
}

impl Runtime {
    /// Executes a claimed run to its end, or until it is handed over or its lease is lost.
    pub(crate) async fn execute_run(&self, claimed: ClaimedRun, active: Active, announce: bool) {
        let run_id = claimed.run.run_id;
        let live = self.inner.hub.begin(run_id);
        let metrics = Arc::clone(&self.inner.metrics);
        if claimed.lease.epoch == 1 {
            let waited = self.clock().now().0 - claimed.run.created_at.0;
            metrics.queue_wait.observe(Duration::from_micros(u64::try_from(waited).unwrap_or(0)));
        }
        let committer = Committer::spawn(self.storage().clone(), Arc::clone(&live), active.clone(), metrics);
        let attempt = u32::try_from(claimed.run.attempts).unwrap_or(1).max(1);
        tracing::debug!(run.id = %run_id, thread.id = %claimed.run.thread_id, attempt, "run starts");
        let kwargs = claimed.run.kwargs.decode::<RunKwargs>();
        let heard_by = kwargs.as_ref().ok().and_then(|kwargs| kwargs.heard_by);
        if heard_by.is_some_and(|process| process != self.inner.process) {
            live.want();
        }
        let events = Arc::new(Events::new(
            &claimed,
            kwargs.as_ref().is_ok_and(|kwargs| kwargs.resumable),
            self.clone(),
            committer.clone(),
            Arc::clone(&live),
        ));
        let prepared = match kwargs {
            Ok(kwargs) => self.prepare(&claimed, kwargs, &active, &committer, &events).await,
            Err(error) => Err(EngineError::new("CorruptRun", format!("kwargs cannot be read: {error}")).into()),
        };
        let ending = match prepared {
            Ok((shared, run, root)) => self.drive(&shared, &active, run, root).await,
            Err(Refused::Storage(error)) => {
                // Left to its lease: the next claim tries again, and the attempts are counted.
                tracing::error!(run.id = %run_id, %error, "a run could not be loaded");
                live.close();
                self.inner.hub.end(run_id);
                return;
            }
            Err(Refused::Run(error)) => {
                events.tell("error".to_owned(), Json::of(&error.info()).unwrap_or_default());
                Outcome::Ended(Ending::failed(error.info()))
            }
        };
        self.conclude(ending, &committer, &events, &live, &claimed, announce).await;
    }

    async fn conclude(
        &self,
        outcome: Outcome,
        committer: &Committer,
        events: &Events,
        live: &LiveRun,
        claimed: &ClaimedRun,
        announce: bool,
    ) {
        let run_id = claimed.run.run_id;
        match outcome {
            Outcome::Ended(ending) => {
                let (status, result) = (ending.status, ending.result);
                let (rest, error) = (ending.thread_status, ending.error.clone());
                let is_stored = events.is_stored();
                let heard = live.is_wanted().then_some(&result);
                let end = RunOutcome { status, rest, error: error.as_ref(), result: heard };
                // In the log before the commit that ends it, and with it; to others after it.
                if is_stored {
                    events.ended(true, &end);
                }
                let has_webhook = claimed.run.kwargs.get("webhook").is_some_and(|url| !url.is_null());
                let webhook = has_webhook.then(|| WebhookEnd {
                    values: ending.values.map(|values| without_questions(&values)),
                    started_at: claimed.run.updated_at,
                });
                let committed = RunEnd {
                    status,
                    error: ending.error,
                    thread_status: ending.thread_status,
                    view: ending.view,
                    webhook,
                    announce,
                };
                if committer.end(committed).await {
                    if !is_stored {
                        events.ended(false, &end);
                    }
                    self.inner.metrics.ended(status);
                    tracing::Span::current().record("status", status.as_str());
                    if has_webhook {
                        self.wake_webhooks();
                    }
                    self.inner.hub.set_result(run_id, &result);
                    let _ = live.result.set(result);
                    tracing::debug!(run.id = %run_id, status = status.as_str(), "run ended");
                } else {
                    stopped_here(run_id);
                }
            }
            Outcome::RolledBack(thread_status) => {
                if committer.rollback(thread_status).await {
                    self.wake_webhooks();
                    tracing::Span::current().record("status", "rollback");
                    let _ = live.result.set(Json::object());
                    tracing::debug!(run.id = %run_id, "run rolled back");
                } else {
                    stopped_here(run_id);
                }
            }
            Outcome::HandedOver => {
                committer.release().await;
                tracing::info!(run.id = %run_id, "run handed over");
            }
            Outcome::LeaseLost => stopped_here(run_id),
        }
        self.inner.hub.end(run_id);
    }

    /// Reads what a run needs before its first superstep.
    async fn prepare(
        &self,
        claimed: &ClaimedRun,
        kwargs: RunKwargs,
        active: &Active,
        committer: &Committer,
        events: &Arc<Events>,
    ) -> Result<(Arc<Shared>, GraphRun, Root), Refused> {
        let run = &claimed.run;
        let attempt = u32::try_from(run.attempts).unwrap_or(1).max(1);
        events.began(&run.graph_id, &kwargs, attempt);
        let graph = self.graph(&run.graph_id).cloned().ok_or_else(|| {
            let names = self.graph_names();
            EngineError::new("GraphNotFound", format!("Graph '{}' not found. Expected one of: [{names}]", run.graph_id))
        })?;
        let scope = Scope::Tenant(claimed.tenant);
        let configurable = kwargs.config.get("configurable").and_then(|c| c.fields()).unwrap_or_default();
        let command = match &kwargs.command {
            Some(command) if !command.is_null() => Some(Command::from_json(command)?),
            _ => None,
        };
        let input = match (&command, &kwargs.input) {
            _ if claimed.input_applied => Input::Null,
            (Some(command), _) => Input::Command(command.clone()),
            (None, Some(input)) if !input.is_null() => Input::Value(input.clone()),
            _ => Input::Null,
        };
        let reader = Reader { storage: self.storage(), scope: &scope, thread: claimed.lease.thread };
        let mut newest = claimed.thread.newest();
        let outgoing = Outgoing::new(run.run_id);
        let shared_modes = kwargs.stream_mode.iter().filter_map(|mode| StreamMode::parse(mode)).collect();
        let mut position = Position { loaded: None, addressed: false, parents: BTreeMap::new(), replay: None };
        let mut base = None;
        if claimed.thread.head.is_some() || configurable.contains_key("checkpoint_id") {
            (position, base) = self.position(&reader, claimed, &configurable, &input).await?;
        }
        if let Some(loaded) = &position.loaded {
            newest = newest.max(Some(loaded.checkpoint.id.clone()));
        }
        let answers_by_id = match &command {
            Some(command) if claimed.input_applied => given_by_id(command),
            _ => Fields::new(),
        };
        let shared = Arc::new(Shared {
            runtime: self.clone(),
            scope,
            thread: claimed.lease.thread,
            thread_id: run.thread_id.clone(),
            run_id: run.run_id,
            graph_id: run.graph_id.clone(),
            attempt,
            extra: checkpoint_metadata(&configurable, &run.metadata),
            task_metadata: task_metadata(&run.metadata, &run.run_id.to_string()),
            recursion_limit: kwargs
                .config
                .get("recursion_limit")
                .and_then(|limit| limit.as_i64())
                .unwrap_or(self.inner.settings.recursion_limit),
            durability: kwargs.durability,
            modes: shared_modes,
            subgraphs: kwargs.subgraphs,
            strict_resume: strict_resume(&configurable),
            explains_strict_resume: is_set(&configurable, EXPLAIN_STRICT_RESUME),
            router_context: Arc::new(RouterContext {
                thread_id: run.thread_id.as_str().to_owned(),
                config: kwargs.config.clone(),
                context: kwargs.context.clone(),
            }),
            config: kwargs.config.clone(),
            context: kwargs.context.clone(),
            committer: committer.clone(),
            turns: Turns::new(self.nodes().clone()),
            items: Arc::default(),
            events: Arc::clone(events),
            stop: active.stop.clone(),
            drain: Mutex::default(),
            hand_over: active.drain.clone(),
            plain_answer: Mutex::default(),
            plain_spent: AtomicBool::new(false),
            replay: position.replay,
            moved: claimed
                .thread
                .moved
                .clone()
                .filter(|_| claimed.thread.is_moved())
                .map(|moved| MovedHead { at: moved.to, visited: Mutex::default() }),
            seen_messages: Mutex::default(),
            counted_messages: Mutex::default(),
            partial_messages: Mutex::default(),
            said: Said::default(),
            stopped_by: Arc::clone(&active.reason),
            view: Mutex::new(View { before: claimed.thread.view.clone(), ..View::default() }),
            outgoing: Mutex::new(outgoing),
            newest: Mutex::new(newest),
            input_applied: AtomicBool::new(claimed.input_applied),
            last_start: AtomicI64::new(0),
        });
        if let (Some(stored), Some(loaded)) = (base, &position.loaded) {
            shared.loaded("", Some(loaded.checkpoint.id.clone()), stored);
        }
        let graph_run = root_graph(graph, input, answers_by_id, std::mem::take(&mut position.parents));
        let root = Root {
            loaded: position.loaded,
            addressed: position.addressed,
            interrupt_before: kwargs.interrupt_before,
            interrupt_after: kwargs.interrupt_after,
            given: shared.modes.contains(&StreamMode::Events).then(|| {
                // Also after a crash: the run is told as it was.
                chain_events::given(kwargs.input.as_ref(), kwargs.command.as_ref())
            }),
        };
        Ok((shared, graph_run, root))
    }

    /// Loads the checkpoint a run starts from: the head, or the one the caller named.
    async fn position(
        &self,
        reader: &Reader<'_>,
        claimed: &ClaimedRun,
        configurable: &Fields,
        input: &Input,
    ) -> Result<(Position, Option<super::persist::Stored>), Refused> {
        let text = |key: &str| configurable.get(key).and_then(|value| value.as_str().map(str::to_owned));
        let map: BTreeMap<String, CheckpointId> =
            configurable.get("checkpoint_map").and_then(|map| map.decode().ok()).unwrap_or_default();
        let ns = text("checkpoint_ns").unwrap_or_default();
        let mut named = map.clone();
        if !ns.is_empty() {
            named.extend(text("checkpoint_id").map(|inner| (ns, inner)));
        }
        let id = root_checkpoint(configurable);
        let head = reader.load("", &Which::Latest).await?;
        let continued = claimed.input_applied
            && head.as_ref().is_some_and(|(loaded, _)| {
                let run_id = loaded.metadata.extra.get("run_id");
                run_id.and_then(Json::as_str) == Some(claimed.run.run_id.to_string().as_str())
            });
        // A moved head that others went on from before is a place as if the run had named it.
        let is_revisited = id.is_none() && !continued && self.is_revisited(reader.scope, &claimed.thread).await?;
        let (found, addressed) = match id {
            None if is_revisited => (head.map(|(loaded, stored)| (Loaded { is_head: false, ..loaded }, stored)), true),
            Some(id) if !continued => {
                let is_head = head.as_ref().is_some_and(|(loaded, _)| loaded.checkpoint.id == id);
                if is_head {
                    (head, true)
                } else {
                    let found = reader.load("", &Which::Id(id)).await?;
                    let found = found.map(|(loaded, stored)| (Loaded { is_head: false, ..loaded }, stored));
                    (found, true)
                }
            }
            _ => (head, false),
        };
        let Some((mut loaded, mut stored)) = found else {
            return Ok((Position { loaded: None, addressed, parents: map, replay: None }, None));
        };
        reader.freeze("", &mut stored).await?;
        // A copied thread's checkpoints name the thread they were copied from.
        if let Some(id) = loaded.metadata.extra.get_mut("thread_id") {
            *id = Json::from(claimed.run.thread_id.as_str());
        }
        named.remove("");
        // An answer goes on where its question was asked.
        let is_answer = matches!(input, Input::Command(command) if command.resume.is_some());
        let has_input = matches!(input, Input::Value(_));
        // What inner graphs left on the way to an edit or a fork is not the state it started from.
        let is_branch = matches!(loaded.metadata.source, CheckpointSource::Update | CheckpointSource::Fork);
        let before = loaded.parent.as_ref().filter(|_| is_branch).unwrap_or(&loaded.checkpoint.id).clone();
        let replay = (addressed && !is_answer).then(|| Replay {
            before: (!has_input).then_some(before),
            named,
            visited: Mutex::new(HashSet::new()),
        });
        let addressed = addressed && !claimed.input_applied;
        Ok((Position { loaded: Some(loaded), addressed, parents: map, replay }, Some(stored)))
    }

    /// Whether the head was moved to a checkpoint that has been gone on from: then what is recorded on it belongs to what
    /// followed it.
    pub(super) async fn is_revisited(&self, scope: &Scope, thread: &Thread) -> Result<bool, StorageError> {
        match thread.head.as_ref().filter(|_| thread.is_moved()) {
            Some(head) => self.storage().is_continued(scope, thread.key, head).await,
            None => Ok(false),
        }
    }

    async fn drive(&self, shared: &Arc<Shared>, active: &Active, run: GraphRun, root: Root) -> Outcome {
        let timer = {
            let (active, limit) = (active.clone(), self.inner.settings.run_timeout);
            async move {
                tokio::time::sleep(limit).await;
                active.stop(StopReason::Timeout);
                std::future::pending::<()>().await;
            }
        };
        let end = tokio::select! {
            biased;
            end = run_root(shared, run, root) => end,
            () = timer => return Outcome::LeaseLost,
        };
        let RootEnd { end, values } = end;
        let view = lock(&shared.view).clone();
        let rest = if view.is_pending { ThreadStatus::Interrupted } else { ThreadStatus::Idle };
        let done = |status: RunStatus| Ending {
            status,
            error: None,
            thread_status: rest,
            view: view.document(),
            result: values.clone(),
            values: Some(values.clone()),
        };
        let failed = |error: &EngineError| {
            let mut info = error.info();
            if error.is_unknown_interrupt() && shared.explains_strict_resume {
                info.message.clone_from(&error.message);
            }
            shared.emit_named("error".to_owned(), Json::of(&info).unwrap_or_default());
            Outcome::Ended(Ending { view: view.document(), values: Some(values.clone()), ..Ending::failed(info) })
        };
        match end {
            GraphEnd::Done(_) | GraphEnd::Interrupted(_) => Outcome::Ended(done(RunStatus::Success)),
            GraphEnd::Failed(error) => failed(&error),
            GraphEnd::Drained(reason) => failed(&EngineError::new("GraphDrained", format!("Graph drained: {reason}"))),
            GraphEnd::Parent(_) => failed(&EngineError::new("ParentCommand", "there is no parent graph")),
            GraphEnd::HandedOver => Outcome::HandedOver,
            GraphEnd::Stopped => {
                let reason = lock(&active.reason).clone();
                match reason {
                    Some(StopReason::Cancel(request)) if request.action == CancelAction::Rollback => {
                        Outcome::RolledBack(self.rest_before(shared).await)
                    }
                    Some(StopReason::Cancel(_)) => {
                        let error = EngineError::new("UserInterrupt", "the run was cancelled").info();
                        Outcome::Ended(Ending { error: Some(error), ..done(RunStatus::Interrupted) })
                    }
                    Some(StopReason::Timeout) => {
                        let limit = self.inner.settings.run_timeout.as_secs_f64();
                        let info = EngineError::new("RunTimeout", format!("the run took longer than {limit}s")).info();
                        shared.emit_named("error".to_owned(), Json::of(&info).unwrap_or_default());
                        Outcome::Ended(Ending {
                            status: RunStatus::Timeout,
                            values: Some(values.clone()),
                            ..Ending::failed(info)
                        })
                    }
                    Some(StopReason::LeaseLost) | None => Outcome::LeaseLost,
                }
            }
        }
    }

    /// What a thread rests at once a run is taken back: what the newest checkpoint of other runs says.
    async fn rest_before(&self, shared: &Shared) -> ThreadStatus {
        let filter = crate::storage::CheckpointFilter::default();
        let rows = self.storage().list_checkpoints(&shared.scope, shared.thread, &filter, 1000).await;
        let before = rows.unwrap_or_default().into_iter().find(|stored| stored.row.run_id != Some(shared.run_id));
        match before {
            Some(stored) if !stored.row.next.is_empty() => ThreadStatus::Interrupted,
            _ => ThreadStatus::Idle,
        }
    }
}

enum Outcome {
    Ended(Ending),
    RolledBack(ThreadStatus),
    HandedOver,
    LeaseLost,
}

/// Why a run did not get to its first superstep.
enum Refused {
    /// The run itself is at fault: it ends as failed.
    Run(EngineError),
    /// The database is: another attempt may succeed.
    Storage(StorageError),
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        Refused::Run(error)
    }
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Self {
        match error {
            // Damaged rows stay damaged: the run fails loudly instead of being tried again.
            StorageError::Corrupt { .. } => Refused::Run(EngineError::new("CorruptCheckpoint", error.to_string())),
            error => Refused::Storage(error),
        }
    }
}

/// Values without the questions that `wait` adds to them.
fn without_questions(values: &Json) -> Json {
    let Some(mut fields) = values.fields() else { return values.clone() };
    match fields.shift_remove(special::INTERRUPT) {
        Some(_) => Json::from(&fields),
        None => values.clone(),
    }
}

fn root_graph(graph: Graph, input: Input, answers_by_id: Fields, parents: BTreeMap<String, CheckpointId>) -> GraphRun {
    GraphRun {
        graph,
        chain: None,
        ns: String::new(),
        parents,
        input,
        resuming: None,
        answers_by_id,
        inside: None,
        step_around: 0,
        outermost: String::new(),
        alive: None,
        has_storage: true,
        anchor: None,
    }
}

/// The answers of a Command in map form: an attempt after a crash offers again those that were not taken.
fn given_by_id(command: &Command) -> Fields {
    let map = command.resume.as_ref().and_then(|resume| resume.fields());
    map.filter(|map| map.keys().all(|id| ids::is_interrupt_id(id))).unwrap_or_default()
}

/// The keys a run adds to its checkpoints' metadata: its own metadata and what its caller configured.
fn is_set(configurable: &Fields, flag: &str) -> bool {
    configurable.get(flag).is_some_and(|value| value.value() == true)
}

/// A run's own `strict_resume` also says why it refuses, and that tells it from LangGraph's flag.
fn strict_resume(configurable: &Fields) -> StrictResume {
    match (is_set(configurable, "__pregel_strict_resume"), is_set(configurable, EXPLAIN_STRICT_RESUME)) {
        (false, _) => StrictResume::Off,
        (true, false) => StrictResume::Ids,
        (true, true) => StrictResume::All,
    }
}

pub(crate) fn checkpoint_metadata(configurable: &Fields, metadata: &Json) -> Fields {
    let mut extra = Fields::new();
    for (key, value) in configurable {
        let is_internal = key.starts_with("__")
            || (key == "checkpoint_ns" && value.as_str() == Some(""))
            || (key.starts_with("langgraph_") && key != "langgraph_auth_user_id")
            || key == "user_id";
        if !is_internal {
            extra.insert(key.clone(), value.clone());
        }
    }
    extra.extend(metadata.fields().unwrap_or_default());
    for key in ["source", "step", "parents"] {
        extra.shift_remove(key);
    }
    extra
}

fn task_metadata(metadata: &Json, run_id: &str) -> Json {
    let own = Json::from(json!({"run_id": run_id}));
    merged([metadata, &own])
}
