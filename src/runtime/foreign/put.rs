//! Puts: from the changes a client sends to the rows of a batch.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::body::{CheckpointBody, INLINE, Packer, WHOLE, WriteBody, hash_of, hex};
use super::{Operation, PutCheckpoint, PutWrites, Sent, known};
use crate::model::{CheckpointId, Scope, ThreadId, ThreadKey, ThreadStatus};
use crate::runtime::{Runtime, RuntimeError};
use crate::storage::{
    ForeignBatch, ForeignCheckpoint, ForeignOutcome, ForeignStatus, ForeignWrites, PayloadHash, StorageError,
};

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
}

fn pack_checkpoint(batch: &mut ForeignBatch, packer: &mut Packer, put: &PutCheckpoint) -> Result<(), RuntimeError> {
    // The input of a run is hardly ever the same twice.
    let inline = |channel: &str| if channel == "__start__" { WHOLE } else { INLINE };
    let places = put.values.iter().map(|(channel, sent)| (channel.clone(), packer.place(sent, inline(channel))));
    let values = places.collect();
    let body = CheckpointBody { checkpoint: put.checkpoint.clone(), metadata: put.metadata.clone(), values };
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
        settle(batch, ThreadStatus::Idle, &put.id);
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
    }
    // What tasks of subgraphs ask or fail of, they pass on.
    if put.ns.is_empty() {
        for (channel, ..) in &put.writes {
            match channel.as_str() {
                "__interrupt__" => settle(batch, ThreadStatus::Interrupted, &put.checkpoint_id),
                "__error__" => settle(batch, ThreadStatus::Error, &put.checkpoint_id),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The latest checkpoint counts, and what tasks wrote on it, which may come before it: an error more than a question.
fn settle(batch: &mut ForeignBatch, status: ThreadStatus, on: &CheckpointId) {
    let is_more = batch.status.as_ref().is_none_or(|before| match before.on.cmp(on) {
        Ordering::Less => true,
        Ordering::Equal => status == ThreadStatus::Error || before.status == ThreadStatus::Idle,
        Ordering::Greater => false,
    });
    if is_more {
        batch.status = Some(ForeignStatus { status, on: on.clone() });
    }
}
