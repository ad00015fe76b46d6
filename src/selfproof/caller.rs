//! How a client of the proof asks: any replica that answers, again until it is answered, with a key so that asking twice
//! is asking once.

use std::fmt;
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_LOCATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use super::dice::Dice;
use super::fleet::Fleet;
use super::story::TellTale;

/// How long one attempt may take. Longer than a takeover.
const ATTEMPT: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(2);
const PAUSE_MS: u64 = 150;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The proof is over and nobody has answered.
    OutOfTime(String),
    /// A refusal of a request that is in order.
    Refused(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAnswer::OutOfTime(what) => write!(f, "{what}: no answer in time"),
            NoAnswer::Refused(what) => f.write_str(what),
        }
    }
}

pub(super) struct Answer {
    pub(super) body: Value,
    /// From `Content-Location`.
    pub(super) run_id: Option<Uuid>,
}

/// One client.
pub(super) struct Caller {
    http: Client,
    fleet: Fleet,
    pub(super) dice: Dice,
    /// After this it gives up.
    until: tokio::sync::watch::Receiver<Option<Instant>>,
    /// Answers that were no answers: refused connections, 5xx, cut bodies.
    pub(super) retries: u64,
}

impl Caller {
    pub(super) fn new(
        fleet: Fleet,
        dice: Dice,
        until: tokio::sync::watch::Receiver<Option<Instant>>,
    ) -> Result<Caller, reqwest::Error> {
        // No proxy of the environment stands between this machine and itself.
        let http = Client::builder().no_proxy().connect_timeout(CONNECT).build()?;
        Ok(Caller { http, fleet, dice, until, retries: 0 })
    }

    pub(super) fn is_out_of_time(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() >= until)
    }

    async fn pause(&mut self, what: &str) -> Result<(), NoAnswer> {
        self.retries += 1;
        if self.is_out_of_time() {
            return Err(NoAnswer::OutOfTime(what.to_owned()));
        }
        let pause = self.dice.millis(PAUSE_MS / 3, PAUSE_MS);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// One attempt, at any replica. `None`: nobody is there.
    async fn attempt(&mut self, ask: &Ask<'_>) -> Option<Result<Response, reqwest::Error>> {
        let urls = self.fleet.urls();
        let url = urls.get(self.dice.index(urls.len()))?;
        let mut request = self.http.request(ask.method.clone(), format!("{url}{}", ask.path)).timeout(ATTEMPT);
        if let Some(key) = ask.key {
            request = request.header("idempotency-key", key);
        }
        if let Some(after) = ask.after {
            request = request.header("last-event-id", after);
        }
        if let Some(body) = ask.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        Some(request.send().await)
    }

    /// Asks until somebody answers with 2xx.
    async fn respond(&mut self, ask: &Ask<'_>) -> Result<Response, NoAnswer> {
        loop {
            match self.attempt(ask).await {
                Some(Ok(response)) if response.status().is_success() => return Ok(response),
                Some(Ok(response)) if !passes(response.status(), response.headers()) => {
                    let status = response.status();
                    let text = response.text().await.unwrap_or_default();
                    return Err(NoAnswer::Refused(format!("{} {}: {status} {text}", ask.method, ask.path)));
                }
                _ => self.pause(ask.path).await?,
            }
        }
    }

    /// Asks until there is a whole JSON answer.
    pub(super) async fn json(&mut self, ask: Ask<'_>) -> Result<Answer, NoAnswer> {
        loop {
            let response = self.respond(&ask).await?;
            let run_id = run_of(response.headers());
            let Ok(bytes) = response.bytes().await else {
                self.pause(ask.path).await?;
                continue;
            };
            if bytes.trim_ascii().is_empty() {
                return Ok(Answer { body: Value::Null, run_id });
            }
            match serde_json::from_slice(&bytes) {
                Ok(body) => return Ok(Answer { body, run_id }),
                Err(_) => self.pause(ask.path).await?,
            }
        }
    }

    /// Opens a stream, hands its events over one by one until it ends (`true`) or breaks.
    pub(super) async fn stream(
        &mut self,
        ask: Ask<'_>,
        mut opened: impl FnMut(Option<Uuid>),
        mut heard: impl FnMut(TellTale),
    ) -> Result<bool, NoAnswer> {
        let mut response = self.respond(&ask).await?;
        opened(run_of(response.headers()));
        let mut pending = Vec::new();
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                ended => return Ok(ended.is_ok()),
            };
            pending.extend_from_slice(&chunk);
            while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = pending.drain(..end + 2).collect();
                if let Some(event) = event_of(&String::from_utf8_lossy(&frame)) {
                    heard(event);
                }
            }
        }
    }
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) key: Option<&'a str>,
    pub(super) after: Option<&'a str>,
    pub(super) body: Option<&'a Value>,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a str) -> Ask<'a> {
        Ask { method: Method::GET, path, key: None, after: None, body: None }
    }

    pub(super) fn post(path: &'a str, body: &'a Value) -> Ask<'a> {
        Ask { method: Method::POST, path, key: None, after: None, body: Some(body) }
    }

    pub(super) fn once(self, key: &'a str) -> Ask<'a> {
        Ask { key: Some(key), ..self }
    }
}

/// The answer may be another one later.
fn passes(status: StatusCode, headers: &HeaderMap) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        || headers.contains_key(RETRY_AFTER)
}

fn run_of(headers: &HeaderMap) -> Option<Uuid> {
    let place = headers.get(CONTENT_LOCATION)?.to_str().ok()?;
    place.rsplit_once("/runs/")?.1.split('/').next()?.parse().ok()
}

/// One frame; `None` for comments.
fn event_of(frame: &str) -> Option<TellTale> {
    let mut event = TellTale { id: String::new(), name: String::new(), data: String::new() };
    for line in frame.lines() {
        match line.split_once(": ") {
            Some(("event", name)) => event.name = name.to_owned(),
            Some(("data", data)) => event.data = data.to_owned(),
            Some(("id", id)) => event.id = id.to_owned(),
            _ => {}
        }
    }
    (!event.name.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_and_comments_are_none() {
        let event = event_of("event: values\ndata: {\"a\": 1}\nid: 5-3\n\n").expect("an event");
        assert_eq!((event.name.as_str(), event.data.as_str(), event.id.as_str()), ("values", "{\"a\": 1}", "5-3"));
        assert_eq!(event_of(": heartbeat\n\n"), None);
    }
}
