//! The contract for items: the long-term memory shared by all threads of a tenant.

use async_trait::async_trait;

use super::{Page, Result};
use crate::model::{Item, Json, Scope};

/// An item to insert or replace.
#[derive(Debug, Clone)]
pub struct NewItem {
    /// 1-16 labels, non-empty, without `.`.
    pub namespace: Vec<String>,
    pub key: String,
    /// An object.
    pub value: Json,
    /// Minutes until it expires, counted from the last write (or refreshing read).
    pub ttl_minutes: Option<f64>,
}

/// A condition on one top-level key of the value.
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
    pub conditions: Vec<(String, ItemMatch)>,
}

/// Which namespaces a listing returns.
#[derive(Debug, Clone, Default)]
pub struct NamespaceFilter {
    pub prefix: Vec<String>,
    pub suffix: Vec<String>,
    /// Cut deeper namespaces to this many labels; duplicates collapse.
    pub max_depth: Option<usize>,
}

/// Items.
#[async_trait]
pub trait Items {
    /// Inserts or replaces; `created_at` survives a replacement.
    async fn put_item(&self, scope: &Scope, item: NewItem) -> Result<()>;

    /// Reads one item that has not expired; `refresh` restarts its time to live.
    async fn get_item(&self, scope: &Scope, namespace: &[String], key: &str, refresh: bool) -> Result<Option<Item>>;

    /// Deletes; a missing item is no error.
    async fn delete_item(&self, scope: &Scope, namespace: &[String], key: &str) -> Result<()>;

    /// One page of the items that match, most recently updated first.
    async fn search_items(&self, scope: &Scope, filter: &ItemFilter, page: Page, refresh: bool) -> Result<Vec<Item>>;

    /// One page of the distinct namespaces, sorted.
    async fn list_namespaces(&self, scope: &Scope, filter: &NamespaceFilter, page: Page) -> Result<Vec<Vec<String>>>;
}
