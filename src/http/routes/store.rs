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
use crate::model::{Fields, FoundItem, Indexing, Json};
use crate::runtime::{ItemSearch, PutItem};
use crate::storage::NamespaceFilter;

/// More labels or paths than anybody may send; the runtime has the rules.
const MAX_LIST: usize = 64;
const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;
const MAX_TTL_MINUTES: f64 = 1e9;

/// `PUT /store/items`.
pub(super) async fn put(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let (namespace, key) = place(&mut body)?;
    let value = body.small_object("value", MAX_VALUE_BYTES)?.ok_or_else(|| body.missing("value"))?;
    let indexing = indexing(&mut body)?;
    let ttl_minutes = body.number("ttl", 0.0..=MAX_TTL_MINUTES)?;
    let item = PutItem { namespace, key, value, indexing, ttl_minutes };
    state.runtime.put_item(&caller.scope, item).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /store/items`: 200 and `null` when there is no such item.
pub(super) async fn get(State(state): State<AppState>, caller: Caller, query: Query) -> ApiResult {
    let key = query.one("key")?.ok_or(ApiError::ItemKeyMissing)?;
    let labels: Vec<String> =
        query.one("namespace")?.map(|text| text.split('.').map(str::to_owned).collect()).unwrap_or_default();
    let item = state.runtime.get_item(&caller.scope, &labels, key, query.bool("refresh_ttl")?).await?;
    Ok(Reply(item).into_response())
}

/// `DELETE /store/items`, with a body.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let (namespace, key) = place(&mut body)?;
    state.runtime.delete_item(&caller.scope, &namespace, &key).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /store/items/search`.
pub(super) async fn search(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let search = ItemSearch {
        prefix: body.strings("namespace_prefix", MAX_LIST)?.unwrap_or_default(),
        filter: body.object("filter")?,
        query: body.string("query")?,
        page: page::of_body(&mut body, page::DEFAULT_LIMIT)?,
        refresh: body.bool("refresh_ttl")?,
    };
    let found = state.runtime.search_items(&caller.scope, search).await?;
    let items: Vec<Fields> = found
        .iter()
        .map(|FoundItem { item, score }| {
            let mut fields = document::json(item)?.fields().unwrap_or_default();
            fields.insert("score".to_owned(), document::json(score)?);
            Ok(fields)
        })
        .collect::<ApiResult<_>>()?;
    Ok(Reply(Fields::from_iter([("items".to_owned(), document::json(&items)?)])).into_response())
}

/// `POST /store/namespaces`.
pub(super) async fn namespaces(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let prefix = body.strings("prefix", MAX_LIST)?.unwrap_or_default();
    let suffix = body.strings("suffix", MAX_LIST)?.unwrap_or_default();
    let max_depth = body.integer("max_depth", 1..=i64::from(u16::MAX))?.map(|depth| depth as usize);
    let window = page::of_body(&mut body, 100)?;
    let filter = NamespaceFilter { prefix, suffix, max_depth };
    let namespaces = state.runtime.list_namespaces(&caller.scope, &filter, window).await?;
    Ok(Reply(json!({"namespaces": namespaces})).into_response())
}

/// Namespace and key of an item.
fn place(body: &mut Object) -> ApiResult<(Vec<String>, String)> {
    let labels = body.strings("namespace", MAX_LIST)?.ok_or_else(|| body.missing("namespace"))?;
    Ok((labels, body.required_string("key")?))
}

/// `index`: `false`, or a list of paths; `true` is what is done anyway.
fn indexing(body: &mut Object) -> ApiResult<Indexing> {
    let Some(index) = body.json("index") else { return Ok(Indexing::Default) };
    if let Some(wanted) = index.value().as_bool() {
        return Ok(if wanted { Indexing::Default } else { Indexing::Never });
    }
    let paths = Object::body(&Json::from_fields([("index", &index)]))?.strings("index", MAX_LIST);
    Ok(Indexing::Paths(paths?.unwrap_or_default()))
}
