//! Values with a type tag, on the wire: base64 in JSON, or bytes behind it in a frame
//! (`application/vnd.session-store.frame`, [`frame`]). Both forms mean the same.

use axum::body::Body as HttpBody;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::extract::{parse, read_bytes};
use super::object::Object;
use crate::model::{Json, frame};
use crate::runtime::foreign::{INLINE, Sent, SentBytes, Value, hex, parse_hex};

pub(crate) const FRAME_TYPE: &str = "application/vnd.session-store.frame";

/// The longest type tag.
pub(crate) const MAX_TAG: usize = 64;

/// A body with values in it.
pub(crate) struct Typed {
    pub(crate) body: Object,
    pub(crate) bytes: Attached,
}

/// The bytes behind a frame's header; none behind JSON.
pub(crate) struct Attached(Option<Bytes>);

impl FromRequest<AppState> for Typed {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> ApiResult<Typed> {
        let is_frame = names_frame(request.headers().get(header::CONTENT_TYPE));
        let bytes = read_bytes(request, state).await?.1;
        if !is_frame {
            return Ok(Typed { body: Object::body(&parse(&bytes)?)?, bytes: Attached(None) });
        }
        let (text, rest) = frame::split(&bytes).map_err(|why| ApiError::invalid(format!("Request body: {why}")))?;
        let body = Object::body(&parse(text.as_bytes())?)?;
        let rest = bytes.slice(bytes.len() - rest.len()..);
        Ok(Typed { body, bytes: Attached(Some(rest)) })
    }
}

fn names_frame(value: Option<&HeaderValue>) -> bool {
    value.and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(FRAME_TYPE))
}

/// Reads a value: `{"type", "base64"}`, `{"type", "bytes": [offset, length]}` in a frame, or `{"type", "hash"}` of bytes the
/// thread has.
pub(crate) fn take(attached: &Attached, mut value: Object) -> ApiResult<Sent> {
    let tag = value.required_string("type")?;
    let legal = |c: char| c.is_ascii_alphanumeric() || "._+:/-".contains(c);
    if tag.is_empty() || tag.len() > MAX_TAG || !tag.chars().all(legal) {
        return Err(value.wrong("type", &format!("must be 1-{MAX_TAG} characters from A-Z a-z 0-9 . _ + : / -")));
    }
    let hash = value.string("hash")?;
    // Long, so not a `string`, which is bounded.
    let text = value.json("base64");
    let place = value.list("bytes", 2)?;
    let bytes = match (text, place, hash) {
        (Some(text), None, None) => {
            let text = text.as_str().map(str::to_owned).ok_or_else(|| value.wrong("base64", "expected a string"))?;
            let bytes = STANDARD.decode(text).map_err(|error| value.wrong("base64", &format!("{error}")))?;
            SentBytes::Bytes(Bytes::from(bytes))
        }
        (None, Some(place), None) => {
            let Attached(Some(attached)) = attached else {
                return Err(value.wrong("bytes", &format!("only in a body of the type {FRAME_TYPE}; use base64")));
            };
            let number = |at: usize| place.get(at).and_then(|n| usize::try_from(n.as_i64()?).ok());
            let range = number(0).zip(number(1)).and_then(|(from, length)| Some(from..from.checked_add(length)?));
            let range = range.filter(|range| range.end <= attached.len());
            let range = range.ok_or_else(|| value.wrong("bytes", "must be [offset, length] within the frame"))?;
            SentBytes::Bytes(attached.slice(range))
        }
        (None, None, Some(hash)) => {
            let hash = parse_hex(&hash).ok_or_else(|| value.wrong("hash", "must be 32 hexadecimal digits"))?;
            SentBytes::Known(hash)
        }
        _ => return Err(value.wrong("type", "one of base64, bytes and hash must stand beside it")),
    };
    Ok(Sent { tag, bytes })
}

/// Which form a client wants to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    frame: bool,
}

impl FromRequestParts<AppState> for Wanted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> ApiResult<Wanted> {
        Ok(Wanted::of(&parts.headers))
    }
}

impl Wanted {
    fn of(headers: &HeaderMap) -> Wanted {
        Wanted { frame: names_frame(headers.get(header::ACCEPT)) }
    }

    pub(crate) fn is_frame(self) -> bool {
        self.frame
    }

    pub(crate) fn answer(self) -> Answer {
        Answer { bytes: self.frame.then(Vec::new) }
    }
}

/// An answer with values in it.
pub(crate) struct Answer {
    /// Of a frame.
    bytes: Option<Vec<u8>>,
}

impl Answer {
    /// The members of a value.
    pub(crate) fn value(&mut self, value: &Value) -> Vec<(String, Json)> {
        let mut members = vec![("type".to_owned(), Json::from(value.tag.as_str()))];
        if value.bytes.len() > INLINE
            && let Some(hash) = &value.hash
        {
            members.push(("hash".to_owned(), Json::from(hex(hash))));
        }
        members.push(match &mut self.bytes {
            Some(all) => {
                let place = [all.len(), value.bytes.len()].map(|n| Json::from(i64::try_from(n).unwrap_or(i64::MAX)));
                all.extend_from_slice(&value.bytes);
                ("bytes".to_owned(), place.into_iter().collect())
            }
            None => ("base64".to_owned(), Json::from(STANDARD.encode(&value.bytes))),
        });
        members
    }

    pub(crate) fn reply(self, document: &Json) -> Response {
        let Some(bytes) = self.bytes else { return axum::Json(document).into_response() };
        let body = HttpBody::from(frame::join(&document.text(), &bytes));
        (StatusCode::OK, [(header::CONTENT_TYPE, HeaderValue::from_static(FRAME_TYPE))], body).into_response()
    }
}
