//! Assistants as tools (section 3.10). The messages are those of the Model Context Protocol.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{component, either, string};

pub(in crate::http) fn message() -> Operation {
    operation("agents.mcp", "A message of the Model Context Protocol")
        .about("Streamable HTTP without sessions. `initialize`, `ping`, `tools/list`, `tools/call`.")
        .header("MCP-Protocol-Version", string(), "The revision the client speaks")
        .any_body(component("RpcRequest"), true)
        .ok(component("RpcAnswer"), "The answer")
        .events("")
        .empty(202, "A notification was heard")
        .json(400, either([component("RpcAnswer"), component("Error")]), "No message, or nothing that is accepted")
}

pub(in crate::http) fn end_session() -> Operation {
    operation("agents.mcp_end", "There are no sessions to end").refuses(404, "Always")
}
