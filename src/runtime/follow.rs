//! Following a run: its events from wherever they are, live here, stored, or executed by another process, until it ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::live::{Heard, Listener, LiveRun};
use super::log;
use super::runs::LINGERS;
use super::tasks;
use super::{EventStream, Runtime, RuntimeError};
use crate::model::event::{RUN_ENDED, is_record};
use crate::model::{CancelAction, Event, EventId, Json, Run, RunId, Scope, ThreadId, ThreadKey};
use crate::storage::{CancelRequest, Notice};

/// How often to look at a run that another process executes, when no notice comes.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Stored events read at once.
const PAGE: i64 = 100;
/// Looks between two requests to be told what a run elsewhere does.
const ASK_EVERY: u32 = 10;
/// Events a listener may be behind before the pump waits for it.
const BUFFER: usize = 256;

/// What to follow.
pub(crate) struct Follow {
    pub(crate) scope: Scope,
    pub(crate) run: Run,
    pub(crate) live: Arc<LiveRun>,
    pub(crate) receiver: Listener,
    /// Stored events after this id come first.
    pub(crate) after: Option<EventId>,
    pub(crate) cancel_on_disconnect: bool,
    /// It listens since before the run began: all that the log has of the run is for it.
    pub(crate) is_first: bool,
    /// Only then events show their ids: nothing else can be resumed by them.
    pub(crate) is_resumable: bool,
    /// The run's temporary thread stays until this listener has read it.
    pub(crate) is_last_reader: bool,
}

impl Follow {
    /// Whether another process tells what this listener wants only if it is asked to.
    fn must_ask(&self, process: Uuid) -> bool {
        let heard_by = self.run.kwargs.get("heard_by").and_then(|by| by.as_str().and_then(|by| by.parse().ok()));
        heard_by != Some(process)
    }

    /// Sends an event; true when the listener has left.
    async fn send(&self, sender: &mpsc::Sender<Event>, mut event: Event) -> bool {
        if !self.is_resumable {
            event.id = None;
        }
        sender.send(event).await.is_err()
    }
}

impl Runtime {
    /// Starts following. The stream ends when the run has ended; dropping it cancels the run if asked to.
    pub(crate) fn follow(&self, follow: Follow) -> EventStream {
        let (sender, receiver) = mpsc::channel(BUFFER);
        drop(self.follow_into(follow, sender));
        ReceiverStream::new(receiver).boxed()
    }

    /// Follows for whoever has the other end. True in the end: the listener was cut off, perhaps before the run's end.
    fn follow_into(&self, follow: Follow, sender: mpsc::Sender<Event>) -> JoinHandle<bool> {
        let runtime = self.clone();
        tasks::spawn(async move {
            let (scope, thread, run_id) = (follow.scope, follow.run.thread_id.clone(), follow.run.run_id);
            let (cancel, is_last_reader) = (follow.cancel_on_disconnect, follow.is_last_reader);
            let outcome = runtime.pump(follow, &sender).await;
            runtime.inner.hub.release(run_id);
            let is_cut_off = matches!(outcome, Ok(Pumped::Lagged) | Err(_));
            match outcome {
                Ok(Pumped::Ended) if is_last_reader => runtime.forget_thread(&scope, &thread),
                Ok(Pumped::Ended | Pumped::Lagged) => {}
                Ok(Pumped::Left) if cancel => {
                    let reason = Some("the client went away".to_owned());
                    let request = CancelRequest { action: CancelAction::Interrupt, actor: None, reason };
                    let _ = runtime.cancel(&scope, &thread, run_id, &request, false).await;
                }
                Ok(Pumped::Left) => {}
                Err(error) => tracing::warn!(run.id = %run_id, %error, "a listener was cut off"),
            }
            is_cut_off
        })
    }

