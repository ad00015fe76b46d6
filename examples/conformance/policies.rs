//! Retry policies and error classes.

use std::time::Duration;

use serde_json::{Map, Value};
use session_store::graph::{NodeError, RetryPolicy};

/// The error an operation raises.
pub(crate) fn error(fields: &Value) -> NodeError {
    let text = |key: &str, default: &'static str| fields[key].as_str().unwrap_or(default).to_owned();
    NodeError::new(text("error", "ValueError"), text("message", "boom"))
}

pub(crate) fn retry(fields: &Map<String, Value>) -> RetryPolicy {
    let millis = |key: &str, default| {
        Duration::from_secs_f64(fields.get(key).and_then(Value::as_f64).unwrap_or(default) / 1000.0)
    };
    let mut policy = RetryPolicy {
        initial_interval: millis("initial_ms", 10.0),
        backoff_factor: fields.get("backoff").and_then(Value::as_f64).unwrap_or(1.0),
        max_interval: millis("max_interval_ms", 1000.0),
        max_attempts: fields.get("max_attempts").and_then(Value::as_u64).and_then(|n| n.try_into().ok()).unwrap_or(3),
        jitter: false,
        ..RetryPolicy::default()
    };
    if let Some(classes) = fields.get("retry_on").and_then(Value::as_array) {
        let classes: Vec<String> = classes.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        policy.retry_on = std::sync::Arc::new(move |error| classes.contains(&error.class));
    }
    policy
}
