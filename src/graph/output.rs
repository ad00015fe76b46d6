//! What a node returns: nothing, an [`Update`] of the state, a [`Command`], or several of them.

use std::marker::PhantomData;

use serde::Serialize;

use super::node::NodeError;
use crate::engine::command::{self, CommandUpdate};
use crate::engine::{Command, Destination, Output, Packet};
use crate::model::{Fields, Json, JsonError, special};

/// The name of the place where a run begins.
pub const START: &str = special::START;
/// The name of the place where a path ends.
pub const END: &str = special::END;

/// What a node's function may return inside its `Ok`.
///
/// `()`, an [`Update`] (what [`update!`](crate::update) makes), [`Fields`], a [`Command`], a [`Json`], an `Option` of
/// one of these (`None` writes nothing), or a list of them, applied in order.
pub trait IntoOutput {
    /// # Errors
    /// A value that could not be encoded, or a Command for the graph around this one, which is control flow.
    fn into_output(self) -> Result<Output, NodeError>;
}

impl IntoOutput for Output {
    fn into_output(self) -> Result<Output, NodeError> {
        let for_parent = |output: &Output| matches!(output, Output::Command(command) if command.parent);
        match self {
            Output::Command(command) if command.parent => Err(NodeError::Parent(Box::new(command))),
            // One of several: the first wins, as it ends the node.
            Output::Many(many) if many.iter().any(for_parent) => {
                let first = many.into_iter().find(for_parent);
                first.map_or(Ok(Output::Nothing), IntoOutput::into_output)
            }
            other => Ok(other),
        }
    }
}

impl IntoOutput for () {
    fn into_output(self) -> Result<Output, NodeError> {
        Ok(Output::Nothing)
    }
}

impl IntoOutput for Fields {
    fn into_output(self) -> Result<Output, NodeError> {
        Ok(Output::Update(self))
    }
}

impl IntoOutput for Command {
    fn into_output(self) -> Result<Output, NodeError> {
        Output::Command(self).into_output()
    }
}

/// An object is an update, null writes nothing; anything else is refused when it is applied.
impl IntoOutput for Json {
    fn into_output(self) -> Result<Output, NodeError> {
        Ok(match self.fields() {
            Some(fields) => Output::Update(fields),
            None if self.is_null() => Output::Nothing,
            None => Output::Other(self),
        })
    }
}

impl<T: IntoOutput> IntoOutput for Option<T> {
    fn into_output(self) -> Result<Output, NodeError> {
        self.map_or(Ok(Output::Nothing), IntoOutput::into_output)
    }
}

impl<T: IntoOutput> IntoOutput for Vec<T> {
    fn into_output(self) -> Result<Output, NodeError> {
        let many: Result<_, _> = self.into_iter().map(IntoOutput::into_output).collect();
        Output::Many(many?).into_output()
    }
}

impl IntoOutput for Update {
    fn into_output(self) -> Result<Output, NodeError> {
        let Update { fields, goto, parent, error } = self;
        if let Some((key, error)) = error {
            return Err(NodeError::new("TypeError", format!("the value of `{key}` cannot be encoded: {error}")));
        }
        if goto.is_empty() && !parent {
            return Ok(Output::Update(fields));
        }
        let update = (!fields.is_empty()).then_some(CommandUpdate::Fields(fields));
        Command { update, goto, parent, resume: None }.into_output()
    }
}

/// Writes to some keys of the state, and where to go next.
///
/// [`update!`](crate::update) makes one that is checked against the state type; this builder takes any keys.
///
/// ```
/// use session_store::graph::Update;
/// let update = Update::new().set("count", 1).set("note", "one more").goto("review");
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "an update has to be returned from the node"]
pub struct Update {
    fields: Fields,
    goto: Vec<Destination>,
    parent: bool,
    /// The first value that could not be encoded; reported when the node returns.
    error: Option<(String, JsonError)>,
}

impl Update {
    /// Writes nothing yet.
    pub fn new() -> Update {
        Update::default()
    }

    /// Writes a key; a later write of the same key replaces the earlier one. For a reducer channel this is what is
    /// folded in: the items to append, the number to add.
    pub fn set(mut self, key: impl Into<String>, value: impl Serialize) -> Update {
        let key = key.into();
        match Json::of(&value) {
            Ok(value) => {
                self.fields.insert(key, value);
            }
            Err(error) => {
                self.error.get_or_insert((key, error));
            }
        }
        self
    }

    /// Replaces the value of a reducer channel instead of folding into it.
    pub fn overwrite(self, key: impl Into<String>, value: impl Serialize) -> Update {
        match Json::of(&value) {
            Ok(value) => self.set(key, command::overwrite(&value)),
            Err(_) => self.set(key, value),
        }
    }

    /// Goes to a node (or END) or sends a task, besides following the node's edges. May be called several times.
    pub fn goto(mut self, destination: impl Into<Destination>) -> Update {
        self.goto.push(destination.into());
        self
    }

    /// Addresses all of this to the graph that hosts this one as a node.
    pub fn in_parent(mut self) -> Update {
        self.parent = true;
        self
    }

    /// The writes.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }
}

