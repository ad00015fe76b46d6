//! Assistants (section 3.1).

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::run_body::{columns, page};
use crate::http::openapi::schema::{
    Shape, array, boolean, component, either, integer, map, record, selected, shape, text, uuid, whole, word,
};
use crate::http::routes::assistants::{COLUMNS, SORTS};

fn filter(shape: Shape) -> Shape {
    shape
        .optional("metadata", record().about("Contained in the assistant's metadata"))
        .optional("graph_id", text())
        .optional("name", text().about("A part of the name; case does not matter"))
}

fn content(shape: Shape) -> Shape {
    shape
        .optional("config", component("Config"))
        .optional("context", record().about("The same configuration by its other name: send one of them"))
        .optional("metadata", record())
        .optional("name", text())
        .optional("description", text())
}

pub(in crate::http) fn create() -> Operation {
    operation("assistants.create", "Create an assistant")
        .body(
            shape()
                .required("graph_id", text().about("A graph of this build"))
                .optional("assistant_id", uuid().about("Made by the server when absent"))
                .optional("if_exists", word(&["raise", "do_nothing"]).default("raise"))
                .and(content),
        )
        .ok(component("Assistant"), "The new assistant, or with `do_nothing` the one that is there")
        .refuses(400, "Both `config.configurable` and `context`")
        .refuses(404, "There is no such graph")
        .refuses(409, "The id is taken")
}

pub(in crate::http) fn search() -> Operation {
    operation("assistants.search", "Find assistants")
        .body(
            shape()
                .and(filter)
                .and(page)
                .optional("sort_by", word(&SORTS).default("created_at"))
                .optional("sort_order", text().about("`asc`; anything else is descending"))
                .optional("select", columns(&COLUMNS)),
        )
        .ok(array(selected("Assistant")), "A page of them")
        .pages()
        .refuses(404, "There is no such graph")
}

pub(in crate::http) fn count() -> Operation {
    operation("assistants.count", "Count assistants")
        .body(shape().and(filter))
        .ok(whole(), "How many there are")
        .refuses(404, "There is no such graph")
}

pub(in crate::http) fn find() -> Operation {
    operation("assistants.get", "Read an assistant")
        .ok(component("Assistant"), "The assistant")
        .refuses(404, "There is none")
}

pub(in crate::http) fn update() -> Operation {
    operation("assistants.update", "Change an assistant")
        .about("Every change is a new version. Metadata is merged, the others are replaced, absent ones stay.")
        .body(shape().optional("graph_id", text()).and(content))
        .ok(component("Assistant"), "The new version")
        .refuses(400, "Both `config.configurable` and `context`")
        .refuses(404, "There is no such assistant, or graph")
}

pub(in crate::http) fn delete() -> Operation {
    operation("assistants.delete", "Delete an assistant")
        .query("delete_threads", boolean().default(false), "Its threads, too")
        .empty(204, "It is gone, with its versions and crons")
        .refuses(404, "There is none")
        .refuses(409, "It is a graph's own")
}

pub(in crate::http) fn versions() -> Operation {
    operation("assistants.versions", "The versions of an assistant, newest first")
        .body(shape().optional("metadata", record().about("Contained in the version's metadata")).and(page))
        .ok(array(component("AssistantVersion")), "A page of them")
        .refuses(404, "There is no such assistant")
}

pub(in crate::http) fn set_latest() -> Operation {
    operation("assistants.latest", "Make a version the current one")
        .body(shape().required("version", integer(&(1..=i64::MAX))))
        .ok(component("Assistant"), "The assistant at that version")
        .refuses(404, "There is no such assistant or version")
}

pub(in crate::http) fn graph() -> Operation {
    let xray = either([boolean(), integer(&(1..=1000))]);
    operation("assistants.graph", "The drawing of an assistant's graph")
        .path("assistant_id", text().with("minLength", 1), "The assistant, or the name of a graph")
        .query("xray", xray.default(false), "Subgraphs are drawn, too: all, or so many levels")
        .ok(component("Drawing"), "Nodes and edges")
        .refuses(404, "There is no such assistant")
}

pub(in crate::http) fn schemas() -> Operation {
    operation("assistants.schemas", "The schemas of an assistant's graph")
        .ok(component("GraphSchemas"), "JSON Schemas")
        .refuses(404, "There is no such assistant")
}

pub(in crate::http) fn subgraphs() -> Operation {
    operation("assistants.subgraphs", "The schemas of its subgraphs")
        .query("recurse", boolean().default(false), "Those inside of subgraphs, too")
        .ok(map(component("Schemas")), "By namespace")
        .refuses(404, "There is no such assistant")
}

pub(in crate::http) fn subgraphs_below() -> Operation {
    operation("assistants.subgraph", "The schemas of one of its subgraphs")
        .query("recurse", boolean().default(false), "Changes nothing: a namespace names one subgraph")
        .ok(map(component("Schemas")), "By namespace: empty when there is none")
        .refuses(404, "There is no such assistant")
}
