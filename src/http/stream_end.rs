//! How a stream ended whose run goes away with its thread: what a repeat of its request gets, as nobody can join it any
//! more (contract of `Idempotency-Key`).

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::model::{Event, Json, Run, RunId, Scope};
use crate::runtime::{EventStream, Runtime, Submitted};

/// Events that may wait for a client before the run's are left to wait.
const AHEAD: usize = 64;

/// An end that is still to come; in the extensions of a response, whose clones share it.
#[derive(Debug, Clone)]
pub(super) struct StreamEnd(Arc<Mutex<Option<oneshot::Receiver<Vec<u8>>>>>);

impl StreamEnd {
    /// The end, as [`replay`] reads it. `None`: there is nothing to tell, or somebody else took it.
    pub(super) async fn of(self) -> Option<Vec<u8>> {
        let receiver = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        receiver.await.ok()
    }
}

/// Follows a run to its end, whether or not its client stays.
pub(super) fn follow(runtime: &Runtime, scope: Scope, submitted: Submitted) -> (EventStream, StreamEnd) {
    let Submitted { run, live, events } = submitted;
    let (runtime, mut events) = (runtime.clone(), events.unwrap_or_else(|| stream::empty().boxed()));
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (told, end) = oneshot::channel();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            // The client may be gone.
            let _gone = sender.send(event).await;
        }
        drop(sender);
        let (of_run, end) = (run.clone(), Submitted { run, live, events: None });
        if let Ok(result) = runtime.wait(&scope, end).await {
            // Nobody waits for it when the request is not kept.
            let _unasked = told.send(kept(&of_run, result));
        }
    });
    (ReceiverStream::new(receiver).boxed(), StreamEnd(Arc::new(Mutex::new(Some(end)))))
}

/// The events of a stream that say which run it was and how it ended, by name.
fn last_words(run: &Run, result: Json) -> [(&'static str, Json); 2] {
    let own = Json::from(json!({"run_id": run.run_id, "attempt": run.attempts.max(1)}));
    let end = match result.get("__error__") {
        Some(error) => ("error", error),
        None => ("values", result),
    };
    [("metadata", own), end]
}

fn kept(run: &Run, result: Json) -> Vec<u8> {
    let pair = |(name, data): (&str, Json)| [Json::from(name), data].into_iter().collect::<Json>();
    last_words(run, result).into_iter().map(pair).collect::<Json>().text().into_bytes()
}

/// The stream of a run whose events are gone.
pub(super) fn ended(run: &Run, result: Json) -> EventStream {
    let event = |(name, data): (&str, Json)| Event { id: None, run_id: run.run_id, name: name.to_owned(), data };
    stream::iter(last_words(run, result).map(event)).boxed()
}

/// The same from what was kept of it.
pub(super) fn replay(run_id: RunId, kept: &[u8]) -> Option<EventStream> {
    let pairs = Json::parse(std::str::from_utf8(kept).ok()?).ok()?.items()?;
    let event = |pair: &Json| {
        let pair = pair.items()?;
        let (name, data) = (pair.get(0)?.as_str()?.to_owned(), pair.get(1)?.clone());
        Some(Event { id: None, run_id, name, data })
    };
    let events: Vec<Event> = pairs.iter().map(event).collect::<Option<_>>()?;
    Some(stream::iter(events).boxed())
}
