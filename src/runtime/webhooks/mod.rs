//! Webhooks: the loop that delivers what the outbox holds (contract section 3.7).
//!
//! A run's end makes its webhook due in the same commit; from then on the run has nothing to do with it. Whoever claims a
//! due one makes an attempt under a lease: a process that dies leaves it to others. Failures are tried again, at growing
//! intervals with jitter, until there were [`WebhookSettings::max_attempts`]; then the webhook is dead, and listed. A
//! receiver may hear the same thing twice, and knows it by `webhook-id`.

mod policy;
mod sign;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect;
use serde_json::json;
use tokio::task::JoinSet;

pub use policy::{AllowedHost, WebhookPolicy};
pub use sign::WebhookSecrets;

use super::Runtime;
use crate::model::{Json, RunKwargs, Scope, Timestamp};
use crate::storage::{AttemptOutcome, DueWebhook};

/// Attempts made at once by this process.
const CONCURRENCY: usize = 32;
/// The longest sleep between two looks: how late a webhook may be that another process made due.
const POLL: Duration = Duration::from_secs(5);
/// How long an attempt may stay unreported beyond its time limit.
const SLACK: Duration = Duration::from_secs(20);
const FIRST_RETRY: Duration = Duration::from_secs(5);
const GROWTH: f64 = 3.0;
const LAST_RETRY: Duration = Duration::from_secs(6 * 3600);
/// The longest error kept.
const MAX_ERROR: usize = 500;

/// Settings of webhooks; the defaults are those of `config.toml`.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    pub policy: WebhookPolicy,
    pub secrets: WebhookSecrets,
    /// Attempts before a webhook is dead.
    pub max_attempts: i32,
    /// Of one attempt, from the connection to the answer's status.
    pub timeout: Duration,
    /// How long dead ones are kept.
    pub keep_dead: Duration,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        WebhookSettings {
            policy: WebhookPolicy::default(),
            secrets: WebhookSecrets::default(),
            max_attempts: 10,
            timeout: Duration::from_secs(15),
            keep_dead: Duration::from_secs(30 * 86_400),
        }
    }
}

/// What delivers: made once per process.
#[derive(Debug, Clone)]
struct Sender {
    client: reqwest::Client,
    settings: Arc<WebhookSettings>,
}

impl Runtime {
    /// A webhook may be due: look now.
    pub fn wake_webhooks(&self) {
        self.inner.webhooks.notify_one();
    }

    /// Delivers what is due, until the process drains. Attempts under way then are left to end by themselves.
    pub(super) async fn webhook_loop(self) {
        let settings = Arc::new(self.inner.settings.webhooks.clone());
        let sender = match Sender::new(Arc::clone(&settings)) {
            Ok(sender) => sender,
            Err(error) => {
                tracing::error!(%error, "webhooks cannot be delivered by this process");
                return;
            }
        };
        let mut attempts: JoinSet<()> = JoinSet::new();
        loop {
            let room = CONCURRENCY.saturating_sub(attempts.len());
            let mut pause = POLL;
            if room > 0 {
                let limit = i64::try_from(room).unwrap_or(1);
                match self.storage().claim_webhooks(&Scope::Server, limit, settings.timeout + SLACK).await {
                    Ok(claimed) => {
                        pause = claimed.next.unwrap_or(POLL).min(POLL);
                        for due in claimed.due {
                            let (runtime, sender) = (self.clone(), sender.clone());
                            attempts.spawn(async move { runtime.attempt(&sender, due).await });
                        }
                    }
                    Err(error) => tracing::warn!(%error, "could not look for webhooks"),
                }
            }
            tokio::select! {
                () = self.inner.webhooks.notified() => {}
                () = tokio::time::sleep(pause) => {}
                Some(_) = attempts.join_next(), if attempts.len() >= CONCURRENCY => {}
                () = self.inner.draining.cancelled() => {
                    attempts.detach_all();
                    return;
                }
            }
            while attempts.try_join_next().is_some() {}
        }
    }

    /// Makes one attempt and reports on it.
    async fn attempt(&self, sender: &Sender, due: DueWebhook) {
        let attempt = due.attempt;
        let sent = sender.send(&due, self.clock().now()).await;
        let outcome = match sent {
            Ok(()) => AttemptOutcome::Delivered,
            Err(Failure { error, is_final }) if is_final || attempt.number >= sender.settings.max_attempts => {
                tracing::warn!(run.id = %attempt.run_id, attempts = attempt.number, error, "a webhook is given up");
                AttemptOutcome::Dead { error }
            }
            Err(Failure { error, .. }) => {
                tracing::info!(run.id = %attempt.run_id, attempt = attempt.number, error, "a webhook failed");
                let after = pause_after(attempt.number, self.clock().random_fraction());
                AttemptOutcome::Retry { after, error }
            }
        };
        // Unreported, it is attempted again after the lease.
        match self.storage().settle_webhook(&Scope::Server, attempt, outcome).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(run.id = %attempt.run_id, "a webhook took longer than its lease"),
            Err(error) => tracing::warn!(run.id = %attempt.run_id, %error, "a webhook's outcome was not stored"),
        }
    }
}

