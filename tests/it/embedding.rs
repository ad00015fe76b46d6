//! Embedding by a service: what is asked, what is made of its answers, and what is not told.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{Context, END, FoundItem, Graph, Indexing, ItemQuery, PutOptions, START, StateGraph};
use session_store::http::HttpSettings;
use session_store::model::Json;
use session_store::runtime::embed::{EmbedError, Embedder, LocalEmbedder, OpenAiEmbedder, OpenAiSettings};
use session_store::runtime::{ItemSettings, Settings};
use session_store::storage::connect::{ConnectOptions, connect};
use session_store::update;

use crate::support::process::{Database, Server, binary, execute, provided, root, send, sqlite_url};
use crate::support::server::{TestServer, runtime_settings};

const KEY: &str = "sk-secret";

/// What a service answers to the next request.
type Reply = Box<dyn FnOnce(&Value) -> (StatusCode, String) + Send>;

/// A service on a free port: answers as told, then as OpenAI does. It ends with the test.
#[derive(Clone, Default)]
struct Service {
    asked: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    replies: Arc<Mutex<std::collections::VecDeque<Reply>>>,
}

impl Service {
    async fn start() -> (Service, String) {
        let service = Service::default();
        let routes = Router::new().route("/v1/embeddings", post(answer)).with_state(service.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (service, url)
    }

    fn then(&self, reply: impl FnOnce(&Value) -> (StatusCode, String) + Send + 'static) {
        self.replies.lock().expect("not poisoned").push_back(Box::new(reply));
    }

    fn then_status(&self, status: u16, body: &'static str) {
        self.then(move |_| (StatusCode::from_u16(status).expect("a status"), body.to_owned()));
    }

    /// The requests so far.
    fn asked(&self) -> Vec<(HeaderMap, Value)> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }
}

