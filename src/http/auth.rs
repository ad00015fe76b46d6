//! Who asks: a static API key, or nobody in particular when none is configured.

use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Query, Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN, UPGRADE};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use super::AppState;
use super::carried::carried;
use super::error::{ApiError, ApiResult};
use super::extract::discard;
use super::object::Object;
use crate::model::{Fields, Scope};

/// Who acts, as the client says: a label for records of who did what, trusted for nothing else.
const X_ACTOR: &str = "x-actor";
/// The longest such label in bytes.
const MAX_ACTOR: usize = 256;

/// Paths that answer without credentials (contract section 1.4).
pub(super) const OPEN: [&str; 7] = ["/", "/ok", "/ready", "/info", "/metrics", "/docs", "/openapi.json"];

/// A secret that clients present. Kept as a hash; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(blake3::Hash);

impl ApiKey {
    pub fn new(secret: &str) -> ApiKey {
        ApiKey(blake3::hash(secret.as_bytes()))
    }

    /// Compares in a time that does not depend on the secret.
    fn matches(&self, presented: &[u8]) -> Choice {
        self.0.as_bytes()[..].ct_eq(&blake3::hash(presented).as_bytes()[..])
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// The one who sent a request, and what it may see.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) scope: Scope,
    /// A name for records of who did what: the label the client gave, else how it proved who it is.
    pub(crate) actor: Option<String>,
    /// What runs that it starts take along in their `configurable`.
    pub(crate) carried: Arc<Fields>,
}

/// Who acted and why, for records.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attribution {
    pub(crate) actor: Option<String>,
    pub(crate) reason: Option<String>,
}

impl Caller {
    /// Takes `actor` and `reason` from a body. Without `actor` it is the caller's.
    pub(crate) fn attribution(&self, body: &mut Object) -> ApiResult<Attribution> {
        let actor = body.string("actor")?.map(|actor| label("actor", &actor)).transpose()?.flatten();
        Ok(Attribution { actor: actor.or_else(|| self.actor.clone()), reason: body.string("reason")? })
    }
}

/// Reads a label. An empty one is none.
fn label(name: &str, text: &str) -> ApiResult<Option<String>> {
    let text = text.trim();
    if text.len() > MAX_ACTOR {
        return Err(ApiError::invalid(format!("{name}: longer than {MAX_ACTOR} bytes")));
    }
    if text.contains(char::is_control) {
        return Err(ApiError::invalid(format!("{name}: must not contain control characters")));
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// The label in the header `x-actor`.
fn labelled(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let Some(value) = headers.get(X_ACTOR) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes());
    label(X_ACTOR, text.map_err(|_| ApiError::invalid(format!("{X_ACTOR}: must be UTF-8")))?)
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> ApiResult<Caller> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| ApiError::Internal("request without a caller".into()))
    }
}

/// The one who opens a WebSocket, or why not: a browser learns it from how the socket closes.
pub(crate) struct SocketCaller(pub(crate) ApiResult<Caller>);

/// A refusal on its way to [`SocketCaller`]. Whoever asks for a [`Caller`] gets none.
#[derive(Clone)]
struct RefusedSocket {
    is_unknown: bool,
}

impl FromRequestParts<AppState> for SocketCaller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<SocketCaller, Self::Rejection> {
        let refused = parts.extensions.get::<RefusedSocket>().map(|refused| refused.is_unknown);
        Ok(SocketCaller(match refused {
            Some(true) => Err(ApiError::Unauthorized),
            Some(false) => Err(ApiError::Forbidden),
            None => Caller::from_request_parts(parts, state).await,
        }))
    }
}

/// The route of protocol v2's WebSocket.
const SOCKET: &str = "/threads/{thread_id}/stream/events";

fn is_socket(request: &Request) -> bool {
    let upgrade = request.headers().get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    upgrade && request.extensions().get::<MatchedPath>().is_some_and(|path| path.as_str() == SOCKET)
}

/// The keys that a browser, which cannot set headers on a socket, may present: `?api_key=`, or a cookie `api_key` that
/// comes from a page of this very host (cookies are sent by pages of other hosts, too).
fn socket_keys(request: &Request) -> Vec<Vec<u8>> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).map(|query| query.0).unwrap_or_default();
    let mut keys: Vec<Vec<u8>> = query
        .into_iter()
        .filter(|(name, _)| matches!(name.as_str(), "api_key" | "x-api-key"))
        .map(|(_, value)| value.into_bytes())
        .collect();
    let headers = request.headers();
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok()?.parse::<http::Uri>().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_own = match (headers.contains_key(ORIGIN), origin) {
        (false, _) => true,
        (true, Some(origin)) => origin.authority().map(|authority| authority.as_str()) == host && host.is_some(),
        (true, None) => false,
    };
    if is_own {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|cookie| cookie.to_str().ok());
        let pairs = cookies.flat_map(|cookie| cookie.split(';')).filter_map(|pair| pair.trim().split_once('='));
        keys.extend(pairs.filter(|(name, _)| *name == "api_key").map(|(_, value)| value.as_bytes().to_vec()));
    }
    keys.retain(|key| !key.is_empty());
    keys
}

