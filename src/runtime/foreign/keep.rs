//! What is kept of a thread whose checkpoints come from elsewhere, and what goes.

use std::collections::BTreeSet;

use super::{Opened, Runtime, RuntimeError};
use crate::model::{CheckpointId, Json, Scope, ThreadId, ThreadKey};
use crate::storage::{ForeignFilter, ForeignKept, PayloadHash, Pruned, StorageError, StoredForeign};

/// Checkpoints deleted in one step.
const STEP: i64 = 500;
/// How often a thread is looked at again that changes while it is pruned.
const LOOKS: usize = 5;

impl Runtime {
    /// Removes all but the latest checkpoint of every namespace, and what these are rebuilt from. False when the thread is
    /// missing or keeps changing.
    pub async fn prune_foreign(&self, scope: &Scope, id: &ThreadId) -> Result<bool, RuntimeError> {
        self.keep_only(scope, id, true).await
    }

    /// Deletes the checkpoints of runs, by what their metadata calls them, on any thread; then the values that nothing refers
    /// to any more. Returns how many checkpoints went.
    pub async fn delete_foreign_runs(&self, scope: &Scope, run_ids: &[String]) -> Result<i64, RuntimeError> {
        let mut gone = 0;
        let mut threads = BTreeSet::new();
        loop {
            let (count, concerned) = self.storage().delete_foreign_runs(scope, run_ids, STEP).await?;
            gone += count;
            threads.extend(concerned);
            if count < STEP {
                break;
            }
        }
        for thread in &threads {
            // One that changes meanwhile keeps them until it is pruned or deleted.
            let _is_clean = self.keep_only(scope, thread, false).await?;
        }
        Ok(gone)
    }

    async fn keep_only(&self, scope: &Scope, id: &ThreadId, only_latest: bool) -> Result<bool, RuntimeError> {
        let key = id.key(scope.tenant());
        for looks_left in (0..LOOKS).rev() {
            if !self.storage().is_foreign(scope, key).await? {
                return Ok(false);
            }
            let kept = match self.kept(scope, key, only_latest).await {
                // Somebody else may be removing what is looked at.
                Err(RuntimeError::Storage(StorageError::Corrupt { .. })) if looks_left > 0 => continue,
                kept => kept?,
            };
            loop {
                match self.storage().prune_foreign(scope, id, &kept).await? {
                    Pruned::Done => return Ok(true),
                    Pruned::More => {}
                    Pruned::Changed => break,
                }
            }
        }
        Ok(false)
    }

    async fn kept(&self, scope: &Scope, thread: ThreadKey, only_latest: bool) -> Result<ForeignKept, RuntimeError> {
        let latest = self.storage().latest_foreign(scope, thread).await?;
        let mut rows: Vec<StoredForeign> = Vec::new();
        for (ns, id) in &latest {
            if only_latest {
                rows.extend(self.chain(scope, thread, ns, id).await?);
                continue;
            }
            let mut filter = ForeignFilter { ns: Some(ns.clone()), ..ForeignFilter::default() };
            loop {
                let page = self.storage().list_foreign(scope, thread, &filter, STEP).await?;
                let is_last = (page.len() as i64) < STEP;
                filter.before = page.last().map(|stored| stored.row.id.clone());
                rows.extend(page);
                if is_last {
                    break;
                }
            }
        }
        let checkpoints = rows.iter().map(|stored| (stored.row.ns.clone(), stored.row.id.clone()));
        let checkpoints = only_latest.then(|| checkpoints.collect());
        let prints = rows.iter().map(StoredForeign::print).collect();
        let mut hashes: BTreeSet<PayloadHash> = BTreeSet::new();
        for stored in rows {
            hashes.extend(Opened::new(stored)?.hashes());
        }
        let wanted: Vec<PayloadHash> = hashes.iter().copied().collect();
        // With all that they are made of.
        hashes.extend(self.storage().load_foreign_payloads(scope, thread, &wanted).await?.iter().map(|row| row.hash));
        Ok(ForeignKept { latest, checkpoints, payloads: hashes.into_iter().collect(), prints })
    }

    /// A checkpoint, and as many of its ancestors as its delta channels are rebuilt from.
    async fn chain(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        id: &CheckpointId,
    ) -> Result<Vec<StoredForeign>, RuntimeError> {
        let mut rows = Vec::new();
        let mut open: Option<BTreeSet<String>> = None;
        let mut next = Some(id.clone());
        // A checkpoint that was put again may have got a child of its own as its parent.
        let mut seen: BTreeSet<CheckpointId> = BTreeSet::new();
        while let Some(id) = next.take().filter(|id| seen.insert(id.clone())) {
            let Some(stored) = self.storage().load_foreign(scope, thread, ns, Some(&id)).await? else { break };
            let opened = Opened::new(stored.clone())?;
            let all = opened.body.metadata.get("delta_writes_versioned").is_some();
            let open = open.get_or_insert_with(|| delta_channels(&opened.body.metadata));
            open.retain(|channel| !opened.body.values.contains_key(channel));
            // LangGraph.js says that there are such channels, not which.
            if all || !open.is_empty() {
                next = stored.row.parent.clone();
            }
            rows.push(stored);
        }
        Ok(rows)
    }
}

/// The channels whose value a checkpoint may lack because it is stored as changes.
fn delta_channels(metadata: &Json) -> BTreeSet<String> {
    let counters = metadata.get("counters_since_delta_snapshot").and_then(|counters| counters.fields());
    counters.into_iter().flatten().map(|(channel, _)| channel).collect()
}
