//! Which headers of a request go into the `configurable` of runs, as the operator says: patterns in which `*` stands for
//! anything, those after `!` for what is left out (contract section 1.4).

use axum::http::{HeaderMap, HeaderName};

use crate::model::{Fields, Json};

/// Never taken along, whatever the operator says: secrets, and what only this server sets.
const NEVER: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "x-api-key", "x-service-key", "x-tenant-id"];
/// Members of `configurable` with a meaning of their own, which a header must not take the place of.
const TAKEN: [&str; 8] =
    ["thread_id", "run_id", "assistant_id", "graph_id", "cron_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map"];
const TAKEN_PREFIXES: [&str; 2] = ["__", "langgraph_"];
/// The longest value that is taken along.
const MAX_VALUE: usize = 8 * 1024;

/// Patterns for names of headers; without any, no header matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderPatterns {
    include: Vec<String>,
    exclude: Vec<String>,
}

impl HeaderPatterns {
    /// Reads patterns separated by commas, as in `x-user-*, !x-user-secret`. `None` when one of them can match no name.
    pub fn parse(text: &str) -> Option<HeaderPatterns> {
        let mut patterns = HeaderPatterns::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (list, pattern) = match word.strip_prefix('!') {
                Some(rest) => (&mut patterns.exclude, rest.trim()),
                None => (&mut patterns.include, word),
            };
            // What stands between the stars is part of a name.
            HeaderName::from_bytes(pattern.replace('*', "x").as_bytes()).ok()?;
            list.push(pattern.to_ascii_lowercase());
        }
        Some(patterns)
    }

    /// By a name in lower case.
    fn matches(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| is_like(name, pattern));
        any(&self.include) && !any(&self.exclude) && !is_reserved(name)
    }

    /// The members for `config.configurable`: the headers' values by their names in lower case. What is no text, or very
    /// long, is left out.
    pub(super) fn taken(&self, headers: &HeaderMap) -> Fields {
        if self.include.is_empty() {
            return Fields::new();
        }
        let named = headers.iter().filter(|(name, _)| self.matches(name.as_str()));
        let texts = named.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let short = texts.filter(|(_, text)| text.len() <= MAX_VALUE);
        short.map(|(name, text)| (name.to_owned(), Json::from(text))).collect()
    }
}

fn is_reserved(name: &str) -> bool {
    NEVER.contains(&name) || TAKEN.contains(&name) || TAKEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a name is what a pattern says, `*` being any text.
fn is_like(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        for (name, pattern, want) in [
            ("x-user", "x-user", true),
            ("x-user-id", "x-user", false),
            ("x-user-id", "x-user-*", true),
            ("x-user", "x-user-*", false),
            ("x-user-id", "*", true),
            ("x-user-id", "*-id", true),
            ("x-id-user", "*-id", false),
            ("x-a-b-c", "x-*-b-*", true),
            ("x-a-b", "x-*-b-*", false),
            ("x-id", "x-*id*id", false),
            ("aba", "ab*ba", false),
            ("abba", "ab*ba", true),
        ] {
            assert_eq!(is_like(name, pattern), want, "{name} {pattern}");
        }
    }

    #[test]
    fn only_what_is_named_is_taken_and_never_a_secret() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-user-id", "7"),
            ("x-user-secret", "s"),
            ("authorization", "Bearer s"),
            ("x-api-key", "s"),
            ("cookie", "s"),
            ("proxy-authorization", "s"),
            ("checkpoint_id", "s"),
            ("langgraph_auth_user", "s"),
            ("user-agent", "it"),
        ] {
            headers.insert(name, value.parse().expect("a value"));
        }
        headers.insert("x-user-long", "x".repeat(MAX_VALUE + 1).parse().expect("a value"));
        headers.insert("x-user-odd", axum::http::HeaderValue::from_bytes(b"\xe4").expect("a value"));
        let taken = |text: &str| Json::from(&HeaderPatterns::parse(text).expect("patterns").taken(&headers)).text();
        assert_eq!(taken(""), "{}");
        assert_eq!(taken("!user-agent"), "{}");
        assert_eq!(taken(" X-User-*, !x-user-SECRET ,"), r#"{"x-user-id":"7"}"#);
        assert_eq!(taken("*, !x-*"), r#"{"user-agent":"it"}"#);
        for bad in ["x user", "x-user-*, !", "x:y", "ä"] {
            assert_eq!(HeaderPatterns::parse(bad), None, "{bad}");
        }
    }
}
