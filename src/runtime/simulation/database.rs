//! The made-up database: the rows that runs need, in memory, by the contracts of `storage::runs` and
//! `storage::checkpoints`. Every operation happens at one moment of its clock. A [`Witness`] sees what it does and does not
//! believe it.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::sabotage::Sabotage;
use super::witness::Witness;
use crate::model::{
    CancelAction, CheckpointId, ErrorInfo, EventId, Json, MultitaskStrategy, Run, RunId, RunStatus, Scope, Thread,
    ThreadId, ThreadKey, ThreadStatus, Timestamp, UsageTotals,
};
use crate::storage::{
    CancelRequest, CancelTarget, Cancelled, CheckpointFilter, CheckpointRow, Claim, ClaimedRun, CommitOutcome, Lease,
    LeaseState, LogRange, LogRow, NewRun, Notice, Payload, PayloadHash, Release, RunCreated, SUSPECT_FOR, StepCommit,
    StoredCheckpoint, StoredEvent, TaskWritesRow, Which, quarantined, rolled_back,
};

#[derive(Debug, Default)]
pub(super) struct Database {
    /// Microseconds; grows from one operation to the next.
    now: i64,
    threads: BTreeMap<ThreadKey, ThreadRows>,
    places: BTreeMap<RunId, ThreadKey>,
    sabotage: Sabotage,
    pub(super) witness: Witness,
    /// Sent once the operation is done.
    pub(super) notices: Vec<Notice>,
    /// What the operation did, for the trace.
    pub(super) note: String,
}

/// Namespace, checkpoint, task, and the run that wrote.
type WriteKey = (String, CheckpointId, String, Option<RunId>);

#[derive(Debug)]
struct ThreadRows {
    thread: Thread,
    rest: ThreadStatus,
    /// In the order of their creation.
    runs: Vec<RunRow>,
    checkpoints: BTreeMap<(String, CheckpointId), CheckpointRow>,
    /// With when each was written.
    writes: BTreeMap<WriteKey, (i64, TaskWritesRow)>,
    payloads: BTreeMap<PayloadHash, Json>,
    log: BTreeMap<(String, String, i64, i64), LogRow>,
    events: BTreeMap<i64, StoredEvent>,
}

#[derive(Debug)]
struct RunRow {
    run: Run,
    worker: Option<String>,
    epoch: i64,
    lease_until: i64,
    input_applied: bool,
    cancel: Option<CancelRequest>,
    is_quarantined: bool,
}

impl RunRow {
    fn is(&self, status: RunStatus) -> bool {
        self.run.status == status
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}

/// Reads.
impl Database {
    pub(super) fn new(sabotage: Sabotage) -> Database {
        Database { sabotage, ..Database::default() }
    }

    pub(super) fn is_idle(&self) -> bool {
        let runs = self.threads.values().flat_map(|rows| &rows.runs);
        runs.into_iter().all(|row| !row.run.status.is_active())
    }

    pub(super) fn events_of(&self, thread: ThreadKey, run: RunId) -> Vec<StoredEvent> {
        self.read_events(thread, Some(run), EventId(0), usize::MAX)
    }

    pub(super) fn read_events(
        &self,
        thread: ThreadKey,
        run: Option<RunId>,
        after: EventId,
        limit: usize,
    ) -> Vec<StoredEvent> {
        let Some(rows) = self.threads.get(&thread) else { return Vec::new() };
        let events = rows.events.range(after.0 + 1..).map(|(_, event)| event);
        events.filter(|event| run.is_none_or(|run| event.run_id == run)).take(limit).cloned().collect()
    }

    pub(super) fn thread(&self, key: ThreadKey) -> Option<Thread> {
        self.threads.get(&key).map(ThreadRows::shown)
    }

    pub(super) fn run(&self, key: ThreadKey, run: RunId) -> Option<Run> {
        self.threads.get(&key)?.runs.iter().find(|row| row.run.run_id == run).map(|row| row.run.clone())
    }

    pub(super) fn place(&self, run: RunId) -> Option<ThreadKey> {
        self.places.get(&run).copied()
    }

    pub(super) fn quarantined(&self) -> Vec<RunId> {
        let runs = self.threads.values().flat_map(|rows| &rows.runs);
        runs.filter(|row| row.is_quarantined).map(|row| row.run.run_id).collect()
    }

