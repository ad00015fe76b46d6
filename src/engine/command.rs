//! What a node may return and what a client may send instead of input: updates, Commands, destinations.

#![deny(missing_docs)]

use serde::Serialize;

use super::EngineError;
use super::py;
use crate::model::{Fields, Json, TimeoutPolicy, special};

/// Where to go next.
#[derive(Debug, Clone, PartialEq)]
pub enum Destination {
    /// A node, or END.
    Node(String),
    /// A task of its own, in the next superstep.
    Send(Packet),
}

/// A Send: a task of its own for a node, in the next superstep.
///
/// [`send`](crate::graph::send) is the short form for one without options.
///
/// ```
/// use std::time::Duration;
/// use session_store::graph::{Destination, Packet, send};
///
/// fn pages(large: &[u32], small: &[u32]) -> Vec<Destination> {
///     let patient = |page| Packet::new("read", page).timeout(Duration::from_secs(60)).into();
///     small.iter().map(|page| send("read", page)).chain(large.iter().map(patient)).collect()
/// }
/// # assert_eq!(pages(&[1], &[2]).len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// The node that is run.
    pub node: String,
    /// What it is handed, verbatim.
    pub arg: Json,
    /// Limits this task in place of the node's own timeouts, those of both kinds.
    pub timeout: Option<TimeoutPolicy>,
}

impl From<&str> for Destination {
    fn from(node: &str) -> Self {
        Destination::Node(node.to_owned())
    }
}

impl From<String> for Destination {
    fn from(node: String) -> Self {
        Destination::Node(node)
    }
}

impl Destination {
    /// A Send.
    pub fn send(node: impl Into<String>, arg: Json) -> Destination {
        Destination::Send(Packet { node: node.into(), arg, timeout: None })
    }
}

impl From<Packet> for Destination {
    fn from(packet: Packet) -> Self {
        Destination::Send(packet)
    }
}

impl Packet {
    /// A task that is limited as its node says.
    ///
    /// # Panics
    /// If the argument cannot be encoded as JSON: maps need string keys.
    pub fn new(node: impl Into<String>, arg: impl Serialize) -> Packet {
        match Json::of(&arg) {
            Ok(arg) => Packet { node: node.into(), arg, timeout: None },
            Err(error) => panic!("the argument of a Send cannot be encoded: {error}"),
        }
    }

    /// Limits each attempt of this task, in place of all that the node says of timeouts: a
    /// [`Duration`](std::time::Duration) ends an attempt that takes longer. It holds until the task has ended, across
    /// crashes, questions and resumes.
    #[must_use]
    pub fn timeout(mut self, limit: impl Into<TimeoutPolicy>) -> Packet {
        let limit = limit.into();
        self.timeout = (!limit.is_empty()).then_some(limit);
        self
    }

    /// The stored form: `{"node": .., "args": ..}`, and `"timeout"` if it has one.
    pub fn to_json(&self) -> Json {
        let (node, timeout) = (Json::from(self.node.as_str()), self.timeout.map(|timeout| timeout.to_json()));
        let fields = [("node", &node), ("args", &self.arg)];
        Json::from_fields(fields.into_iter().chain(timeout.iter().map(|timeout| ("timeout", timeout))))
    }

    /// Reads the stored form.
    pub fn from_json(json: &Json) -> Option<Packet> {
        let mut fields = json.fields()?;
        let node = fields.shift_remove("node")?.as_str()?.to_owned();
        let timeout = fields.shift_remove("timeout").map(|timeout| TimeoutPolicy::from_json(&timeout));
        let arg = fields.shift_remove("args").unwrap_or_default();
        Some(Packet { node, arg, timeout: timeout.filter(|timeout| !timeout.is_empty()) })
    }
}

/// The state writes of a Command: one object, or key-value pairs in order (a key may repeat).
#[derive(Debug, Clone, PartialEq)]
pub enum CommandUpdate {
    /// Every key once.
    Fields(Fields),
    /// In this order.
    Pairs(Vec<(String, Json)>),
    /// Neither: refused when applied.
    Other(Json),
}

/// State writes together with where to go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Command {
    /// What it writes to the state.
    pub update: Option<CommandUpdate>,
    /// Where it leads, besides the edges of the node that returns it.
    pub goto: Vec<Destination>,
    /// Addressed to the graph that hosts this one as a node.
    pub parent: bool,
    /// An answer to pending interrupts; only in a Command given as input.
    pub resume: Option<Json>,
}

impl Command {
    /// Nothing asked at all.
    pub fn is_empty(&self) -> bool {
        self.update.is_none() && self.goto.is_empty() && self.resume.is_none()
    }

