//! The write path of a run: rows and stored events are queued in order and committed in the background, as many as have
//! gathered in one commit, under the run's lease (DESIGN section 7).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::live::LiveRun;
use super::metrics::Metrics;
use super::questions;
use super::shared::lock;
use super::tasks;
use super::worker::{Active, StopReason};
use crate::model::{Event, Json, Scope, ThreadStatus};
use crate::storage::{CommitOutcome, Lease, RunEnd, SharedStorage, StepCommit, StepRows, StorageError, StoredEvent};

/// How long rows or stored events may wait for company.
const LINGER: Duration = Duration::from_millis(20);
/// Uncommitted work of a run never exceeds this: whoever makes more waits.
const MAX_BACKLOG_BYTES: usize = 1024 * 1024;
const MAX_BACKLOG_AGE: Duration = Duration::from_millis(50);
/// Between tries while the database is away.
const RETRY_EVERY: Duration = Duration::from_millis(200);

enum Message {
    /// `urgent`: commit now; otherwise within [`LINGER`].
    Rows {
        rows: Box<StepRows>,
        bytes: usize,
        /// What is told of the rows: committed with them.
        events: Vec<Told>,
        input_applied: bool,
        urgent: bool,
    },
    Event(Told),
    Flush(oneshot::Sender<bool>),
    End {
        end: RunEnd,
        done: oneshot::Sender<bool>,
    },
    Rollback {
        thread_status: ThreadStatus,
        done: oneshot::Sender<bool>,
    },
    Release {
        done: oneshot::Sender<bool>,
    },
}

/// An event that is stored, then sent.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// As listeners get it.
    pub(crate) event: Event,
    /// As the log keeps it, where that differs ([`super::log`]).
    pub(crate) stored: Option<(String, Json)>,
}

/// The handle of a run's write path.
#[derive(Clone)]
pub(crate) struct Committer {
    sender: mpsc::UnboundedSender<Message>,
    backlog: Arc<Mutex<Backlog>>,
}

/// What is queued or being committed.
#[derive(Debug, Default)]
struct Backlog {
    bytes: usize,
    since: Option<Instant>,
}

impl Committer {
    /// A commit that finds the lease gone stops the run.
    pub(crate) fn spawn(
        storage: SharedStorage,
        live: Arc<LiveRun>,
        active: Active,
        metrics: Arc<Metrics>,
    ) -> Committer {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (lease, lost) = (active.lease, CancellationToken::new());
        let backlog = Arc::new(Mutex::new(Backlog::default()));
        let batch = Batch::default();
        let task = Task {
            storage,
            lease,
            live,
            active,
            metrics,
            lost,
            receiver,
            batch,
            backlog: Arc::clone(&backlog),
            counted: 0,
        };
        tasks::spawn(task.run());
        Committer { sender, backlog }
    }

    /// Queues rows. Committed in order; `urgent` ones as soon as the commit in flight is done.
    pub(crate) fn push(&self, rows: StepRows, events: Vec<Told>, input_applied: bool, urgent: bool) {
        let bytes = size(&rows);
        let mut backlog = lock(&self.backlog);
        backlog.bytes += bytes;
        backlog.since.get_or_insert_with(Instant::now);
        drop(backlog);
        let _ = self.sender.send(Message::Rows { rows: Box::new(rows), bytes, events, input_applied, urgent });
    }

    /// Queues an event that is stored, then sent.
    pub(crate) fn push_event(&self, event: Told) {
        let _ = self.sender.send(Message::Event(event));
    }

    /// Waits until so little is uncommitted that a crash could not take much: 50 ms or 1 MiB of work (DESIGN section 7).
    pub(crate) async fn keep_up(&self) {
        let is_behind = {
            let backlog = lock(&self.backlog);
            backlog.bytes > MAX_BACKLOG_BYTES || backlog.since.is_some_and(|since| since.elapsed() > MAX_BACKLOG_AGE)
        };
        if is_behind {
            self.flush().await;
        }
    }

    /// Returns when everything queued so far is committed. False: the lease is gone, and what was queued with it.
    pub(crate) async fn flush(&self) -> bool {
        let (done, wait) = oneshot::channel();
        let _ = self.sender.send(Message::Flush(done));
        wait.await.unwrap_or(false)
    }

    /// Ends the run in the same commit as what is queued. False: the lease is gone.
    pub(crate) async fn end(&self, end: RunEnd) -> bool {
        let (done, wait) = oneshot::channel();
        let _ = self.sender.send(Message::End { end, done });
        wait.await.unwrap_or(false)
    }

    /// Takes back all the run wrote. False: the lease is gone.
    pub(crate) async fn rollback(&self, thread_status: ThreadStatus) -> bool {
        let (done, wait) = oneshot::channel();
        let _ = self.sender.send(Message::Rollback { thread_status, done });
        wait.await.unwrap_or(false)
    }

