//! Crons (section 3.8).

use crate::http::openapi::operation::{Operation, operation};
use crate::http::openapi::paths::run_body::{columns, page, run};
use crate::http::openapi::schema::{
    Schema, Shape, array, boolean, component, record, selected, shape, text, uuid, whole, word,
};
use crate::http::routes::crons::{COLUMNS, SORTS};

fn content(shape: Shape) -> Shape {
    run(shape)
        .optional("timezone", text().about("An IANA name; absent: UTC"))
        .optional("end_time", text().about("A time after which nothing is fired"))
        .optional("enabled", boolean().default(true))
        .optional("on_run_completed", word(&["delete", "keep"]).default("delete").about("Of a run's own thread"))
}

fn schedule() -> Schema {
    text().about("Five fields: minute, hour, day of the month, month, day of the week")
}

pub(in crate::http::openapi) fn body() -> Shape {
    shape().required("schedule", schedule()).and(content)
}

pub(in crate::http::openapi) fn change() -> Shape {
    shape().optional("schedule", schedule()).and(content)
}

fn made(operation: Operation) -> Operation {
    operation
        .any_body(component("CronBody"), true)
        .ok(component("Cron"), "The cron")
        .refuses(400, "The run contradicts itself")
        .refuses(404, "There is no such assistant or thread")
}

pub(in crate::http) fn create() -> Operation {
    made(operation("crons.create", "Run on a schedule, each time on a thread of its own"))
}

pub(in crate::http) fn create_for_thread() -> Operation {
    made(operation("crons.create_for_thread", "Run on a schedule on one thread"))
}

pub(in crate::http) fn find() -> Operation {
    operation("crons.get", "Read a cron").ok(component("Cron"), "The cron").refuses(404, "There is none")
}

pub(in crate::http) fn update() -> Operation {
    operation("crons.update", "Change a cron")
        .about("Given members replace, others stay; `end_time` null takes the end away.")
        .any_body(component("CronChange"), true)
        .ok(component("Cron"), "The cron")
        .refuses(400, "Nothing to change, or the run contradicts itself")
        .refuses(404, "There is no such cron or assistant")
        .refuses(409, "Somebody else changed it")
}

pub(in crate::http) fn delete() -> Operation {
    operation("crons.delete", "Delete a cron").empty(204, "It is gone").refuses(404, "There is none")
}

fn filter(shape: Shape) -> Shape {
    shape
        .optional("assistant_id", uuid())
        .optional("thread_id", component("ThreadId"))
        .optional("enabled", boolean())
        .optional("metadata", record().about("Contained in the cron's metadata"))
}

pub(in crate::http) fn search() -> Operation {
    operation("crons.search", "Find crons")
        .body(
            shape()
                .and(filter)
                .and(page)
                .optional("sort_by", word(&SORTS).default("created_at"))
                .optional("sort_order", text().about("`asc`; anything else is descending"))
                .optional("select", columns(&COLUMNS)),
        )
        .ok(array(selected("Cron")), "A page of them")
        .pages()
}

pub(in crate::http) fn count() -> Operation {
    operation("crons.count", "Count crons").body(shape().and(filter)).ok(whole(), "How many there are")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::routes::crons::CHANGEABLE;

    #[test]
    fn what_can_be_changed_is_what_a_change_describes() {
        let described = change().schema().json();
        let mut described: Vec<&String> = described["properties"].as_object().expect("members").keys().collect();
        let mut changeable = CHANGEABLE;
        described.sort();
        changeable.sort_unstable();
        assert_eq!(described, changeable);
    }
}
