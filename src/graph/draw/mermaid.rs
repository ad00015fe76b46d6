//! Mermaid text of a drawing.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Drawing, DrawnEdge, DrawnNode};
use crate::graph::output::{END, START};

const HEAD: &str = "---\nconfig:\n  flowchart:\n    curve: linear\n---\ngraph TD;\n";
const STYLES: &str =
    "\tclassDef default fill:#f2f0ff,line-height:1.2\n\tclassDef first fill-opacity:0\n\tclassDef last fill:#bfb6fc\n";

pub(super) fn render(drawing: &Drawing) -> String {
    let mut out = HEAD.to_owned();
    for node in drawing.nodes.iter().filter(|node| !node.id.contains(':')) {
        out.push_str(&node_line(node));
    }
    // Edges inside one subgraph are drawn inside its box; those that cross a border, where they meet.
    let mut boxes: BTreeMap<String, Vec<&DrawnEdge>> = BTreeMap::new();
    for edge in &drawing.edges {
        boxes.entry(common_prefix(&edge.source, &edge.target)).or_default().push(edge);
    }
    for node in drawing.nodes.iter().filter(|node| node.id.contains(':')) {
        boxes.entry(prefix(&node.id).to_owned()).or_default();
    }
    for edge in boxes.remove("").unwrap_or_default() {
        out.push_str(&edge_line(edge));
    }
    let outer = boxes.keys().filter(|name| !name.contains(':')).cloned().collect::<Vec<_>>();
    for name in outer {
        render_box(&name, drawing, &boxes, &mut out);
    }
    out.push_str(STYLES);
    out
}

fn render_box(name: &str, drawing: &Drawing, boxes: &BTreeMap<String, Vec<&DrawnEdge>>, out: &mut String) {
    let _ = writeln!(out, "\tsubgraph {}", label(name));
    for node in drawing.nodes.iter().filter(|node| prefix(&node.id) == name) {
        out.push_str(&node_line(node));
    }
    for edge in boxes.get(name).into_iter().flatten() {
        out.push_str(&edge_line(edge));
    }
    for inner in boxes.keys().filter(|inner| prefix(inner) == name && !inner.is_empty()) {
        render_box(inner, drawing, boxes, out);
    }
    out.push_str("\tend\n");
}

/// The boxes a node is in: everything before its own name.
fn prefix(id: &str) -> &str {
    id.rsplit_once(':').map_or("", |(prefix, _)| prefix)
}

fn label(id: &str) -> &str {
    id.rsplit_once(':').map_or(id, |(_, label)| label)
}

fn common_prefix(a: &str, b: &str) -> String {
    let shared = prefix(a).split(':').zip(prefix(b).split(':')).take_while(|(a, b)| a == b).map(|(a, _)| a);
    shared.collect::<Vec<_>>().join(":")
}

fn node_line(node: &DrawnNode) -> String {
    let (id, label) = (safe(&node.id), label(&node.id));
    // Mermaid would read markdown characters at the ends of a name.
    let marked = label.starts_with(['*', '_']) && label.ends_with(['*', '_']);
    let mut text = if marked { format!("<p>{label}</p>") } else { label.to_owned() };
    if !node.metadata.is_empty() {
        let marks = node.metadata.iter().map(|(key, value)| match value.as_str() {
            Some(value) => format!("{key} = {value}"),
            None => format!("{key} = {value}"),
        });
        let _ = write!(text, "<hr/><small><em>{}</em></small>", marks.collect::<Vec<_>>().join("\n"));
    }
    match node.id.as_str() {
        START => format!("\t{id}([{text}]):::first\n"),
        END => format!("\t{id}([{text}]):::last\n"),
        _ => format!("\t{id}({text})\n"),
    }
}

fn edge_line(edge: &DrawnEdge) -> String {
    let (source, target) = (safe(&edge.source), safe(&edge.target));
    match (&edge.data, edge.conditional) {
        (Some(data), true) => format!("\t{source} -. &nbsp;{data}&nbsp; .-> {target};\n"),
        (Some(data), false) => format!("\t{source} -- &nbsp;{data}&nbsp; --> {target};\n"),
        (None, true) => format!("\t{source} -.-> {target};\n"),
        (None, false) => format!("\t{source} --> {target};\n"),
    }
}

/// An id without characters that mean something to Mermaid.
fn safe(id: &str) -> String {
    let mut out = String::with_capacity(id.len());
    for c in id.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') {
            out.push(c);
        } else {
            let _ = write!(out, "\\{:x}", u32::from(c));
        }
    }
    out
}
