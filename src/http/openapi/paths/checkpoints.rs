//! The record of a thread. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{array, boolean, component, either, integer, string, text};
use crate::http::page::LIMITS;
use crate::http::typed::FRAME_TYPE;

pub(in crate::http) fn list() -> Operation {
    operation("checkpoints.list", "The checkpoints of a thread, newest first")
        .query("limit", integer(&LIMITS).default(10), "How many")
        .query("ns", text().default(""), "The namespace; empty: the root graph")
        .query("before", text(), "Where the list goes on, from X-Pagination-Next")
        .ok(array(either([component("CheckpointRow"), component("ForeignRow")])), "A page of them")
        .carries("X-Pagination-Next")
        .refuses(404, "There is no such thread")
}

pub(in crate::http) fn find() -> Operation {
    operation("checkpoints.get", "A checkpoint with its state")
        .path(
            "checkpoint_id",
            text().with("minLength", 1),
            "The checkpoint; not always a UUID. Of graphs that run elsewhere also `latest`",
        )
        .query("ns", text().default(""), "The namespace; empty: the root graph")
        .query("subgraphs", boolean().default(false), "The states of subgraphs, too")
        .header(
            "Accept",
            string(),
            "`application/vnd.session-store.frame`: of a graph that runs elsewhere, values as bytes",
        )
        .ok(either([component("CheckpointWithState"), component("ForeignCheckpoint")]), "The checkpoint")
        .answer(200, FRAME_TYPE, string(), "")
        .refuses(400, "The graph refuses what is stored")
        .refuses(404, "There is no such thread or checkpoint")
}
