//! Live events: from the executor of a run to everybody in this process who listens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use indexmap::{IndexMap, IndexSet};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{broadcast, mpsc};

use crate::model::{Event, Json, RunId, ThreadKey};
use crate::storage::StoredEvent;

/// Events a slow listener may be behind before it is cut off: one that can catch up from storage, and one that cannot.
const BACKLOG: usize = 1024;
const LONG_BACKLOG: usize = 16_384;
/// The same in bytes of what is queued. One larger event is let through.
const BACKLOG_BYTES: usize = 4 * 1024 * 1024;
const LONG_BACKLOG_BYTES: usize = 64 * 1024 * 1024;

/// Unstored events a slow listener of a thread may be behind; it misses those beyond.
const UNSTORED: usize = 1024;

/// Results of background runs kept for their first join.
const KEPT_RESULTS: usize = 256;
/// Runs remembered that somebody listens to in another process.
const KEPT_WANTED: usize = 4096;
/// Larger results are read from storage instead.
const KEPT_BYTES: usize = 64 * 1024;

/// The runs somebody executes or listens to in this process.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    runs: Mutex<HashMap<RunId, Arc<LiveRun>>>,
    kept: Mutex<IndexMap<RunId, Option<Json>>>,
    /// Threads whose streams are read here: what runs tell that is not stored reaches them through this.
    threads: Mutex<HashMap<ThreadKey, broadcast::Sender<StoredEvent>>>,
    /// Runs that are wanted elsewhere and are not executed here, but may be soon: the last ones asked for.
    wanted: Mutex<IndexSet<RunId>>,
    /// How many threads are listened to: nobody locks the map for none.
    listened: AtomicUsize,
}

/// One run's channel. Closed when the run has ended and its final status is committed.
#[derive(Debug)]
pub(crate) struct LiveRun {
    /// `None` once closed. Queues that grow with what is in them: most runs tell a few events to one listener.
    listeners: Mutex<Option<Vec<Queue>>>,
    /// What `wait` answers, set before the channel closes.
    pub(crate) result: OnceLock<Json>,
    /// Somebody listens in another process: what is told from now on goes through the log.
    wanted: AtomicBool,
}

#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<Event>,
    lagged: Arc<AtomicBool>,
    /// Bytes of data that the listener has not taken, and how many these may be.
    bytes: Arc<AtomicUsize>,
    most: usize,
}

fn size(event: &Event) -> usize {
    event.data.as_raw().get().len()
}

/// The receiving end of a run's channel.
#[derive(Debug)]
pub(crate) struct Listener {
    receiver: mpsc::Receiver<Event>,
    lagged: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
}

/// What a listener hears.
pub(crate) enum Heard {
    Event(Event),
    /// It was too slow, and gets no more: subscribe again, and read what is missing from storage.
    Lagged,
    Closed,
}

impl Listener {
    /// The next event. Cancel-safe.
    pub(crate) async fn hear(&mut self) -> Heard {
        match self.receiver.recv().await {
            Some(event) => {
                self.bytes.fetch_sub(size(&event), Ordering::Relaxed);
                Heard::Event(event)
            }
            None if self.lagged.load(Ordering::Acquire) => Heard::Lagged,
            None => Heard::Closed,
        }
    }

    /// An event that has arrived already.
    pub(crate) fn try_hear(&mut self) -> Option<Event> {
        let event = self.receiver.try_recv().ok()?;
        self.bytes.fetch_sub(size(&event), Ordering::Relaxed);
        Some(event)
    }
}

