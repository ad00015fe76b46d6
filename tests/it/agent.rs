//! The agent example against a model server on the loopback: streamed words, tool calls, and what the model is sent.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::post;
use axum::{Json as Body, Router};
use serde_json::{Value, json};
use session_store::app::Server;
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::testing::Probe;
use session_store::graph::{Graph, NodeError, NodeInput, Output, RouterContext};
use session_store::model::{Fields, Json};

use crate::support::process;

#[path = "../../examples/agent.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod example;

/// A model server that answers with prepared streams and remembers what it was asked.
#[derive(Clone, Default)]
struct FakeModel {
    answers: Arc<Mutex<Vec<Vec<Value>>>>,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl FakeModel {
    /// Each answer is a list of deltas.
    async fn start(answers: Vec<Vec<Value>>) -> (FakeModel, Graph) {
        let fake = FakeModel { answers: Arc::new(Mutex::new(answers)), ..FakeModel::default() };
        let routes = Router::new().route("/v1/chat/completions", post(complete)).with_state(fake.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let base_url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let graph = example::graph(example::Model::new(&base_url, "key", "fake")).expect("builds");
        (fake, graph)
    }

    fn request(&self, n: usize) -> Value {
        self.requests.lock().expect("not poisoned")[n].clone()
    }
}

async fn complete(
    State(fake): State<FakeModel>,
    Body(request): Body<Value>,
) -> ([(&'static str, &'static str); 1], String) {
    fake.requests.lock().expect("not poisoned").push(request);
    let deltas = fake.answers.lock().expect("not poisoned").remove(0);
    let chunk = |choices: Value, usage: Value| json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": choices, "usage": usage});
    let parts = deltas.into_iter().map(|delta| chunk(json!([{"index": 0, "delta": delta}]), Value::Null));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9});
    let parts = parts.chain([chunk(json!([]), usage)]).map(|part| format!("data: {part}\n\n"));
    ([("content-type", "text/event-stream")], parts.collect::<String>() + "data: [DONE]\n\n")
}

fn fields(state: Value) -> Fields {
    Json::from(state).fields().expect("an object")
}

async fn run(probe: &Probe, graph: &Graph, node: &str, messages: &Value) -> Result<Value, NodeError> {
    let input = NodeInput::State(fields(json!({"messages": messages})).into());
    let Output::Update(update) = probe.run(graph, node, input).await? else { panic!("an update") };
    Ok(update["messages"].value().clone())
}

#[tokio::test]
async fn words_are_streamed_and_kept_as_one_message() {
    let (fake, graph) = FakeModel::start(vec![vec![json!({"content": "For"}), json!({"content": "ty-two"})]]).await;
    let probe = Probe::new();
    let written =
        run(&probe, &graph, "agent", &json!([{"type": "human", "content": "19 + 23?"}])).await.expect("answers");

    assert_eq!(written[0]["content"], "Forty-two");
    assert_eq!(written[0]["usage_metadata"]["total_tokens"], 9);
    let chunks = probe.messages();
    let contents: Vec<&Value> = chunks.iter().map(|chunk| &chunk["content"]).collect();
    assert_eq!(contents, ["For", "ty-two", ""]);
    assert_eq!(chunks[2]["chunk_position"], "last");
    assert!(chunks.iter().all(|chunk| chunk["id"] == written[0]["id"]));

    let request = fake.request(0);
    assert_eq!(request["model"], "fake");
    assert_eq!(request["messages"][1], json!({"role": "user", "content": "19 + 23?"}));
    assert_eq!(request["tools"][0]["function"]["name"], "add");
}

#[tokio::test]
async fn tools_are_called_and_their_results_sent_back() {
    let call = |args: &str| json!({"tool_calls": [{"index": 0, "function": {"arguments": args}}]});
    let begin = json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}]});
    let wants = vec![begin, call("{\"a\": 19, "), call("\"b\": 23}")];
    let (fake, graph) = FakeModel::start(vec![wants, vec![json!({"content": "42"})]]).await;

    let mut messages = vec![json!({"type": "human", "content": "19 + 23?"})];
    for node in ["agent", "tools", "agent"] {
        let written = run(&Probe::new(), &graph, node, &json!(messages)).await.expect("runs");
        messages.extend(written.as_array().expect("messages").clone());
        let router = graph.spec().node(node).and_then(|node| node.writers.branches.first().cloned());
        if let Some(router) = router {
            let next = (router.route)(&fields(json!({"messages": messages})), &RouterContext::default())
                .expect("decides")
                .expect("destinations");
            let expected = if messages.len() == 2 { "tools" } else { "__end__" };
            assert_eq!(next, [session_store::graph::Destination::from(expected)]);
        }
    }
    assert_eq!(
        messages[1]["tool_calls"],
        json!([{"name": "add", "args": {"a": 19, "b": 23}, "id": "c1", "type": "tool_call"}])
    );
    assert_eq!((&messages[2]["content"], &messages[2]["tool_call_id"]), (&json!("42"), &json!("c1")));
    assert_eq!(messages[3]["content"], "42");
    let sent = fake.request(1)["messages"].clone();
    assert_eq!(sent[2]["tool_calls"][0]["function"]["arguments"], r#"{"a":19,"b":23}"#);
    assert_eq!(sent[3], json!({"role": "tool", "content": "42", "tool_call_id": "c1"}));
}

#[tokio::test]
async fn a_tool_that_fails_tells_the_model() {
    let (_, graph) = FakeModel::start(Vec::new()).await;
    let calls = json!([{"name": "add", "args": {"a": "x"}, "id": "c1", "type": "tool_call"}, {"name": "fly", "args": {}, "id": "c2", "type": "tool_call"}]);
    let messages = json!([{"type": "ai", "content": "", "tool_calls": calls}]);
    let written = run(&Probe::new(), &graph, "tools", &messages).await.expect("runs");
    assert_eq!((&written[0]["status"], &written[0]["content"]), (&json!("error"), &json!("`a` must be a number")));
    assert_eq!(written[1]["content"], "there is no tool `fly`");
}

#[tokio::test]
async fn a_server_runs_the_agent_to_its_answer() {
    let wants = json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function",
                                       "function": {"name": "add", "arguments": "{\"a\": 19, \"b\": 23}"}}]});
    let (_fake, graph) = FakeModel::start(vec![vec![wants], vec![json!({"content": "42"})]]).await;
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    let running = Server::new(config, vec![graph]).start().await.expect("the server starts");

    let input = json!({"input": {"messages": "What is 19 + 23?"}});
    let values = process::post(&format!("{}/threads/sums/runs/wait", running.url()), input).await;
    let told: Vec<(&Value, &Value)> =
        values["messages"].as_array().expect("messages").iter().map(|m| (&m["type"], &m["content"])).collect();
    let expected = json!([["human", "What is 19 + 23?"], ["ai", ""], ["tool", "42"], ["ai", "42"]]);
    let expected: Vec<(&Value, &Value)> =
        expected.as_array().expect("pairs").iter().map(|pair| (&pair[0], &pair[1])).collect();
    assert_eq!(told, expected);
    running.shutdown().await.expect("stops");
}
