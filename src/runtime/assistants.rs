//! Assistants: the one that every graph has, made up until somebody changes it (contract section 1.1, DESIGN section 5),
//! and those that people make. And what a run takes from its assistant, in one place.

use std::sync::Mutex;

use indexmap::IndexMap;
use serde_json::json;
use uuid::Uuid;

use super::runs::merged;
use super::shared::lock;
use super::{AssistantName, Runtime, RuntimeError};
use crate::graph::Graph;
use crate::model::{Assistant, CancelAction, Json, RunId, Scope, ThreadId, Timestamp, system_assistant_id};
use crate::storage::{
    AssistantCreated, AssistantFilter, AssistantPatch, AssistantSort, CancelRequest, CancelTarget, ClosedFilter,
    NewAssistant, Page, ThreadFilter, ThreadSort,
};

/// Assistants remembered by a process; the oldest goes first.
const REMEMBERED: usize = 1024;
/// Threads deleted with an assistant, in between looks.
const DELETE_PAGE: i64 = 100;

/// Assistants that were read for a run. It may be stale: whoever inserts a run says which state of its assistant was
/// read, and storage refuses one that is not the present one. So remembering costs no round trip, and never a wrong run.
#[derive(Debug, Default)]
pub(crate) struct Remembered(Mutex<IndexMap<(Uuid, Uuid), Assistant>>);

impl Remembered {
    fn get(&self, scope: &Scope, id: Uuid) -> Option<Assistant> {
        lock(&self.0).get(&(scope.tenant(), id)).cloned()
    }

    fn put(&self, scope: &Scope, assistant: Assistant) {
        let mut known = lock(&self.0);
        let key = (scope.tenant(), assistant.assistant_id);
        if !known.contains_key(&key) && known.len() >= REMEMBERED {
            known.shift_remove_index(0);
        }
        known.insert(key, assistant);
    }

    fn forget(&self, scope: &Scope, id: Uuid) {
        lock(&self.0).shift_remove(&(scope.tenant(), id));
    }
}

/// An assistant for a run, and as of when.
pub(crate) struct Resolved {
    pub(crate) assistant: Assistant,
    /// `None`: it has no row.
    pub(crate) as_of: Option<Timestamp>,
}

impl Resolved {
    fn stored(assistant: Assistant) -> Resolved {
        Resolved { as_of: Some(assistant.updated_at), assistant }
    }

    /// The config of a run: the request's over the assistant's, key by key, and what every run carries in `configurable`.
    pub(crate) fn config(&self, requested: &Json, thread_id: &ThreadId, run_id: RunId) -> Json {
        let assistant = &self.assistant;
        let mut fields = assistant.config.fields().unwrap_or_default();
        fields.extend(requested.fields().unwrap_or_default());
        let own = json!({
            "run_id": run_id, "thread_id": thread_id.as_str(), "graph_id": assistant.graph_id,
            "assistant_id": assistant.assistant_id, "user_id": "",
        });
        let below = assistant.config.get("configurable").unwrap_or_default();
        let given = requested.get("configurable").unwrap_or_default();
        fields.insert("configurable".to_owned(), merged([&below, &given, &Json::from(&own)]));
        Json::from(&fields)
    }

    /// The context of a run: the request's over the assistant's.
    pub(crate) fn context(&self, requested: &Json) -> Json {
        merged([&self.assistant.context, requested])
    }
}

impl Runtime {
    /// Resolves an assistant by its id or by the name of its graph.
    pub async fn find_assistant(&self, scope: &Scope, name: &AssistantName) -> Result<Assistant, RuntimeError> {
        let id = self.assistant_id(name)?;
        if let Some(stored) = self.storage().find_assistants(scope, &[id]).await?.pop() {
            return Ok(stored);
        }
        self.system_assistant(id).ok_or(RuntimeError::AssistantNotFound)
    }

    /// Resolves the assistant of a run, from memory where possible.
    pub(crate) async fn resolve_assistant(
        &self,
        scope: &Scope,
        name: &AssistantName,
        look: bool,
    ) -> Result<Resolved, RuntimeError> {
        let id = self.assistant_id(name)?;
        if !look {
            if let Some(known) = self.inner.assistants.get(scope, id) {
                return Ok(Resolved::stored(known));
            }
            if let Some(assistant) = self.system_assistant(id) {
                return Ok(Resolved { assistant, as_of: None });
            }
        }
        if let Some(stored) = self.storage().find_assistants(scope, &[id]).await?.pop() {
            self.inner.assistants.put(scope, stored.clone());
            return Ok(Resolved::stored(stored));
        }
        self.inner.assistants.forget(scope, id);
        let assistant = self.system_assistant(id).ok_or(RuntimeError::AssistantNotFound)?;
        Ok(Resolved { assistant, as_of: None })
    }

