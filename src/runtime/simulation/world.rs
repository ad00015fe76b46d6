//! The made-up database: threads with their runs and checkpoints in memory, under one lock, by the contract of
//! `storage::runs`. Each replica sees it through a link of its own, which may be slow, fail, say nothing, or be dead.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::model::*;
use crate::runtime::shared::lock;
use crate::storage::nowhere::Simulated;
use crate::storage::*;

/// What all replicas share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) clock: Clock,
    db: Mutex<Db>,
    dice: Mutex<u64>,
    notices: broadcast::Sender<Notice>,
    /// Calls in a hundred that fail, before or after they had their effect.
    pub(super) failures: Mutex<u64>,
}

#[derive(Debug, Default)]
struct Db {
    threads: BTreeMap<ThreadKey, ThreadRows>,
    places: HashMap<RunId, ThreadKey>,
}

#[derive(Debug)]
struct ThreadRows {
    thread: Thread,
    /// In the order of their creation.
    runs: Vec<RunRow>,
    checkpoints: BTreeMap<(String, CheckpointId), CheckpointRow>,
    writes: BTreeMap<(String, CheckpointId, String), TaskWritesRow>,
    payloads: HashMap<PayloadHash, Json>,
    log: BTreeMap<(String, String, i64, i64), LogRow>,
    events: BTreeMap<i64, StoredEvent>,
}

#[derive(Debug)]
struct RunRow {
    run: Run,
    epoch: i64,
    lease_until: i64,
    input_applied: bool,
    cancel: Option<CancelRequest>,
}

/// How a replica is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Alive,
    /// Nothing comes through until then, in either direction.
    SilentUntil(Instant),
    /// The process is gone: what is left of its tasks waits for ever.
    Dead,
}

/// One replica's way to the database.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) world: Arc<World>,
    pub(super) state: Arc<Mutex<State>>,
}

impl World {
    pub(super) fn new(seed: u64, began: Instant) -> Arc<World> {
        Arc::new(World {
            clock: Clock::simulated(seed, began, 0),
            db: Mutex::default(),
            dice: Mutex::new(seed ^ 0x5eed),
            notices: broadcast::channel(1024).0,
            failures: Mutex::new(0),
        })
    }

    pub(super) fn roll(&self, bound: u64) -> u64 {
        let mut dice = lock(&self.dice);
        *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*dice >> 33) % bound.max(1)
    }

    fn tell(&self, notice: Notice) {
        // A notice may get lost: whoever waits also looks.
        if self.roll(10) > 0 {
            let _unheard = self.notices.send(notice);
        }
    }

    /// Every run of the thread with its status, and its checkpoints of the root graph, oldest first.
    pub(super) fn shown(&self, id: &ThreadId) -> (Vec<(RunId, RunStatus)>, Vec<CheckpointRow>) {
        let db = lock(&self.db);
        let Some(rows) = db.threads.get(&id.key(Scope::default().tenant())) else { return (Vec::new(), Vec::new()) };
        let runs = rows.runs.iter().map(|row| (row.run.run_id, row.run.status)).collect();
        let root = rows.checkpoints.values().filter(|row| row.ns.is_empty()).cloned().collect();
        (runs, root)
    }
}

impl Link {
    pub(super) fn new(world: &Arc<World>) -> Link {
        Link { world: Arc::clone(world), state: Arc::new(Mutex::new(State::Alive)) }
    }

    /// Waits until something comes through; for ever if the process is gone.
    async fn passage(&self) {
        loop {
            let state = *lock(&self.state);
            match state {
                State::Alive => return,
                State::SilentUntil(until) if Instant::now() >= until => {
                    let mut state = lock(&self.state);
                    if *state == State::SilentUntil(until) {
                        *state = State::Alive;
                    }
                }
                State::SilentUntil(until) => tokio::time::sleep_until(until).await,
                State::Dead => std::future::pending().await,
            }
        }
    }

