//! What is removed in time: threads that expired, states that nobody needs, rows that deleted threads left.

use std::collections::{BTreeMap, HashMap};

use super::persist::{origin, references};
use super::{Runtime, RuntimeError};
use crate::engine::step::is_control;
use crate::model::{CheckpointId, Scope, Thread, ThreadId, ThreadStatus, TtlStrategy, special};
use crate::storage::{
    CheckpointFilter, ExpiredThread, Kept, PayloadHash, Pruned, Size, StorageError, StoredCheckpoint, ThreadSizes,
    Which,
};

/// Expired threads looked up at once.
const SWEEP_PAGE: i64 = 100;
/// States whose values are told apart by channel in a report, the newest ones; and how many are read at once.
const REPORTED_STATES: usize = 1_000;
const REPORT_PAGE: i64 = 200;

/// What a thread occupies, and which channels' values that is.
#[derive(Debug, Clone, Default)]
pub struct StorageReport {
    pub sizes: ThreadSizes,
    /// Values by the channel that holds them: of lists, those stored once per thread, and small ones, which stand in the
    /// rows of checkpoints and are part of their size. What only states older than the newest `REPORTED_STATES` hold is in
    /// the totals alone.
    pub by_channel: BTreeMap<String, Size>,
}

impl Runtime {
    /// Sweeps from time to time. Any number of processes may do so: each removal asks again whether it is due.
    pub(crate) async fn sweep_loop(self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.inner.settings.sweep_every) => {}
                () = self.inner.stopped.cancelled() => return,
            }
            tokio::select! {
                swept = self.sweep() => {
                    if let Err(error) = swept {
                        tracing::warn!(%error, "could not remove what has expired; it is tried again");
                    }
                }
                () = self.inner.stopped.cancelled() => return,
            }
        }
    }

    /// Removes what is due, in bounded steps. Returns how many threads that concerned.
    pub async fn sweep(&self) -> Result<usize, RuntimeError> {
        let mut swept = 0;
        loop {
            let due = self.storage().expired_threads(&Scope::Server, SWEEP_PAGE).await?;
            let mut removed = 0;
            for thread in &due {
                match self.expire(thread).await {
                    Ok(is_removed) => removed += usize::from(is_removed),
                    Err(error) => tracing::warn!(thread.id = %thread.id, %error, "could not remove an expired thread"),
                }
            }
            swept += removed;
            // What could not be removed would only be found again.
            if removed == 0 || (due.len() as i64) < SWEEP_PAGE {
                break;
            }
        }
        while self.storage().reclaim(&Scope::Server).await? {}
        let max_bytes = i64::try_from(self.inner.settings.cache_bytes).unwrap_or(i64::MAX);
        while self.storage().sweep_cache(&Scope::Server, max_bytes).await? {}
        while self.storage().sweep_items(&Scope::Server).await? {}
        Ok(swept)
    }

    async fn expire(&self, thread: &ExpiredThread) -> Result<bool, RuntimeError> {
        match thread.strategy {
            TtlStrategy::Delete => Ok(self.storage().expire_thread(&thread.scope, &thread.id).await?),
            TtlStrategy::KeepLatest => self.prune_to_latest(&thread.scope, &thread.id).await,
        }
    }

    /// Removes all but a thread's latest state, and what the graphs inside it wait with or remember. False when the thread
    /// is missing or in use. Dropped halfway, some older states are left.
    pub async fn prune_to_latest(&self, scope: &Scope, id: &ThreadId) -> Result<bool, RuntimeError> {
        let Some(thread) = self.storage().find_thread(scope, id).await? else { return Ok(false) };
        if thread.status == ThreadStatus::Busy {
            return Ok(false);
        }
        if thread.head.is_none() && self.storage().is_foreign(scope, thread.key).await? {
            return self.prune_foreign(scope, id).await;
        }
        let kept = self.latest_of(scope, &thread).await?;
        loop {
            match self.storage().prune_thread(scope, id, &kept).await? {
                Pruned::Done => return Ok(true),
                Pruned::More => {}
                Pruned::Changed => return Ok(false),
            }
        }
    }

    /// The latest state of each namespace that is still of use: the root; graphs that remember across calls; and calls
    /// that the root's latest state waits for.
    async fn latest_of(&self, scope: &Scope, thread: &Thread) -> Result<Kept, RuntimeError> {
        let mut rows: Vec<StoredCheckpoint> = Vec::new();
        let storage = self.storage();
        // The head; and where its tasks were planned first, if a migrated graph brought them along. The root's namespace comes
        // first.
        let mut waiting: Vec<CheckpointId> = thread.head.iter().cloned().collect();
        for ns in storage.list_namespaces_of(scope, &thread.id).await? {
            let is_own = !ns.is_empty() && !ns.contains(':');
            let latest = match thread.head.as_ref().filter(|_| is_own && thread.is_moved()) {
                // What the graph had where the head was moved, not what it has had since.
                Some(head) => {
                    match storage.load_checkpoint(scope, thread.key, &ns, &Which::During(head.clone())).await? {
                        None => storage.load_checkpoint(scope, thread.key, &ns, &Which::Before(head.clone())).await?,
                        found => found,
                    }
                }
                None => storage.load_checkpoint(scope, thread.key, &ns, &Which::Latest).await?,
            };
            if let (Some(latest), true) = (&latest, ns.is_empty()) {
                waiting.extend(origin(&latest.row)?.map(|origin| origin.checkpoint_id));
            }
            rows.extend(latest.filter(|stored| !ns.contains(':') || belongs_to(stored, &waiting)));
        }
        let found = references(&rows)?;
        Ok(Kept {
            head: thread.head.clone(),
            checkpoints: rows.into_iter().map(|stored| (stored.row.ns, stored.row.id)).collect(),
            origins: found.origins,
            payloads: found.payloads.into_keys().collect(),
            branches: found.ranges.into_iter().map(|r| (r.ns, r.channel, r.branch, r.end)).collect(),
        })
    }

    /// What a thread occupies.
    pub async fn thread_storage(&self, scope: &Scope, id: &ThreadId) -> Result<StorageReport, RuntimeError> {
        let missing = || RuntimeError::ThreadNotFound(id.to_string());
        let sizes = self.storage().thread_sizes(scope, id).await?.ok_or_else(missing)?;
        let mut by_channel: BTreeMap<String, Size> = sizes.lists.iter().cloned().collect();
        let (channels, inline) = self.channels_of_values(scope, id).await?;
        let hashes: Vec<PayloadHash> = channels.keys().copied().collect();
        for (hash, bytes) in self.storage().payload_sizes(scope, id.key(scope.tenant()), &hashes).await? {
            let Some(channel) = channels.get(&hash) else { continue };
            let size = by_channel.entry(channel.clone()).or_default();
            size.count += 1;
            size.bytes += bytes;
        }
        for (channel, size) in inline {
            let known = by_channel.entry(channel).or_default();
            *known = Size { count: known.count + size.count, bytes: known.bytes + size.bytes };
        }
        Ok(StorageReport { sizes, by_channel })
    }

    /// The channels of payloads, and what stands in the rows of checkpoints by channel.
    async fn channels_of_values(&self, scope: &Scope, id: &ThreadId) -> Result<ByChannel, StorageError> {
        let key = id.key(scope.tenant());
        let (mut channels, mut inline) = (HashMap::new(), BTreeMap::<String, Size>::new());
        let mut filter = CheckpointFilter::default();
        let mut left = REPORTED_STATES;
        while left > 0 {
            let rows = self.storage().list_checkpoints(scope, key, &filter, REPORT_PAGE).await?;
            let found = references(&rows)?;
            // A question or an answer is a write on a checkpoint, and in no channel.
            for (hash, channel) in found.payloads.into_iter().filter(|(_, channel)| !is_control(channel)) {
                channels.entry(hash).or_insert(channel);
            }
            for (channel, size) in found.inline.into_iter().filter(|(channel, _)| !is_own(channel)) {
                let known = inline.entry(channel).or_default();
                *known = Size { count: known.count + size.count, bytes: known.bytes + size.bytes };
            }
            let Some(last) = rows.last().filter(|_| rows.len() as i64 == REPORT_PAGE) else { break };
            filter.before = Some(last.row.id.clone());
            left = left.saturating_sub(rows.len());
        }
        Ok((channels, inline))
    }
}

type ByChannel = (HashMap<PayloadHash, String>, BTreeMap<String, Size>);

/// A channel of the engine's own, which is empty or says what runs next.
fn is_own(channel: &str) -> bool {
    channel == special::TASKS || channel.starts_with("branch:to:") || channel.starts_with("join:")
}

/// Whether a state inside a graph is part of what a state of the root waits for.
fn belongs_to(stored: &StoredCheckpoint, waiting: &[CheckpointId]) -> bool {
    let parent = stored.row.metadata.get("parents").and_then(|parents| parents.get(""));
    parent.as_ref().and_then(|id| id.as_str()).is_some_and(|parent| waiting.iter().any(|id| id == parent))
}
