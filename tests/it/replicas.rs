//! Several processes on one database, of which one is asked and another one executes: whoever is asked answers as if it had
//! executed the run itself.

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl, Role};

use crate::fixtures::{cued, refapp};
use crate::support::process::{Database, PATIENCE, get, post, send};

async fn start(database: &Database, role: Role) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(&database.url);
    config.runtime.role = role;
    let graphs = refapp::all().into_iter().chain([cued::graph()]);
    let graphs = graphs.map(|graph| graph.expect("a fixture builds")).collect();
    Server::new(config, graphs).start().await.expect("the server starts")
}

/// One that is asked and never executes, and one that executes and is never asked.
async fn pair() -> Option<(Running, Running, Database)> {
    let database = Database::create("replicas").await?;
    Some((start(&database, Role::Api).await, start(&database, Role::Worker).await, database))
}

async fn stop(pair: (Running, Running, Database)) {
    pair.0.shutdown().await.expect("stops");
    pair.1.shutdown().await.expect("stops");
}

/// Events of a stream as they come: name and data. Ids are refused: nothing of these runs can be resumed by one.
struct Frames {
    bytes: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Frames {
    async fn open(request: reqwest::RequestBuilder) -> Frames {
        let response = request.timeout(PATIENCE).send().await.expect("an answer").error_for_status().expect("a stream");
        Frames { bytes: response.bytes_stream().boxed(), text: String::new() }
    }

    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n").or_else(|| self.text.split_once("\r\n\r\n")) {
                let field = |name: &str| {
                    let line = frame.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim().to_owned())
                };
                let (event, data, id) = (field("event:"), field("data:"), field("id:"));
                self.text = rest.to_owned();
                let Some(event) = event else { continue };
                assert_eq!(id, None, "an id of {event}");
                return Some((event, serde_json::from_str(&data.expect("data")).expect("JSON")));
            }
            let more = self.bytes.next().await?.expect("read");
            self.text.push_str(&String::from_utf8_lossy(&more));
        }
    }

    async fn rest(mut self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        while let Some(frame) = self.next().await {
            all.push(frame);
        }
        all
    }
}

