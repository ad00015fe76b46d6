//! Events: what a run tells its listeners, and the ids that make streams resumable.

use std::fmt;

use super::{Json, RunId};

/// A stream mode a client may ask for (contract section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamMode {
    Values,
    Updates,
    Messages,
    MessagesTuple,
    Custom,
    Tasks,
    Checkpoints,
    Debug,
    Events,
}

impl StreamMode {
    pub const ALL: [StreamMode; 9] = [
        StreamMode::Values,
        StreamMode::Updates,
        StreamMode::Messages,
        StreamMode::MessagesTuple,
        StreamMode::Custom,
        StreamMode::Tasks,
        StreamMode::Checkpoints,
        StreamMode::Debug,
        StreamMode::Events,
    ];

    /// The name clients ask with.
    pub fn as_str(self) -> &'static str {
        match self {
            StreamMode::Values => "values",
            StreamMode::Updates => "updates",
            StreamMode::Messages => "messages",
            StreamMode::MessagesTuple => "messages-tuple",
            StreamMode::Custom => "custom",
            StreamMode::Tasks => "tasks",
            StreamMode::Checkpoints => "checkpoints",
            StreamMode::Debug => "debug",
            StreamMode::Events => "events",
        }
    }

    pub fn parse(text: &str) -> Option<StreamMode> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

/// The id of an event in its thread: milliseconds in the upper bits, a counter in the lower 20. Monotone per thread,
/// also across a takeover, since a run continues from the thread's `last_event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub i64);

const COUNTER_BITS: u32 = 20;

impl EventId {
    /// The next id after `last` at the time `millis`.
    pub fn next(last: i64, millis: i64) -> EventId {
        EventId((last + 1).max(millis << COUNTER_BITS))
    }

    /// The milliseconds since 1970 it was given at.
    pub fn millis(self) -> i64 {
        self.0 >> COUNTER_BITS
    }

    /// Reads a cursor: `<ms>-<n>`, a bare `<ms>`, `<ms>-*`, or `-`, `-1`, `0` for "from the start". `None` if it is none of them.
    pub fn parse_cursor(text: &str) -> Option<EventId> {
        if matches!(text, "-" | "-1" | "0" | "0-0") {
            return Some(EventId(0));
        }
        let (millis, counter) = text.split_once('-').unwrap_or((text, "0"));
        let millis: i64 = millis.parse().ok()?;
        if counter == "*" && (1..1 << 42).contains(&millis) {
            // Everything of that millisecond.
            return Some(EventId((millis << COUNTER_BITS) - 1));
        }
        let counter: i64 = counter.parse().ok()?;
        let in_range = (0..1 << 42).contains(&millis) && (0..1 << COUNTER_BITS).contains(&counter);
        in_range.then_some(EventId((millis << COUNTER_BITS) | counter))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0 >> COUNTER_BITS, self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// The log's own record that a run began: `{graph_id, modes, protocol}`. Never sent as it is.
pub const RUN_BEGAN: &str = "@began";
/// The log's own record that a run ended: `{status, outcome, error?}`. Never sent as it is.
pub const RUN_ENDED: &str = "@ended";

/// Tells a change of state from outside a run: `{checkpoint_id, checkpoint_ns}` in the log, the state itself on streams.
pub const STATE_UPDATE: &str = "state_update";

/// Stands in a replay for events that are gone: `{from, to, events, reason}`; without `events` where the log ends before
/// the id from which a client wants to go on.
pub const RESUME_GAP: &str = "resume_gap";

/// Whether an event of this name is a record of the log itself.
pub fn is_record(name: &str) -> bool {
    name.starts_with('@')
}

/// One event of a run, ready to be framed: `name` is the SSE event name (`values`, `updates|sub:<task id>`, ..).
#[derive(Debug, Clone)]
pub struct Event {
    /// Present when the event is stored: only streams of resumable runs carry ids.
    pub id: Option<EventId>,
    pub run_id: RunId,
    pub name: String,
    pub data: Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_within_a_millisecond_and_across_clock_steps_back() {
        let a = EventId::next(0, 1_795_219_553_849);
        let b = EventId::next(a.0, 1_795_219_553_849);
        let c = EventId::next(b.0, 1_795_219_553_000);
        assert!(a < b && b < c);
        assert_eq!(a.to_string(), "1795219553849-0");
        assert_eq!(c.to_string(), "1795219553849-2");
        assert_eq!(EventId::parse_cursor(&c.to_string()), Some(c));
    }

    #[test]
    fn cursors_from_the_start_are_understood_and_nonsense_is_not() {
        for start in ["-", "-1", "0"] {
            assert_eq!(EventId::parse_cursor(start), Some(EventId(0)));
        }
        assert_eq!(EventId::parse_cursor("1-*"), Some(EventId((1 << COUNTER_BITS) - 1)));
        for bad in ["x", "x-*", "1-x", "", "99999999999999999-1"] {
            assert_eq!(EventId::parse_cursor(bad), None, "{bad}");
        }
    }
}
