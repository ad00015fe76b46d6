//! Drawings of small graphs.

use serde_json::json;

use super::*;
use crate::graph::{Any, Node, StateGraph};

fn child() -> Graph {
    let none = || Node::new(async |(), _ctx| Ok(()));
    StateGraph::dynamic("child")
        .node_with("one", none())
        .node_with("two", none())
        .edge(START, "one")
        .edge("one", "two")
        .edge("two", END)
        .build()
        .expect("builds")
}

fn parent() -> Graph {
    StateGraph::dynamic("parent")
        .node("ask", async |(), _ctx| Ok(()))
        .subgraph("sub", child())
        .node("done", async |(), _ctx| Ok(()))
        .edge(START, "ask")
        .branch("ask", "route", [("go", "sub"), (END, END)], |(): &()| "go")
        .edge("sub", "done")
        .interrupt_before(["ask"])
        .build()
        .expect("builds")
}

#[test]
fn nodes_and_edges_have_the_members_clients_expect() {
    let drawing = serde_json::to_value(parent().drawing(0)).expect("encodes");
    assert_eq!(
        drawing,
        json!({
            "nodes": [
                {"id": "__start__", "type": "runnable", "data": {"name": "__start__"}},
                {"id": "ask", "type": "runnable", "data": {"name": "ask"}, "metadata": {"__interrupt": "before"}},
                {"id": "sub", "type": "runnable", "data": {"name": "sub"}},
                {"id": "done", "type": "runnable", "data": {"name": "done"}},
                {"id": "__end__"},
            ],
            "edges": [
                {"source": "__start__", "target": "ask"},
                {"source": "ask", "target": "sub", "data": "go", "conditional": true},
                {"source": "ask", "target": "__end__", "conditional": true},
                {"source": "sub", "target": "done"},
                {"source": "done", "target": "__end__"},
            ],
        })
    );
}

#[test]
fn xray_opens_subgraphs() {
    let drawing = parent().drawing(1);
    let ids: Vec<&str> = drawing.nodes.iter().map(|node| node.id.as_str()).collect();
    assert_eq!(ids, ["__start__", "ask", "sub:one", "sub:two", "done", "__end__"]);
    let edges: Vec<(&str, &str)> =
        drawing.edges.iter().map(|edge| (edge.source.as_str(), edge.target.as_str())).collect();
    assert!(edges.contains(&("ask", "sub:one")) && edges.contains(&("sub:two", "done")));
    assert!(edges.contains(&("sub:one", "sub:two")));
}

#[test]
fn a_router_without_targets_leads_everywhere() {
    let graph = StateGraph::dynamic("any")
        .node("a", async |(), _ctx| Ok(()))
        .branch(START, "route", Any, |(): &()| "a")
        .build()
        .expect("builds");
    let targets: Vec<String> = graph.drawing(0).edges.into_iter().map(|edge| edge.target).collect();
    assert_eq!(targets, ["a", "__end__", "__end__"]);
}

#[test]
fn mermaid_text_is_langgraphs() {
    assert_eq!(
        parent().drawing(1).mermaid(),
        "---\nconfig:\n  flowchart:\n    curve: linear\n---\ngraph TD;\n\
         \t__start__([<p>__start__</p>]):::first\n\
         \task(ask<hr/><small><em>__interrupt = before</em></small>)\n\
         \tdone(done)\n\
         \t__end__([<p>__end__</p>]):::last\n\
         \t__start__ --> ask;\n\
         \task -. &nbsp;go&nbsp; .-> sub\\3aone;\n\
         \task -.-> __end__;\n\
         \tsub\\3atwo --> done;\n\
         \tdone --> __end__;\n\
         \tsubgraph sub\n\
         \tsub\\3aone(one)\n\
         \tsub\\3atwo(two)\n\
         \tsub\\3aone --> sub\\3atwo;\n\
         \tend\n\
         \tclassDef default fill:#f2f0ff,line-height:1.2\n\
         \tclassDef first fill-opacity:0\n\
         \tclassDef last fill:#bfb6fc\n"
    );
}
