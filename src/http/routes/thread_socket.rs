//! Protocol v2 over a WebSocket (contract section 5.4): the same commands, and subscriptions, on one socket.
//!
//! Nothing is queued for a slow client: its subscriptions are read from the log as fast as it takes them, all of them in
//! the order of the log ([`Feed`]).

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;

use crate::http::AppState;
use crate::http::auth::{Caller, SocketCaller};
use crate::http::error::ApiError;
use crate::http::extract::PathIds;
use crate::http::feed::Feed;
use crate::http::object::Object;
use crate::http::protocol::{self, Command, Refusal};
use crate::http::sse::ticker;
use crate::model::{Json, ThreadId};
use crate::runtime::Backlog;
use crate::runtime::protocol::Filter;

/// Commands of one socket carried out side by side; more wait.
const MAX_COMMANDS: usize = 16;
/// Subscriptions of one socket.
const MAX_SUBSCRIPTIONS: usize = 100;
/// How long a client may take for one message before it is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// The source of the events failed.
const CLOSE_ERROR: u16 = 1011;
/// The server stops: come again.
const CLOSE_RESTART: u16 = 1012;
/// Refusals close with this plus the HTTP status.
const CLOSE_REFUSED: u16 = 4000;

/// `GET /threads/{thread_id}/stream/events` as an upgrade.
pub(super) async fn connect(
    State(state): State<AppState>,
    caller: SocketCaller,
    path: PathIds,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(error) => {
            let text = format!("{error}: this address is a WebSocket; without one, POST to it");
            return ApiError::BadRequest(text).into_response();
        }
    };
    let limit = state.settings.body_limit;
    let ready = caller.0.and_then(|caller| Ok((caller, path.thread()?)));
    upgrade.max_message_size(limit).max_frame_size(limit).on_upgrade(move |socket| async move {
        let _open = state.runtime.metrics().stream();
        match ready {
            Ok((caller, thread)) => Session::new(state, caller, thread, socket).run().await,
            // A browser sees no status of a refused upgrade, but it does see how a socket closes.
            Err(error) => refuse(socket, error).await,
        }
    })
}

async fn refuse(mut socket: WebSocket, error: ApiError) {
    let (status, text) = error.into_close();
    let _gone = socket.send(close(CLOSE_REFUSED + status, &text)).await;
}