    async fn pump(&self, mut follow: Follow, sender: &mpsc::Sender<Event>) -> Result<Pumped, RuntimeError> {
        let mut notices = self.storage().notices();
        let mut last = follow.after;
        // Where the log begins for a listener that has heard nothing of it yet.
        let start = follow.is_first.then_some(EventId(0));
        let is_logged = follow.after.is_some();
        // Something was told that no log has.
        let mut is_unstored = false;
        let is_unlogged = is_logged && !follow.is_resumable && self.storage().is_shared();
        let must_ask = (is_unlogged || follow.is_last_reader) && follow.must_ask(self.inner.process);
        let mut looks: u32 = 0;
        let (run_id, thread) = (follow.run.run_id, follow.run.thread_key);
        // What is told here follows on what this listener has: nobody else executed the run in between.
        let mut is_gapless = !is_logged || self.inner.is_executing(run_id);
        if let Some(after) = follow.after
            && self.replay(&follow, after, &mut last, sender).await?
        {
            return Ok(Pumped::Left);
        }
        if !follow.run.status.is_active() {
            // It had ended before its events were read: that was all.
            return Ok(Pumped::Ended);
        }
        loop {
            let is_here = self.inner.is_executing(follow.run.run_id);
            if must_ask && !is_here && looks.is_multiple_of(ASK_EVERY) {
                // Whoever executes it may have changed, or not have heard it.
                if let Err(error) = self.storage().want_run(run_id, follow.is_last_reader.then_some(LINGERS)).await {
                    tracing::debug!(run.id = %run_id, %error, "could not ask for the events of a run");
                }
                looks = 1;
            }
            tokio::select! {
                biased;
                heard = follow.receiver.hear() => match heard {
                    Heard::Event(event) => {
                        if let Some(after) = last.or(start).filter(|_| !is_gapless) {
                            // The run came here from another process. What that one told is in the log, and so is this.
                            is_gapless = true;
                            if self.replay(&follow, after, &mut last, sender).await? {
                                return Ok(Pumped::Left);
                            }
                        }
                        if event.id.is_some_and(|id| last.is_some_and(|last| id <= last)) {
                            continue;
                        }
                        is_unstored |= event.id.is_none();
                        last = event.id.or(last);
                        if !is_record(&event.name) && follow.send(sender, event).await {
                            return Ok(Pumped::Left);
                        }
                    }
                    Heard::Lagged => {
                        let start = last.or(follow.is_resumable.then_some(EventId(0)));
                        let Some(after) = start.filter(|_| !is_unstored) else {
                            // Nothing to catch up from: said aloud, so that nobody takes the cut for the end.
                            let _ = sender.send(lagged(run_id)).await;
                            return Ok(Pumped::Lagged);
                        };
                        follow.receiver = follow.live.subscribe(true);
                        if self.replay(&follow, after, &mut last, sender).await? {
                            return Ok(Pumped::Left);
                        }
                    }
                    Heard::Closed => {
                        let has_ended_here = follow.live.result.get().is_some();
                        if has_ended_here || !self.is_active(&follow).await? {
                            if let Some(after) = last.or(start).filter(|_| is_logged || !has_ended_here) {
                                self.replay(&follow, after, &mut last, sender).await?;
                            }
                            return Ok(Pumped::Ended);
                        }
                        // Handed over to another worker: listen on.
                        is_gapless = false;
                        follow.live = self.inner.hub.run(follow.run.run_id);
                        follow.receiver = follow.live.subscribe(follow.is_resumable);
                    }
                },
                () = sender.closed() => return Ok(Pumped::Left),
                () = wait_for_notice(&mut notices, run_id, thread), if !is_here => {
                    looks += 1;
                    // Asked before the log is read: what an ended run told is all there.
                    let has_ended = !self.is_active(&follow).await? && !self.inner.is_executing(follow.run.run_id);
                    if let Some(after) = last.or(start.filter(|_| !is_gapless))
                        && self.replay(&follow, after, &mut last, sender).await?
                    {
                        return Ok(Pumped::Left);
                    }
                    if has_ended {
                        while let Some(event) = follow.receiver.try_hear() {
                            let is_new = event.id.is_none_or(|id| last.is_none_or(|last| id > last));
                            if is_new && !is_record(&event.name) && follow.send(sender, event).await {
                                return Ok(Pumped::Left);
                            }
                        }
                        return Ok(Pumped::Ended);
                    }
                }
            }
        }
    }

    /// Sends stored events after an id. True when the listener has left.
    async fn replay(
        &self,
        follow: &Follow,
        after: EventId,
        last: &mut Option<EventId>,
        sender: &mpsc::Sender<Event>,
    ) -> Result<bool, RuntimeError> {
        let mut after = after;
        loop {
            let run = Some(follow.run.run_id);
            let page = self.storage().read_events(&follow.scope, follow.run.thread_key, run, after, PAGE).await?;
            let count = page.len();
            if let Some(last) = page.last() {
                after = last.id;
            }
            let page = log::restore(self.storage(), &follow.scope, follow.run.thread_key, page).await?;
            for stored in page {
                *last = Some(stored.id);
                if stored.name == RUN_ENDED
                    && let Some(result) = stored.data.get("result")
                {
                    // Who executed it elsewhere says what `wait` answers.
                    let _ = follow.live.result.set(result);
                }
                if is_record(&stored.name) {
                    continue;
                }
                let event = Event { id: Some(stored.id), run_id: stored.run_id, name: stored.name, data: stored.data };
                if follow.send(sender, event).await {
                    return Ok(true);
                }
            }
            if (count as i64) < PAGE {
                return Ok(false);
            }
        }
    }

