//! Runs that were set aside. Not part of the contract.

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::schema::{array, boolean, component, list, shape, string, uuid};
use crate::http::routes::quarantine::MAX_RELEASED;

pub(in crate::http) fn list_quarantine() -> Operation {
    operation("quarantine.list", "Runs that were set aside, oldest first")
        .about("Their processes died too often before they committed another superstep")
        .window()
        .ok(array(component("QuarantinedRun")), "A page of them")
        .pages()
}

pub(in crate::http) fn release() -> Operation {
    let result = shape()
        .required("run_id", uuid())
        .required("released", boolean())
        .required("detail", string().nullable().about("Why not"))
        .schema();
    operation("quarantine.release", "Make them pending again")
        .body(shape().required("run_ids", list(uuid(), MAX_RELEASED)))
        .ok(array(result), "What became of each, in the order asked")
}
