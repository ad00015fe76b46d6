//! Items: what may be written, what is embedded on the way in, and how a search is read.

use std::sync::Arc;

use super::embed::{EmbedError, Embedder, paths, unit_vectors};
use super::{Runtime, RuntimeError};
use crate::model::{FoundItem, Indexing, Item, Json, Scope};
use crate::storage::{
    Embedded, ItemFilter, ItemMatch, ItemPlace, ItemVector, NamespaceFilter, Near, NewItem, Page, UnembeddedItem,
};

pub(crate) const MAX_LABELS: usize = 16;
pub(crate) const MAX_LABEL_BYTES: usize = 256;
pub(crate) const MAX_KEY_BYTES: usize = 1024;
pub(crate) const MAX_CONDITIONS: usize = 32;
/// Objects inside objects of a filter.
const MAX_FILTER_DEPTH: usize = 16;
pub(crate) const MAX_TTL_MINUTES: f64 = 1e9;
/// Items embedded at once when it is done again.
const EMBED_PAGE: i64 = 50;

/// Settings of items; the defaults are those of `config.toml`.
#[derive(Debug, Clone)]
pub struct ItemSettings {
    /// Of items that do not say how long they are kept; `None`: for good.
    pub default_ttl_minutes: Option<f64>,
    /// Whether reading restarts the time to live, unless the request says otherwise.
    pub refresh_ttl: bool,
    /// What of an item is embedded unless it says otherwise: paths into its value.
    pub fields: Vec<String>,
    /// `None`: nothing is, and queries change nothing.
    pub embedder: Option<Arc<dyn Embedder>>,
}

impl Default for ItemSettings {
    fn default() -> Self {
        ItemSettings { default_ttl_minutes: None, refresh_ttl: true, fields: vec!["$".to_owned()], embedder: None }
    }
}

/// An item to insert or replace.
#[derive(Debug, Clone, Default)]
pub struct PutItem {
    pub namespace: Vec<String>,
    pub key: String,
    /// An object.
    pub value: Json,
    pub indexing: Indexing,
    /// `None`: what the settings say.
    pub ttl_minutes: Option<f64>,
}

/// What a search asks for.
#[derive(Debug, Clone)]
pub struct ItemSearch {
    pub prefix: Vec<String>,
    /// `{"key": value}`, `{"key": {"$gt": value, ..}}`, and objects inside; all must hold.
    pub filter: Option<Json>,
    /// What the items are to be near to, in words.
    pub query: Option<String>,
    pub page: Page,
    /// `None`: what the settings say.
    pub refresh: Option<bool>,
}

/// What came of embedding items again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reembedded {
    pub done: u64,
    /// Written or deleted meanwhile: whoever did it embedded it.
    pub changed: u64,
    /// The embedder refused their texts.
    pub refused: u64,
}

impl Runtime {
    /// Writes an item with its vectors. Its texts are embedded first; when that fails, nothing is written.
    pub async fn put_item(&self, scope: &Scope, put: PutItem) -> Result<(), RuntimeError> {
        check_namespace(&put.namespace, 1)?;
        check_key(&put.key)?;
        let ttl_minutes = put.ttl_minutes.or(self.inner.settings.items.default_ttl_minutes);
        if ttl_minutes.is_some_and(|minutes| !(0.0..=MAX_TTL_MINUTES).contains(&minutes)) {
            return Err(RuntimeError::Invalid(format!("ttl: must be between 0 and {MAX_TTL_MINUTES}")));
        }
        check_indexing(&put.indexing)?;
        let embedded = match &self.inner.settings.items.embedder {
            Some(embedder) => Some(self.embed(&**embedder, &put.value, &put.indexing).await?),
            None => None,
        };
        let PutItem { namespace, key, value, indexing, .. } = put;
        let item = NewItem { namespace, key, value, ttl_minutes, indexing, embedded };
        Ok(self.storage().put_item(scope, item).await?)
    }

    async fn embed(
        &self,
        embedder: &dyn Embedder,
        value: &Json,
        indexing: &Indexing,
    ) -> Result<Embedded, RuntimeError> {
        let paths = match indexing {
            Indexing::Default => self.inner.settings.items.fields.as_slice(),
            Indexing::Paths(paths) => paths.as_slice(),
            Indexing::Never => &[],
        };
        let texts = paths::texts(value, paths).map_err(|text| RuntimeError::Invalid(format!("index: {text}")))?;
        let (places, texts): (Vec<String>, Vec<String>) = texts.into_iter().unzip();
        let vectors = unit_vectors(embedder, &texts).await?;
        let vectors = places.into_iter().zip(vectors).map(|(path, vector)| ItemVector { path, vector }).collect();
        Ok(Embedded { model: embedder.model().to_owned(), vectors })
    }

