//! A fixed order for the events of siblings: within a superstep of several tasks, streams may interleave them freely.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::client::Event;
use super::normalise::{blank, of_message};

/// An event of a graph: its mode, the namespace below the root graph, its data.
#[derive(Debug, Clone)]
struct Told {
    mode: String,
    ns: Vec<String>,
    data: Value,
}

/// Brings the events of a stream into a fixed order. `extra`: a mode that was asked for only to see where supersteps
/// begin.
pub(super) fn in_order(events: Vec<Event>, extra: Option<&str>) -> Value {
    let told = events.into_iter().map(|(name, data)| {
        let data = of_message(&name, &data);
        let mut parts = name.split('|').map(str::to_owned);
        let mode = parts.next().unwrap_or_default();
        Told { mode, ns: parts.collect(), data }
    });
    let ordered = of_graph(told.collect(), 0, extra);
    let rows = ordered.into_iter().map(|event| {
        let name = std::iter::once(event.mode).chain(event.ns).collect::<Vec<_>>().join("|");
        Value::from(vec![Value::from(name), event.data])
    });
    json!({"events": rows.collect::<Value>()})
}

/// The plan of a superstep, if the event tells one.
fn plan_of(event: &Told) -> Option<&Value> {
    match event.mode.as_str() {
        "checkpoints" => Some(&event.data),
        "debug" if event.data["type"] == "checkpoint" => Some(&event.data["payload"]),
        _ => None,
    }
}

fn of_graph(events: Vec<Told>, depth: usize, extra: Option<&str>) -> Vec<Told> {
    let mut out = Vec::new();
    let mut plan: Vec<Value> = Vec::new();
    let mut segment: Vec<Told> = Vec::new();
    for event in events {
        let next = if event.ns.len() == depth { plan_of(&event) } else { None };
        let Some(next) = next else {
            segment.push(event);
            continue;
        };
        let next = next["tasks"].as_array().cloned().unwrap_or_default();
        out.extend(of_superstep(std::mem::take(&mut segment), &plan, depth, extra));
        plan = next;
        if extra != Some(event.mode.as_str()) {
            out.push(event);
        }
    }
    out.extend(of_superstep(segment, &plan, depth, extra));
    out
}

/// What happens in a superstep: an event of the graph itself, or all events of a graph inside it.
enum Part {
    Own(Told),
    Inner(String, Vec<Told>),
}

fn parts(segment: Vec<Told>, depth: usize, extra: Option<&str>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for event in segment {
        let Some(key) = event.ns.get(depth).cloned() else {
            parts.push(Part::Own(event));
            continue;
        };
        let place = *places.entry(key.clone()).or_insert_with(|| {
            parts.push(Part::Inner(key, Vec::new()));
            parts.len() - 1
        });
        if let Part::Inner(_, events) = &mut parts[place] {
            events.push(event);
        }
    }
    let ordered = parts.into_iter().map(|part| match part {
        Part::Inner(key, events) => Part::Inner(key, of_graph(events, depth + 1, extra)),
        own => own,
    });
    ordered.collect()
}

/// Where a part belongs among the others of its superstep: node, kind, place in the plan, then content or position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    node: String,
    kind: u8,
    index: usize,
    within: Within,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Within {
    Position(usize),
    Content(String),
}

const UNKNOWN: usize = 1_000_000;
/// Sorts after every node.
const NOBODY: &str = "~";
const QUESTIONS: &str = "~interrupt";

fn of_superstep(segment: Vec<Told>, plan: &[Value], depth: usize, extra: Option<&str>) -> Vec<Told> {
    let mut parts = parts(segment, depth, extra);
    if plan.len() <= 1 {
        return flatten(parts);
    }
    merge_questions(&mut parts);
    let mut end = Vec::new();
    while let Some(Part::Own(last)) = parts.last() {
        let closes = last.mode == "values" && last.data.get("__interrupt__").is_none();
        if !closes {
            break;
        }
        end.extend(parts.pop());
    }
    if matches!(parts.last(), Some(Part::Own(last)) if last.mode == "error") {
        end.extend(parts.pop());
    }
    end.reverse();
    let places: HashMap<&str, usize> =
        plan.iter().enumerate().filter_map(|(n, task)| Some((task["id"].as_str()?, n))).collect();
    let count = |node: &str| plan.iter().filter(|task| task["name"] == node).count();
    let mut speakers: HashMap<String, String> = HashMap::new();
    let (mut out, mut sorted) = (Vec::new(), Vec::new());
    for (position, part) in parts.into_iter().enumerate() {
        let place = match &part {
            Part::Inner(key, _) => {
                let (node, task) = key.split_once(':').unwrap_or((key, ""));
                // The graph of a node that runs once keeps its position among the node's own events.
                let kind = u8::from(count(node) != 1);
                let index = if kind == 0 { 0 } else { places.get(task).copied().unwrap_or(UNKNOWN) };
                Place { node: node.to_owned(), kind, index, within: Within::Position(position) }
            }
            Part::Own(event) if is_start(event) => {
                out.extend(flatten(vec![part]));
                continue;
            }
            Part::Own(event) => {
                let (node, kind, index) = attribute(event, &places, &mut speakers);
                let content = |text: String| Within::Content(text);
                let is_shared = count(&node) != 1;
                if event.mode == "updates" && is_shared {
                    Place { node, kind, index, within: content(blank(&event.data)) }
                } else if node == QUESTIONS || node == NOBODY {
                    Place { within: content(event.mode.clone() + &blank(&event.data)), node, kind, index }
                } else if is_shared {
                    let text = if event.mode == "custom" { blank(&event.data) } else { String::new() };
                    Place { node, kind, index, within: content(text) }
                } else {
                    Place { node, kind: 0, index: 0, within: Within::Position(position) }
                }
            }
        };
        sorted.push((place, part));
    }
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    out.extend(flatten(sorted.into_iter().map(|(_, part)| part).chain(end).collect()));
    out
}

