//! A thread's state as callers see it: read, history, and changes from outside a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use uuid::Uuid;

use super::persist::{Reader, Stored, Writer};
use super::runs::merged;
use super::{HistoryQuery, Runtime, RuntimeError, StateUpdate};
use crate::engine::RouterContext;
use crate::engine::chunk::Wanted;
use crate::engine::command::{Command, Output};
use crate::engine::execution::{Edit, Effect, Execution, Loaded, Options, StrictResume, metadata_json};
use crate::engine::ids::node_ns;
use crate::engine::view::{StateView, state_at, values_at};
use crate::graph::Graph;
use crate::graph::node::Checkpointing;
use crate::model::{
    CheckpointId, CheckpointRef, Cursor, Fields, HeadView, Json, RunId, Scope, TaskState, Thread, ThreadId,
    ThreadState, ThreadStatus,
};
use crate::storage::{CheckpointFilter, StateCommit, StateOutcome, StorageError, Which};

/// The most states one history answers with.
const MAX_HISTORY: i64 = 1000;

/// Refuses what cannot be the id of a checkpoint that this server made. Those from elsewhere may have any.
fn check_ids(field: &str, at: &CheckpointRef) -> Result<(), RuntimeError> {
    let mut ids = at.id.iter().chain(at.map.values());
    match ids.find(|id| Uuid::try_parse(id).is_err()) {
        Some(_) => Err(RuntimeError::Invalid(format!("{field}: Invalid checkpoint ID: must be a UUID"))),
        None => Ok(()),
    }
}

impl Runtime {
    pub(super) async fn thread(&self, scope: &Scope, id: &ThreadId) -> Result<Thread, RuntimeError> {
        let found = self.storage().find_thread(scope, id).await?;
        found.ok_or_else(|| RuntimeError::ThreadNotFound(id.to_string()))
    }

    fn thread_graph(&self, thread: &Thread) -> Option<&Graph> {
        self.graph(thread.graph_id.as_deref()?)
    }

    /// The state of a thread at a checkpoint (the latest when `at.id` is `None`), with nested states of pending
    /// subgraphs when asked. An unknown checkpoint of a known thread is an empty state with the cursor echoed.
    pub async fn thread_state(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        at: &CheckpointRef,
        subgraphs: bool,
    ) -> Result<ThreadState, RuntimeError> {
        let thread = match self.thread(scope, thread).await {
            // What is no UUID is refused as that, unless the thread is known to take it.
            Err(missing @ RuntimeError::ThreadNotFound(_)) => return check_ids("checkpoint", at).and(Err(missing)),
            found => found?,
        };
        if thread.head.is_none() && self.storage().is_foreign(scope, thread.key).await? {
            return self.foreign_state(scope, &thread, at, subgraphs).await;
        }
        check_ids("checkpoint", at)?;
        self.state(*scope, thread, at.clone(), subgraphs).await
    }

    /// [`Runtime::thread_state`] as another graph than the thread's present one shows it.
    pub(super) async fn state_by(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        graph_id: Option<String>,
        at: &CheckpointRef,
    ) -> Result<ThreadState, RuntimeError> {
        let thread = self.thread(scope, thread).await?;
        let graph_id = graph_id.or_else(|| thread.graph_id.clone());
        self.state(*scope, Thread { graph_id, ..thread }, at.clone(), false).await
    }

