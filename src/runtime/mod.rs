//! When it happens: moves runs through engine and storage. [`Runtime`] is the handle that HTTP holds.

mod alive;
mod answers;
mod assistants;
mod branches;
mod cache;
mod chain_events;
mod commit;
mod crons;
mod diff;
pub mod doctor;
mod effects;
pub mod embed;
pub mod error;
mod events;
mod executions;
mod executor;
mod explain;
mod follow;
pub mod foreign;
mod host;
pub mod items;
mod lifecycle;
mod live;
mod log;
mod messages;
pub mod metrics;
mod nodes;
pub mod persist;
pub mod protocol;
mod questions;
pub mod request;
pub mod retention;
mod retry;
mod runs;
mod said;
mod schedule;
mod sessions;
mod settle;
mod shared;
#[cfg(test)]
mod simulation;
mod state;
mod tail;
mod tasks;
mod thread_stream;
mod turns;
mod upkeep;
pub mod usage;
mod versions;
mod watch;
pub mod webhooks;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::BoxStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Clock;
use crate::graph::Graph;
use crate::memory::Memory;
use crate::model::{Durability, Event, RunId, Timestamp, Ttl};
use crate::storage::SharedStorage;

pub use branches::{HEAD, HeadTarget, MovedHead, checkpoint_id};
pub use crons::{CronRequest, CronSettings};
pub use diff::{Change, ChannelDiff, ItemDiff, diff};
pub use error::RuntimeError;
pub use events::Outcome;
pub use explain::{Explanation, Places, Superstep, WaitsFor};
pub use items::{ItemSearch, ItemSettings, PutItem};
pub(crate) use persist::written_by;
pub use request::{Answer, Answerer, AssistantName, HistoryQuery, RunRequest, StateUpdate, Submitted};
pub use retention::StorageReport;
pub use tail::{Backlog, ProtocolStream};
pub use thread_stream::ThreadStream;
pub use versions::{Unresumable, unresumable_threads};
pub use webhooks::{WebhookPolicy, WebhookSettings};

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
    /// A run that nothing moves for this long, while there is room for it, is reported as stuck.
    pub stuck_after: Duration,
    /// A run that takes longer ends as `timeout`.
    pub run_timeout: Duration,
    pub recursion_limit: i64,
    pub durability: Durability,
    /// Of threads that do not say how long they are kept.
    pub default_ttl: Option<Ttl>,
    /// How often what has expired is removed.
    pub sweep_every: Duration,
    /// Bytes of node outputs that are kept in the database in all; 0: each process remembers its own only.
    pub cache_bytes: u64,
    /// One row per execution of a task, for the execution log.
    pub task_log: bool,
    /// What models cost whose nodes do not say.
    pub prices: usage::Prices,
    /// What this process may occupy: when it is short of it, no more runs are taken beside those that are executed.
    pub memory: Arc<Memory>,
    /// Take runs from the queue (`serve --role api` does not).
    pub claims: bool,
    pub crons: CronSettings,
    pub webhooks: WebhookSettings,
    pub items: ItemSettings,
}

/// In `configurable`: a run that strict resume refuses says why. Without it the reason is masked, as the reference does.
pub const EXPLAIN_STRICT_RESUME: &str = "__explain_strict_resume";

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
    pub(crate) started_at: Timestamp,
    /// This process among those that work on the database.
    pub(crate) process: Uuid,
    pub(crate) metrics: Arc<metrics::Metrics>,
    pub(crate) hub: live::Hub,
    pub(crate) cache: cache::Cache,
    pub(crate) assistants: assistants::Remembered,
    pub(in crate::runtime) known_payloads: foreign::Known,
    /// The threads nodes run on.
    pub(crate) nodes: nodes::NodeThreads,
    /// The runs executed here.
    pub(crate) active: Mutex<BTreeMap<RunId, worker::Active>>,
    pub(crate) watch: Mutex<watch::Watch>,
    /// Something may be claimable.
    pub(crate) wake: Notify,
    /// Runs may be waiting only because this process is at its limit: the next one that ends here makes room.
    pub(crate) at_limit: AtomicBool,
    /// A cron may be due earlier than known.
    pub(crate) crons: Notify,
    /// A webhook may be due.
    pub(crate) webhooks: Notify,
    /// A run ended here.
    pub(crate) idle: Notify,
    pub(crate) draining: CancellationToken,
    pub(crate) stopped: CancellationToken,
}

impl Runtime {
    /// Puts the parts together; [`Runtime::start`] sets them going.
    pub fn new(storage: SharedStorage, graphs: Vec<Graph>, clock: Clock, settings: Settings) -> Runtime {
        Runtime::over(storage, graphs, clock, settings, nodes::NodeThreads::start())
    }

    /// [`Runtime::new`] with threads for the nodes.
    fn over(
        storage: SharedStorage,
        graphs: Vec<Graph>,
        clock: Clock,
        settings: Settings,
        nodes: nodes::NodeThreads,
    ) -> Runtime {
        let (started_at, process) = (clock.now(), clock.new_run_id());
        Runtime {
            inner: Arc::new(Inner {
                storage,
                graphs,
                clock,
                settings,
                started_at,
                process,
                metrics: Arc::default(),
                hub: live::Hub::default(),
                cache: cache::Cache::default(),
                assistants: assistants::Remembered::default(),
                known_payloads: foreign::Known::default(),
                nodes,
                active: Mutex::default(),
                watch: Mutex::default(),
                wake: Notify::new(),
                at_limit: AtomicBool::new(false),
                crons: Notify::new(),
                webhooks: Notify::new(),
                idle: Notify::new(),
                draining: CancellationToken::new(),
                stopped: CancellationToken::new(),
            }),
        }
    }

    pub fn storage(&self) -> &SharedStorage {
        &self.inner.storage
    }

    /// What this process counts of its own work.
    pub fn metrics(&self) -> &metrics::Metrics {
        &self.inner.metrics
    }

    /// When this process started.
    pub fn started_at(&self) -> Timestamp {
        self.inner.started_at
    }

    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// What the process occupies and may occupy.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.inner.settings.memory
    }

    /// The graphs of this build, in registration order.
    pub fn graphs(&self) -> &[Graph] {
        &self.inner.graphs
    }

    pub fn graph(&self, name: &str) -> Option<&Graph> {
        self.inner.graphs.iter().find(|graph| graph.name() == name)
    }

    /// Returns once nodes hold every thread there is for them here.
    pub(crate) fn nodes_blocked(&self) -> impl Future<Output = ()> + Send + 'static {
        self.inner.nodes.blocked()
    }

    pub(crate) fn nodes(&self) -> &tokio::runtime::Handle {
        self.inner.nodes.handle()
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}
