//! [`Query`]: the parameters of a URL. Keys may repeat, a value may be a JSON array, booleans are `1/0/true/false`.

use std::ops::RangeInclusive;

use axum::extract::{FromRequestParts, Query as AxumQuery};
use axum::http::request::Parts;

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::object::{check_range, check_text, parse_choice};

/// The decoded parameters, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// The last value of a key; an empty one counts as absent.
    pub(crate) fn one(&self, key: &str) -> ApiResult<Option<&str>> {
        #[cfg(test)]
        super::tests::spy::parameter(key);
        let value = self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        let value = value.filter(|value| !value.is_empty());
        if let Some(text) = value {
            check_text(key, text)?;
        }
        Ok(value)
    }

    /// All values of a key: repeated, separated by commas, or as one JSON array.
    pub(crate) fn all(&self, key: &str) -> ApiResult<Option<Vec<String>>> {
        #[cfg(test)]
        super::tests::spy::parameter(key);
        let mut values = Vec::new();
        for (_, value) in self.0.iter().filter(|(name, _)| name == key) {
            check_text(key, value)?;
            match serde_json::from_str::<Vec<String>>(value) {
                Ok(items) => values.extend(items),
                Err(_) => values.extend(value.split(',').map(|item| item.trim().to_owned())),
            }
        }
        values.retain(|value| !value.is_empty());
        if values.len() > 1000 {
            return Err(ApiError::invalid(format!("{key}: at most 1000 values")));
        }
        Ok((!values.is_empty()).then_some(values))
    }

    /// All values of a key as they are, empty ones too.
    pub(crate) fn repeated(&self, key: &str) -> ApiResult<Vec<&str>> {
        #[cfg(test)]
        super::tests::spy::parameter(key);
        let values: Vec<&str> =
            self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect();
        for value in &values {
            check_text(key, value)?;
        }
        if values.len() > 1000 {
            return Err(ApiError::invalid(format!("{key}: at most 1000 values")));
        }
        Ok(values)
    }

    pub(crate) fn bool(&self, key: &str) -> ApiResult<Option<bool>> {
        let Some(text) = self.one(key)? else { return Ok(None) };
        let words = ["1", "0", "true", "false"];
        parse_choice(key, &text.to_ascii_lowercase(), &words, parse_bool).map(Some)
    }

    /// A boolean that is true when its key is there without a value: `?pretty`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        #[cfg(test)]
        super::tests::spy::parameter(key);
        self.0.iter().any(|(name, value)| name == key && (value.is_empty() || parse_bool(value) != Some(false)))
    }

    pub(crate) fn integer(&self, key: &str, range: RangeInclusive<i64>) -> ApiResult<Option<i64>> {
        let Some(text) = self.one(key)? else { return Ok(None) };
        let Ok(number) = text.parse() else {
            return Err(ApiError::invalid(format!("{key}: expected an integer, got '{}'", text.escape_default())));
        };
        check_range(key, number, &range)?;
        Ok(Some(number))
    }

    pub(crate) fn choice<T>(
        &self,
        key: &str,
        words: &[&str],
        parse: impl Fn(&str) -> Option<T>,
    ) -> ApiResult<Option<T>> {
        let Some(text) = self.one(key)? else { return Ok(None) };
        parse_choice(key, text, words, parse).map(Some)
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

impl FromRequestParts<AppState> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> ApiResult<Query> {
        AxumQuery::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|AxumQuery(pairs)| Query(pairs))
            .map_err(|error| ApiError::invalid(format!("Invalid query string: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Query {
        /// For tests.
        pub(crate) fn of(text: &str) -> Query {
            let uri = format!("/x?{text}").parse().expect("a URI");
            Query(AxumQuery::<Vec<(String, String)>>::try_from_uri(&uri).expect("a query").0)
        }
    }

    fn query(text: &str) -> Query {
        Query::of(text)
    }

    #[test]
    fn lists_may_repeat_or_be_json_or_hold_commas() {
        let want = Some(vec!["values".to_owned(), "updates".to_owned()]);
        for text in [
            "stream_mode=values&stream_mode=updates",
            "stream_mode=%5B%22values%22%2C%22updates%22%5D",
            "stream_mode=values,updates",
        ] {
            assert_eq!(query(text).all("stream_mode").expect("valid"), want, "{text}");
        }
        assert_eq!(query("x=1").all("stream_mode").expect("valid"), None);
    }

    #[test]
    fn booleans_have_four_spellings_and_flags_need_none() {
        for (text, want) in [("w=1", true), ("w=true", true), ("w=True", true), ("w=0", false), ("w=false", false)] {
            assert_eq!(query(text).bool("w").expect("valid"), Some(want), "{text}");
        }
        assert!(query("w=yes").bool("w").is_err());
        assert!(query("pretty").flag("pretty") && query("pretty=1").flag("pretty"));
        assert!(!query("pretty=0").flag("pretty") && !query("x").flag("pretty"));
    }

    #[test]
    fn numbers_and_nul_are_checked() {
        assert_eq!(query("limit=5").integer("limit", 1..=10).expect("valid"), Some(5));
        for text in ["limit=0", "limit=x", "limit=1.5", "limit=99999999999999999999"] {
            assert!(query(text).integer("limit", 1..=10).is_err(), "{text}");
        }
        assert!(query("reason=a%00b").one("reason").is_err());
    }
}
