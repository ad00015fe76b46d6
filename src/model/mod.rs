//! The nouns: what a client can name and what storage keeps. Plain data; no I/O, no clock, no behaviour beyond
//! parsing and rendering.

pub mod assistant;
pub mod checkpoint;
pub mod cron;
pub mod effect;
pub mod event;
pub mod execution;
pub mod frame;
pub mod id;
pub mod interrupt;
pub mod item;
pub mod json;
pub mod run;
pub mod scope;
pub mod state;
pub mod thread;
pub mod time;
pub mod timeout;
pub mod usage;

pub use assistant::Assistant;
pub use checkpoint::{
    CheckpointMetadata, CheckpointRef, CheckpointSource, Interrupt, Origin, PendingWrite, STEP_OF_NOTHING, TaskPath,
    WrittenBy, special,
};
pub use cron::Cron;
pub use effect::{Effect, EffectEntry, EffectPlace, EffectState};
pub use event::{Event, EventId, StreamMode};
pub use execution::{LoggedTask, TaskDetail, TaskExecution, TaskOutcome};
pub use id::{CheckpointId, IdError, RunId, ThreadId, ThreadKey, system_assistant_id};
pub use interrupt::{InterruptRecord, InterruptStatus};
pub use item::{FoundItem, Indexing, Item};
pub use json::{Fields, Json, JsonError};
pub use run::{
    Breakpoints, CancelAction, Durability, ErrorInfo, MultitaskStrategy, OnCompletion, Run, RunKwargs, RunStatus,
};
pub use scope::Scope;
pub use state::{Cursor, HeadView, TaskState, ThreadState};
pub use thread::{Closed, ClosedAs, Moved, Thread, ThreadStatus, ThreadTtl, Ttl, TtlStrategy};
pub use time::Timestamp;
pub use timeout::{RefreshOn, TimeoutPolicy};
pub use usage::{Cost, CostError, ModelUsage, UsageTotals};