fn flatten(parts: Vec<Part>) -> Vec<Told> {
    let events = parts.into_iter().flat_map(|part| match part {
        Part::Own(event) => vec![event],
        Part::Inner(_, events) => events,
    });
    events.collect()
}

fn is_start(event: &Told) -> bool {
    match event.mode.as_str() {
        "tasks" => event.data.get("triggers").is_some(),
        "debug" => event.data["type"] == "task",
        _ => false,
    }
}

/// Whose event it is, what kind of event, and the place of its task in the plan.
fn attribute(
    event: &Told,
    places: &HashMap<&str, usize>,
    speakers: &mut HashMap<String, String>,
) -> (String, u8, usize) {
    let text = |value: &Value| value.as_str().unwrap_or(NOBODY).to_owned();
    let data = &event.data;
    let is_pair = data.as_array().is_some_and(|pair| pair.len() == 2);
    let (node, kind, index) = match event.mode.as_str() {
        "updates" => {
            let mut keys = data.as_object().into_iter().flat_map(|fields| fields.keys());
            let node = keys.find(|key| *key != "__metadata__").map_or(NOBODY, String::as_str);
            (node.to_owned(), 3, 0)
        }
        "tasks" | "debug" => {
            let task = if event.mode == "debug" { &data["payload"] } else { data };
            let place = task["id"].as_str().and_then(|id| places.get(id)).copied().unwrap_or(UNKNOWN);
            (text(&task["name"]), 4, place)
        }
        "custom" if data.get("node").is_some() => (text(&data["node"]), 0, 0),
        "messages" if is_pair => {
            let ns = data[1]["checkpoint_ns"].as_str().unwrap_or_default();
            let task = ns.rsplit('|').next().and_then(|last| last.split_once(':')).map_or("", |(_, task)| task);
            (text(&data[1]["langgraph_node"]), 2, places.get(task).copied().unwrap_or(0))
        }
        "messages/metadata" => {
            let mut node = NOBODY.to_owned();
            for (id, of) in data.as_object().into_iter().flatten() {
                node = text(&of["metadata"]["langgraph_node"]);
                speakers.insert(id.clone(), node.clone());
            }
            (node, 2, 0)
        }
        mode if mode.starts_with("messages/") => {
            let speaker = data[0]["id"].as_str().and_then(|id| speakers.get(id));
            (speaker.map_or(NOBODY, String::as_str).to_owned(), 2, 0)
        }
        _ => (NOBODY.to_owned(), 5, 0),
    };
    let is_question = node == "__interrupt__" || event.mode == "values";
    (if is_question { QUESTIONS.to_owned() } else { node }, kind, index)
}

/// Several questions of siblings count as one event of each mode: how they are batched depends on timing.
fn merge_questions(parts: &mut Vec<Part>) {
    let mut first: HashMap<String, usize> = HashMap::new();
    let mut merged: Vec<Part> = Vec::with_capacity(parts.len());
    for part in std::mem::take(parts) {
        let Part::Own(mut event) = part else {
            merged.push(part);
            continue;
        };
        let asks = matches!(event.mode.as_str(), "updates" | "values")
            && event.data["__interrupt__"].as_array().is_some_and(|list| !list.is_empty());
        if !asks {
            merged.push(Part::Own(event));
            continue;
        }
        let questions = event.data["__interrupt__"].as_array().cloned().unwrap_or_default();
        match first.get(&event.mode) {
            Some(place) => {
                if let Part::Own(earlier) = &mut merged[*place]
                    && let Some(list) = earlier.data["__interrupt__"].as_array_mut()
                {
                    for question in questions {
                        if list.iter().all(|known| known["id"] != question["id"]) {
                            list.push(question);
                        }
                    }
                    list.sort_by_cached_key(blank);
                }
            }
            None => {
                first.insert(event.mode.clone(), merged.len());
                if let Some(list) = event.data["__interrupt__"].as_array_mut() {
                    list.sort_by_cached_key(blank);
                }
                merged.push(Part::Own(event));
            }
        }
    }
    *parts = merged;
}
