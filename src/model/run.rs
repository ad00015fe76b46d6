//! Runs: one invocation of a graph on a thread, and how it was asked for.

#![deny(missing_docs)]

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::{Json, RunId, ThreadId, ThreadKey, Timestamp, UsageTotals};

/// A run's status (contract section 2). A run that stops at an interrupt ends as `success`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Nobody executes it yet.
    Pending,
    /// A process executes it.
    Running,
    /// It failed, or was given up.
    Error,
    /// It came to its end, or stopped to ask.
    Success,
    /// It took longer than it may.
    Timeout,
    /// Somebody stopped it.
    Interrupted,
}

impl RunStatus {
    const ALL: [RunStatus; 6] = [
        RunStatus::Pending,
        RunStatus::Running,
        RunStatus::Error,
        RunStatus::Success,
        RunStatus::Timeout,
        RunStatus::Interrupted,
    ];

    /// The word clients use.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Pending => "pending",
            RunStatus::Running => "running",
            RunStatus::Error => "error",
            RunStatus::Success => "success",
            RunStatus::Timeout => "timeout",
            RunStatus::Interrupted => "interrupted",
        }
    }

    /// Reads the word clients use.
    pub fn parse(text: &str) -> Option<RunStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Pending or running: the run still occupies its thread.
    pub fn is_active(self) -> bool {
        matches!(self, RunStatus::Pending | RunStatus::Running)
    }
}

/// What to do with a new run while the thread has an active one (contract section 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MultitaskStrategy {
    /// It waits for its turn.
    #[default]
    Enqueue,
    /// It is refused.
    Reject,
    /// The active run is stopped, and keeps what it did.
    Interrupt,
    /// The active run is stopped, and what it did is taken back.
    Rollback,
}

impl MultitaskStrategy {
    /// The word clients use.
    pub fn as_str(self) -> &'static str {
        match self {
            MultitaskStrategy::Enqueue => "enqueue",
            MultitaskStrategy::Reject => "reject",
            MultitaskStrategy::Interrupt => "interrupt",
            MultitaskStrategy::Rollback => "rollback",
        }
    }

    /// Reads the word clients use.
    pub fn parse(text: &str) -> Option<MultitaskStrategy> {
        [Self::Enqueue, Self::Reject, Self::Interrupt, Self::Rollback].into_iter().find(|s| s.as_str() == text)
    }
}

/// What cancelling does to what the run has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAction {
    /// Completed steps stay; the run ends as `interrupted`.
    Interrupt,
    /// The run and all checkpoints it wrote are deleted.
    Rollback,
}

impl CancelAction {
    /// The word clients use.
    pub fn as_str(self) -> &'static str {
        match self {
            CancelAction::Interrupt => "interrupt",
            CancelAction::Rollback => "rollback",
        }
    }

    /// Reads the word clients use.
    pub fn parse(text: &str) -> Option<CancelAction> {
        [Self::Interrupt, Self::Rollback].into_iter().find(|action| action.as_str() == text)
    }
}

/// When supersteps are committed (engine specification, section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Each superstep is committed before the next one starts.
    Sync,
    /// Supersteps are committed in order in the background; consecutive ones may share a commit.
    #[default]
    Async,
    /// One checkpoint at the end of the run.
    Exit,
}

impl Durability {
    /// Reads the word clients use.
    pub fn parse(word: &str) -> Option<Durability> {
        Some(match word {
            "sync" => Durability::Sync,
            "async" => Durability::Async,
            "exit" => Durability::Exit,
            _ => return None,
        })
    }
}

/// What happens to a stateless run's temporary thread afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCompletion {
    /// It goes with the run.
    #[default]
    Delete,
    /// It stays.
    Keep,
}

impl OnCompletion {
    /// The word clients use.
    pub fn as_str(self) -> &'static str {
        match self {
            OnCompletion::Delete => "delete",
            OnCompletion::Keep => "keep",
        }
    }

    /// Reads the word clients use.
    pub fn parse(text: &str) -> Option<OnCompletion> {
        [Self::Delete, Self::Keep].into_iter().find(|word| word.as_str() == text)
    }
}

/// Static breakpoints: all nodes (`"*"`) or the named ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Breakpoints {
    /// All nodes.
    All,
    /// These nodes.
    Nodes(Vec<String>),
}

