//! Event streams on the wire: frames, heartbeats, filters (contract section 4).

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::query::Query;
use crate::model::event::RESUME_GAP;
use crate::model::{Event, EventId, Json, RunId, StreamMode};
use crate::runtime::EventStream;
use crate::runtime::metrics::OpenStream;

const HEARTBEAT: &str = ": heartbeat\n\n";

/// Which events of a run a listener wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventFilter {
    modes: Option<Vec<String>>,
    /// Paths of graphs, each without the graphs inside it; empty for the root.
    namespaces: Option<Vec<Vec<String>>>,
}

impl EventFilter {
    /// Reads `stream_mode`, one value, repeated ones, or a JSON array, and `namespace`.
    pub(crate) fn of_query(query: &Query) -> ApiResult<EventFilter> {
        let modes = query.all("stream_mode")?;
        for mode in modes.iter().flatten() {
            check_mode("stream_mode", mode)?;
        }
        Ok(EventFilter { modes, ..EventFilter::of_namespaces(query)? })
    }

    /// Reads `namespace` alone, where the modes are in the body: repeated, segments separated by `|`.
    pub(crate) fn of_namespaces(query: &Query) -> ApiResult<EventFilter> {
        let path = |text: &str| text.split('|').filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
        let paths: Vec<Vec<String>> = query.repeated("namespace")?.into_iter().map(path).collect();
        Ok(EventFilter { modes: None, namespaces: (!paths.is_empty()).then_some(paths) })
    }

    /// Compares by the mode before `|` (a subgraph) and `/` (a kind of message); errors and gaps always pass. The run's own
    /// `metadata` is of no namespace.
    fn passes(&self, event: &Event) -> bool {
        let (name, path) = event.name.split_once('|').unwrap_or((&event.name, ""));
        let mode = name.split('/').next().unwrap_or_default();
        if mode == "error" || mode == RESUME_GAP {
            return true;
        }
        let is_mode = |wanted: &String| wanted == mode || (wanted == "messages-tuple" && mode == "messages");
        let is_here = |wanted: &Vec<String>| {
            let segments: Vec<&str> = path.split('|').filter(|segment| !segment.is_empty()).collect();
            // A node's name stands for all of its tasks.
            let same = |(wanted, segment): (&String, &&str)| {
                wanted == segment || (!wanted.contains(':') && segment.split(':').next() == Some(wanted.as_str()))
            };
            wanted.len() == segments.len() && wanted.iter().zip(&segments).all(same)
        };
        self.modes.as_ref().is_none_or(|modes| modes.iter().any(is_mode))
            && (mode == "metadata" || self.namespaces.as_ref().is_none_or(|paths| paths.iter().any(is_here)))
    }
}

/// Refuses what is no stream mode. `tools` is known to clients and accepted; nothing is streamed for it.
pub(crate) fn check_mode(field: &str, mode: &str) -> ApiResult<()> {
    if StreamMode::parse(mode).is_some() || mode == "tools" {
        return Ok(());
    }
    let known: Vec<&str> = StreamMode::ALL.iter().map(|mode| mode.as_str()).collect();
    let got: String = mode.chars().take(64).collect();
    Err(ApiError::invalid(format!("{field}: expected one of {}, got '{got}'", known.join(", "))))
}

/// Reads `Last-Event-ID`; `-1`, `-` and `0` mean from the start.
pub(crate) fn last_event_id(headers: &HeaderMap) -> ApiResult<Option<EventId>> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(None);
    }
    let id = EventId::parse_cursor(text);
    id.map(Some).ok_or_else(|| ApiError::invalid("Invalid Last-Event-ID: expected <milliseconds>-<number>, or -1"))
}

/// A response that sends the events until they end or the server stops.
pub(crate) fn respond(state: &AppState, events: EventStream, filter: EventFilter) -> Response {
    let frames = events.filter_map(move |event| {
        let frame = filter.passes(&event).then(|| frame(&event));
        std::future::ready(frame)
    });
    respond_frames(state, frames.boxed(), true)
}

/// A response that sends frames until they end or the server stops. `drain`: dropping the stream counts as the
/// listener's disconnect, which may cancel a run, so at a stop of the server it is read on.
pub(crate) fn respond_frames(state: &AppState, frames: FrameStream, drain: bool) -> Response {
    let frames = Frames {
        frames: Some(frames),
        _open: state.runtime.metrics().stream(),
        drain,
        heartbeat: ticker(state.settings.heartbeat),
        shutdown: state.settings.shutdown.clone(),
    };
    let body = Body::from_stream(unfold(frames, |mut frames| async move {
        frames.next().await.map(|frame| (Ok::<_, std::convert::Infallible>(frame), frames))
    }));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, body).into_response()
}

/// Frames of an event stream, ready to be sent.
pub(crate) type FrameStream = BoxStream<'static, Bytes>;