    pub(super) fn checkpoint(&self, key: ThreadKey, ns: &str, which: &Which) -> Option<StoredCheckpoint> {
        self.threads.get(&key)?.checkpoint(ns, which)
    }

    pub(super) fn checkpoints(&self, key: ThreadKey, filter: &CheckpointFilter, limit: usize) -> Vec<StoredCheckpoint> {
        let Some(rows) = self.threads.get(&key) else { return Vec::new() };
        let is_meant = |row: &&CheckpointRow| {
            row.ns == filter.ns
                && filter.id.as_ref().is_none_or(|id| row.id == *id)
                && filter.before.as_ref().is_none_or(|before| row.id < *before)
        };
        let found = rows.checkpoints.values().rev().filter(is_meant).take(limit);
        found.map(|row| rows.with_writes(row)).collect()
    }

    pub(super) fn payloads(&self, key: ThreadKey, hashes: &[PayloadHash]) -> Option<Vec<Payload>> {
        let rows = self.threads.get(&key)?;
        hashes.iter().map(|hash| Some(Payload { hash: *hash, value: rows.payloads.get(hash)?.clone() })).collect()
    }

    pub(super) fn log(&self, key: ThreadKey, ranges: &[LogRange]) -> Vec<LogRow> {
        let Some(rows) = self.threads.get(&key) else { return Vec::new() };
        let overlaps = |row: &LogRow, range: &LogRange| {
            (&row.ns, &row.channel, row.branch) == (&range.ns, &range.channel, range.branch)
                && row.start < range.end
                && row.start + row.count > range.start
        };
        let of = |range| rows.log.values().filter(move |row| overlaps(row, range)).cloned();
        ranges.iter().flat_map(of).collect()
    }

    pub(super) fn continued(
        &self,
        key: ThreadKey,
        ends: Vec<(String, String, i64, i64)>,
    ) -> Vec<(String, String, i64)> {
        let Some(rows) = self.threads.get(&key) else { return Vec::new() };
        let goes_on = |(ns, channel, branch, length): &(String, String, i64, i64)| {
            rows.log.values().any(|row| {
                (&row.ns, &row.channel, row.branch) == (ns, channel, *branch) && row.start + row.count > *length
            })
        };
        ends.into_iter().filter(goes_on).map(|(ns, channel, branch, _)| (ns, channel, branch)).collect()
    }

    pub(super) fn is_continued(&self, key: ThreadKey, checkpoint: &CheckpointId) -> bool {
        let Some(rows) = self.threads.get(&key) else { return false };
        rows.checkpoints.values().any(|row| row.ns.is_empty() && row.parent.as_ref() == Some(checkpoint))
    }

    pub(super) fn count_active(&self) -> (i64, i64) {
        let count = |status| {
            let runs = self.threads.values().flat_map(|rows| &rows.runs);
            i64::try_from(runs.filter(|row| row.is(status)).count()).unwrap_or(i64::MAX)
        };
        (count(RunStatus::Pending), count(RunStatus::Running))
    }
}

/// Writes.
impl Database {
    /// Begins an operation at that time, as the database's machine has it.
    pub(super) fn begin(&mut self, now: i64) {
        self.now = now.max(self.now + 1);
        self.witness.now = self.now;
    }

    pub(super) fn create_run(&mut self, scope: &Scope, new: NewRun) -> RunCreated {
        let key = new.thread_id.key(scope.tenant());
        let is_busy = self.threads.get(&key).is_some_and(ThreadRows::is_busy);
        if is_busy && new.multitask_strategy == MultitaskStrategy::Reject {
            self.note = "busy".to_owned();
            return RunCreated::ThreadBusy;
        }
        if self.places.contains_key(&new.run_id) {
            return RunCreated::RunExists;
        }
        if !self.threads.contains_key(&key) && !new.create_thread {
            return RunCreated::ThreadMissing;
        }
        let action = match new.multitask_strategy {
            MultitaskStrategy::Interrupt => Some(CancelAction::Interrupt),
            MultitaskStrategy::Rollback => Some(CancelAction::Rollback),
            MultitaskStrategy::Enqueue | MultitaskStrategy::Reject => None,
        };
        let cancelled = match action.filter(|_| is_busy) {
            Some(action) => self.cancel(key, |_| true, &CancelRequest { action, actor: None, reason: None }),
            None => Vec::new(),
        };
        let now = Timestamp(self.now);
        let rows = self.threads.entry(key).or_insert_with(|| ThreadRows::new(key, new.thread_id.clone(), now));
        rows.thread.graph_id = Some(new.graph_id.clone());
        rows.thread.updated_at = now;
        let is_alone = !is_busy || (action.is_some() && cancelled.iter().all(|run| !run.running));
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
            created_at: now,
            updated_at: now,
            error: None,
            actor: new.actor,
            usage: UsageTotals::default(),
        };
        self.places.insert(new.run_id, key);
        self.note = self.witness.created(&run);
        rows.runs.push(RunRow {
            run: run.clone(),
            worker: None,
            epoch: 0,
            lease_until: 0,
            input_applied: false,
            cancel: None,
            is_quarantined: false,
        });
        let claim = new.claim.filter(|_| is_alone && new.after.is_zero());
        let claimed = claim.and_then(|claim| self.claim_one(key, new.run_id, &claim).map(Box::new));
        if claimed.is_none() {
            self.notices.push(Notice::RunPending);
        }
        RunCreated::Created { run, claimed, cancelled }
    }

