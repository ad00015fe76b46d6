//! What the routes take and answer: one file per noun, as in `routes`. Section numbers are those of the contract.

pub(in crate::http) mod a2a;
pub(in crate::http) mod assistants;
pub(in crate::http) mod branches;
pub(in crate::http) mod checkpoints;
pub(in crate::http) mod crons;
pub(in crate::http) mod effects;
pub(in crate::http) mod events;
pub(in crate::http) mod executions;
pub(in crate::http) mod foreign;
pub(in crate::http) mod interrupts;
pub(in crate::http) mod mcp;
pub(in crate::http) mod quarantine;
pub(super) mod run_body;
pub(in crate::http) mod runs;
pub(in crate::http) mod session;
pub(in crate::http) mod sessions;
pub(in crate::http) mod state;
pub(in crate::http) mod store;
pub(in crate::http) mod system;
pub(in crate::http) mod threads;
pub(in crate::http) mod webhooks;

/// The nouns by which operations are grouped.
pub(super) const TAGS: [(&str, &str); 15] = [
    ("assistants", "Named configurations of graphs, in versions"),
    ("threads", "Conversations or tasks, with everything that belongs to them"),
    ("state", "The state of a thread: now, earlier, and edited"),
    ("checkpoints", "The record of a thread"),
    ("branches", "Names of checkpoints, the head, and what differs"),
    ("runs", "Invocations of a graph on a thread"),
    ("stateless", "Runs without a thread of their own"),
    ("events", "Protocol v2: commands in, events out"),
    ("interrupts", "Questions to humans, and their answers"),
    ("crons", "Runs that start on a schedule"),
    ("store", "Items: the memory that threads share"),
    ("webhooks", "Webhooks that are under way or given up"),
    ("quarantine", "Runs that were set aside, for they killed their processes"),
    ("agents", "Assistants as tools (MCP) and as agents (A2A)"),
    ("system", "The server about itself"),
];
