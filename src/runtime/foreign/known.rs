//! Which payloads a thread was seen to have, so that they are not cut, deflated and sent to the database once more with
//! every checkpoint: a list that grew by one item is made of the pieces of the one before.
//!
//! It may be wrong, since pruning and deleting go on elsewhere, too. So what is left out for it becomes something that must be
//! there, which the storage looks at when it stores the batch; if it is not, the batch is packed again without this.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::ThreadKey;
use crate::storage::PayloadHash;

/// Of one thread; a value of 2 MiB has so many.
const OF_A_THREAD: usize = 4 * 1024;
/// Of all threads, some 10 MiB. Then the half that was not used for longest goes.
const OF_ALL: usize = 256 * 1024;

pub(super) type Hashes = Arc<HashSet<PayloadHash>>;

#[derive(Debug, Default)]
pub(in crate::runtime) struct Known {
    threads: Mutex<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    by_key: HashMap<ThreadKey, (Hashes, u64)>,
    hashes: usize,
    /// Counts uses.
    now: u64,
}

impl Known {
    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread is likely to have.
    pub(super) fn of(&self, thread: ThreadKey) -> Hashes {
        let mut threads = self.threads();
        threads.now += 1;
        let now = threads.now;
        threads.by_key.get_mut(&thread).map_or_else(Hashes::default, |(hashes, used)| {
            *used = now;
            hashes.clone()
        })
    }

    /// A thread has these.
    pub(super) fn add(&self, thread: ThreadKey, more: HashSet<PayloadHash>) {
        if more.is_empty() {
            return;
        }
        let mut threads = self.threads();
        threads.now += 1;
        let now = threads.now;
        let (hashes, used) = threads.by_key.entry(thread).or_default();
        let before = hashes.len();
        *used = now;
        if before + more.len() <= OF_A_THREAD {
            Arc::make_mut(hashes).extend(more);
        } else {
            // What the latest values are made of.
            *hashes = Arc::new(more);
        }
        let after = hashes.len();
        threads.hashes = threads.hashes + after - before;
        if threads.hashes > OF_ALL {
            threads.forget_half();
        }
    }

    pub(super) fn forget(&self, thread: ThreadKey) {
        let mut threads = self.threads();
        if let Some((hashes, _)) = threads.by_key.remove(&thread) {
            threads.hashes -= hashes.len();
        }
    }
}

impl Threads {
    fn forget_half(&mut self) {
        let mut uses: Vec<u64> = self.by_key.values().map(|(_, used)| *used).collect();
        let middle = uses.len() / 2;
        let (_, median, _) = uses.select_nth_unstable(middle);
        let median = *median;
        self.by_key.retain(|_, (_, used)| *used > median);
        self.hashes = self.by_key.values().map(|(hashes, _)| hashes.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn thread(n: u32) -> ThreadKey {
        ThreadKey(Uuid::from_u128(n.into()))
    }

    fn some(from: u32, count: u32) -> HashSet<PayloadHash> {
        (from..from + count).map(|n| u128::from(n).to_be_bytes()).collect()
    }

    #[test]
    fn a_thread_is_known_by_its_own() {
        let known = Known::default();
        known.add(thread(1), some(0, 3));
        known.add(thread(1), some(2, 3));
        assert_eq!(*known.of(thread(1)), some(0, 5));
        assert!(known.of(thread(2)).is_empty());
        known.forget(thread(1));
        assert!(known.of(thread(1)).is_empty());
        assert_eq!(known.threads().hashes, 0);
    }

    #[test]
    fn it_is_bounded() {
        let known = Known::default();
        let most = u32::try_from(OF_A_THREAD).expect("small");
        known.add(thread(1), some(0, most));
        known.add(thread(1), some(most, 1));
        assert_eq!(*known.of(thread(1)), some(most, 1), "the latest");
        for n in 0..1_000 {
            known.add(thread(n), some(0, 1_000));
            assert!(known.threads().hashes <= OF_ALL);
        }
        assert_eq!(known.of(thread(999)).len(), 1_000, "the one used last is there");
        let threads = known.threads();
        assert_eq!(threads.hashes, threads.by_key.values().map(|(hashes, _)| hashes.len()).sum::<usize>());
    }
}
