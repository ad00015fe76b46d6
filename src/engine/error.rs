//! Errors of a graph's execution: a class and a message, as clients see them.

#![deny(missing_docs)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::py;
use crate::model::ErrorInfo;

/// What went wrong in a graph, a reducer, a router or a node. The class decides what clients may read: messages of
/// classes outside [`EngineError::PUBLIC`] are replaced on runs and streams, and kept whole in task errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {message}")]
pub struct EngineError {
    /// What kind of failure it is: the name of an exception in LangGraph's words, or of the author's making.
    pub class: String,
    /// What happened, in words.
    pub message: String,
}

/// What clients read instead of the message of a class that is not public.
pub const MASKED: &str = "An internal error occurred";

/// The class of what strict resume refuses.
pub(super) const UNKNOWN_INTERRUPT: &str = "UnknownInterruptError";

impl EngineError {
    /// The classes whose messages are shown on runs and streams.
    pub const PUBLIC: [&'static str; 19] = [
        "ValueError",
        "TypeError",
        "KeyError",
        "AttributeError",
        "RuntimeError",
        "RecursionError",
        "TimeoutError",
        "InvalidUpdateError",
        "EmptyInputError",
        "GraphRecursionError",
        "ParentCommand",
        "GraphDrained",
        "RunQuarantined",
        "UserInterrupt",
        "UserRollback",
        "GraphVersionError",
        "GraphNotFound",
        "RunTimeout",
        "ValidationError",
    ];

    /// An error of any class.
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> EngineError {
        EngineError { class: class.into(), message: message.into() }
    }

    /// A panic, as an error of the code that panicked.
    pub fn panicked(panic: &(dyn Any + Send)) -> EngineError {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        EngineError::new("Panic", text.unwrap_or_else(|| "no message".to_owned()))
    }

    /// Calls a router or reducer: authors' code, whose panics are errors like those of nodes.
    pub(super) fn guard<T>(call: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(EngineError::panicked(&*panic)))
    }

    /// An `InvalidUpdateError`: the state cannot be changed so.
    pub fn invalid_update(message: impl Into<String>) -> EngineError {
        EngineError::new("InvalidUpdateError", message)
    }

    /// A `ValueError`.
    pub fn value(message: impl Into<String>) -> EngineError {
        EngineError::new("ValueError", message)
    }

    /// `Class('message')`: how a task's error is stored and shown.
    pub fn repr(&self) -> String {
        if self.message.is_empty() {
            return format!("{}()", self.class);
        }
        format!("{}({})", self.class, py::repr_str(&self.message))
    }

    /// The text after the class name, as a client reads it. A `KeyError` shows its key quoted.
    pub fn text(&self) -> String {
        if self.class == "KeyError" { py::repr_str(&self.message) } else { self.message.clone() }
    }

    /// The public form, with the message masked where the class is not public.
    pub fn info(&self) -> ErrorInfo {
        let message = if Self::PUBLIC.contains(&self.class.as_str()) { self.text() } else { MASKED.to_owned() };
        ErrorInfo { error: self.class.clone(), message }
    }

    /// Refused by strict resume. The reference masks why; who asked for it by our own field is told.
    pub fn is_unknown_interrupt(&self) -> bool {
        self.class == UNKNOWN_INTERRUPT
    }
}
