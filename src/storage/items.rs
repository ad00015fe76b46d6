//! The contract for items: the long-term memory shared by all threads of a tenant.

use async_trait::async_trait;

use super::encoding::Place;
use super::{Page, Result};
use crate::model::{FoundItem, Indexing, Item, Json, Scope};

/// An item to insert or replace.
#[derive(Debug, Clone, Default)]
pub struct NewItem {
    /// 1-16 labels, non-empty, without `.`.
    pub namespace: Vec<String>,
    pub key: String,
    /// An object.
    pub value: Json,
    /// Minutes until it expires, counted from the last write (or refreshing read).
    pub ttl_minutes: Option<f64>,
    /// What was to be embedded, kept for when it is done again with another model.
    pub indexing: Indexing,
    /// What was embedded; `None`: no model was asked.
    pub embedded: Option<Embedded>,
}

/// The vectors of an item. Those it had before, of whatever model, are replaced by them.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// What made them: vectors of the same name can be compared.
    pub model: String,
    /// None at all when the item holds no text to embed.
    pub vectors: Vec<ItemVector>,
}

/// The vector of one text of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemVector {
    /// Where the text stands; unique in the item.
    pub path: String,
    /// Of length 1, or all zero.
    pub vector: Vec<f32>,
}

/// A condition on one key of the value.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemMatch {
    Eq(Json),
    Ne(Json),
    Gt(Json),
    Gte(Json),
    Lt(Json),
    Lte(Json),
}

/// Which items a search returns: those below the prefix for which all conditions hold.
#[derive(Debug, Clone, Default)]
pub struct ItemFilter {
    /// Compared label by label, never as text.
    pub prefix: Vec<String>,
    /// Each with the keys that lead to what it is about: one for a key of the value itself, more for nested objects.
    pub conditions: Vec<(Vec<String>, ItemMatch)>,
    /// What the items are to be near to.
    pub near: Option<Near>,
}

/// A query as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Near {
    /// Only vectors of this model count.
    pub model: String,
    /// Of length 1, or all zero.
    pub vector: Vec<f32>,
}

/// Which namespaces a listing returns. The label `*` of a prefix or suffix stands for any label.
#[derive(Debug, Clone, Default)]
pub struct NamespaceFilter {
    pub prefix: Vec<String>,
    pub suffix: Vec<String>,
    /// Cut deeper namespaces to this many labels; duplicates collapse.
    pub max_depth: Option<usize>,
}

/// Where an item is, across tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemPlace {
    /// Whose it is.
    pub scope: Scope,
    pub namespace: Vec<String>,
    pub key: String,
}

/// An item that a model has not embedded as it is now.
#[derive(Debug, Clone)]
pub struct UnembeddedItem {
    /// Whose it is.
    pub scope: Scope,
    pub item: Item,
    pub indexing: Indexing,
}

/// What came of a step of [`Items::tend_vectors`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VectorsTended {
    /// Where the next step begins; `None`: all were looked at.
    pub next: Option<ItemPlace>,
    /// Vectors that were copied.
    pub copied: u64,
    /// Items whose vectors cannot be copied.
    pub refused: u64,
}

/// Items.
#[async_trait]
pub trait Items {
    /// Inserts or replaces, with its vectors; `created_at` survives a replacement.
    async fn put_item(&self, scope: &Scope, item: NewItem) -> Result<()>;

    /// Reads one item that has not expired; `refresh` restarts its time to live.
    async fn get_item(&self, scope: &Scope, namespace: &[String], key: &str, refresh: bool) -> Result<Option<Item>>;

    /// Deletes, with its vectors; a missing item is no error.
    async fn delete_item(&self, scope: &Scope, namespace: &[String], key: &str) -> Result<()>;

    /// One page of the items that match. Without `near` the most recently updated come first; with it the nearest do, an
    /// item being as near as its nearest vector, and after them those without a vector. What is equal in that comes most
    /// recently updated first, then in the order of namespace and key.
    async fn search_items(
        &self,
        scope: &Scope,
        filter: &ItemFilter,
        page: Page,
        refresh: bool,
    ) -> Result<Vec<FoundItem>>;

    /// One page of the distinct namespaces, sorted.
    async fn list_namespaces(&self, scope: &Scope, filter: &NamespaceFilter, page: Page) -> Result<Vec<Vec<String>>>;

    /// One bounded step ([`super::STEP_ROWS`]) of removing expired items; true when there may be more.
    async fn sweep_items(&self, scope: &Scope) -> Result<bool>;

    /// Items that are to be embedded and that `model` has not embedded as they are now, in the order of their places:
    /// the first ones, or those after a place.
    async fn unembedded_items(
        &self,
        scope: &Scope,
        model: &str,
        after: Option<&ItemPlace>,
        limit: i64,
    ) -> Result<Vec<UnembeddedItem>>;

    /// Gives an item its vectors, unless it was written since (`item.updated_at`) or is gone. True when it was done.
    async fn embed_item(&self, scope: &Scope, item: &Item, embedded: Embedded) -> Result<bool>;

    /// Where the database ranks copies of the vectors (pgvector): one bounded step, from the first item or from after a place,
    /// of making the copies that are missing and removing those of items that are gone. Searches are right without, and
    /// dropped halfway, what is done is done. Elsewhere there is nothing to do.
    async fn tend_vectors(&self, _scope: &Scope, _after: Option<&ItemPlace>) -> Result<VectorsTended> {
        Ok(VectorsTended::default())
    }

    /// True once after a search of this process that came upon vectors without a copy.
    fn wants_vectors_tended(&self) -> bool {
        false
    }
}

/// The column form of what is to be embedded.
pub(crate) fn indexing_text(indexing: &Indexing) -> Option<String> {
    match indexing {
        Indexing::Default => None,
        Indexing::Never => Some("false".to_owned()),
        Indexing::Paths(paths) => Json::of(paths).ok().map(|json| json.text()),
    }
}

/// Reads the column form back.
pub(crate) fn indexing(text: Option<&str>, place: Place<'_>) -> Result<Indexing> {
    match text {
        None => Ok(Indexing::Default),
        Some("false") => Ok(Indexing::Never),
        Some(text) => {
            let paths = Json::trusted(text.to_owned()).and_then(|json| json.decode());
            paths.map(Indexing::Paths).map_err(|error| place.corrupt(error.0))
        }
    }
}
