//! The contract for assistants: named, versioned configurations of graphs.
//!
//! Storage knows the assistants that somebody made or changed. The one that every graph has is made up by the runtime as
//! long as nobody changes it (DESIGN section 5), so several methods take it as what to start from.

use std::cmp::Ordering;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Page, Result, matching};
use crate::model::{Assistant, Fields, Json, Scope, Timestamp};

/// An assistant to insert, as its version 1.
#[derive(Debug, Clone)]
pub struct NewAssistant {
    pub assistant_id: Uuid,
    pub graph_id: String,
    pub name: String,
    pub description: Option<String>,
    /// An object; its `configurable` and `context` are the same.
    pub config: Json,
    /// An object.
    pub context: Json,
    /// An object.
    pub metadata: Json,
    /// When it was made, if that was before now: one that a graph has is there before it has a row.
    pub created_at: Option<Timestamp>,
}

/// What [`Assistants::create_assistant`] did.
#[derive(Debug, Clone)]
pub enum AssistantCreated {
    New(Assistant),
    /// The id was taken; nothing was changed.
    Existing(Assistant),
}

/// Changes to an assistant; `None` keeps. Together they are one new version.
#[derive(Debug, Clone, Default)]
pub struct AssistantPatch {
    pub graph_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    /// Replaces the config, and the context by its `configurable`.
    pub config: Option<Json>,
    /// Replaces the context, and `config.configurable`.
    pub context: Option<Json>,
    /// Merged shallowly: given keys replace, others stay.
    pub metadata: Option<Json>,
}

impl AssistantPatch {
    /// The assistant as changed; version and times are left to storage.
    pub(crate) fn apply(self, to: Assistant) -> Assistant {
        let configurable = self.config.as_ref().map(|config| config.get("configurable").unwrap_or_else(Json::object));
        let context = self.context.or(configurable).unwrap_or_else(|| to.context.clone());
        Assistant {
            graph_id: self.graph_id.unwrap_or(to.graph_id),
            name: self.name.unwrap_or(to.name),
            description: self.description.or(to.description),
            config: mirrored(&self.config.unwrap_or(to.config), &context),
            context,
            metadata: self.metadata.map_or_else(|| to.metadata.clone(), |over| merged(&to.metadata, &over)),
            ..to
        }
    }
}

/// A config whose `configurable` is `context`; without the key when that is empty.
fn mirrored(config: &Json, context: &Json) -> Json {
    let mut fields = config.fields().unwrap_or_default();
    if context.fields().is_some_and(|fields| !fields.is_empty()) {
        fields.insert("configurable".to_owned(), context.clone());
    } else {
        fields.shift_remove("configurable");
    }
    Json::from(&fields)
}

fn merged(below: &Json, over: &Json) -> Json {
    let mut fields: Fields = below.fields().unwrap_or_default();
    fields.extend(over.fields().unwrap_or_default());
    Json::from(&fields)
}

/// Which assistants a list shows. All conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct AssistantFilter {
    pub graph_id: Option<String>,
    /// Part of the name, whatever its case.
    pub name: Option<String>,
    /// JSON containment, as in [`super::ThreadFilter`].
    pub metadata: Option<Json>,
}

impl AssistantFilter {
    /// Whether an assistant that has no row is shown.
    pub fn matches(&self, assistant: &Assistant) -> bool {
        self.graph_id.as_ref().is_none_or(|graph_id| assistant.graph_id == *graph_id)
            && self.name.as_ref().is_none_or(|name| folded(&assistant.name).contains(&folded(name)))
            && self.metadata.as_ref().is_none_or(|part| matching::contains(&assistant.metadata, part))
    }
}

/// A name as searches compare it.
pub(crate) fn folded(name: &str) -> String {
    name.to_lowercase()
}

/// The columns an assistant list may be ordered by; ties are broken by the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AssistantSort {
    AssistantId,
    #[default]
    CreatedAt,
    UpdatedAt,
    Name,
    GraphId,
}

impl AssistantSort {
    /// The order of the lists that storage returns.
    pub fn compare(self, ascending: bool, a: &Assistant, b: &Assistant) -> Ordering {
        let by = match self {
            AssistantSort::AssistantId => Ordering::Equal,
            AssistantSort::CreatedAt => a.created_at.cmp(&b.created_at),
            AssistantSort::UpdatedAt => a.updated_at.cmp(&b.updated_at),
            AssistantSort::Name => a.name.cmp(&b.name),
            AssistantSort::GraphId => a.graph_id.cmp(&b.graph_id),
        };
        let order = by.then_with(|| a.assistant_id.cmp(&b.assistant_id));
        if ascending { order } else { order.reverse() }
    }
}

