//! A plain HTTP client of the server under test.

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::scenario::Object;
use crate::support::process::PATIENCE;

/// An answer, read whole.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

/// An event of a stream: name and data.
pub(super) type Event = (String, Value);

/// Sends requests to one server.
#[derive(Clone)]
pub(super) struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    pub(super) fn new(base: &str) -> Client {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        Client { base: base.to_owned(), http }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Response {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let response = self.send(method, path, body).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        Answer { status, headers, body: parse(&text) }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Sends a request and reads the event stream it is answered with; any other answer comes back as it is.
    pub(super) async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> (Answer, Option<Vec<Event>>) {
        Self::read(self.send(method, path, body).await).await
    }

    /// Reads a run's event stream from a cursor on.
    pub(super) async fn follow(&self, path: &str, cursor: Option<&str>) -> (Answer, Option<Vec<Event>>) {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(cursor) = cursor {
            request = request.header("last-event-id", cursor);
        }
        Self::read(request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"))).await
    }

    async fn read(response: reqwest::Response) -> (Answer, Option<Vec<Event>>) {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap_or_else(|error| panic!("a stream broke off: {error}"));
        let events = (status == 200).then(|| text.split("\n\n").filter_map(event).collect());
        let body = if events.is_none() { parse(&text) } else { Value::Null };
        (Answer { status, headers, body }, events)
    }
}

fn parse(text: &str) -> Value {
    if text.trim().is_empty() {
        return Value::Null;
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(Object::from_iter([("text".to_owned(), text.into())])))
}

/// An event of a frame; comments alone are none.
fn event(frame: &str) -> Option<Event> {
    let (mut name, mut data) = (None, Vec::new());
    for line in frame.lines() {
        let (field, value) = line.split_once(':')?;
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    if name.is_none() && data.is_empty() {
        return None;
    }
    let data = if data.is_empty() { Value::Null } else { parse(&data.join("\n")) };
    Some((name.unwrap_or_else(|| "message".to_owned()), data))
}
