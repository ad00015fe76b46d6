//! Derived ids: the same checkpoint always gives the same task and interrupt ids, which is what makes pending writes and
//! answers find their task again (section 1.9).

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::model::special;

fn digest(checkpoint_id: &str, parts: &[&str]) -> String {
    let mut bytes = match Uuid::try_parse(checkpoint_id) {
        Ok(uuid) => uuid.as_bytes().to_vec(),
        // Foreign ids need not be UUIDs.
        Err(_) => checkpoint_id.as_bytes().to_vec(),
    };
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
    }
    Uuid::from_u128(xxh3_128(&bytes)).hyphenated().to_string()
}

/// The namespace a node's task works in, before its id: `parent|node` or `node`.
pub fn node_ns(graph_ns: &str, node: &str) -> String {
    if graph_ns.is_empty() { node.to_owned() } else { format!("{graph_ns}|{node}") }
}

/// The id of a task planned by its triggers.
pub fn pull_task(checkpoint_id: &str, graph_ns: &str, step: i64, node: &str, triggers: &[String]) -> String {
    let (ns, step) = (node_ns(graph_ns, node), step.to_string());
    let mut sorted: Vec<&str> = triggers.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut parts = vec![ns.as_str(), step.as_str(), node, special::PULL];
    parts.extend(sorted);
    digest(checkpoint_id, &parts)
}

/// The id of the task of the `index`-th Send.
pub fn push_task(checkpoint_id: &str, graph_ns: &str, step: i64, node: &str, index: usize) -> String {
    let (ns, step, index) = (node_ns(graph_ns, node), step.to_string(), index.to_string());
    digest(checkpoint_id, &[&ns, &step, node, special::PUSH, &index])
}

/// The id of the task that handles a failed one.
pub fn handler_task(checkpoint_id: &str, graph_ns: &str, step: i64, handler: &str, failed: &str) -> String {
    let (ns, step) = (node_ns(graph_ns, handler), step.to_string());
    digest(checkpoint_id, &[&ns, &step, handler, special::PUSH, "node_error_handler", failed])
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
        let triggers = vec!["branch:to:n".to_owned()];
        let id = pull_task(at, "", 1, "n", &triggers);
        assert_eq!(id, pull_task(at, "", 1, "n", &triggers));
        assert_ne!(id, pull_task(at, "", 2, "n", &triggers));
        assert_ne!(id, pull_task(at, "sub:x", 1, "n", &triggers));
        assert_ne!(push_task(at, "", 1, "n", 0), push_task(at, "", 1, "n", 1));
        assert!(is_interrupt_id(&interrupt(&task_ns("", "n", &id), 0)));
        assert_ne!(interrupt("n:x", 0), interrupt("n:x", 1));
    }
}