/// Assistants.
#[async_trait]
pub trait Assistants {
    /// Inserts the assistant with its version 1 unless its id is taken in this tenant.
    async fn create_assistant(&self, scope: &Scope, new: NewAssistant) -> Result<AssistantCreated>;

    /// Reads the assistants of these ids that have a row, in any order.
    async fn find_assistants(&self, scope: &Scope, ids: &[Uuid]) -> Result<Vec<Assistant>>;

    /// One page of the assistants that match.
    async fn search_assistants(
        &self,
        scope: &Scope,
        filter: &AssistantFilter,
        sort: AssistantSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Assistant>>;

    /// How many assistants match.
    async fn count_assistants(&self, scope: &Scope, filter: &AssistantFilter) -> Result<i64>;

    /// Applies a patch as a new version, one more than the greatest there ever was, and makes it the current one. An
    /// assistant without a row starts from `base` (as its version 1); `None` when there is neither. `updated_at` grows.
    async fn update_assistant(
        &self,
        scope: &Scope,
        id: Uuid,
        patch: AssistantPatch,
        base: Option<NewAssistant>,
    ) -> Result<Option<Assistant>>;

    /// Makes an earlier version the current one. `None` when the assistant or the version is missing.
    async fn set_assistant_version(&self, scope: &Scope, id: Uuid, version: i64) -> Result<Option<Assistant>>;

    /// One page of an assistant's versions, newest first: `created_at` and `updated_at` are the version's.
    async fn list_assistant_versions(
        &self,
        scope: &Scope,
        id: Uuid,
        metadata: Option<&Json>,
        page: Page,
    ) -> Result<Vec<Assistant>>;

    /// Deletes the assistant with its versions and crons; false when it has no row. Runs under way keep what they were given.
    async fn delete_assistant(&self, scope: &Scope, id: Uuid) -> Result<bool>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).expect("valid")
    }

    fn assistant() -> Assistant {
        Assistant {
            assistant_id: Uuid::nil(),
            graph_id: "graph".into(),
            config: json(r#"{"tags":["t"],"configurable":{"a":1}}"#),
            context: json(r#"{"a":1}"#),
            metadata: json(r#"{"x":1,"y":{"z":1}}"#),
            name: "One".into(),
            description: None,
            created_at: Timestamp(1),
            updated_at: Timestamp(1),
            version: 1,
        }
    }

    #[test]
    fn config_and_context_mirror_each_other() {
        let patched = |config: Option<&str>, context: Option<&str>| {
            let patch = AssistantPatch { config: config.map(json), context: context.map(json), ..Default::default() };
            let after = patch.apply(assistant());
            (after.config.text(), after.context.text())
        };
        let unchanged = (r#"{"tags":["t"],"configurable":{"a":1}}"#.into(), r#"{"a":1}"#.into());
        assert_eq!(patched(None, None), unchanged);
        let by_config = (r#"{"configurable":{"b":2}}"#.into(), r#"{"b":2}"#.into());
        assert_eq!(patched(Some(r#"{"configurable":{"b":2}}"#), None), by_config);
        let by_context = (r#"{"tags":["t"],"configurable":{"b":2}}"#.into(), r#"{"b":2}"#.into());
        assert_eq!(patched(None, Some(r#"{"b":2}"#)), by_context);
        assert_eq!(patched(Some(r#"{"recursion_limit":5}"#), None), (r#"{"recursion_limit":5}"#.into(), "{}".into()));
        assert_eq!(patched(None, Some("{}")), (r#"{"tags":["t"]}"#.into(), "{}".into()));
    }

    #[test]
    fn metadata_is_merged_and_the_rest_replaced_or_kept() {
        let patch = AssistantPatch {
            metadata: Some(json(r#"{"y":{"w":2}}"#)),
            description: Some("d".into()),
            ..Default::default()
        };
        let after = patch.apply(assistant());
        assert_eq!(after.metadata.text(), r#"{"x":1,"y":{"w":2}}"#);
        assert_eq!((after.name.as_str(), after.description.as_deref()), ("One", Some("d")));
    }

    #[test]
    fn names_are_compared_whatever_their_case() {
        let named = |name: &str| AssistantFilter { name: Some(name.into()), ..Default::default() };
        let assistant = Assistant { name: "Grüße ÄRGER".into(), ..assistant() };
        assert!(named("GRÜ").matches(&assistant));
        assert!(named("ärger").matches(&assistant) && !named("x").matches(&assistant));
    }
}
