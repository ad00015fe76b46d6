//! Outputs of nodes with a cache policy, by node and input (engine specification, section 9). In memory, per process and
//! build of the graph, shared by all threads.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use super::shared::lock;
use crate::engine::command::Output;
use crate::engine::step::TaskInput;

/// Entries kept; the oldest goes first.
const ENTRIES: usize = 10_000;

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: Mutex<IndexMap<[u8; 32], Entry>>,
}

#[derive(Debug)]
struct Entry {
    output: Output,
    until: Option<Instant>,
}

/// What an output is found by: the graph with its version, where in it the node is, and the node's input.
pub(crate) fn key(graph: &str, version: &str, path: &str, input: &TaskInput) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [graph, version, path, input.to_json().as_raw().get()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

impl Cache {
    pub(crate) fn get(&self, key: &[u8; 32], now: Instant) -> Option<Output> {
        let entries = lock(&self.entries);
        let entry = entries.get(key).filter(|entry| entry.until.is_none_or(|until| now < until))?;
        Some(entry.output.clone())
    }

    pub(crate) fn put(&self, key: [u8; 32], output: Output, ttl: Option<Duration>, now: Instant) {
        let mut entries = lock(&self.entries);
        while entries.len() >= ENTRIES {
            entries.shift_remove_index(0);
        }
        entries.insert(key, Entry { output, until: ttl.map(|ttl| now + ttl) });
    }
}
