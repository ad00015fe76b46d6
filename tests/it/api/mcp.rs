//! `/mcp`, message by message. What a real client makes of it is in `tests/sdk/mcp_client.py`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{BuildErrors, Context, END, Graph, NodeError, START, StateGraph};
use session_store::http::{ApiKey, HttpSettings};
use session_store::update;

use crate::support::server::{Answer, TestServer};

const ACCEPT: (&str, &str) = ("accept", "application/json, text/event-stream");

async fn send(server: &TestServer, headers: &[(&str, &str)], message: &Value) -> Answer {
    let headers: Vec<_> = [ACCEPT].iter().chain(headers).copied().collect();
    server.send_with("POST", "/mcp", &headers, &message.to_string()).await
}

fn request(method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

/// The result of a request.
async fn ask(server: &TestServer, method: &str, params: Value) -> Value {
    let answer = send(server, &[], &request(method, &params)).await.ok();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(1)), "{answer}");
    assert!(answer.get("error").is_none(), "{answer}");
    answer["result"].clone()
}

/// The code and text of a request's error.
async fn refused(server: &TestServer, method: &str, params: Value) -> (i64, String) {
    let answer = send(server, &[], &request(method, &params)).await.ok();
    let text = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("no error: {answer}"));
    (answer["error"]["code"].as_i64().expect("a code"), text.to_owned())
}

fn names(result: &Value) -> Vec<&str> {
    result["tools"].as_array().expect("tools").iter().map(|tool| tool["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn a_connection_begins_and_goes_on_without_a_session() {
    let server = TestServer::start().await;
    let start =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let answer = send(&server, &[("mcp-protocol-version", "never")], &request("initialize", &start)).await;
    assert_eq!(answer.header("mcp-session-id"), None);
    let result = answer.ok()["result"].clone();
    assert_eq!(result["protocolVersion"], "2025-06-18");
    assert_eq!(result["capabilities"], json!({"tools": {"listChanged": false}}));
    assert_eq!(result["serverInfo"]["name"], "LangGraph");

    let version = [("mcp-protocol-version", "2025-06-18")];
    let noted = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let answer = send(&server, &version, &noted).await;
    assert_eq!((answer.status, answer.text.as_str()), (202, ""));
    assert_eq!(ask(&server, "ping", json!({})).await, json!({}));
}

#[tokio::test]
async fn what_is_no_message_is_refused_by_status() {
    let server = TestServer::start().await;
    let ping = request("ping", &json!({}));
    for (headers, body, code) in [
        (vec![ACCEPT], "{".to_owned(), json!(-32700)),
        (vec![ACCEPT], format!("[{ping}]"), json!(-32600)),
        (vec![ACCEPT], json!({"jsonrpc": "1.0", "id": 1, "method": "ping"}).to_string(), json!(-32600)),
        (vec![ACCEPT, ("mcp-protocol-version", "1999-01-01")], ping.to_string(), json!(-32602)),
    ] {
        let answer = server.send_with("POST", "/mcp", &headers, &body).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &code), "{answer:?}");
    }
    let html = server.send_with("POST", "/mcp", &[("accept", "text/html")], &ping.to_string()).await;
    assert!(html.refused(400).starts_with("Accept: "), "{html:?}");
    let too_long = server.send_with("POST", "/mcp", &[ACCEPT], &"x".repeat(1_000_001)).await;
    assert_eq!(too_long.status, 413);
    assert_eq!(server.get("/mcp").await.status, 405);
    assert_eq!(server.send("DELETE", "/mcp", "").await.status, 404);
}

#[tokio::test]
async fn other_web_pages_may_not_call() {
    let settings = HttpSettings { mcp_origins: vec!["https://app.example.com".to_owned()], ..HttpSettings::default() };
    let server = TestServer::with(settings).await;
    let ping = request("ping", &json!({}));
    for (origin, status) in
        [("http://localhost:5173", 200), ("https://app.example.com", 200), ("https://evil.example", 403), ("null", 403)]
    {
        assert_eq!(send(&server, &[("origin", origin)], &ping).await.status, status, "{origin}");
    }
}

#[tokio::test]
async fn a_key_is_asked_for() {
    let keys = vec![ApiKey::new("k")];
    let server = TestServer::with(HttpSettings { api_keys: keys, ..HttpSettings::default() }).await;
    let ping = request("ping", &json!({}));
    assert_eq!(send(&server, &[], &ping).await.status, 401);
    assert_eq!(send(&server, &[("authorization", "Bearer k")], &ping).await.status, 200);
}

