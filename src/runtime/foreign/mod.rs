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
mod view;

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

pub use body::{INLINE, hash_of, hex, parse_hex};
pub use decode::decoded;
pub use history::ChannelHistory;
pub(in crate::runtime) use known::Known;

use super::{Runtime, RuntimeError};
use crate::model::{CheckpointId, Json, Scope, ThreadId, ThreadKey, ThreadStatus, Timestamp};
use crate::storage::{
    ForeignBatch, ForeignCheckpoint, ForeignFilter, ForeignOutcome, ForeignWrites, PayloadHash, StorageError,
    StoredForeign,
};
use body::{CheckpointBody, Packer, WHOLE, WriteBody, assemble, open};

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
    /// Stores changes of one thread: all of them, in this order, or none. Repeating them changes nothing. Cancel-safe.
    pub async fn put_foreign(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        operations: &[Operation],
    ) -> Result<ForeignOutcome, RuntimeError> {
        let mut outcomes = self.put_packed(scope, &[(thread, operations)]).await;
        outcomes.pop().unwrap_or_else(|| Err(StorageError::Other("no outcome".to_owned()).into()))
    }

    /// Stores changes of several threads as [`Runtime::put_foreign`] does, with an outcome for each.
    pub async fn put_foreign_each(
        &self,
        scope: &Scope,
        threads: &[(ThreadId, Vec<Operation>)],
    ) -> Vec<Result<ForeignOutcome, RuntimeError>> {
        let threads: Vec<_> = threads.iter().map(|(thread, operations)| (thread, operations.as_slice())).collect();
        self.put_packed(scope, &threads).await
    }

    async fn put_packed(
        &self,
        scope: &Scope,
        threads: &[(&ThreadId, &[Operation])],
    ) -> Vec<Result<ForeignOutcome, RuntimeError>> {
        let key = |at: usize| threads[at].0.key(scope.tenant());
        let mut outcomes: Vec<_> = threads.iter().map(|_| None).collect();
        let mut forgotten = HashSet::new();
        self.put_relying(scope, threads, 0..threads.len(), &mut outcomes, &mut forgotten).await;
        if !forgotten.is_empty() {
            // What a thread was believed to have was removed: what it was refused for that is sent whole, and so is what may
            // have been refused because that was.
            let is_stored = |at: usize| matches!(outcomes[at], Some(Ok(ForeignOutcome::Stored)));
            let again: Vec<usize> =
                (0..threads.len()).filter(|at| forgotten.contains(&key(*at)) && !is_stored(*at)).collect();
            self.put_relying(scope, threads, again, &mut outcomes, &mut HashSet::new()).await;
        }
        let none = || Err(StorageError::Other("no outcome".to_owned()).into());
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(none)).collect()
    }

    /// Packs and stores some of the batches, relying on what their threads are known to have; forgets that of those that do
    /// not have it.
    async fn put_relying(
        &self,
        scope: &Scope,
        threads: &[(&ThreadId, &[Operation])],
        some: impl IntoIterator<Item = usize>,
        outcomes: &mut [Option<Result<ForeignOutcome, RuntimeError>>],
        forgotten: &mut HashSet<ThreadKey>,
    ) {
        let known = &self.inner.known_payloads;
        let mut packed = Vec::new();
        let mut batches = Vec::new();
        for at in some {
            let (thread, operations) = threads[at];
            let key = thread.key(scope.tenant());
            match self.packed(thread, operations, known.of(key)) {
                Ok((batch, packer)) => {
                    batches.push(batch);
                    packed.push((at, key, packer));
                }
                Err(error) => outcomes[at] = Some(Err(error)),
            }
        }
        let stored = self.storage().put_foreign_each(scope, &batches).await;
        for ((at, key, packer), outcome) in packed.into_iter().zip(stored) {
            match &outcome {
                Ok(ForeignOutcome::Stored) => known.add(key, packer.seen),
                Ok(ForeignOutcome::PayloadsMissing(_)) if packer.relies => {
                    known.forget(key);
                    forgotten.insert(key);
                }
                _ => {}
            }
            outcomes[at] = Some(outcome.map_err(RuntimeError::from));
        }
    }

    fn packed(
        &self,
        thread: &ThreadId,
        operations: &[Operation],
        known: known::Hashes,
    ) -> Result<(ForeignBatch, Packer), RuntimeError> {
        let mut batch = ForeignBatch {
            thread_id: thread.clone(),
            ttl: self.inner.settings.default_ttl,
            checkpoints: Vec::new(),
            writes: Vec::new(),
            payloads: Vec::new(),
            parents: Vec::new(),
            latest: Vec::new(),
            references: Vec::new(),
            status: None,
        };
        let mut packer = Packer::new(known);
        for operation in operations {
            match operation {
                Operation::Put(put) => pack_checkpoint(&mut batch, &mut packer, put)?,
                Operation::PutWrites(put) => pack_writes(&mut batch, &mut packer, put)?,
            }
        }
        batch.references = std::mem::take(&mut packer.references);
        batch.payloads = std::mem::take(&mut packer.payloads);
        let brought: HashSet<PayloadHash> = batch.payloads.iter().map(|row| row.hash).collect();
        batch.references.retain(|hash| !brought.contains(hash));
        Ok((batch, packer))
    }

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

