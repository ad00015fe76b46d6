//! Legacy streams that are read from the log: all runs of a thread, and single runs of protocol v2, whose events older
//! clients see wrapped (contract sections 3.2 and 5.3).

use std::collections::VecDeque;

use futures_util::stream::{BoxStream, StreamExt, unfold};
use serde_json::json;

use super::protocol::Renderer;
use super::tail::Tail;
use super::{EventStream, Runtime, RuntimeError};
use crate::model::event::{RUN_BEGAN, RUN_ENDED, STATE_UPDATE, is_record};
use crate::model::{CheckpointRef, Event, EventId, Json, Run, RunId, Scope, Thread, ThreadId, ThreadKey};
use crate::storage::StoredEvent;

/// Events of a thread, for as long as somebody listens; an error is the last item.
pub type ThreadStream = BoxStream<'static, Result<Event, RuntimeError>>;

/// Turns the log into what legacy clients see.
struct Legacy {
    runtime: Runtime,
    scope: Scope,
    thread_id: ThreadId,
    thread: ThreadKey,
    /// The run whose events come now, and whether they are wrapped.
    run: Option<(RunId, bool)>,
    renderer: Renderer,
}

impl Legacy {
    fn new(runtime: &Runtime, scope: &Scope, thread_id: &ThreadId, thread: ThreadKey) -> Legacy {
        let (runtime, thread_id) = (runtime.clone(), thread_id.clone());
        Legacy { runtime, scope: *scope, thread_id, thread, run: None, renderer: Renderer::default() }
    }

    /// The events of the next stored one. `ends`: the end of a run is an event, too.
    async fn show(&mut self, stored: StoredEvent, ends: bool) -> Result<Vec<Event>, RuntimeError> {
        if stored.name == STATE_UPDATE {
            return Ok(self.state_update(&stored).await?.into_iter().collect());
        }
        if self.run.is_none_or(|(run, _)| run != stored.run_id) {
            self.enter(&stored).await?;
        }
        let is_end = stored.name == RUN_ENDED;
        let (id, run_id) = (Some(stored.id), stored.run_id);
        let mut out = Vec::new();
        if self.run.is_some_and(|(_, is_wrapped)| is_wrapped) && stored.name != "metadata" {
            let rendered = self.renderer.render(&stored);
            let last = rendered.len();
            for (index, event) in rendered.into_iter().enumerate() {
                // An id only on the last piece: resuming after it skips no other.
                let id = id.filter(|_| index + 1 == last);
                out.push(Event { id, run_id, name: event.method.to_owned(), data: event.to_json() });
            }
        } else if !is_record(&stored.name) {
            out.push(Event { id, run_id, name: stored.name, data: stored.data });
        }
        if is_end && ends {
            let data = Json::from(json!({"status": "run_done", "run_id": run_id}));
            out.push(Event { id, run_id, name: "metadata".to_owned(), data });
        }
        Ok(out)
    }

