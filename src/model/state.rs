//! A thread's state at a checkpoint, as clients see it (contract section 2, "ThreadState").

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{CheckpointRef, ErrorInfo, Interrupt, Json, TaskPath, ThreadId, Timestamp};

/// A checkpoint cursor with its thread, in the wire form `{thread_id, checkpoint_ns, checkpoint_id, checkpoint_map?}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor {
    pub thread_id: ThreadId,
    pub at: CheckpointRef,
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(id) = &self.at.id {
            map.serialize_entry("checkpoint_id", id)?;
        }
        map.serialize_entry("thread_id", &self.thread_id)?;
        map.serialize_entry("checkpoint_ns", &self.at.ns)?;
        if !self.at.map.is_empty() {
            map.serialize_entry("checkpoint_map", &self.at.map)?;
        }
        map.end()
    }
}

/// A task of a snapshot.
#[derive(Debug, Clone)]
pub struct TaskState {
    /// `None`: of a graph that runs elsewhere, and not known here.
    pub id: Option<String>,
    pub name: String,
    pub path: TaskPath,
    /// Python's `repr` of the failure.
    pub error: Option<String>,
    pub interrupts: Vec<Interrupt>,
    /// For a subgraph: where its state is; absent when `state` is given.
    pub checkpoint: Option<Cursor>,
    pub state: Option<Box<ThreadState>>,
    /// What the task wrote, once it has finished.
    pub result: Option<Json>,
}

impl Serialize for TaskState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(8))?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("path", &self.path.to_json())?;
        map.serialize_entry("error", &self.error)?;
        map.serialize_entry("interrupts", &self.interrupts)?;
        map.serialize_entry("checkpoint", &self.checkpoint)?;
        map.serialize_entry("state", &self.state)?;
        map.serialize_entry("result", &self.result)?;
        map.end()
    }
}

/// The state of a thread (or of one of its subgraphs) at a checkpoint.
#[derive(Debug, Clone)]
pub struct ThreadState {
    /// Usually an object; `{}` for an empty thread.
    pub values: Json,
    pub next: Vec<String>,
    pub tasks: Vec<TaskState>,
    /// `None` for an empty thread.
    pub metadata: Option<Json>,
    pub created_at: Option<Timestamp>,
    pub checkpoint: Option<Cursor>,
    pub parent_checkpoint: Option<Cursor>,
    pub interrupts: Vec<Interrupt>,
}

impl Serialize for ThreadState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(10))?;
        map.serialize_entry("values", &self.values)?;
        map.serialize_entry("next", &self.next)?;
        map.serialize_entry("tasks", &self.tasks)?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry("created_at", &self.created_at)?;
        map.serialize_entry("checkpoint", &self.checkpoint)?;
        map.serialize_entry("parent_checkpoint", &self.parent_checkpoint)?;
        map.serialize_entry("interrupts", &self.interrupts)?;
        map.serialize_entry("checkpoint_id", &self.checkpoint.as_ref().and_then(|c| c.at.id.as_ref()))?;
        map.serialize_entry("parent_checkpoint_id", &self.parent_checkpoint.as_ref().and_then(|c| c.at.id.as_ref()))?;
        map.end()
    }
}

/// What a thread document shows of its head: values, pending interrupts by task id, the last error.
#[derive(Debug, Clone, Default)]
pub struct HeadView {
    /// `None` when the thread has no checkpoint.
    pub values: Option<Json>,
    pub interrupts: BTreeMap<String, Vec<Interrupt>>,
    pub error: Option<ErrorInfo>,
}
