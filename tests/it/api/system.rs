//! Health, version, graphs.

use session_store::http::{ApiKey, HttpSettings};

use crate::support::server::TestServer;

#[tokio::test]
async fn the_server_says_how_it_is() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/ok").await.ok()["ok"], true);
    let checked = server.get("/ok?check_db=1").await.ok();
    assert_eq!((&checked["services"]["database"], &checked["volatile"]), (&"healthy".into(), &true.into()));
    let info = server.get("/info").await.ok();
    assert!(info["version"].is_string() && info["flags"]["assistants"] == true, "{info}");
}

#[tokio::test]
async fn graphs_are_listed_with_what_is_needed_to_run_them() {
    let server = TestServer::start().await;
    let graphs = server.get("/graphs").await.ok();
    let counter = graphs.as_array().expect("a list").iter().find(|graph| graph["name"] == "counter").expect("counter");
    assert_eq!(counter["nodes"], serde_json::json!(["increment"]));
    assert!(counter["assistant_id"].is_string() && counter["description"].is_string(), "{counter}");
    assert!(server.get("/graphs?pretty").await.text.starts_with("[\n  {\n"));
}

#[tokio::test]
async fn a_key_closes_everything_but_health() {
    let keys = vec![ApiKey::new("k")];
    let server = TestServer::with(HttpSettings { api_keys: keys, ..HttpSettings::default() }).await;
    server.get("/ok").await.ok();
    server.get("/graphs").await.refused(401);
}
