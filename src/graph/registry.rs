//! The graphs a server offers, by name.

use std::fmt;

use indexmap::IndexMap;

use super::builder::BuildErrors;
use super::node::{Checkpointing, Graph};

/// Graphs by name, in the order in which they were registered.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    graphs: IndexMap<String, Graph>,
}

/// Why a set of graphs cannot be offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryErrors {
    /// Graphs that could not be built.
    pub broken: Vec<BuildErrors>,
    /// Names that several graphs have.
    pub duplicate: Vec<String>,
    /// Graphs with [`Checkpointing::Own`]: that is for graphs inside graphs. A root graph's checkpoints are its thread's.
    pub own_checkpoints: Vec<String>,
}

impl fmt::Display for RegistryErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken = self.broken.iter().map(ToString::to_string);
        let duplicate = self.duplicate.iter().map(|name| format!("two graphs have the name `{name}`"));
        let own = self.own_checkpoints.iter().map(|name| {
            format!(
                "graph `{name}` keeps checkpoints of its own, which cannot be used for a root graph: use it as a node"
            )
        });
        f.write_str(&broken.chain(duplicate).chain(own).collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for RegistryErrors {}

impl Registry {
    /// Registers graphs as their builders made them.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn new(graphs: impl IntoIterator<Item = Result<Graph, BuildErrors>>) -> Result<Registry, RegistryErrors> {
        let mut registry = Registry::default();
        let mut errors = RegistryErrors { broken: Vec::new(), duplicate: Vec::new(), own_checkpoints: Vec::new() };
        for graph in graphs {
            match graph {
                Ok(graph) if registry.graphs.contains_key(graph.name()) => {
                    errors.duplicate.push(graph.name().to_owned());
                }
                Ok(graph) if graph.checkpointing() == Checkpointing::Own => {
                    errors.own_checkpoints.push(graph.name().to_owned());
                }
                Ok(graph) => {
                    registry.graphs.insert(graph.name().to_owned(), graph);
                }
                Err(error) => errors.broken.push(error),
            }
        }
        let RegistryErrors { broken, duplicate, own_checkpoints } = &errors;
        if broken.is_empty() && duplicate.is_empty() && own_checkpoints.is_empty() { Ok(registry) } else { Err(errors) }
    }

    /// The graph of this name.
    pub fn get(&self, name: &str) -> Option<&Graph> {
        self.graphs.get(name)
    }

    /// All graphs.
    pub fn iter(&self) -> impl Iterator<Item = &Graph> {
        self.graphs.values()
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.graphs.keys().map(String::as_str)
    }

    /// The graph of a server that has one.
    pub fn only(&self) -> Option<&Graph> {
        if self.graphs.len() == 1 { self.graphs.values().next() } else { None }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.graphs.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.graphs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{START, StateGraph};

    fn named(name: &str) -> Result<Graph, BuildErrors> {
        StateGraph::dynamic(name).node("a", async |(), _ctx| Ok(())).edge(START, "a").build()
    }

    #[test]
    fn finds_graphs_by_name() {
        let registry = Registry::new([named("b"), named("a")]).expect("registers");
        assert_eq!(registry.names().collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(registry.get("a").map(Graph::name), Some("a"));
        assert!(registry.only().is_none());
        assert_eq!(Registry::new([named("a")]).expect("registers").only().map(Graph::name), Some("a"));
    }

    #[test]
    fn a_root_graph_with_checkpoints_of_its_own_is_refused() {
        let graph = StateGraph::dynamic("inner")
            .node("a", async |(), _ctx| Ok(()))
            .edge(START, "a")
            .checkpointing(Checkpointing::Own)
            .build();
        let errors = Registry::new([graph]).expect_err("refuses");
        assert_eq!(errors.own_checkpoints, ["inner"]);
        assert!(errors.to_string().contains("cannot be used for a root graph"), "{errors}");
    }

    #[test]
    fn says_all_that_is_wrong() {
        let errors = Registry::new([named("a"), named("a"), StateGraph::dynamic("c").build()]).expect_err("refuses");
        assert_eq!(errors.duplicate, ["a"]);
        assert_eq!(
            errors.to_string(),
            "graph `c` cannot be built:\n\
             - Graph must have an entrypoint: add at least one edge from START to another node\n\
             two graphs have the name `a`"
        );
    }
}