/// One direction for texts with the word coffee, another for the rest; the entries come in reverse.
fn embeddings(asked: &Value) -> String {
    let inputs = asked["input"].as_array().expect("texts");
    let entry = |(index, text): (usize, &Value)| {
        let is_coffee = text.as_str().expect("a text").contains("coffee");
        let embedding = if is_coffee { json!([3.0, 4.0]) } else { json!([4.0, -3.0]) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = inputs.iter().enumerate().map(entry).rev().collect();
    json!({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}).to_string()
}

async fn answer(State(service): State<Service>, headers: HeaderMap, text: String) -> (StatusCode, String) {
    let asked: Value = serde_json::from_str(&text).expect("JSON");
    let reply = service.replies.lock().expect("not poisoned").pop_front();
    let answer = reply.map_or_else(|| (StatusCode::OK, embeddings(&asked)), |reply| reply(&asked));
    service.asked.lock().expect("not poisoned").push((headers, asked));
    answer
}

fn embedder(url: &str, dims: usize) -> OpenAiEmbedder {
    let timeout = Duration::from_secs(30);
    let (url, api_key, model) = (format!("{url}/"), Some(KEY.to_owned()), "m".to_owned());
    OpenAiEmbedder::new(OpenAiSettings { url, api_key, model, dims, timeout }).expect("usable settings")
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|n| if n % 2 == 0 { format!("coffee {n}") } else { format!("tea {n}") }).collect()
}

#[tokio::test]
async fn a_service_is_asked_in_batches_and_its_entries_are_put_in_order() {
    let (service, url) = Service::start().await;
    let embedder = embedder(&url, 2);
    assert_eq!(embedder.model(), "openai:m:2");
    let vectors = embedder.embed(&texts(200)).await.expect("embedded");
    assert_eq!(vectors.len(), 200);
    for (n, vector) in vectors.iter().enumerate() {
        assert_eq!(vector, if n % 2 == 0 { &[3.0, 4.0] } else { &[4.0, -3.0] }, "{n}");
    }
    let asked = service.asked();
    let sizes: Vec<usize> = asked.iter().map(|(_, body)| body["input"].as_array().expect("texts").len()).collect();
    assert_eq!(sizes, [96, 96, 8]);
    let (headers, body) = &asked[0];
    assert_eq!(headers["authorization"], "Bearer sk-secret");
    assert_eq!(
        (&body["model"], &body["dimensions"], &body["encoding_format"]),
        (&json!("m"), &json!(2), &json!("float"))
    );
    assert!(!format!("{embedder:?}").contains(KEY));
}

#[tokio::test]
async fn a_busy_service_is_asked_again_and_a_refusal_is_final() {
    let (service, url) = Service::start().await;
    let embedder = embedder(&url, 0);
    service.then_status(500, "");
    service.then_status(429, "");
    assert_eq!(embedder.embed(&texts(1)).await, Ok(vec![vec![3.0, 4.0]]));
    assert_eq!(service.asked().len(), 3);
    for _ in 0..3 {
        service.then_status(503, "");
    }
    assert!(matches!(embedder.embed(&texts(1)).await, Err(EmbedError::Unavailable(_))));
    assert_eq!(service.asked().len(), 3);
    service.then_status(400, r#"{"error":{"message":"too many tokens"}}"#);
    let refused = EmbedError::Refused("the embedding service answered 400 Bad Request: too many tokens".into());
    assert_eq!(embedder.embed(&texts(1)).await, Err(refused));
    service.then_status(401, r#"{"error":{"message":"Incorrect API key provided: sk-secret"}}"#);
    let error = embedder.embed(&texts(1)).await.expect_err("is refused");
    assert!(matches!(&error, EmbedError::Unavailable(text) if !text.contains("sk-")), "{error}");
    assert_eq!(service.asked().len(), 2, "once each");
    // Nobody listens there any more.
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let error = self::embedder(&format!("http://{gone}/v1"), 0).embed(&texts(1)).await.expect_err("nobody answers");
    assert!(matches!(&error, EmbedError::Unavailable(text) if !text.contains("127.0.0.1")), "{error}");
}

#[tokio::test]
async fn answers_of_another_form_are_refused() {
    let (service, url) = Service::start().await;
    let embedder = embedder(&url, 0);
    for body in [
        "no JSON",
        "{}",
        r#"{"data":[]}"#,
        r#"{"data":[{"index":0,"embedding":[]}]}"#,
        r#"{"data":[{"index":1,"embedding":[1.0]}]}"#,
        r#"{"data":[{"index":0,"embedding":[1.0]},{"index":0,"embedding":[1.0]}]}"#,
        r#"{"data":[{"index":0,"embedding":"AAAA"}]}"#,
    ] {
        service.then_status(200, body);
        let answer = embedder.embed(&texts(1)).await;
        assert!(matches!(answer, Err(EmbedError::Unavailable(_))), "{body}: {answer:?}");
    }
    assert_eq!(service.asked().len(), 7, "once each");
}

async fn server(url: &str) -> TestServer {
    let items = ItemSettings {
        embedder: Some(Arc::new(embedder(url, 0))),
        fields: vec!["text".to_owned()],
        ..ItemSettings::default()
    };
    TestServer::with_runtime(HttpSettings::default(), Settings { items, ..runtime_settings() }).await
}

#[tokio::test]
async fn items_are_written_with_their_vectors_or_not_at_all() {
    let (service, url) = Service::start().await;
    let server = server(&url).await;
    let put = async |key: &str, text: &str| {
        let body = json!({"namespace": ["n"], "key": key, "value": {"text": text, "other": "coffee"}});
        server.send("PUT", "/store/items", body.to_string()).await
    };
    assert_eq!(put("a", "coffee").await.status, 204);
    assert_eq!(put("b", "tea").await.status, 204);
    let asked: Vec<Value> = service.asked().into_iter().map(|(_, body)| body["input"].clone()).collect();
    assert_eq!(asked, [json!(["coffee"]), json!(["tea"])], "the field that the settings name");
    let find = async || {
        server.post("/store/items/search", json!({"namespace_prefix": ["n"], "query": "a coffee, please"})).await
    };
    let found = find().await.ok();
    let scores: Vec<(&Value, f64)> = found["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| (&item["key"], item["score"].as_f64().expect("a score")))
        .collect();
    assert!(scores[0].0 == "a" && (scores[0].1 - 1.0).abs() < 1e-5, "{scores:?}");
    assert!(scores[1].0 == "b" && scores[1].1.abs() < 1e-5, "{scores:?}");
    // The service refuses, or is gone: the item that was there stays.
    service.then_status(400, r#"{"error":{"message":"too many tokens"}}"#);
    let text = put("a", "something new").await.refused(422);
    assert_eq!(text, "embedding: the embedding service answered 400 Bad Request: too many tokens");
    service.then_status(401, "");
    let text = put("a", "something new").await.refused(503);
    assert!(text.contains("embedding.api_key") && !text.contains(KEY), "{text}");
    service.then_status(404, "");
    find().await.refused(503);
    let item = server.get("/store/items?namespace=n&key=a").await.ok();
    assert_eq!(item["value"]["text"], "coffee");
    service.asked();
    // What holds no text costs no request.
    let body = json!({"namespace": ["n"], "key": "c", "value": {"text": " "}});
    assert_eq!(server.send("PUT", "/store/items", body.to_string()).await.status, 204);
    assert!(service.asked().is_empty());
}

#[tokio::test]
async fn items_are_embedded_again_with_another_model() {
    let (_, url) = Service::start().await;
    let server = server(&url).await;
    let storage = server.runtime.storage().clone();
    for (key, text) in [("a", "tea"), ("b", "coffee")] {
        let body = json!({"namespace": ["n"], "key": key, "value": {"text": text}});
        assert_eq!(server.send("PUT", "/store/items", body.to_string()).await.status, 204);
    }
    let with = |dims: usize| {
        let items = ItemSettings {
            embedder: Some(Arc::new(embedder(&url, dims))),
            fields: vec!["text".to_owned()],
            ..ItemSettings::default()
        };
        Settings { items, ..runtime_settings() }
    };
    let other = TestServer::set(storage, with(2), Vec::new()).await;
    let find = async || {
        let found = other.post("/store/items/search", json!({"namespace_prefix": ["n"], "query": "coffee"})).await.ok();
        let items = found["items"].as_array().expect("items").clone();
        items.iter().map(|item| (item["key"].clone(), item["score"].is_null())).collect::<Vec<_>>()
    };
    assert_eq!(find().await, [(json!("b"), true), (json!("a"), true)], "vectors of another model do not count");
    let made = other.runtime.reembed_items().await.expect("embedded");
    assert_eq!((made.done, made.changed, made.refused), (2, 0, 0));
    assert_eq!(find().await, [(json!("b"), false), (json!("a"), false)]);
    assert_eq!(other.runtime.reembed_items().await.expect("embedded").done, 0, "nothing is left to do");
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Memory {
    said: String,
    #[serde(default)]
    recalled: Vec<String>,
}

/// Keeps what is said, unless it is a question: then it tells what is nearest to it.
fn memory() -> Graph {
    StateGraph::<Memory>::new("memory")
        .node("talk", async |state: Memory, ctx: Context| {
            let place = ["memory".to_owned()];
            let mut recalled = Vec::new();
            if state.said.ends_with('?') {
                let near = ItemQuery { limit: 1, ..ItemQuery::near(state.said.as_str()) };
                for FoundItem { item, score } in ctx.items().query(&place, near).await? {
                    assert!(score.is_some_and(|score| score > 0.2), "{score:?}");
                    recalled.push(item.key);
                }
            } else {
                let options = PutOptions { indexing: Indexing::Paths(vec!["text".into()]), ttl_minutes: Some(60.0) };
                let value = Json::from(json!({"text": state.said}));
                ctx.items().put_with(&place, &state.said, value, options).await?;
            }
            Ok(update!(Memory { recalled: recalled }))
        })
        .edge(START, "talk")
        .edge("talk", END)
        .build()
        .expect("a graph")
}

#[tokio::test]
async fn nodes_remember_by_meaning() {
    let storage = connect("memory", &ConnectOptions::default()).await.expect("a database in memory");
    let items = ItemSettings { embedder: Some(Arc::new(LocalEmbedder::default())), ..ItemSettings::default() };
    let server = TestServer::set(storage, Settings { items, ..runtime_settings() }, vec![memory()]).await;
    let say = async |thread: &str, said: &str| {
        let run = json!({"assistant_id": "memory", "input": {"said": said}});
        server.post(&format!("/threads/{thread}/runs/wait"), run).await.ok()
    };
    say("monday", "I drink strong coffee").await;
    say("monday", "My invoices are due on Friday").await;
    let answer = say("tuesday", "Which invoices were due?").await;
    assert_eq!(answer["recalled"], json!(["My invoices are due on Friday"]));
    let answer = say("wednesday", "Do they like coffee?").await;
    assert_eq!(answer["recalled"], json!(["I drink strong coffee"]));
    // A key no item may have is the node's failure, by LangGraph's name for it.
    let run = json!({"assistant_id": "memory", "input": {"said": ""}});
    let answer = server.post("/threads/thursday/runs/wait", run).await.ok();
    assert!(answer["__error__"]["error"] == "ValueError", "{answer}");
}

/// A process that embeds with what is in it.
fn local(mut command: Command, database: &str) -> Command {
    command.args(["--database-url", database]).env("SESSION_STORE__EMBEDDING__PROVIDER", "local");
    command
}

async fn what_was_there_is_embedded_and_the_python_sdk_finds_it(database: &str) {
    let Some(python) = provided("SESSION_STORE_TEST_PYTHON") else { return };
    let server = Server::start(database);
    let item = json!({"namespace": ["before"], "key": "k", "value": {"text": "strong coffee"}});
    let put = send(reqwest::Method::PUT, &format!("{}/store/items", server.url), Some(item)).await;
    assert_eq!(put.expect("an answer").0, 204);
    assert!(server.terminate().success());

    let mut without = binary();
    let refused = without.args(["reembed", "--database-url", database]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("embedding.provider"), "{refused:?}");
    let mut command = local(binary(), database);
    let done = command.arg("reembed").output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(out.trim(), "embedded 1 items; 0 were written meanwhile, 0 were refused", "{err}");

    let mut command = local(binary(), database);
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    let server = Server::spawn(command);
    let search = json!({"namespace_prefix": ["before"], "query": "coffee"});
    let found = send(reqwest::Method::POST, &format!("{}/store/items/search", server.url), Some(search)).await;
    let found = found.expect("an answer").1;
    assert!(found["items"][0]["score"].as_f64().is_some_and(|score| score > 0.3), "{found}");
    let done = Command::new(python)
        .arg("-B")
        .arg(root().join("tests/sdk/items.py"))
        .env("BASE_URL", &server.url)
        .env("LANGSMITH_TRACING", "false")
        .env_remove("LANGGRAPH_API_KEY")
        .env_remove("LANGSMITH_API_KEY")
        .env_remove("LANGCHAIN_API_KEY")
        .output()
        .expect("Python runs");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && out.contains("4 checks passed"), "{out}\n{err}");
}

#[tokio::test]
async fn the_python_sdk_searches_by_meaning_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    what_was_there_is_embedded_and_the_python_sdk_finds_it(&sqlite_url(&dir)).await;
}

#[tokio::test]
async fn the_python_sdk_searches_by_meaning_on_postgres() {
    let Some(database) = Database::create("items").await else { return };
    what_was_there_is_embedded_and_the_python_sdk_finds_it(&database.url).await;
}

async fn put_text(server: &Server, key: &str, text: &str) {
    let item = json!({"namespace": ["n"], "key": key, "value": {"text": text}});
    let put = send(reqwest::Method::PUT, &format!("{}/store/items", server.url), Some(item)).await;
    assert_eq!(put.expect("an answer").0, 204);
}

/// Keys and scores of what is near to a strong coffee.
async fn near_coffee(server: &Server) -> Vec<(String, Value)> {
    let search = json!({"namespace_prefix": ["n"], "query": "strong coffee"});
    let found = crate::support::process::post(&format!("{}/store/items/search", server.url), search).await;
    let items = found["items"].as_array().expect("items").iter();
    items.map(|item| (item["key"].as_str().expect("a key").to_owned(), item["score"].clone())).collect()
}

#[tokio::test]
async fn a_server_ranks_by_pgvector_and_goes_on_without_it() {
    let Some(database) = crate::support::postgres::Database::create_beside_pgvector().await else { return };
    let url = database.url();
    let serve = || {
        let mut command = local(binary(), &url);
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        Server::spawn(command)
    };
    let doctor = |expected: &str| {
        let done = binary().args(["--database-url", &url, "doctor"]).output().expect("it runs");
        let out = String::from_utf8_lossy(&done.stdout);
        assert!(out.contains(&format!("ok    vectors: items are ranked by {expected}")), "{out}");
    };
    let server = serve();
    put_text(&server, "a", "strong coffee").await;
    put_text(&server, "b", "weak tea").await;
    let before = near_coffee(&server).await;
    assert_eq!(before[0].0, "a");
    assert!(before.iter().all(|(_, score)| score.is_f64()), "{before:?}");
    doctor("the server");
    assert!(server.terminate().success());

    // Installed later, it is used from the next start on, for what was there before, too.
    database.install_pgvector().await;
    let server = serve();
    assert!(server.logged("items are ranked by pgvector"));
    assert_eq!(near_coffee(&server).await, before);
    doctor("pgvector ");
    // And gone under a running server.
    execute(&url, "DROP EXTENSION vector CASCADE").await;
    assert_eq!(near_coffee(&server).await, before);
    assert!(server.logged("pgvector is gone: items are ranked in the process"));
    put_text(&server, "c", "coffee").await;
    let after = near_coffee(&server).await;
    assert_eq!((after.len(), &after[0]), (3, &before[0]));
    doctor("the server");
    drop(server);
    database.drop().await;
}