    fn fails(&self) -> bool {
        let failures = *lock(&self.world.failures);
        self.world.roll(100) < failures
    }

    /// One operation: there, done at one moment, and back. It may fail on either way, if `may_fail_after` allows that it is
    /// not known whether it was done.
    async fn call<T>(&self, may_fail_after: bool, work: impl FnOnce(&mut Db, i64) -> T + Send) -> Result<T> {
        let failed = || Err(StorageError::Unavailable("simulated".to_owned()));
        self.passage().await;
        tokio::time::sleep(Duration::from_micros(200 + self.world.roll(3000))).await;
        self.passage().await;
        if self.fails() {
            return failed();
        }
        let now = self.world.clock.now().0;
        let out = work(&mut lock(&self.world.db), now);
        tokio::time::sleep(Duration::from_micros(200 + self.world.roll(3000))).await;
        self.passage().await;
        if may_fail_after && self.fails() {
            return failed();
        }
        Ok(out)
    }
}

impl Db {
    fn fence(&mut self, lease: &Lease) -> Option<(&mut Thread, usize)> {
        let rows = self.threads.get_mut(&lease.thread)?;
        let held = |row: &RunRow| {
            row.run.run_id == lease.run_id && row.run.status == RunStatus::Running && row.epoch == lease.epoch
        };
        let index = rows.runs.iter().position(held)?;
        Some((&mut rows.thread, index))
    }

    fn commit(&mut self, step: &StepCommit) -> CommitOutcome {
        let Some((thread, index)) = self.fence(&step.lease) else { return CommitOutcome::LeaseLost };
        if let Some(head) = &step.rows.head {
            thread.head = Some(head.clone());
        }
        let last = step.events.iter().map(|event| event.id.0).max().unwrap_or(0);
        thread.last_event = thread.last_event.max(last);
        if let Some(end) = &step.end {
            thread.view = end.view.clone();
        }
        let Some(rows) = self.threads.get_mut(&step.lease.thread) else { return CommitOutcome::LeaseLost };
        for row in &step.rows.checkpoints {
            rows.checkpoints.entry((row.ns.clone(), row.id.clone())).or_insert_with(|| row.clone());
        }
        for row in &step.rows.task_writes {
            let key = (row.ns.clone(), row.checkpoint_id.clone(), row.task_id.clone());
            rows.writes.insert(key, row.clone());
        }
        for payload in &step.rows.payloads {
            rows.payloads.entry(payload.hash).or_insert_with(|| payload.value.clone());
        }
        for row in &step.rows.log {
            let key = (row.ns.clone(), row.channel.clone(), row.branch, row.start);
            rows.log.entry(key).or_insert_with(|| row.clone());
        }
        for event in &step.events {
            rows.events.entry(event.id.0).or_insert_with(|| event.clone());
        }
        let row = &mut rows.runs[index];
        row.input_applied |= step.input_applied;
        if !step.rows.checkpoints.is_empty() {
            row.run.attempts = 1;
        }
        if let Some(end) = &step.end {
            row.run.status = end.status;
            row.run.error = end.error.clone();
        }
        CommitOutcome::Committed
    }

    fn claim(&mut self, lease: Duration, now: i64, limit: usize) -> Vec<ClaimedRun> {
        let mut claimed = Vec::new();
        for rows in self.threads.values_mut() {
            let abandoned =
                rows.runs.iter().position(|row| row.run.status == RunStatus::Running && row.lease_until <= now);
            let is_running = rows.runs.iter().any(|row| row.run.status == RunStatus::Running);
            let waiting = rows.runs.iter().position(|row| row.run.status == RunStatus::Pending).filter(|_| !is_running);
            let Some(index) = abandoned.or(waiting).filter(|_| claimed.len() < limit) else { continue };
            claimed.push(rows.claim(index, lease, now));
        }
        claimed
    }
}

