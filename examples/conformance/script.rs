//! From a graph document to a graph.

use std::time::Duration;

use anyhow::bail;
use serde_json::Value;
use session_store::graph::{
    Any, CachePolicy, ChannelKind, Checkpointing, Graph, Json, Managed, Node, NodeError, RouterContext, StateGraph,
    Targets,
};

use super::body::Body;
use super::documents::{Channel, Document, Node as NodeDocument, Router};
use super::template::{self, Env};
use super::{counters, policies};

/// Builds a root graph.
pub(crate) fn graph(document: &Document) -> anyhow::Result<Graph> {
    build(document, &document.id, "")
}

/// `path`: the names of the nodes around a child, each followed by `/`.
fn build(document: &Document, id: &str, path: &str) -> anyhow::Result<Graph> {
    let name = if path.is_empty() { id.to_owned() } else { format!("{id}/{}", path.trim_end_matches('/')) };
    let mut graph = StateGraph::dynamic(name).checkpointing(checkpointing(&document.checkpointer)?);
    for (key, channel) in &document.state {
        graph = declare(graph, key, channel)?;
    }
    if let Some(keys) = &document.input {
        graph = graph.input_keys(keys);
    }
    if let Some(keys) = &document.output {
        graph = graph.output_keys(keys);
    }
    for node in &document.nodes {
        graph = graph.node_with(&node.name, self::node(node, id, path)?);
    }
    for (from, to) in &document.edges {
        graph = graph.edge(from, to);
    }
    for (sources, to) in &document.joins {
        graph = graph.join(sources, to);
    }
    for router in &document.routers {
        graph = route(graph, router.clone(), id, path);
    }
    graph = graph.interrupt_before(document.interrupt_before.names());
    Ok(graph.interrupt_after(document.interrupt_after.names()).build()?)
}

fn checkpointing(checkpointer: &Value) -> anyhow::Result<Checkpointing> {
    Ok(match checkpointer {
        Value::Null => Checkpointing::Inherit,
        Value::String(inherit) if inherit == "inherit" => Checkpointing::Inherit,
        Value::Bool(true) => Checkpointing::Own,
        Value::Bool(false) => Checkpointing::Off,
        other => bail!("unknown checkpointer {other}"),
    })
}

fn declare(graph: StateGraph<Json>, key: &str, channel: &Channel) -> anyhow::Result<StateGraph<Json>> {
    use session_store::graph::reducers;

    let guard = channel.guard.unwrap_or(true);
    let kind = match channel.kind.as_str() {
        "last" => ChannelKind::LastValue,
        "append" => ChannelKind::Reducer(std::sync::Arc::new(reducers::append())),
        "add" => ChannelKind::Reducer(std::sync::Arc::new(reducers::add())),
        "messages" => ChannelKind::Reducer(std::sync::Arc::new(reducers::messages())),
        "topic" => ChannelKind::Topic { accumulate: false },
        "topic_accumulate" => ChannelKind::Topic { accumulate: true },
        "ephemeral" => ChannelKind::Ephemeral { guard },
        "any" => ChannelKind::Any,
        "untracked" => ChannelKind::Untracked { guard },
        "delta_append" => ChannelKind::DeltaAppend { snapshot_frequency: channel.snapshot_frequency.unwrap_or(100) },
        "remaining_steps" => return Ok(graph.managed(key, Managed::RemainingSteps)),
        "is_last_step" => return Ok(graph.managed(key, Managed::IsLastStep)),
        unknown => bail!("unknown channel kind {unknown}"),
    };
    Ok(if channel.private { graph.private(key, kind) } else { graph.channel(key, kind) })
}

fn node(document: &NodeDocument, id: &str, path: &str) -> anyhow::Result<Node> {
    let here = format!("{path}{}", document.name);
    let below = |child: &Document| build(child, id, &format!("{here}/"));
    let mut node = match (&document.subgraph, &document.child) {
        (Some(child), _) => Node::subgraph(below(child)?),
        (None, None) => Node::body(Body::new(id, &here, &document.ops, None)),
        (None, Some(child)) => {
            let child = below(child)?;
            Node::body(Body::new(id, &here, &document.ops, Some(child.clone()))).calls(&child)
        }
    };
    if let Some(keys) = &document.input {
        node = node.input_keys(keys);
    }
    if document.defer {
        node = node.defer();
    }
    if let Some(retry) = document.retry.as_ref().filter(|retry| !retry.is_empty()) {
        node = node.retry(policies::retry(retry));
    }
    if document.cache {
        node = node.cache(CachePolicy::default());
    }
    if let Some(millis) = document.timeout_ms {
        node = node.timeout(Duration::from_millis(millis));
    }
    if let Some(handler) = &document.error_handler {
        node = node.error_body(Body::new(id, &format!("{here}!"), &handler.ops, None));
    }
    Ok(node)
}

fn route(graph: StateGraph<Json>, router: Router, id: &str, path: &str) -> StateGraph<Json> {
    let (from, name) = (router.from.clone(), router.name.clone());
    let targets = router.path_map.clone().map_or(Targets::from(Any), Targets::from);
    let place = [id.to_owned(), format!("{path}{from}"), name.clone()];
    graph.branch_with(from, name, targets, move |state: &Json, ctx: &RouterContext| {
        let mut env = Env { input: state.value().clone(), ..Env::default() };
        let decision = template::decide(&router.rules, &mut env, |rule, raise| {
            let [id, owner, name] = &place;
            let times = raise["n"].as_u64();
            let is_over =
                times.is_some_and(|n| counters::bump([id, owner, name, &rule.to_string(), &ctx.thread_id]) > n);
            (!is_over).then(|| policies::error(raise))
        });
        decision.map_err(|error: NodeError| error)
    })
}
