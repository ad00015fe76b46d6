//! Checkpoints of graphs that run elsewhere: what their writers put, and what they get back.
//!
//! A checkpoint is a JSON document, metadata, and values that are bytes with a type tag. Documents come back as they came;
//! what a value means is only looked at when people want to read it. A put is complete: it names every value of the
//! checkpoint, by bytes or by the hash of bytes that the thread already has.

mod body;
mod chunks;
mod decode;
mod history;
mod keep;
mod known;
mod msgpack;
mod put;
mod view;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

pub use body::{INLINE, hash_of, hex, parse_hex};
pub use decode::decoded;
pub use history::ChannelHistory;
pub(in crate::runtime) use known::Known;

use super::{Runtime, RuntimeError};
use crate::model::{CheckpointId, Json, Scope, ThreadKey, Timestamp};
use crate::storage::{ForeignFilter, PayloadHash, StorageError, StoredForeign};
use body::{CheckpointBody, WriteBody, assemble, open};

/// Checkpoints read at once while looking for those that match.
const PAGE: i64 = 200;

/// A value on its way in.
#[derive(Debug, Clone)]
pub struct Sent {
    pub tag: String,
    pub bytes: SentBytes,
}

#[derive(Debug, Clone)]
pub enum SentBytes {
    Bytes(Bytes),
    /// The thread has them.
    Known(PayloadHash),
}

/// A value: bytes that its writer understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub tag: String,
    /// What it may be referred to by, when it is not a small one.
    pub hash: Option<PayloadHash>,
    pub bytes: Bytes,
}

/// One of the changes of a batch.
#[derive(Debug, Clone)]
pub enum Operation {
    Put(PutCheckpoint),
    PutWrites(PutWrites),
}

#[derive(Debug, Clone)]
pub struct PutCheckpoint {
    pub ns: String,
    pub id: CheckpointId,
    pub parent: Option<CheckpointId>,
    /// Accept a parent that is not there.
    pub allow_missing_parent: bool,
    /// What must be the latest of the namespace; `Some(None)`: there must be none.
    pub if_latest: Option<Option<CheckpointId>>,
    /// The document without its values.
    pub checkpoint: Json,
    pub metadata: Json,
    pub values: Vec<(String, Sent)>,
}

/// What a task wrote.
#[derive(Debug, Clone)]
pub struct PutWrites {
    pub ns: String,
    pub checkpoint_id: CheckpointId,
    pub task_id: String,
    pub path: String,
    /// Channel, index and value. A negative index replaces what is there, another one leaves it.
    pub writes: Vec<(String, i64, Sent)>,
}

/// A write that waits on a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub task_id: String,
    pub path: String,
    pub idx: i64,
    pub channel: String,
    pub value: Value,
}

/// A checkpoint with its values, and the writes on it ordered by (path, task id, index).
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub ns: String,
    pub id: CheckpointId,
    pub parent: Option<CheckpointId>,
    pub run_id: Option<String>,
    pub checkpoint: Json,
    pub metadata: Json,
    pub values: Vec<(String, Value)>,
    pub writes: Vec<Write>,
    pub at: Timestamp,
    pub bytes: i64,
}

/// The index of a write to a channel of a special kind (LangGraph's numbers).
pub fn special_index(channel: &str) -> Option<i64> {
    match channel {
        "__error__" => Some(-1),
        "__scheduled__" => Some(-2),
        "__interrupt__" => Some(-3),
        "__resume__" => Some(-4),
        _ => None,
    }
}

impl Runtime {
    /// The checkpoint with this id, or the latest of its namespace.
    pub async fn foreign_checkpoint(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        id: Option<&str>,
    ) -> Result<Option<Checkpoint>, RuntimeError> {
        let found = self.storage().load_foreign(scope, thread, ns, id).await?;
        Ok(self.read_foreign(scope, thread, found.into_iter().collect()).await?.pop())
    }

    /// Checkpoints, newest first by namespace: those whose metadata has these members.
    pub async fn foreign_checkpoints(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: ForeignFilter,
        metadata: Option<&Json>,
        limit: usize,
    ) -> Result<Vec<Checkpoint>, RuntimeError> {
        let mut filter = filter;
        let mut kept: Vec<StoredForeign> = Vec::new();
        while kept.len() < limit {
            let page = match metadata {
                Some(_) => PAGE,
                None => i64::try_from(limit).unwrap_or(PAGE).min(PAGE),
            };
            let rows = self.storage().list_foreign(scope, thread, &filter, page).await?;
            let is_last = (rows.len() as i64) < page;
            filter.after = rows.last().map(|stored| (stored.row.ns.clone(), stored.row.id.clone()));
            for stored in rows {
                if kept.len() < limit && matches(&stored, metadata)? {
                    kept.push(stored);
                }
            }
            if is_last {
                break;
            }
        }
        self.read_foreign(scope, thread, kept).await
    }

