//! Conformance with LangGraph, as data: scenarios of scripted graphs and client actions, with the transcripts that
//! LangGraph's own server gave for them (`tests/goldens`), against this server on every backend.
//!
//! `tests/goldens/README.md` says where the transcripts come from and how to make more. A failure names the scenario and
//! the places in its transcript; `SESSION_STORE_TEST_SCENARIO=name` runs the scenarios whose names contain the text.

mod client;
mod difference;
mod normalise;
mod order;
mod quirks;
mod run;
mod scenario;

use std::path::PathBuf;

use futures_util::StreamExt as _;
use serde_json::json;
use session_store::app::Server;
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::Graph;

use self::client::Client;
use self::scenario::{Entry, Golden};
use crate::fixtures::script;
use crate::support::process::{Database, root, sqlite_url};

/// Scenarios carried out at the same time.
const JOBS: usize = 8;
/// Differences told of each scenario.
const TOLD: usize = 8;

fn goldens(file: &str) -> Vec<Golden> {
    let path: PathBuf = root().join("tests/goldens").join(file);
    let wanted = std::env::var("SESSION_STORE_TEST_SCENARIO").unwrap_or_default();
    let found: Vec<Golden> =
        scenario::read(&path).into_iter().filter(|golden| golden.scenario.name.contains(&wanted)).collect();
    assert!(!found.is_empty() || !wanted.is_empty(), "{} is empty", path.display());
    found
}

fn graphs(goldens: &[Golden]) -> Vec<Graph> {
    let documents = goldens.iter().flat_map(|golden| &golden.scenario.graphs).map(|graph| {
        let document = serde_json::from_value(graph.clone()).expect("a graph document");
        script::graph(&document).expect("a graph")
    });
    documents.collect()
}

/// Carries all scenarios out and tells what differs: a line per scenario, then where.
async fn differences(goldens: &[Golden], database_url: &str) -> Vec<String> {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(database_url);
    // A machine that stalls for longer than a lease has its runs taken over, and told in two attempts.
    config.runtime.lease_secs = 300.0;
    let server = Server::new(config, graphs(goldens)).start().await.expect("the server starts");
    let client = Client::new(&server.url());
    let compared = futures_util::stream::iter(goldens).map(|golden| {
        let client = client.clone();
        async move {
            let found = match run::transcript(&client, &golden.scenario).await {
                Ok(got) => difference::between(&golden.transcript, &got, TOLD),
                Err(error) => vec![error],
            };
            let name = &golden.scenario.name;
            (!found.is_empty()).then(|| format!("{name}\n    {}", found.join("\n    ")))
        }
    });
    let found: Vec<String> = compared.buffered(JOBS).filter_map(async |found| found).collect().await;
    server.shutdown().await.expect("stops");
    found
}

#[track_caller]
fn none(differences: &[String], of: usize) {
    let count = differences.len();
    assert!(count == 0, "{count} of {of} scenarios differ:\n{}", differences.join("\n"));
}

async fn on_sqlite(file: &str) {
    let (goldens, dir) = (goldens(file), tempfile::tempdir().expect("a directory"));
    none(&differences(&goldens, &sqlite_url(&dir)).await, goldens.len());
}

async fn on_postgres(file: &str) {
    let Some(database) = Database::create("conformance").await else { return };
    let goldens = goldens(file);
    none(&differences(&goldens, &database.url).await, goldens.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn written_scenarios_are_as_in_langgraph_on_sqlite() {
    on_sqlite("scenarios.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn written_scenarios_are_as_in_langgraph_on_postgres() {
    on_postgres("scenarios.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corner_scenarios_are_as_in_langgraph_on_sqlite() {
    on_sqlite("corners.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corner_scenarios_are_as_in_langgraph_on_postgres() {
    on_postgres("corners.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_scenarios_are_as_in_langgraph_on_sqlite() {
    on_sqlite("random.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_scenarios_are_as_in_langgraph_on_postgres() {
    on_postgres("random.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_scenarios_are_as_in_langgraph_on_sqlite() {
    on_sqlite("state.jsonl.gz").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_scenarios_are_as_in_langgraph_on_postgres() {
    on_postgres("state.jsonl.gz").await;
}

/// The check can fail: a transcript that says something else is reported, with its name and place.
#[tokio::test(flavor = "multi_thread")]
async fn a_transcript_that_was_tampered_with_is_reported() {
    let mut goldens: Vec<Golden> = scenario::read(&root().join("tests/goldens/scenarios.jsonl.gz"));
    goldens
        .retain(|golden| ["S1-linear", "S2-linear-updates", "S10-send-order"].contains(&golden.scenario.name.as_str()));
    assert_eq!(goldens.len(), 3);
    let genuine = goldens.clone();
    for golden in &mut goldens {
        let Entry { body, .. } = golden.transcript.last_mut().expect("an entry");
        tamper(body);
    }
    let found = differences(&goldens, "memory").await;
    assert_eq!(found.len(), 3, "{found:?}");
    for (golden, told) in goldens.iter().zip(&found) {
        let name = &golden.scenario.name;
        assert!(told.starts_with(name.as_str()) && told.contains("tampered"), "{told}");
    }
    none(&differences(&genuine, "memory").await, genuine.len());
}

/// Changes one string somewhere inside.
fn tamper(value: &mut serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => {
            *text = "tampered".to_owned();
            true
        }
        serde_json::Value::Array(items) => items.iter_mut().any(tamper),
        serde_json::Value::Object(fields) => fields.values_mut().any(tamper),
        other => {
            *other = json!("tampered");
            true
        }
    }
}
