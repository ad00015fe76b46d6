//! Who asks: a static API key, or nobody in particular when none is configured.

use std::fmt;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::extract::discard;
use crate::model::Scope;

/// Paths that answer without credentials (contract section 1.4).
const OPEN: [&str; 6] = ["/", "/ok", "/info", "/metrics", "/docs", "/openapi.json"];

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
    /// A name for records of who did what.
    pub(crate) actor: Option<String>,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> ApiResult<Caller> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| ApiError::Internal("request without a caller".into()))
    }
}

/// Middleware: lets a request pass with its [`Caller`], or refuses it.
pub(super) async fn authenticate(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    match identify(&state.settings.api_keys, request.uri().path(), request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            discard(request).await;
            error.into_response()
        }
    }
}

fn identify(keys: &[ApiKey], path: &str, headers: &HeaderMap) -> ApiResult<Caller> {
    let caller = |actor: Option<&str>| Caller { scope: Scope::default(), actor: actor.map(str::to_owned) };
    if keys.is_empty() || OPEN.contains(&path) {
        return Ok(caller(None));
    }
    let presented = presented(headers);
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
    if bool::from(known) { Ok(caller(Some("api-key"))) } else { Err(ApiError::Forbidden) }
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
        match identify(&[ApiKey::new("s3cret"), ApiKey::new("other")], path, &headers) {
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
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", ApiKey::new("s3cret")), "ApiKey(..)");
    }
}