fn close(code: u16, reason: &str) -> Message {
    // A close frame has room for 123 bytes of text.
    let reason: String = reason.chars().take(30).collect();
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

/// What a command leads to.
struct Done {
    answer: Json,
    /// A subscription to begin once the answer is sent, after a sequence number, or (`None`) one to end.
    subscription: Option<(String, Option<(Filter, i64)>)>,
}

struct Session {
    state: AppState,
    caller: Caller,
    thread: ThreadId,
    socket: WebSocket,
    feed: Feed,
    commands: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Session {
    fn new(state: AppState, caller: Caller, thread: ThreadId, socket: WebSocket) -> Session {
        let feed = Feed::new(state.runtime.clone(), caller.scope, thread.clone());
        Session { state, caller, thread, socket, feed, commands: FuturesUnordered::new() }
    }

    /// Serves the socket until one side closes it.
    async fn run(mut self) {
        let mut heartbeat = ticker(self.state.settings.heartbeat);
        let shutdown = self.state.settings.shutdown.clone();
        loop {
            let message = tokio::select! {
                biased;
                () = shutdown.cancelled() => close(CLOSE_RESTART, "the server stops"),
                Some(done) = self.commands.next(), if !self.commands.is_empty() => self.done(done),
                received = self.socket.recv(), if self.commands.len() < MAX_COMMANDS => {
                    match received {
                        Some(Ok(Message::Text(text))) => self.take(&text),
                        Some(Ok(Message::Binary(bytes))) => self.take(&String::from_utf8_lossy(&bytes)),
                        // Pings are answered below; a close ends the stream.
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    }
                    continue;
                }
                event = self.feed.next() => match event {
                    Ok(event) => Message::text(event.to_json().text()),
                    Err(error) => {
                        let refusal = Refusal::from(error);
                        let _gone = self.send(Message::text(protocol::failure(None, &refusal).text())).await;
                        close(CLOSE_ERROR, "the stream failed")
                    }
                },
                _ = heartbeat.tick() => Message::Ping(axum::body::Bytes::new()),
            };
            let is_last = matches!(message, Message::Close(_));
            if !self.send(message).await || is_last {
                return;
            }
        }
    }

    /// False when the client is gone or takes too long.
    async fn send(&mut self, message: Message) -> bool {
        matches!(timeout(SEND_TIMEOUT, self.socket.send(message)).await, Ok(Ok(())))
    }

    /// Begins a command.
    fn take(&mut self, text: &str) {
        let refused = |answer: Json| std::future::ready(Done { answer, subscription: None }).boxed();
        let command = match Json::parse(text) {
            Ok(json) => Command::read(&json),
            Err(error) => Err(protocol::failure(None, &Refusal::new("invalid_argument", format!("JSON: {error}")))),
        };
        let command = match command {
            Ok(command) => command,
            Err(answer) => return self.commands.push(refused(answer)),
        };
        let id = command.id;
        let mut params = match command.params {
            Ok(params) => params,
            Err(refusal) => return self.commands.push(refused(protocol::failure(Some(id), &refusal))),
        };
        let work = match command.method.as_str() {
            "subscription.subscribe" => self.subscribe(id, &mut params),
            "subscription.unsubscribe" => self.unsubscribe(id, &mut params),
            "subscription.reconnect" => self.reconnect(id, &mut params),
            method => {
                let (state, caller, thread) = (self.state.clone(), self.caller.clone(), self.thread.clone());
                let method = method.to_owned();
                let work = async move {
                    let answer = match protocol::execute(&state, &caller, &thread, &method, Ok(params)).await {
                        Ok(result) => protocol::success(id, &result),
                        Err(refusal) => protocol::failure(Some(id), &refusal),
                    };
                    Done { answer, subscription: None }
                };
                Ok(work.boxed())
            }
        };
        let work = work.unwrap_or_else(|refusal| refused(protocol::failure(Some(id), &refusal)));
        self.commands.push(work);
    }

    /// Puts a command's outcome into effect and returns the answer to send.
    fn done(&mut self, done: Done) -> Message {
        if let Some((name, begun)) = done.subscription {
            match begun {
                Some((filter, since)) => self.feed.begin(name, filter, since),
                None => self.feed.end(&name),
            }
        }
        Message::text(done.answer.text())
    }

    fn subscribe(&self, id: i64, params: &mut Object) -> Result<BoxFuture<'static, Done>, Refusal> {
        let (filter, since) = protocol::subscription(params)?;
        if self.feed.len() + self.commands.len() >= MAX_SUBSCRIPTIONS {
            return Err(Refusal::new(
                "invalid_argument",
                format!("At most {MAX_SUBSCRIPTIONS} subscriptions a socket"),
            ));
        }
        // Of no other socket either: a client that comes back has those of the last one in the same table.
        let name = self.state.runtime.clock().new_uuid().to_string();
        Ok(self.begin(id, name, filter, since.unwrap_or(0), false))
    }

    fn unsubscribe(&self, id: i64, params: &mut Object) -> Result<BoxFuture<'static, Done>, Refusal> {
        let name = self.known(params)?.0;
        let answer = protocol::success(id, &Json::object());
        Ok(std::future::ready(Done { answer, subscription: Some((name, None)) }).boxed())
    }

    /// Begins a subscription again after a sequence number. Where events behind it are gone, it stays as it is, and the
    /// client is told from where on they are there.
    fn reconnect(&self, id: i64, params: &mut Object) -> Result<BoxFuture<'static, Done>, Refusal> {
        let (name, filter) = self.known(params)?;
        let since = params.integer("since", 0..=i64::MAX)?.unwrap_or(0);
        Ok(self.begin(id, name, filter, since, true))
    }

    fn known(&self, params: &mut Object) -> Result<(String, Filter), Refusal> {
        let name = params.required_string("subscription_id")?;
        match self.feed.filter(&name).cloned() {
            Some(filter) => Ok((name, filter)),
            None => Err(Refusal::new("no_such_subscription", format!("No subscription '{name}' on this socket"))),
        }
    }

    /// Counts what is there already, for the answer, then streams it and all that comes.
    fn begin(&self, id: i64, name: String, filter: Filter, since: i64, gapless: bool) -> BoxFuture<'static, Done> {
        let (runtime, scope, thread) = (self.state.runtime.clone(), self.caller.scope, self.thread.clone());
        async move {
            match runtime.protocol_backlog(&scope, &thread, &filter, since).await {
                Ok(Backlog { gap: Some(available), .. }) if gapless => {
                    let refusal = Refusal::gap(since, available);
                    Done { answer: protocol::failure(Some(id), &refusal), subscription: None }
                }
                Ok(Backlog { events, .. }) => {
                    let result = serde_json::json!({"subscription_id": name, "replayed_events": events});
                    let answer = protocol::success(id, &Json::from(result));
                    Done { answer, subscription: Some((name, Some((filter, since)))) }
                }
                Err(error) => Done { answer: protocol::failure(Some(id), &error.into()), subscription: None },
            }
        }
        .boxed()
    }
}
