//! Threads and builds: what waits in a database that this build could not go on with.

use std::fmt;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;

use super::executor::storage_error;
use super::persist::{Reader, written_by};
use super::shared::Shared;
use super::state::strip_ids;
use crate::engine::execution::Loaded;
use crate::engine::view::state_at;
use crate::engine::{EngineError, migrate};
use crate::graph::Graph;
use crate::graph::node::Checkpointing;
use crate::model::{Json, Scope, ThreadId, WrittenBy};
use crate::storage::{SharedStorage, StorageError, StoredCheckpoint, WaitingThread, Which};

/// Threads read at once.
const PAGE: i64 = 200;

/// A waiting thread that this build could not resume, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unresumable {
    /// The thread.
    pub thread_id: ThreadId,
    /// Its graph, or the graph of a run queued on it.
    pub graph_id: String,
    /// The version of the graph that wrote the thread's latest checkpoint, if that is known.
    pub graph_version: Option<String>,
    /// The topology of the graph that wrote it.
    pub topology: Option<String>,
    /// The nodes it waits for that this build does not have.
    pub missing: Vec<String>,
    /// What a run would fail with.
    pub reason: String,
}

/// A row of a table: thread, graph, version, topology, missing nodes and reason, with tabs between them.
impl fmt::Display for Unresumable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        let missing = if self.missing.is_empty() { "-".to_owned() } else { self.missing.join(",") };
        let (version, topology) = (or_unknown(&self.graph_version), or_unknown(&self.topology));
        write!(f, "{}\t{}\t{version}\t{topology}\t{missing}\t{}", self.thread_id, self.graph_id, self.reason)
    }
}

impl Unresumable {
    /// The same as an object.
    pub fn to_json(&self) -> Json {
        Json::of(self).unwrap_or_default()
    }
}

/// Looks at all waiting threads of a database, a page at a time, and tells `found` of those that these graphs could not
/// resume. Returns how many wait. Reads only; a thread whose stored rows are damaged counts as one that cannot be resumed.
///
/// # Errors
/// The database cannot be read.
pub async fn unresumable_threads(
    storage: &SharedStorage,
    graphs: &[Graph],
    found: &mut (dyn FnMut(Unresumable) + Send),
) -> Result<u64, StorageError> {
    let (mut after, mut looked_at) = (None, 0);
    loop {
        let page = storage.waiting_threads(&Scope::Server, after, PAGE).await?;
        let keys: Vec<_> = page.iter().map(|waiting| waiting.thread.key).collect();
        let mut heads = storage.load_heads(&Scope::Server, &keys).await?;
        for waiting in &page {
            looked_at += 1;
            let head = heads.iter().position(|(key, _)| *key == waiting.thread.key).map(|at| heads.swap_remove(at).1);
            if let Some(blocked) = look_at(storage, graphs, waiting, head).await? {
                found(blocked);
            }
        }
        after = keys.last().copied();
        if (page.len() as i64) < PAGE {
            return Ok(looked_at);
        }
    }
}

async fn look_at(
    storage: &SharedStorage,
    graphs: &[Graph],
    waiting: &WaitingThread,
    head: Option<StoredCheckpoint>,
) -> Result<Option<Unresumable>, StorageError> {
    let thread = &waiting.thread;
    let written = head.as_ref().map(|head| written_by(&head.row)).transpose()?.flatten();
    let unresumable = |graph_id: &str, missing: Vec<String>, reason: String| Unresumable {
        thread_id: thread.id.clone(),
        graph_id: graph_id.to_owned(),
        graph_version: written.as_ref().map(|by| by.version.clone()),
        topology: written.as_ref().map(|by| by.topology.clone()),
        missing,
        reason,
    };
    let find = |name: &str| graphs.iter().find(|graph| graph.name() == name);
    let needed = thread.graph_id.iter().chain(&waiting.run_graphs);
    if let Some(gone) = needed.into_iter().find(|name| find(name).is_none()) {
        return Ok(Some(unresumable(gone, Vec::new(), format!("graph '{gone}' is not in this build"))));
    }
    let (Some(graph), Some(head)) = (thread.graph_id.as_deref().and_then(find), head) else { return Ok(None) };
    if is_current(written.as_ref(), graph) && !has_graphs(graph) {
        return Ok(None);
    }
    let reader = Reader { storage, scope: &Scope::Server, thread: thread.key };
    let loaded = match reader.head(head).await {
        Ok(loaded) => loaded,
        Err(error @ StorageError::Corrupt { .. }) => {
            return Ok(Some(unresumable(graph.name(), Vec::new(), error.to_string())));
        }
        Err(error) => return Err(error),
    };
    let Some(loaded) = loaded else { return Ok(None) };
    let blocked = blocked(&reader, graph, String::new(), loaded).await?;
    Ok(blocked.map(|Blocked { missing, error }| unresumable(graph.name(), missing, error.message)))
}

fn is_current(written_by: Option<&WrittenBy>, graph: &Graph) -> bool {
    written_by.is_some_and(|by| by.topology == graph.topology() && by.version == graph.version())
}

/// Refuses to go on with a run whose pending graphs inside wait for something this build does not have, before anything is
/// executed. Graphs inside have versions of their own, which the graph around them does not know: they are always looked
/// at.
pub(crate) async fn check_inner(shared: &Shared, graph: &Graph, loaded: &Loaded) -> Result<(), EngineError> {
    if !has_graphs(graph) {
        return Ok(());
    }
    let reader = Reader { storage: shared.runtime.storage(), scope: &shared.scope, thread: shared.thread };
    let found = blocked(&reader, graph, String::new(), loaded.clone()).await.map_err(|error| storage_error(&error))?;
    found.map_or(Ok(()), |blocked| Err(blocked.error))
}

fn has_graphs(graph: &Graph) -> bool {
    graph.spec().nodes.keys().any(|node| graph.child(node).is_some())
}

/// Why a graph cannot go on from a checkpoint.
struct Blocked {
    missing: Vec<String>,
    error: EngineError,
}

fn blocked<'a>(
    reader: &'a Reader<'_>,
    graph: &'a Graph,
    ns: String,
    mut loaded: Loaded,
) -> BoxFuture<'a, Result<Option<Blocked>, StorageError>> {
    async move {
        let spec = graph.spec();
        if let Err(error) = migrate::try_to_go_on(spec, &mut loaded) {
            return Ok(Some(Blocked { missing: migrate::gone(spec, &loaded), error }));
        }
        let Ok(state) = state_at(spec, &loaded, &ns, true) else { return Ok(None) };
        for task in state.tasks {
            let child = graph.child(&task.name).filter(|child| child.checkpointing() != Checkpointing::Off);
            let Some(child) = child.filter(|_| state.next.contains(&task.name)) else { continue };
            let inner_ns = match child.checkpointing() {
                Checkpointing::Own => strip_ids(&task.ns),
                Checkpointing::Inherit | Checkpointing::Off => task.ns,
            };
            let Some((inner, _)) = reader.load(&inner_ns, &Which::Latest).await? else { continue };
            if let Some(found) = blocked(reader, child, inner_ns, inner).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
    .boxed()
}
