//! A process's way to the made-up database. What is on its way arrives, whatever becomes of the process that sent it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, oneshot};
use uuid::Uuid;

use super::database::Database;
use super::world::World;
use crate::model::{CheckpointId, EventId, Json, Run, RunId, Scope, Thread, ThreadId, ThreadKey, ThreadStatus, Ttl};
use crate::runtime::shared::lock;
use crate::storage::nowhere::{Nowhere, There};
use crate::storage::{
    Branch, BranchPut, Branches, CancelRequest, CancelTarget, Cancelled, CheckpointFilter, Checkpoints, Claim,
    ClaimedRun, CommitOutcome, Connections, Description, Health, Inspection, Lease, LeaseState, LogRange, LogRow,
    NewRun, NewThread, Notice, Page, Payload, PayloadHash, QuarantinedRun, Release, Result, RunCreated, RunFilter,
    Runs, SchemaState, StateCommit, StateOutcome, StepCommit, Storage, StorageError, StoredCheckpoint, StoredEvent,
    StuckRun, ThreadCreated, ThreadFilter, ThreadPatch, ThreadSort, Threads, Tip, WaitingThread, Which,
};

#[derive(Debug)]
pub(super) struct Link {
    world: Arc<World>,
    /// The process, in the trace.
    name: String,
    notices: broadcast::Sender<Notice>,
}

impl There for Link {}

impl Link {
    pub(super) fn new(world: &Arc<World>, name: String) -> Link {
        let (notices, _) = broadcast::channel(1024);
        world.add_line(notices.clone());
        Link { world: Arc::clone(world), name, notices }
    }

    async fn call<T, F>(&self, what: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Database) -> T + Send + 'static,
    {
        let failed = |how: &str| Err(StorageError::Unavailable(format!("simulated: {how}")));
        let fate = self.world.fate();
        let (answer, answered) = oneshot::channel();
        let (world, name) = (Arc::clone(&self.world), self.name.clone());
        // Not a task of the process.
        tokio::spawn(async move {
            sleep(fate.there).await;
            let result = if fate.is_refused {
                world.tell(&name, &format!("{what}: refused"));
                failed("not done")
            } else {
                let done = world.operate(&name, what, work);
                sleep(fate.back).await;
                if fate.is_unanswered {
                    world.tell(&name, &format!("{what}: not answered"));
                    lock(&world.database).witness.counts.lost_answers += 1;
                    failed("done, but who knows")
                } else {
                    Ok(done)
                }
            };
            // The process may be gone.
            let _gone = answer.send(result);
        });
        answered.await.unwrap_or_else(|_| failed("the simulation is over"))
    }
}

async fn sleep(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

fn out_of_scope<T>() -> Result<T> {
    Err(StorageError::Other("not part of the simulation".to_owned()))
}

fn count(limit: i64) -> usize {
    usize::try_from(limit).unwrap_or(0)
}

#[async_trait]
impl Storage for Nowhere<Link> {
    fn describe(&self) -> Description {
        Description { backend: "simulated", location: self.0.name.clone(), volatile: true, ranked_by: None }
    }
    async fn schema(&self) -> Result<SchemaState> {
        out_of_scope()
    }
    async fn migrate(&self) -> Result<usize> {
        out_of_scope()
    }
    async fn ping(&self, _: &Scope) -> Result<()> {
        self.0.call("ping", |_| ()).await
    }
    fn is_shared(&self) -> bool {
        true
    }
    async fn want_run(&self, run_id: RunId, _: Option<Ttl>) -> Result<()> {
        // No thread of a simulation is temporary.
        self.0.call("want", move |database| database.notices.push(Notice::RunWanted(run_id))).await
    }
    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.0.notices.subscribe()
    }
    fn connections(&self) -> Connections {
        Connections { open: 1, idle: 0, most: 1 }
    }
    fn write_transactions(&self) -> u64 {
        0
    }
    async fn close(&self) {}
}

