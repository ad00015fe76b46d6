//! Items (section 3.9).

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::run_body::page;
use crate::http::openapi::schema::{
    Schema, Shape, any, array, boolean, component, either, integer, list, map, number, record, shape, string, text,
};
use crate::http::page::{LIMITS, OFFSETS};
use crate::runtime::items::{MAX_CONDITIONS, MAX_KEY_BYTES, MAX_LABEL_BYTES, MAX_LABELS, MAX_TTL_MINUTES};

fn label() -> Schema {
    text().with("minLength", 1).with("maxLength", MAX_LABEL_BYTES).with("pattern", "^[^.]+$")
}

fn namespace() -> Schema {
    list(label(), MAX_LABELS).with("minItems", 1)
}

fn place(shape: Shape) -> Shape {
    let key = text().with("minLength", 1).with("maxLength", MAX_KEY_BYTES);
    shape.required("namespace", namespace()).required("key", key)
}

/// A malformed namespace is told as plain text.
fn checked(operation: Operation) -> Operation {
    operation.refuses(422, "Something is malformed; a malformed namespace is told as plain text").answer(
        422,
        "text/plain",
        string(),
        "",
    )
}

pub(in crate::http) fn put() -> Operation {
    let index = either([boolean(), list(text(), MAX_CONDITIONS)]).about("What to find it by meaning by");
    checked(operation("store.put", "Write an item"))
        .body(
            shape()
                .and(place)
                .required("value", record())
                .optional("index", index)
                .optional("ttl", number(0.0..=MAX_TTL_MINUTES).about("Minutes after its last use that it is kept")),
        )
        .empty(204, "It is written")
}

pub(in crate::http) fn get() -> Operation {
    let missing = shape().required("error", string()).schema();
    checked(operation("store.get", "Read an item"))
        .required_query("key", text(), "Its key")
        .required_query("namespace", text(), "Labels, joined by dots")
        .query("refresh_ttl", boolean().default(true), "Counts as a use")
        .ok(component("Item").nullable(), "The item, or null")
        .json(400, missing, "No key was sent")
}

pub(in crate::http) fn delete() -> Operation {
    checked(operation("store.delete", "Delete an item"))
        .body(shape().required("namespace", namespace()).required("key", text()))
        .empty(204, "There is none any more")
}

pub(in crate::http) fn search() -> Operation {
    let condition = any().about("A value, or `{\"$gt\": ..}` and the like: $eq $ne $gt $gte $lt $lte");
    checked(operation("store.search", "Find items"))
        .body(
            shape()
                .optional("namespace_prefix", list(label(), MAX_LABELS))
                .optional("filter", map(condition).with("maxProperties", MAX_CONDITIONS))
                .optional("query", text().about("Find by meaning; without an embedding it changes nothing"))
                .optional("refresh_ttl", boolean().default(true))
                .and(page),
        )
        .ok(shape().required("items", array(component("FoundItem"))).schema(), "A page of them")
}

pub(in crate::http) fn namespaces() -> Operation {
    checked(operation("store.namespaces", "The namespaces there are"))
        .body(
            shape()
                .optional("prefix", list(label(), MAX_LABELS))
                .optional("suffix", list(label(), MAX_LABELS))
                .optional("max_depth", integer(&(1..=i64::from(u16::MAX))))
                .optional("limit", integer(&LIMITS).default(100))
                .optional("offset", integer(&OFFSETS).default(0)),
        )
        .ok(shape().required("namespaces", array(array(string()))).schema(), "A page of them")
}