/// Middleware: lets a request pass with its [`Caller`], or refuses it.
pub(super) async fn authenticate(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let is_socket = is_socket(&request);
    let more = if is_socket { socket_keys(&request) } else { Vec::new() };
    match identify(&state.settings.api_keys, request.uri().path(), request.headers(), &more) {
        Ok(caller) => {
            let carried = Arc::new(carried(request.headers(), &state.settings.configurable_headers));
            request.extensions_mut().insert(Caller { carried, ..caller });
            next.run(request).await
        }
        Err(error) if is_socket => {
            let is_unknown = matches!(error, ApiError::Unauthorized);
            request.extensions_mut().insert(RefusedSocket { is_unknown });
            next.run(request).await
        }
        Err(error) => {
            discard(request).await;
            error.into_response()
        }
    }
}

fn identify(keys: &[ApiKey], path: &str, headers: &HeaderMap, more: &[Vec<u8>]) -> ApiResult<Caller> {
    let caller = |identity: Option<&str>| {
        let actor = labelled(headers)?.or_else(|| identity.map(str::to_owned));
        Ok(Caller { scope: Scope::default(), actor, carried: Arc::default() })
    };
    if keys.is_empty() || OPEN.contains(&path) {
        return caller(None);
    }
    let mut presented = presented(headers);
    presented.extend(more.iter().map(Vec::as_slice));
    if presented.is_empty() {
        return Err(ApiError::Unauthorized);
    }
    // No early exit: the time tells nothing about which key came close.
    let mut known = Choice::from(0);
    for presented in presented {
        for key in keys {
            known |= key.matches(presented);
        }
    }
    if bool::from(known) { caller(Some("api-key")) } else { Err(ApiError::Forbidden) }
}

/// The keys a request presents: `x-api-key` and `Authorization: Bearer`.
fn presented(headers: &HeaderMap) -> Vec<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    let key = headers.get("x-api-key").map(|value| value.as_bytes());
    key.into_iter().chain(bearer).filter(|key| !key.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, pairs: &[(&'static str, &'static str)]) -> u16 {
        let headers = pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect();
        match identify(&[ApiKey::new("s3cret"), ApiKey::new("other")], path, &headers, &[]) {
            Ok(_) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn both_headers_carry_the_key() {
        assert_eq!(status("/threads", &[("x-api-key", "s3cret")]), 200);
        assert_eq!(status("/threads", &[("x-api-key", "other")]), 200);
        assert_eq!(status("/threads", &[("authorization", "Bearer s3cret")]), 200);
        assert_eq!(status("/threads", &[("authorization", "bearer  s3cret")]), 200);
    }

    #[test]
    fn missing_is_401_and_wrong_is_403_and_a_few_paths_are_open() {
        assert_eq!(status("/threads", &[]), 401);
        assert_eq!(status("/threads", &[("authorization", "Basic s3cret")]), 401);
        assert_eq!(status("/threads", &[("x-api-key", "s3cre")]), 403);
        assert_eq!(status("/threads", &[("authorization", "Bearer nope")]), 403);
        for path in OPEN {
            assert_eq!(status(path, &[]), 200, "{path}");
        }
        assert_eq!(status("/ok/x", &[]), 401);
    }

    #[test]
    fn an_actor_is_a_bounded_label() {
        let actor = |key: &[ApiKey], value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", "s3cret".parse().expect("a value"));
            headers.insert(X_ACTOR, axum::http::HeaderValue::from_bytes(value).expect("a value"));
            identify(key, "/threads", &headers, &[]).map(|caller| caller.actor)
        };
        let key = [ApiKey::new("s3cret")];
        assert_eq!(actor(&[], " Zoë ".as_bytes()).expect("a label").as_deref(), Some("Zoë"));
        assert_eq!(actor(&key, b"alice").expect("a label").as_deref(), Some("alice"));
        assert_eq!(actor(&key, b" ").expect("none").as_deref(), Some("api-key"));
        assert_eq!(actor(&[], b"").expect("none"), None);
        for bad in [&[b'a'; MAX_ACTOR + 1][..], b"\xff", b"a\tb"] {
            assert!(matches!(actor(&key, bad), Err(ApiError::Invalid(text)) if text.starts_with("x-actor: ")));
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", ApiKey::new("s3cret")), "ApiKey(..)");
    }
}