/// Only where to go: `Ok(goto("review"))`.
pub fn goto(destination: impl Into<Destination>) -> Update {
    Update::new().goto(destination)
}

/// A task of its own for `node`, in the next superstep, with this argument. [`Packet`] makes one with a timeout.
///
/// # Panics
/// If the argument cannot be encoded as JSON: maps need string keys.
pub fn send(node: impl Into<String>, arg: impl Serialize) -> Destination {
    Packet::new(node, arg).into()
}

/// The type of one field of a state, found from a reference to it. Part of [`update!`](crate::update).
#[doc(hidden)]
#[derive(Debug)]
pub struct FieldOf<T>(PhantomData<fn(T)>);

#[doc(hidden)]
pub fn field_of<S, T>(_: impl FnOnce(&S) -> &T) -> FieldOf<T> {
    FieldOf(PhantomData)
}

impl<T: Serialize> FieldOf<T> {
    #[doc(hidden)]
    pub fn set(self, update: Update, key: &str, value: T) -> Update {
        update.set(key, value)
    }

    #[doc(hidden)]
    pub fn overwrite(self, update: Update, key: &str, value: T) -> Update {
        update.overwrite(key, value)
    }
}

/// A partial update of a state: the named fields and no others, checked against the state type when compiled.
///
/// The keys are the fields' names, so a state whose fields are renamed for serde needs [`Update`](crate::graph::Update).
/// `overwrite(value)` replaces what a reducer holds.
///
/// ```
/// # use session_store::update;
/// struct Counter { counter: i64, log: Vec<String> }
/// let counter = 1;
/// let _ = update!(Counter { counter, log: vec!["counted".to_owned()] });
/// let _ = update!(Counter { log: overwrite(vec![]) });
/// ```
///
/// A field that is not there, or of another type, does not compile:
///
/// ```compile_fail
/// # use session_store::update;
/// struct Counter { counter: i64 }
/// let _ = update!(Counter { count: 1 });
/// ```
///
/// ```compile_fail
/// # use session_store::update;
/// struct Counter { counter: i64 }
/// let _ = update!(Counter { counter: "one" });
/// ```
#[macro_export]
macro_rules! update {
    (@fields $update:ident, $state:ty,) => {};
    (@fields $update:ident, $state:ty, $field:ident : overwrite($value:expr) $(, $($rest:tt)*)?) => {
        let $update = $crate::graph::output::field_of(|state: &$state| &state.$field)
            .overwrite($update, stringify!($field), $value);
        $crate::update!(@fields $update, $state, $($($rest)*)?);
    };
    (@fields $update:ident, $state:ty, $field:ident : $value:expr $(, $($rest:tt)*)?) => {
        let $update = $crate::graph::output::field_of(|state: &$state| &state.$field)
            .set($update, stringify!($field), $value);
        $crate::update!(@fields $update, $state, $($($rest)*)?);
    };
    (@fields $update:ident, $state:ty, $field:ident $(, $($rest:tt)*)?) => {
        $crate::update!(@fields $update, $state, $field: $field $(, $($rest)*)?);
    };
    ($state:path { $($fields:tt)* }) => {{
        let update = $crate::graph::Update::new();
        $crate::update!(@fields update, $state, $($fields)*);
        update
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(dead_code, reason = "only its shape matters")]
    struct State {
        count: i64,
        note: Option<String>,
        r#type: Vec<u8>,
    }

    #[test]
    fn an_update_names_some_fields_in_order() {
        let count = 2;
        let update = update!(State { note: None, count });
        assert_eq!(Json::from(update.fields()).text(), r#"{"note":null,"count":2}"#);
        let update = update!(State { count: overwrite(7), note: Some("x".into()) });
        assert_eq!(Json::from(update.fields()).text(), r#"{"count":{"type":"__overwrite__","value":7},"note":"x"}"#);
        assert!(update!(State {}).fields().is_empty());
    }

    #[test]
    fn going_somewhere_makes_a_command() {
        let Ok(Output::Command(command)) = goto("a").goto(send("b", 1)).set("k", "v").into_output() else {
            panic!("a command")
        };
        assert_eq!(command.goto, [Destination::from("a"), Destination::send("b", Json::from(1))]);
        assert!(matches!(goto("a").in_parent().into_output(), Err(NodeError::Parent(_))));
        assert!(matches!(vec![Update::new(), goto("a").in_parent()].into_output(), Err(NodeError::Parent(_))));
    }

    #[test]
    fn json_is_an_update_if_it_is_an_object() {
        let output = |text| Json::parse(text).expect("valid").into_output().expect("output");
        assert!(matches!(output(r#"{"a":1}"#), Output::Update(fields) if fields.len() == 1));
        assert_eq!(output("null"), Output::Nothing);
        assert_eq!(output("[1]"), Output::Other(Json::parse("[1]").expect("valid")));
    }

    #[test]
    fn a_value_that_cannot_be_encoded_fails_the_node() {
        let keys = std::collections::BTreeMap::from([(vec![1], 1)]);
        let Err(NodeError::Failed(error)) = Update::new().set("k", keys).into_output() else { panic!("fails") };
        assert!(error.message.contains("`k`"), "{error}");
    }
}