    pub(super) fn claim_runs(&mut self, claim: &Claim, max_attempts: i32, limit: usize) -> Vec<ClaimedRun> {
        let now = self.now;
        let mut has_suspect = self.threads.values().flat_map(|rows| &rows.runs).any(|row| {
            row.is(RunStatus::Running)
                && row.worker.as_ref() == Some(&claim.worker)
                && row.run.attempts > 1
                && row.run.attempts == max_attempts
                && row.cancel.is_none()
                && row.lease_until > now
                && row.run.updated_at.0 > now - micros(SUSPECT_FOR)
        });
        let mut picked = Vec::new();
        for (key, rows) in &self.threads {
            let is_running = rows.runs.iter().any(|row| row.is(RunStatus::Running));
            let mut is_first = true;
            for row in &rows.runs {
                let is_claimable = match row.run.status {
                    RunStatus::Running => self.sabotage.takes_over(row.lease_until, now),
                    RunStatus::Pending => std::mem::take(&mut is_first) && !is_running,
                    _ => false,
                };
                let is_last = row.run.attempts > 0 && row.run.attempts == max_attempts - 1 && row.cancel.is_none();
                if is_claimable && !(has_suspect && is_last) {
                    picked.push((row.run.created_at, row.run.run_id, *key, row.run.attempts, is_last));
                }
            }
        }
        picked.sort();
        picked.truncate(limit);
        let mut claimed = Vec::new();
        for (_, run_id, key, attempts, is_last) in picked {
            if attempts >= max_attempts {
                self.quarantine(key, run_id);
            } else if !(is_last && has_suspect) {
                has_suspect |= is_last;
                claimed.extend(self.claim_one(key, run_id, claim));
            }
        }
        claimed
    }

    fn claim_one(&mut self, key: ThreadKey, run_id: RunId, claim: &Claim) -> Option<ClaimedRun> {
        let now = self.now;
        let rows = self.threads.get_mut(&key)?;
        let row = rows.runs.iter_mut().find(|row| row.run.run_id == run_id)?;
        row.epoch += 1;
        row.lease_until = now + micros(claim.lease);
        row.worker = Some(claim.worker.clone());
        row.run.status = RunStatus::Running;
        row.run.attempts += 1;
        row.run.updated_at = Timestamp(now);
        let lease = Lease { thread: key, run_id, epoch: row.epoch };
        let claimed = ClaimedRun {
            lease,
            run: row.run.clone(),
            thread: Thread { status: ThreadStatus::Busy, ..rows.thread.clone() },
            tenant: Scope::default().tenant(),
            input_applied: row.input_applied,
            cancel: self.sabotage.is_told(row.cancel.clone()),
        };
        self.note += &self.witness.claimed(&lease, claim);
        Some(claimed)
    }

    fn quarantine(&mut self, key: ThreadKey, run_id: RunId) {
        let Some((rows, index)) = self.find(key, run_id) else { return };
        let row = &mut rows.runs[index];
        let error = quarantined(row.run.attempts, row.worker.as_deref());
        row.run.status = RunStatus::Error;
        row.run.error = Some(error.clone());
        row.lease_until = 0;
        row.is_quarantined = true;
        rows.rest = ThreadStatus::Error;
        rows.thread.error = Some(error);
        rows.thread.view = None;
        self.note += &self.witness.quarantined(run_id);
        self.notices.extend([Notice::RunEnded(run_id), Notice::RunPending]);
    }

