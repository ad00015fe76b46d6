//! What clients were told: the side of the proof that no crash touches.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use uuid::Uuid;

/// An event as a client got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TellTale {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) data: String,
}

/// One run that a client asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Turn {
    /// Known once the run is accepted.
    pub(super) run_id: Option<Uuid>,
    /// How the client was told that it ended.
    pub(super) status: Option<String>,
    /// The `trail` of the result it was given.
    pub(super) result: Option<Vec<String>>,
    /// All events of its stream, over all connections.
    pub(super) events: Option<Vec<TellTale>>,
    /// The `receipts` of the result it was given.
    pub(super) receipts: Option<Vec<String>>,
    /// The thread's `trail` after this run.
    pub(super) expected: Vec<String>,
}

/// One thread, as its client knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    pub(super) thread: String,
    /// The order within the trail is not part of the promise.
    pub(super) unordered: bool,
    /// Each entry of its trail stands for an external call.
    pub(super) pays: bool,
    pub(super) turns: Vec<Turn>,
    /// What went against what the API says, in the client's eyes.
    pub(super) complaints: Vec<String>,
    /// The last item written below the thread's name that was acknowledged, and the last one tried.
    pub(super) item: Option<(u64, u64)>,
}

/// All stories, and the runs that were accepted so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Stories {
    all: Arc<Mutex<Vec<Arc<Mutex<Story>>>>>,
    runs: Arc<Mutex<HashSet<Uuid>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stories {
    pub(super) fn begin(&self, story: Story) -> Arc<Mutex<Story>> {
        let story = Arc::new(Mutex::new(story));
        lock(&self.all).push(Arc::clone(&story));
        story
    }

    /// A run was accepted.
    pub(super) fn accepted(&self, run: Uuid) {
        lock(&self.runs).insert(run);
    }

    pub(super) fn accepted_count(&self) -> usize {
        lock(&self.runs).len()
    }

    /// The accepted runs whose ids are in these bytes, as they are on the wire to Postgres.
    pub(super) fn runs_in(&self, bytes: &[u8]) -> Vec<Uuid> {
        let runs = lock(&self.runs);
        let ids = bytes.windows(16).filter_map(|window| Uuid::from_slice(window).ok());
        let mut found: Vec<Uuid> = ids.filter(|id| runs.contains(id)).collect();
        found.sort();
        found.dedup();
        found
    }

    /// What there is to judge.
    pub(super) fn read(&self) -> Vec<Story> {
        lock(&self.all).iter().map(|story| lock(story).clone()).collect()
    }
}

/// The `trail` in an answer; `None` when there is no such list.
pub(super) fn trail(values: &Value) -> Option<Vec<String>> {
    texts(values, "trail")
}

/// The `receipts` in an answer; `None` when there is no such list.
pub(super) fn receipts(values: &Value) -> Option<Vec<String>> {
    texts(values, "receipts")
}

fn texts(values: &Value, key: &str) -> Option<Vec<String>> {
    let list = values.get(key)?.as_array()?;
    Some(list.iter().map(|entry| entry.as_str().unwrap_or("?").to_owned()).collect())
}
