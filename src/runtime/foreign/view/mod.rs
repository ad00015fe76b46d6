//! The state of a thread whose checkpoints come from elsewhere, as clients see states.

mod channels;
mod pending;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{ChannelHistory, Checkpoint, Value, decoded};
use crate::engine::ids::{node_ns, task_ns};
use crate::model::{
    CheckpointRef, Cursor, HeadView, Json, Scope, TaskState, Thread, ThreadKey, ThreadState, Timestamp,
};
use crate::runtime::request::HistoryQuery;
use crate::runtime::{Runtime, RuntimeError};
use crate::storage::ForeignFilter;
use pending::Task;

/// Open tasks of a state, with those inside them, whose subgraphs are looked for: each may cost a few reads.
const LOOKED_INTO: usize = 64;
/// How deep subgraphs in subgraphs are shown.
const MAX_DEPTH: usize = 16;

/// How a state is shown.
#[derive(Debug, Clone, Copy)]
struct Look<'a> {
    /// It is the latest: tasks that have finished do not run next, and wait for nothing.
    is_live: bool,
    /// With the states of graphs inside it; otherwise it is told where they are.
    subgraphs: bool,
    depth: usize,
    /// Tasks that may still be looked into. What is stored is not a bound: tasks can share what is inside them.
    left: &'a AtomicUsize,
}

impl Look<'_> {
    /// Whether one more task may be looked into.
    fn take(self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl Runtime {
    /// The state at a checkpoint, the latest without an id; empty if it is not there.
    pub(crate) async fn foreign_state(
        &self,
        scope: &Scope,
        thread: &Thread,
        at: &CheckpointRef,
        subgraphs: bool,
    ) -> Result<ThreadState, RuntimeError> {
        let id = at.id.clone().or_else(|| at.map.get(&at.ns).cloned());
        let found = self.foreign_checkpoint(scope, thread.key, &at.ns, id.as_deref()).await?;
        match found {
            Some(found) => {
                let left = AtomicUsize::new(LOOKED_INTO);
                let look = Look { is_live: id.is_none(), subgraphs, depth: 0, left: &left };
                self.foreign_state_of(*scope, thread, found, look).await
            }
            None => Ok(ThreadState {
                values: Json::object(),
                next: Vec::new(),
                tasks: Vec::new(),
                metadata: None,
                created_at: None,
                checkpoint: id.map(|id| cursor(thread, &at.ns, id, None)),
                parent_checkpoint: None,
                interrupts: Vec::new(),
            }),
        }
    }

    /// A state with what is read beyond its checkpoint: changes of values, and graphs inside its tasks.
    fn foreign_state_of<'a>(
        &'a self,
        scope: Scope,
        thread: &'a Thread,
        found: Checkpoint,
        look: Look<'a>,
    ) -> BoxFuture<'a, Result<ThreadState, RuntimeError>> {
        async move {
            let mut tasks = pending::tasks(&found);
            let mut inside = Vec::new();
            for (index, task) in tasks.iter_mut().enumerate().filter(|(_, task)| task.is_open()) {
                if !look.take() {
                    break;
                }
                if let Some((ns, id)) = self.foreign_inside(&scope, thread.key, &found, task, look).await? {
                    task.id = id.or(task.id.take());
                    inside.push((index, ns));
                }
            }
            let mut state = state(thread, &found, tasks, look.is_live);
            for (index, ns) in inside {
                let Some(task) = state.tasks.get_mut(index) else { continue };
                if !look.subgraphs || look.depth >= MAX_DEPTH {
                    task.checkpoint = Some(Cursor {
                        thread_id: thread.id.clone(),
                        at: CheckpointRef { ns, ..CheckpointRef::default() },
                    });
                } else if let Some(inner) = self.foreign_checkpoint(&scope, thread.key, &ns, None).await? {
                    let look = Look { depth: look.depth + 1, ..look };
                    task.state = Some(Box::new(self.foreign_state_of(scope, thread, inner, look).await?));
                }
            }
            let deltas = channels::deltas(&found);
            if let Some(mut values) = state.values.fields().filter(|_| !deltas.is_empty()) {
                let changes = self.foreign_history(&scope, thread.key, &found.ns, Some(&found.id), &deltas).await?;
                values.extend(changes.into_iter().map(|(channel, history)| (channel, changed(&history))));
                state.values = Json::from(&values);
            }
            Ok(state)
        }
        .boxed()
    }

    /// The namespace of the graph inside a task, if that has left something, with the id of the task where the namespace
    /// names it. One that keeps its state from call to call (in Python) is named after nodes alone.
    async fn foreign_inside(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        found: &Checkpoint,
        task: &Task,
        look: Look<'_>,
    ) -> Result<Option<(String, Option<String>)>, RuntimeError> {
        let own = task.ids(found).into_iter().map(|id| (task_ns(&found.ns, &task.name, &id), Some(id)));
        let without_ids: Vec<&str> =
            found.ns.split('|').map(|part| part.split_once(':').map_or(part, |(node, _)| node)).collect();
        let kept = look.is_live.then(|| (node_ns(&without_ids.join("|"), &task.name), None));
        for (ns, id) in own.chain(kept) {
            if self.storage().load_foreign(scope, thread, &ns, None).await?.is_some() {
                return Ok(Some((ns, id)));
            }
        }
        Ok(None)
    }

    /// States of a list: without what would have to be read for each of them.
    pub(crate) async fn foreign_states(
        &self,
        scope: &Scope,
        thread: &Thread,
        query: &HistoryQuery,
        limit: i64,
    ) -> Result<Vec<ThreadState>, RuntimeError> {
        let filter = ForeignFilter {
            ns: Some(query.checkpoint.ns.clone()),
            id: query.checkpoint.id.clone(),
            before: query.before.as_ref().and_then(|before| before.id.clone()),
            after: None,
        };
        let limit = usize::try_from(limit).unwrap_or(0);
        let found = self.foreign_checkpoints(scope, thread.key, filter, query.metadata.as_ref(), limit).await?;
        Ok(found.iter().map(|found| state(thread, found, pending::tasks(found), false)).collect())
    }

    /// What the document of a thread shows, if its checkpoints come from elsewhere.
    pub(crate) async fn foreign_view(
        &self,
        scope: &Scope,
        thread: &Thread,
        view: &mut HeadView,
    ) -> Result<(), RuntimeError> {
        let Some(found) = self.foreign_checkpoint(scope, thread.key, "", None).await? else { return Ok(()) };
        let shown = state(thread, &found, pending::tasks(&found), true);
        view.values = Some(shown.values);
        view.interrupts = shown
            .tasks
            .into_iter()
            .filter(|task| !task.interrupts.is_empty())
            .filter_map(|task| Some((task.id?, task.interrupts)))
            .collect();
        Ok(())
    }
}

