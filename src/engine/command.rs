//! What a node may return and what a client may send instead of input: updates, Commands, destinations.

use super::EngineError;
use super::py;
use crate::model::{Fields, Json, special};

/// Where to go next.
#[derive(Debug, Clone, PartialEq)]
pub enum Destination {
    /// A node, or END.
    Node(String),
    /// A task of its own with this argument, in the next superstep.
    Send { node: String, arg: Json },
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
        Destination::Send { node: node.into(), arg }
    }

    /// The stored form of a Send: `{"node": .., "args": ..}`.
    pub fn send_to_json(node: &str, arg: &Json) -> Json {
        Json::from_fields([("node", &Json::from(node)), ("args", arg)])
    }

    /// Reads a stored Send.
    pub fn send_from_json(json: &Json) -> Option<(String, Json)> {
        let mut fields = json.fields()?;
        let node = fields.shift_remove("node")?.as_str()?.to_owned();
        Some((node, fields.shift_remove("args").unwrap_or_default()))
    }
}

/// The state writes of a Command: one object, or key-value pairs in order (a key may repeat).
#[derive(Debug, Clone, PartialEq)]
pub enum CommandUpdate {
    Fields(Fields),
    Pairs(Vec<(String, Json)>),
    /// Neither: refused when applied.
    Other(Json),
}

/// State writes together with where to go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Command {
    pub update: Option<CommandUpdate>,
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
            Ok(Destination::Send { node, arg })
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
    Update(Fields),
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