    /// The events of another run begin, perhaps in its middle: then what came before is needed to wrap the rest.
    async fn enter(&mut self, stored: &StoredEvent) -> Result<(), RuntimeError> {
        self.renderer = Renderer::default();
        let is_wrapped = |event: &StoredEvent| {
            event.name == RUN_BEGAN && event.data.get("protocol").is_some_and(|protocol| protocol.value() == true)
        };
        if stored.name == RUN_BEGAN {
            self.run = Some((stored.run_id, is_wrapped(stored)));
            return Ok(());
        }
        let mut before = Tail::new(&self.runtime, &self.scope, self.thread, Some(stored.run_id), EventId(0));
        let mut wrapped = false;
        'pages: loop {
            let page = before.next().await?;
            if page.is_empty() {
                break;
            }
            for earlier in page {
                wrapped |= is_wrapped(&earlier);
                if earlier.id >= stored.id || !wrapped {
                    break 'pages;
                }
                self.renderer.render(&earlier);
            }
        }
        self.run = Some((stored.run_id, wrapped));
        Ok(())
    }

    /// Rendered when it is read: the log holds only which checkpoint it was. `None` when that is gone.
    async fn state_update(&self, stored: &StoredEvent) -> Result<Option<Event>, RuntimeError> {
        let text = |key: &str| stored.data.get(key).and_then(|text| text.as_str().map(str::to_owned));
        let at = CheckpointRef {
            ns: text("checkpoint_ns").unwrap_or_default(),
            id: text("checkpoint_id"),
            ..Default::default()
        };
        // By the graph that the thread had then: another one may run on it since.
        let state = match self.runtime.state_by(&self.scope, &self.thread_id, text("graph_id"), &at).await {
            Ok(state) if state.metadata.is_some() => state,
            Ok(_) | Err(RuntimeError::ThreadNotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (state, thread_id) = (Json::of(&state).unwrap_or_default(), Json::from(self.thread_id.as_str()));
        let data = Json::from_fields([("state", &state), ("thread_id", &thread_id)]);
        Ok(Some(Event { id: Some(stored.id), run_id: stored.run_id, name: STATE_UPDATE.to_owned(), data }))
    }
}

impl Runtime {
    /// The record of a state change for the log.
    pub(crate) fn state_update(&self, thread: &Thread, ns: &str, checkpoint_id: &str) -> StoredEvent {
        let id = EventId::next(thread.last_event, self.clock().now().millis());
        let data = json!({"checkpoint_id": checkpoint_id, "checkpoint_ns": ns, "graph_id": thread.graph_id});
        let data = Json::from(data);
        StoredEvent { id, run_id: RunId::nil(), name: STATE_UPDATE.to_owned(), data }
    }

    /// All events of all runs of a thread and its changes of state: stored ones after `after` (when given), then those
    /// that come. Runs that are not resumable are heard while they execute in this process.
    pub async fn thread_stream(
        &self,
        scope: &Scope,
        thread_id: &ThreadId,
        after: Option<EventId>,
    ) -> Result<ThreadStream, RuntimeError> {
        let key = thread_id.key(scope.tenant());
        // Listening begins before the cursor is read: nothing falls between.
        let mut tail = Tail::new(self, scope, key, None, EventId(0)).with_unstored();
        let thread = self.storage().find_thread(scope, thread_id).await?;
        let thread = thread.ok_or_else(|| RuntimeError::ThreadNotFound(thread_id.to_string()))?;
        let gap = match after {
            Some(after) => self.gap(scope, thread_id, after, RunId::nil()).await?,
            None => None,
        };
        let after = gap.as_ref().and_then(|gap| gap.id).or(after);
        tail.start_after(after.unwrap_or(EventId(thread.last_event)));
        let legacy = Legacy::new(self, scope, thread_id, thread.key);
        let events = unfold(Some((tail, legacy)), |state| async move {
            let (mut tail, mut legacy) = state?;
            let page = async {
                let mut out = Vec::new();
                for stored in tail.next().await? {
                    out.extend(legacy.show(stored, true).await?);
                }
                Ok(out)
            };
            match page.await {
                Ok(out) => Some((out.into_iter().map(Ok).collect::<Vec<_>>(), Some((tail, legacy)))),
                Err(error) => Some((vec![Err(error)], None)),
            }
        })
        .flat_map(futures_util::stream::iter);
        Ok(futures_util::stream::iter(gap.map(Ok)).chain(events).boxed())
    }

    /// The events of one run of protocol v2, wrapped, until it has ended: those after `after`, without it those that come
    /// from now on.
    pub(crate) async fn wrapped_run(
        &self,
        scope: &Scope,
        run: Run,
        after: Option<EventId>,
    ) -> Result<EventStream, RuntimeError> {
        let after = match after {
            Some(after) => after,
            None => {
                let thread = self.storage().find_thread(scope, &run.thread_id).await?;
                EventId(thread.map_or(0, |thread| thread.last_event))
            }
        };
        let tail = Tail::new(self, scope, run.thread_key, Some(run.run_id), after);
        let state = Wrapped {
            tail,
            legacy: Legacy::new(self, scope, &run.thread_id, run.thread_key),
            run,
            ready: VecDeque::new(),
            is_over: false,
        };
        Ok(unfold(state, |mut state| async move { state.next().await.map(|event| (event, state)) }).boxed())
    }
}

/// One run of protocol v2, being followed.
struct Wrapped {
    tail: Tail,
    legacy: Legacy,
    run: Run,
    ready: VecDeque<Event>,
    is_over: bool,
}

impl Wrapped {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            if let Err(error) = self.read().await {
                tracing::warn!(run.id = %self.run.run_id, %error, "a listener was cut off");
                return None;
            }
        }
    }

    async fn read(&mut self) -> Result<(), RuntimeError> {
        // Asked before the log is read: what an ended run told is all there.
        let found = self.legacy.runtime.storage().find_run(&self.legacy.scope, &self.run.thread_id, self.run.run_id);
        let is_active = found.await?.is_some_and(|run| run.status.is_active());
        if !is_active {
            self.tail.do_not_wait();
        }
        let page = self.tail.next().await?;
        self.is_over = page.is_empty() && !is_active;
        for stored in page {
            self.is_over |= stored.name == RUN_ENDED;
            self.ready.extend(self.legacy.show(stored, false).await?);
        }
        Ok(())
    }
}