fn pack_checkpoint(batch: &mut ForeignBatch, packer: &mut Packer, put: &PutCheckpoint) -> Result<(), RuntimeError> {
    // The input of a run is hardly ever the same twice.
    let inline = |channel: &str| if channel == "__start__" { WHOLE } else { INLINE };
    let places = put.values.iter().map(|(channel, sent)| (channel.clone(), packer.place(sent, inline(channel))));
    let values = places.collect();
    let body = CheckpointBody { checkpoint: unnamed(&put.checkpoint), metadata: put.metadata.clone(), values };
    let (body, bytes) = packer.finish(&body)?;
    let key = |id: &CheckpointId| (put.ns.clone(), id.clone());
    if let Some(parent) = put.parent.as_ref().filter(|_| !put.allow_missing_parent)
        && !batch.checkpoints.iter().any(|row| row.ns == put.ns && row.id == *parent)
    {
        batch.parents.push(key(parent));
    }
    if let Some(latest) = &put.if_latest {
        batch.latest.push((put.ns.clone(), latest.clone()));
    }
    if put.ns.is_empty() {
        batch.status = Some(ThreadStatus::Idle);
    }
    batch.checkpoints.push(ForeignCheckpoint {
        ns: put.ns.clone(),
        id: put.id.clone(),
        parent: put.parent.clone(),
        run_id: put.metadata.get("run_id").and_then(|id| id.as_str().map(str::to_owned)),
        body,
        bytes,
    });
    Ok(())
}

/// Ordinary writes are one row; each of a special kind is its own.
fn pack_writes(batch: &mut ForeignBatch, packer: &mut Packer, put: &PutWrites) -> Result<(), RuntimeError> {
    let mut push = |slot: Option<i64>, writes: Vec<&(String, i64, Sent)>| {
        let header: Vec<WriteBody> = writes
            .into_iter()
            .map(|(channel, idx, sent)| {
                let value = packer.place(sent, WHOLE);
                WriteBody { channel: channel.clone(), idx: *idx, value }
            })
            .collect();
        let (body, _) = packer.finish(&header)?;
        batch.writes.push(ForeignWrites {
            ns: put.ns.clone(),
            checkpoint_id: put.checkpoint_id.clone(),
            task_id: put.task_id.clone(),
            slot: slot.map_or_else(|| hex(&hash_of(&body))[..16].to_owned(), |slot| slot.to_string()),
            path: put.path.clone(),
            body,
        });
        Ok::<_, RuntimeError>(())
    };
    let ordinary: Vec<_> = put.writes.iter().filter(|(_, idx, _)| *idx >= 0).collect();
    if !ordinary.is_empty() {
        push(None, ordinary)?;
    }
    for write in put.writes.iter().filter(|(_, idx, _)| *idx < 0) {
        push(Some(write.1), vec![write])?;
        match write.0.as_str() {
            "__interrupt__" => batch.status = Some(ThreadStatus::Interrupted),
            "__error__" => batch.status = Some(ThreadStatus::Error),
            _ => {}
        }
    }
    Ok(())
}

/// A document as it is stored: its id is in the row, in a column of its own, and no id is empty.
fn unnamed(document: &Json) -> Json {
    with_id(document, "").unwrap_or_else(|| document.clone())
}

/// A document as it came.
fn named(document: Json, id: &str) -> Json {
    match document.get("id").and_then(|id| id.as_str().map(str::is_empty)) {
        Some(true) => with_id(&document, id).unwrap_or(document),
        _ => document,
    }
}

fn with_id(document: &Json, id: &str) -> Option<Json> {
    let mut fields = document.fields()?;
    *fields.get_mut("id")? = Json::from(id);
    Some(Json::from(&fields))
}

fn name(stored: &StoredForeign) -> String {
    format!("{}/{}", stored.row.ns, stored.row.id)
}

/// Whether the metadata of a row has these members.
fn matches(stored: &StoredForeign, wanted: Option<&Json>) -> Result<bool, StorageError> {
    let Some(wanted) = wanted.and_then(Json::fields) else { return Ok(true) };
    let (body, _) = open::<CheckpointBody>("foreign_checkpoints", &name(stored), stored.row.body.clone())?;
    Ok(wanted.iter().all(|(key, value)| body.metadata.get(key).as_ref() == Some(value)))
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
            checkpoint: named(self.body.checkpoint, &row.id),
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