    /// Commits what is queued and hands the run back. False: the lease is gone.
    pub(crate) async fn release(&self) -> bool {
        let (done, wait) = oneshot::channel();
        let _ = self.sender.send(Message::Release { done });
        wait.await.unwrap_or(false)
    }
}

#[derive(Default)]
struct Batch {
    rows: StepRows,
    /// What the backlog was charged for them: more than they have when some replaced others.
    bytes: usize,
    events: Vec<Told>,
    input_applied: bool,
    waiting: Vec<oneshot::Sender<bool>>,
    /// When the batch must be committed at the latest; `None` while it is empty.
    due: Option<Instant>,
    last: Option<Last>,
}

enum Last {
    End(RunEnd, oneshot::Sender<bool>),
    Rollback(ThreadStatus, oneshot::Sender<bool>),
    Release(oneshot::Sender<bool>),
}

impl Batch {
    fn add(&mut self, message: Message) {
        let now = Instant::now();
        let due_by = |at: Instant, due: &mut Option<Instant>| *due = Some(due.map_or(at, |due| due.min(at)));
        match message {
            Message::Rows { rows, bytes, events, input_applied, urgent } => {
                merge(&mut self.rows, *rows);
                self.events.extend(events);
                self.bytes += bytes;
                self.input_applied |= input_applied;
                due_by(if urgent { now } else { now + LINGER }, &mut self.due);
            }
            Message::Event(event) => {
                self.events.push(event);
                due_by(now + LINGER, &mut self.due);
            }
            Message::Flush(done) => {
                self.waiting.push(done);
                self.due = Some(now);
            }
            Message::End { end, done } => {
                self.last = Some(Last::End(end, done));
                self.due = Some(now);
            }
            Message::Rollback { thread_status, done } => {
                self.last = Some(Last::Rollback(thread_status, done));
                self.due = Some(now);
            }
            Message::Release { done } => {
                self.last = Some(Last::Release(done));
                self.due = Some(now);
            }
        }
    }

    fn is_empty(&self) -> bool {
        let rows = &self.rows;
        rows.checkpoints.is_empty()
            && rows.task_writes.is_empty()
            && rows.payloads.is_empty()
            && rows.log.is_empty()
            && rows.interrupts.is_empty()
            && rows.effects.is_empty()
            && rows.executions.is_empty()
            && rows.usage.is_empty()
            && self.events.is_empty()
            && !self.input_applied
    }
}

/// Roughly the bytes a commit of these rows writes.
fn size(rows: &StepRows) -> usize {
    let text = |json: &Json| json.as_raw().get().len();
    let checkpoints: usize = rows.checkpoints.iter().map(|row| text(&row.body) + text(&row.metadata)).sum();
    let writes: usize = rows.task_writes.iter().map(|row| text(&row.body)).sum();
    let payloads: usize = rows.payloads.iter().map(|payload| text(&payload.value)).sum();
    let log: usize = rows.log.iter().map(|row| text(&row.items)).sum();
    let questions: usize = rows.interrupts.iter().map(|row| text(&row.question)).sum();
    let effects: usize = rows.effects.iter().filter_map(|row| row.entry.result.as_ref()).map(text).sum();
    checkpoints + writes + payloads + log + questions + effects
}

fn merge(into: &mut StepRows, rows: StepRows) {
    for row in rows.task_writes {
        into.task_writes.retain(|other| {
            other.task_id != row.task_id || other.checkpoint_id != row.checkpoint_id || other.ns != row.ns
        });
        into.task_writes.push(row);
    }
    for row in rows.effects {
        into.effects.retain(|other| !row.is_same_call(other));
        into.effects.push(row);
    }
    for row in rows.usage {
        match into.usage.iter_mut().find(|other| other.model == row.model) {
            Some(other) => other.usage = other.usage.plus(row.usage),
            None => into.usage.push(row),
        }
    }
    into.checkpoints.extend(rows.checkpoints);
    into.payloads.extend(rows.payloads);
    into.log.extend(rows.log);
    into.executions.extend(rows.executions);
    questions::merge(&mut into.interrupts, rows.interrupts);
    if rows.head.is_some() {
        into.head = rows.head;
    }
}

struct Task {
    storage: SharedStorage,
    lease: Lease,
    live: Arc<LiveRun>,
    active: Active,
    metrics: Arc<Metrics>,
    lost: CancellationToken,
    receiver: mpsc::UnboundedReceiver<Message>,
    batch: Batch,
    backlog: Arc<Mutex<Backlog>>,
    /// Commits that counted usage so far.
    counted: i64,
}

