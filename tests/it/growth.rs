//! What a long conversation costs in storage: every turn the same, however much was said before.

use serde_json::json;
use session_store::app::Server;
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{
    Change, ChannelKind, Context, END, EngineError, Graph, Json, Message, NodeError, Reduce, ReduceContext, START,
    StateGraph, Update, reducers,
};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::support::process::{Database, number, post, sqlite_url};

/// Between two looks.
const TURNS: usize = 30;

/// An author's own reducer, which says what it did: each write is one more mark.
struct Marks;

impl Reduce for Marks {
    fn initial(&self) -> Option<Json> {
        Some(Json::from_iter([]))
    }

    fn reduce(&self, _: Option<&Json>, write: &Json, _: ReduceContext<'_>) -> Result<Change, EngineError> {
        Ok(Change::Append(vec![write.clone()]))
    }
}

/// A chat that also keeps lists in the other ways there are: appended, gathered, by a reducer of the author's, and by a
/// function of the author's that only ever returns the whole list.
fn talk() -> Graph {
    let whole = |mut list: Vec<String>, more: Vec<String>| {
        list.extend(more);
        list
    };
    StateGraph::dynamic("talk")
        .messages("messages")
        .append("notes")
        .channel("topics", ChannelKind::Topic { accumulate: true })
        .reducer("marks", Marks)
        .reducer("log", reducers::fold(Vec::new(), whole))
        .node("answer", async |(): (), ctx: Context| -> Result<Update, NodeError> {
            let text = format!("{} {}", ctx.info().task_id, "word ".repeat(60));
            Ok(Update::new()
                .set("messages", [Message::ai(text.clone())])
                .set("notes", [text.clone()])
                .set("topics", text.clone())
                .set("marks", "x")
                .set("log", [text]))
        })
        .edge(START, "answer")
        .edge("answer", END)
        .build()
        .expect("the graph builds")
}

/// Bytes in all rows of runs, checkpoints and what they refer to.
fn bytes(of: impl Fn(&str) -> String) -> String {
    let tables = [
        ("runs", &["kwargs", "metadata"][..]),
        ("checkpoints", &["metadata", "body", "next_nodes"]),
        ("task_writes", &["body"]),
        ("payloads", &["value"]),
        ("channel_log", &["items"]),
    ];
    let sums = tables.map(|(table, columns)| {
        let columns: Vec<String> = columns.iter().map(|column| of(column)).collect();
        format!("(SELECT coalesce(sum({}), 0) FROM {table})", columns.join(" + "))
    });
    format!("SELECT CAST({} AS bigint)", sums.join(" + "))
}

async fn stored(url: &str) -> i64 {
    if url.starts_with("postgres") {
        let of = |column: &str| match column {
            "metadata" => "octet_length(metadata::text)".to_owned(),
            column => format!("octet_length({column})"),
        };
        return number(url, &bytes(of)).await;
    }
    let sql = bytes(|column| format!("length(CAST({column} AS BLOB))"));
    let mut connection = SqliteConnection::connect(url).await.expect("the file can be read");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.expect("a number")
}

async fn every_turn_costs_the_same(url: &str) {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(url);
    let running = Server::new(config, vec![talk()]).start().await.expect("the server starts");
    let path = format!("{}/threads/long-talk/runs/wait", running.url());
    let (mut sizes, mut state) = (Vec::new(), json!(null));
    for turn in 0..=3 * TURNS {
        if turn % TURNS == 0 {
            sizes.push(stored(url).await);
        }
        let text = format!("{turn:03} {}", "question ".repeat(20));
        let input = json!({"messages": [{"role": "user", "content": text}]});
        state = post(&path, json!({"assistant_id": "talk", "input": input})).await;
    }
    running.shutdown().await.expect("stops");
    for list in ["messages", "notes", "topics", "marks", "log"] {
        let turns = if list == "messages" { 2 } else { 1 } * (3 * TURNS + 1);
        assert_eq!(state[list].as_array().map(Vec::len), Some(turns), "{list}");
    }
    let grown: Vec<i64> = sizes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let per_turn = grown[1] / TURNS as i64;
    let said = state.to_string().len() / (3 * TURNS + 1);
    eprintln!("{per_turn} bytes of rows per turn, {said} bytes of state");
    // Ids and numbers get a digit longer now and then; nothing else grows.
    assert!(grown[2] - grown[1] < grown[1] / 50, "the third part costs {} bytes, the second {}", grown[2], grown[1]);
}

#[tokio::test]
async fn every_turn_of_a_long_chat_costs_the_same_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    every_turn_costs_the_same(&sqlite_url(&dir)).await;
}

#[tokio::test]
async fn every_turn_of_a_long_chat_costs_the_same_on_postgres() {
    let Some(database) = Database::create("growth").await else { return };
    every_turn_costs_the_same(&database.url).await;
}

/// Steps of a run that is measured.
const STEPS: i64 = 20;

/// Counts, one superstep each, beside a text that nobody touches.
fn count() -> Graph {
    StateGraph::dynamic("count")
        .channel("text", ChannelKind::LastValue)
        .channel("n", ChannelKind::LastValue)
        .node("add", async |state: Counted, _ctx: Context| Ok(Update::new().set("n", state.n + 1)))
        .edge(START, "add")
        .branch("add", "again", ["add", END], |state: &Counted| if state.n < STEPS { "add" } else { END })
        .build()
        .expect("the graph builds")
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Counted {
    n: i64,
}

async fn what_is_not_touched_costs_nothing(url: &str) {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(url);
    let running = Server::new(config, vec![count()]).start().await.expect("the server starts");
    let mut costs = Vec::new();
    for (thread, size) in [("kib", 1 << 10), ("mib", 1 << 20)] {
        let path = format!("{}/threads/{thread}/runs/wait", running.url());
        let run = async |input: serde_json::Value| post(&path, json!({"assistant_id": "count", "input": input})).await;
        // Once for the text itself, which is stored as it comes.
        let text = "x".repeat(size);
        assert_eq!(run(json!({"text": text, "n": 0})).await["n"], STEPS);
        let before = stored(url).await;
        let state = run(json!({"n": 0})).await;
        costs.push(stored(url).await - before);
        assert_eq!((state["n"].as_i64(), state["text"].as_str().map(str::len)), (Some(STEPS), Some(size)));
    }
    running.shutdown().await.expect("stops");
    let [kib, mib] = costs[..] else { panic!("two runs: {costs:?}") };
    eprintln!("{} bytes of rows per step beside 1 KiB, {} beside 1 MiB", kib / STEPS, mib / STEPS);
    assert!((mib - kib).abs() * 20 < kib, "{STEPS} steps cost {kib} bytes beside 1 KiB, {mib} beside 1 MiB");
}

#[tokio::test]
async fn a_small_key_beside_a_megabyte_costs_what_it_costs_beside_a_kilobyte() {
    let dir = tempfile::tempdir().expect("a directory");
    what_is_not_touched_costs_nothing(&sqlite_url(&dir)).await;
    let Some(database) = Database::create("growth").await else { return };
    what_is_not_touched_costs_nothing(&database.url).await;
}