    fn assistant_id(&self, name: &AssistantName) -> Result<Uuid, RuntimeError> {
        match name {
            AssistantName::Id(id) => Ok(*id),
            AssistantName::Graph(graph) if self.graph(graph).is_some() => Ok(system_assistant_id(graph)),
            AssistantName::Graph(graph) => {
                let shown: String = graph.chars().take(64).collect();
                Err(RuntimeError::InvalidAssistant(format!(
                    "Invalid assistant: '{shown}'. Must be either: a valid assistant UUID, or one of the graphs of this \
                     server: {}",
                    self.graph_names()
                )))
            }
        }
    }

    pub(crate) fn graph_names(&self) -> String {
        self.graphs().iter().map(Graph::name).collect::<Vec<_>>().join(", ")
    }

    fn system_assistant(&self, id: Uuid) -> Option<Assistant> {
        let graph = self.graphs().iter().find(|graph| system_assistant_id(graph.name()) == id)?;
        Some(system_assistant(graph, self.inner.started_at))
    }

    /// The graphs' own assistants that match and have no row.
    async fn untouched(&self, scope: &Scope, filter: &AssistantFilter) -> Result<Vec<Assistant>, RuntimeError> {
        let mut own: Vec<Assistant> =
            self.graphs().iter().map(|graph| system_assistant(graph, self.inner.started_at)).collect();
        let ids: Vec<Uuid> = own.iter().map(|assistant| assistant.assistant_id).collect();
        let stored = self.storage().find_assistants(scope, &ids).await?;
        own.retain(|assistant| {
            filter.matches(assistant) && stored.iter().all(|row| row.assistant_id != assistant.assistant_id)
        });
        Ok(own)
    }

