//! Who may not: requests without a key however the path is spelt, and ids that belong to somebody else.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use session_store::http::{ApiKey, HttpSettings};
use session_store::model::ThreadId;
use session_store::storage::connect::{ConnectOptions, connect};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::described::DOCUMENT;
use crate::support::postgres::Database;
use crate::support::server::TestServer;

/// Methods and paths of the document.
fn routes() -> Vec<(String, String)> {
    let paths = DOCUMENT["paths"].as_object().expect("paths").iter();
    let all = paths.flat_map(|(path, item)| {
        item.as_object().expect("operations").keys().map(move |method| (method.to_uppercase(), path.clone()))
    });
    all.collect()
}

const OPEN: [&str; 7] = ["/", "/ok", "/ready", "/info", "/metrics", "/docs", "/openapi.json"];

fn filled(path: &str) -> String {
    path.replace("{thread_id}", "t")
        .replace("{name}", "n")
        .replace("{namespace}", "n")
        .replace("{interrupt_id}", &"0".repeat(32))
        .replace("{checkpoint_id}", &Uuid::nil().to_string())
        .replace("{run_id}", &Uuid::nil().to_string())
        .replace("{cron_id}", &Uuid::nil().to_string())
        .replace("{assistant_id}", &Uuid::nil().to_string())
}

/// The status of a request whose path no client tidies up.
async fn status(server: &TestServer, method: &str, path: &str, headers: &str) -> u16 {
    let address = server.url.trim_start_matches("http://");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: it\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n");
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("read");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("{method} {path}: {answer:?}"))
}

#[tokio::test]
async fn no_spelling_of_a_path_gets_around_the_key() {
    let keys = vec![ApiKey::new("k")];
    let server = TestServer::with(HttpSettings { api_keys: keys, ..HttpSettings::default() }).await;
    let closed: Vec<(String, String)> =
        routes().into_iter().filter(|(_, path)| !OPEN.contains(&path.as_str())).collect();
    assert!(closed.len() > 90, "{}", closed.len());
    for (method, path) in &closed {
        let path = filled(path);
        assert_eq!(status(&server, method, &path, "").await, 401, "{method} {path}");
        assert_eq!(status(&server, method, &path, "x-api-key: wrong\r\n").await, 403, "{method} {path}");
    }
    let tricks = [
        "//threads/t",
        "/threads//t",
        "/threads/t/",
        "/./threads/t",
        "/ok/../threads/t",
        "/ok/%2e%2e/threads/t",
        "/%74hreads/t",
        "/ok%2f..%2fthreads/t",
        "/ok;/threads/t",
        "/THREADS/t",
        "/Threads/t",
        "/threads/t%00",
        "/threads/t?/ok",
        "/threads/t#/ok",
        "/threads/../ok/../threads/t",
        "/threads/t%2f..%2f..%2fok",
        "http://it/threads/t",
        "/OK/../threads/t",
        "/\\threads/t",
    ];
    for trick in tricks {
        for method in ["GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "TRACE", "get"] {
            let status = status(&server, method, trick, "").await;
            assert!([400, 401, 404, 405].contains(&status), "{method} {trick}: {status}");
        }
    }
    // Keys that are no keys, and other headers that some would trust.
    for headers in [
        "x-api-key: \r\n",
        "x-api-key: k \u{0}\r\n",
        "authorization: k\r\n",
        "authorization: Basic azo=\r\n",
        "authorization: Bearer\r\n",
        "authorization: Bearer eyJhbGciOiJub25lIn0.e30.\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-original-url: /ok\r\n",
        "x-rewrite-url: /ok\r\n",
        "x-http-method-override: OPTIONS\r\n",
        "cookie: api_key=k\r\n",
        "x-actor: api-key\r\n",
        "upgrade: websocket\r\nconnection: upgrade\r\n",
    ] {
        let status = status(&server, "GET", "/threads/t", headers).await;
        assert!([400, 401, 403].contains(&status), "{headers}: {status}");
    }
    // What a browser asks beforehand tells nothing and does nothing.
    let preflight = "origin: http://x\r\naccess-control-request-method: DELETE\r\n";
    assert_eq!(status(&server, "OPTIONS", "/threads/t", preflight).await, 200);
    for path in OPEN {
        assert_eq!(status(&server, "GET", path, "").await, 200, "{path}");
    }
}

/// Stands in all that another tenant has.
const PLANTED: &str = "planted";

/// What another tenant has, by the name of the place where an id of it goes.
type Theirs = BTreeMap<&'static str, String>;