    pub(super) fn release_from_quarantine(&mut self, run_id: RunId) -> Release {
        let Some(key) = self.place(run_id) else { return Release::NotQuarantined };
        let Some((rows, index)) = self.find(key, run_id) else { return Release::NotQuarantined };
        if !rows.runs[index].is_quarantined {
            return Release::NotQuarantined;
        }
        if rows.runs[index + 1..].iter().any(|later| !later.is(RunStatus::Pending)) {
            return Release::Superseded;
        }
        let row = &mut rows.runs[index];
        row.run.status = RunStatus::Pending;
        row.run.error = None;
        row.run.attempts = 0;
        row.worker = None;
        row.is_quarantined = false;
        rows.rest = ThreadStatus::Idle;
        rows.thread.error = None;
        self.note = self.witness.released_from_quarantine(run_id);
        self.notices.push(Notice::RunPending);
        Release::Released
    }

    pub(super) fn renew_leases(&mut self, leases: &[Lease], lease: Duration) -> Vec<LeaseState> {
        let until = self.now + micros(lease);
        let renew_one = |of: &Lease| {
            let cancel = self.fence(of).map(|(rows, index)| {
                rows.runs[index].lease_until = until;
                rows.runs[index].cancel.clone()
            });
            let held = cancel.is_some();
            LeaseState { lease: *of, held, cancel: self.sabotage.is_told(cancel.flatten()) }
        };
        let states: Vec<LeaseState> = leases.iter().map(renew_one).collect();
        for state in &states {
            self.note += &self.witness.renewed(&state.lease, state.held);
        }
        states
    }

    pub(super) fn release_run(&mut self, lease: &Lease) -> bool {
        let Some((rows, index)) = self.fence(lease) else { return false };
        let row = &mut rows.runs[index];
        row.run.status = RunStatus::Pending;
        row.lease_until = 0;
        row.run.attempts = (row.run.attempts - 1).max(0);
        row.worker = None;
        self.note = self.witness.released(lease);
        self.notices.push(Notice::RunPending);
        true
    }

    pub(super) fn commit_steps(&mut self, batch: &[StepCommit]) -> Vec<CommitOutcome> {
        batch.iter().map(|step| self.commit(step)).collect()
    }

    fn commit(&mut self, step: &StepCommit) -> CommitOutcome {
        let (now, sabotage) = (Timestamp(self.now), self.sabotage);
        if self.fence(&step.lease).is_none() {
            self.note += &self.witness.refused(&step.lease);
            return CommitOutcome::LeaseLost;
        }
        self.note += &self.witness.commits(step);
        let waits = self
            .threads
            .get(&step.lease.thread)
            .is_some_and(|rows| rows.runs.iter().any(|row| row.is(RunStatus::Pending)));
        let Some((rows, index)) = self.fence(&step.lease) else { return CommitOutcome::LeaseLost };
        if sabotage.keeps_rows(step) {
            rows.insert(step, now);
        }
        let row = &mut rows.runs[index];
        row.input_applied |= step.input_applied && sabotage != Sabotage::InputIsForgotten;
        if !step.rows.checkpoints.is_empty() {
            row.run.attempts = 1;
        }
        row.run.updated_at = now;
        if let Some(head) = &step.rows.head {
            rows.thread.head = Some(head.clone());
        }
        let last = step.events.iter().map(|event| event.id.0).max().unwrap_or(0);
        rows.thread.last_event = rows.thread.last_event.max(last);
        if let Some(end) = &step.end {
            row.run.status = end.status;
            row.run.error = end.error.clone();
            row.lease_until = 0;
            rows.rest = end.thread_status;
            rows.thread.error = end.error.clone();
            rows.thread.view = end.view.clone();
            self.notices.push(Notice::RunEnded(step.lease.run_id));
            self.notices.extend(waits.then_some(Notice::RunPending));
        }
        if last > 0 {
            self.notices.push(Notice::Events(step.lease.thread));
        }
        CommitOutcome::Committed
    }

