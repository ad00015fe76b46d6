//! The graphs this server ships: small ones that need no model and no network, to try the API with, to copy from, and
//! to measure with. A graph of your own is one more file here and one more line in [`all`], or a binary of your own
//! (`examples/custom_server.rs`).

mod approval;
mod chat;
mod count;
mod counter;
mod fanout;
mod greeter;
mod slow;

#[cfg(test)]
mod tests;

use crate::graph::{BuildErrors, Graph};

/// Every graph, in the order in which they are listed.
pub fn all() -> Vec<Result<Graph, BuildErrors>> {
    vec![
        counter::graph(),
        count::graph(),
        greeter::graph(),
        chat::graph(),
        approval::graph(),
        fanout::graph(),
        slow::graph(),
    ]
}