    fn state(
        &self,
        scope: Scope,
        thread: Thread,
        at: CheckpointRef,
        subgraphs: bool,
    ) -> BoxFuture<'_, Result<ThreadState, RuntimeError>> {
        async move {
            // The map's own entry names the checkpoint when the cursor does not.
            let id = at.id.clone().or_else(|| at.map.get(&at.ns).cloned());
            let live = id.is_none() && !self.is_revisited(&scope, &thread).await?;
            let reader = Reader { storage: self.storage(), scope: &scope, thread: thread.key };
            let (graph, ns) = self.resolve(&thread, &at.ns);
            let found = match &id {
                Some(id) => reader.load(&ns, &Which::Id(id.clone())).await?,
                None => self.latest_in(&reader, &thread, &ns).await?,
            };
            let Some((loaded, _)) = found else {
                return Ok(empty_state(&thread.id, &at, id));
            };
            self.present(scope, &thread, graph, &ns, loaded, live, subgraphs).await
        }
        .boxed()
    }

    /// The latest state in a namespace. Where the head was moved, that of a graph with checkpoints of its own is the one it
    /// had there.
    async fn latest_in(
        &self,
        reader: &Reader<'_>,
        thread: &Thread,
        ns: &str,
    ) -> Result<Option<(Loaded, Stored)>, StorageError> {
        let Some(head) = thread.head.as_ref().filter(|_| thread.is_moved() && !ns.is_empty() && !ns.contains(':'))
        else {
            return reader.load(ns, &Which::Latest).await;
        };
        match reader.load(ns, &Which::During(head.clone())).await? {
            None => reader.load(ns, &Which::Before(head.clone())).await,
            found => Ok(found),
        }
    }

    /// The graph whose checkpoints a namespace holds, and the namespace they are stored under: graphs with checkpoints
    /// of their own are addressed through their task, too. `None` when this build does not know the graph.
    fn resolve(&self, thread: &Thread, ns: &str) -> (Option<Graph>, String) {
        let Some(mut graph) = self.thread_graph(thread).cloned() else { return (None, ns.to_owned()) };
        let mut stored = String::new();
        for segment in ns.split('|').filter(|segment| !segment.is_empty()) {
            stored = node_ns(&stored, segment);
            let name = segment.split(':').next().unwrap_or(segment);
            if name.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let Some(child) = graph.child(name).cloned() else { return (None, ns.to_owned()) };
            if child.checkpointing() == Checkpointing::Own {
                stored = strip_ids(&stored);
            }
            graph = child;
        }
        (Some(graph), stored)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one read; a struct would only rename them")]
    async fn present(
        &self,
        scope: Scope,
        thread: &Thread,
        graph: Option<Graph>,
        ns: &str,
        loaded: Loaded,
        live: bool,
        subgraphs: bool,
    ) -> Result<ThreadState, RuntimeError> {
        let view = match &graph {
            Some(graph) => state_at(graph.spec(), &loaded, ns, live)?,
            // The build no longer has the graph: what is stored is shown as it is.
            None => StateView {
                values: visible(&loaded.checkpoint.values),
                next: Vec::new(),
                tasks: Vec::new(),
                refused: None,
            },
        };
        // A reducer that refuses what was written is told as it told the run; the thread, its history and every addressed
        // state stay readable. Writes that only contradict each other are left out.
        if let Some(error) =
            view.refused.filter(|error| !matches!(error.class.as_str(), "InvalidUpdateError" | "Panic"))
        {
            return Err(error.into());
        }
        let mut tasks = Vec::with_capacity(view.tasks.len());
        for task in view.tasks {
            let child = graph.as_ref().and_then(|graph| graph.child(&task.name));
            // A graph that keeps no checkpoints has no state to show.
            let child = child.filter(|child| child.checkpointing() != Checkpointing::Off);
            let (mut checkpoint, mut state) = (None, None);
            if child.is_some() {
                let at = CheckpointRef { ns: task.ns.clone(), ..CheckpointRef::default() };
                if subgraphs {
                    state = Some(Box::new(self.state(scope, thread.clone(), at, true).await?));
                } else {
                    checkpoint = Some(Cursor { thread_id: thread.id.clone(), at });
                }
            }
            tasks.push(TaskState {
                id: Some(task.id),
                name: task.name,
                path: task.path,
                error: task.error,
                interrupts: task.interrupts,
                checkpoint,
                state,
                result: task.result,
            });
        }
        let cursor = |id: &CheckpointId| cursor(&thread.id, ns, id, &loaded.metadata.parents);
        Ok(ThreadState {
            values: Json::from(&view.values),
            next: view.next,
            interrupts: tasks.iter().flat_map(|task| task.interrupts.clone()).collect(),
            tasks,
            metadata: Some(own_metadata(&loaded, &thread.id)),
            created_at: Some(loaded.checkpoint.at),
            checkpoint: Some(cursor(&loaded.checkpoint.id)),
            parent_checkpoint: loaded.parent.as_ref().map(cursor),
        })
    }

    /// States, newest first; empty for a thread without checkpoints.
    pub async fn history(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        query: &HistoryQuery,
    ) -> Result<Vec<ThreadState>, RuntimeError> {
        let thread = self.thread(scope, thread).await?;
        let limit = query.limit.clamp(0, MAX_HISTORY);
        if thread.head.is_none() && self.storage().is_foreign(scope, thread.key).await? {
            return self.foreign_states(scope, &thread, query, limit).await;
        }
        check_ids("checkpoint", &query.checkpoint)?;
        query.before.as_ref().map_or(Ok(()), |before| check_ids("before", before))?;
        let (graph, ns) = self.resolve(&thread, &query.checkpoint.ns);
        let filter = CheckpointFilter {
            ns: ns.clone(),
            id: query.checkpoint.id.clone(),
            before: query.before.as_ref().and_then(|before| before.id.clone()),
            metadata: query.metadata.clone(),
        };
        let reader = Reader { storage: self.storage(), scope, thread: thread.key };
        let found = reader.list(&filter, limit).await?;
        let mut states = Vec::with_capacity(found.len());
        for (loaded, _) in found {
            states.push(self.present(*scope, &thread, graph.clone(), &ns, loaded, false, false).await?);
        }
        Ok(states)
    }

    /// Changes state as a node would; returns the new checkpoint.
    pub async fn update_state(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        update: StateUpdate,
    ) -> Result<Cursor, RuntimeError> {
        check_ids("checkpoint", &update.at)?;
        let edits = vec![vec![edit_of(&update)?]];
        self.edit(scope, thread, &update.at, &edits, &attribution(&update), false).await
    }

    /// Applies supersteps of edits in one commit, as an import does; returns the last checkpoint. All of them are said to
    /// be by the actor of the first update, for its reason.
    pub async fn update_state_in_bulk(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        supersteps: Vec<Vec<StateUpdate>>,
    ) -> Result<Cursor, RuntimeError> {
        let edits = supersteps
            .iter()
            .map(|updates| updates.iter().map(edit_of).collect())
            .collect::<Result<Vec<Vec<Edit>>, _>>()?;
        let by = supersteps.iter().flatten().next().map(attribution).unwrap_or_default();
        self.edit(scope, thread, &CheckpointRef::default(), &edits, &by, true).await
    }

    async fn edit(
        &self,
        scope: &Scope,
        thread: &ThreadId,
        at: &CheckpointRef,
        edits: &[Vec<Edit>],
        by: &Fields,
        is_bulk: bool,
    ) -> Result<Cursor, RuntimeError> {
        let thread = self.thread(scope, thread).await?;
        if let Some(closed) = &thread.closed {
            return Err(RuntimeError::closed(&thread.id, closed));
        }
        if thread.status == ThreadStatus::Busy {
            return Err(RuntimeError::ThreadBusy(thread.id.to_string()));
        }
        let Some(graph_id) = &thread.graph_id else {
            if self.storage().is_foreign(scope, thread.key).await? {
                return Err(RuntimeError::ThreadForeign(thread.id.to_string()));
            }
            return Err(RuntimeError::BadRequest(format!(
                "Thread '{}' has no assigned graph ID. This usually occurs when no runs have been made on this \
                 particular thread. This operation requires a graph ID. Please ensure a run has been made for the thread \
                 or manually update the thread metadata (by setting the 'graph_id' field) before running this operation.",
                thread.id
            )));
        };
        let (graph, ns) = self.resolve(&thread, &at.ns);
        let graph = graph.ok_or_else(|| match self.graph(graph_id) {
            None => RuntimeError::GraphNotFound(format!(
                "Graph '{graph_id}' not found. Expected one of: [{}]",
                self.graph_names()
            )),
            Some(_) => RuntimeError::BadRequest(format!("Subgraph {} not found", strip_ids(&at.ns))),
        })?;
        let reader = Reader { storage: self.storage(), scope, thread: thread.key };
        let id = at.id.clone().or_else(|| at.map.get(&at.ns).cloned());
        let which = id.map_or(Which::Latest, Which::Id);
        let found = reader.load(&ns, &which).await?;
        let (loaded, mut base) = match found {
            Some((loaded, stored)) => {
                let is_head = !at.ns.is_empty() || thread.head.as_ref() == Some(&loaded.checkpoint.id);
                let is_head = is_head && !self.is_revisited(scope, &thread).await?;
                (Some(Loaded { is_head, ..loaded }), stored)
            }
            None if at.ns.is_empty() && thread.head.is_some() => {
                let named = at.id.clone().unwrap_or_default();
                return Err(RuntimeError::CheckpointNotFound(named));
            }
            None => (None, Stored::default()),
        };
        reader.freeze(&ns, &mut base).await?;
        let parents = loaded.as_ref().map(|loaded| loaded.metadata.parents.clone()).unwrap_or_default();
        // The document of a thread edited at a checkpoint the caller named goes on showing that checkpoint, as the
        // reference does; the state itself is the edit's.
        let shown = match (&at.id, &loaded) {
            (Some(_), Some(loaded)) => Some(base_view(&graph, loaded, &ns)?),
            _ => None,
        };
        let base_id = loaded.as_ref().map(|loaded| (ns.clone(), loaded.checkpoint.id.clone()));
        let mut options = edit_options(&thread, graph_id, at, &ns, parents.clone());
        if is_bulk {
            options.extra.retain(|key, _| key == "graph_id" || key == "thread_id");
        }
        let mut newest = thread.newest().max(loaded.as_ref().map(|loaded| loaded.checkpoint.id.clone()));
        let mut new_id = |step| {
            let (id, at) = self.clock().new_checkpoint_id(step, newest.as_deref());
            newest = Some(id.clone());
            (id, at)
        };
        let mut effects = Vec::new();
        let execution = Execution::edit(graph.spec(), loaded, edits, options, &mut new_id, &mut effects)?;
        let mut writer = Writer::new(None);
        for effect in effects {
            match effect {
                Effect::Checkpoint(mut draft) => {
                    Arc::make_mut(&mut draft.extra).extend(by.clone());
                    writer.put_checkpoint(&draft, &mut base);
                }
                Effect::Writes { checkpoint_id, record } => writer.put_record(&ns, &checkpoint_id, &record),
                Effect::Chunk(_) => {}
            }
        }
        let is_pending = match &shown {
            Some((_, is_pending)) => Some(*is_pending),
            None if ns.is_empty() => Some(execution.view().1),
            // A subgraph's state says nothing about what the thread waits for.
            None => None,
        };
        let thread_status = match is_pending {
            Some(true) => ThreadStatus::Interrupted,
            Some(false) => ThreadStatus::Idle,
            None => thread.status,
        };
        let change = StateCommit {
            thread_id: thread.id.clone(),
            expected_head: thread.head.clone(),
            base: base_id,
            rows: writer.take(),
            events: vec![self.state_update(&thread, &ns, execution.checkpoint_id())],
            thread_status,
            view: shown.as_ref().map(|(view, _)| view.clone()),
            moves: None,
        };
        match self.storage().commit_state(scope, change).await? {
            StateOutcome::Committed => Ok(cursor(&thread.id, &ns, &execution.checkpoint_id().to_owned(), &parents)),
            StateOutcome::ThreadMissing => Err(RuntimeError::ThreadNotFound(thread.id.to_string())),
            StateOutcome::ThreadForeign => Err(RuntimeError::ThreadForeign(thread.id.to_string())),
            StateOutcome::ThreadBusy => Err(RuntimeError::ThreadBusy(thread.id.to_string())),
            StateOutcome::ThreadClosed => Err(self.why_closed(scope, &thread.id).await?),
            StateOutcome::HeadMoved => Err(RuntimeError::Conflict(
                "the thread's state changed while the update was computed; read it again and retry".into(),
            )),
        }
    }

    /// Values, interrupts and error of each thread's head, in the order given.
    pub async fn head_views(&self, scope: &Scope, threads: &[Thread]) -> Result<Vec<HeadView>, RuntimeError> {
        let keys: Vec<_> = threads.iter().filter(|thread| thread.head.is_some()).map(|thread| thread.key).collect();
        let mut heads = BTreeMap::new();
        if !keys.is_empty() {
            for (key, stored) in self.storage().load_heads(scope, &keys).await? {
                heads.insert(key, stored);
            }
        }
        let headless: Vec<_> = threads.iter().filter(|thread| thread.head.is_none()).map(|thread| thread.key).collect();
        let foreign = match headless.is_empty() {
            true => Vec::new(),
            false => self.storage().foreign_among(scope, &headless).await?,
        };
        let mut views = Vec::with_capacity(threads.len());
        for thread in threads {
            let mut view = HeadView { error: thread.error.clone(), ..HeadView::default() };
            if foreign.contains(&thread.key) {
                self.foreign_view(scope, thread, &mut view).await?;
            }
            if let Some(stored) = heads.remove(&thread.key) {
                let reader = Reader { storage: self.storage(), scope, thread: thread.key };
                if let Some(loaded) = reader.head(stored).await? {
                    self.view_head(thread, &loaded, &mut view)?;
                }
            }
            views.push(view);
        }
        Ok(views)
    }

    /// What a run left behind: the view of its last checkpoint. `None` when that is the head, or there is none.
    pub(crate) async fn end_of(
        &self,
        scope: &Scope,
        thread: &Thread,
        run_id: RunId,
    ) -> Result<Option<HeadView>, RuntimeError> {
        let metadata = Some(Json::from(json!({"run_id": run_id})));
        let filter = CheckpointFilter { metadata, ..CheckpointFilter::default() };
        let rows = self.storage().list_checkpoints(scope, thread.key, &filter, 1).await?;
        if rows.first().is_none_or(|stored| Some(&stored.row.id) == thread.head.as_ref()) {
            return Ok(None);
        }
        let reader = Reader { storage: self.storage(), scope, thread: thread.key };
        let mut view = HeadView::default();
        if let Some((loaded, _)) = reader.list(&filter, 1).await?.pop() {
            let plain = Thread { view: None, ..thread.clone() };
            self.view_head(&plain, &loaded, &mut view)?;
        }
        Ok(Some(view))
    }

    fn view_head(&self, thread: &Thread, loaded: &Loaded, view: &mut HeadView) -> Result<(), RuntimeError> {
        if let Some(shown) = &thread.view {
            view.values = shown.get("values").filter(|values| !values.is_null());
            view.interrupts = shown.get("interrupts").and_then(|list| list.decode().ok()).unwrap_or_default();
            return Ok(());
        }
        let Some(graph) = self.thread_graph(thread) else {
            view.values = Some(Json::from(&visible(&loaded.checkpoint.values)));
            return Ok(());
        };
        view.values = Some(Json::from(&values_at(graph.spec(), loaded)?));
        for task in state_at(graph.spec(), loaded, "", true)?.tasks {
            if task.is_asking {
                view.interrupts.insert(task.id, task.interrupts);
            }
        }
        Ok(())
    }
}