    async fn is_active(&self, follow: &Follow) -> Result<bool, RuntimeError> {
        let run = self.storage().find_run(&follow.scope, &follow.run.thread_id, follow.run.run_id).await?;
        Ok(run.is_some_and(|run| run.status.is_active()))
    }

    /// Where a listener to what comes from now on begins to read the log; `None` if this process executes the run, and
    /// tells it itself.
    pub(super) async fn end_of_log(&self, scope: &Scope, run: &Run) -> Result<Option<EventId>, RuntimeError> {
        if self.inner.is_executing(run.run_id) || !self.storage().is_shared() {
            return Ok(None);
        }
        let thread = self.storage().find_thread(scope, &run.thread_id).await?;
        Ok(Some(EventId(thread.map_or(0, |thread| thread.last_event))))
    }

    /// Returns when the run is no longer active; at once if it is not. What `wait` answers, if it is known; with `hear`
    /// another process that executes the run is asked for it.
    pub(crate) async fn wait_for_end(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run_id: RunId,
        hear: bool,
    ) -> Result<Option<Json>, RuntimeError> {
        loop {
            let live = self.inner.hub.run(run_id);
            let waited = self.wait_once(scope, thread, run_id, hear, &live).await;
            let result = live.result.get().cloned();
            drop(live);
            self.inner.hub.release(run_id);
            // Who was cut off must not take that for the end, and begins again.
            let is_cut_off = waited?;
            if !is_cut_off || result.is_some() {
                return Ok(result);
            }
        }
    }

    /// Follows a run until it has ended, or the listener is cut off, which is told by true.
    async fn wait_once(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        run_id: RunId,
        hear: bool,
        live: &Arc<LiveRun>,
    ) -> Result<bool, RuntimeError> {
        let receiver = live.subscribe(false);
        let found = self.storage().find_run(scope, thread, run_id).await?;
        let Some(run) = found.filter(|run| run.status.is_active()) else { return Ok(false) };
        let after = if hear { self.end_of_log(scope, &run).await? } else { None };
        // Its temporary thread would go before it was read here.
        let is_last_reader = after.is_some() && is_temporary(&run);
        let follow = Follow {
            scope: *scope,
            is_resumable: run.is_resumable(),
            run,
            live: Arc::clone(live),
            receiver,
            after,
            cancel_on_disconnect: false,
            is_first: false,
            is_last_reader,
        };
        let (sender, mut receiver) = mpsc::channel(BUFFER);
        let followed = self.follow_into(follow, sender);
        while receiver.recv().await.is_some() {}
        Ok(followed.await.unwrap_or(false))
    }
}

/// Whether a run's thread goes with it.
pub(super) fn is_temporary(run: &Run) -> bool {
    run.kwargs.get("temporary").is_some_and(|temporary| temporary.value() == true)
}

/// The last event of a listener that was too slow and has no stored events to catch up from.
fn lagged(run_id: RunId) -> Event {
    let data = json!({
        "error": "StreamLagged",
        "message": "this listener was too slow and missed events; the run goes on: join it, or ask for a resumable stream",
    });
    Event { id: None, run_id, name: "error".to_owned(), data: Json::from(data) }
}

enum Pumped {
    /// The run has ended.
    Ended,
    /// The listener was too slow.
    Lagged,
    /// The listener has gone.
    Left,
}

/// Returns when there may be news of the run.
async fn wait_for_notice(notices: &mut broadcast::Receiver<Notice>, run_id: RunId, thread: ThreadKey) {
    let look = tokio::time::sleep(LOOK_EVERY);
    tokio::pin!(look);
    loop {
        tokio::select! {
            biased;
            () = &mut look => return,
            notice = notices.recv() => match notice {
                Ok(Notice::RunEnded(id)) if id == run_id => return,
                Ok(Notice::Events(key)) if key == thread => return,
                Ok(Notice::Missed) | Err(RecvError::Lagged(_)) => return,
                Ok(_) => {}
                Err(RecvError::Closed) => look.as_mut().await,
            },
        }
    }
}
