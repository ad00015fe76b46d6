//! Rows that nothing else would touch again, looked for from time to time, in batches.

use std::time::Duration;

use super::Runtime;
use crate::model::Scope;

const EVERY: Duration = Duration::from_secs(60);
const BATCH: i64 = 1000;

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
}