    /// Reads a client's Command (contract section 3.4). `null` members are absent, `goto: []` is none.
    pub fn from_json(json: &Json) -> Result<Command, EngineError> {
        let Some(mut fields) = json.fields() else {
            return Err(EngineError::value("command must be an object"));
        };
        let mut take = |key: &str| fields.shift_remove(key).filter(|value| !value.is_null());
        let update = take("update").map(|update| match (update.fields(), pairs(&update)) {
            (Some(fields), _) => CommandUpdate::Fields(fields),
            (None, Some(pairs)) => CommandUpdate::Pairs(pairs),
            (None, None) => CommandUpdate::Other(update),
        });
        let goto = match take("goto") {
            None => Vec::new(),
            Some(goto) => match goto.items() {
                Some(items) => items.iter().map(destination).collect::<Result<_, _>>()?,
                None => vec![destination(&goto)?],
            },
        };
        let parent = take("graph").is_some_and(|graph| graph.as_str() == Some("__parent__"));
        Ok(Command { update, goto, parent, resume: take("resume") })
    }
}

fn pairs(json: &Json) -> Option<Vec<(String, Json)>> {
    json.items()?
        .iter()
        .map(|pair| {
            let pair = pair.items()?;
            match (pair.len(), pair.get(0).and_then(|key| key.as_str()), pair.get(1)) {
                (2, Some(key), Some(value)) => Some((key.to_owned(), value.clone())),
                _ => None,
            }
        })
        .collect()
}

fn destination(json: &Json) -> Result<Destination, EngineError> {
    if let Some(node) = json.as_str() {
        return Ok(Destination::Node(node.to_owned()));
    }
    let mut fields = json.fields().unwrap_or_default();
    let node = fields.shift_remove("node").and_then(|node| node.as_str().map(str::to_owned));
    match node {
        Some(node) => {
            let arg = fields.shift_remove("input").or_else(|| fields.shift_remove("args")).unwrap_or_default();
            Ok(Destination::send(node, arg))
        }
        None => Err(EngineError::new(
            "TypeError",
            format!("In Command.goto, expected Send/str, got {}", py::repr(json.value())),
        )),
    }
}

/// What a node returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// No writes.
    Nothing,
    /// Writes to the keys it names.
    Update(Fields),
    /// Writes, and where to go.
    Command(Command),
    /// Several Commands and updates, applied in order.
    Many(Vec<Output>),
    /// Anything else: refused with `InvalidUpdateError`, "Expected dict, got ..".
    Other(Json),
}

impl From<Fields> for Output {
    fn from(fields: Fields) -> Self {
        Output::Update(fields)
    }
}

impl From<Command> for Output {
    fn from(command: Command) -> Self {
        Output::Command(command)
    }
}

impl From<()> for Output {
    fn from((): ()) -> Self {
        Output::Nothing
    }
}

/// Wraps a value so that it replaces a reducer channel's content instead of being folded into it (section 2.1). This is
/// the form in which clients see an Overwrite that a node returned.
pub fn overwrite(value: &Json) -> Json {
    Json::from_fields([("type", &Json::from("__overwrite__")), ("value", value)])
}

/// Reads the forms of Overwrite: `{"__overwrite__": v}` and `{"type": "__overwrite__", "value": v}`.
pub fn as_overwrite(json: &Json) -> Option<Json> {
    if !json.is_object() || !json.as_raw().get().contains("__overwrite__") {
        return None;
    }
    let mut fields = json.fields()?;
    if fields.len() == 1 {
        return fields.shift_remove("__overwrite__");
    }
    let tagged = fields.len() == 2 && fields.get("type").and_then(Json::as_str) == Some("__overwrite__");
    if tagged { fields.shift_remove("value") } else { None }
}

/// True for a name that only ends a path.
pub fn is_end(node: &str) -> bool {
    node == special::END
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::RefreshOn;

    #[test]
    fn a_stored_send_comes_back_with_its_limits() {
        let plain = Packet::new("work", [1]);
        assert_eq!(plain.to_json().text(), r#"{"node":"work","args":[1]}"#);
        assert_eq!(Packet::from_json(&plain.to_json()), Some(plain.clone()));
        let limits = TimeoutPolicy { refresh_on: RefreshOn::Heartbeat, ..TimeoutPolicy::idle(Duration::from_secs(5)) };
        for limited in [plain.clone().timeout(Duration::from_millis(50)), plain.clone().timeout(limits)] {
            assert_eq!(Packet::from_json(&limited.to_json()), Some(limited));
        }
        assert_eq!(plain.clone().timeout(TimeoutPolicy::default()), plain, "no limits are none");
        let without_args = Json::parse(r#"{"node":"work"}"#).expect("JSON");
        assert_eq!(Packet::from_json(&without_args), Some(Packet::new("work", ())));
        assert_eq!(Packet::from_json(&Json::parse(r#"{"args":1}"#).expect("JSON")), None);
    }
}
