//! Runs as callers see them: submit, wait, join, stream, cancel, read.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::assistants::Resolved;
use super::follow::{Follow, is_temporary};
use super::lifecycle::root_checkpoint;
use super::live::Heard;
use super::tasks;
use super::{AssistantName, EventStream, RunRequest, Runtime, RuntimeError, Submitted};
use crate::graph::Graph;
use crate::model::event::RESUME_GAP;
use crate::model::{
    CancelAction, Durability, Event, EventId, Fields, Json, OnCompletion, Run, RunId, RunStatus, Scope, ThreadId, Ttl,
    TtlStrategy, special,
};
use crate::storage::idempotency;
use crate::storage::{CancelRequest, CancelTarget, ClaimedRun, NewRun, RunCreated, StorageError, Which};

/// How long the temporary thread of a run that another process executed stays for those who asked here to read it.
const READING: Duration = Duration::from_secs(1);
/// When it is deleted if this process does not come to it.
pub(super) const LINGERS: Ttl = Ttl { strategy: TtlStrategy::Delete, micros: 300_000_000 };
/// Delays up to this are waited for here: the next look at the queue may be later.
const SHORT: Duration = Duration::from_secs(60);

/// How long deleting an active run waits for it to stop.
const STOPPING: Duration = Duration::from_secs(30);

/// From the commit of a run's end until its result is kept: at most this.
const MOMENT: Duration = Duration::from_millis(200);

impl Runtime {
    /// Accepts a run: when this returns it is committed. Cancel-safe: dropped before it returns, the run may or may not
    /// have been accepted.
    pub async fn submit(&self, scope: &Scope, request: RunRequest) -> Result<Submitted, RuntimeError> {
        let run_id = self.clock().new_run_id();
        let thread_id = request.thread.clone().unwrap_or_else(|| ThreadId::from_uuid(self.clock().new_thread_id()));
        // Listening begins before the run can: no event is missed.
        let live = self.inner.hub.run(run_id);
        let receiver = live.subscribe(request.kwargs.resumable);
        if !request.start_here {
            self.inner.hub.keep_result(run_id);
        }
        let (mut run, claimed) = match self.accept(scope, &request, run_id, &thread_id).await {
            Ok(accepted) => accepted,
            Err(error) => {
                self.inner.hub.end(run_id);
                return Err(error);
            }
        };
        let starts_here = claimed.is_some();
        // Otherwise storage has announced it to the workers, this one among them.
        if let Some(claimed) = claimed {
            // Who asked for its end is connected here; a background run may be joined anywhere.
            self.execute(*claimed, !request.start_here);
        }
        if !request.after.is_zero() && request.after <= SHORT {
            self.wake_after(request.after);
        }
        // What was accepted is a pending run, whoever is quick to start it.
        run.status = RunStatus::Pending;
        let is_shared = self.storage().is_shared();
        let is_logged = request.kwargs.resumable || is_shared;
        let is_temporary = request.thread.is_none() && request.on_completion == OnCompletion::Delete;
        let events = request.start_here.then(|| {
            self.follow(Follow {
                scope: *scope,
                is_resumable: request.kwargs.resumable,
                run: run.clone(),
                live: Arc::clone(&live),
                receiver,
                // Another process may execute it: then it is read from the log.
                after: (is_logged && !starts_here).then_some(EventId(0)),
                cancel_on_disconnect: request.cancel_on_disconnect,
                is_first: true,
                is_last_reader: is_temporary && is_shared && !starts_here,
            })
        });
        Ok(Submitted { run, live, events })
    }

    /// [`Runtime::submit`] for one part of a request with an idempotency key: the run that the part was used for before, if
    /// it was.
    pub async fn submit_once(&self, scope: &Scope, request: RunRequest) -> Result<Run, RuntimeError> {
        let keyed = idempotency::unused();
        match (self.submit(scope, request).await, keyed) {
            (Err(RuntimeError::Storage(StorageError::KeyUsed)), Some(keyed)) => {
                let key = &keyed.key;
                let row = self.storage().find_key(scope, &key.operation, &key.key).await?;
                let row = row.filter(|row| row.fingerprint == key.fingerprint);
                let run_id = row.and_then(|row| row.location?.rsplit_once('/')?.1.parse().ok());
                let run_id = run_id.ok_or(RuntimeError::Storage(StorageError::KeyUsed))?;
                self.storage().locate_run(scope, run_id).await?.ok_or(RuntimeError::RunNotFound(run_id))
            }
            (submitted, _) => Ok(submitted?.run),
        }
    }

