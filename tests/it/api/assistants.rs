//! One assistant per graph.

use serde_json::json;

use crate::support::server::TestServer;

#[tokio::test]
async fn every_graph_has_an_assistant() {
    let server = TestServer::start().await;
    let found = server.post("/assistants/search", json!({"graph_id": "counter"})).await;
    assert_eq!(found.header("x-pagination-total"), Some("1"));
    let assistant = found.ok()[0].clone();
    assert_eq!((&assistant["name"], &assistant["version"]), (&json!("counter"), &json!(1)));
    assert_eq!(assistant["metadata"]["created_by"], "system");
    let id = assistant["assistant_id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/assistants/{id}")).await.ok()["graph_id"], "counter");
    let graphs = server.get("/graphs").await.ok().as_array().expect("a list").len();
    assert_eq!(server.post("/assistants/count", json!({})).await.ok(), json!(graphs));
    let names = server.post("/assistants/search", json!({"select": ["name"], "name": "COUNTER"})).await.ok();
    assert_eq!(names, json!([{"name": "counter"}]));
}

#[tokio::test]
async fn pages_follow_the_headers() {
    let server = TestServer::start().await;
    let first = server.post("/assistants/search", json!({"limit": 2, "sort_by": "name", "sort_order": "asc"})).await;
    assert_eq!(first.header("x-pagination-next"), Some("2"));
    let next = json!({"limit": 2, "offset": 2, "sort_by": "name", "sort_order": "asc"});
    let second = server.post("/assistants/search", next).await.ok();
    assert!(first.ok()[1]["name"].as_str() < second[0]["name"].as_str());
}

#[tokio::test]
async fn graphs_are_drawn_and_described() {
    let server = TestServer::start().await;
    let drawing = server.get("/assistants/counter/graph?xray=true").await.ok();
    let ids: Vec<&str> = drawing["nodes"].as_array().expect("nodes").iter().filter_map(|n| n["id"].as_str()).collect();
    assert_eq!(ids, ["__start__", "increment", "__end__"]);
    for edge in drawing["edges"].as_array().expect("edges") {
        let known = ["source", "target", "data", "conditional"];
        assert!(edge.as_object().expect("an edge").keys().all(|key| known.contains(&key.as_str())), "{edge}");
    }
    server.get("/assistants/counter/graph?xray=0").await.refused(422);
    let id = server.post("/assistants/search", json!({"graph_id": "counter"})).await.ok()[0]["assistant_id"].clone();
    let schemas = server.get(&format!("/assistants/{}/schemas", id.as_str().expect("an id"))).await.ok();
    assert_eq!(schemas["graph_id"], "counter");
    assert!(schemas["input_schema"].is_object(), "{schemas}");
}

#[tokio::test]
async fn unknown_graphs_and_assistants_point_to_the_list() {
    let server = TestServer::start().await;
    let text = server.post("/assistants/search", json!({"graph_id": "nope"})).await.refused(404);
    assert!(text.contains("'counter'") && text.contains("GET /graphs"), "{text}");
    server.get(&format!("/assistants/{}", uuid::Uuid::nil())).await.refused(404);
    server.get("/assistants/nope").await.refused(422);
}
