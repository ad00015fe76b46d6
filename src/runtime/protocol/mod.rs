//! Protocol v2 (contract section 5): the event log of a thread as its clients see it. Everything here is a pure fold
//! over stored events, so that a replay gives the same events with the same ids as the live stream did.

mod filter;
mod messages;
mod normal;
mod render;

pub use filter::{Channel, Filter};
pub use render::Renderer;

use crate::model::{Json, json};

/// One event of the protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct ProtocolEvent {
    /// The id of the stored event it comes from, or `synth:<run_id>:..` for what is derived.
    pub event_id: String,
    /// Grows along the thread; the same on every connection.
    pub seq: i64,
    pub method: &'static str,
    /// The path of the graph that tells it; empty at the root.
    pub namespace: Vec<String>,
    pub node: Option<String>,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub data: Json,
}

impl ProtocolEvent {
    /// The event as it is sent.
    pub fn to_json(&self) -> Json {
        let mut out = String::from("{\"type\":\"event\",\"event_id\":");
        json::write_string(&self.event_id, &mut out);
        out.push_str(&format!(",\"seq\":{},\"method\":\"{}\",\"params\":{{\"namespace\":[", self.seq, self.method));
        for (index, segment) in self.namespace.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            json::write_string(segment, &mut out);
        }
        out.push_str(&format!("],\"timestamp\":{},\"data\":", self.timestamp));
        self.data.write(&mut out);
        if let Some(node) = &self.node {
            out.push_str(",\"node\":");
            json::write_string(node, &mut out);
        }
        out.push_str("}}");
        Json::trusted(out).unwrap_or_default()
    }
}