impl Task {
    async fn run(mut self) {
        loop {
            let message = match self.batch.due {
                Some(due) => tokio::select! {
                    biased;
                    message = self.receiver.recv() => message,
                    () = tokio::time::sleep_until(due) => {
                        if self.commit().await { return; }
                        continue;
                    }
                },
                None => self.receiver.recv().await,
            };
            let Some(message) = message else {
                self.commit().await;
                return;
            };
            self.batch.add(message);
            while let Ok(message) = self.receiver.try_recv() {
                self.batch.add(message);
            }
            if self.batch.due.is_some_and(|due| due <= Instant::now()) && self.commit().await {
                return;
            }
        }
    }

    /// Commits the batch. True when the run is over for this process.
    async fn commit(&mut self) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let events: Vec<StoredEvent> = batch
            .events
            .iter()
            .filter_map(|told| {
                let event = &told.event;
                let (name, data) = told.stored.clone().unwrap_or_else(|| (event.name.clone(), event.data.clone()));
                Some(StoredEvent { id: event.id?, run_id: event.run_id, name, data })
            })
            .collect();
        let is_over = batch.last.is_some();
        let mut held = !self.lost.is_cancelled();
        let (end, done) = match batch.last.take() {
            Some(Last::End(end, done)) => (Some(end), Some(done)),
            Some(Last::Rollback(status, done)) => {
                held = held && self.retry(|task| task.storage.rollback_run(&Scope::Server, &task.lease, status)).await;
                let _ = done.send(held);
                return true;
            }
            Some(Last::Release(done)) => {
                held = held && self.write(&mut batch, events, None).await;
                if held {
                    held = self.storage.release_run(&Scope::Server, &self.lease).await.unwrap_or(false);
                }
                let _ = done.send(held);
                return true;
            }
            None => (None, None),
        };
        held = held && self.write(&mut batch, events, end).await;
        if held {
            for told in batch.events {
                self.live.send(told.event);
            }
        }
        for waiting in batch.waiting {
            let _ = waiting.send(held);
        }
        if let Some(done) = done {
            let _ = done.send(held);
        }
        is_over
    }

    async fn write(&mut self, batch: &mut Batch, events: Vec<StoredEvent>, end: Option<RunEnd>) -> bool {
        if batch.is_empty() && end.is_none() {
            return true;
        }
        if !batch.rows.usage.is_empty() {
            self.counted += 1;
            // Grows from commit to commit and from claim to claim: a repeated commit is recognized.
            let seq = (self.lease.epoch << 32) | self.counted;
            batch.rows.usage.iter_mut().for_each(|row| row.seq = seq);
        }
        let commit = [StepCommit {
            lease: self.lease,
            rows: std::mem::take(&mut batch.rows),
            events,
            input_applied: batch.input_applied,
            end,
        }];
        let committed = self
            .retry(|task| {
                let commit = &commit;
                async move {
                    let began = Instant::now();
                    let outcomes = task.storage.commit_steps(&Scope::Server, commit).await?;
                    task.metrics.commits.observe(began.elapsed());
                    Ok(outcomes.first().copied().unwrap_or(CommitOutcome::LeaseLost))
                }
            })
            .await;
        let mut backlog = lock(&self.backlog);
        backlog.bytes = backlog.bytes.saturating_sub(batch.bytes);
        // What was queued meanwhile is younger than this commit.
        backlog.since = (backlog.bytes > 0).then(Instant::now);
        committed
    }

    /// The lease went while the database was away: no commit can succeed any more.
    fn is_stopped_for_good(&self) -> bool {
        self.lost.is_cancelled() || *lock(&self.active.reason) == Some(StopReason::LeaseLost)
    }

    fn lose(&self) {
        self.lost.cancel();
        self.active.stop(StopReason::LeaseLost);
    }

    /// Tries until the database answers. Repeating is safe: every write is conditional on the lease, and rows that are
    /// there already stay as they are.
    async fn retry<'a, F, R>(&'a self, attempt: F) -> bool
    where
        F: Fn(&'a Task) -> R,
        R: Future<Output = Result<CommitOutcome, StorageError>>,
    {
        loop {
            match attempt(self).await {
                Ok(CommitOutcome::Committed) => return true,
                Ok(CommitOutcome::LeaseLost) => {
                    self.lose();
                    return false;
                }
                Err(StorageError::Unavailable(reason)) if !self.is_stopped_for_good() => {
                    self.metrics.commit_retries.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(run.id = %self.lease.run_id, %reason, "commit waits for the database");
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => {
                    tracing::error!(run.id = %self.lease.run_id, %error, "commit failed; giving the run up");
                    self.lose();
                    return false;
                }
            }
        }
    }
}
