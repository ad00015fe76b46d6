//! The data: scenarios with the transcripts that LangGraph's own server gave for them.

use std::io::Read as _;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An object of an action or a request.
pub(super) type Object = Map<String, Value>;

/// One line of a data file.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Golden {
    pub(super) scenario: Scenario,
    pub(super) transcript: Vec<Entry>,
}

/// Graphs, and what a client does with them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) graphs: Vec<Value>,
    pub(super) actions: Vec<Object>,
}

/// What an action got, normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The position of the action in its scenario.
    pub(super) n: usize,
    #[serde(rename = "do")]
    pub(super) action: String,
    pub(super) status: u16,
    pub(super) body: Value,
}

/// Reads a file of goldens: one JSON object a line, compressed.
pub(super) fn read(path: &Path) -> Vec<Golden> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text).expect("compressed UTF-8");
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:.200}"));
    text.lines().map(parse).collect()
}