/// What a thread's document shows of a checkpoint, and whether nodes are left to run.
fn base_view(graph: &Graph, loaded: &Loaded, ns: &str) -> Result<(Json, bool), RuntimeError> {
    let state = state_at(graph.spec(), loaded, ns, false)?;
    let asked: BTreeMap<&String, _> = state
        .tasks
        .iter()
        .filter(|task| !task.interrupts.is_empty())
        .map(|task| (&task.id, &task.interrupts))
        .collect();
    let values = Json::from(&values_at(graph.spec(), loaded)?);
    let interrupts = Json::of(&asked).unwrap_or_default();
    let view = Json::from_fields([("values", &values), ("interrupts", &interrupts)]);
    Ok((view, !state.next.is_empty()))
}

fn edit_of(update: &StateUpdate) -> Result<Edit, RuntimeError> {
    let mut edit = Edit::from_json(&update.values, update.as_node.clone());
    if let Some(command) = &update.command {
        edit.values = Output::Command(Command::from_json(command)?);
    }
    Ok(edit)
}

/// Who made an edit and why, as its checkpoints' metadata say it: only what was given.
fn attribution(update: &StateUpdate) -> Fields {
    let given = [("actor", &update.actor), ("reason", &update.reason)];
    given.into_iter().filter_map(|(key, text)| Some((key.to_owned(), Json::from(text.as_deref()?)))).collect()
}