impl ThreadRows {
    fn claim(&mut self, index: usize, lease: Duration, now: i64) -> ClaimedRun {
        let row = &mut self.runs[index];
        row.epoch += 1;
        row.lease_until = now + lease.as_micros() as i64;
        row.run.status = RunStatus::Running;
        row.run.attempts += 1;
        ClaimedRun {
            lease: Lease { thread: self.thread.key, run_id: row.run.run_id, epoch: row.epoch },
            run: row.run.clone(),
            thread: self.thread.clone(),
            tenant: Scope::default().tenant(),
            input_applied: row.input_applied,
            cancel: row.cancel.clone(),
        }
    }

    fn checkpoint(&self, ns: &str, which: &Which) -> Option<StoredCheckpoint> {
        let of_ns = || self.checkpoints.values().filter(|row| row.ns == ns);
        let row = match which {
            Which::Latest if ns.is_empty() => of_ns().find(|row| Some(&row.id) == self.thread.head.as_ref()),
            Which::Latest => of_ns().max_by(|a, b| a.id.cmp(&b.id)),
            Which::Id(id) => of_ns().find(|row| row.id == *id),
            Which::Before(id) => of_ns().filter(|row| row.id < *id).max_by(|a, b| a.id.cmp(&b.id)),
        }?;
        let mut writes: Vec<TaskWritesRow> =
            self.writes.values().filter(|write| write.ns == ns && write.checkpoint_id == row.id).cloned().collect();
        writes.sort_by(|a, b| (&a.path, &a.task_id).cmp(&(&b.path, &b.task_id)));
        Some(StoredCheckpoint { row: row.clone(), writes })
    }
}

impl Simulated for Link {
    fn find_thread(&self, scope: &Scope, id: &ThreadId) -> Option<Thread> {
        lock(&self.world.db).threads.get(&id.key(scope.tenant())).map(|rows| rows.thread.clone())
    }
    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.world.notices.subscribe()
    }
}

fn out_of_scope<T>() -> Result<T> {
    Err(StorageError::Other("not part of the simulation".to_owned()))
}

#[async_trait]
impl Runs for Link {
    async fn create_run(&self, scope: &Scope, new: NewRun) -> Result<RunCreated> {
        let key = new.thread_id.key(scope.tenant());
        let created = self.call(false, move |db, now| {
            let now_at = Timestamp(now);
            db.places.insert(new.run_id, key);
            let rows = db.threads.entry(key).or_insert_with(|| ThreadRows {
                thread: Thread {
                    key,
                    id: new.thread_id.clone(),
                    graph_id: Some(new.graph_id.clone()),
                    metadata: Json::object(),
                    config: Json::object(),
                    status: ThreadStatus::Busy,
                    error: None,
                    head: None,
                    view: None,
                    last_event: 0,
                    created_at: now_at,
                    updated_at: now_at,
                    state_updated_at: now_at,
                },
                runs: Vec::new(),
                checkpoints: BTreeMap::new(),
                writes: BTreeMap::new(),
                payloads: HashMap::new(),
                log: BTreeMap::new(),
                events: BTreeMap::new(),
            });
            let run = Run {
                run_id: new.run_id,
                thread_key: key,
                thread_id: new.thread_id,
                assistant_id: new.assistant_id,
                graph_id: new.graph_id,
                status: RunStatus::Pending,
                metadata: new.metadata,
                kwargs: new.kwargs,
                multitask_strategy: new.multitask_strategy,
                attempts: 0,
                created_at: now_at,
                updated_at: now_at,
                error: None,
                actor: None,
            };
            let is_free = !rows.runs.iter().any(|row| row.run.status.is_active());
            rows.runs.push(RunRow { run: run.clone(), epoch: 0, lease_until: 0, input_applied: false, cancel: None });
            let claim = new.claim.filter(|_| is_free);
            let claimed = claim.map(|claim| Box::new(rows.claim(rows.runs.len() - 1, claim.lease, now)));
            RunCreated::Created { run, claimed, cancelled: Vec::new() }
        });
        let created = created.await?;
        if matches!(created, RunCreated::Created { claimed: None, .. }) {
            self.world.tell(Notice::RunPending);
        }
        Ok(created)
    }