    pub(super) fn rollback_run(&mut self, lease: &Lease, rest: ThreadStatus) -> CommitOutcome {
        if self.fence(lease).is_none() {
            self.note = self.witness.refused(lease);
            return CommitOutcome::LeaseLost;
        }
        self.note = self.witness.rolls_back(lease.run_id, Some(lease));
        self.delete(lease.thread, lease.run_id);
        if let Some(rows) = self.threads.get_mut(&lease.thread) {
            rows.rest = rest;
            rows.thread.error = Some(rolled_back());
            rows.thread.view = None;
        }
        self.notices.extend([Notice::RunEnded(lease.run_id), Notice::RunPending]);
        CommitOutcome::Committed
    }

    pub(super) fn cancel_runs(
        &mut self,
        scope: &Scope,
        target: &CancelTarget,
        request: &CancelRequest,
    ) -> Vec<Cancelled> {
        match target {
            CancelTarget::Runs { thread_id, run_ids } => {
                self.cancel(thread_id.key(scope.tenant()), |run| run_ids.contains(&run), request)
            }
            CancelTarget::Thread(thread_id) => self.cancel(thread_id.key(scope.tenant()), |_| true, request),
            CancelTarget::Assistant(_) | CancelTarget::Status(_) => Vec::new(),
        }
    }

    fn cancel(&mut self, key: ThreadKey, is_meant: impl Fn(RunId) -> bool, request: &CancelRequest) -> Vec<Cancelled> {
        let Some(rows) = self.threads.get_mut(&key) else { return Vec::new() };
        let mut cancelled = Vec::new();
        let mut gone: Vec<RunId> = Vec::new();
        for row in &mut rows.runs {
            let run_id = row.run.run_id;
            if !row.run.status.is_active() || !is_meant(run_id) {
                continue;
            }
            let running = row.is(RunStatus::Running);
            cancelled.push(Cancelled { run_id, thread: key, running });
            self.note += &self.witness.cancelled(run_id, request.action, running);
            if running || request.action == CancelAction::Interrupt {
                let is_stronger = request.action == CancelAction::Rollback;
                let replaces = |old: &CancelRequest| old.action == CancelAction::Interrupt && is_stronger;
                if row.cancel.as_ref().is_none_or(replaces) {
                    row.cancel = Some(request.clone());
                }
                if !running {
                    row.run.status = RunStatus::Interrupted;
                }
            } else {
                gone.push(run_id);
            }
            self.notices.push(if running { Notice::CancelRequested(run_id) } else { Notice::RunEnded(run_id) });
        }
        for run_id in gone {
            self.note += &self.witness.rolls_back(run_id, None);
            self.delete(key, run_id);
        }
        cancelled
    }

    /// Deletes a run with what it wrote; the head moves back.
    fn delete(&mut self, key: ThreadKey, run_id: RunId) {
        self.places.remove(&run_id);
        if let Some(rows) = self.threads.get_mut(&key) {
            rows.delete(run_id);
        }
    }

    fn find(&mut self, key: ThreadKey, run_id: RunId) -> Option<(&mut ThreadRows, usize)> {
        let rows = self.threads.get_mut(&key)?;
        let index = rows.runs.iter().position(|row| row.run.run_id == run_id)?;
        Some((rows, index))
    }

    /// The run, if this lease is the one it is executed under.
    fn fence(&mut self, lease: &Lease) -> Option<(&mut ThreadRows, usize)> {
        let sabotage = self.sabotage;
        let (rows, index) = self.find(lease.thread, lease.run_id)?;
        let row = &rows.runs[index];
        let is_held = row.is(RunStatus::Running) && (row.epoch == lease.epoch || sabotage == Sabotage::FenceIsOff);
        is_held.then_some((rows, index))
    }
}

impl ThreadRows {
    fn new(key: ThreadKey, id: ThreadId, now: Timestamp) -> ThreadRows {
        ThreadRows {
            thread: Thread {
                key,
                id,
                graph_id: None,
                metadata: Json::object(),
                config: Json::object(),
                status: ThreadStatus::Idle,
                error: None::<ErrorInfo>,
                head: None,
                view: None,
                last_event: 0,
                usage: UsageTotals::default(),
                created_at: now,
                updated_at: now,
                state_updated_at: now,
                closed: None,
                moved: None,
            },
            rest: ThreadStatus::Idle,
            runs: Vec::new(),
            checkpoints: BTreeMap::new(),
            writes: BTreeMap::new(),
            payloads: BTreeMap::new(),
            log: BTreeMap::new(),
            events: BTreeMap::new(),
        }
    }

    fn is_busy(&self) -> bool {
        self.runs.iter().any(|row| row.run.status.is_active())
    }

