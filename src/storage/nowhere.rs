//! A storage that cannot be reached, for tests: what a layer does by itself is seen in front of it. `Nowhere<T>` is out of
//! reach but for what `T` makes up: the simulation of the runtime has runs and checkpoints.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::model::*;
use crate::storage::*;

#[derive(Debug)]
pub(crate) struct Nowhere<T = ()>(pub(crate) T);

/// What `T` of a [`Nowhere`] is.
pub(crate) trait There: std::fmt::Debug + Send + Sync + 'static {}

impl There for () {}

fn gone<T>() -> Result<T> {
    Err(StorageError::Unavailable("password=secret at 10.0.0.7".into()))
}

#[async_trait]
impl Storage for Nowhere {
    fn describe(&self) -> Description {
        Description { backend: "nowhere", location: "nowhere".into(), volatile: true, ranked_by: None }
    }
    async fn schema(&self) -> Result<SchemaState> {
        gone()
    }
    async fn migrate(&self) -> Result<usize> {
        gone()
    }
    async fn ping(&self, _: &Scope) -> Result<()> {
        gone()
    }
    fn is_shared(&self) -> bool {
        false
    }
    async fn want_run(&self, _: crate::model::RunId, _: Option<crate::model::Ttl>) -> Result<()> {
        gone()
    }
    fn notices(&self) -> broadcast::Receiver<Notice> {
        broadcast::channel(1).1
    }
    fn connections(&self) -> Connections {
        Connections { open: 0, idle: 0, most: 0 }
    }
    fn write_transactions(&self) -> u64 {
        0
    }
    async fn close(&self) {}
}