/// Exponential, with up to a quarter of jitter.
fn pause_after(attempt: i32, jitter: f64) -> Duration {
    let grown = FIRST_RETRY.as_secs_f64() * GROWTH.powi(attempt.saturating_sub(1).clamp(0, 30));
    Duration::from_secs_f64(grown.min(LAST_RETRY.as_secs_f64()) * (1.0 + jitter / 4.0))
}

/// Why an attempt failed.
struct Failure {
    error: String,
    /// Trying again is no use.
    is_final: bool,
}

impl Sender {
    fn new(settings: Arc<WebhookSettings>) -> Result<Sender, reqwest::Error> {
        let client = reqwest::Client::builder()
            .dns_resolver(Arc::new(policy::Guarded(Arc::new(settings.policy.clone()))))
            .redirect(redirect::Policy::none())
            // A proxy of the environment would connect to what the policy forbids.
            .no_proxy()
            .timeout(settings.timeout)
            .user_agent(concat!("session-store/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Sender { client, settings })
    }

    async fn send(&self, due: &DueWebhook, now: Timestamp) -> Result<(), Failure> {
        // Again: the rules may have changed since the run was accepted.
        let url = self.settings.policy.check(&due.url).map_err(|error| Failure { error, is_final: true })?;
        let body = body(due, now);
        let headers = self.headers(due, now, &body);
        let response = self
            .client
            .post(url)
            .headers(headers)
            .body(body)
            .send()
            .await
            .map_err(|error| Failure { error: shortened(reason(&error.without_url())), is_final: false })?;
        // The answer's body is not read: whatever it is, however long, dropping it closes the connection.
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        // Gone: the receiver wants no more, as the specification of Standard Webhooks has it.
        Err(Failure { error: format!("the receiver answered {status}"), is_final: status.as_u16() == 410 })
    }

    fn headers(&self, due: &DueWebhook, now: Timestamp, body: &str) -> HeaderMap {
        let id = format!("msg_{}", due.attempt.run_id.simple());
        let timestamp = now.0.div_euclid(1_000_000);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HeaderName::from_static("webhook-timestamp"), HeaderValue::from(timestamp));
        let signature = self.settings.secrets.sign(&id, timestamp, body);
        for (name, text) in [("webhook-id", Some(id)), ("webhook-signature", signature)] {
            if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers
    }
}

/// The body: the run as clients see it, and how it ended.
fn body(due: &DueWebhook, now: Timestamp) -> String {
    let of = |value: serde_json::Value| Json::from(value);
    let fields = [
        ("run_id", of(json!(due.attempt.run_id))),
        ("thread_id", of(json!(due.thread_id))),
        ("assistant_id", of(json!(due.assistant_id))),
        ("created_at", of(json!(due.created_at))),
        ("updated_at", of(json!(due.ended_at))),
        ("metadata", due.metadata.clone()),
        ("kwargs", RunKwargs::shown(&due.kwargs)),
        ("multitask_strategy", Json::from(due.multitask_strategy.as_str())),
        ("langsmith_session_name", Json::null()),
        ("status", Json::from(due.status.as_str())),
        ("run_started_at", of(json!(due.started_at))),
        ("run_ended_at", of(json!(due.ended_at))),
        ("webhook_sent_at", of(json!(now))),
        ("values", due.values.clone().unwrap_or_default()),
        ("error", of(json!(due.error))),
    ];
    Json::from_fields(fields.iter().map(|(key, value)| (*key, value))).text()
}

/// An error with its causes, without the URL, which may hold a secret.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn shortened(text: String) -> String {
    text.chars().take(MAX_ERROR).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_vary() {
        let seconds = |attempt, jitter| pause_after(attempt, jitter).as_secs_f64();
        assert_eq!(seconds(1, 0.0), 5.0);
        assert_eq!(seconds(2, 0.0), 15.0);
        assert_eq!(seconds(2, 1.0), 18.75);
        assert_eq!(seconds(30, 0.0), 21_600.0);
        assert_eq!(seconds(i32::MAX, 0.0), 21_600.0);
    }
}