#[async_trait]
impl Runs for Nowhere<Link> {
    async fn create_run(&self, scope: &Scope, new: NewRun) -> Result<RunCreated> {
        let scope = *scope;
        self.0.call("create", move |database| database.create_run(&scope, new)).await
    }
    async fn claim_runs(&self, _: &Scope, claim: &Claim, max_attempts: i32, limit: i64) -> Result<Vec<ClaimedRun>> {
        let claim = claim.clone();
        self.0.call("claim", move |database| database.claim_runs(&claim, max_attempts, count(limit))).await
    }
    async fn renew_leases(&self, _: &Scope, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        let leases = leases.to_vec();
        self.0.call("renew", move |database| database.renew_leases(&leases, lease)).await
    }
    async fn release_run(&self, _: &Scope, lease: &Lease) -> Result<bool> {
        let lease = *lease;
        self.0.call("release", move |database| database.release_run(&lease)).await
    }
    async fn commit_steps(&self, _: &Scope, batch: &[StepCommit]) -> Result<Vec<CommitOutcome>> {
        let batch = batch.to_vec();
        self.0.call("commit", move |database| database.commit_steps(&batch)).await
    }
    async fn rollback_run(&self, _: &Scope, lease: &Lease, rest: ThreadStatus) -> Result<CommitOutcome> {
        let lease = *lease;
        self.0.call("rollback", move |database| database.rollback_run(&lease, rest)).await
    }
    async fn commit_state(&self, _: &Scope, _: StateCommit) -> Result<StateOutcome> {
        out_of_scope()
    }
    async fn cancel_runs(
        &self,
        scope: &Scope,
        target: &CancelTarget,
        request: &CancelRequest,
    ) -> Result<Vec<Cancelled>> {
        let (scope, target, request) = (*scope, target.clone(), request.clone());
        self.0.call("cancel", move |database| database.cancel_runs(&scope, &target, &request)).await
    }
    async fn find_run(&self, scope: &Scope, thread: &ThreadId, run_id: RunId) -> Result<Option<Run>> {
        let key = thread.key(scope.tenant());
        self.0.call("find run", move |database| database.run(key, run_id)).await
    }
    async fn list_assistant_runs(&self, _: &Scope, _: Uuid, _: Option<RunId>, _: i64) -> Result<Vec<Run>> {
        out_of_scope()
    }
    async fn locate_run(&self, _: &Scope, run_id: RunId) -> Result<Option<Run>> {
        let locate = move |database: &mut Database| database.place(run_id).and_then(|key| database.run(key, run_id));
        self.0.call("locate run", locate).await
    }
    async fn list_runs(&self, _: &Scope, _: &ThreadId, _: &RunFilter, _: Page) -> Result<Option<Vec<Run>>> {
        out_of_scope()
    }
    async fn delete_run(&self, _: &Scope, _: &ThreadId, _: RunId) -> Result<Option<bool>> {
        out_of_scope()
    }
    async fn append_events(&self, _: &Scope, _: &Lease, _: &[StoredEvent]) -> Result<CommitOutcome> {
        out_of_scope()
    }
    async fn read_events(
        &self,
        _: &Scope,
        thread: ThreadKey,
        run: Option<RunId>,
        after: EventId,
        limit: i64,
    ) -> Result<Vec<StoredEvent>> {
        let read = move |database: &mut Database| database.read_events(thread, run, after, count(limit));
        self.0.call("read events", read).await
    }
    async fn count_active(&self, _: &Scope) -> Result<(i64, i64)> {
        self.0.call("count", |database| database.count_active()).await
    }
}

#[async_trait]
impl Checkpoints for Nowhere<Link> {
    async fn load_checkpoint(
        &self,
        _: &Scope,
        thread: ThreadKey,
        ns: &str,
        which: &Which,
    ) -> Result<Option<StoredCheckpoint>> {
        let (ns, which) = (ns.to_owned(), which.clone());
        self.0.call("load", move |database| database.checkpoint(thread, &ns, &which)).await
    }
    async fn list_checkpoints(
        &self,
        _: &Scope,
        thread: ThreadKey,
        filter: &CheckpointFilter,
        limit: i64,
    ) -> Result<Vec<StoredCheckpoint>> {
        let filter = filter.clone();
        self.0.call("list", move |database| database.checkpoints(thread, &filter, count(limit))).await
    }
    async fn load_heads(&self, _: &Scope, threads: &[ThreadKey]) -> Result<Vec<(ThreadKey, StoredCheckpoint)>> {
        let threads = threads.to_vec();
        let load = move |database: &mut Database| {
            let head = |key| Some((key, database.checkpoint(key, "", &Which::Latest)?));
            threads.into_iter().filter_map(head).collect()
        };
        self.0.call("heads", load).await
    }
    async fn load_payloads(&self, _: &Scope, thread: ThreadKey, hashes: &[PayloadHash]) -> Result<Vec<Payload>> {
        let hashes = hashes.to_vec();
        let found = self.0.call("payloads", move |database| database.payloads(thread, &hashes)).await?;
        found.ok_or_else(|| StorageError::Corrupt {
            table: "payloads",
            column: "hash",
            id: thread.0.to_string(),
            reason: "a payload is missing".to_owned(),
        })
    }
    async fn load_log(&self, _: &Scope, thread: ThreadKey, ranges: &[LogRange]) -> Result<Vec<LogRow>> {
        let ranges = ranges.to_vec();
        self.0.call("log", move |database| database.log(thread, &ranges)).await
    }
    async fn continued_branches(
        &self,
        _: &Scope,
        thread: ThreadKey,
        ends: &[(String, String, i64, i64)],
    ) -> Result<Vec<(String, String, i64)>> {
        let ends = ends.to_vec();
        self.0.call("branches", move |database| database.continued(thread, ends)).await
    }
    async fn list_namespaces_of(&self, _: &Scope, _: &ThreadId) -> Result<Vec<String>> {
        out_of_scope()
    }
}