    /// Reads one item.
    pub async fn get_item(
        &self,
        scope: &Scope,
        namespace: &[String],
        key: &str,
        refresh: Option<bool>,
    ) -> Result<Option<Item>, RuntimeError> {
        check_namespace(namespace, 1)?;
        let refresh = refresh.unwrap_or(self.inner.settings.items.refresh_ttl);
        Ok(self.storage().get_item(scope, namespace, key, refresh).await?)
    }

    /// Deletes; a missing item is no error.
    pub async fn delete_item(&self, scope: &Scope, namespace: &[String], key: &str) -> Result<(), RuntimeError> {
        check_namespace(namespace, 1)?;
        Ok(self.storage().delete_item(scope, namespace, key).await?)
    }

    /// One page of items. With a query, and an embedder: the nearest first, with their scores.
    pub async fn search_items(&self, scope: &Scope, search: ItemSearch) -> Result<Vec<FoundItem>, RuntimeError> {
        check_namespace(&search.prefix, 0)?;
        if search.page.limit < 0 || search.page.offset < 0 {
            return Err(RuntimeError::Invalid("limit, offset: must not be negative".to_owned()));
        }
        let conditions = search.filter.as_ref().map(conditions).transpose()?.unwrap_or_default();
        let query = search.query.filter(|query| !query.is_empty());
        let near = match (query, &self.inner.settings.items.embedder) {
            (Some(query), Some(embedder)) => {
                let vector = unit_vectors(&**embedder, &[query]).await?.pop().unwrap_or_default();
                Some(Near { model: embedder.model().to_owned(), vector })
            }
            _ => None,
        };
        let filter = ItemFilter { prefix: search.prefix, conditions, near };
        let refresh = search.refresh.unwrap_or(self.inner.settings.items.refresh_ttl);
        Ok(self.storage().search_items(scope, &filter, search.page, refresh).await?)
    }

    /// One page of the distinct namespaces.
    pub async fn list_namespaces(
        &self,
        scope: &Scope,
        filter: &NamespaceFilter,
        page: Page,
    ) -> Result<Vec<Vec<String>>, RuntimeError> {
        check_namespace(&filter.prefix, 0)?;
        check_namespace(&filter.suffix, 0)?;
        Ok(self.storage().list_namespaces(scope, filter, page).await?)
    }

    /// Embeds what the present model has not embedded as it is: after the model was changed, or items were written without
    /// one. Items whose texts are refused are left out. Any number of processes may do so at once; dropped halfway,
    /// what is done is done.
    pub async fn reembed_items(&self) -> Result<Reembedded, RuntimeError> {
        let mut made = Reembedded::default();
        let Some(embedder) = self.inner.settings.items.embedder.clone() else { return Ok(made) };
        let mut after: Option<ItemPlace> = None;
        loop {
            let found =
                self.storage().unembedded_items(&Scope::Server, embedder.model(), after.as_ref(), EMBED_PAGE).await?;
            let Some(last) = found.last() else { return Ok(made) };
            after = Some(ItemPlace {
                scope: last.scope,
                namespace: last.item.namespace.clone(),
                key: last.item.key.clone(),
            });
            for UnembeddedItem { scope, item, indexing } in found {
                let embedded = match self.embed(&*embedder, &item.value, &indexing).await {
                    Ok(embedded) => embedded,
                    Err(error @ (RuntimeError::Invalid(_) | RuntimeError::Embedding(EmbedError::Refused(_)))) => {
                        tracing::warn!(namespace = ?item.namespace, key = item.key, %error, "an item is not embedded");
                        made.refused += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                match self.storage().embed_item(&scope, &item, embedded).await? {
                    true => made.done += 1,
                    false => made.changed += 1,
                }
            }
        }
    }
}

fn check_key(key: &str) -> Result<(), RuntimeError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(RuntimeError::Invalid(format!("key: expected 1 to {MAX_KEY_BYTES} bytes")));
    }
    Ok(())
}

/// The rule of labels: non-empty, without dots.
fn check_namespace(labels: &[String], at_least: usize) -> Result<(), RuntimeError> {
    let refused = |text: String| Err(RuntimeError::InvalidNamespace(text));
    if !(at_least..=MAX_LABELS).contains(&labels.len()) {
        return refused(format!("Invalid namespace: expected {at_least} to {MAX_LABELS} labels, got {}", labels.len()));
    }
    for label in labels {
        let shown: String = label.chars().take(64).collect();
        if label.is_empty() {
            return refused("Invalid namespace: labels must not be empty".to_owned());
        }
        if label.contains('.') {
            return refused(format!("Invalid namespace: label '{shown}' must not contain '.'"));
        }
        if label.len() > MAX_LABEL_BYTES {
            return refused(format!("Invalid namespace: label '{shown}..' is longer than {MAX_LABEL_BYTES} bytes"));
        }
    }
    Ok(())
}