impl Breakpoints {
    /// Whether `node` is one of them.
    pub fn contains(&self, node: &str) -> bool {
        match self {
            Breakpoints::All => true,
            Breakpoints::Nodes(nodes) => nodes.iter().any(|name| name == node),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Breakpoints::Nodes(nodes) if nodes.is_empty())
    }
}

impl Default for Breakpoints {
    fn default() -> Self {
        Breakpoints::Nodes(Vec::new())
    }
}

impl Serialize for Breakpoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Breakpoints::All => serializer.serialize_str("*"),
            Breakpoints::Nodes(nodes) => nodes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Breakpoints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Wire {
            One(String),
            Many(Vec<String>),
        }
        Ok(match Wire::deserialize(deserializer)? {
            Wire::One(star) if star == "*" => Breakpoints::All,
            Wire::One(name) => Breakpoints::Nodes(vec![name]),
            Wire::Many(names) if names.iter().any(|name| name == "*") => Breakpoints::All,
            Wire::Many(names) => Breakpoints::Nodes(names),
        })
    }
}

/// A failure as shown to clients: `{"error": class, "message": text}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// What kind of failure it is.
    pub error: String,
    /// What happened, in words.
    pub message: String,
}

/// Everything a run was asked to do. Stored as one payload and shown as `kwargs`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunKwargs {
    /// What the graph is given.
    pub input: Option<Json>,
    /// In place of an input: answers, updates, destinations.
    pub command: Option<Json>,
    /// `{tags, recursion_limit, configurable, metadata}`; a checkpoint to start from is inside `configurable`.
    pub config: Json,
    /// The run's static context.
    pub context: Json,
    /// What is streamed.
    pub stream_mode: Vec<String>,
    /// In place of the graph's own breakpoints.
    pub interrupt_before: Option<Breakpoints>,
    /// In place of the graph's own breakpoints.
    pub interrupt_after: Option<Breakpoints>,
    /// Who is told of its end: a URL.
    pub webhook: Option<String>,
    /// Kept as given.
    pub feedback_keys: Option<Vec<String>>,
    /// The thread is deleted when the run ends.
    pub temporary: bool,
    /// Subgraph events are streamed too.
    pub subgraphs: bool,
    /// Events are kept for replay.
    pub resumable: bool,
    /// What the caller said by the old name of `durability`; that one counts.
    pub checkpoint_during: Option<bool>,
    /// When its supersteps are committed.
    pub durability: Durability,
    /// Started by a command of protocol v2: legacy streams show its events in that form (contract section 5.3).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub protocol: bool,
    /// The process whose caller hears it, where there are several: others store what it tells. Not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_by: Option<Uuid>,
}

impl RunKwargs {
    /// What the caller asked for, without what the server adds.
    pub fn shown(stored: &Json) -> Json {
        // Most have nothing to leave out, and an input may be long: it is not taken apart for that.
        if !stored.as_raw().get().contains("\"heard_by\"") {
            return stored.clone();
        }
        let mut fields = stored.fields().unwrap_or_default();
        fields.shift_remove("heard_by");
        Json::from(&fields)
    }
}

/// A run row.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its id.
    pub run_id: RunId,
    /// What rows of its thread begin with.
    pub thread_key: ThreadKey,
    /// The name of its thread.
    pub thread_id: ThreadId,
    /// The assistant it was asked for by.
    pub assistant_id: Uuid,
    /// The graph it invokes.
    pub graph_id: String,
    /// How far it is.
    pub status: RunStatus,
    /// What the caller noted about it, and what the server adds.
    pub metadata: Json,
    /// [`RunKwargs`], as stored.
    pub kwargs: Json,
    /// What became of the run that was active when it came.
    pub multitask_strategy: MultitaskStrategy,
    /// Claims without progress since the last superstep commit; shown as `attempt` (at least 1).
    pub attempts: i32,
    /// Includes the delay of `after_seconds`: such a run's time lies in the future.
    pub created_at: Timestamp,
    /// When its status changed last.
    pub updated_at: Timestamp,
    /// Why it failed, if it did.
    pub error: Option<ErrorInfo>,
    /// Who asked for it: a name for records, not a proof.
    pub actor: Option<String>,
    /// What models cost in this run, attempts that failed included.
    pub usage: UsageTotals,
}

impl Run {
    /// Whether its events are kept for replay. Splits `kwargs`, which hold the input: ask once.
    pub fn is_resumable(&self) -> bool {
        self.kwargs.get("resumable").is_some_and(|flag| flag.value() == true)
    }
}
