//! The channels of a checkpoint: which of them LangGraph keeps for itself, in Python or JavaScript, and what the others show.
//!
//! A name that merely looks special is the user's: LangGraph refuses none but its own.

use serde_json::Value as Shown;

use super::super::{Checkpoint, Value, decoded};
use crate::model::{Fields, Json};

/// What channels that trigger a node are called.
const TRIGGER: &str = "branch:to:";
/// The input of a run.
pub(super) const START: &str = "__start__";
/// What a function of the functional API returned: all that its state is.
const END: &str = "__end__";
/// What such a function saves for its next call.
const PREVIOUS: &str = "__previous__";
/// The state of a graph whose state is no mapping.
const ROOT: &str = "__root__";
/// Sends.
const SENDS: &str = "__pregel_tasks";

/// Channels of checkpoints and of writes that have a meaning of their own.
const RESERVED: [&str; 16] = [
    START,
    END,
    PREVIOUS,
    SENDS,
    "__input__",
    "__interrupt__",
    "__resume__",
    "__error__",
    "__error_source_node__",
    "__no_writes__",
    "__return__",
    "__scheduled__",
    "__snapshot_bumps__",
    "__pregel_push",
    "__self__",
    "__copy__",
];

/// Whether a channel is LangGraph's, not one of the state.
pub(super) fn is_own(document: &Shown, channel: &str) -> bool {
    RESERVED.contains(&channel)
        || channel.starts_with(TRIGGER)
        || join(channel).is_some()
        || old_trigger(document, channel).is_some()
        || (is_old(document) && document["versions_seen"].get(channel).is_some())
}

/// The nodes that are waited for, as one word, and the node that waits: `join:a+b:c`. No node's name holds a colon.
fn join(channel: &str) -> Option<(&str, &str)> {
    let (awaited, waiting) = channel.strip_prefix("join:")?.split_once(':')?;
    let is_one = !awaited.is_empty() && !waiting.is_empty() && !waiting.contains(':');
    is_one.then_some((awaited, waiting))
}

/// Documents of LangGraph before 0.3 name triggers in other ways, and have a channel for each node.
fn is_old(document: &Shown) -> bool {
    document["v"].as_f64().is_some_and(|version| version < 3.0)
}

/// The node of `start:NODE` or `branch:FROM:CONDITION:NODE`.
fn old_trigger<'a>(document: &Shown, channel: &'a str) -> Option<&'a str> {
    let parts: Vec<&str> = channel.split(':').collect();
    match *parts.as_slice() {
        ["start", node] | ["branch", _, _, node] if is_old(document) => Some(node),
        // What runs after whatever a branch chose.
        ["branch", _, _, "", "then"] if is_old(document) => Some(""),
        _ => None,
    }
}

/// The node that a channel is there to trigger.
pub(super) fn triggered<'a>(document: &Shown, channel: &'a str) -> Option<&'a str> {
    let named = channel.strip_prefix(TRIGGER).or_else(|| Some(join(channel)?.1));
    named.or_else(|| old_trigger(document, channel)).filter(|node| !node.is_empty())
}

/// The channels that trigger a node, as far as its checkpoints have told; sorted.
pub(super) fn triggers_of(document: &Shown, node: &str) -> Vec<String> {
    let mut triggers = Vec::new();
    let versions = document["channel_versions"].as_object();
    triggers.extend(versions.into_iter().flat_map(|versions| versions.keys()).cloned());
    triggers.retain(|channel| triggered(document, channel) == Some(node));
    let seen = document["versions_seen"][node].as_object();
    triggers.extend(seen.into_iter().flat_map(|seen| seen.keys()).cloned());
    triggers.sort_unstable();
    triggers.dedup();
    triggers
}

/// Whether a channel has something that a node would be triggered by: an edge that waits for several nodes has all of them,
/// and one that waits for the end of the run has seen it.
pub(super) fn is_available(channel: &str, value: &Value) -> bool {
    if value.tag == "empty" {
        return false;
    }
    if join(channel).is_none() && !channel.starts_with(TRIGGER) {
        return true;
    }
    let shown = decoded(value);
    let items = shown.value().as_array().map(Vec::as_slice);
    match (items, join(channel)) {
        (Some([_, Shown::Bool(is_finished)]), _) => *is_finished,
        (Some(seen), Some((awaited, _))) => {
            let length: usize = seen.iter().filter_map(Shown::as_str).map(|name| name.len() + 1).sum();
            length == awaited.len() + 1
        }
        _ => true,
    }
}

