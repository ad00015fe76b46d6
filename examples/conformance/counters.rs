//! Counters in the memory of this process: how often a body ran, how often an operation was reached.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

static COUNTERS: LazyLock<Mutex<HashMap<Vec<String>, u64>>> = LazyLock::new(Mutex::default);

/// Counts one more under this key; returns how many there are now.
pub(crate) fn bump<const N: usize>(key: [&str; N]) -> u64 {
    let key = key.into_iter().map(str::to_owned).collect();
    let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counters.entry(key).or_insert(0);
    *count += 1;
    *count
}
