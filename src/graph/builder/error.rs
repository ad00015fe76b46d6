//! What can be wrong with a graph. Texts in quotes are LangGraph's own.

use std::fmt;

/// One thing that is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Nothing follows START.
    #[error("Graph must have an entrypoint: add at least one edge from START to another node")]
    NoEntrypoint,
    /// An edge, join or router starts at a node that was not added.
    #[error("{edge}: Found edge starting at unknown node '{node}'")]
    UnknownSource {
        /// The edge, as it was declared.
        edge: String,
        /// The node.
        node: String,
    },
    /// An edge or join leads to a node that was not added.
    #[error("{edge}: Found edge ending at unknown node `{node}`")]
    UnknownTarget {
        /// The edge, as it was declared.
        edge: String,
        /// The node.
        node: String,
    },
    /// A router was declared to lead to a node that was not added.
    #[error("router `{router}`: At '{node}' node, '{router}' branch found unknown target '{target}'")]
    UnknownBranchTarget {
        /// The node.
        node: String,
        /// The router.
        router: String,
        /// Where it leads.
        target: String,
    },
    /// Nothing follows END.
    #[error("{edge}: END cannot be a start node")]
    EndAsSource {
        /// The edge, as it was declared.
        edge: String,
    },
    /// Nothing leads to START.
    #[error("{edge}: START cannot be an end node")]
    StartAsTarget {
        /// The edge, as it was declared.
        edge: String,
    },
    /// A join of no nodes would never fire.
    #[error("{edge}: a join needs at least one source")]
    EmptyJoin {
        /// The edge, as it was declared.
        edge: String,
    },
    /// Two nodes have one name.
    #[error("Node `{node}` already present.")]
    DuplicateNode {
        /// The node.
        node: String,
    },
    /// The name has a meaning of its own.
    #[error("Node `{node}` is reserved.")]
    ReservedNode {
        /// The node.
        node: String,
    },
    /// The character separates names in namespaces.
    #[error("node `{node}`: '{character}' is a reserved character and is not allowed in the node names.")]
    ReservedCharacter {
        /// The node.
        node: String,
        /// The character.
        character: char,
    },
    /// The name is empty.
    #[error("a node needs a name")]
    EmptyNodeName,
    /// Two routers of a node have one name.
    #[error("Branch with name `{router}` already exists for node `{node}`")]
    DuplicateRouter {
        /// The node.
        node: String,
        /// The router.
        router: String,
    },
    /// A breakpoint names a node that was not added.
    #[error("interrupt_{when}: Interrupt node `{node}` not found")]
    UnknownInterruptNode {
        /// `before` or `after`.
        when: &'static str,
        /// The node.
        node: String,
    },
    /// A reducer, node, router, input or output names a key that the state does not have.
    #[error("{what}: `{key}` is not a key of the state, which has {known}")]
    UnknownKey {
        /// What names it.
        what: String,
        /// The key.
        key: String,
        /// The keys there are.
        known: String,
    },
    /// The key is the name of one of the engine's own channels.
    #[error("state key `{key}` is reserved for the engine")]
    ReservedKey {
        /// The key.
        key: String,
    },
    /// A private key has the name of another key.
    #[error("state key `{key}` is declared twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The type has no fields that could be keys.
    #[error("the {role} type `{name}` is not a struct with named fields, so that it has no keys{hint}")]
    NotAnObject {
        /// What the type is for.
        role: &'static str,
        /// The name of the type.
        name: String,
        /// What to do instead, if there is something.
        hint: &'static str,
    },
    /// The version is the empty string.
    #[error("a version cannot be empty")]
    EmptyVersion,
    /// Two migrations start from one version.
    #[error("there are two migrations from version \"{version}\"")]
    DuplicateMigration {
        /// The version.
        version: String,
    },
    /// A migration starts from the version that the graph has.
    #[error("the migration from version \"{version}\" never applies: it is the version of this graph")]
    MigrationFromCurrent {
        /// The version.
        version: String,
    },
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