/// Makes one of everything, and gives all of it to another tenant, as if that one had made it.
async fn theirs(server: &TestServer, url: &str) -> Theirs {
    let mine = |value: &Value, key: &str| value[key].as_str().unwrap_or_else(|| panic!("no {key}: {value}")).to_owned();
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}});
    let made = server
        .post("/assistants", json!({"graph_id": "counter", "name": PLANTED, "metadata": {"a": PLANTED}}))
        .await
        .ok();
    let assistant = mine(&made, "assistant_id");
    server.post("/threads/theirs/runs/wait", counter.clone()).await.ok();
    server.send("PUT", "/threads/theirs/branches/named", "{}").await.ok();
    server
        .post("/threads/asked/runs/wait", json!({"assistant_id": "approval", "input": {"topic": PLANTED}}))
        .await
        .ok();
    let label = json!({"metadata": {"label": PLANTED}});
    server.send("PATCH", "/threads/theirs", label.to_string()).await.ok();
    let question = server.get("/interrupts?thread_id=asked").await.ok();
    let runs = server.get("/threads/theirs/runs").await.ok();
    let state = server.get("/threads/theirs/state").await.ok();
    let cron = json!({"assistant_id": "counter", "schedule": "0 0 1 1 *", "input": {"counter": 0}});
    let cron = server.post("/runs/crons", cron).await.ok();
    let item = json!({"namespace": ["theirs"], "key": "theirs", "value": {"text": PLANTED}});
    server.send("PUT", "/store/items", item.to_string()).await;
    let theirs = Theirs::from([
        ("thread_id", "theirs".to_owned()),
        ("asked", "asked".to_owned()),
        ("assistant_id", assistant.clone()),
        ("run_id", mine(&runs[0], "run_id")),
        ("checkpoint_id", mine(&state["checkpoint"], "checkpoint_id")),
        ("interrupt_id", mine(&question[0], "interrupt_id")),
        ("cron_id", mine(&cron, "cron_id")),
    ]);
    let other = Uuid::from_u128(7);
    let mut conn = PgConnection::connect(url).await.expect("connects");
    let columns = |name: &str| {
        format!(
            "SELECT table_name::text FROM information_schema.columns WHERE table_schema = 'public' AND column_name = '{name}'"
        )
    };
    let tables = async |conn: &mut PgConnection, name: &str| -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(columns(name))).fetch_all(conn).await.expect("read")
    };
    for table in tables(&mut conn, "thread_key").await {
        for name in ["theirs", "asked"] {
            let id = ThreadId::parse(name).expect("a name");
            let (old, new) = (id.key(Uuid::nil()).0, id.key(other).0);
            let sql = format!("UPDATE {table} SET thread_key = '{new}' WHERE thread_key = '{old}'");
            sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await.expect("moved");
        }
    }
    for table in tables(&mut conn, "tenant").await {
        // The assistants that graphs have by themselves stay.
        let which =
            if table.starts_with("assistant") { format!("WHERE assistant_id = '{assistant}'") } else { String::new() };
        let sql = format!("UPDATE {table} SET tenant = '{other}' {which}");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await.expect("given");
    }
    theirs
}

/// Every row that the other tenant has.
async fn snapshot(url: &str) -> String {
    let mut conn = PgConnection::connect(url).await.expect("connects");
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::text FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'tenant' ORDER BY 1",
    )
    .fetch_all(&mut conn)
    .await
    .expect("read");
    let mut all = String::new();
    for table in tables {
        let sql = format!(
            "SELECT COALESCE(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {table} t WHERE tenant = '{}'",
            Uuid::from_u128(7)
        );
        let rows: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut conn).await.expect("read");
        all.push_str(&format!("{table}: {rows}\n"));
    }
    all
}

/// What is sent to a route, so that it gets as far as looking for what the ids name.
fn body(path: &str, theirs: &Theirs) -> Value {
    let id = |name: &str| json!(theirs[name]);
    let run = json!({"assistant_id": id("assistant_id"), "input": {"counter": 0}, "if_not_exists": "reject"});
    let puts = json!({"checkpoint_ns": "", "checkpoint_id": id("checkpoint_id")});
    match path {
        "/quarantine/release" | "/webhooks/redrive" => json!({"run_ids": [id("run_id")]}),
        "/threads/prune" => json!({"thread_ids": [id("thread_id"), id("asked")]}),
        "/threads/search" | "/threads/count" => json!({"ids": [id("thread_id")], "metadata": {}}),
        "/assistants" => json!({"graph_id": "counter", "assistant_id": id("assistant_id"), "if_exists": "do_nothing"}),
        "/assistants/{assistant_id}/latest" => json!({"version": 1}),
        "/assistants/{assistant_id}" => json!({"name": "mine"}),
        "/threads/{thread_id}/state" => json!({"values": {"counter": 1}, "checkpoint_id": id("checkpoint_id")}),
        "/threads/{thread_id}/state/checkpoint" => json!({"checkpoint": {"checkpoint_id": id("checkpoint_id")}}),
        "/threads/{thread_id}/history" => json!({"before": id("checkpoint_id")}),
        "/threads/{thread_id}/head" => json!({"checkpoint_id": id("checkpoint_id")}),
        "/threads/{thread_id}/branches/{name}" => json!({"checkpoint_id": id("checkpoint_id")}),
        "/threads/{thread_id}/checkpoints/copy" => json!({"target_thread_id": "copied"}),
        "/checkpoints/delete" => json!({"thread_ids": [id("thread_id")], "run_ids": [id("run_id")]}),
        "/runs/cancel" => json!({"thread_id": id("thread_id"), "run_ids": [id("run_id")]}),
        "/runs/batch" => json!([run]),
        "/runs/crons" | "/threads/{thread_id}/runs/crons" => {
            json!({"assistant_id": id("assistant_id"), "schedule": "0 0 1 1 *", "input": {}})
        }
        "/runs/crons/{cron_id}" => json!({"enabled": false}),
        "/runs/crons/search" | "/runs/crons/count" => json!({"assistant_id": id("assistant_id")}),
        "/interrupts/answer" => {
            json!({"answers": [{"thread_id": id("asked"), "interrupt_id": id("interrupt_id"), "answer": "yes"}]})
        }
        "/threads/{thread_id}/interrupts/{interrupt_id}/answer" => json!({"answer": "yes"}),
        "/store/items" => json!({"namespace": ["theirs"], "key": "theirs"}),
        "/store/items/search" => json!({"namespace_prefix": ["theirs"]}),
        "/store/namespaces" => json!({"prefix": ["theirs"]}),
        "/threads/{thread_id}/commands" => json!({"id": 1, "method": "agent.getTree", "params": {}}),
        "/threads/{thread_id}/stream/events" => json!({"channels": ["values"]}),
        path if path.contains("/runs") => run,
        path if path.contains("checkpoints") => puts,
        _ => json!({}),
    }
}

