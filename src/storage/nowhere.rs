//! A storage that cannot be reached: what a layer does by itself is seen in front of it. Or, for simulations, one that is
//! made up: the runs and checkpoints of `runtime::simulation`; the rest cannot be reached then either.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::model::*;
use crate::storage::*;

#[derive(Debug, Default)]
pub(crate) struct Nowhere {
    pub(crate) simulated: Option<Box<dyn Simulated>>,
}

/// What a simulation makes up.
pub(crate) trait Simulated: Runs + Checkpoints + std::fmt::Debug + Send + Sync {
    fn find_thread(&self, scope: &Scope, id: &ThreadId) -> Option<Thread>;
    fn notices(&self) -> broadcast::Receiver<Notice>;
}

fn gone<T>() -> Result<T> {
    Err(StorageError::Unavailable("password=secret at 10.0.0.7".into()))
}

#[async_trait]
impl Storage for Nowhere {
    fn describe(&self) -> Description {
        Description { backend: "nowhere", location: "nowhere".into(), volatile: true }
    }
    async fn migrate(&self) -> Result<usize> {
        gone()
    }
    async fn ping(&self, _: &Scope) -> Result<()> {
        gone()
    }
    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.simulated.as_ref().map_or_else(|| broadcast::channel(1).1, |simulated| simulated.notices())
    }
    fn write_transactions(&self) -> u64 {
        0
    }
    async fn close(&self) {}
}

#[async_trait]
impl Assistants for Nowhere {
    async fn create_assistant(&self, _: &Scope, _: NewAssistant) -> Result<AssistantCreated> {
        gone()
    }
    async fn find_assistants(&self, _: &Scope, _: &[uuid::Uuid]) -> Result<Vec<Assistant>> {
        Ok(Vec::new())
    }
    async fn search_assistants(
        &self,
        _: &Scope,
        _: &AssistantFilter,
        _: AssistantSort,
        _: bool,
        _: Page,
    ) -> Result<Vec<Assistant>> {
        Ok(Vec::new())
    }
    async fn count_assistants(&self, _: &Scope, _: &AssistantFilter) -> Result<i64> {
        Ok(0)
    }
    async fn update_assistant(
        &self,
        _: &Scope,
        _: uuid::Uuid,
        _: AssistantPatch,
        _: Option<NewAssistant>,
    ) -> Result<Option<Assistant>> {
        gone()
    }
    async fn set_assistant_version(&self, _: &Scope, _: uuid::Uuid, _: i64) -> Result<Option<Assistant>> {
        gone()
    }
    async fn list_assistant_versions(
        &self,
        _: &Scope,
        _: uuid::Uuid,
        _: Option<&Json>,
        _: Page,
    ) -> Result<Vec<Assistant>> {
        gone()
    }
    async fn delete_assistant(&self, _: &Scope, _: uuid::Uuid) -> Result<bool> {
        gone()
    }
}

#[async_trait]
impl Interrupts for Nowhere {
    async fn list_interrupts(
        &self,
        _: &Scope,
        _: &InterruptFilter,
        _: bool,
        _: Option<&InterruptCursor>,
        _: i64,
    ) -> Result<Vec<(ThreadKey, InterruptRecord)>> {
        gone()
    }
}

