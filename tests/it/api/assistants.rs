//! One assistant per graph.

use serde_json::{Value, json};

use session_store::graph::{END, Graph, START, StateGraph};
use session_store::http::HttpSettings;

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
async fn changing_a_graphs_assistant_does_not_make_it_younger() {
    let server = TestServer::start().await;
    let oldest_first = json!({"sort_by": "created_at", "sort_order": "asc", "limit": 100, "select": ["graph_id"]});
    let order = server.post("/assistants/search", oldest_first.clone()).await.ok();
    let id = session_store::model::system_assistant_id("counter");
    let place = format!("/assistants/{id}");
    let before = server.get(&place).await.ok();
    for version in [2, 3] {
        let after = server.send("PATCH", &place, r#"{"metadata":{"a":1}}"#).await.ok();
        assert_eq!((&after["version"], &after["created_at"]), (&json!(version), &before["created_at"]));
        assert!(after["updated_at"].as_str() > before["updated_at"].as_str(), "{after}");
    }
    let versions = server.post(&format!("{place}/versions"), json!({})).await.ok();
    assert_eq!(versions[2]["created_at"], before["created_at"]);
    assert_eq!(server.post("/assistants/search", oldest_first).await.ok(), order);
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

/// An assistant of one's own.
async fn make(server: &TestServer, body: Value) -> (String, Value) {
    let assistant = server.post("/assistants", body).await.ok();
    (assistant["assistant_id"].as_str().expect("an id").to_owned(), assistant)
}

#[tokio::test]
async fn assistants_are_made_changed_in_versions_and_deleted() {
    let server = TestServer::start().await;
    let body = json!({"graph_id": "counter", "name": "One", "description": "d", "metadata": {"tag": "t", "run_id": "x"},
                      "config": {"tags": ["a"], "configurable": {"k": 1}}});
    let (id, made) = make(&server, body).await;
    assert_eq!((&made["version"], &made["context"]), (&json!(1), &json!({"k": 1})));
    assert_eq!(made["metadata"], json!({"tag": "t"}), "reserved keys are dropped");
    let place = format!("/assistants/{id}");
    assert_eq!(server.get(&place).await.ok(), made);
    let two = server.send("PATCH", &place, r#"{"name":"Two","metadata":{"more":1},"context":{"k":2}}"#).await.ok();
    assert_eq!((&two["version"], &two["name"], &two["description"]), (&json!(2), &json!("Two"), &json!("d")));
    assert_eq!(two["metadata"], json!({"tag": "t", "more": 1}));
    assert_eq!(
        (&two["context"], &two["config"]),
        (&json!({"k": 2}), &json!({"tags": ["a"], "configurable": {"k": 2}}))
    );
    let versions = server.post(&format!("{place}/versions"), json!({})).await.ok();
    assert_eq!((&versions[0]["version"], &versions[1]["version"]), (&json!(2), &json!(1)));
    assert!(versions[0].get("updated_at").is_none() && versions.as_array().map(Vec::len) == Some(2), "{versions}");
    let back = server.post(&format!("{place}/latest"), json!({"version": 1})).await.ok();
    assert_eq!((&back["version"], &back["name"]), (&json!(1), &json!("One")));
    assert_eq!(server.send("PATCH", &place, r#"{"name":"Three"}"#).await.ok()["version"], 3);
    server.post(&format!("{place}/latest"), json!({"version": 9})).await.refused(404);
    server.post(&format!("{place}/latest"), json!({})).await.refused(422);
    assert_eq!(server.send("DELETE", &place, "").await.status, 204);
    assert_eq!(server.get(&place).await.refused(404), "Not Found");
    assert_eq!(server.send("DELETE", &place, "").await.refused(404), "Not Found");
    server.post(&format!("{place}/versions"), json!({})).await.refused(404);
    server.send("PATCH", &place, "{}").await.refused(404);
}

#[tokio::test]
async fn what_is_wrong_with_an_assistant_is_said() {
    let server = TestServer::start().await;
    server.post("/assistants", json!({})).await.refused(422);
    let text = server.post("/assistants", json!({"graph_id": "nope"})).await.refused(404);
    assert!(text.starts_with("Graph 'nope' not found. Expected one of: ["), "{text}");
    let both = json!({"graph_id": "counter", "config": {"configurable": {"a": 1}}, "context": {"a": 1}});
    server.post("/assistants", both).await.refused(400);
    let large = json!({"graph_id": "counter", "config": {"configurable": {"a": "x".repeat(300_000)}}});
    server.post("/assistants", large).await.refused(422);
    server.post("/assistants", json!({"graph_id": "counter", "assistant_id": "x"})).await.refused(422);
    let (id, made) = make(&server, json!({"graph_id": "counter"})).await;
    assert_eq!(made["name"], "Untitled");
    let text = server.post("/assistants", json!({"graph_id": "counter", "assistant_id": id})).await.refused(409);
    assert!(text.contains(&id), "{text}");
    let again = json!({"graph_id": "chat", "assistant_id": id, "if_exists": "do_nothing"});
    assert_eq!(server.post("/assistants", again).await.ok()["graph_id"], "counter");
}

#[tokio::test]
async fn an_assistant_of_a_graph_is_changed_but_never_deleted() {
    let server = TestServer::start().await;
    let found = server.post("/assistants/search", json!({"graph_id": "counter"})).await.ok();
    let id = found[0]["assistant_id"].as_str().expect("an id").to_owned();
    let place = format!("/assistants/{id}");
    assert_eq!(server.post(&format!("{place}/versions"), json!({})).await.ok()[0]["version"], 1);
    assert_eq!(server.post(&format!("{place}/latest"), json!({"version": 1})).await.ok()["version"], 1);
    let text = server.send("DELETE", &place, "").await.refused(409);
    assert!(text.contains("'counter'"), "{text}");
    server.post("/threads/t/runs/wait", json!({"assistant_id": "counter", "input": {"counter": 0}})).await.ok();
    let changed = server.send("PATCH", &place, r#"{"config":{"recursion_limit":2},"metadata":{"x":1}}"#).await.ok();
    assert_eq!((&changed["version"], &changed["metadata"]), (&json!(2), &json!({"created_by": "system", "x": 1})));
    assert_eq!(server.post("/assistants/search", json!({"graph_id": "counter"})).await.ok(), json!([changed]));
    server.send("DELETE", &place, "").await.refused(409);
    // Runs by the graph's name follow it at once.
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    let failed = server.post("/threads/t2/runs/wait", run.clone()).await.ok();
    assert_eq!(failed["__error__"]["error"], "GraphRecursionError", "{failed}");
    server.post(&format!("{place}/latest"), json!({"version": 1})).await.ok();
    assert_eq!(server.post("/threads/t3/runs/wait", run).await.ok(), json!({"counter": 3}));
}

#[tokio::test]
async fn runs_take_what_their_assistant_says_and_may_override_it() {
    let server = TestServer::start().await;
    let body = json!({"graph_id": "counter", "metadata": {"from": "assistant", "a": 1},
                      "config": {"tags": ["a"], "recursion_limit": 50, "configurable": {"k": 1, "l": 1}}});
    let (id, _) = make(&server, body).await;
    server.post("/threads", json!({"thread_id": "t", "metadata": {"from": "thread", "b": 1}})).await.ok();
    let body = json!({"assistant_id": id, "input": {"counter": 0}, "config": {"configurable": {"k": 2}},
                      "metadata": {"c": 1}});
    let answer = server.post("/threads/t/runs/wait", body).await;
    assert_eq!(answer.ok(), json!({"counter": 3}));
    let run = server.get(answer.header("content-location").expect("a place")).await.ok();
    assert_eq!((&run["assistant_id"], &run["metadata"]["from"]), (&json!(id), &json!("thread")), "{run}");
    assert_eq!(
        (&run["metadata"]["a"], &run["metadata"]["b"], &run["metadata"]["c"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let kwargs = &run["kwargs"];
    assert_eq!(kwargs["context"], json!({"k": 2, "l": 1}));
    assert_eq!((&kwargs["config"]["tags"], &kwargs["config"]["recursion_limit"]), (&json!(["a"]), &json!(50)));
    assert_eq!(kwargs["config"]["configurable"]["k"], 2);
    assert_eq!(server.get("/threads/t").await.ok()["metadata"]["assistant_id"], json!(id));
    let limited = json!({"assistant_id": id, "input": {"counter": 0}, "config": {"recursion_limit": 1}});
    let failed = server.post("/threads/t/runs/wait", limited).await.ok();
    assert_eq!(failed["__error__"]["error"], "GraphRecursionError", "{failed}");
    // Deleted, nobody can start it, and what it ran on may go with it.
    server.post("/threads", json!({"thread_id": "another"})).await.ok();
    assert_eq!(server.send("DELETE", &format!("/assistants/{id}?delete_threads=true"), "").await.status, 204);
    server.get("/threads/t").await.refused(404);
    server.get("/threads/another").await.ok();
    let text = server.post("/threads/t/runs", json!({"assistant_id": id})).await.refused(404);
    assert_eq!(text, "Thread or assistant not found.");
}

#[tokio::test]
async fn deleting_an_assistant_stops_its_runs() {
    let server = TestServer::start().await;
    let (id, _) = make(&server, json!({"graph_id": "slow"})).await;
    let run = server.post("/threads/t/runs", json!({"assistant_id": id, "input": {"steps": 1000}})).await.ok();
    let place = format!("/threads/t/runs/{}", run["run_id"].as_str().expect("an id"));
    assert_eq!(server.send("DELETE", &format!("/assistants/{id}?delete_threads=false"), "").await.status, 204);
    server.get(&format!("{place}/join")).await.ok();
    assert_eq!(server.get(&place).await.ok()["status"], "interrupted");
}

#[tokio::test]
async fn pages_hold_stored_assistants_and_those_of_the_graphs_once_each() {
    let server = TestServer::start().await;
    let graphs = server.get("/graphs").await.ok().as_array().expect("a list").len();
    for n in 0..5 {
        make(&server, json!({"graph_id": "counter", "name": format!("d{n}")})).await;
    }
    let all = graphs + 5;
    assert_eq!(server.post("/assistants/count", json!({})).await.ok(), json!(all));
    for sort in ["name", "created_at", "updated_at", "assistant_id", "graph_id"] {
        for order in ["asc", "desc"] {
            let body = json!({"sort_by": sort, "sort_order": order, "limit": 1000});
            let whole = server.post("/assistants/search", body).await.ok();
            let whole = whole.as_array().expect("a list").clone();
            assert_eq!(whole.len(), all, "{sort} {order}");
            let mut paged = Vec::new();
            for offset in (0..all).step_by(3) {
                let body = json!({"sort_by": sort, "sort_order": order, "limit": 3, "offset": offset});
                paged.extend(server.post("/assistants/search", body).await.ok().as_array().expect("a list").clone());
            }
            assert_eq!(paged, whole, "{sort} {order}");
        }
    }
    let tagged = json!({"metadata": {"created_by": "system"}});
    assert_eq!(server.post("/assistants/count", tagged).await.ok(), json!(graphs));
}

#[tokio::test]
async fn graphs_without_subgraphs_list_none() {
    let server = TestServer::start().await;
    let found = server.post("/assistants/search", json!({"graph_id": "counter"})).await.ok();
    let place = format!("/assistants/{}/subgraphs", found[0]["assistant_id"].as_str().expect("an id"));
    assert_eq!(server.get(&place).await.ok(), json!({}));
    assert_eq!(server.get(&format!("{place}/nope?recurse=true")).await.ok(), json!({}));
    server.get(&format!("{place}?recurse=maybe")).await.refused(422);
    server.get("/assistants/counter/subgraphs").await.refused(422);
}

/// A graph in a graph in a graph.
fn nested() -> Graph {
    let node = async |(), _ctx| Ok(());
    let inner = StateGraph::dynamic("inner").node("a", node).node("b", node).edge(START, "a").edge("a", "b");
    let inner = inner.edge("b", END).build().expect("builds");
    let middle = StateGraph::dynamic("middle").subgraph("inner", inner).edge(START, "inner").build().expect("builds");
    StateGraph::dynamic("outer").subgraph("middle", middle).edge(START, "middle").build().expect("builds")
}

#[tokio::test]
async fn graphs_inside_graphs_are_drawn_and_described_to_any_depth() {
    let server = TestServer::serving(HttpSettings::default(), vec![nested()]).await;
    let id = server.post("/assistants/search", json!({})).await.ok()[0]["assistant_id"].clone();
    let place = format!("/assistants/{}", id.as_str().expect("an id"));
    let ids = async |query: &str| {
        let drawing = server.get(&format!("{place}/graph{query}")).await.ok();
        let nodes = drawing["nodes"].as_array().expect("nodes").iter();
        nodes.map(|node| node["id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, ["__start__", "middle", "__end__"]);
    assert_eq!(ids("?xray=false").await, ids("").await);
    assert_eq!(ids("?xray=1").await, ["__start__", "middle:inner", "__end__"]);
    assert_eq!(ids("?xray=true").await, ["__start__", "middle:inner:a", "middle:inner:b", "__end__"]);
    let names = async |path: &str| {
        let found = server.get(&format!("{place}/subgraphs{path}")).await.ok();
        let schemas = found.as_object().expect("an object");
        assert!(
            schemas.values().all(|one| one["input_schema"].is_object() && one.get("graph_id").is_none()),
            "{found}"
        );
        schemas.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["middle"]);
    assert_eq!(names("?recurse=true").await, ["middle", "middle|inner"]);
    assert_eq!(names("/middle%7Cinner?recurse=true").await, ["middle|inner"]);
    assert_eq!(names("/inner").await, Vec::<String>::new());
}
