//! Items: the long-term memory, called the store by clients (contract section 3.9).

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::json;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Body;
use crate::http::object::Object;
use crate::http::page;
use crate::http::query::Query;
use crate::model::{Fields, Json};
use crate::storage::{ItemFilter, ItemMatch, NamespaceFilter, NewItem};

const MAX_LABELS: usize = 16;
const MAX_LABEL_BYTES: usize = 256;
const MAX_KEY_BYTES: usize = 1024;
const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;
const MAX_CONDITIONS: usize = 32;
const MAX_TTL_MINUTES: f64 = 1e9;

/// `PUT /store/items`.
pub(super) async fn put(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let namespace = item_namespace(&mut body)?;
    let key = item_key(&mut body)?;
    let value = body.small_object("value", MAX_VALUE_BYTES)?.ok_or_else(|| body.missing("value"))?;
    check_index(&mut body)?;
    let ttl_minutes = body.number("ttl", 0.0..=MAX_TTL_MINUTES)?;
    let item = NewItem { namespace, key, value, ttl_minutes };
    state.runtime.storage().put_item(&caller.scope, item).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /store/items`: 200 and `null` when there is no such item.
pub(super) async fn get(State(state): State<AppState>, caller: Caller, query: Query) -> ApiResult {
    let key = query.one("key")?.ok_or(ApiError::ItemKeyMissing)?;
    let labels: Vec<String> =
        query.one("namespace")?.map(|text| text.split('.').map(str::to_owned).collect()).unwrap_or_default();
    check_namespace(&labels, 1)?;
    let refresh = query.bool("refresh_ttl")?.unwrap_or(true);
    let item = state.runtime.storage().get_item(&caller.scope, &labels, key, refresh).await?;
    Ok(Reply(item).into_response())
}

/// `DELETE /store/items`, with a body.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let namespace = item_namespace(&mut body)?;
    let key = item_key(&mut body)?;
    state.runtime.storage().delete_item(&caller.scope, &namespace, &key).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /store/items/search`.
pub(super) async fn search(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let prefix = body.strings("namespace_prefix", MAX_LABELS)?.unwrap_or_default();
    check_namespace(&prefix, 0)?;
    let filter = ItemFilter { prefix, conditions: conditions(&mut body)? };
    let window = page::of_body(&mut body, page::DEFAULT_LIMIT)?;
    // There is no index by meaning: a query changes nothing, as in a reference server without embeddings.
    body.string("query")?;
    let refresh = body.bool("refresh_ttl")?.unwrap_or(true);
    let items = state.runtime.storage().search_items(&caller.scope, &filter, window, refresh).await?;
    let items: Vec<Fields> = items
        .iter()
        .map(|item| {
            let mut fields = document::json(item)?.fields().unwrap_or_default();
            fields.insert("score".to_owned(), Json::null());
            Ok(fields)
        })
        .collect::<ApiResult<_>>()?;
    Ok(Reply(Fields::from_iter([("items".to_owned(), document::json(&items)?)])).into_response())
}

/// `POST /store/namespaces`.
pub(super) async fn namespaces(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let prefix = body.strings("prefix", MAX_LABELS)?.unwrap_or_default();
    let suffix = body.strings("suffix", MAX_LABELS)?.unwrap_or_default();
    check_namespace(&prefix, 0)?;
    check_namespace(&suffix, 0)?;
    let max_depth = body.integer("max_depth", 1..=i64::from(u16::MAX))?.map(|depth| depth as usize);
    let window = page::of_body(&mut body, 100)?;
    let filter = NamespaceFilter { prefix, suffix, max_depth };
    let namespaces = state.runtime.storage().list_namespaces(&caller.scope, &filter, window).await?;
    Ok(Reply(json!({"namespaces": namespaces})).into_response())
}

fn item_namespace(body: &mut Object) -> ApiResult<Vec<String>> {
    let labels = body.strings("namespace", MAX_LABELS)?.ok_or_else(|| body.missing("namespace"))?;
    check_namespace(&labels, 1)?;
    Ok(labels)
}

fn item_key(body: &mut Object) -> ApiResult<String> {
    let key = body.required_string("key")?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(ApiError::invalid(format!("key: expected 1 to {MAX_KEY_BYTES} bytes")));
    }
    Ok(key)
}

/// The rule of labels: non-empty, without dots.
fn check_namespace(labels: &[String], at_least: usize) -> ApiResult<()> {
    let refused = |text: String| Err(ApiError::InvalidNamespace(text));
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

/// `index` is `false` or a list of paths; there is no index by meaning to act on it.
fn check_index(body: &mut Object) -> ApiResult<()> {
    match body.json("index") {
        None => Ok(()),
        Some(index) if index.value().is_boolean() => Ok(()),
        Some(index) => {
            Object::body(&Json::from_fields([("index", &index)]))?.strings("index", MAX_CONDITIONS).map(|_| ())
        }
    }
}

/// `filter`: `{"key": value}` or `{"key": {"$gt": value, ..}}`; all must hold.
fn conditions(body: &mut Object) -> ApiResult<Vec<(String, ItemMatch)>> {
    let Some(filter) = body.object("filter")? else { return Ok(Vec::new()) };
    let mut conditions = Vec::new();
    for (key, want) in filter.fields().unwrap_or_default() {
        let operators = want.fields().filter(|fields| fields.keys().any(|name| name.starts_with('$')));
        let Some(operators) = operators else {
            conditions.push((key, ItemMatch::Eq(want)));
            continue;
        };
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
                    return Err(ApiError::invalid(format!("filter: expected operators of {known}")));
                }
            };
            conditions.push((key.clone(), condition));
        }
    }
    if conditions.len() > MAX_CONDITIONS {
        return Err(ApiError::invalid(format!("filter: at most {MAX_CONDITIONS} conditions")));
    }
    Ok(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[&str]) -> ApiResult<()> {
        check_namespace(&labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>(), 1)
    }

    #[test]
    fn labels_follow_the_rule() {
        assert!(labels(&["users", "42"]).is_ok());
        for bad in [&[][..], &[""], &["a.b"], &["a", ""], &["x"; 17]] {
            assert!(matches!(labels(bad), Err(ApiError::InvalidNamespace(_))), "{bad:?}");
        }
    }

    #[test]
    fn filters_are_equality_or_operators() {
        let read = |text: &str| conditions(&mut Object::body(&Json::parse(text).expect("JSON")).expect("an object"));
        let one = |key: &str, condition: ItemMatch| vec![(key.to_owned(), condition)];
        assert_eq!(read(r#"{"filter":{"c":"red"}}"#).expect("valid"), one("c", ItemMatch::Eq(Json::from("red"))));
        assert_eq!(read(r#"{"filter":{"n":{"$gt":1}}}"#).expect("valid"), one("n", ItemMatch::Gt(Json::from(1))));
        let object = Json::parse(r#"{"x":1}"#).expect("JSON");
        assert_eq!(read(r#"{"filter":{"n":{"x":1}}}"#).expect("valid"), one("n", ItemMatch::Eq(object)));
        assert!(read(r#"{"filter":{"n":{"$regex":1}}}"#).is_err());
        assert!(read(r#"{"filter":[]}"#).is_err());
    }
}
