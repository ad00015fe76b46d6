//! Following the event log of a thread: what is stored after a cursor, then what is stored next, for as long as somebody
//! reads. Waiting holds no connection, and a slow reader only reads later: nothing is queued for it.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::log;
use super::protocol::{Filter, ProtocolEvent, Renderer};
use super::{Outcome, Runtime, RuntimeError};
use crate::model::event::RESUME_GAP;
use crate::model::{EventId, RunId, Scope, ThreadId, ThreadKey};
use crate::storage::{Notice, StorageError, StoredEvent};

/// Stored events read at once.
const PAGE: i64 = 100;
/// How often to look without a notice: a notice may be lost, and a run may end with nobody left to write so.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between tries while the database is away.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// The events of a subscription; an error is the last item.
pub type ProtocolStream = BoxStream<'static, Result<ProtocolEvent, RuntimeError>>;

/// A reader of one thread's log.
pub(crate) struct Tail {
    runtime: Runtime,
    scope: Scope,
    thread: ThreadKey,
    run: Option<RunId>,
    after: EventId,
    notices: broadcast::Receiver<Notice>,
    /// What is told here and not stored.
    live: Option<broadcast::Receiver<StoredEvent>>,
    unstored: Vec<StoredEvent>,
    /// There may be events after the cursor that were not read.
    is_behind: bool,
}

impl Tail {
    /// Reads from `after` on, events of one run or of all.
    pub(crate) fn new(runtime: &Runtime, scope: &Scope, thread: ThreadKey, run: Option<RunId>, after: EventId) -> Tail {
        // Heard from before the first read: nothing that is stored in between is missed.
        let notices = runtime.storage().notices();
        let (runtime, scope, unstored) = (runtime.clone(), *scope, Vec::new());
        Tail { runtime, scope, thread, run, after, notices, live: None, unstored, is_behind: true }
    }

    /// Hears also what runs executed in this process tell without storing it.
    pub(crate) fn with_unstored(mut self) -> Tail {
        self.live = Some(self.runtime.inner.hub.hear_thread(self.thread));
        self
    }

    /// Moves the cursor before anything was read.
    pub(crate) fn start_after(&mut self, after: EventId) {
        self.after = after;
    }

    /// The next read is made at once, whatever there is.
    pub(crate) fn do_not_wait(&mut self) {
        self.is_behind = true;
    }