    async fn claim_runs(&self, _: &Scope, claim: &Claim, _: i32, limit: i64) -> Result<Vec<ClaimedRun>> {
        let (lease, limit) = (claim.lease, usize::try_from(limit).unwrap_or(0));
        self.call(true, move |db, now| db.claim(lease, now, limit)).await
    }

    async fn renew_leases(&self, _: &Scope, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        let leases = leases.to_vec();
        let renew = move |db: &mut Db, now: i64| {
            let renew_one = |lease_of: Lease| {
                let index = db.fence(&lease_of).map(|(_, index)| index);
                let row = index.and_then(|index| db.threads.get_mut(&lease_of.thread)?.runs.get_mut(index));
                let cancel = row.map(|row| {
                    row.lease_until = now + lease.as_micros() as i64;
                    row.cancel.clone()
                });
                LeaseState { lease: lease_of, held: cancel.is_some(), cancel: cancel.flatten() }
            };
            leases.into_iter().map(renew_one).collect()
        };
        self.call(true, renew).await
    }

    async fn release_run(&self, _: &Scope, lease: &Lease) -> Result<bool> {
        let lease = *lease;
        let released = self.call(true, move |db, _| {
            let Some((_, index)) = db.fence(&lease) else { return false };
            let Some(rows) = db.threads.get_mut(&lease.thread) else { return false };
            let row = &mut rows.runs[index];
            row.run.status = RunStatus::Pending;
            row.lease_until = 0;
            true
        });
        let released = released.await?;
        self.world.tell(Notice::RunPending);
        Ok(released)
    }

    async fn commit_steps(&self, _: &Scope, batch: &[StepCommit]) -> Result<Vec<CommitOutcome>> {
        let steps = batch.to_vec();
        let outcomes = self.call(true, move |db, _| steps.iter().map(|step| db.commit(step)).collect::<Vec<_>>());
        let outcomes = outcomes.await?;
        for (step, outcome) in batch.iter().zip(&outcomes) {
            if step.end.is_some() && *outcome == CommitOutcome::Committed {
                self.world.tell(Notice::RunEnded(step.lease.run_id));
                self.world.tell(Notice::RunPending);
            }
        }
        Ok(outcomes)
    }

    async fn rollback_run(&self, _: &Scope, _: &Lease, _: ThreadStatus) -> Result<CommitOutcome> {
        out_of_scope()
    }

    async fn commit_state(&self, _: &Scope, _: StateCommit) -> Result<StateOutcome> {
        out_of_scope()
    }

    async fn cancel_runs(&self, _: &Scope, _: &CancelTarget, _: &CancelRequest) -> Result<Vec<Cancelled>> {
        out_of_scope()
    }

    async fn find_run(&self, _: &Scope, thread: &ThreadId, run: RunId) -> Result<Option<Run>> {
        let key = thread.key(Scope::default().tenant());
        let find = move |db: &mut Db, _| {
            let row = db.threads.get(&key)?.runs.iter().find(|row| row.run.run_id == run)?;
            Some(row.run.clone())
        };
        self.call(true, find).await
    }

    async fn locate_run(&self, scope: &Scope, run: RunId) -> Result<Option<Run>> {
        let place = {
            let db = lock(&self.world.db);
            db.places.get(&run).and_then(|key| db.threads.get(key)).map(|rows| rows.thread.id.clone())
        };
        match place {
            Some(thread) => self.find_run(scope, &thread, run).await,
            None => Ok(None),
        }
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
        let read = move |db: &mut Db, _| {
            let events = db.threads.get(&thread).into_iter().flat_map(|rows| rows.events.range(after.0 + 1..));
            let wanted = events.map(|(_, event)| event).filter(|event| run.is_none_or(|run| event.run_id == run));
            wanted.take(usize::try_from(limit).unwrap_or(0)).cloned().collect()
        };
        self.call(true, read).await
    }

