//! Protocol v2 over a WebSocket.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use session_store::http::{ApiKey, HttpSettings};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use uuid::Uuid;

use super::gaps::{paper, write};
use super::protocol::{ALL, agent, hello, history, server};
use crate::support::server::TestServer;

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(server: &TestServer, thread: &str, query: &str, headers: &[(&'static str, String)]) -> Socket {
        let url = format!("{}/threads/{thread}/stream/events{query}", server.url.replace("http", "ws"));
        let mut request = url.into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a value"));
        }
        Socket(connect_async(request).await.expect("a socket").0)
    }

    async fn send(&mut self, id: i64, method: &str, params: Value) {
        let command = json!({"id": id, "method": method, "params": params}).to_string();
        self.0.send(Message::text(command)).await.expect("sent");
    }

    /// The next frame that is JSON, or the code the socket was closed with.
    async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match self.0.next().await.expect("a frame").expect("a frame") {
                Message::Text(text) => return Ok(serde_json::from_str(&text).expect("JSON")),
                Message::Close(frame) => return Err(frame.map_or(0, |frame| frame.code.into())),
                _ => {}
            }
        }
    }

    /// The answer to a command, and the events that came before it.
    async fn answer(&mut self, id: i64) -> (Value, Vec<Value>) {
        let mut events = Vec::new();
        loop {
            let frame = self.next().await.expect("open");
            if frame["type"] != "event" {
                assert_eq!(frame["id"], id, "{frame}");
                return (frame, events);
            }
            events.push(frame);
        }
    }

    async fn events(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.expect("open"));
        }
        events
    }
}

#[tokio::test]
async fn one_socket_carries_commands_and_subscriptions() {
    let server = server().await;
    let thread = Uuid::from_u128(20).to_string();
    let mut socket = Socket::open(&server, &thread, "", &[]).await;
    socket.send(1, "subscription.subscribe", json!({"channels": ALL})).await;
    let (answer, _) = socket.answer(1).await;
    let subscription = answer["result"]["subscription_id"].clone();
    assert!(subscription.is_string(), "{answer}");
    assert_eq!(answer["result"]["replayed_events"], 0);
    socket.send(2, "run.start", json!({"assistant_id": "agent", "input": hello()})).await;
    let (answer, mut events) = socket.answer(2).await;
    assert!(answer["result"]["run_id"].is_string(), "{answer}");
    // The same events with the same ids and numbers as over SSE.
    let told: Vec<Value> = history(&server, &thread, 1).await.into_iter().map(|frame| frame.data).collect();
    let missing = told.len() - events.len();
    events.extend(socket.events(missing).await);
    assert_eq!(events, told);
    let since = told[told.len() - 3]["seq"].clone();
    socket.send(3, "subscription.reconnect", json!({"subscription_id": subscription, "since": since})).await;
    assert_eq!(socket.answer(3).await.0["result"], json!({"subscription_id": subscription, "replayed_events": 2}));
    assert_eq!(socket.events(2).await, told[told.len() - 2..]);
    socket.send(4, "subscription.unsubscribe", json!({"subscription_id": subscription})).await;
    assert_eq!(socket.answer(4).await.0["result"], json!({}));
    for (method, params, code) in [
        ("subscription.unsubscribe", json!({"subscription_id": subscription}), "no_such_subscription"),
        ("subscription.reconnect", json!({"subscription_id": "sub-9"}), "no_such_subscription"),
        ("subscription.subscribe", json!({"channels": []}), "invalid_argument"),
        ("agent.getTree", json!({}), "no_such_run"),
        ("what.ever", json!({}), "unknown_command"),
    ] {
        socket.send(5, method, params).await;
        assert_eq!(socket.answer(5).await.0["error"], code, "{method}");
    }
    socket.0.send(Message::text("{")).await.expect("sent");
    let refused = socket.next().await.expect("open");
    assert_eq!((&refused["error"], &refused["id"]), (&json!("invalid_argument"), &Value::Null));
}