fn check_indexing(indexing: &Indexing) -> Result<(), RuntimeError> {
    let Indexing::Paths(paths) = indexing else { return Ok(()) };
    if paths.len() > paths::MAX_PATHS {
        return Err(RuntimeError::Invalid(format!("index: at most {} paths", paths::MAX_PATHS)));
    }
    match paths.iter().position(|path| path.len() > paths::MAX_PATH_BYTES) {
        Some(at) => Err(RuntimeError::Invalid(format!("index[{at}]: longer than {} bytes", paths::MAX_PATH_BYTES))),
        None => Ok(()),
    }
}

/// The conditions of a filter, each with the keys that lead to it.
fn conditions(filter: &Json) -> Result<Vec<(Vec<String>, ItemMatch)>, RuntimeError> {
    let mut found = Vec::new();
    collect(filter, &mut Vec::new(), &mut found)?;
    if found.len() > MAX_CONDITIONS {
        return Err(RuntimeError::Invalid(format!("filter: at most {MAX_CONDITIONS} conditions")));
    }
    Ok(found)
}

fn collect(
    filter: &Json,
    path: &mut Vec<String>,
    found: &mut Vec<(Vec<String>, ItemMatch)>,
) -> Result<(), RuntimeError> {
    let invalid = |text: String| Err(RuntimeError::Invalid(text));
    let Some(fields) = filter.fields() else { return invalid("filter: expected an object".to_owned()) };
    if path.len() > MAX_FILTER_DEPTH {
        return invalid(format!("filter: at most {MAX_FILTER_DEPTH} objects inside each other"));
    }
    for (key, want) in fields {
        path.push(key);
        let inner = want.fields();
        match inner {
            Some(operators) if operators.keys().any(|name| name.starts_with('$')) => {
                for (name, value) in operators {
                    let condition = match name.as_str() {
                        "$eq" => ItemMatch::Eq(value),
                        "$ne" => ItemMatch::Ne(value),
                        "$gt" => ItemMatch::Gt(value),
                        "$gte" => ItemMatch::Gte(value),
                        "$lt" => ItemMatch::Lt(value),
                        "$lte" => ItemMatch::Lte(value),
                        _ => {
                            let known = "$eq, $ne, $gt, $gte, $lt, $lte";
                            return invalid(format!("filter.{}: expected operators of {known}", path.join(".")));
                        }
                    };
                    found.push((path.clone(), condition));
                }
            }
            // An object inside asks for its own members; the value may have others beside them.
            Some(members) if !members.is_empty() => collect(&want, path, found)?,
            _ => found.push((path.clone(), ItemMatch::Eq(want))),
        }
        path.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[&str]) -> Result<(), RuntimeError> {
        check_namespace(&labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>(), 1)
    }

    #[test]
    fn labels_follow_the_rule() {
        assert!(labels(&["users", "42"]).is_ok());
        for bad in [&[][..], &[""], &["a.b"], &["a", ""], &["x"; 17]] {
            assert!(matches!(labels(bad), Err(RuntimeError::InvalidNamespace(_))), "{bad:?}");
        }
    }

    #[test]
    fn filters_are_equality_or_operators_at_any_depth() {
        let read = |text: &str| conditions(&Json::parse(text).expect("JSON"));
        let one = |path: &[&str], condition: ItemMatch| {
            vec![(path.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>(), condition)]
        };
        assert_eq!(read(r#"{"c":"red"}"#).expect("valid"), one(&["c"], ItemMatch::Eq(Json::from("red"))));
        assert_eq!(read(r#"{"n":{"$gt":1}}"#).expect("valid"), one(&["n"], ItemMatch::Gt(Json::from(1))));
        assert_eq!(read(r#"{"n":{"x":1}}"#).expect("valid"), one(&["n", "x"], ItemMatch::Eq(Json::from(1))));
        assert_eq!(read(r#"{"n":{"x":{"$lt":1}}}"#).expect("valid"), one(&["n", "x"], ItemMatch::Lt(Json::from(1))));
        assert_eq!(read(r#"{"n":{}}"#).expect("valid"), one(&["n"], ItemMatch::Eq(Json::object())));
        for bad in [r#"{"n":{"$regex":1}}"#, "[]"] {
            assert!(matches!(read(bad), Err(RuntimeError::Invalid(_))), "{bad}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(20), "}".repeat(20));
        assert!(read(&deep).is_err());
    }
}
