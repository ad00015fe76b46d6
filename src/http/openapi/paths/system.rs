//! The server about itself (section 3.10).

use crate::http::metrics::FORMATS;
use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{array, boolean, component, map, record, shape, string, whole, word};

fn health(operation: Operation) -> Operation {
    let health = shape()
        .required("ok", boolean())
        .required("services", map(word(&["healthy", "unhealthy"])))
        .sometimes("sick", array(string()).about("What is not well, and how"))
        .sometimes("stuck_runs", whole().about("Runs that nothing moves, as the detector found them; 100 at most"))
        .sometimes("volatile", boolean().about("True: what is stored ends with the process"))
        .schema();
    operation.ok(health.clone(), "The server serves").json(
        503,
        health,
        "It does not: it stops, or the database does not answer",
    )
}

fn alive(id: &'static str, summary: &'static str) -> Operation {
    health(operation(id, summary).query("check_db", boolean().default(false), "Ask the database, too"))
}

pub(in crate::http) fn root() -> Operation {
    alive("system.root", "Health, at the root")
}

pub(in crate::http) fn ok() -> Operation {
    alive("system.ok", "Health")
}

pub(in crate::http) fn ready() -> Operation {
    health(operation("system.ready", "Whether requests should come here"))
}

pub(in crate::http) fn info() -> Operation {
    let info = shape()
        .required("version", string())
        .required("langgraph_py_version", string().about("The LangGraph whose behaviour is followed"))
        .required("flags", map(boolean()))
        .required("host", record());
    operation("system.info", "Version and abilities").ok(info.schema(), "What LangGraph Studio asks first")
}

pub(in crate::http) fn metrics() -> Operation {
    let queue = shape().required("n_pending", whole().nullable()).required("n_running", whole().nullable());
    let workers = shape().required("max", whole()).required("active", whole()).required("available", whole());
    let api = shape().required("n_requests", whole()).required("n_errors", whole());
    let counts =
        shape().required("api", api.schema()).required("queue", queue.schema()).required("workers", workers.schema());
    operation("system.metrics", "What the process counts of its own work")
        .query(
            "format",
            word(&FORMATS).default("prometheus"),
            "`json`: requests, those that failed here, the queue and the workers only",
        )
        .answer(200, "text/plain", string(), "The text format of Prometheus")
        .json(200, counts.schema(), "With `format=json`; null: the database does not answer")
}

pub(in crate::http) fn graphs() -> Operation {
    operation("system.graphs", "The graphs of this build").ok(array(component("Graph")), "All of them")
}

pub(in crate::http) fn docs() -> Operation {
    operation("system.docs", "This document as a page").answer(200, "text/html", string(), "The page")
}

pub(in crate::http) fn openapi() -> Operation {
    operation("system.openapi", "This document").ok(record(), "OpenAPI 3.1")
}