    /// Inserts a run. What is remembered of its assistant may be stale: then it is read, and the run inserted with that.
    async fn accept(
        &self,
        scope: &Scope,
        request: &RunRequest,
        run_id: RunId,
        thread_id: &ThreadId,
    ) -> Result<(Run, Option<Box<ClaimedRun>>), RuntimeError> {
        idempotency::leads_to(|| format!("/threads/{thread_id}/runs/{run_id}"));
        // A malformed field is told before what is missing elsewhere.
        self.check_webhook(request)?;
        self.check_start(scope, request, thread_id).await?;
        for look in [false, true, true] {
            let assistant = self.assistant_of(scope, request, look).await?;
            let new = self.new_run(request, &assistant, run_id, thread_id)?;
            match self.storage().create_run(scope, new).await? {
                RunCreated::Created { run, claimed, .. } => return Ok((run, claimed)),
                RunCreated::AssistantChanged => {}
                RunCreated::ThreadForeign => return Err(RuntimeError::ThreadForeign(thread_id.to_string())),
                RunCreated::ThreadBusy => return Err(RuntimeError::ThreadRunning),
                RunCreated::ThreadClosed(closed) => return Err(RuntimeError::closed(thread_id, &closed)),
                RunCreated::RunExists => return Err(RuntimeError::Conflict("Run already exists".into())),
                RunCreated::ThreadMissing => return Err(RuntimeError::ThreadOrAssistantNotFound),
            }
        }
        Err(RuntimeError::Conflict("the assistant is being changed: try again".into()))
    }

    /// Refuses a webhook that must not be sent where it says.
    pub fn check_webhook(&self, request: &RunRequest) -> Result<(), RuntimeError> {
        let Some(url) = &request.kwargs.webhook else { return Ok(()) };
        let checked = self.inner.settings.webhooks.policy.check(url);
        checked.map(drop).map_err(|rule| RuntimeError::Invalid(format!("webhook: {rule}")))
    }

    /// Refuses a checkpoint to start from that the thread does not have: the run would begin as on a new thread, and move
    /// the head there.
    async fn check_start(&self, scope: &Scope, request: &RunRequest, thread_id: &ThreadId) -> Result<(), RuntimeError> {
        let configurable = request.kwargs.config.get("configurable").and_then(|configurable| configurable.fields());
        let Some(id) = configurable.as_ref().and_then(root_checkpoint) else { return Ok(()) };
        let Some(thread) = self.storage().find_thread(scope, thread_id).await? else { return Ok(()) };
        if thread.head.is_none() {
            return Ok(());
        }
        let found = self.storage().load_checkpoint(scope, thread.key, "", &Which::Id(id.clone())).await?;
        found.map(drop).ok_or(RuntimeError::CheckpointNotFound(id))
    }

    /// What a request is in storage.
    pub(super) fn new_run(
        &self,
        request: &RunRequest,
        resolved: &Resolved,
        run_id: RunId,
        thread_id: &ThreadId,
    ) -> Result<NewRun, RuntimeError> {
        self.check_webhook(request)?;
        let assistant = &resolved.assistant;
        let is_stateless = request.thread.is_none();
        let mut kwargs = request.kwargs.clone();
        kwargs.temporary = is_stateless && request.on_completion == OnCompletion::Delete;
        let is_heard = request.start_here && self.storage().is_shared();
        kwargs.heard_by = is_heard.then_some(self.inner.process);
        kwargs.config = resolved.config(&kwargs.config, thread_id, run_id);
        kwargs.context = resolved.context(&kwargs.context);
        kwargs.durability = self.durability(request.durability, &kwargs.config, &assistant.graph_id);
        let ids = json!({"graph_id": assistant.graph_id, "assistant_id": assistant.assistant_id});
        let given = request.kwargs.config.get("metadata").unwrap_or_default();
        let is_here = self.inner.settings.claims && !self.inner.draining.is_cancelled();
        let claim = (is_here && self.inner.free_slots() > 0).then(|| self.inner.claim());
        // Nothing is before the run of a new thread.
        let is_elsewhere = claim.is_none() || !request.after.is_zero();
        let lingers = kwargs.temporary && is_heard && is_elsewhere;
        Ok(NewRun {
            run_id,
            create_thread: is_stateless || request.create_thread.unwrap_or(!thread_id.is_uuid()),
            thread_id: thread_id.clone(),
            assistant_id: assistant.assistant_id,
            assistant_as_of: resolved.as_of,
            graph_id: assistant.graph_id.clone(),
            metadata: merged([&given, &request.metadata, &Json::from(&ids)]),
            assistant_metadata: assistant.metadata.clone(),
            thread_ttl: match lingers {
                true => Some(LINGERS),
                false => self.inner.settings.default_ttl.filter(|_| !kwargs.temporary),
            },
            temporary: kwargs.temporary && !lingers,
            kwargs: Json::of(&kwargs).map_err(|error| RuntimeError::Invalid(error.to_string()))?,
            multitask_strategy: request.multitask_strategy,
            after: request.after,
            thread_metadata: Json::from(&ids),
            claim,
            actor: request.actor.clone(),
            webhook: request.kwargs.webhook.clone(),
        })
    }

