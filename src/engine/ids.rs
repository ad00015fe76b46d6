//! Derived ids: the same checkpoint always gives the same task and interrupt ids, which is what makes pending writes and
//! answers find their task again (section 1.9).

use std::sync::Arc;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::model::special;

/// Derives the ids of the tasks of one superstep.
#[derive(Debug)]
pub struct TaskIds {
    /// Checkpoint and graph namespace, then what the last id was derived from.
    bytes: Vec<u8>,
    prefix: usize,
    graph_ns: String,
    step: String,
}

impl TaskIds {
    pub fn new(checkpoint_id: &str, graph_ns: &str, step: i64) -> TaskIds {
        let mut bytes = Vec::with_capacity(256);
        match Uuid::try_parse(checkpoint_id) {
            Ok(uuid) => bytes.extend_from_slice(uuid.as_bytes()),
            // Foreign ids need not be UUIDs.
            Err(_) => bytes.extend_from_slice(checkpoint_id.as_bytes()),
        }
        let graph_ns = node_ns(graph_ns, "");
        bytes.extend_from_slice(graph_ns.as_bytes());
        TaskIds { prefix: bytes.len(), bytes, graph_ns, step: step.to_string() }
    }

    /// A task id and the namespace of the task.
    fn derive(&mut self, node: &str, parts: &[&str]) -> (Arc<str>, Arc<str>) {
        self.bytes.truncate(self.prefix);
        for part in [node, &self.step].iter().chain(parts) {
            self.bytes.extend_from_slice(part.as_bytes());
        }
        let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
        let id: &str = Uuid::from_u128(xxh3_128(&self.bytes)).hyphenated().encode_lower(&mut id);
        (Arc::from(id), Arc::from([&self.graph_ns, node, ":", id].concat()))
    }

    /// Of a task planned by its triggers; `seed`: the node's name, [`special::PULL`] and its sorted triggers.
    pub fn pull(&mut self, node: &str, seed: &str) -> (Arc<str>, Arc<str>) {
        self.derive(node, &[seed])
    }

    /// Of the task of the `index`-th Send.
    pub fn push(&mut self, node: &str, index: usize) -> (Arc<str>, Arc<str>) {
        self.derive(node, &[node, special::PUSH, &index.to_string()])
    }

    /// Of the task that handles a failed one.
    pub fn handler(&mut self, handler: &str, failed: &str) -> (Arc<str>, Arc<str>) {
        self.derive(handler, &[handler, special::PUSH, "node_error_handler", failed])
    }
}

/// The namespace a node's task works in, before its id: `parent|node` or `node`.
pub fn node_ns(graph_ns: &str, node: &str) -> String {
    if graph_ns.is_empty() { node.to_owned() } else { format!("{graph_ns}|{node}") }
}

/// The namespace of a task: what its subgraph's checkpoints and its interrupts are named by.
pub fn task_ns(graph_ns: &str, node: &str, task_id: &str) -> String {
    format!("{}:{task_id}", node_ns(graph_ns, node))
}

/// The id of a task's next question when `answered` answers are there already: 32 hexadecimal digits (section 5.2).
pub fn interrupt(task_ns: &str, answered: usize) -> String {
    let text = if answered == 0 { task_ns.to_owned() } else { format!("{task_ns}|{answered}") };
    format!("{:032x}", xxh3_128(text.as_bytes()))
}

/// True for the form of an interrupt id: what makes a resume value a map.
pub fn is_interrupt_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// An id for something a task made without one: a UUID-shaped hash of the task and positions.
pub fn derived(task_id: &str, positions: &[usize]) -> String {
    let mut text = task_id.to_owned();
    for position in positions {
        text.push(':');
        text.push_str(&position.to_string());
    }
    Uuid::from_u128(xxh3_128(text.as_bytes())).hyphenated().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_depend_on_everything_that_names_a_task() {
        let at = "1f1e5404-2c56-6582-8001-fa57f1d4247e";
        let pull = |ns: &str, step: i64| TaskIds::new(at, ns, step).pull("n", "n__pregel_pullbranch:to:n");
        let (id, ns) = pull("", 1);
        assert_eq!(pull("", 1), (id.clone(), ns.clone()));
        assert_eq!(*ns, task_ns("", "n", &id));
        assert_ne!(id, pull("", 2).0);
        assert_ne!(id, pull("sub:x", 1).0);
        let mut ids = TaskIds::new(at, "sub:x", 1);
        let (first, ns) = ids.push("n", 0);
        assert_eq!(*ns, task_ns("sub:x", "n", &first));
        assert_ne!(first, ids.push("n", 1).0);
        assert_eq!(first, ids.push("n", 0).0);
        assert!(is_interrupt_id(&interrupt(&task_ns("", "n", &id), 0)));
        assert_ne!(interrupt("n:x", 0), interrupt("n:x", 1));
    }

    /// What LangGraph's own functions answer (1.2.22): threads it stored can be gone on with, and clients that
    /// remember an id find it.
    #[test]
    fn ids_are_those_of_langgraph() {
        let at = "1f1e5404-2c56-6582-8001-fa57f1d4247e";
        let mut ids = TaskIds::new(at, "", 1);
        let (pull, ns) = ids.pull("n", "n__pregel_pullbranch:to:n");
        assert_eq!(*pull, *"1c70b585-73e8-68af-4dc4-c6eb9d7dec62");
        assert_eq!(*ns, *"n:1c70b585-73e8-68af-4dc4-c6eb9d7dec62");
        let (handler, _) = ids.handler("__error_handler__n", &pull);
        assert_eq!(*handler, *"0bae67f3-9af7-8a23-a1f8-1fbe87aecaf2");
        let (push, _) = TaskIds::new(at, "sub:x", 1).push("n", 0);
        assert_eq!(*push, *"2c79318c-a520-3f5c-763f-dbd5bf56297d");
        assert_eq!(interrupt(&ns, 0), "207349601023300dc86982bde5d6363a");
        assert_eq!(interrupt(&ns, 1), "0e5a1f3c6c0a1a7f8f7cfb43134943e1");
    }
}
