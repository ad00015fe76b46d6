//! What tasks of a run have said so far: messages that are streamed while they are generated. When somebody stops the run,
//! what the user has seen stays, as a checkpoint that says that it is partial.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;

use super::executor::Around;
use super::messages::{joined, whole};
use super::shared::{Shared, lock};
use super::worker::StopReason;
use crate::engine::command::Output;
use crate::engine::message::message_id;
use crate::engine::spec::GraphSpec;
use crate::engine::step::Task;
use crate::model::{CancelAction, Fields, Json};

/// The key of a state that messages are kept under.
const MESSAGES: &str = "messages";
/// In the metadata of the checkpoint.
const PARTIAL: &str = "partial";

/// By the namespace of the root graph's task, then by the id of the message: its chunks, in order.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<HashMap<String, IndexMap<String, Vec<Json>>>>);

impl Said {
    /// Remembers a chunk that is being sent, or the whole message.
    pub(crate) fn note(&self, around: &Around, task: &Task, message: &Json, complete: bool) {
        let Some(id) = message_id(message) else { return };
        let mut said = lock(&self.0);
        let chunks = said.entry(around.outermost_of(task).to_owned()).or_default().entry(id.to_owned()).or_default();
        if complete {
            chunks.clear();
        }
        chunks.push(message.clone());
    }

    /// A task has ended: what it returned counts.
    pub(crate) fn forget(&self, task: &Task) {
        lock(&self.0).remove(&*task.ns);
    }

    /// What the tasks that have not ended had said, as outputs of their nodes.
    pub(crate) fn take(&self, spec: &GraphSpec) -> Vec<(Arc<str>, Output)> {
        if !spec.channels.contains_key(MESSAGES) {
            return Vec::new();
        }
        let said = std::mem::take(&mut *lock(&self.0));
        let output = |messages: IndexMap<String, Vec<Json>>| {
            let messages: Json = messages.into_values().filter_map(|chunks| message_of(&chunks)).collect();
            Output::Update(Fields::from_iter([(MESSAGES.to_owned(), messages)]))
        };
        said.into_iter().map(|(ns, messages)| (ns.into(), output(messages))).collect()
    }
}

/// A message as far as it got.
fn message_of(chunks: &[Json]) -> Option<Json> {
    let (first, rest) = chunks.split_first()?;
    Some(rest.iter().fold(whole(first), |message, chunk| joined(&message, chunk)))
}

/// What the metadata of the checkpoint says, if the run was stopped by somebody who wants to keep what there is.
pub(crate) fn marks(shared: &Shared) -> Option<Fields> {
    let reason = lock(&shared.stopped_by).clone();
    let Some(StopReason::Cancel(request)) = reason else { return None };
    if request.action != CancelAction::Interrupt {
        return None;
    }
    let mut marks = Fields::from_iter([(PARTIAL.to_owned(), Json::from(true))]);
    for (key, text) in [("actor", request.actor), ("reason", request.reason)] {
        marks.extend(text.map(|text| (key.to_owned(), Json::from(text.as_str()))));
    }
    Some(marks)
}