#[async_trait]
impl Threads for Nowhere<Link> {
    async fn create_thread(&self, _: &Scope, _: NewThread) -> Result<ThreadCreated> {
        out_of_scope()
    }
    async fn find_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>> {
        let key = id.key(scope.tenant());
        self.0.call("find thread", move |database| database.thread(key)).await
    }
    async fn update_thread(&self, _: &Scope, _: &ThreadId, _: ThreadPatch) -> Result<Option<Thread>> {
        out_of_scope()
    }
    async fn delete_thread(&self, _: &Scope, _: &ThreadId) -> Result<Option<Vec<RunId>>> {
        out_of_scope()
    }
    async fn update_head_metadata(&self, _: &Scope, _: &ThreadId, _: &Json) -> Result<Option<Option<CheckpointId>>> {
        out_of_scope()
    }
    async fn copy_thread(&self, _: &Scope, _: &ThreadId, _: &ThreadId) -> Result<Option<Thread>> {
        out_of_scope()
    }
    async fn search_threads(
        &self,
        _: &Scope,
        _: &ThreadFilter,
        _: ThreadSort,
        _: bool,
        _: Page,
    ) -> Result<Vec<Thread>> {
        out_of_scope()
    }
    async fn count_threads(&self, _: &Scope, _: &ThreadFilter) -> Result<i64> {
        out_of_scope()
    }
    async fn waiting_threads(&self, _: &Scope, _: Option<ThreadKey>, _: i64) -> Result<Vec<WaitingThread>> {
        out_of_scope()
    }
}

#[async_trait]
impl Branches for Nowhere<Link> {
    async fn list_tips(&self, _: &Scope, _: ThreadKey, _: Option<&CheckpointId>, _: i64) -> Result<Vec<Tip>> {
        out_of_scope()
    }
    async fn list_branches(&self, _: &Scope, _: ThreadKey, _: Option<&str>) -> Result<Vec<Branch>> {
        out_of_scope()
    }
    async fn put_branch(
        &self,
        _: &Scope,
        _: &ThreadId,
        _: &str,
        _: Option<&CheckpointId>,
        _: Option<&str>,
    ) -> Result<BranchPut> {
        out_of_scope()
    }
    async fn delete_branch(&self, _: &Scope, _: &ThreadId, _: &str) -> Result<Option<bool>> {
        out_of_scope()
    }
    async fn is_continued(&self, _: &Scope, thread: ThreadKey, checkpoint: &CheckpointId) -> Result<bool> {
        let checkpoint = checkpoint.clone();
        self.0.call("is continued", move |database| database.is_continued(thread, &checkpoint)).await
    }
}

#[async_trait]
impl Health for Nowhere<Link> {
    async fn find_stuck(&self, _: &Scope, _: Duration, _: i64) -> Result<Vec<StuckRun>> {
        // Whether any is, the simulation sees by itself.
        Ok(Vec::new())
    }
    async fn list_quarantined(&self, _: &Scope, _: Page) -> Result<Vec<QuarantinedRun>> {
        out_of_scope()
    }
    async fn release_run_from_quarantine(&self, _: &Scope, run_id: RunId) -> Result<Release> {
        self.0.call("release from quarantine", move |database| database.release_from_quarantine(run_id)).await
    }
    async fn inspect(&self) -> Result<Inspection> {
        out_of_scope()
    }
}