    fn shown(&self) -> Thread {
        Thread { status: if self.is_busy() { ThreadStatus::Busy } else { self.rest }, ..self.thread.clone() }
    }

    /// Rows that are there stay, but for the writes of tasks.
    fn insert(&mut self, step: &StepCommit, now: Timestamp) {
        for row in &step.rows.checkpoints {
            self.checkpoints.entry((row.ns.clone(), row.id.clone())).or_insert_with(|| row.clone());
        }
        for row in &step.rows.task_writes {
            let key = (row.ns.clone(), row.checkpoint_id.clone(), row.task_id.clone(), row.run_id);
            self.writes.insert(key, (now.0, row.clone()));
        }
        for payload in &step.rows.payloads {
            self.payloads.entry(payload.hash).or_insert_with(|| payload.value.clone());
        }
        for row in &step.rows.log {
            let key = (row.ns.clone(), row.channel.clone(), row.branch, row.start);
            self.log.entry(key).or_insert_with(|| row.clone());
        }
        for event in &step.events {
            self.events.entry(event.id.0).or_insert_with(|| event.clone());
        }
    }

    fn checkpoint(&self, ns: &str, which: &Which) -> Option<StoredCheckpoint> {
        let mut newest_first = self.checkpoints.values().rev().filter(|row| row.ns == ns);
        let row = match which {
            Which::Latest if ns.is_empty() => newest_first.find(|row| Some(&row.id) == self.thread.head.as_ref()),
            Which::Latest => newest_first.next(),
            Which::Id(id) => newest_first.find(|row| row.id == *id),
            Which::Before(id) => newest_first.find(|row| row.id < *id),
            Which::During(id) => newest_first.find(|row| {
                let parent = row.metadata.get("parents").and_then(|parents| parents.get(""));
                parent.is_some_and(|parent| parent.as_str() == Some(id))
            }),
        }?;
        Some(self.with_writes(row))
    }

    fn with_writes(&self, row: &CheckpointRow) -> StoredCheckpoint {
        let mut latest: BTreeMap<&str, &(i64, TaskWritesRow)> = BTreeMap::new();
        let of_it = self.writes.values().filter(|(_, write)| (&write.ns, &write.checkpoint_id) == (&row.ns, &row.id));
        for write in of_it {
            let age = |(at, row): &(i64, TaskWritesRow)| (*at, row.run_id.unwrap_or(Uuid::nil()));
            let kept = latest.entry(&write.1.task_id).or_insert(write);
            if age(write) > age(kept) {
                *kept = write;
            }
        }
        let mut writes: Vec<TaskWritesRow> = latest.into_values().map(|(_, write)| write.clone()).collect();
        writes.sort_by(|a, b| (&a.path, &a.task_id).cmp(&(&b.path, &b.task_id)));
        StoredCheckpoint { row: row.clone(), writes }
    }

    fn delete(&mut self, run_id: RunId) {
        let own = Some(run_id);
        let first = self.checkpoints.values().filter(|row| row.run_id == own).map(|row| row.id.clone()).min();
        let is_shared =
            first.is_some_and(|first| self.checkpoints.values().any(|row| row.run_id != own && row.id > first));
        if !is_shared {
            self.log.retain(|_, row| row.run_id != own);
        }
        let lost: Vec<(String, CheckpointId)> =
            self.checkpoints.iter().filter(|(_, row)| row.run_id == own).map(|(key, _)| key.clone()).collect();
        self.writes.retain(|_, (_, row)| {
            row.run_id != own && !lost.iter().any(|(ns, id)| (ns, id) == (&row.ns, &row.checkpoint_id))
        });
        self.checkpoints.retain(|_, row| row.run_id != own);
        self.events.retain(|_, event| event.run_id != run_id);
        self.runs.retain(|row| row.run.run_id != run_id);
        let is_there = |head: &CheckpointId| self.checkpoints.contains_key(&(String::new(), head.clone()));
        if self.thread.head.as_ref().is_some_and(|head| !is_there(head)) {
            let newest = self.checkpoints.values().rev().find(|row| row.ns.is_empty());
            let is_open = newest.is_some_and(|row| !row.next.is_empty());
            self.thread.head = newest.map(|row| row.id.clone());
            self.thread.view = None;
            self.thread.error = None;
            self.rest = if is_open { ThreadStatus::Interrupted } else { ThreadStatus::Idle };
        }
    }
}
