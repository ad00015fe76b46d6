//! Assistants as agents (section 3.10). The messages are those of the Agent2Agent protocol.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{component, either, record, text};

fn agent(operation: Operation) -> Operation {
    operation.path("assistant_id", text().with("minLength", 1), "The assistant, or the name of a graph")
}

fn refused(operation: Operation) -> Operation {
    operation.refuses(400, "Its graph has no `messages`").refuses(404, "There is no such assistant")
}

pub(in crate::http) fn message() -> Operation {
    agent(operation("agents.a2a", "A message of the Agent2Agent protocol"))
        .about("JSON-RPC, version 1.0 and, by its method names, 0.3.")
        .any_body(component("RpcRequest"), true)
        .ok(component("RpcAnswer"), "The answer")
        .events("")
        .empty(202, "A notification was heard")
        .json(400, either([component("RpcAnswer"), component("Error")]), "No message, or no agent")
        .refuses(404, "There is no such assistant")
}

pub(in crate::http) fn card_of(id: &'static str) -> Operation {
    refused(agent(operation(id, "The card of an agent"))).ok(record(), "The card")
}

pub(in crate::http) fn card() -> Operation {
    refused(operation("agents.card", "The card of an agent, by a parameter"))
        .required_query("assistant_id", text(), "The assistant, or the name of a graph")
        .ok(record(), "The card")
}
