//! What differs between two states: by channel, and within lists by item. Pure.
//!
//! Items of lists are aligned by their `id` where they have one that is unique, as messages do, and by equality otherwise.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::model::json::write_string;
use crate::model::{Fields, Json};

/// The largest table for aligning two lists; what is longer is aligned in one pass, which may tell more than needed.
const MAX_CELLS: usize = 250_000;

/// What happened to a channel, or to an item of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Added,
    Removed,
    Changed,
}

impl Change {
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
        }
    }

    fn of(before: Option<&Json>, after: Option<&Json>) -> Option<Change> {
        match (before, after) {
            (None, None) => None,
            (None, Some(_)) => Some(Change::Added),
            (Some(_), None) => Some(Change::Removed),
            (Some(before), Some(after)) => (before != after).then_some(Change::Changed),
        }
    }
}

/// A channel that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelDiff {
    pub channel: String,
    pub change: Change,
    pub before: Option<Json>,
    pub after: Option<Json>,
    /// Where both are lists: their items, in the order of the later list, what was removed before what took its place.
    pub items: Option<Vec<ItemDiff>>,
}

/// An item of a list that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemDiff {
    pub change: Change,
    /// The item's own `id`, if it has one.
    pub id: Option<String>,
    pub index_before: Option<usize>,
    pub index_after: Option<usize>,
    pub before: Option<Json>,
    pub after: Option<Json>,
}

/// The channels that differ, in the order of the later state, then those that are gone; and how many are the same.
pub fn diff(before: &Fields, after: &Fields) -> (Vec<ChannelDiff>, usize) {
    let mut unchanged = 0;
    let mut channels = Vec::new();
    let gone = before.keys().filter(|channel| !after.contains_key(*channel));
    for channel in after.keys().chain(gone) {
        let (old, new) = (before.get(channel), after.get(channel));
        let Some(change) = Change::of(old, new) else {
            unchanged += 1;
            continue;
        };
        let lists = old.and_then(Json::items).zip(new.and_then(Json::items));
        let items = lists.map(|(old, new)| {
            let (old, new): (Vec<Json>, Vec<Json>) = (old.into_iter().collect(), new.into_iter().collect());
            items(&old, &new)
        });
        let (before, after) = (old.cloned(), new.cloned());
        channels.push(ChannelDiff { channel: channel.clone(), change, before, after, items });
    }
    (channels, unchanged)
}

fn items(old: &[Json], new: &[Json]) -> Vec<ItemDiff> {
    let (old_keys, new_keys) = keys(old, new);
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    let mut pairs = aligned(&old_keys, &new_keys);
    pairs.push((old.len(), new.len()));
    for (next_i, next_j) in pairs {
        out.extend((i..next_i).map(|at| item(Change::Removed, Some((at, &old[at])), None)));
        out.extend((j..next_j).map(|at| item(Change::Added, None, Some((at, &new[at])))));
        if let (Some(before), Some(after)) = (old.get(next_i), new.get(next_j))
            && before != after
        {
            out.push(item(Change::Changed, Some((next_i, before)), Some((next_j, after))));
        }
        (i, j) = (next_i + 1, next_j + 1);
    }
    out
}

fn item(change: Change, before: Option<(usize, &Json)>, after: Option<(usize, &Json)>) -> ItemDiff {
    ItemDiff {
        change,
        id: after.or(before).and_then(|(_, item)| id_of(item)),
        index_before: before.map(|(at, _)| at),
        index_after: after.map(|(at, _)| at),
        before: before.map(|(_, item)| item.clone()),
        after: after.map(|(_, item)| item.clone()),
    }
}

fn id_of(item: &Json) -> Option<String> {
    item.get("id").and_then(|id| id.as_str().map(str::to_owned))
}

/// What an item is recognised by.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Id(String),
    Text(String),
}

/// The keys of both lists. An id counts where it is unique in each.
fn keys(old: &[Json], new: &[Json]) -> (Vec<Key>, Vec<Key>) {
    let mut repeated: HashSet<String> = HashSet::new();
    for list in [old, new] {
        let mut seen = HashSet::new();
        repeated.extend(list.iter().filter_map(id_of).filter(|id| !seen.insert(id.clone())));
    }
    let key = |item: &Json| match id_of(item).filter(|id| !repeated.contains(id)) {
        Some(id) => Key::Id(id),
        None => {
            let mut text = String::new();
            write_sorted(item.value(), &mut text);
            Key::Text(text)
        }
    };
    (old.iter().map(key).collect(), new.iter().map(key).collect())
}