/// What was sent to nodes, in order.
pub(super) fn sends(found: &Checkpoint) -> Vec<Shown> {
    let sends = found.values.iter().find(|(channel, _)| channel == SENDS).map(|(_, sends)| decoded(sends));
    sends.and_then(|sends| sends.value().as_array().cloned()).unwrap_or_default()
}

/// The one channel that is the whole state of a graph, if there is such a one.
fn whole(document: &Shown) -> Option<&'static str> {
    let has = |channel: &str| document["channel_versions"].get(channel).is_some();
    if has(END) || has(PREVIOUS) {
        return Some(END);
    }
    has(ROOT).then_some(ROOT)
}

/// Values as LangGraph's `get_state` has them: usually an object. Of channels that are stored as changes only that they are
/// there; see [`deltas`].
pub(super) fn values(found: &Checkpoint) -> Json {
    let document = found.checkpoint.value();
    if let Some(whole) = whole(document) {
        let value = found.values.iter().find(|(channel, value)| channel == whole && value.tag != "empty");
        return value.map(|(_, value)| decoded(value)).unwrap_or_default();
    }
    let mut shown: Fields = found
        .values
        .iter()
        .filter(|(channel, value)| !is_own(document, channel) && value.tag != "empty")
        .map(|(channel, value)| (channel.clone(), decoded(value)))
        .collect();
    for channel in deltas(found) {
        shown.insert(channel, Json::from_fields([("type", &Json::from("delta"))]));
    }
    Json::from(&shown)
}

/// The channels that this checkpoint has as changes to a value of an earlier one: a function of the graph makes the value of
/// them, and the graph is not here.
pub(super) fn deltas(found: &Checkpoint) -> Vec<String> {
    let document = found.checkpoint.value();
    let counted = found.metadata.value()["counters_since_delta_snapshot"].as_object();
    let is_absent = |channel: &&String| {
        document["channel_versions"].get(channel.as_str()).is_some()
            && !is_own(document, channel)
            && !found.values.iter().any(|(name, _)| name == *channel)
    };
    counted.into_iter().flat_map(|counted| counted.keys()).filter(is_absent).cloned().collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_langgraphs_own_channels_are_left_out() {
        let new = json!({"v": 4, "versions_seen": {"agent": {}}});
        let own =
            ["__start__", "__end__", "__pregel_tasks", "branch:to:agent", "branch:to:a b", "join:a+b:c", "__return__"];
        for channel in own {
            assert!(is_own(&new, channel), "{channel}");
        }
        let users =
            ["a:b", "__x", "__private__", "join:at", "join:", "start:agent", "branch:a:b:c", "agent", "__root__"];
        for channel in users {
            assert!(!is_own(&new, channel), "{channel}");
        }
        let old = json!({"v": 1, "versions_seen": {"agent": {}}});
        for channel in ["start:agent", "branch:a:condition:b", "branch:a:condition::then", "agent", "join:a+b:c"] {
            assert!(is_own(&old, channel), "{channel}");
        }
        assert!(!is_own(&old, "a:b") && !is_own(&old, "notes"));
    }

    #[test]
    fn an_edge_waits_for_all_its_nodes() {
        let waits = |channel: &str, text: &str| {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            is_available(channel, &Value { tag: "json".to_owned(), hash: None, bytes })
        };
        assert!(waits("join:a+b:c", r#"["b","a"]"#) && !waits("join:a+b:c", r#"["b"]"#) && !waits("join:a+b:c", "[]"));
        assert!(waits("join:a+b:c", r#"[["a","b"],true]"#) && !waits("join:a+b:c", r#"[["a","b"],false]"#));
        assert!(waits("branch:to:c", "null") && waits("branch:to:c", r#"["a",true]"#));
        assert!(!waits("branch:to:c", r#"["a",false]"#) && waits("notes", "[1,false]"));
    }
}
