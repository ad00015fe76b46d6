//! The contract for outputs of nodes with a cache policy: kept for all replicas, outside of any run's commit.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use super::encoding::{self, Place};
use super::{Result, StorageError};
use crate::model::{Json, Scope};

/// What an output is found by: a hash of all it depends on.
pub type CacheKey = [u8; 32];

/// Bytes that an entry counts for besides its output: its row and its places in indexes.
const ROW_BYTES: i64 = 200;

/// An output to keep.
#[derive(Debug, Clone)]
pub struct NewCacheEntry {
    pub key: CacheKey,
    pub graph_id: String,
    pub output: Json,
    /// How long it may be used; `None`: until there is no room.
    pub ttl: Option<Duration>,
}

/// An output that was kept.
#[derive(Debug, Clone)]
pub struct CacheEntry {
    pub key: CacheKey,
    pub output: Json,
    /// How much longer it may be used, by the database's clock; `None`: no end is set.
    pub time_left: Option<Duration>,
}

/// The cache of node outputs.
#[async_trait]
pub trait Cache {
    /// The entries of these keys that are there and have not expired, in any order. One read by the primary key.
    async fn find_cached(&self, scope: &Scope, keys: &[CacheKey]) -> Result<Vec<CacheEntry>>;

    /// Keeps entries. One of the same key is replaced, its age and its time with it; of several in one call the last counts.
    async fn put_cached(&self, scope: &Scope, entries: Vec<NewCacheEntry>) -> Result<()>;

    /// One bounded step ([`super::STEP_ROWS`]) of removing what has expired and then, oldest first, what is too much for
    /// `max_bytes` in all; true when there may be more.
    async fn sweep_cache(&self, scope: &Scope, max_bytes: i64) -> Result<bool>;

    /// One bounded step of removing the entries of a graph; true when there may be more.
    async fn clear_cache(&self, scope: &Scope, graph_id: &str) -> Result<bool>;
}

/// The columns of an entry as both backends bind them: key, graph, output, size in bytes, time to live in microseconds.
pub(crate) type CacheRow = (CacheKey, String, Vec<u8>, i64, Option<i64>);

/// Entries as rows: key, graph, output, size and time to live in microseconds. In the order of their keys, so that two
/// writers cannot wait for each other.
pub(crate) fn rows(entries: Vec<NewCacheEntry>) -> Vec<CacheRow> {
    let by_key: BTreeMap<CacheKey, NewCacheEntry> = entries.into_iter().map(|entry| (entry.key, entry)).collect();
    let row = |(key, entry): (CacheKey, NewCacheEntry)| {
        let output = encoding::bytes(&entry.output);
        let size = i64::try_from(output.len()).unwrap_or(i64::MAX / 2) + ROW_BYTES;
        let ttl = entry.ttl.map(|ttl| i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4));
        (key, entry.graph_id, output, size, ttl)
    };
    by_key.into_iter().map(row).collect()
}

/// Reads one row.
pub(crate) fn read(key: &[u8], codec: i16, output: Vec<u8>, time_left: Option<i64>) -> Result<CacheEntry> {
    let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let place = |column| Place { table: "cache_entries", column, id: &name };
    let wrong = |_| -> StorageError { place("key").corrupt("not 32 bytes") };
    Ok(CacheEntry {
        key: CacheKey::try_from(key).map_err(wrong)?,
        output: encoding::json(codec, output, place("output"))?,
        time_left: time_left.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))),
    })
}