    async fn count_active(&self, _: &Scope) -> Result<(i64, i64)> {
        out_of_scope()
    }
}

#[async_trait]
impl Checkpoints for Link {
    async fn load_checkpoint(
        &self,
        _: &Scope,
        thread: ThreadKey,
        ns: &str,
        which: &Which,
    ) -> Result<Option<StoredCheckpoint>> {
        let (ns, which) = (ns.to_owned(), which.clone());
        self.call(true, move |db, _| db.threads.get(&thread)?.checkpoint(&ns, &which)).await
    }

    async fn list_checkpoints(
        &self,
        _: &Scope,
        _: ThreadKey,
        _: &CheckpointFilter,
        _: i64,
    ) -> Result<Vec<StoredCheckpoint>> {
        out_of_scope()
    }

    async fn load_heads(&self, _: &Scope, threads: &[ThreadKey]) -> Result<Vec<(ThreadKey, StoredCheckpoint)>> {
        let threads = threads.to_vec();
        let load = move |db: &mut Db, _| {
            let head = |key: ThreadKey| Some((key, db.threads.get(&key)?.checkpoint("", &Which::Latest)?));
            threads.into_iter().filter_map(head).collect()
        };
        self.call(true, load).await
    }

    async fn load_payloads(&self, _: &Scope, thread: ThreadKey, hashes: &[PayloadHash]) -> Result<Vec<Payload>> {
        let hashes = hashes.to_vec();
        let load = move |db: &mut Db, _| {
            let rows = db.threads.get(&thread)?;
            hashes.into_iter().map(|hash| Some(Payload { hash, value: rows.payloads.get(&hash)?.clone() })).collect()
        };
        let loaded: Option<Vec<Payload>> = self.call(true, load).await?;
        loaded.ok_or_else(|| StorageError::Other("a payload is missing".to_owned()))
    }

    async fn load_log(&self, _: &Scope, thread: ThreadKey, ranges: &[LogRange]) -> Result<Vec<LogRow>> {
        let ranges = ranges.to_vec();
        let load = move |db: &mut Db, _| {
            let Some(rows) = db.threads.get(&thread) else { return Vec::new() };
            let overlaps = |row: &LogRow, range: &LogRange| {
                row.ns == range.ns
                    && row.channel == range.channel
                    && row.branch == range.branch
                    && row.start < range.end
                    && row.start + row.count > range.start
            };
            let of =
                |range: &LogRange| rows.log.values().filter(|row| overlaps(row, range)).cloned().collect::<Vec<_>>();
            ranges.iter().flat_map(of).collect()
        };
        self.call(true, load).await
    }

    async fn continued_branches(
        &self,
        _: &Scope,
        thread: ThreadKey,
        ends: &[(String, String, i64, i64)],
    ) -> Result<Vec<(String, String, i64)>> {
        let ends = ends.to_vec();
        let look = move |db: &mut Db, _| {
            let Some(rows) = db.threads.get(&thread) else { return Vec::new() };
            let goes_on = |(ns, channel, branch, length): &(String, String, i64, i64)| {
                rows.log.values().any(|row| {
                    row.ns == *ns && row.channel == *channel && row.branch == *branch && row.start + row.count > *length
                })
            };
            ends.into_iter().filter(goes_on).map(|(ns, channel, branch, _)| (ns, channel, branch)).collect()
        };
        self.call(true, look).await
    }

    async fn list_namespaces_of(&self, _: &Scope, _: &ThreadId) -> Result<Vec<String>> {
        out_of_scope()
    }
}