#[async_trait]
impl Threads for Nowhere {
    async fn create_thread(&self, _: &Scope, _: NewThread) -> Result<ThreadCreated> {
        gone()
    }
    async fn find_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>> {
        self.simulated.as_ref().map_or_else(gone, |simulated| Ok(simulated.find_thread(scope, id)))
    }
    async fn update_thread(&self, _: &Scope, _: &ThreadId, _: ThreadPatch) -> Result<Option<Thread>> {
        gone()
    }
    async fn delete_thread(&self, _: &Scope, id: &ThreadId) -> Result<Option<Vec<RunId>>> {
        // A handler that panics must not take the server down.
        assert_ne!(id.as_str(), "panic", "a secret detail");
        Ok(None)
    }
    async fn update_head_metadata(&self, _: &Scope, _: &ThreadId, _: &Json) -> Result<Option<Option<CheckpointId>>> {
        gone()
    }
    async fn copy_thread(&self, _: &Scope, _: &ThreadId, _: &ThreadId) -> Result<Option<Thread>> {
        Ok(None)
    }
    async fn search_threads(
        &self,
        _: &Scope,
        _: &ThreadFilter,
        _: ThreadSort,
        _: bool,
        _: Page,
    ) -> Result<Vec<Thread>> {
        Ok(Vec::new())
    }
    async fn count_threads(&self, _: &Scope, _: &ThreadFilter) -> Result<i64> {
        gone()
    }
    async fn waiting_threads(&self, _: &Scope, _: Option<ThreadKey>, _: i64) -> Result<Vec<WaitingThread>> {
        gone()
    }
}

#[async_trait]
impl Retention for Nowhere {
    async fn thread_ttl(&self, _: &Scope, _: &ThreadId) -> Result<Option<ThreadTtl>> {
        gone()
    }
    async fn expired_threads(&self, _: &Scope, _: i64) -> Result<Vec<ExpiredThread>> {
        gone()
    }
    async fn expire_thread(&self, _: &Scope, _: &ThreadId) -> Result<bool> {
        gone()
    }
    async fn prune_thread(&self, _: &Scope, _: &ThreadId, _: &Kept) -> Result<Pruned> {
        gone()
    }
    async fn reclaim(&self, _: &Scope) -> Result<bool> {
        gone()
    }
    async fn thread_sizes(&self, _: &Scope, _: &ThreadId) -> Result<Option<ThreadSizes>> {
        gone()
    }
    async fn payload_sizes(&self, _: &Scope, _: ThreadKey, _: &[PayloadHash]) -> Result<Vec<(PayloadHash, i64)>> {
        gone()
    }
}

#[async_trait]
impl Runs for Nowhere {
    async fn create_run(&self, a: &Scope, b: NewRun) -> Result<RunCreated> {
        if let Some(simulated) = &self.simulated {
            return simulated.create_run(a, b).await;
        }
        gone()
    }
    async fn claim_runs(&self, a: &Scope, b: &Claim, c: i32, d: i64) -> Result<Vec<ClaimedRun>> {
        if let Some(simulated) = &self.simulated {
            return simulated.claim_runs(a, b, c, d).await;
        }
        gone()
    }
    async fn renew_leases(&self, a: &Scope, b: &[Lease], c: Duration) -> Result<Vec<LeaseState>> {
        if let Some(simulated) = &self.simulated {
            return simulated.renew_leases(a, b, c).await;
        }
        gone()
    }
    async fn release_run(&self, a: &Scope, b: &Lease) -> Result<bool> {
        if let Some(simulated) = &self.simulated {
            return simulated.release_run(a, b).await;
        }
        gone()
    }
    async fn commit_steps(&self, a: &Scope, b: &[StepCommit]) -> Result<Vec<CommitOutcome>> {
        if let Some(simulated) = &self.simulated {
            return simulated.commit_steps(a, b).await;
        }
        gone()
    }
    async fn rollback_run(&self, a: &Scope, b: &Lease, c: ThreadStatus) -> Result<CommitOutcome> {
        if let Some(simulated) = &self.simulated {
            return simulated.rollback_run(a, b, c).await;
        }
        gone()
    }
    async fn commit_state(&self, a: &Scope, b: StateCommit) -> Result<StateOutcome> {
        if let Some(simulated) = &self.simulated {
            return simulated.commit_state(a, b).await;
        }
        gone()
    }
    async fn cancel_runs(&self, a: &Scope, b: &CancelTarget, c: &CancelRequest) -> Result<Vec<Cancelled>> {
        if let Some(simulated) = &self.simulated {
            return simulated.cancel_runs(a, b, c).await;
        }
        Ok(Vec::new())
    }
    async fn find_run(&self, a: &Scope, b: &ThreadId, c: RunId) -> Result<Option<Run>> {
        if let Some(simulated) = &self.simulated {
            return simulated.find_run(a, b, c).await;
        }
        gone()
    }
    async fn locate_run(&self, a: &Scope, b: RunId) -> Result<Option<Run>> {
        if let Some(simulated) = &self.simulated {
            return simulated.locate_run(a, b).await;
        }
        Ok(None)
    }
    async fn list_runs(&self, a: &Scope, b: &ThreadId, c: &RunFilter, d: Page) -> Result<Option<Vec<Run>>> {
        if let Some(simulated) = &self.simulated {
            return simulated.list_runs(a, b, c, d).await;
        }
        Ok(None)
    }
    async fn delete_run(&self, a: &Scope, b: &ThreadId, c: RunId) -> Result<Option<bool>> {
        if let Some(simulated) = &self.simulated {
            return simulated.delete_run(a, b, c).await;
        }
        Ok(Some(false))
    }
    async fn append_events(&self, a: &Scope, b: &Lease, c: &[StoredEvent]) -> Result<CommitOutcome> {
        if let Some(simulated) = &self.simulated {
            return simulated.append_events(a, b, c).await;
        }
        gone()
    }
    async fn read_events(
        &self,
        a: &Scope,
        b: ThreadKey,
        c: Option<RunId>,
        d: EventId,
        e: i64,
    ) -> Result<Vec<StoredEvent>> {
        if let Some(simulated) = &self.simulated {
            return simulated.read_events(a, b, c, d, e).await;
        }
        gone()
    }
    async fn count_active(&self, _: &Scope) -> Result<(i64, i64)> {
        gone()
    }
}

