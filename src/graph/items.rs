//! The long-term memory as nodes use it.

use std::fmt;

use super::context::Host;
use super::node::NodeError;
use crate::model::{FoundItem, Indexing, Item, Json};

/// How an item is kept.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// What of it is embedded, so that searches find it by meaning.
    pub indexing: Indexing,
    /// Minutes until it is removed, counted from its last write or read; `None`: what the server's settings say.
    pub ttl_minutes: Option<f64>,
}

/// What a search asks for. The default asks for everything below the prefix, ten items at most.
#[derive(Debug, Clone)]
pub struct ItemQuery {
    /// What the items are to be near to, in words: the nearest come first, with their scores. Without an embedder
    /// (`embedding.provider`) it changes nothing.
    pub query: Option<String>,
    /// `{"key": value}`, `{"key": {"$gt": value, ..}}`, and objects inside; all must hold.
    pub filter: Option<Json>,
    /// At most so many items.
    pub limit: i64,
    /// Items left out at the beginning.
    pub offset: i64,
}

impl Default for ItemQuery {
    fn default() -> Self {
        ItemQuery { query: None, filter: None, limit: 10, offset: 0 }
    }
}

impl ItemQuery {
    /// Items near to this text.
    pub fn near(query: impl Into<String>) -> ItemQuery {
        ItemQuery { query: Some(query.into()), ..ItemQuery::default() }
    }
}

/// The long-term memory, as a node uses it.
pub struct Items<'a> {
    pub(super) host: &'a dyn Host,
}

impl Items<'_> {
    /// Writes an item, replacing what the key held.
    pub async fn put(&self, namespace: &[String], key: &str, value: Json) -> Result<(), NodeError> {
        self.host.put_item(namespace, key, value, PutOptions::default()).await
    }

    /// [`Items::put`], saying what is embedded and how long it is kept.
    ///
    /// # Errors
    /// `EmbeddingError` when the item could not be embedded: then it is not written. `InvalidNamespaceError` and
    /// `ValueError` when it is not what an item may be.
    pub async fn put_with(
        &self,
        namespace: &[String],
        key: &str,
        value: Json,
        options: PutOptions,
    ) -> Result<(), NodeError> {
        self.host.put_item(namespace, key, value, options).await
    }

    /// The item of this key, if there is one.
    pub async fn get(&self, namespace: &[String], key: &str) -> Result<Option<Item>, NodeError> {
        self.host.get_item(namespace, key).await
    }

    /// Removes an item; one that is not there is no error.
    pub async fn delete(&self, namespace: &[String], key: &str) -> Result<(), NodeError> {
        self.host.delete_item(namespace, key).await
    }

    /// Items below the prefix whose value holds every member of `filter`, newest first.
    pub async fn search(&self, prefix: &[String], filter: Option<Json>, limit: i64) -> Result<Vec<Item>, NodeError> {
        let query = ItemQuery { filter, limit, ..ItemQuery::default() };
        Ok(self.query(prefix, query).await?.into_iter().map(|found| found.item).collect())
    }

    /// Items below the prefix that a query asks for: `ItemQuery::near("what the user likes to drink")`.
    ///
    /// # Errors
    /// `EmbeddingError` when the query could not be embedded; `InvalidNamespaceError` and `ValueError` when it is not what
    /// a query may be.
    pub async fn query(&self, prefix: &[String], query: ItemQuery) -> Result<Vec<FoundItem>, NodeError> {
        self.host.search_items(prefix, query).await
    }
}

impl fmt::Debug for Items<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Items")
    }
}
