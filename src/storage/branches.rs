//! The contract for branches: the leaves of the tree of a thread's checkpoints, names for them, and moving the head from
//! one to another ([`super::StateCommit::moves`]).
//!
//! A name stands for a checkpoint of the root graph. A thread may be *on* a branch: then the name follows the head, at no
//! cost, since its row is written when the thread leaves it.

use async_trait::async_trait;

use super::Result;
use crate::model::{CheckpointId, CheckpointSource, RunId, Scope, ThreadId, ThreadKey, Timestamp};

/// Names that one thread may have.
pub const MAX_BRANCHES: i64 = 1_000;

/// A named checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    pub name: String,
    /// The head, if the thread is on the branch; `None`: it has none.
    pub checkpoint_id: Option<CheckpointId>,
    /// The thread is on it.
    pub is_current: bool,
    pub created_at: Timestamp,
    /// When the name was given last.
    pub updated_at: Timestamp,
    /// Who gave it: a name for records.
    pub updated_by: Option<String>,
}

/// A checkpoint of the root graph that is an end of the tree, has a name, or is the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    pub checkpoint_id: CheckpointId,
    pub parent: Option<CheckpointId>,
    pub run_id: Option<RunId>,
    pub step: i64,
    pub source: CheckpointSource,
    pub at: Timestamp,
    /// The nodes that run next.
    pub next: Vec<String>,
    /// Nothing follows it.
    pub is_leaf: bool,
    pub is_head: bool,
}

/// What [`Branches::put_branch`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BranchPut {
    Put(Branch),
    ThreadMissing,
    ThreadClosed,
    /// The thread has no such checkpoint, or none at all.
    CheckpointMissing,
    /// The thread is on this branch, and the checkpoint is not its head.
    IsCurrent,
    /// The thread has [`MAX_BRANCHES`] names.
    TooMany,
}

/// Branches.
#[async_trait]
pub trait Branches {
    /// One page of the tips of a thread, newest first, with an id smaller than `before`.
    async fn list_tips(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        before: Option<&CheckpointId>,
        limit: i64,
    ) -> Result<Vec<Tip>>;

    /// The names of a thread, sorted; all of them, or one.
    async fn list_branches(&self, scope: &Scope, thread: ThreadKey, name: Option<&str>) -> Result<Vec<Branch>>;

    /// Names a checkpoint, or the head when none is given. A name that is taken moves there.
    async fn put_branch(
        &self,
        scope: &Scope,
        id: &ThreadId,
        name: &str,
        checkpoint: Option<&CheckpointId>,
        actor: Option<&str>,
    ) -> Result<BranchPut>;

    /// Takes a name away; the checkpoints stay. A thread that was on it is on no branch then. `None` when the thread is
    /// missing, false when it has no such name.
    async fn delete_branch(&self, scope: &Scope, id: &ThreadId, name: &str) -> Result<Option<bool>>;

    /// Whether another checkpoint follows one of the root graph.
    async fn is_continued(&self, scope: &Scope, thread: ThreadKey, checkpoint: &CheckpointId) -> Result<bool>;
}

/// Defines `tip_from` and `branch_from` for a row type.
macro_rules! define_branch_rows {
    ($row:ty) => {
        fn tip_from(row: &$row) -> Result<Tip> {
            use crate::model::{CheckpointSource, Timestamp};
            use crate::storage::encoding::{self, Place};
            let key: uuid::Uuid = get(row, "thread_key")?;
            let checkpoint_id: CheckpointId = get(row, "checkpoint_id")?;
            let name = format!("{key}//{checkpoint_id}");
            let at = |column| Place { table: "checkpoints", column, id: &name };
            let source: String = get(row, "source")?;
            let next = encoding::json(get(row, "codec")?, get(row, "next_nodes")?, at("next_nodes"))?;
            Ok(Tip {
                parent: get(row, "parent_id")?,
                run_id: get(row, "run_id")?,
                step: get(row, "step")?,
                source: CheckpointSource::parse(&source).ok_or_else(|| at("source").corrupt(source))?,
                at: Timestamp(get(row, "created_at")?),
                next: next.decode().map_err(|error| at("next_nodes").corrupt(error.0))?,
                is_leaf: get(row, "is_leaf")?,
                is_head: get(row, "is_head")?,
                checkpoint_id,
            })
        }

        fn branch_from(row: &$row) -> Result<Branch> {
            use crate::model::Timestamp;
            use crate::storage::encoding;
            Ok(Branch {
                name: get(row, "name")?,
                checkpoint_id: get(row, "checkpoint_id")?,
                is_current: get(row, "is_current")?,
                created_at: Timestamp(get(row, "created_at")?),
                updated_at: Timestamp(get(row, "updated_at")?),
                updated_by: get::<Option<String>>(row, "updated_by")?.map(encoding::show_nul),
            })
        }
    };
}
pub(crate) use define_branch_rows;