#[async_trait]
impl Checkpoints for Nowhere {
    async fn load_checkpoint(&self, a: &Scope, b: ThreadKey, c: &str, d: &Which) -> Result<Option<StoredCheckpoint>> {
        if let Some(simulated) = &self.simulated {
            return simulated.load_checkpoint(a, b, c, d).await;
        }
        gone()
    }
    async fn list_checkpoints(
        &self,
        a: &Scope,
        b: ThreadKey,
        c: &CheckpointFilter,
        d: i64,
    ) -> Result<Vec<StoredCheckpoint>> {
        if let Some(simulated) = &self.simulated {
            return simulated.list_checkpoints(a, b, c, d).await;
        }
        gone()
    }
    async fn load_heads(&self, a: &Scope, b: &[ThreadKey]) -> Result<Vec<(ThreadKey, StoredCheckpoint)>> {
        if let Some(simulated) = &self.simulated {
            return simulated.load_heads(a, b).await;
        }
        gone()
    }
    async fn load_payloads(&self, a: &Scope, b: ThreadKey, c: &[PayloadHash]) -> Result<Vec<Payload>> {
        if let Some(simulated) = &self.simulated {
            return simulated.load_payloads(a, b, c).await;
        }
        gone()
    }
    async fn load_log(&self, a: &Scope, b: ThreadKey, c: &[LogRange]) -> Result<Vec<LogRow>> {
        if let Some(simulated) = &self.simulated {
            return simulated.load_log(a, b, c).await;
        }
        gone()
    }
    async fn continued_branches(
        &self,
        a: &Scope,
        b: ThreadKey,
        c: &[(String, String, i64, i64)],
    ) -> Result<Vec<(String, String, i64)>> {
        if let Some(simulated) = &self.simulated {
            return simulated.continued_branches(a, b, c).await;
        }
        gone()
    }
    async fn list_namespaces_of(&self, _: &Scope, _: &ThreadId) -> Result<Vec<String>> {
        gone()
    }
}