    /// One page of all assistants that match: stored ones, and those of the graphs.
    pub async fn search_assistants(
        &self,
        scope: &Scope,
        filter: &AssistantFilter,
        sort: AssistantSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Assistant>, RuntimeError> {
        let untouched = self.untouched(scope, filter).await?;
        // However they mix, what precedes the page is at most all of those without a row, the rest is stored.
        let skipped = (page.offset - untouched.len() as i64).max(0);
        let window = Page { limit: page.offset - skipped + page.limit, offset: skipped };
        let mut found = self.storage().search_assistants(scope, filter, sort, ascending, window).await?;
        found.extend(untouched);
        found.sort_by(|a, b| sort.compare(ascending, a, b));
        let size = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(found.into_iter().skip(size(page.offset - skipped)).take(size(page.limit)).collect())
    }

    /// How many assistants match.
    pub async fn count_assistants(&self, scope: &Scope, filter: &AssistantFilter) -> Result<i64, RuntimeError> {
        let untouched = self.untouched(scope, filter).await?.len() as i64;
        Ok(untouched + self.storage().count_assistants(scope, filter).await?)
    }

    /// Makes an assistant; with `keep_existing`, one that is there is the answer.
    pub async fn create_assistant(
        &self,
        scope: &Scope,
        new: NewAssistant,
        keep_existing: bool,
    ) -> Result<Assistant, RuntimeError> {
        let id = new.assistant_id;
        let existing = match self.system_assistant(id) {
            Some(_) => self.find_assistant(scope, &AssistantName::Id(id)).await?,
            None => match self.storage().create_assistant(scope, new).await? {
                AssistantCreated::New(assistant) => return Ok(assistant),
                AssistantCreated::Existing(assistant) => assistant,
            },
        };
        if keep_existing {
            return Ok(existing);
        }
        Err(RuntimeError::Conflict(format!(
            "Assistant with ID {id} already exists. Send \"if_exists\": \"do_nothing\" to get it."
        )))
    }

    /// Changes an assistant: a new version, which becomes the current one.
    pub async fn update_assistant(
        &self,
        scope: &Scope,
        id: Uuid,
        patch: AssistantPatch,
    ) -> Result<Assistant, RuntimeError> {
        let base = self.system_assistant(id).map(as_new);
        let updated = self.storage().update_assistant(scope, id, patch, base).await?;
        updated.ok_or(RuntimeError::AssistantNotFound)
    }

    /// Makes an earlier version the current one.
    pub async fn set_assistant_version(
        &self,
        scope: &Scope,
        id: Uuid,
        version: i64,
    ) -> Result<Assistant, RuntimeError> {
        if let Some(assistant) = self.storage().set_assistant_version(scope, id, version).await? {
            return Ok(assistant);
        }
        // An untouched assistant of a graph has one version.
        let untouched = self.storage().find_assistants(scope, &[id]).await?.is_empty() && version == 1;
        self.system_assistant(id).filter(|_| untouched).ok_or(RuntimeError::AssistantNotFound)
    }

    /// One page of an assistant's versions, newest first. [`RuntimeError::AssistantNotFound`] when there is none at all.
    pub async fn assistant_versions(
        &self,
        scope: &Scope,
        id: Uuid,
        metadata: Option<&Json>,
        page: Page,
    ) -> Result<Vec<Assistant>, RuntimeError> {
        let found = self.storage().list_assistant_versions(scope, id, metadata, page).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        let current = self.find_assistant(scope, &AssistantName::Id(id)).await?;
        let filter = AssistantFilter { metadata: metadata.cloned(), ..AssistantFilter::default() };
        let is_untouched = self.storage().find_assistants(scope, &[id]).await?.is_empty();
        let shown = is_untouched && page.offset == 0 && filter.matches(&current);
        Ok(if shown { vec![current] } else { Vec::new() })
    }

    /// Deletes an assistant with its versions, stops its runs, and, when asked, deletes the threads it ran on last. May be
    /// repeated when it broke off: the assistant goes after its threads.
    pub async fn delete_assistant(
        &self,
        scope: &Scope,
        id: Uuid,
        delete_threads: bool,
        actor: Option<String>,
    ) -> Result<(), RuntimeError> {
        if let Some(system) = self.system_assistant(id) {
            return Err(RuntimeError::Conflict(format!(
                "Assistant {id} belongs to the graph '{}' and cannot be deleted; PATCH changes it",
                system.graph_id
            )));
        }
        if self.storage().find_assistants(scope, &[id]).await?.is_empty() {
            return Err(RuntimeError::AssistantNotFound);
        }
        if delete_threads {
            self.delete_threads_of(scope, id).await?;
        }
        if !self.storage().delete_assistant(scope, id).await? {
            return Err(RuntimeError::AssistantNotFound);
        }
        self.inner.assistants.forget(scope, id);
        // From here on no run of it is accepted; those that were, end.
        if delete_threads {
            self.delete_threads_of(scope, id).await?;
        }
        let reason = Some("the assistant was deleted".to_owned());
        let request = CancelRequest { action: CancelAction::Interrupt, actor, reason };
        self.storage().cancel_runs(scope, &CancelTarget::Assistant(id), &request).await?;
        Ok(())
    }

    async fn delete_threads_of(&self, scope: &Scope, id: Uuid) -> Result<(), RuntimeError> {
        let metadata = Some(Json::from(json!({"assistant_id": id})));
        let filter = ThreadFilter { metadata, closed: ClosedFilter::Any, ..ThreadFilter::default() };
        let page = Page { limit: DELETE_PAGE, offset: 0 };
        loop {
            let threads = self.storage().search_threads(scope, &filter, ThreadSort::ThreadId, true, page).await?;
            if threads.is_empty() {
                return Ok(());
            }
            for thread in threads {
                self.storage().delete_thread(scope, &thread.id).await?;
            }
        }
    }
}

fn system_assistant(graph: &Graph, at: Timestamp) -> Assistant {
    Assistant {
        assistant_id: system_assistant_id(graph.name()),
        graph_id: graph.name().to_owned(),
        config: Json::object(),
        context: Json::object(),
        metadata: Json::from(json!({"created_by": "system"})),
        name: graph.name().to_owned(),
        description: graph.description().map(str::to_owned),
        created_at: at,
        updated_at: at,
        version: 1,
    }
}

fn as_new(assistant: Assistant) -> NewAssistant {
    NewAssistant {
        assistant_id: assistant.assistant_id,
        graph_id: assistant.graph_id,
        name: assistant.name,
        description: assistant.description,
        config: assistant.config,
        context: assistant.context,
        metadata: assistant.metadata,
        created_at: Some(assistant.created_at),
    }
}
