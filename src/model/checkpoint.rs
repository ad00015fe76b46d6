//! Checkpoints: the state of a thread after a superstep, and the writes pending on it. The logical contents of the
//! engine specification, section 3.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CheckpointId, Fields, Json, Timestamp};

/// Names that are not state keys (engine specification, "Sentinels").
pub mod special {
    pub const START: &str = "__start__";
    pub const END: &str = "__end__";
    pub const INPUT: &str = "__input__";
    pub const COPY: &str = "__copy__";
    pub const TASKS: &str = "__pregel_tasks";
    pub const INTERRUPT: &str = "__interrupt__";
    pub const RESUME: &str = "__resume__";
    pub const ERROR: &str = "__error__";
    pub const ERROR_SOURCE_NODE: &str = "__error_source_node__";
    pub const NO_WRITES: &str = "__no_writes__";
    /// The node's own output is recorded, but one of its routers failed: the task has to run again.
    pub const ROUTER_FAILED: &str = "__router_failed__";
    /// What models cost in a task, all its attempts together.
    pub const USAGE: &str = "__usage__";
    pub const PULL: &str = "__pregel_pull";
    pub const PUSH: &str = "__pregel_push";
    pub const ROOT: &str = "__root__";
    /// The task id of writes that belong to no task: a Command given as input.
    pub const NULL_TASK: &str = "00000000-0000-0000-0000-000000000000";
}

/// Where a checkpoint came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointSource {
    Input,
    Loop,
    Update,
    Fork,
}

impl CheckpointSource {
    pub fn as_str(self) -> &'static str {
        match self {
            CheckpointSource::Input => "input",
            CheckpointSource::Loop => "loop",
            CheckpointSource::Update => "update",
            CheckpointSource::Fork => "fork",
        }
    }

    pub fn parse(text: &str) -> Option<CheckpointSource> {
        [Self::Input, Self::Loop, Self::Update, Self::Fork].into_iter().find(|source| source.as_str() == text)
    }
}

/// What is known about a checkpoint besides its state.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointMetadata {
    pub source: CheckpointSource,
    /// -1 for the first input checkpoint, then 0, 1, 2, ..
    pub step: i64,
    /// For a subgraph: the checkpoint id of every ancestor namespace.
    pub parents: BTreeMap<String, CheckpointId>,
    /// Scalars of the run's config and metadata: `run_id`, `graph_id`, the user's own keys.
    pub extra: Fields,
}

/// The step of a row that stands for the thread before its first checkpoint: it has no state and no source.
pub const STEP_OF_NOTHING: i64 = -2;

/// Versions of channels, by channel name. Integers that grow by one per superstep along a branch.
pub type Versions = BTreeMap<String, u64>;

/// The graph that wrote a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WrittenBy {
    /// The author's name for the state of the graph.
    #[serde(rename = "v")]
    pub version: String,
    /// A hash of its nodes, edges and channels.
    #[serde(rename = "t")]
    pub topology: String,
}

/// Where the pending tasks of a migrated checkpoint were planned first. Their ids go by it, so that questions asked, writes
/// recorded and the namespaces of graphs inside them stay theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    #[serde(rename = "c")]
    pub checkpoint_id: CheckpointId,
    #[serde(rename = "s")]
    pub step: i64,
    /// What renamed nodes were called then, by their name now.
    #[serde(rename = "n", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, String>,
    /// Ids of tasks with recorded writes, by their path then.
    #[serde(rename = "i", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, String>,
}

/// A checkpoint with its values at hand.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub id: CheckpointId,
    pub at: Timestamp,
    /// Values of the channels that have one, in their persisted form (engine specification, section 2).
    pub values: Fields,
    pub versions: Versions,
    pub versions_seen: BTreeMap<String, Versions>,
    /// The channels the superstep updated, sorted; `None` (update, fork) means "plan every node".
    pub updated: Option<Vec<String>>,
    /// `None`: written before this was remembered.
    pub written_by: Option<WrittenBy>,
    /// Set by a migration.
    pub origin: Option<Origin>,
}

/// A cursor to a checkpoint, as clients send and receive it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointRef {
    /// `""` is the root graph.
    pub ns: String,
    /// `None` is the latest.
    pub id: Option<CheckpointId>,
    /// Ids in other namespaces, for a subgraph's checkpoint.
    pub map: BTreeMap<String, CheckpointId>,
}

/// The path of a task: how it was planned, and what the order of application sorts by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskPath {
    /// Triggered by channels.
    Pull(Arc<str>),
    /// The n-th Send of the superstep.
    Push(usize),
    /// The error handler of a node's task; the handler of a Send's task carries the Send's index.
    Handler(Arc<str>, Option<usize>),
    /// No task: the writes of a Command given as input.
    Null,
}