#[tokio::test]
async fn assistants_are_tools() {
    let server = TestServer::start().await;
    let made = server.post("/assistants", json!({"graph_id": "counter", "name": "My counter!"})).await.ok();
    let result = ask(&server, "tools/list", json!({})).await;
    assert!(result.get("nextCursor").is_none(), "{result}");
    let tools = result["tools"].as_array().expect("tools");
    let tool = |name: &str| tools.iter().find(|tool| tool["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let counter = tool("counter");
    assert_eq!(counter["title"], "counter");
    assert_eq!(counter["description"], "Counts to three, one superstep per number.");
    assert_eq!(counter["inputSchema"]["type"], "object");
    assert_eq!(counter["inputSchema"]["properties"]["counter"]["type"], "integer");
    assert_eq!(counter["outputSchema"]["properties"]["counter"]["type"], "integer");
    assert!(counter["outputSchema"].get("required").is_none(), "{counter}");
    assert_eq!(tool("My_counter_")["title"], "My counter!");

    let three = json!({"counter": 3});
    for name in ["counter", "My_counter_", made["assistant_id"].as_str().expect("an id")] {
        let called = ask(&server, "tools/call", json!({"name": name, "arguments": {"counter": 1}})).await;
        assert_eq!((&called["structuredContent"], &called["isError"]), (&three, &json!(false)), "{called}");
        assert_eq!(called["content"], json!([{"type": "text", "text": "{\"counter\":3}"}]));
    }
    let threads = server.post("/threads/count", json!({})).await.ok();
    assert_eq!(threads, 0, "nothing stays behind");
}

#[tokio::test]
async fn a_question_is_part_of_the_result() {
    let server = TestServer::start().await;
    let called = ask(&server, "tools/call", json!({"name": "approval", "arguments": {"topic": "tea"}})).await;
    assert_eq!(called["isError"], false);
    let values = &called["structuredContent"];
    assert_eq!(values["__interrupt__"][0]["value"]["question"], "Publish this draft?");
    assert_eq!(values["topic"], "tea");
}

#[tokio::test]
async fn names_that_mean_none_or_several_are_refused() {
    let server = TestServer::start().await;
    for name in ["A b", "a-c", "A_b"] {
        server.post("/assistants", json!({"graph_id": "counter", "name": name})).await.ok();
    }
    let call = |name: Value| refused(&server, "tools/call", json!({"name": name, "arguments": {"counter": 0}}));
    assert_eq!(call(json!("nobody")).await, (-32602, "Unknown tool 'nobody': tools/list names them".to_owned()));
    let (code, text) = call(json!("A_b")).await;
    assert!(code == -32602 && text.starts_with("Ambiguous tool 'A_b'"), "{text}");
    let (code, text) = call(json!("___")).await;
    assert!(code == -32602 && text.starts_with("Unknown tool"), "{text}");
    assert_eq!(call(json!(1)).await, (-32602, "params.name: expected a string, got an integer".to_owned()));
    let result = ask(&server, "tools/list", json!({})).await;
    assert!(names(&result).contains(&"a-c") && !names(&result).contains(&"A_b"), "{result}");

    let bad = refused(&server, "tools/call", json!({"name": "counter", "arguments": [1]})).await;
    assert_eq!(bad, (-32602, "params.arguments: expected an object, got an array".to_owned()));
    assert_eq!(refused(&server, "tools/list", json!({"cursor": "x"})).await.0, -32602);
    assert_eq!(refused(&server, "initialize", json!({})).await.0, -32602);
    assert_eq!(refused(&server, "resources/list", json!({})).await.0, -32601);
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let server = TestServer::start().await;
    for n in 0..120 {
        server.post("/assistants", json!({"graph_id": "counter", "name": format!("n{n:03}")})).await.ok();
    }
    let first = ask(&server, "tools/list", json!({})).await;
    assert_eq!((names(&first).len(), &first["nextCursor"]), (100, &json!("100")));
    let rest = ask(&server, "tools/list", json!({"cursor": "100"})).await;
    assert!(rest.get("nextCursor").is_none(), "{rest}");
    let mut all = [names(&first), names(&rest)].concat();
    assert_eq!(all.len(), 120 + server.runtime.graphs().len());
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 120 + server.runtime.graphs().len(), "each once");
}

#[tokio::test]
async fn progress_is_told_to_those_who_ask_for_it() {
    let server = TestServer::start().await;
    let params = json!({"name": "counter", "arguments": {"counter": 1}, "_meta": {"progressToken": "p"}});
    let message = request("tools/call", &params);
    let frames = server.frames("POST", "/mcp", &[ACCEPT], message.clone()).await;
    assert!(frames.iter().all(|frame| frame.event == "message"), "{frames:?}");
    let told: Vec<&Value> = frames.iter().map(|frame| &frame.data).collect();
    let progress = |n: i64| {
        let params = json!({"progressToken": "p", "progress": n, "message": "increment"});
        json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
    };
    assert_eq!(told[..2], [&progress(1), &progress(2)]);
    assert_eq!(told[2]["result"]["structuredContent"], json!({"counter": 3}));
    assert_eq!(told.len(), 3);

    let plain = server.send_with("POST", "/mcp", &[("accept", "application/json")], &message.to_string()).await;
    assert_eq!(plain.ok()["result"]["structuredContent"], json!({"counter": 3}), "who cannot read streams gets JSON");
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Picky {
    fail: bool,
    context: Value,
}

/// A graph that fails when it is told to, and shows its context otherwise.
fn picky() -> Result<Graph, BuildErrors> {
    StateGraph::<Picky>::new("picky")
        .node("check", async |state: Picky, ctx: Context| {
            if state.fail {
                return Err(NodeError::new("ValueError", "fail was given"));
            }
            Ok(update!(Picky { context: ctx.context::<Value>()? }))
        })
        .edge(START, "check")
        .edge("check", END)
        .build()
}

#[tokio::test]
async fn failures_are_results_and_the_context_is_handed_on() {
    let server = TestServer::serving(HttpSettings::default(), vec![picky().expect("valid")]).await;
    let failed = ask(&server, "tools/call", json!({"name": "picky", "arguments": {"fail": true}})).await;
    let text = |text: &str| json!({"type": "text", "text": text});
    assert_eq!(failed, json!({"content": [text("ValueError"), text("fail was given")], "isError": true}));

    let called = ask(&server, "tools/call", json!({"name": "picky", "context": {"speed": 9}})).await;
    assert_eq!(called["structuredContent"]["context"]["speed"], 9, "{called}");
}
