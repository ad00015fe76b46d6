//! When it happens: moves runs through engine and storage. [`Runtime`] is the handle that HTTP holds.

pub mod error;
pub mod request;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;

use crate::clock::Clock;
use crate::graph::Graph;
use crate::model::{
    Assistant, CancelAction, CheckpointRef, Cursor, Durability, Event, EventId, HeadView, Json, Run, RunId, Scope,
    Thread, ThreadId, ThreadState,
};
use crate::storage::SharedStorage;

pub use error::RuntimeError;
pub use request::{AssistantName, HistoryQuery, RunRequest, StateUpdate, Submitted};

/// Settings of the runtime; the defaults are those of `config.toml`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A name for humans in logs and leases.
    pub worker: String,
    /// Runs executed at once by this process.
    pub concurrency: usize,
    pub lease: Duration,
    pub renew_every: Duration,
    /// How often to look for claimable runs when no notice comes.
    pub poll_every: Duration,
    /// Claims without progress before a run is quarantined.
    pub max_attempts: i32,
    /// A run that takes longer ends as `timeout`.
    pub run_timeout: Duration,
    pub recursion_limit: i64,
    pub durability: Durability,
    /// Take runs from the queue (`serve --role api` does not).
    pub claims: bool,
}

/// Events of one run, in order, ending when the run has ended and its final status is committed.
pub type EventStream = BoxStream<'static, Event>;

/// The runtime. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) storage: SharedStorage,
    pub(crate) graphs: Vec<Graph>,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
}

impl Runtime {
    pub fn new(storage: SharedStorage, graphs: Vec<Graph>, clock: Clock, settings: Settings) -> Runtime {
        Runtime { inner: Arc::new(Inner { storage, graphs, clock, settings }) }
    }

    pub fn storage(&self) -> &SharedStorage {
        &self.inner.storage
    }

    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The graphs of this build, in registration order.
    pub fn graphs(&self) -> &[Graph] {
        &self.inner.graphs
    }

    pub fn graph(&self, name: &str) -> Option<&Graph> {
        self.inner.graphs.iter().find(|graph| graph.name() == name)
    }

    /// Resolves an assistant; system assistants are virtual: one per graph.
    pub async fn find_assistant(&self, _scope: &Scope, _name: &AssistantName) -> Result<Assistant, RuntimeError> {
        unimplemented!()
    }

    /// All assistants, one per graph, newest first.
    pub async fn list_assistants(&self, _scope: &Scope) -> Result<Vec<Assistant>, RuntimeError> {
        unimplemented!()
    }

    /// Accepts a run: when this returns it is committed. Cancel-safe: dropped before it returns, the run may or may not
    /// have been accepted.
    pub async fn submit(&self, _scope: &Scope, _request: RunRequest) -> Result<Submitted, RuntimeError> {
        unimplemented!()
    }

    /// Waits for a run to end and returns what `wait` answers: the last root `values` payload, with `__interrupt__`
    /// merged in; `{"__error__": {error, message}}` of a failed run (contract section 3.6). Takes the events of a
    /// submitted run (`Some`: the run's own stream, from its first event), or joins one.
    pub async fn wait(&self, _scope: &Scope, _submitted: Submitted) -> Result<Json, RuntimeError> {
        unimplemented!()
    }

    /// [`Runtime::wait`] for a run that was submitted earlier, by anybody.
    pub async fn join(&self, _scope: &Scope, _thread: &ThreadId, _run: RunId) -> Result<Json, RuntimeError> {
        unimplemented!()
    }

    /// The events of a run: stored ones after `after` (when given), then live ones, then the end. Without `after` live
    /// ones only; a finished run's stream is then empty. `cancel_on_disconnect` as in [`RunRequest`].
    pub async fn join_stream(
        &self,
        _scope: &Scope,
        _thread: &ThreadId,
        _run: RunId,
        _after: Option<EventId>,
        _cancel_on_disconnect: bool,
    ) -> Result<EventStream, RuntimeError> {
        unimplemented!()
    }

    /// Sets the durable cancel flag. With `wait`, returns once the run has stopped. [`RuntimeError::RunNotFound`] when the run
    /// is not active.
    pub async fn cancel(
        &self,
        _scope: &Scope,
        _thread: &ThreadId,
        _run: RunId,
        _action: CancelAction,
        _reason: Option<String>,
        _wait: bool,
    ) -> Result<(), RuntimeError> {
        unimplemented!()
    }

    /// Reads a run.
    pub async fn find_run(&self, _scope: &Scope, _thread: &ThreadId, _run: RunId) -> Result<Run, RuntimeError> {
        unimplemented!()
    }

    /// The state of a thread at a checkpoint (the latest when `at.id` is `None`), with nested states of pending
    /// subgraphs when asked. An unknown checkpoint of a known thread is an empty state with the cursor echoed.
    pub async fn thread_state(
        &self,
        _scope: &Scope,
        _thread: &ThreadId,
        _at: &CheckpointRef,
        _subgraphs: bool,
    ) -> Result<ThreadState, RuntimeError> {
        unimplemented!()
    }

    /// States, newest first; empty for a thread without checkpoints.
    pub async fn history(
        &self,
        _scope: &Scope,
        _thread: &ThreadId,
        _query: &HistoryQuery,
    ) -> Result<Vec<ThreadState>, RuntimeError> {
        unimplemented!()
    }

    /// Changes state as a node would; returns the new checkpoint.
    pub async fn update_state(
        &self,
        _scope: &Scope,
        _thread: &ThreadId,
        _update: StateUpdate,
    ) -> Result<Cursor, RuntimeError> {
        unimplemented!()
    }

    /// Values, interrupts and error of each thread's head, in the order given.
    pub async fn head_views(&self, _scope: &Scope, _threads: &[Thread]) -> Result<Vec<HeadView>, RuntimeError> {
        unimplemented!()
    }
}
