//! The contract for effects: reads. They are written with the supersteps of a run, under its lease
//! ([`super::StepRows::effects`]).

use async_trait::async_trait;

use super::{Page, Result};
use crate::model::{Effect, EffectEntry, EffectPlace, EffectState, Scope, ThreadKey};

/// An effect to write: inserted, or in place of the row of the same call, unless that one is recorded: what is recorded
/// never changes.
#[derive(Debug, Clone)]
pub struct EffectRow {
    pub place: EffectPlace,
    pub entry: EffectEntry,
}

impl EffectRow {
    /// Whether two rows are about the same call.
    pub fn is_same_call(&self, other: &EffectRow) -> bool {
        let (a, b) = (&self.place, &other.place);
        (&self.entry.key, &a.task_id, &a.checkpoint_id, &a.ns)
            == (&other.entry.key, &b.task_id, &b.checkpoint_id, &b.ns)
    }
}

/// Which effects a list shows.
#[derive(Debug, Clone, Default)]
pub struct EffectFilter {
    pub state: Option<EffectState>,
    /// Of one of these tasks.
    pub tasks: Option<Vec<String>>,
    /// With their results, which may be large.
    pub results: bool,
}

/// Effects.
#[async_trait]
pub trait Effects {
    /// The calls of one task, in any order.
    async fn task_effects(&self, scope: &Scope, thread: ThreadKey, place: &EffectPlace) -> Result<Vec<EffectEntry>>;

    /// One page of a thread's calls, the latest started first.
    async fn list_effects(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &EffectFilter,
        page: Page,
    ) -> Result<Vec<Effect>>;
}