    /// When a run's supersteps are committed: the run says so, or its config, which is its assistant's unless the run has
    /// its own, or its graph, or the server.
    fn durability(&self, requested: Option<Durability>, config: &Json, graph: &str) -> Durability {
        let configured = config.get("durability").and_then(|word| Durability::parse(word.as_str()?));
        let of_graph = self.graph(graph).and_then(Graph::durability);
        requested.or(configured).or(of_graph).unwrap_or(self.inner.settings.durability)
    }

    pub(super) async fn assistant_of(
        &self,
        scope: &Scope,
        request: &RunRequest,
        look: bool,
    ) -> Result<Resolved, RuntimeError> {
        let resolved = match &request.assistant {
            Some(name) => self.resolve_assistant(scope, name, look).await,
            None => {
                let name = self.usual_assistant(scope, request.thread.as_ref()).await?;
                self.resolve_assistant(scope, &name, look).await
            }
        };
        resolved.map_err(|error| match error {
            RuntimeError::AssistantNotFound => RuntimeError::ThreadOrAssistantNotFound,
            error => error,
        })
    }

    /// Whom a run is for that does not say: the graph its thread ran on last, or the only one there is.
    async fn usual_assistant(&self, scope: &Scope, thread: Option<&ThreadId>) -> Result<AssistantName, RuntimeError> {
        let thread = match thread {
            Some(id) => self.storage().find_thread(scope, id).await?,
            None => None,
        };
        let only = || match self.graphs() {
            [only] => Some(only.name().to_owned()),
            _ => None,
        };
        let graph = thread.and_then(|thread| thread.graph_id).or_else(only).ok_or_else(|| {
            RuntimeError::Invalid(format!(
                "assistant_id: required, since the thread has no graph yet and the server has several: {}",
                self.graph_names()
            ))
        })?;
        Ok(AssistantName::Graph(graph))
    }

    /// Waits for a submitted run to end and returns what `wait` answers: the last root `values` payload, with
    /// `__interrupt__` merged in; `{"__error__": {error, message}}` of a failed run (contract section 3.6).
    pub async fn wait(&self, scope: &Scope, submitted: Submitted) -> Result<Json, RuntimeError> {
        if let Some(mut events) = submitted.events {
            while events.next().await.is_some() {}
        }
        if let Some(result) = submitted.live.result.get() {
            return Ok(result.clone());
        }
        let thread = &submitted.run.thread_id;
        match self.join(scope, thread, submitted.run.run_id).await {
            // Rolled back, which is no failure (contract section 3.5): what the thread holds without it.
            Err(RuntimeError::RunNotFound(_)) => {
                let Some(found) = self.storage().find_thread(scope, thread).await? else { return Ok(Json::object()) };
                let view = self.head_views(scope, &[found]).await?.pop().unwrap_or_default();
                Ok(view.values.unwrap_or_else(Json::object))
            }
            joined => joined,
        }
    }

    /// Whether this process executes a run to which somebody listens in another one.
    pub fn is_wanted(&self, run_id: RunId) -> bool {
        self.inner.is_executing(run_id) && self.inner.hub.is_wanted(run_id)
    }