/// Where a checkpoint is; that of a graph inside others names theirs, too.
fn cursor(thread: &Thread, ns: &str, id: String, metadata: Option<&Json>) -> Cursor {
    let parents = metadata.and_then(|metadata| metadata.value()["parents"].as_object()).into_iter().flatten();
    let parents = parents.filter_map(|(ns, id)| Some((ns.clone(), id.as_str()?.to_owned())));
    let mut map: BTreeMap<_, _> = parents.collect();
    if !map.is_empty() {
        map.insert(ns.to_owned(), id.clone());
    }
    Cursor { thread_id: thread.id.clone(), at: CheckpointRef { ns: ns.to_owned(), id: Some(id), map } }
}

fn state(thread: &Thread, found: &Checkpoint, tasks: Vec<Task>, is_live: bool) -> ThreadState {
    let next = tasks.iter().filter(|task| !is_live || task.is_open()).map(|task| task.name.clone()).collect();
    let tasks: Vec<TaskState> = tasks.into_iter().map(|task| task.shown(is_live)).collect();
    let at = found.checkpoint.get("ts").and_then(|at| at.as_str().and_then(Timestamp::parse));
    let cursor = |id: &String| cursor(thread, &found.ns, id.clone(), Some(&found.metadata));
    ThreadState {
        values: channels::values(found),
        next,
        interrupts: tasks.iter().flat_map(|task| task.interrupts.clone()).collect(),
        tasks,
        metadata: Some(found.metadata.clone()),
        created_at: Some(at.unwrap_or(found.at)),
        checkpoint: Some(cursor(&found.id)),
        parent_checkpoint: found.parent.as_ref().map(cursor),
    }
}

/// A value that only the graph can make: the last one that was stored, if any was, and what has been written since.
fn changed(history: &ChannelHistory) -> Json {
    let writes: Json = history.writes.iter().map(|(_, write)| decoded(write)).collect();
    let seed = history.seed.as_ref().filter(|seed: &&Value| seed.tag != "empty").map(decoded).unwrap_or_default();
    Json::from_fields([("type", &Json::from("delta")), ("seed", &seed), ("writes", &writes)])
}