#[async_trait]
impl Items for Nowhere {
    async fn put_item(&self, _: &Scope, _: NewItem) -> Result<()> {
        gone()
    }
    async fn get_item(&self, _: &Scope, _: &[String], _: &str, _: bool) -> Result<Option<Item>> {
        Ok(None)
    }
    async fn delete_item(&self, _: &Scope, _: &[String], _: &str) -> Result<()> {
        Ok(())
    }
    async fn search_items(&self, _: &Scope, _: &ItemFilter, _: Page, _: bool) -> Result<Vec<Item>> {
        Ok(Vec::new())
    }
    async fn list_namespaces(&self, _: &Scope, _: &NamespaceFilter, _: Page) -> Result<Vec<Vec<String>>> {
        Ok(vec![vec!["a".into(), "b".into()]])
    }
}

#[async_trait]
impl Cache for Nowhere {
    async fn find_cached(&self, _: &Scope, _: &[CacheKey]) -> Result<Vec<CacheEntry>> {
        gone()
    }
    async fn put_cached(&self, _: &Scope, _: Vec<NewCacheEntry>) -> Result<()> {
        gone()
    }
    async fn sweep_cache(&self, _: &Scope, _: i64) -> Result<bool> {
        gone()
    }
    async fn clear_cache(&self, _: &Scope, _: &str) -> Result<bool> {
        gone()
    }
}

#[async_trait]
impl Crons for Nowhere {
    async fn database_time(&self, _: &Scope) -> Result<Timestamp> {
        gone()
    }
    async fn create_cron(&self, _: &Scope, _: Cron) -> Result<Option<Cron>> {
        gone()
    }
    async fn find_cron(&self, _: &Scope, _: uuid::Uuid) -> Result<Option<Cron>> {
        gone()
    }
    async fn replace_cron(&self, _: &Scope, _: Cron) -> Result<CronReplaced> {
        gone()
    }
    async fn delete_cron(&self, _: &Scope, _: uuid::Uuid) -> Result<bool> {
        gone()
    }
    async fn search_crons(&self, _: &Scope, _: &CronFilter, _: CronSort, _: bool, _: Page) -> Result<Vec<Cron>> {
        gone()
    }
    async fn count_crons(&self, _: &Scope, _: &CronFilter) -> Result<i64> {
        gone()
    }
    async fn due_crons(&self, _: &Scope, _: i64) -> Result<DueCrons> {
        gone()
    }
    async fn fire_cron(&self, _: &Scope, _: CronTick) -> Result<CronFired> {
        gone()
    }
}

#[async_trait]
impl Webhooks for Nowhere {
    async fn claim_webhooks(&self, _: &Scope, _: i64, _: Duration) -> Result<ClaimedWebhooks> {
        gone()
    }
    async fn settle_webhook(&self, _: &Scope, _: Attempt, _: AttemptOutcome) -> Result<bool> {
        gone()
    }
    async fn list_webhooks(&self, _: &Scope, _: WebhookState, _: Page) -> Result<Vec<Webhook>> {
        gone()
    }
    async fn redrive_webhooks(&self, _: &Scope, _: Option<&[RunId]>) -> Result<i64> {
        gone()
    }
    async fn sweep_webhooks(&self, _: &Scope, _: Duration) -> Result<u64> {
        gone()
    }
}

#[async_trait]
impl IdempotencyKeys for Nowhere {
    async fn find_key(&self, _: &Scope, _: &str, _: &str) -> Result<Option<KeyRow>> {
        gone()
    }
    async fn answer_key(&self, _: &Scope, _: &IdempotencyKey, _: u16, _: Vec<u8>) -> Result<()> {
        gone()
    }
    async fn forget_key(&self, _: &Scope, _: &str, _: &str) -> Result<()> {
        gone()
    }
    async fn purge_keys(&self, _: &Scope, _: i64) -> Result<u64> {
        gone()
    }
}
