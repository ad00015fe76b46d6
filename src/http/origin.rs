//! Which web pages may call: the defence against DNS rebinding, by which a page makes a browser ask a server on the
//! user's own machine under the page's name. Programs that are no browsers send no `Origin` and are not concerned.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header};

use super::error::{ApiError, ApiResult};

/// Refuses a request that a page of another origin sent: neither on this machine nor one of `allowed` (`*`: all).
pub(crate) fn check(allowed: &[String], headers: &HeaderMap) -> ApiResult<()> {
    for origin in headers.get_all(header::ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let is_known = |known: &String| known == "*" || known.eq_ignore_ascii_case(&origin);
        if !is_local(&origin) && !allowed.iter().any(is_known) {
            return Err(ApiError::ForbiddenOrigin(origin.chars().take(256).collect()));
        }
    }
    Ok(())
}

/// A page of a server on this machine. The name is the one in the browser's address bar: a rebound name is not local.
fn is_local(origin: &str) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    is_web && (host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(allowed: &[&str], origins: &[&'static str]) -> bool {
        let allowed: Vec<String> = allowed.iter().map(|&origin| origin.to_owned()).collect();
        let header = |origin: &&'static str| (header::ORIGIN, origin.parse().expect("a value"));
        let mut headers = HeaderMap::new();
        for (name, value) in origins.iter().map(header) {
            headers.append(name, value);
        }
        check(&allowed, &headers).is_ok()
    }

    #[test]
    fn only_local_and_listed_pages_may_call() {
        assert!(passes(&[], &[]), "no browser");
        for local in ["http://localhost", "http://LOCALHOST:3000", "https://127.0.0.1:8123", "http://[::1]:5173"] {
            assert!(passes(&[], &[local]), "{local}");
        }
        for foreign in [
            "https://evil.example",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example:8123",
            "http://10.0.0.7",
            "null",
            "",
        ] {
            assert!(!passes(&["https://app.example.com"], &[foreign]), "{foreign}");
        }
        assert!(passes(&["https://app.example.com"], &["https://App.example.com"]));
        assert!(!passes(&["https://app.example.com"], &["http://app.example.com"]), "another scheme");
        assert!(!passes(&["https://app.example.com"], &["https://app.example.com:444"]), "another port");
        assert!(!passes(&[], &["http://localhost", "https://evil.example"]), "all of them count");
        assert!(passes(&["*"], &["https://evil.example", "null"]));
    }
}