/// A stream of one `error` event: how joining something that is not there looks.
pub(crate) fn failed(state: &AppState, run_id: RunId, error: ApiError) -> Response {
    let event = Event { id: None, run_id, name: "error".to_owned(), data: Json::from(error.into_info()) };
    respond(state, futures_util::stream::iter([event]).boxed(), EventFilter::default())
}

/// Ticks in a steady rhythm, first after one period.
pub(super) fn ticker(period: Duration) -> Interval {
    let mut ticker = interval_at(Instant::now() + period, period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

struct Frames {
    frames: Option<FrameStream>,
    _open: OpenStream,
    drain: bool,
    heartbeat: Interval,
    shutdown: CancellationToken,
}

impl Frames {
    async fn next(&mut self) -> Option<Bytes> {
        let frames = self.frames.as_mut()?;
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                let frames = self.frames.take()?;
                if self.drain {
                    tokio::spawn(frames.for_each(|_| std::future::ready(())));
                }
                None
            }
            frame = frames.next() => frame,
            _ = self.heartbeat.tick() => Some(Bytes::from_static(HEARTBEAT.as_bytes())),
        }
    }
}

/// One event: `event`, `data` on one line, `id` when there is one.
pub(crate) fn frame(event: &Event) -> Bytes {
    write_frame(&event.name, &event.data, event.id)
}

/// A frame of a name, data on one line, and an id when there is one.
pub(crate) fn write_frame(name: &str, data: &Json, id: Option<impl std::fmt::Display>) -> Bytes {
    let mut out = String::from("event: ");
    out.extend(name.chars().filter(|c| !matches!(c, '\r' | '\n')));
    out.push_str("\ndata: ");
    let start = out.len();
    data.write(&mut out);
    if out[start..].contains(['\r', '\n']) {
        // Line ends in valid JSON are white space between tokens: dropping them changes nothing.
        let data = out.split_off(start);
        out.extend(data.chars().filter(|c| !matches!(c, '\r' | '\n')));
    }
    if let Some(id) = id {
        out.push_str(&format!("\nid: {id}"));
    }
    out.push_str("\n\n");
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str, id: Option<i64>) -> Event {
        Event {
            id: id.map(EventId),
            run_id: RunId::nil(),
            name: name.to_owned(),
            data: Json::parse(data).expect("JSON"),
        }
    }

    #[test]
    fn frames_have_one_line_per_field() {
        let plain = frame(&event("values", "{\"a\":\n [1,\r\n 2]}", None));
        assert_eq!(plain, "event: values\ndata: {\"a\": [1, 2]}\n\n");
        let with_id = frame(&event("up\ndates|sub:x", "null", Some((5 << 20) | 3)));
        assert_eq!(with_id, "event: updates|sub:x\ndata: null\nid: 5-3\n\n");
    }

    #[test]
    fn filters_compare_modes_not_names() {
        let filter = |modes: &[&str]| EventFilter {
            modes: Some(modes.iter().map(|mode| (*mode).to_owned()).collect()),
            namespaces: None,
        };
        let passes = |modes: &[&str], name: &str| filter(modes).passes(&event(name, "null", None));
        assert!(passes(&["updates"], "updates") && passes(&["updates"], "updates|sub:1|x:2"));
        assert!(passes(&["messages"], "messages/partial") && passes(&["messages-tuple"], "messages|sub:1"));
        assert!(passes(&["values"], "error"));
        assert!(!passes(&["values"], "metadata") && !passes(&["values"], "updates"));
        assert!(EventFilter::default().passes(&event("metadata", "null", None)));
    }

    #[test]
    fn namespaces_are_compared_whole() {
        let passes = |query: &str, name: &str| {
            let filter = EventFilter::of_namespaces(&Query::of(query)).expect("a filter");
            filter.passes(&event(name, "null", None))
        };
        assert!(passes("", "values|sub:1") && passes("namespace=", "values") && !passes("namespace=", "values|sub:1"));
        assert!(passes("namespace=sub:1", "values|sub:1") && !passes("namespace=sub:1", "values|sub:2"));
        assert!(passes("namespace=sub", "values|sub:2") && !passes("namespace=sub", "values|sub:2|in:3"));
        assert!(passes("namespace=&namespace=sub|in", "values|sub:2|in:3") && !passes("namespace=sub", "values"));
        assert!(passes("namespace=sub", "metadata") && passes("namespace=sub", "error"));
    }

    #[test]
    fn cursors_are_read_leniently_and_checked() {
        let cursor = |text: &'static str| {
            last_event_id(
                &[("last-event-id".parse().expect("a name"), HeaderValue::from_static(text))].into_iter().collect(),
            )
        };
        assert_eq!(cursor("-1").expect("valid"), Some(EventId(0)));
        assert_eq!(cursor("").expect("valid"), None);
        assert_eq!(cursor("5-3").expect("valid"), Some(EventId((5 << 20) | 3)));
        assert!(cursor("nope").is_err());
        assert!(check_mode("stream_mode", "tools").is_ok() && check_mode("stream_mode", "lifecycle").is_err());
    }
}