impl LiveRun {
    fn new() -> LiveRun {
        LiveRun { listeners: Mutex::new(Some(Vec::new())), result: OnceLock::new(), wanted: AtomicBool::new(false) }
    }

    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// Sends to whoever listens now.
    pub(crate) fn send(&self, event: Event) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listeners) = &mut *listeners else { return };
        if listeners.is_empty() {
            return;
        }
        let size = size(&event);
        listeners.retain(|queue| {
            let waiting = queue.bytes.fetch_add(size, Ordering::Relaxed);
            let sent = match waiting > 0 && waiting + size > queue.most {
                true => Err(TrySendError::Full(())),
                false => queue.sender.try_send(event.clone()).map_err(|error| match error {
                    TrySendError::Full(_) => TrySendError::Full(()),
                    TrySendError::Closed(_) => TrySendError::Closed(()),
                }),
            };
            if matches!(sent, Err(TrySendError::Full(()))) {
                queue.lagged.store(true, Ordering::Release);
            }
            sent.is_ok()
        });
    }

    /// Events from now on; already closed when the run has ended here.
    /// `can_catch_up`: what it misses is stored, so little needs to be kept for it.
    pub(crate) fn subscribe(&self, can_catch_up: bool) -> Listener {
        let (events, most) = if can_catch_up { (BACKLOG, BACKLOG_BYTES) } else { (LONG_BACKLOG, LONG_BACKLOG_BYTES) };
        let (sender, receiver) = mpsc::channel(events);
        let (lagged, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        if let Some(listeners) = &mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) {
            listeners.push(Queue { sender, lagged: Arc::clone(&lagged), bytes: Arc::clone(&bytes), most });
        }
        Listener { receiver, lagged, bytes }
    }

    pub(crate) fn close(&self) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Hub {
    /// Keeps the result of a run that nobody waits for yet, for its first join: a run may be over before that arrives.
    pub(crate) fn keep_result(&self, run_id: RunId) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() >= KEPT_RESULTS {
            kept.shift_remove_index(0);
        }
        kept.insert(run_id, None);
    }

    /// The run has this result.
    pub(crate) fn set_result(&self, run_id: RunId, result: &Json) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = kept.get_mut(&run_id) {
            *slot = Some(result.clone()).filter(|result| result.as_raw().get().len() <= KEPT_BYTES);
        }
    }

    /// A listener to a run whose result is to be kept and is not there yet.
    pub(crate) fn ending(&self, run_id: RunId) -> Option<Listener> {
        let is_kept = |slot: Option<&Option<Json>>| slot.is_some_and(Option::is_none);
        if !is_kept(self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&run_id)) {
            return None;
        }
        Some(self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(&run_id)?.subscribe(false))
    }

    /// Takes the kept result, once.
    pub(crate) fn take_result(&self, run_id: RunId) -> Option<Json> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).shift_remove(&run_id).flatten()
    }

    /// The run's channel, made on first use.
    pub(crate) fn run(&self, run_id: RunId) -> Arc<LiveRun> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(runs.entry(run_id).or_insert_with(|| Arc::new(LiveRun::new())))
    }

    /// Somebody listens to a run in another process, which asks again now and then.
    pub(crate) fn want(&self, run_id: RunId) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(&run_id) {
            run.want();
        }
        while wanted.len() >= KEPT_WANTED {
            wanted.shift_remove_index(0);
        }
        wanted.insert(run_id);
    }

    pub(crate) fn is_wanted(&self, run_id: RunId) -> bool {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(&run_id).is_some_and(|run| run.is_wanted())
    }

    /// The channel of a run that begins here.
    pub(crate) fn begin(&self, run_id: RunId) -> Arc<LiveRun> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).shift_remove(&run_id);
        let live = self.run(run_id);
        if wanted {
            live.want();
        }
        live
    }

    /// Closes and forgets: the run has ended. Listeners drain what they have and see the end.
    pub(crate) fn end(&self, run_id: RunId) {
        let run = self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&run_id);
        if let Some(run) = run {
            run.close();
        }
    }

    /// Hears what runs of a thread executed here tell that is not stored.
    pub(crate) fn hear_thread(&self, thread: ThreadKey) -> broadcast::Receiver<StoredEvent> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|_, sender| sender.receiver_count() > 0);
        let receiver = threads.entry(thread).or_insert_with(|| broadcast::channel(UNSTORED).0).subscribe();
        self.listened.store(threads.len(), Ordering::Release);
        receiver
    }

    /// Whether anybody may be listening to a thread here.
    pub(crate) fn is_listened_to(&self) -> bool {
        self.listened.load(Ordering::Acquire) > 0
    }

    /// Tells listeners of a thread what is not stored.
    pub(crate) fn tell_thread(&self, thread: ThreadKey, event: StoredEvent) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = threads.get(&thread)
            && sender.send(event).is_err()
        {
            threads.remove(&thread);
            self.listened.store(threads.len(), Ordering::Release);
        }
    }

    /// Forgets a channel that nobody uses: a listener of a run that is executed elsewhere has left.
    pub(crate) fn release(&self, run_id: RunId) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.get(&run_id).is_some_and(|run| Arc::strong_count(run) == 1) {
            runs.remove(&run_id);
        }
    }
}