#[tokio::test]
async fn coming_back_to_what_is_gone_is_refused_with_where_it_goes_on() {
    let server = TestServer::serving(HttpSettings::default(), vec![paper()]).await;
    server.post("/threads", json!({"thread_id": "t"})).await.ok();
    for n in 1..=2 {
        write(&server, n).await;
    }
    let mut socket = Socket::open(&server, "t", "", &[]).await;
    socket.send(1, "subscription.subscribe", json!({"channels": ["values", "lifecycle"]})).await;
    let subscribed = socket.answer(1).await.0["result"].clone();
    let id = &subscribed["subscription_id"];
    let told = socket.events(subscribed["replayed_events"].as_u64().expect("a number") as usize).await;
    let reconnect = |since: &Value| json!({"subscription_id": id, "since": since});
    socket.send(2, "subscription.reconnect", reconnect(&json!(0))).await;
    let answer = socket.answer(2).await.0;
    assert_eq!(answer["result"]["replayed_events"], subscribed["replayed_events"], "nothing is gone yet");
    assert_eq!(socket.events(told.len()).await, told);
    server.post("/threads/prune", json!({"thread_ids": ["t"], "strategy": "keep_latest"})).await.ok();
    socket.send(3, "subscription.reconnect", reconnect(&json!(0))).await;
    let refused = socket.answer(3).await.0;
    assert_eq!((&refused["type"], &refused["error"]), (&json!("error"), &json!("resume_gap")), "{refused}");
    assert_eq!(refused["since"], 0);
    let available = refused["min_available_seq"].as_i64().expect("a number");
    let rest: Vec<&Value> = told.iter().filter(|event| event["seq"].as_i64() >= Some(available)).collect();
    assert!(!rest.is_empty() && rest.len() < told.len(), "{available} in {told:?}");
    // The subscription is as it was, and goes on from where it is told to.
    socket.send(4, "subscription.reconnect", reconnect(&json!(available - 1))).await;
    assert_eq!(socket.answer(4).await.0["result"]["replayed_events"], rest.len());
    assert_eq!(socket.events(rest.len()).await.iter().collect::<Vec<_>>(), rest);
}

/// A client stops reading all its subscriptions at the end of a run, whichever of them tells it, and keeps those of a
/// broken socket in one table with those of the next.
#[tokio::test]
async fn subscriptions_of_a_socket_are_one_stream() {
    let server = server().await;
    let thread = Uuid::from_u128(21).to_string();
    let mut names = Vec::new();
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let mut socket = Socket::open(&server, &thread, "", &[]).await;
        for (id, channels) in (10..).zip([json!(["lifecycle"]), json!(["lifecycle", "values"]), json!(ALL)]) {
            socket.send(id, "subscription.subscribe", json!({"channels": channels})).await;
            let (answer, _) = socket.answer(id).await;
            names.push(answer["result"]["subscription_id"].as_str().expect("an id").to_owned());
        }
        sockets.push(socket);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 6, "no name is given twice: {names:?}");
    sockets[0].send(1, "run.start", json!({"assistant_id": "agent", "input": hello()})).await;
    let (_, mut events) = sockets[0].answer(1).await;
    let told: Vec<Value> = history(&server, &thread, 1).await.into_iter().map(|frame| frame.data).collect();
    let missing = told.len() - events.len();
    events.extend(sockets[0].events(missing).await);
    assert_eq!(events, told, "each once, in the order of the log");
    assert_eq!(sockets[1].events(told.len()).await, told);
    // One that begins now is told what it missed, and no other is told it again.
    sockets[1].send(2, "subscription.subscribe", json!({"channels": ["values"]})).await;
    let (answer, before) = sockets[1].answer(2).await;
    assert!(before.is_empty(), "{before:?}");
    let values: Vec<&Value> = told.iter().filter(|event| event["method"] == "values").collect();
    assert_eq!(answer["result"]["replayed_events"], values.len());
    assert_eq!(sockets[1].events(values.len()).await.iter().collect::<Vec<_>>(), values);
}

#[tokio::test]
async fn refusals_close_the_socket_with_their_status() {
    let settings = HttpSettings { api_keys: vec![ApiKey::new("s3cret")], ..HttpSettings::default() };
    let server = TestServer::serving(settings, vec![agent().expect("a graph")]).await;
    let host = server.url.trim_start_matches("http://").to_owned();
    let own = [("cookie", "a=b; api_key=s3cret".to_owned()), ("origin", format!("http://{host}"))];
    let foreign = [("cookie", "api_key=s3cret".to_owned()), ("origin", "http://evil.example".to_owned())];
    let header = [("x-api-key", "s3cret".to_owned())];
    type Case<'a> = (&'a str, &'a str, &'a [(&'static str, String)], Option<u16>);
    let cases: [Case<'_>; 7] = [
        ("t", "", &[], Some(4401)),
        ("t", "?api_key=wrong", &[], Some(4403)),
        ("t", "", &foreign, Some(4401)),
        ("search", "?api_key=s3cret", &[], Some(4422)),
        ("t", "?api_key=s3cret", &[], None),
        ("t", "", &header, None),
        ("t", "", &own, None),
    ];
    for (thread, query, headers, code) in cases {
        let mut socket = Socket::open(&server, thread, query, headers).await;
        match code {
            Some(code) => assert_eq!(socket.next().await, Err(code), "{query} {headers:?}"),
            None => {
                socket.send(1, "agent.getTree", json!({})).await;
                assert_eq!(socket.answer(1).await.0["error"], "no_such_run", "{query} {headers:?}");
            }
        }
    }
    // The query opens nothing but the socket.
    assert_eq!(server.get("/threads/t?api_key=s3cret").await.status, 401);
    assert_eq!(server.get("/threads/t/stream/events?api_key=s3cret").await.status, 401);
}
