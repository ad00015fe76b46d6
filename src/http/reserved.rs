//! Keys that only the server sets: dropped from requests without a word (contract section 1.5).

use crate::model::Json;

const CONFIGURABLE: [&str; 13] = [
    "langgraph_auth_user",
    "langgraph_auth_user_id",
    "langgraph_auth_permissions",
    "langgraph_request_id",
    "__langsmith_project__",
    "__langsmith_example_id__",
    "__request_start_time_ms__",
    "__after_seconds__",
    "__otel_traceparent__",
    "__otel_tracestate__",
    "__dd_trace_headers__",
    "__pregel_node_finished",
    "__context_provided__",
];

const METADATA: [&str; 5] = ["thread_id", "assistant_id", "run_id", "cron_id", "counters_since_delta_snapshot"];

/// For `config.configurable` and `context`.
pub(crate) fn strip_configurable(object: Json) -> Json {
    strip(object, &CONFIGURABLE)
}

/// For `metadata` and `config.metadata` that are written.
pub(crate) fn strip_metadata(object: Json) -> Json {
    strip(object, &METADATA)
}

fn strip(object: Json, reserved: &[&str]) -> Json {
    let Some(mut fields) = object.fields() else { return object };
    let before = fields.len();
    fields.retain(|key, _| !reserved.contains(&key.as_str()));
    if fields.len() == before { object } else { Json::from(&fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_only_what_is_reserved() {
        let json = Json::parse(r#"{"run_id":1,"a":{"run_id":2}}"#).expect("JSON");
        assert_eq!(strip_metadata(json.clone()).text(), r#"{"a":{"run_id":2}}"#);
        assert_eq!(strip_configurable(json.clone()), json);
    }
}