fn ask(url: String, body: &Value) -> reqwest::RequestBuilder {
    reqwest::Client::new().post(url).json(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_what_another_process_does() {
    let Some(pair) = pair().await else { return };
    let body = json!({"assistant_id": "counter", "input": {"count": 0}, "stream_mode": ["values", "updates"]});
    for path in ["threads/streamed/runs/stream", "runs/stream"] {
        let told = Frames::open(ask(format!("{}/{path}", pair.0.url()), &body)).await.rest().await;
        assert_eq!(told[0].0, "metadata", "{told:?}");
        let counts = |name: &str| told.iter().filter(|(event, _)| event == name).count();
        assert!(counts("values") > 1 && counts("updates") > 0, "{told:?}");
        let (event, last) = told.last().expect("the last one");
        assert_eq!((event.as_str(), last["count"].is_number()), ("values", true), "{told:?}");
    }
    stop(pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_another_process_ends_with_its_values() {
    let Some(pair) = pair().await else { return };
    let api = pair.0.url();
    let counter = json!({"assistant_id": "counter", "input": {"count": 0}});
    let request = ask(format!("{api}/runs/wait"), &counter).timeout(PATIENCE);
    let response = request.send().await.expect("an answer");
    let location = response.headers()["location"].to_str().expect("a path").to_owned();
    let values: Value = response.json().await.expect("JSON");
    assert!(values["count"].as_i64().is_some_and(|count| count > 0), "{values}");
    // Its thread was a temporary one, and goes when it has been read.
    let thread = location.split("/runs/").next().expect("a thread").to_owned();
    let gone = async {
        while send(Method::GET, &format!("{api}{thread}"), None).await.expect("an answer").0 != 404 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the temporary thread goes");

    let asking = json!({"assistant_id": "cued", "input": {"messages": [{"type": "human", "content": "ask: Tea?"}]}});
    let asked = post(&format!("{api}/threads/asked/runs/wait"), asking).await;
    assert_eq!(asked["__interrupt__"][0]["value"], json!({"question": "Tea?"}), "{asked}");
    assert_eq!(asked["messages"][0]["content"], "ask: Tea?", "with the values: {asked}");
    let failing =
        json!({"assistant_id": "cued", "input": {"messages": [{"type": "human", "content": "fail: no tea"}]}});
    let failed = post(&format!("{api}/threads/failed/runs/wait"), failing).await;
    assert_eq!(failed["__error__"]["message"], "no tea", "{failed}");
    stop(pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_hears_what_comes_from_another_process() {
    let Some(pair) = pair().await else { return };
    let (api, held) = (pair.0.url(), "hold: one two three");
    let body = json!({"assistant_id": "cued", "stream_mode": ["values"],
                      "input": {"messages": [{"type": "human", "content": held}]}});
    let run = post(&format!("{api}/threads/joined/runs"), body).await;
    let url = format!("{api}/threads/joined/runs/{}", run["run_id"].as_str().expect("an id"));
    let running = async { while get(&url).await["status"] != "running" {} };
    tokio::time::timeout(PATIENCE, running).await.expect("it starts");
    let joined = Frames::open(reqwest::Client::new().get(format!("{url}/stream"))).await;
    let waiting = tokio::spawn({
        let url = url.clone();
        async move { get(&format!("{url}/join")).await }
    });
    // Whoever executes it has heard that somebody listens; then it may go on.
    let run_id: uuid::Uuid = url.rsplit('/').next().and_then(|id| id.parse().ok()).expect("an id");
    let heard = async {
        while !pair.1.runtime().is_wanted(run_id) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("it is heard");
    let cue = json!({"namespace": ["cues", "joined"], "key": held, "value": {"go": true}});
    let (status, _) = send(Method::PUT, &format!("{api}/store/items"), Some(cue)).await.expect("an answer");
    assert_eq!(status, 204);
    let told = joined.rest().await;
    let (event, last) = told.last().expect("something was told");
    assert_eq!((event.as_str(), &last["messages"][1]["content"]), ("values", &json!("one two three")), "{told:?}");
    let waited = waiting.await.expect("joined");
    assert_eq!(waited["messages"][1]["content"], "one two three", "{waited}");
    assert_eq!(get(&url).await["kwargs"].get("heard_by"), None);
    stop(pair).await;
}

/// A background run without a thread is joined by a process that neither accepted nor executes it: its temporary thread
/// stays until it has been read there.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_thread_is_joined_from_another_process() {
    let Some(pair) = pair().await else { return };
    let third = start(&pair.2, Role::Api).await;
    for (held, is_resumable) in [("hold: one two", false), ("hold: three four", true)] {
        let body = json!({"assistant_id": "cued", "stream_mode": ["values"], "stream_resumable": is_resumable,
                          "input": {"messages": [{"type": "human", "content": held}]}});
        let run = post(&format!("{}/runs", pair.0.url()), body).await;
        let id = |key: &str| run[key].as_str().expect("an id").to_owned();
        let (thread, run_id) = (id("thread_id"), id("run_id"));
        let url = format!("{}/threads/{thread}/runs/{run_id}", third.url());
        let running = async { while get(&url).await["status"] != "running" {} };
        tokio::time::timeout(PATIENCE, running).await.expect("it starts");
        let waiting = tokio::spawn({
            let url = url.clone();
            async move { get(&format!("{url}/join")).await }
        });
        let heard = async {
            while !pair.1.runtime().is_wanted(run_id.parse().expect("an id")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("it is heard");
        let cue = json!({"namespace": ["cues", thread], "key": held, "value": {"go": true}});
        let (status, _) =
            send(Method::PUT, &format!("{}/store/items", third.url()), Some(cue)).await.expect("an answer");
        assert_eq!(status, 204);
        let waited = waiting.await.expect("joined");
        assert_eq!(waited["messages"][1]["content"], held.trim_start_matches("hold: "), "{waited}");
        // Read, it goes.
        let gone = async {
            let thread = format!("{}/threads/{thread}", third.url());
            while send(Method::GET, &thread, None).await.expect("an answer").0 != 404 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the temporary thread goes");
    }
    third.shutdown().await.expect("stops");
    stop(pair).await;
}