impl TaskPath {
    /// The sort key of the engine specification, section 1.5.
    pub fn sort_key(&self) -> String {
        match self {
            TaskPath::Pull(node) => format!("~__pregel_pull, {node}"),
            TaskPath::Push(index) => format!("~__pregel_push, {index:010}, 0000000000"),
            TaskPath::Handler(node, None) => format!("~__pregel_pull, {node}, node_error_handler, 0000000000"),
            TaskPath::Handler(_, Some(index)) => format!("~__pregel_push, {index:010}, node_error_handler, 0000000000"),
            TaskPath::Null => String::new(),
        }
    }

    /// Compares by sort key, without making the keys.
    pub fn cmp_order(&self, other: &TaskPath) -> Ordering {
        /// How a key goes on after a name; and that handlers come after what they handle.
        const HANDLER: &str = ", node_error_handler, 0000000000";
        let by_kind = |path: &TaskPath| match path {
            TaskPath::Null => 0,
            TaskPath::Pull(_) | TaskPath::Handler(_, None) => 1,
            TaskPath::Push(_) | TaskPath::Handler(_, Some(_)) => 2,
        };
        let named = |path: &TaskPath| match path {
            TaskPath::Pull(node) => Some((Arc::clone(node), "")),
            TaskPath::Handler(node, None) => Some((Arc::clone(node), HANDLER)),
            _ => None,
        };
        let indexed = |path: &TaskPath| match path {
            TaskPath::Push(index) => Some((*index, false)),
            TaskPath::Handler(_, Some(index)) => Some((*index, true)),
            _ => None,
        };
        by_kind(self).cmp(&by_kind(other)).then_with(|| match (named(self), named(other)) {
            (Some((a, a_tail)), Some((b, b_tail))) => {
                a.bytes().chain(a_tail.bytes()).cmp(b.bytes().chain(b_tail.bytes()))
            }
            _ => indexed(self).cmp(&indexed(other)),
        })
    }

    /// Reads a sort key back.
    pub fn parse(text: &str) -> Option<TaskPath> {
        if text.is_empty() {
            return Some(TaskPath::Null);
        }
        let mut parts = text.strip_prefix('~')?.split(", ");
        let (kind, name, third) = (parts.next()?, parts.next()?, parts.next());
        let is_handler = third == Some("node_error_handler");
        Some(match (kind, is_handler) {
            (special::PULL, false) => TaskPath::Pull(name.into()),
            (special::PULL, true) => TaskPath::Handler(name.into(), None),
            (special::PUSH, false) => TaskPath::Push(name.parse().ok()?),
            (special::PUSH, true) => TaskPath::Handler("".into(), Some(name.parse().ok()?)),
            _ => return None,
        })
    }

    /// The wire form: `["__pregel_pull", "n"]`, `["__pregel_push", 0, false]`.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            TaskPath::Pull(node) => serde_json::json!([special::PULL, **node]),
            TaskPath::Push(index) => serde_json::json!([special::PUSH, index, false]),
            TaskPath::Handler(node, _) => serde_json::json!([special::PULL, **node, "node_error_handler", false]),
            TaskPath::Null => serde_json::json!([]),
        }
    }
}

impl fmt::Display for TaskPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sort_key())
    }
}

/// One write of a task whose superstep has not been applied (or was, and is kept as the task's result).
#[derive(Debug, Clone, PartialEq)]
pub struct PendingWrite {
    pub task_id: String,
    pub path: TaskPath,
    pub channel: String,
    pub value: Json,
}

/// A question a node asks a human.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interrupt {
    pub id: String,
    pub value: Json,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_schema: Option<Json>,
}

#[cfg(test)]
mod tests {
    use super::TaskPath;

    #[test]
    fn paths_sort_pulls_by_name_then_sends_by_index() {
        let mut paths = [
            TaskPath::Push(10),
            TaskPath::Push(2),
            TaskPath::Pull("z".into()),
            TaskPath::Handler("b".into(), None),
            TaskPath::Pull("b".into()),
        ];
        paths.sort_by_key(TaskPath::sort_key);
        let order: Vec<String> = paths.iter().map(TaskPath::sort_key).collect();
        assert_eq!(order[0], "~__pregel_pull, b");
        assert_eq!(order[3], "~__pregel_push, 0000000002, 0000000000");
        for path in &paths {
            assert_eq!(TaskPath::parse(&path.sort_key()).as_ref(), Some(path));
        }
    }

    #[test]
    fn the_order_of_paths_is_that_of_their_keys() {
        let mut paths = vec![TaskPath::Null];
        for name in ["", "a", "a,", "a, b", "a, node_error_handler, 0000000000", "ab", "é", "n", "z"] {
            paths.extend([TaskPath::Pull(name.into()), TaskPath::Handler(name.into(), None)]);
        }
        for index in [0, 1, 9, 10, 4_000_000_000] {
            paths.extend([TaskPath::Push(index), TaskPath::Handler("a".into(), Some(index))]);
        }
        for a in &paths {
            for b in &paths {
                assert_eq!(a.cmp_order(b), a.sort_key().cmp(&b.sort_key()), "{a} and {b}");
            }
        }
    }
}
