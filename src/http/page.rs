//! Windows of lists: limits, offsets, and the pagination headers (contract section 1.3).

use std::ops::RangeInclusive;

use axum::Json as Reply;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiResult;
use super::object::Object;
use super::query::Query;
use crate::storage::Page;

/// How many rows a client may ask for at once.
pub(crate) const LIMITS: RangeInclusive<i64> = 1..=1000;
pub(crate) const OFFSETS: RangeInclusive<i64> = 0..=1_000_000_000;
/// Rows of a list nobody gave a limit for.
pub(crate) const DEFAULT_LIMIT: i64 = 10;

pub(crate) const X_PAGINATION_NEXT: HeaderName = HeaderName::from_static("x-pagination-next");
pub(crate) const X_PAGINATION_TOTAL: HeaderName = HeaderName::from_static("x-pagination-total");

pub(crate) fn of_body(body: &mut Object, default_limit: i64) -> ApiResult<Page> {
    Ok(Page {
        limit: body.integer("limit", LIMITS)?.unwrap_or(default_limit),
        offset: body.integer("offset", OFFSETS)?.unwrap_or(0),
    })
}

pub(crate) fn of_query(query: &Query) -> ApiResult<Page> {
    Ok(Page {
        limit: query.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT),
        offset: query.integer("offset", OFFSETS)?.unwrap_or(0),
    })
}

/// `sort_order`: anything but `asc` is descending.
pub(crate) fn ascending(body: &mut Object) -> ApiResult<bool> {
    Ok(body.string("sort_order")?.is_some_and(|order| order.eq_ignore_ascii_case("asc")))
}

/// The window to read so that [`reply`] can tell whether more rows follow.
pub(crate) fn with_one_more(page: Page) -> Page {
    Page { limit: page.limit + 1, offset: page.offset }
}

/// Cuts rows read through [`with_one_more`] to the page. True when more follow.
pub(crate) fn cut<T>(rows: &mut Vec<T>, page: Page) -> bool {
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    more
}

/// The rows of a page with the headers that say whether more follow.
pub(crate) fn reply<T: Serialize>(rows: &[T], more: bool, page: Page) -> Response {
    let next = page.offset + page.limit;
    let total = if more { next + 1 } else { page.offset + rows.len() as i64 };
    let mut response = Reply(rows).into_response();
    response.headers_mut().insert(X_PAGINATION_TOTAL, HeaderValue::from(total));
    if more {
        response.headers_mut().insert(X_PAGINATION_NEXT, HeaderValue::from(next));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_whether_more_follows() {
        let page = Page { limit: 2, offset: 4 };
        let mut rows = vec![1, 2, 3];
        let more = cut(&mut rows, page);
        let response = reply(&rows, more, page);
        assert_eq!(response.headers()[X_PAGINATION_NEXT], "6");
        assert_eq!(response.headers()[X_PAGINATION_TOTAL], "7");
        let mut rows = vec![1];
        let more = cut(&mut rows, page);
        let response = reply(&rows, more, page);
        assert!(!response.headers().contains_key(X_PAGINATION_NEXT));
        assert_eq!(response.headers()[X_PAGINATION_TOTAL], "5");
    }
}