    /// The next stored events, oldest first. Empty when nothing came for a while, or something happened that may have
    /// ended a run. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Vec<StoredEvent>, RuntimeError> {
        if !self.is_behind {
            self.wait().await;
        }
        // Before the log is read: what is stored and came first is read first.
        self.hear_waiting();
        let storage = self.runtime.storage();
        let page = loop {
            match storage.read_events(&self.scope, self.thread, self.run, self.after, PAGE).await {
                Ok(page) => break page,
                Err(StorageError::Unavailable(reason)) => {
                    tracing::warn!(%reason, "a stream waits for the database");
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let (is_behind, after) = (page.len() as i64 >= PAGE, page.last().map_or(self.after, |event| event.id));
        let page = log::restore(storage, &self.scope, self.thread, page).await?;
        (self.is_behind, self.after) = (is_behind, after);
        if !self.is_behind && !self.unstored.is_empty() {
            // The log is read up to where they were told: runs of a thread follow each other.
            let mut page = page;
            page.append(&mut self.unstored);
            return Ok(page);
        }
        Ok(page)
    }

    /// Takes in what has been told and not stored.
    fn hear_waiting(&mut self) {
        while let Some(Ok(event)) = self.live.as_mut().map(broadcast::Receiver::try_recv) {
            self.unstored.push(event);
        }
    }

    fn has_waiting(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.is_empty())
    }

    async fn wait(&mut self) {
        let look = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(look);
        loop {
            tokio::select! {
                () = &mut look => return,
                notice = self.notices.recv() => match notice {
                    Ok(Notice::Events(thread)) if thread == self.thread => return,
                    Ok(Notice::Missed) | Err(RecvError::Lagged(_)) => return,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return look.await,
                },
                event = heard(&mut self.live) => {
                    self.unstored.push(event);
                    return;
                }
            }
        }
    }
}

/// The next unstored event. Those that were missed are missed.
async fn heard(live: &mut Option<broadcast::Receiver<StoredEvent>>) -> StoredEvent {
    let Some(live) = live else { return std::future::pending().await };
    loop {
        match live.recv().await {
            Ok(event) => return event,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// A thread's log as protocol events.
pub(crate) struct ProtocolTail {
    tail: Tail,
    runtime: Runtime,
    scope: Scope,
    thread_id: ThreadId,
    renderer: Renderer,
}

impl ProtocolTail {
    pub(crate) fn new(runtime: &Runtime, scope: &Scope, thread_id: ThreadId) -> ProtocolTail {
        let key = thread_id.key(scope.tenant());
        let tail = Tail::new(runtime, scope, key, None, EventId(0)).with_unstored();
        ProtocolTail { tail, runtime: runtime.clone(), scope: *scope, thread_id, renderer: Renderer::default() }
    }

    /// The next events, rendered; empty when nothing came for a while.
    pub(crate) async fn next(&mut self) -> Result<Vec<ProtocolEvent>, RuntimeError> {
        let page = self.tail.next().await?;
        let mut out = Vec::new();
        for stored in &page {
            if self.renderer.open_run().is_some_and(|open| open != stored.run_id) {
                out.extend(self.end_by_row().await?);
            }
            out.extend(self.renderer.render(stored));
        }
        if page.is_empty() {
            out.extend(self.end_by_row().await?);
        }
        Ok(out)
    }

    /// A run whose end is not in the log, because no worker was left to write it, ends by its row.
    async fn end_by_row(&mut self) -> Result<Vec<ProtocolEvent>, RuntimeError> {
        let Some(run_id) = self.renderer.open_run() else { return Ok(Vec::new()) };
        let Some(run) = self.runtime.storage().find_run(&self.scope, &self.thread_id, run_id).await? else {
            let now = self.runtime.clock().now().millis();
            return Ok(self.renderer.end_open_run(Outcome::Interrupted, None, now));
        };
        if run.status.is_active() {
            return Ok(Vec::new());
        }
        // Its end may have been stored since the page was read: the log comes first.
        let rest = self.runtime.storage().read_events(&self.scope, run.thread_key, Some(run_id), self.tail.after, 1);
        if !rest.await?.is_empty() || self.tail.has_waiting() {
            self.tail.is_behind = true;
            return Ok(Vec::new());
        }
        let outcome = Outcome::of(run.status, crate::model::ThreadStatus::Idle);
        let error = run.error.map(|error| error.message);
        Ok(self.renderer.end_open_run(outcome, error, run.updated_at.millis()))
    }
}

/// What a subscription begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Stored events that pass its filter.
    pub events: usize,
    /// Something is missing among them: the number of the first event behind the last gap, or of the gap itself while
    /// nothing is behind it.
    pub gap: Option<i64>,
}

impl Runtime {
    /// What is stored of a thread now and passes a filter, after the sequence number `since`.
    pub async fn protocol_backlog(
        &self,
        scope: &Scope,
        thread_id: &ThreadId,
        filter: &Filter,
        since: i64,
    ) -> Result<Backlog, RuntimeError> {
        let mut tail = ProtocolTail::new(self, scope, thread_id.clone());
        let (mut backlog, mut is_behind_gap) = (Backlog::default(), false);
        while tail.tail.is_behind {
            for event in tail.next().await?.iter().filter(|event| event.seq > since) {
                if event.method == RESUME_GAP {
                    (backlog.gap, is_behind_gap) = (Some(event.seq), true);
                } else if std::mem::take(&mut is_behind_gap) {
                    backlog.gap = Some(event.seq);
                }
                backlog.events += usize::from(filter.passes(event));
            }
        }
        Ok(backlog)
    }

    /// The stored events of a thread that pass a filter, after the sequence number `since` up to and with `until`. Ends.
    pub fn protocol_replay(
        &self,
        scope: &Scope,
        thread_id: &ThreadId,
        filter: Filter,
        since: i64,
        until: i64,
    ) -> ProtocolStream {
        let tail = ProtocolTail::new(self, scope, thread_id.clone());
        let pages = unfold(Some(tail), move |tail| async move {
            let mut tail = tail.filter(|tail| tail.tail.is_behind)?;
            match tail.next().await {
                Ok(page) => {
                    let is_over = page.last().is_some_and(|event| event.seq >= until);
                    Some((page.into_iter().map(Ok).collect::<Vec<_>>(), Some(tail).filter(|_| !is_over)))
                }
                Err(error) => Some((vec![Err(error)], None)),
            }
        });
        let passes = move |event: &ProtocolEvent| event.seq > since && event.seq <= until && filter.passes(event);
        pages
            .flat_map(futures_util::stream::iter)
            .filter(move |event| std::future::ready(event.as_ref().map_or(true, &passes)))
            .boxed()
    }

    /// The events of a thread by protocol v2 that pass a filter, beginning after the sequence number `since`: those of its
    /// whole log, then all that come. Ends only with an error. The thread need not exist yet.
    pub fn protocol_events(&self, scope: &Scope, thread_id: &ThreadId, filter: Filter, since: i64) -> ProtocolStream {
        let tail = ProtocolTail::new(self, scope, thread_id.clone());
        let pages = unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(page) => Some((page.into_iter().map(Ok).collect::<Vec<_>>(), Some(tail))),
                Err(error) => Some((vec![Err(error)], None)),
            }
        });
        pages
            .flat_map(futures_util::stream::iter)
            .filter(move |event| {
                let passes = event.as_ref().map_or(true, |event| event.seq > since && filter.passes(event));
                std::future::ready(passes)
            })
            .boxed()
    }
}