/// A text that equal values share: members in the order of their names.
fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (name, value) in members {
                write_string(name, out);
                out.push(':');
                write_sorted(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_sorted(item, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => out.push_str(&value.to_string()),
    }
}

/// Pairs of places that belong together, growing in both lists.
fn aligned(old: &[Key], new: &[Key]) -> Vec<(usize, usize)> {
    let start = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - start;
    let end = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let (old_middle, new_middle) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    let middle = match old_middle.len().saturating_mul(new_middle.len()) {
        0..=MAX_CELLS => longest(old_middle, new_middle),
        _ => in_one_pass(old_middle, new_middle),
    };
    let mut pairs: Vec<(usize, usize)> = (0..start).map(|at| (at, at)).collect();
    pairs.extend(middle.into_iter().map(|(i, j)| (start + i, start + j)));
    pairs.extend((0..end).rev().map(|back| (old.len() - 1 - back, new.len() - 1 - back)));
    pairs
}

/// The longest common subsequence.
fn longest(old: &[Key], new: &[Key]) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    let mut lengths = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            lengths[i * width + j] = if old[i] == new[j] {
                lengths[(i + 1) * width + j + 1] + 1
            } else {
                lengths[(i + 1) * width + j].max(lengths[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < old.len() && j < new.len() {
        if old[i] == new[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if lengths[(i + 1) * width + j] >= lengths[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// Each new item with the first old one of its key after the last pair.
fn in_one_pass(old: &[Key], new: &[Key]) -> Vec<(usize, usize)> {
    let mut places: HashMap<&Key, Vec<usize>> = HashMap::new();
    for (at, key) in old.iter().enumerate() {
        places.entry(key).or_default().push(at);
    }
    let (mut from, mut pairs) = (0, Vec::new());
    for (j, key) in new.iter().enumerate() {
        let Some(found) = places.get(key) else { continue };
        if let Some(i) = found.get(found.partition_point(|at| *at < from)) {
            pairs.push((*i, j));
            from = i + 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<Json> {
        Json::parse(text).expect("JSON").items().expect("a list").into_iter().collect()
    }

    /// As `-0 +1 ~0:2`: removed, added, changed, with their places.
    fn told(old: &str, new: &str) -> String {
        let told = items(&list(old), &list(new)).into_iter().map(|item| match (item.index_before, item.index_after) {
            (Some(i), Some(j)) => format!("~{i}:{j}"),
            (Some(i), None) => format!("-{i}"),
            (None, j) => format!("+{}", j.unwrap_or(99)),
        });
        told.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn items_are_aligned_by_equality() {
        assert_eq!(told("[1,2,3]", "[1,2,3]"), "");
        assert_eq!(told("[1,2]", "[1,2,3,4]"), "+2 +3");
        assert_eq!(told("[1,2,3]", "[0,1,3]"), "+0 -1");
        assert_eq!(told("[1,2,3]", "[1,9,3]"), "-1 +1");
        assert_eq!(told("[]", "[1]"), "+0");
        assert_eq!(told("[1,1,1]", "[1]"), "-1 -2");
        assert_eq!(told("[{\"a\":1,\"b\":2}]", "[{ \"b\":2, \"a\":1}]"), "", "the same value");
    }

    #[test]
    fn items_with_ids_are_aligned_by_them() {
        let old = r#"[{"id":"a","t":1},{"id":"b","t":1},{"id":"c","t":1}]"#;
        assert_eq!(told(old, r#"[{"id":"a","t":2},{"id":"c","t":1},{"id":"d","t":1}]"#), "~0:0 -1 +2");
        assert_eq!(told(r#"[{"id":"a","t":1},{"id":"a","t":2}]"#, r#"[{"id":"a","t":2}]"#), "-0", "no unique id");
    }

    #[test]
    fn long_lists_are_aligned_in_one_pass() {
        let old: Vec<Json> = (0..2_000).map(Json::from).collect();
        let mut new: Vec<Json> = old.iter().rev().cloned().collect();
        let found = items(&old, &new);
        assert_eq!(found.len(), 2 * (old.len() - 1), "one of them stays");
        new.reverse();
        new.remove(1_000);
        new.remove(10);
        let places: Vec<_> = items(&old, &new).into_iter().map(|item| item.index_before).collect();
        assert_eq!(places, [Some(10), Some(1_000)]);
    }

    #[test]
    fn channels_come_and_go() {
        let fields = |text: &str| Json::parse(text).expect("JSON").fields().expect("an object");
        let (channels, unchanged) =
            diff(&fields(r#"{"a":1,"b":[1],"c":{"x":1.0}}"#), &fields(r#"{"c":{"x":1.0},"b":[1,2],"d":null}"#));
        let told: Vec<_> = channels.iter().map(|channel| (channel.channel.as_str(), channel.change)).collect();
        assert_eq!(told, [("b", Change::Changed), ("d", Change::Added), ("a", Change::Removed)]);
        assert_eq!(unchanged, 1);
        assert_eq!(channels[0].items.as_ref().map(Vec::len), Some(1));
        assert_eq!(channels[1].items, None);
    }
}
