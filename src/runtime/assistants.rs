//! Assistants: one virtual system assistant per graph (contract section 1.1).

use serde_json::json;

use super::{AssistantName, Runtime, RuntimeError};
use crate::graph::Graph;
use crate::model::{Assistant, Json, Scope, Timestamp, system_assistant_id};

impl Runtime {
    /// Resolves an assistant by its id or by the name of its graph.
    pub async fn find_assistant(&self, scope: &Scope, name: &AssistantName) -> Result<Assistant, RuntimeError> {
        let all = self.list_assistants(scope).await?;
        let found = all.into_iter().find(|assistant| match name {
            AssistantName::Id(id) => assistant.assistant_id == *id,
            AssistantName::Graph(graph) => assistant.graph_id == *graph,
        });
        found.ok_or_else(|| match name {
            AssistantName::Id(_) => RuntimeError::AssistantNotFound,
            AssistantName::Graph(graph) => RuntimeError::InvalidAssistant(format!(
                "Invalid assistant: '{graph}'. Must be either: a valid assistant UUID, or one of the graphs of this \
                 server: {}",
                self.graph_names()
            )),
        })
    }

    pub(crate) fn graph_names(&self) -> String {
        self.graphs().iter().map(Graph::name).collect::<Vec<_>>().join(", ")
    }

    /// All assistants, in the order of the graphs.
    #[expect(clippy::unused_async, reason = "stored assistants come from the database")]
    pub async fn list_assistants(&self, _scope: &Scope) -> Result<Vec<Assistant>, RuntimeError> {
        Ok(self.graphs().iter().map(|graph| system_assistant(graph, self.inner.started_at)).collect())
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