fn edit_options(
    thread: &Thread,
    graph_id: &str,
    at: &CheckpointRef,
    ns: &str,
    parents: BTreeMap<String, CheckpointId>,
) -> Options {
    let mut extra = Fields::new();
    extra.insert("graph_id".into(), Json::from(graph_id));
    extra.insert("thread_id".into(), Json::from(thread.id.as_str()));
    if let Some(id) = &at.id {
        extra.insert("checkpoint_id".into(), Json::from(id.as_str()));
    }
    if !at.ns.is_empty() {
        extra.insert("checkpoint_ns".into(), Json::from(at.ns.as_str()));
    }
    if !at.map.is_empty() {
        extra.insert("checkpoint_map".into(), Json::of(&at.map).unwrap_or_default());
    }
    let configurable = Json::from(&extra);
    let router_context = RouterContext {
        thread_id: thread.id.as_str().to_owned(),
        config: Json::from_fields([("configurable", &configurable)]),
        context: Json::object(),
    };
    let extra = merged([&thread.metadata, &configurable]).fields().unwrap_or_default();
    Options {
        thread_id: thread.id.as_str().to_owned(),
        ns: ns.to_owned(),
        parents,
        extra,
        task_metadata: Json::from(json!({})),
        recursion_limit: 1,
        interrupt_before: None,
        interrupt_after: None,
        strict_resume: StrictResume::Off,
        router_context: Arc::new(router_context),
        resuming: None,
        addressed: at.id.is_some(),
        answers_by_id: Fields::new(),
        exact_answers: false,
        exit: false,
        has_storage: true,
        wanted: Wanted::default(),
    }
}