    /// Gives rows their values.
    async fn read_foreign(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        rows: Vec<StoredForeign>,
    ) -> Result<Vec<Checkpoint>, RuntimeError> {
        let opened = rows.into_iter().map(Opened::new).collect::<Result<Vec<_>, _>>()?;
        let mut hashes: Vec<PayloadHash> = opened.iter().flat_map(Opened::hashes).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let payloads = assemble(&hashes, self.storage().load_foreign_payloads(scope, thread, &hashes).await?);
        Ok(opened.into_iter().map(|row| row.finish(&payloads)).collect::<Result<_, _>>()?)
    }
}

fn name(stored: &StoredForeign) -> String {
    format!("{}/{}", stored.row.ns, stored.row.id)
}

/// Whether the metadata of a row has these members.
fn matches(stored: &StoredForeign, wanted: Option<&Json>) -> Result<bool, StorageError> {
    let Some(wanted) = wanted.and_then(Json::fields) else { return Ok(true) };
    let (body, _) = open::<CheckpointBody>("foreign_checkpoints", &name(stored), stored.row.body.clone())?;
    Ok(wanted.iter().all(|(key, value)| {
        body.metadata.get(key).is_some_and(|found| found == *value || is_same(found.value(), value.value()))
    }))
}

/// Equal as JSON: `1` and `1.0` are one number.
fn is_same(one: &serde_json::Value, other: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (one, other) {
        (Number(one), Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Array(one), Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Object(one), Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| is_same(one, other)))
        }
        _ => one == other,
    }
}

/// A row whose bodies are taken apart.
struct Opened {
    stored: StoredForeign,
    body: CheckpointBody,
    frame: Bytes,
    writes: Vec<(String, String, WriteBody, Bytes)>,
}

impl Opened {
    fn new(mut stored: StoredForeign) -> Result<Opened, StorageError> {
        let name = name(&stored);
        let (body, frame) = open("foreign_checkpoints", &name, std::mem::take(&mut stored.row.body))?;
        // By task and index: of ordinary ones the first counts.
        let mut writes: BTreeMap<(String, String, i64), (WriteBody, Bytes)> = BTreeMap::new();
        let mut seen: HashMap<(String, i64), ()> = HashMap::new();
        for row in std::mem::take(&mut stored.writes) {
            let (header, frame) = open::<Vec<WriteBody>>("foreign_writes", &name, row.body)?;
            for write in header {
                if write.idx >= 0 && seen.insert((row.task_id.clone(), write.idx), ()).is_some() {
                    continue;
                }
                writes.insert((row.path.clone(), row.task_id.clone(), write.idx), (write, frame.clone()));
            }
        }
        let writes = writes.into_iter().map(|((path, task_id, _), (write, frame))| (path, task_id, write, frame));
        Ok(Opened { writes: writes.collect(), stored, body, frame })
    }

    fn hashes(&self) -> Vec<PayloadHash> {
        let values = self.body.values.values().filter_map(body::Place::hash);
        values.chain(self.writes.iter().filter_map(|(_, _, write, _)| write.value.hash())).collect()
    }

    fn finish(self, payloads: &HashMap<PayloadHash, Bytes>) -> Result<Checkpoint, StorageError> {
        let name = name(&self.stored);
        let lost = |table, what: &str| StorageError::Corrupt {
            table,
            column: "body",
            id: name.clone(),
            reason: format!("the value of {what} is not there"),
        };
        let mut values = Vec::with_capacity(self.body.values.len());
        for (channel, place) in &self.body.values {
            let value = place.value(&self.frame, payloads).ok_or_else(|| lost("foreign_checkpoints", channel))?;
            values.push((channel.clone(), value));
        }
        let mut writes = Vec::with_capacity(self.writes.len());
        for (path, task_id, write, frame) in self.writes {
            let value = write.value.value(&frame, payloads).ok_or_else(|| lost("foreign_writes", &write.channel))?;
            writes.push(Write { task_id, path, idx: write.idx, channel: write.channel, value });
        }
        let row = self.stored.row;
        Ok(Checkpoint {
            checkpoint: self.body.checkpoint,
            ns: row.ns,
            id: row.id,
            parent: row.parent,
            run_id: row.run_id,
            metadata: self.body.metadata,
            values,
            writes,
            at: self.stored.at,
            bytes: row.bytes,
        })
    }
}