    /// Looks at the queue when a delayed run is due.
    fn wake_after(&self, delay: Duration) {
        let runtime = self.clone();
        tasks::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => runtime.inner.wake.notify_one(),
                () = runtime.inner.stopped.cancelled() => {}
            }
        });
    }

    /// A temporary thread that was kept for its listeners here goes when they have read it.
    pub(super) fn forget_thread(&self, scope: &Scope, thread: &ThreadId) {
        let (runtime, scope, thread) = (self.clone(), *scope, thread.clone());
        tasks::spawn(async move {
            tokio::time::sleep(READING).await;
            if let Err(error) = runtime.storage().delete_thread(&scope, &thread).await {
                tracing::debug!(thread.id = %thread, %error, "left to its time to live");
            }
        });
    }

    /// [`Runtime::wait`] for a run that was submitted earlier, by anybody.
    pub async fn join(&self, scope: &Scope, thread: &ThreadId, run_id: RunId) -> Result<Json, RuntimeError> {
        let live = self.wait_for_end(scope, thread, run_id, true).await?;
        if let Some(mut ending) = self.inner.hub.ending(run_id) {
            // The end is committed a moment before the result is kept.
            let closed = async { while matches!(ending.hear().await, Heard::Event(_)) {} };
            let _ = tokio::time::timeout(MOMENT, closed).await;
        }
        let kept = self.inner.hub.take_result(run_id);
        let run = self.find_run(scope, thread, run_id).await;
        if let Some(result) = live.or(kept.filter(|_| run.is_ok())) {
            return Ok(result);
        }
        let run = run?;
        let failed = matches!(run.status, RunStatus::Error | RunStatus::Timeout);
        if let Some(error) = run.error.as_ref().filter(|_| failed) {
            return Ok(Json::from(json!({"__error__": error})));
        }
        let Some(found) = self.storage().find_thread(scope, thread).await? else {
            return Err(RuntimeError::ThreadNotFound(thread.to_string()));
        };
        let view = match self.end_of(scope, &found, run_id).await? {
            Some(view) => view,
            None => self.head_views(scope, &[found]).await?.pop().unwrap_or_default(),
        };
        let questions: Vec<Json> =
            view.interrupts.values().flatten().map(|interrupt| Json::of(interrupt).unwrap_or_default()).collect();
        if questions.is_empty() {
            return Ok(view.values.unwrap_or_else(Json::object));
        }
        let list: Json = questions.into_iter().collect();
        Ok(Json::from_fields([(special::INTERRUPT, &list)]))
    }

    /// The events of a run: stored ones after `after` (when given), then live ones, then the end. Without `after` live
    /// ones only; a finished run's stream is then empty. `cancel_on_disconnect` as in [`RunRequest`].
    pub async fn join_stream(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run_id: RunId,
        after: Option<EventId>,
        cancel_on_disconnect: bool,
    ) -> Result<EventStream, RuntimeError> {
        let live = self.inner.hub.run(run_id);
        let receiver = live.subscribe(after.is_some());
        let found = self.find_run(scope, thread, run_id).await;
        let run = match found {
            Ok(run) => run,
            Err(error) => {
                drop(live);
                self.inner.hub.release(run_id);
                return Err(error);
            }
        };
        if run.kwargs.get("protocol").is_some_and(|protocol| protocol.value() == true) {
            drop(live);
            self.inner.hub.release(run_id);
            let events = self.wrapped_run(scope, run.clone(), after).await?;
            return Ok(self.cancelling(scope, &run, events, cancel_on_disconnect));
        }
        if !run.status.is_active() && after.is_none() {
            drop(live);
            self.inner.hub.release(run_id);
            return Ok(futures_util::stream::empty().boxed());
        }
        let gap = match after {
            Some(after) => self.gap(scope, thread, after, run_id).await?,
            None => None,
        };
        let after = match gap.as_ref().and_then(|gap| gap.id).or(after) {
            None => self.end_of_log(scope, &run).await?,
            after => after,
        };
        let is_last_reader =
            after.is_some() && run.status.is_active() && is_temporary(&run) && !self.inner.is_executing(run_id);
        let is_resumable = run.is_resumable();
        let follow = Follow {
            scope: *scope,
            run,
            live,
            receiver,
            after,
            cancel_on_disconnect,
            is_first: false,
            is_resumable,
            is_last_reader,
        };
        let events = self.follow(follow);
        Ok(futures_util::stream::iter(gap).chain(events).boxed())
    }

    /// What a listener is told whose cursor lies beyond the log: an older backup of the database was restored, and what it
    /// has heard since is gone. Its id is where the log ends.
    pub(super) async fn gap(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        after: EventId,
        run_id: RunId,
    ) -> Result<Option<Event>, RuntimeError> {
        if after.0 <= 0 {
            return Ok(None);
        }
        let Some(thread) = self.storage().find_thread(scope, thread).await? else { return Ok(None) };
        if after.0 <= thread.last_event {
            return Ok(None);
        }
        let last = EventId(thread.last_event);
        let data = json!({
            "from": last.to_string(),
            "to": after.to_string(),
            "reason": "the log ends before this id, as after the restore of a backup: read the state of the thread anew",
        });
        Ok(Some(Event { id: Some(last), run_id, name: RESUME_GAP.to_owned(), data: Json::from(data) }))
    }

    /// Events that cancel their run when they are dropped before their end, if asked to.
    fn cancelling(&self, scope: &Scope, run: &Run, events: EventStream, cancel: bool) -> EventStream {
        if !cancel {
            return events;
        }
        let (sender, receiver) = mpsc::channel(1);
        let (runtime, scope, run) = (self.clone(), *scope, run.clone());
        tasks::spawn(async move {
            let mut events = events;
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = sender.closed() => None,
                };
                let Some(event) = event else { break };
                if sender.send(event).await.is_err() {
                    break;
                }
            }
            if sender.is_closed() {
                let reason = Some("the client went away".to_owned());
                let request = CancelRequest { action: CancelAction::Interrupt, actor: None, reason };
                // Of a run that has ended nothing is left to cancel.
                let _ = runtime.cancel(&scope, &run.thread_id, run.run_id, &request, false).await;
            }
        });
        ReceiverStream::new(receiver).boxed()
    }

    /// Sets the durable cancel flag. With `wait`, returns once the run has stopped. [`RuntimeError::RunNotFound`] when
    /// the run is not active.
    pub async fn cancel(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run_id: RunId,
        request: &CancelRequest,
        wait: bool,
    ) -> Result<(), RuntimeError> {
        let target = CancelTarget::Runs { thread_id: thread.clone(), run_ids: vec![run_id] };
        let cancelled = self.storage().cancel_runs(scope, &target, request).await?;
        let Some(cancelled) = cancelled.first() else { return Err(RuntimeError::RunNotFound(run_id)) };
        if cancelled.running && wait {
            self.wait_for_end(scope, thread, run_id, false).await?;
        }
        Ok(())
    }

    /// [`Runtime::cancel`] for every active run of a thread, known or not. No active run is fine.
    pub async fn cancel_thread(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        request: CancelRequest,
        wait: bool,
    ) -> Result<(), RuntimeError> {
        let cancelled = self.storage().cancel_runs(scope, &CancelTarget::Thread(thread.clone()), &request).await?;
        if cancelled.is_empty() && self.storage().find_thread(scope, thread).await?.is_none() {
            return Err(RuntimeError::ThreadNotFound(thread.to_string()));
        }
        for run in cancelled.iter().filter(|run| run.running && wait) {
            match self.wait_for_end(scope, thread, run.run_id, false).await {
                // It ended, or was rolled back, between the two.
                Ok(_) | Err(RuntimeError::RunNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes a run and its checkpoints. An active one is rolled back: this returns once it has stopped, or with
    /// [`RuntimeError::Conflict`] if that takes long; it goes all the same then.
    pub async fn delete_run(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run_id: RunId,
        actor: Option<String>,
    ) -> Result<(), RuntimeError> {
        let reason = Some("the run was deleted".to_owned());
        let request = CancelRequest { action: CancelAction::Rollback, actor, reason };
        match self.storage().delete_run(scope, thread, run_id).await? {
            None => return Err(RuntimeError::RunNotFound(run_id)),
            Some(true) => return Ok(()),
            Some(false) => {}
        }
        match tokio::time::timeout(STOPPING, self.cancel(scope, thread, run_id, &request, true)).await {
            // It stopped, or ended by itself before it was told to; then it is still there.
            Ok(Ok(()) | Err(RuntimeError::RunNotFound(_))) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(RuntimeError::Conflict("The run is being stopped, and then deleted".into())),
        }
        match self.storage().delete_run(scope, thread, run_id).await? {
            Some(false) => Err(RuntimeError::Conflict("The run is active again: delete it once more".into())),
            Some(true) | None => Ok(()),
        }
    }

    /// Reads a run.
    pub async fn find_run(&self, scope: &Scope, thread: &ThreadId, run_id: RunId) -> Result<Run, RuntimeError> {
        self.storage().find_run(scope, thread, run_id).await?.ok_or(RuntimeError::RunNotFound(run_id))
    }
}

/// Objects merged shallowly, later ones winning.
pub(crate) fn merged<'a>(objects: impl IntoIterator<Item = &'a Json>) -> Json {
    let mut all = Fields::new();
    for object in objects {
        all.extend(object.fields().unwrap_or_default());
    }
    Json::from(&all)
}
