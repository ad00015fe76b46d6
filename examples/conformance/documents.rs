//! Graph documents: their shape, and the files they are read from.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flate2::read::MultiGzDecoder;
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A scripted graph.
#[derive(Debug, Deserialize)]
pub(crate) struct Document {
    /// Children have none.
    #[serde(default)]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) state: IndexMap<String, Channel>,
    pub(crate) input: Option<Vec<String>>,
    pub(crate) output: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) nodes: Vec<Node>,
    #[serde(default)]
    pub(crate) edges: Vec<(String, String)>,
    #[serde(default)]
    pub(crate) joins: Vec<(Vec<String>, String)>,
    #[serde(default)]
    pub(crate) routers: Vec<Router>,
    #[serde(default)]
    pub(crate) interrupt_before: Breakpoints,
    #[serde(default)]
    pub(crate) interrupt_after: Breakpoints,
    /// `"inherit"`, true or false.
    #[serde(default)]
    pub(crate) checkpointer: Value,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Channel {
    #[serde(default = "last")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) private: bool,
    pub(crate) guard: Option<bool>,
    pub(crate) snapshot_frequency: Option<u32>,
}

fn last() -> String {
    "last".to_owned()
}

#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) ops: Vec<Value>,
    pub(crate) input: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) defer: bool,
    pub(crate) retry: Option<Map<String, Value>>,
    pub(crate) error_handler: Option<Handler>,
    #[serde(default)]
    pub(crate) cache: bool,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) subgraph: Option<Box<Document>>,
    pub(crate) child: Option<Box<Document>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Handler {
    #[serde(default)]
    pub(crate) ops: Vec<Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Router {
    pub(crate) from: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) rules: Vec<Map<String, Value>>,
    pub(crate) path_map: Option<IndexMap<String, String>>,
}

/// A list of nodes, or `"*"`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Breakpoints {
    One(String),
    Many(Vec<String>),
    Null(()),
}

impl Default for Breakpoints {
    fn default() -> Self {
        Breakpoints::Null(())
    }
}

impl Breakpoints {
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Breakpoints::One(name) => vec![name.clone()],
            Breakpoints::Many(names) => names.clone(),
            Breakpoints::Null(()) => Vec::new(),
        }
    }
}

/// All documents in a file, or in every file below a folder. Of several with one id the last counts.
pub(crate) fn load(path: &Path) -> anyhow::Result<Vec<Document>> {
    let mut files = Vec::new();
    list(path, &mut files).with_context(|| format!("reading {}", path.display()))?;
    files.sort();
    let mut documents = IndexMap::new();
    for file in files {
        let text = read(&file).with_context(|| format!("reading {}", file.display()))?;
        let is_lines = file.to_string_lossy().contains(".jsonl");
        let parts: Vec<&str> = if is_lines { text.lines().collect() } else { vec![text.as_str()] };
        for part in parts.into_iter().filter(|part| !part.trim().is_empty()) {
            for graph in graphs(serde_json::from_str(part).with_context(|| file.display().to_string())?) {
                let document: Document = serde_json::from_value(graph).with_context(|| file.display().to_string())?;
                documents.insert(document.id.clone(), document);
            }
        }
    }
    Ok(documents.into_values().collect())
}

fn list(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let name = path.to_string_lossy().into_owned();
        if path.is_dir() || [".json", ".jsonl", ".jsonl.gz"].iter().any(|ending| name.ends_with(ending)) {
            list(&path, files)?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> std::io::Result<String> {
    let bytes = fs::read(file)?;
    let mut text = String::new();
    if file.extension().is_some_and(|extension| extension == "gz") {
        MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text)?;
    } else {
        bytes.as_slice().read_to_string(&mut text)?;
    }
    Ok(text)
}

/// The graphs of one JSON value: one graph, a list of graphs, `{"graphs": [..]}`, or a scenario around these.
fn graphs(value: Value) -> Vec<Value> {
    match value {
        Value::Array(graphs) => graphs,
        Value::Object(mut fields) => match (fields.remove("graphs"), fields.remove("scenario")) {
            (Some(Value::Array(graphs)), _) => graphs,
            (None, Some(scenario)) => graphs(scenario),
            _ if fields.contains_key("nodes") => vec![Value::Object(fields)],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}
