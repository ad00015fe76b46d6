//! The topology hash: what tells two builds of a graph apart that would go on differently from the same checkpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::engine::{ChannelKind, GraphSpec, NodeSpec};
use crate::graph::Graph;

/// A hash, in 16 hexadecimal digits, of a graph's nodes, edges, joins, routers and where they lead, channels and their
/// kinds, and the graphs inside it.
///
/// It does not depend on the order in which nodes, edges and keys were declared, which means nothing, but on the order of a
/// node's routers, which decides the order of their Sends, and of a join's sources, which are part of its channel's
/// name. The version, policies, breakpoints and schemas are no part of it: they do not decide what is pending.
pub(super) fn hash(spec: &GraphSpec, inner: [&HashMap<String, Graph>; 2]) -> String {
    let channels: BTreeMap<&str, Value> =
        spec.channels.iter().map(|(name, kind)| (name.as_str(), channel(kind))).collect();
    let nodes: BTreeMap<&str, Value> = std::iter::once(&spec.start)
        .chain(spec.nodes.values())
        .map(|spec| {
            let graph = inner.iter().find_map(|graphs| graphs.get(&spec.name));
            (spec.name.as_str(), node(spec, graph))
        })
        .collect();
    let canonical = json!({"channels": channels, "nodes": nodes});
    blake3::hash(canonical.to_string().as_bytes()).to_hex()[..16].to_owned()
}

fn channel(kind: &ChannelKind) -> Value {
    match kind {
        ChannelKind::LastValue => json!("last_value"),
        ChannelKind::Any => json!("any"),
        ChannelKind::Reducer(reducer) => json!(["reducer", reducer.name()]),
        ChannelKind::Topic { accumulate } => json!(["topic", accumulate]),
        ChannelKind::Ephemeral { guard } => json!(["ephemeral", guard]),
        ChannelKind::Untracked { guard } => json!(["untracked", guard]),
        ChannelKind::DeltaAppend { .. } => json!("delta_append"),
        ChannelKind::Barrier { names, deferred } => json!(["barrier", names, deferred]),
        ChannelKind::AfterFinish => json!("after_finish"),
    }
}

fn node(spec: &NodeSpec, graph: Option<&Graph>) -> Value {
    let edges: BTreeSet<&String> = spec.writers.edges.iter().collect();
    let joins: BTreeSet<&String> = spec.writers.joins.iter().collect();
    let triggers: BTreeSet<&String> = spec.triggers.iter().collect();
    let branches: Vec<Value> = spec
        .writers
        .branches
        .iter()
        .map(|branch| {
            let targets = branch.path_map.as_ref().map(|map| map.iter().collect::<BTreeMap<_, _>>());
            json!([branch.name, targets])
        })
        .collect();
    json!({
        "edges": edges, "joins": joins, "branches": branches, "triggers": triggers, "defer": spec.defer,
        "handler": spec.error_handler,
        "graph": graph.map(|graph| (&graph.spec().topology, format!("{:?}", graph.checkpointing()))),
    })
}
