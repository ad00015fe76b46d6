//! Conditions that are checked in Rust because a backend cannot index them: JSON containment with the semantics of
//! Postgres' `@>`, conditions on items, and namespaces compared label by label. Both backends give the same answers
//! because both ask here.

use std::cmp::Ordering;

use super::Page;
use super::items::{ItemMatch, NamespaceFilter};
use crate::model::Json;

/// The label of a pattern that stands for any.
const ANY_LABEL: &str = "*";

/// Whether `whole @> part` holds in Postgres.
pub(crate) fn contains(whole: &Json, part: &Json) -> bool {
    // The one exception jsonb makes: a top-level array contains a bare scalar.
    if whole.is_array() && !part.is_array() && !part.is_object() {
        return whole.items().is_some_and(|items| items.iter().any(|item| equal(item, part)));
    }
    contains_inner(whole, part)
}

fn contains_inner(whole: &Json, part: &Json) -> bool {
    if let Some(wanted) = part.fields() {
        let Some(present) = whole.fields() else { return false };
        return wanted.iter().all(|(key, value)| present.get(key).is_some_and(|held| contains_inner(held, value)));
    }
    if let Some(wanted) = part.items() {
        let Some(present) = whole.items() else { return false };
        return wanted.iter().all(|value| present.iter().any(|held| contains_inner(held, value)));
    }
    equal(whole, part)
}

/// Equality of jsonb: numbers by value, objects without order.
pub(crate) fn equal(a: &Json, b: &Json) -> bool {
    if let (Some(a), Some(b)) = (a.fields(), b.fields()) {
        return a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| equal(value, other)));
    }
    if let (Some(a), Some(b)) = (a.items(), b.items()) {
        return a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(a, b));
    }
    if a.is_object() || b.is_object() || a.is_array() || b.is_array() {
        return false;
    }
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => a == b,
        (None, None) => match (decimal(a.as_raw().get()), decimal(b.as_raw().get())) {
            (Some(a), Some(b)) => a == b,
            (None, None) => a.as_raw().get().trim() == b.as_raw().get().trim(),
            _ => false,
        },
        _ => false,
    }
}

/// A number as (negative, digits without zeros around them, exponent of the first digit): equal numbers have equal
/// parts, also beyond 64 bits.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let text = text.trim();
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let leading = digits.len() - digits.trim_start_matches('0').len();
    let significant = digits.trim_matches('0').to_owned();
    if significant.is_empty() {
        return Some((false, significant, 0));
    }
    let point = i64::try_from(whole.len()).ok()? - i64::try_from(leading).ok()?;
    Some((negative, significant, exponent.saturating_add(point)))
}

/// Whether `document` has every top-level member of `wanted` with an equal value.
pub(crate) fn has_members(document: &Json, wanted: &Json) -> bool {
    let (Some(document), Some(wanted)) = (document.fields(), wanted.fields()) else { return false };
    wanted.iter().all(|(key, value)| document.get(key).is_some_and(|held| equal(held, value)))
}

/// Whether an item's value meets all conditions.
pub(crate) fn meets(value: &Json, conditions: &[(Vec<String>, ItemMatch)]) -> bool {
    if conditions.is_empty() {
        return true;
    }
    let fields = value.fields().unwrap_or_default();
    conditions.iter().all(|(path, condition)| {
        let (first, deeper) = path.split_first().map_or((None, path.as_slice()), |(key, rest)| (fields.get(key), rest));
        let held = deeper.iter().try_fold(first.cloned(), |held, key| Some(held?.get(key))).flatten();
        let held = held.as_ref();
        match condition {
            ItemMatch::Eq(wanted) => held.is_some_and(|held| equal(held, wanted)),
            ItemMatch::Ne(wanted) => !held.is_some_and(|held| equal(held, wanted)),
            ItemMatch::Gt(wanted) => order(held, wanted) == Some(Ordering::Greater),
            ItemMatch::Gte(wanted) => matches!(order(held, wanted), Some(Ordering::Greater | Ordering::Equal)),
            ItemMatch::Lt(wanted) => order(held, wanted) == Some(Ordering::Less),
            ItemMatch::Lte(wanted) => matches!(order(held, wanted), Some(Ordering::Less | Ordering::Equal)),
        }
    })
}

/// Numbers by size, strings by code point; anything else has no order.
fn order(held: Option<&Json>, wanted: &Json) -> Option<Ordering> {
    let held = held?;
    match (held.as_str(), wanted.as_str()) {
        (Some(held), Some(wanted)) => return Some(held.cmp(wanted)),
        (None, None) => {}
        _ => return None,
    }
    let (a, b) = (held.value(), wanted.value());
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        return Some(a.cmp(&b));
    }
    a.as_f64()?.partial_cmp(&b.as_f64()?)
}

