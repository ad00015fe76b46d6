//! [`Feed`]: the subscriptions of one socket as one stream in the order of the thread's log.
//!
//! Clients take what a socket carries for one history: they stop reading all of their subscriptions when one of them tells
//! that the run has ended. So the log is read once for all subscriptions. One that begins later is first brought up to
//! where the others are, while those wait.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until};

use crate::model::{Scope, ThreadId};
use crate::runtime::protocol::{Filter, ProtocolEvent};
use crate::runtime::{ProtocolStream, Runtime, RuntimeError};

/// How long the end of a run waits for subscriptions that a client asks for in one breath: once it has heard the end,
/// it does not wait for what the others still have to tell.
const BREATH: Duration = Duration::from_millis(50);

struct Subscription {
    name: String,
    filter: Filter,
    /// Events up to this number are not wanted.
    since: i64,
}

pub(crate) struct Feed {
    runtime: Runtime,
    scope: Scope,
    thread: ThreadId,
    subscriptions: Vec<Subscription>,
    /// The log, read for all subscriptions; there is one while there are any.
    log: Option<ProtocolStream>,
    /// The number of the last event that was told, or that nobody wanted.
    position: i64,
    /// The next event of the log, read and not yet told.
    next: Option<ProtocolEvent>,
    /// What later subscriptions missed, by their names.
    missed: VecDeque<(String, ProtocolStream)>,
    begun: Instant,
}

impl Feed {
    pub(crate) fn new(runtime: Runtime, scope: Scope, thread: ThreadId) -> Feed {
        let (subscriptions, missed, begun) = (Vec::new(), VecDeque::new(), Instant::now());
        Feed { runtime, scope, thread, subscriptions, log: None, position: 0, next: None, missed, begun }
    }

    pub(crate) fn len(&self) -> usize {
        self.subscriptions.len()
    }

    pub(crate) fn filter(&self, name: &str) -> Option<&Filter> {
        self.subscriptions.iter().find(|known| known.name == name).map(|known| &known.filter)
    }

    /// Begins a subscription after the sequence number `since`. One of that name ends.
    pub(crate) fn begin(&mut self, name: String, filter: Filter, since: i64) {
        self.end(&name);
        self.begun = Instant::now();
        if self.log.is_none() {
            self.log = Some(self.runtime.protocol_events(&self.scope, &self.thread, Filter::all(), since));
            self.position = since;
        } else if since < self.position {
            let until = self.position;
            let missed = self.runtime.protocol_replay(&self.scope, &self.thread, filter.clone(), since, until);
            self.missed.push_back((name.clone(), missed));
        }
        self.subscriptions.push(Subscription { name, filter, since });
    }

    pub(crate) fn end(&mut self, name: &str) {
        self.subscriptions.retain(|known| known.name != name);
        self.missed.retain(|(known, _)| known != name);
        if self.subscriptions.is_empty() {
            (self.log, self.next) = (None, None);
        }
    }

    /// The next event that a subscription wants; pending while there are none. Each comes once, however many want it.
    /// Cancel-safe. After an error nothing comes any more.
    pub(crate) async fn next(&mut self) -> Result<ProtocolEvent, RuntimeError> {
        loop {
            if let Some((_, missed)) = self.missed.front_mut() {
                match missed.next().await {
                    Some(event) => return event,
                    None => drop(self.missed.pop_front()),
                }
                continue;
            }
            if self.next.is_none() {
                let Some(log) = &mut self.log else { return std::future::pending().await };
                match log.next().await {
                    Some(event) => self.next = Some(event?),
                    None => return std::future::pending().await,
                }
            }
            if self.next.as_ref().is_some_and(ends_a_run) {
                sleep_until(self.begun + BREATH).await;
            }
            let Some(event) = self.next.take() else { continue };
            self.position = event.seq;
            if self.subscriptions.iter().any(|one| event.seq > one.since && one.filter.passes(&event)) {
                return Ok(event);
            }
        }
    }
}

/// Whether a client stops reading when it hears this.
fn ends_a_run(event: &ProtocolEvent) -> bool {
    let what = || event.data.get("event");
    event.method == "lifecycle"
        && event.namespace.is_empty()
        && what().is_some_and(|what| what.as_str() != Some("running"))
}
