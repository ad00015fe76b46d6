//! How long one execution of a node may take.

#![deny(missing_docs)]

use std::time::Duration;

use serde_json::{Map, Value};

use super::Json;

/// What restarts an idle timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RefreshOn {
    /// Every sign of life: stream writes, what graphs inside do, and heartbeats.
    #[default]
    Auto,
    /// Heartbeats only.
    Heartbeat,
}

/// Limits of one execution of a node, each attempt by itself. A [`Duration`] is one with that `run_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeoutPolicy {
    /// The longest an attempt may take, whatever it does.
    pub run_timeout: Option<Duration>,
    /// The longest it may take without a sign of life.
    pub idle_timeout: Option<Duration>,
    /// What counts as such a sign.
    pub refresh_on: RefreshOn,
}

impl From<Duration> for TimeoutPolicy {
    fn from(run_timeout: Duration) -> Self {
        TimeoutPolicy { run_timeout: Some(run_timeout), ..TimeoutPolicy::default() }
    }
}

impl TimeoutPolicy {
    /// An attempt may take any time as long as it shows signs of life this often.
    pub fn idle(idle_timeout: Duration) -> TimeoutPolicy {
        TimeoutPolicy { idle_timeout: Some(idle_timeout), ..TimeoutPolicy::default() }
    }

    /// Limits nothing.
    pub fn is_empty(&self) -> bool {
        self.run_timeout.is_none() && self.idle_timeout.is_none()
    }

    /// As it is stored with a pending Send: LangGraph's names, limits in seconds, those that are not set left out.
    pub fn to_json(&self) -> Json {
        let mut fields = Map::new();
        for (name, limit) in [("run_timeout", self.run_timeout), ("idle_timeout", self.idle_timeout)] {
            fields.extend(limit.map(|limit| (name.to_owned(), Value::from(limit.as_secs_f64()))));
        }
        if self.refresh_on == RefreshOn::Heartbeat {
            fields.insert("refresh_on".to_owned(), Value::from("heartbeat"));
        }
        Json::from(Value::Object(fields))
    }

    /// Reads the stored form; what is no limit is none.
    pub fn from_json(json: &Json) -> TimeoutPolicy {
        let limit = |name| Duration::try_from_secs_f64(json.get(name)?.value().as_f64()?).ok();
        let on_heartbeat = json.get("refresh_on").is_some_and(|on| on.as_str() == Some("heartbeat"));
        TimeoutPolicy {
            run_timeout: limit("run_timeout"),
            idle_timeout: limit("idle_timeout"),
            refresh_on: if on_heartbeat { RefreshOn::Heartbeat } else { RefreshOn::Auto },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_comes_back() {
        let short = Duration::from_millis(50);
        let policies = [
            TimeoutPolicy::default(),
            TimeoutPolicy::from(short),
            TimeoutPolicy { refresh_on: RefreshOn::Heartbeat, ..TimeoutPolicy::idle(Duration::from_micros(1_234_567)) },
            TimeoutPolicy { run_timeout: Some(Duration::from_secs(86_400)), ..TimeoutPolicy::idle(short) },
        ];
        for policy in policies {
            assert_eq!(TimeoutPolicy::from_json(&policy.to_json()), policy);
        }
        assert_eq!(TimeoutPolicy::from(short).to_json().text(), r#"{"run_timeout":0.05}"#);
        let odd = Json::parse(r#"{"run_timeout":-1,"idle_timeout":"x","later":true}"#).expect("JSON");
        assert!(TimeoutPolicy::from_json(&odd).is_empty());
    }
}
