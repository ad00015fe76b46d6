//! Drawings of graphs: nodes and edges for clients to lay out, and Mermaid text for people to read.

mod mermaid;

#[cfg(test)]
mod tests;

use serde::Serialize;
use serde_json::{Map, Value};

use super::node::Graph;
use super::output::{END, START};
use crate::engine::NodeSpec;
use crate::model::Breakpoints;

/// Nodes and edges, as `GET /assistants/{id}/graph` shows them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drawing {
    /// START first, END last, the others in the order in which they were added.
    pub nodes: Vec<DrawnNode>,
    /// Static edges and the possible answers of routers.
    pub edges: Vec<DrawnEdge>,
}

/// A node of a drawing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrawnNode {
    /// The name; below the names of the nodes it is inside of, joined by `:`.
    pub id: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<NodeData>,
    /// What is special about it: deferred, breakpoints.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct NodeData {
    name: String,
}

/// An edge of a drawing. Clients accept these members and no others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrawnEdge {
    /// The id of the node it leaves.
    pub source: String,
    /// The id of the node it leads to.
    pub target: String,
    /// A router's answer, where it is not the target's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// A router decides whether it is taken.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub conditional: bool,
}

impl DrawnNode {
    /// END has neither type nor data, as it is nothing that runs.
    fn new(id: String, metadata: Map<String, Value>) -> DrawnNode {
        if id == END {
            return DrawnNode { id, kind: None, data: None, metadata };
        }
        DrawnNode { data: Some(NodeData { name: id.clone() }), kind: Some("runnable"), id, metadata }
    }
}

impl Drawing {
    /// Draws a graph, with the insides of its subgraphs down to `xray` levels.
    pub fn new(graph: &Graph, xray: usize) -> Drawing {
        let spec = graph.spec();
        let nodes = || spec.nodes.values().filter(|node| !node.is_handler);
        let mut edges = Vec::new();
        for node in std::iter::once(&spec.start).chain(nodes()) {
            let everywhere = || nodes().map(|node| node.name.clone()).chain([END.to_owned()]).collect();
            draw_edges(node, everywhere, graph, &mut edges);
        }
        // A path that leads nowhere ends.
        for node in nodes() {
            let is_source = edges.iter().any(|edge| edge.source == node.name);
            if !is_source && edges.iter().any(|edge| edge.target == node.name) {
                edges.push(DrawnEdge {
                    source: node.name.clone(),
                    target: END.to_owned(),
                    data: None,
                    conditional: false,
                });
            }
        }
        let mut drawn = vec![DrawnNode::new(START.to_owned(), Map::new())];
        drawn.extend(nodes().map(|node| DrawnNode::new(node.name.clone(), marks(graph, node))));
        if edges.iter().any(|edge| edge.target == END) {
            drawn.push(DrawnNode::new(END.to_owned(), Map::new()));
        }
        let mut drawing = Drawing { nodes: drawn, edges };
        if xray > 0 {
            for node in nodes() {
                if let Some(child) = graph.child(&node.name) {
                    drawing.open(&node.name, Drawing::new(child, xray - 1));
                }
            }
        }
        drawing
    }

    /// Mermaid text, in the dialect of LangGraph's `draw_mermaid()`.
    pub fn mermaid(&self) -> String {
        mermaid::render(self)
    }

    /// Replaces a node by the graph inside it. Where that graph has one way in or out, its own start and end are left
    /// out and the outer edges lead to what is behind them.
    fn open(&mut self, node: &str, mut inside: Drawing) {
        let entry = inside.trim(START, |edge| (&edge.source, &edge.target));
        let exit = inside.trim(END, |edge| (&edge.target, &edge.source));
        let below = |id: &str| format!("{node}:{id}");
        let at = self.nodes.iter().position(|drawn| drawn.id == node).unwrap_or(self.nodes.len());
        let inner = inside.nodes.into_iter().map(|drawn| DrawnNode::new(below(&drawn.id), drawn.metadata));
        self.nodes.splice(at..(at + 1).min(self.nodes.len()), inner);
        for edge in &mut self.edges {
            if edge.source == node {
                edge.source = below(&exit);
            }
            if edge.target == node {
                edge.target = below(&entry);
            }
        }
        self.edges.extend(inside.edges.into_iter().map(|edge| DrawnEdge {
            source: below(&edge.source),
            target: below(&edge.target),
            ..edge
        }));
    }

    /// Removes START or END if exactly one plain edge touches it; returns the node to use in its place.
    fn trim(&mut self, end: &str, sides: impl Fn(&DrawnEdge) -> (&String, &String)) -> String {
        let touching: Vec<usize> = (0..self.edges.len()).filter(|&n| sides(&self.edges[n]).0 == end).collect();
        match touching.as_slice() {
            [only] if !self.edges[*only].conditional => {
                let neighbour = sides(&self.edges[*only]).1.clone();
                self.edges.remove(*only);
                self.nodes.retain(|node| node.id != end);
                neighbour
            }
            _ => end.to_owned(),
        }
    }
}

fn draw_edges(node: &NodeSpec, everywhere: impl Fn() -> Vec<String>, graph: &Graph, edges: &mut Vec<DrawnEdge>) {
    let plain = |target: &str, edges: &mut Vec<DrawnEdge>| {
        let edge = DrawnEdge { source: node.name.clone(), target: target.to_owned(), data: None, conditional: false };
        if !edges.contains(&edge) {
            edges.push(edge);
        }
    };
    for target in &node.writers.edges {
        plain(target, edges);
    }
    for target in graph.spec().nodes.values() {
        if target.triggers.iter().any(|trigger| node.writers.joins.contains(trigger)) {
            plain(&target.name, edges);
        }
    }
    for branch in &node.writers.branches {
        let answers: Vec<(String, String)> = match &branch.path_map {
            Some(map) => map.iter().map(|(answer, target)| (answer.clone(), target.clone())).collect(),
            None => everywhere().into_iter().map(|target| (target.clone(), target)).collect(),
        };
        for (answer, target) in answers {
            let data = (answer != target).then_some(answer);
            let edge = DrawnEdge { source: node.name.clone(), target, data, conditional: true };
            if !edges.contains(&edge) {
                edges.push(edge);
            }
        }
    }
}

/// What is special about a node, under the names LangGraph gives it.
fn marks(graph: &Graph, node: &NodeSpec) -> Map<String, Value> {
    let stops = |at: &Breakpoints| at.contains(&node.name);
    let interrupt = match (stops(&graph.spec().interrupt_before), stops(&graph.spec().interrupt_after)) {
        (true, true) => Some("before,after"),
        (true, false) => Some("before"),
        (false, true) => Some("after"),
        (false, false) => None,
    };
    let mut marks = Map::new();
    if node.defer {
        marks.insert("defer".to_owned(), Value::Bool(true));
    }
    if let Some(interrupt) = interrupt {
        marks.insert("__interrupt".to_owned(), Value::from(interrupt));
    }
    marks
}

impl Graph {
    /// The graph's nodes and edges, with the insides of its subgraphs down to `xray` levels.
    pub fn drawing(&self, xray: usize) -> Drawing {
        Drawing::new(self, xray)
    }
}