/// A checkpoint's metadata as this thread's: a copied thread's checkpoints name their first thread.
fn own_metadata(loaded: &Loaded, thread: &ThreadId) -> Json {
    let mut metadata = loaded.metadata.clone();
    if let Some(id) = metadata.extra.get_mut("thread_id") {
        *id = Json::from(thread.as_str());
    }
    metadata_json(&metadata)
}

fn cursor(thread: &ThreadId, ns: &str, id: &CheckpointId, parents: &BTreeMap<String, CheckpointId>) -> Cursor {
    let mut map = BTreeMap::new();
    if !parents.is_empty() {
        map = parents.clone();
        map.insert(ns.to_owned(), id.clone());
    }
    Cursor { thread_id: thread.clone(), at: CheckpointRef { ns: ns.to_owned(), id: Some(id.clone()), map } }
}

fn empty_state(thread: &ThreadId, at: &CheckpointRef, id: Option<CheckpointId>) -> ThreadState {
    let echo = id.is_some();
    let at = CheckpointRef { id, ..at.clone() };
    ThreadState {
        values: Json::object(),
        next: Vec::new(),
        tasks: Vec::new(),
        metadata: None,
        created_at: None,
        checkpoint: echo.then(|| Cursor { thread_id: thread.clone(), at }),
        parent_checkpoint: None,
        interrupts: Vec::new(),
    }
}

/// A namespace without task ids: `a:ID1|b:ID2` as `a|b`.
pub(crate) fn strip_ids(ns: &str) -> String {
    ns.split('|').map(|segment| segment.split(':').next().unwrap_or(segment)).collect::<Vec<_>>().join("|")
}

/// Stored values without the engine's own channels.
fn visible(values: &Fields) -> Fields {
    let internal = |key: &str| key.starts_with("__") || key.starts_with("branch:to:") || key.starts_with("join:");
    values.iter().filter(|(key, _)| !internal(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}
