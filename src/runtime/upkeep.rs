//! Rows that nothing else would touch again, looked for from time to time, in batches.

use std::time::Duration;

use super::Runtime;
use crate::model::Scope;
use crate::storage::{ItemPlace, StorageError};

const EVERY: Duration = Duration::from_secs(60);
const BATCH: i64 = 1000;
/// Copies of vectors are looked after this seldom where nobody misses any.
const VECTORS_AFTER: u32 = 60;

impl Runtime {
    pub(super) async fn upkeep_loop(self) {
        loop {
            self.upkeep().await;
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.inner.draining.cancelled() => return,
            }
        }
    }

    async fn upkeep(&self) {
        let keep_dead = self.inner.settings.webhooks.keep_dead;
        match self.storage().sweep_webhooks(&Scope::Server, keep_dead).await {
            Ok(0) => {}
            Ok(_) => self.wake_webhooks(),
            Err(error) => tracing::warn!(%error, "could not sweep webhooks"),
        }
        loop {
            match self.storage().purge_keys(&Scope::Server, BATCH).await {
                Ok(purged) if purged >= BATCH as u64 => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "could not purge idempotency keys");
                    return;
                }
            }
        }
    }

    /// Copies the vectors that are there to where the database ranks them; again when a search came upon some that are not,
    /// unless what is left cannot be copied, and from time to time. Any number of processes may do so.
    pub(super) async fn vectors_loop(self) {
        loop {
            let refused = match self.tend_vectors().await {
                Ok(refused) => refused,
                Err(error) => {
                    tracing::warn!(%error, "could not look after the copies of vectors");
                    0
                }
            };
            for rested in 1.. {
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    () = self.inner.draining.cancelled() => return,
                }
                let is_wanted = self.storage().wants_vectors_tended() && refused == 0;
                if is_wanted || rested >= VECTORS_AFTER {
                    break;
                }
            }
        }
    }

    /// Returns of how many items the vectors cannot be copied.
    async fn tend_vectors(&self) -> Result<u64, StorageError> {
        let (mut copied, mut refused) = (0, 0);
        let mut after: Option<ItemPlace> = None;
        loop {
            let tended = self.storage().tend_vectors(&Scope::Server, after.as_ref()).await?;
            copied += tended.copied;
            refused += tended.refused;
            after = tended.next;
            if after.is_none() || self.inner.draining.is_cancelled() {
                break;
            }
        }
        if copied > 0 {
            tracing::info!(copied, "vectors were copied for pgvector");
        }
        Ok(refused)
    }
}