/// Every route with every id that another tenant has, in path and body: the answer is what it is for an id that nobody has,
/// and nothing of the other tenant's changes. There is one tenant to be reached over HTTP so far; what keeps others apart
/// is the scope of every query.
#[tokio::test]
async fn ids_of_another_tenant_are_as_unknown_as_ids_of_nobody() {
    let Some(database) = Database::create().await else { return };
    let storage = connect(&database.url(), &ConnectOptions::default()).await.expect("a database");
    let graphs = session_store::graphs::all().into_iter().map(|graph| graph.expect("a graph")).collect();
    let server = TestServer::over(storage.clone(), HttpSettings::default(), graphs).await;
    let theirs = theirs(&server, &database.url()).await;
    let nobodys: Theirs = theirs
        .iter()
        .map(|(name, id)| {
            let unknown = match *name {
                "thread_id" => "nobody".to_owned(),
                "asked" => "noone".to_owned(),
                "interrupt_id" => "0123456789abcdef".repeat(2),
                "checkpoint_id" => id.replacen(&id[..8], "1f000000", 1),
                _ => Uuid::now_v7().to_string(),
            };
            (*name, unknown)
        })
        .collect();
    let before = snapshot(&database.url()).await;
    assert!(before.matches(PLANTED).count() > 2, "there is something to see");
    let mut told = 0;
    for (method, path) in routes() {
        // Health; streams that are open for as long as something may come; and what takes no ids.
        if OPEN.contains(&path.as_str()) || path.ends_with("/stream/events") || path == "/mcp" {
            continue;
        }
        let ask = async |ids: &Theirs| {
            let at =
                if path.contains("{interrupt_id}") { path.replace("{thread_id}", &ids["asked"]) } else { path.clone() };
            let at = ids.iter().fold(at, |at, (name, id)| at.replace(&format!("{{{name}}}"), id));
            let at = at.replace("{name}", "named").replace("{namespace}", "n");
            let query = match path.as_str() {
                "/threads/{thread_id}/diff" => format!("?a={}", ids["checkpoint_id"]),
                "/store/items" if method == "GET" => "?namespace=theirs&key=theirs".to_owned(),
                _ => String::new(),
            };
            let sent = if method == "GET" { String::new() } else { body(&path, ids).to_string() };
            let request = reqwest::Client::new()
                .request(method.parse().expect("a method"), format!("{}{at}{query}", server.url))
                .body(sent);
            let answer = tokio::time::timeout(super::PATIENCE, async {
                let answer = request.send().await.expect("an answer");
                (answer.status().as_u16(), answer.text().await.expect("a body"))
            });
            let (status, mut text) = answer.await.unwrap_or_else(|_| panic!("{method} {at}: no end"));
            for (name, id) in theirs.iter().chain(&nobodys) {
                text = text.replace(id.as_str(), name);
            }
            (status, text)
        };
        let (known, unknown) = (ask(&theirs).await, ask(&nobodys).await);
        assert_eq!(known.0, unknown.0, "{method} {path}: {} {}", known.1, unknown.1);
        assert!(known.0 != 500, "{method} {path}: {}", known.1);
        assert!(!known.1.contains(PLANTED), "{method} {path} tells what is theirs: {}", known.1);
        // What is made has an id and a time of its own.
        if known.0 >= 300 {
            assert_eq!(known.1, unknown.1, "{method} {path}");
            told += 1;
        }
        assert_eq!(snapshot(&database.url()).await, before, "{method} {path} has changed what is theirs");
    }
    assert!(told > 30, "only {told} routes said that there is nothing");
    storage.close().await;
    drop(server);
    database.drop().await;
}
