//! Finding threads: filters, order, columns, extracted values (contract section 3.2).

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contain::contains;
use crate::http::document::{self, THREAD_COLUMNS};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, thread_id};
use crate::http::object::Object;
use crate::http::page;
use crate::http::select::{Columns, Extract};
use crate::model::{Fields, HeadView, Json, Thread, ThreadStatus};
use crate::storage::{ClosedFilter, Page, ThreadFilter, ThreadSort};

/// The most ids of a filter.
pub(in crate::http) const MAX_IDS: usize = 1000;
/// Threads read at once, and in all, while a filter on values is applied.
const SCAN_PAGE: i64 = 200;
const SCAN_MAX: i64 = 20_000;
pub(in crate::http) const SORTS: [&str; 5] = ["thread_id", "status", "created_at", "updated_at", "state_updated_at"];
pub(in crate::http) const STATUSES: [&str; 4] = ["idle", "busy", "interrupted", "error"];
pub(in crate::http) const CLOSED: [&str; 4] = ["open", "ended", "archived", "any"];

/// What a search asks for.
struct Search {
    filter: ThreadFilter,
    sort: ThreadSort,
    ascending: bool,
    /// Contained in the values of the head.
    values: Option<Json>,
    /// Contained in none of the metadata.
    exclude: Vec<Json>,
}

/// `POST /threads/search`.
pub(super) async fn search(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let window = page::of_body(&mut body, page::DEFAULT_LIMIT)?;
    let columns = Columns::of_body(&mut body, &THREAD_COLUMNS)?;
    let extract = Extract::of_body(&mut body, &THREAD_COLUMNS)?;
    let search = Search::read(&mut body)?;
    let mut rows = if search.scans() {
        search.scan(&state, &caller, page::with_one_more(window)).await?
    } else {
        search.page(&state, &caller, page::with_one_more(window)).await?
    };
    let more = page::cut(&mut rows, window);
    let of_head = ["values", "interrupts", "error"];
    let documents = if of_head.iter().any(|name| columns.includes(name) || extract.needs(name)) {
        document::threads(&state.runtime, &caller, &rows).await?
    } else {
        rows.iter().map(|row| document::thread(row, &HeadView::default())).collect::<ApiResult<Vec<Fields>>>()?
    };
    let documents: Vec<Fields> = documents
        .into_iter()
        .map(|row| {
            let extracted = (!extract.is_empty()).then(|| extract.apply(&row));
            let mut row = columns.apply(row);
            row.extend(extracted.map(|values| ("extracted".to_owned(), values)));
            row
        })
        .collect();
    Ok(page::reply(&documents, more, window))
}

/// `POST /threads/count`.
pub(super) async fn count(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let search = Search::read(&mut body)?;
    let count = if search.scans() {
        search.scan(&state, &caller, Page { limit: i64::MAX, offset: 0 }).await?.len() as i64
    } else {
        state.runtime.storage().count_threads(&caller.scope, &search.filter).await?
    };
    Ok(Reply(count).into_response())
}

impl Search {
    fn read(body: &mut Object) -> ApiResult<Search> {
        let ids = body.strings("ids", MAX_IDS)?;
        let ids = ids
            .map(|ids| ids.iter().map(|id| thread_id(id).map_err(bad_id)).collect::<ApiResult<Vec<_>>>())
            .transpose()?;
        let status = body.choice("status", &STATUSES, ThreadStatus::parse)?;
        let closed = body.choice("closed", &CLOSED, parse_closed)?.unwrap_or_default();
        let metadata = body.object("metadata")?;
        let exclude = match body.json("exclude_metadata") {
            Some(one) if one.is_object() => vec![one],
            Some(many) => {
                let mut again = Object::body(&Json::from_fields([("exclude_metadata", &many)]))?;
                let objects = again.objects("exclude_metadata", MAX_IDS)?.unwrap_or_default();
                objects.into_iter().map(|object| Json::from(&object.rest())).collect()
            }
            None => Vec::new(),
        };
        Ok(Search {
            filter: ThreadFilter { ids, metadata, status, closed },
            sort: body.choice("sort_by", &SORTS, parse_sort)?.unwrap_or_default(),
            ascending: page::ascending(body)?,
            values: body.object("values")?.filter(|values| values.fields().is_some_and(|fields| !fields.is_empty())),
            exclude,
        })
    }

    /// Whether storage cannot decide alone.
    fn scans(&self) -> bool {
        self.values.is_some() || !self.exclude.is_empty()
    }

    async fn page(&self, state: &AppState, caller: &Caller, window: Page) -> ApiResult<Vec<Thread>> {
        let storage = state.runtime.storage();
        Ok(storage.search_threads(&caller.scope, &self.filter, self.sort, self.ascending, window).await?)
    }

    /// Reads pages of what storage finds and keeps what also matches here, until the window is full.
    async fn scan(&self, state: &AppState, caller: &Caller, window: Page) -> ApiResult<Vec<Thread>> {
        let mut kept = Vec::new();
        let mut skip = window.offset;
        for offset in (0..SCAN_MAX).step_by(SCAN_PAGE as usize) {
            let rows = self.page(state, caller, Page { limit: SCAN_PAGE, offset }).await?;
            let last = (rows.len() as i64) < SCAN_PAGE;
            for row in self.matching(state, caller, rows).await? {
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                kept.push(row);
                if kept.len() as i64 >= window.limit {
                    return Ok(kept);
                }
            }
            if last {
                return Ok(kept);
            }
        }
        Err(ApiError::BadRequest(format!(
            "More than {SCAN_MAX} threads would have to be read: narrow the search by metadata, status or ids"
        )))
    }

    async fn matching(&self, state: &AppState, caller: &Caller, mut rows: Vec<Thread>) -> ApiResult<Vec<Thread>> {
        rows.retain(|row| !self.exclude.iter().any(|part| contains(row.metadata.value(), part.value())));
        let Some(part) = &self.values else { return Ok(rows) };
        let heads = state.runtime.head_views(&caller.scope, &rows).await?;
        let holds = |head: &HeadView| head.values.as_ref().is_some_and(|whole| contains(whole.value(), part.value()));
        Ok(rows.into_iter().zip(heads).filter(|(_, head)| holds(head)).map(|(row, _)| row).collect())
    }
}

/// A malformed id of a filter is a 400 in the contract.
fn bad_id(error: ApiError) -> ApiError {
    match error {
        ApiError::Invalid(text) => ApiError::BadRequest(format!("ids: {text}")),
        other => other,
    }
}

/// Unless it is asked for, all but archived threads.
fn parse_closed(word: &str) -> Option<ClosedFilter> {
    Some(match word {
        "open" => ClosedFilter::Open,
        "ended" => ClosedFilter::Ended,
        "archived" => ClosedFilter::Archived,
        "any" => ClosedFilter::Any,
        _ => return None,
    })
}

fn parse_sort(word: &str) -> Option<ThreadSort> {
    Some(match word {
        "thread_id" => ThreadSort::ThreadId,
        "status" => ThreadSort::Status,
        "created_at" => ThreadSort::CreatedAt,
        "updated_at" => ThreadSort::UpdatedAt,
        "state_updated_at" => ThreadSort::StateUpdatedAt,
        _ => return None,
    })
}