#[async_trait]
impl<T: There> Assistants for Nowhere<T> {
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
impl<T: There> Interrupts for Nowhere<T> {
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
impl Branches for Nowhere {
    async fn list_tips(&self, _: &Scope, _: ThreadKey, _: Option<&CheckpointId>, _: i64) -> Result<Vec<Tip>> {
        gone()
    }
    async fn list_branches(&self, _: &Scope, _: ThreadKey, _: Option<&str>) -> Result<Vec<Branch>> {
        gone()
    }
    async fn put_branch(
        &self,
        _: &Scope,
        _: &ThreadId,
        _: &str,
        _: Option<&CheckpointId>,
        _: Option<&str>,
    ) -> Result<BranchPut> {
        gone()
    }
    async fn delete_branch(&self, _: &Scope, _: &ThreadId, _: &str) -> Result<Option<bool>> {
        gone()
    }
    async fn is_continued(&self, _: &Scope, _: ThreadKey, _: &CheckpointId) -> Result<bool> {
        gone()
    }
}

#[async_trait]
impl<T: There> Sessions for Nowhere<T> {
    async fn close_thread(&self, _: &Scope, _: &ThreadId, _: &Close) -> Result<CloseOutcome> {
        gone()
    }
    async fn reopen_thread(&self, _: &Scope, _: &ThreadId) -> Result<Option<Thread>> {
        gone()
    }
    async fn find_session(&self, _: &Scope, _: &ThreadId) -> Result<Option<Session>> {
        gone()
    }
    async fn explain_run(&self, _: &Scope, _: RunId) -> Result<Option<RunExplained>> {
        gone()
    }
}

#[async_trait]
impl Threads for Nowhere {
    async fn create_thread(&self, _: &Scope, _: NewThread) -> Result<ThreadCreated> {
        gone()
    }
    async fn find_thread(&self, _: &Scope, _: &ThreadId) -> Result<Option<Thread>> {
        gone()
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
impl<T: There> Retention for Nowhere<T> {
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
    async fn create_run(&self, _: &Scope, _: NewRun) -> Result<RunCreated> {
        gone()
    }
    async fn claim_runs(&self, _: &Scope, _: &Claim, _: i32, _: i64) -> Result<Vec<ClaimedRun>> {
        gone()
    }
    async fn renew_leases(&self, _: &Scope, _: &[Lease], _: Duration) -> Result<Vec<LeaseState>> {
        gone()
    }
    async fn release_run(&self, _: &Scope, _: &Lease) -> Result<bool> {
        gone()
    }
    async fn commit_steps(&self, _: &Scope, _: &[StepCommit]) -> Result<Vec<CommitOutcome>> {
        gone()
    }
    async fn rollback_run(&self, _: &Scope, _: &Lease, _: ThreadStatus) -> Result<CommitOutcome> {
        gone()
    }
    async fn commit_state(&self, _: &Scope, _: StateCommit) -> Result<StateOutcome> {
        gone()
    }
    async fn cancel_runs(&self, _: &Scope, _: &CancelTarget, _: &CancelRequest) -> Result<Vec<Cancelled>> {
        Ok(Vec::new())
    }
    async fn find_run(&self, _: &Scope, _: &ThreadId, _: RunId) -> Result<Option<Run>> {
        gone()
    }
    async fn locate_run(&self, _: &Scope, _: RunId) -> Result<Option<Run>> {
        Ok(None)
    }
    async fn list_runs(&self, _: &Scope, _: &ThreadId, _: &RunFilter, _: Page) -> Result<Option<Vec<Run>>> {
        Ok(None)
    }
    async fn list_assistant_runs(&self, _: &Scope, _: uuid::Uuid, _: Option<RunId>, _: i64) -> Result<Vec<Run>> {
        Ok(Vec::new())
    }
    async fn delete_run(&self, _: &Scope, _: &ThreadId, _: RunId) -> Result<Option<bool>> {
        Ok(Some(false))
    }
    async fn append_events(&self, _: &Scope, _: &Lease, _: &[StoredEvent]) -> Result<CommitOutcome> {
        gone()
    }
    async fn read_events(
        &self,
        _: &Scope,
        _: ThreadKey,
        _: Option<RunId>,
        _: EventId,
        _: i64,
    ) -> Result<Vec<StoredEvent>> {
        gone()
    }
    async fn count_active(&self, _: &Scope) -> Result<(i64, i64)> {
        gone()
    }
}

#[async_trait]
impl Checkpoints for Nowhere {
    async fn load_checkpoint(&self, _: &Scope, _: ThreadKey, _: &str, _: &Which) -> Result<Option<StoredCheckpoint>> {
        gone()
    }
    async fn list_checkpoints(
        &self,
        _: &Scope,
        _: ThreadKey,
        _: &CheckpointFilter,
        _: i64,
    ) -> Result<Vec<StoredCheckpoint>> {
        gone()
    }
    async fn load_heads(&self, _: &Scope, _: &[ThreadKey]) -> Result<Vec<(ThreadKey, StoredCheckpoint)>> {
        gone()
    }
    async fn load_payloads(&self, _: &Scope, _: ThreadKey, _: &[PayloadHash]) -> Result<Vec<Payload>> {
        gone()
    }
    async fn load_log(&self, _: &Scope, _: ThreadKey, _: &[LogRange]) -> Result<Vec<LogRow>> {
        gone()
    }
    async fn continued_branches(
        &self,
        _: &Scope,
        _: ThreadKey,
        _: &[(String, String, i64, i64)],
    ) -> Result<Vec<(String, String, i64)>> {
        gone()
    }
    async fn list_namespaces_of(&self, _: &Scope, _: &ThreadId) -> Result<Vec<String>> {
        gone()
    }
}

#[async_trait]
impl<T: There> Foreign for Nowhere<T> {
    async fn put_foreign(&self, _: &Scope, _: &ForeignBatch) -> Result<ForeignOutcome> {
        gone()
    }
    async fn put_foreign_each(&self, _: &Scope, batches: &[ForeignBatch]) -> Vec<Result<ForeignOutcome>> {
        batches.iter().map(|_| gone()).collect()
    }
    async fn foreign_among(&self, _: &Scope, _: &[ThreadKey]) -> Result<Vec<ThreadKey>> {
        gone()
    }
    async fn load_foreign(&self, _: &Scope, _: ThreadKey, _: &str, _: Option<&str>) -> Result<Option<StoredForeign>> {
        gone()
    }
    async fn list_foreign(&self, _: &Scope, _: ThreadKey, _: &ForeignFilter, _: i64) -> Result<Vec<StoredForeign>> {
        gone()
    }
    async fn load_foreign_payloads(&self, _: &Scope, _: ThreadKey, _: &[PayloadHash]) -> Result<Vec<ForeignPayload>> {
        gone()
    }
    async fn latest_foreign(&self, _: &Scope, _: ThreadKey) -> Result<Vec<(String, CheckpointId)>> {
        gone()
    }
    async fn delete_foreign_runs(&self, _: &Scope, _: &[String], _: i64) -> Result<(i64, Vec<ThreadId>)> {
        gone()
    }
    async fn prune_foreign(&self, _: &Scope, _: &ThreadId, _: &ForeignKept) -> Result<Pruned> {
        gone()
    }
    async fn copy_foreign(&self, _: &Scope, _: &ThreadId, _: &ThreadId) -> Result<ForeignCopied> {
        gone()
    }
}

#[async_trait]
impl<T: There> Effects for Nowhere<T> {
    async fn task_effects(&self, _: &Scope, _: ThreadKey, _: &EffectPlace) -> Result<Vec<EffectEntry>> {
        gone()
    }
    async fn list_effects(&self, _: &Scope, _: ThreadKey, _: &EffectFilter, _: Page) -> Result<Vec<Effect>> {
        gone()
    }
}

#[async_trait]
impl<T: There> Executions for Nowhere<T> {
    async fn list_executions(
        &self,
        _: &Scope,
        _: ThreadKey,
        _: &ExecutionFilter,
        _: Option<ExecutionCursor>,
        _: i64,
    ) -> Result<Vec<LoggedTask>> {
        gone()
    }
}

#[async_trait]
impl<T: There> Items for Nowhere<T> {
    async fn put_item(&self, _: &Scope, _: NewItem) -> Result<()> {
        gone()
    }
    async fn get_item(&self, _: &Scope, _: &[String], _: &str, _: bool) -> Result<Option<Item>> {
        Ok(None)
    }
    async fn delete_item(&self, _: &Scope, _: &[String], _: &str) -> Result<()> {
        Ok(())
    }
    async fn search_items(&self, _: &Scope, _: &ItemFilter, _: Page, _: bool) -> Result<Vec<FoundItem>> {
        Ok(Vec::new())
    }
    async fn sweep_items(&self, _: &Scope) -> Result<bool> {
        gone()
    }
    async fn unembedded_items(&self, _: &Scope, _: &str, _: Option<&ItemPlace>, _: i64) -> Result<Vec<UnembeddedItem>> {
        gone()
    }
    async fn embed_item(&self, _: &Scope, _: &Item, _: Embedded) -> Result<bool> {
        gone()
    }
    async fn list_namespaces(&self, _: &Scope, _: &NamespaceFilter, _: Page) -> Result<Vec<Vec<String>>> {
        Ok(vec![vec!["a".into(), "b".into()]])
    }
}

#[async_trait]
impl<T: There> Cache for Nowhere<T> {
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
impl<T: There> Crons for Nowhere<T> {
    async fn database_time(&self, _: &Scope) -> Result<Timestamp> {
        gone()
    }
    async fn create_cron(&self, _: &Scope, _: Cron) -> Result<CronCreated> {
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
impl<T: There> Webhooks for Nowhere<T> {
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
impl<T: There> IdempotencyKeys for Nowhere<T> {
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

#[async_trait]
impl Health for Nowhere {
    async fn find_stuck(&self, _: &Scope, _: Duration, _: i64) -> Result<Vec<StuckRun>> {
        gone()
    }
    async fn list_quarantined(&self, _: &Scope, _: Page) -> Result<Vec<QuarantinedRun>> {
        gone()
    }
    async fn release_run_from_quarantine(&self, _: &Scope, _: RunId) -> Result<Release> {
        gone()
    }
    async fn inspect(&self) -> Result<Inspection> {
        gone()
    }
}