/// The column form of a namespace: every label followed by a dot.
pub(crate) fn namespace_text(labels: &[String]) -> String {
    let mut out = String::new();
    for label in labels {
        out.push_str(&super::encoding::hide_nul(label));
        out.push('.');
    }
    out
}

/// Reads the column form back.
pub(crate) fn namespace_labels(text: &str) -> Vec<String> {
    text.split_terminator('.').map(|label| super::encoding::show_nul(label.to_owned())).collect()
}

/// The texts from (inclusive) and to (exclusive) between which all namespaces below a prefix lie.
pub(crate) fn namespace_range(prefix: &[String]) -> (String, Option<String>) {
    let from = namespace_text(prefix);
    // '/' is the character after '.': the first text that is not below the prefix any more.
    let to = from.strip_suffix('.').map(|stem| format!("{stem}/"));
    (from, to)
}

/// The prefix up to its first wildcard: what a range of texts can express of it.
pub(crate) fn plain_prefix(prefix: &[String]) -> &[String] {
    let plain = prefix.iter().take_while(|label| *label != ANY_LABEL).count();
    &prefix[..plain]
}

/// Whether labels are those of a pattern, one by one.
fn labels_match<'a>(labels: impl Iterator<Item = &'a String>, pattern: impl Iterator<Item = &'a String>) -> bool {
    labels.zip(pattern).all(|(label, wanted)| wanted == ANY_LABEL || label == wanted)
}

/// Applies a filter to distinct namespaces; sorted by labels.
pub(crate) fn namespaces(found: Vec<Vec<String>>, filter: &NamespaceFilter) -> Vec<Vec<String>> {
    let mut out: Vec<Vec<String>> = found
        .into_iter()
        .filter(|labels| {
            labels.len() >= filter.prefix.len().max(filter.suffix.len())
                && labels_match(labels.iter(), filter.prefix.iter())
                && labels_match(labels.iter().rev(), filter.suffix.iter().rev())
        })
        .map(|mut labels| {
            labels.truncate(filter.max_depth.unwrap_or(usize::MAX));
            labels
        })
        .collect();
    out.sort();
    out.dedup();
    out
}

/// The window of a list that is at hand as a whole.
pub(crate) fn page<T>(all: Vec<T>, page: Page) -> Vec<T> {
    let size = |number: i64| usize::try_from(number.max(0)).unwrap_or(usize::MAX);
    all.into_iter().skip(size(page.offset)).take(size(page.limit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).expect("valid")
    }

    #[test]
    fn containment_is_that_of_postgres() {
        for (whole, part, expected) in [
            (r#"{"a":1,"b":{"c":[1,2,{"d":3}]}}"#, r#"{"b":{"c":[{"d":3},1]}}"#, true),
            (r#"{"a":1}"#, r#"{"a":1.0}"#, true),
            (r#"{"a":100}"#, r#"{"a":1e2}"#, true),
            (r#"{"a":"1"}"#, r#"{"a":1}"#, false),
            (r#"{"a":[1]}"#, r#"{"a":1}"#, false),
            (r#"[1,"x"]"#, r#""x""#, true),
            (r#"{"a":[]}"#, r#"{"a":[]}"#, true),
            (r#"{"a":null}"#, r#"{"b":null}"#, false),
            (r#"{"a":123456789012345678901234567890}"#, r#"{"a":123456789012345678901234567891}"#, false),
            ("{}", "{}", true),
        ] {
            assert_eq!(contains(&json(whole), &json(part)), expected, "{whole} @> {part}");
        }
    }

    #[test]
    fn numbers_are_equal_by_value() {
        for (a, b) in [("0", "-0.0"), ("1.50", "15e-1"), ("1000", "1e3"), ("0.001", "1E-3")] {
            assert!(equal(&json(a), &json(b)), "{a} {b}");
        }
        assert!(!equal(&json("1"), &json("-1")));
        assert!(!equal(&json("null"), &json("false")));
    }

    #[test]
    fn a_prefix_is_whole_labels() {
        let prefix = ["a".to_owned()];
        let (from, to) = namespace_range(&prefix);
        let to = to.expect("bounded");
        let below = |labels: &[&str]| {
            let text = namespace_text(&labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>());
            text >= from && text < to
        };
        assert!(below(&["a"]) && below(&["a", "b"]));
        assert!(!below(&["ab"]) && !below(&["a-b"]) && !below(&["a/"]) && !below(&["b"]));
    }
}
