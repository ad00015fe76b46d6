//! What can be wrong with a graph. Texts in quotes are LangGraph's own.

use std::fmt;

/// One thing that is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("Graph must have an entrypoint: add at least one edge from START to another node")]
    NoEntrypoint,
    #[error("{edge}: Found edge starting at unknown node '{node}'")]
    UnknownSource { edge: String, node: String },
    #[error("{edge}: Found edge ending at unknown node `{node}`")]
    UnknownTarget { edge: String, node: String },
    #[error("router `{router}`: At '{node}' node, '{router}' branch found unknown target '{target}'")]
    UnknownBranchTarget { node: String, router: String, target: String },
    #[error("{edge}: END cannot be a start node")]
    EndAsSource { edge: String },
    #[error("{edge}: START cannot be an end node")]
    StartAsTarget { edge: String },
    #[error("{edge}: a join needs at least one source")]
    EmptyJoin { edge: String },
    #[error("Node `{node}` already present.")]
    DuplicateNode { node: String },
    #[error("Node `{node}` is reserved.")]
    ReservedNode { node: String },
    #[error("node `{node}`: '{character}' is a reserved character and is not allowed in the node names.")]
    ReservedCharacter { node: String, character: char },
    #[error("a node needs a name")]
    EmptyNodeName,
    #[error("Branch with name `{router}` already exists for node `{node}`")]
    DuplicateRouter { node: String, router: String },
    #[error("interrupt_{when}: Interrupt node `{node}` not found")]
    UnknownInterruptNode { when: &'static str, node: String },
    #[error("{what}: `{key}` is not a key of the state, which has {known}")]
    UnknownKey { what: String, key: String, known: String },
    #[error("state key `{key}` is reserved for the engine")]
    ReservedKey { key: String },
    #[error("state key `{key}` is declared twice")]
    DuplicateKey { key: String },
    #[error("the {role} type `{name}` is not a struct with named fields, so that it has no keys{hint}")]
    NotAnObject { role: &'static str, name: String, hint: &'static str },
}

/// Everything that is wrong with a graph, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildErrors {
    /// The graph.
    pub graph: String,
    /// At least one.
    pub errors: Vec<BuildError>,
}

impl fmt::Display for BuildErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph `{}` cannot be built:", self.graph)?;
        self.errors.iter().try_for_each(|error| write!(f, "\n- {error}"))
    }
}

impl std::error::Error for BuildErrors {}
