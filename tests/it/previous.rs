//! The previous release on the schema of this one, as in a rolling deployment: what its server said to Postgres was
//! recorded, and is said again to a database that this build has migrated. Every statement must do what it did.
//!
//! `IT_PREVIOUS=/path/to/the/binary cargo test --test it previous::the_recorder -- --ignored` records anew: to be done with
//! each release. What is recorded: one line per exchange, in the order in which they ended. (Where a statement waits for
//! another connection's commit, that order is the file's: the commit first.)

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::process::{Database, PATIENCE, Server, binary, eventually, get, post, root, send};

/// What a client sends until it waits for Postgres, and how the statements in it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Exchange {
    connection: usize,
    /// Bytes; those that are no printable ASCII are written `\xx`.
    sent: String,
    /// `INSERT 0 1` and the like; `!` and the code of an error.
    ended: Vec<String>,
}

fn file() -> PathBuf {
    root().join("tests/goldens/previous-release.jsonl")
}

fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b' '..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            byte => write!(text, "\\{byte:02x}").expect("written"),
        }
    }
    text
}

fn bytes(shown: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), shown.as_bytes());
    while let [first, more @ ..] = rest {
        if *first == b'\\' {
            let code = std::str::from_utf8(&more[..2]).expect("ASCII");
            bytes.push(u8::from_str_radix(code, 16).expect("a byte"));
            rest = &more[2..];
        } else {
            bytes.push(*first);
            rest = more;
        }
    }
    bytes
}

/// The next message with a kind: the kind and the whole of it.
fn message(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let length = u32::from_be_bytes(buffer.get(1..5)?.try_into().expect("four bytes")) as usize;
    (buffer.len() > length).then(|| (buffer[0], buffer.drain(..=length).collect()))
}

/// How a statement ended, if the message of a server says so.
fn end_of(kind: u8, message: &[u8]) -> Option<String> {
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    match kind {
        b'C' => Some(text(&message[5..])),
        b'E' => message[5..]
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&b'C'))
            .map(|f| format!("!{}", text(&f[1..]))),
        _ => None,
    }
}

/// A connection to the server of a URL, ready for statements.
struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(url: &str) -> Client {
        let (authority, database) = url.split_once("://").expect("a URL").1.split_once('/').expect("a database");
        let (who, place) = authority.rsplit_once('@').expect("a user");
        let socket = TcpStream::connect(place).expect("Postgres answers");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        let who = who.split(':').next().unwrap_or_default();
        let settings = format!(
            "user\0{who}\0database\0{database}\0extra_float_digits\02\0client_encoding\0UTF8\0TimeZone\0UTC\0\0"
        );
        let length = u32::try_from(settings.len() + 8).expect("short");
        let start = [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), settings.as_bytes()].concat();
        let mut client = Client { socket, buffer: Vec::new() };
        let ended = client.say(&start);
        assert_eq!(ended, [""; 0], "the user of {url} needs no password");
        client
    }

    /// Sends bytes and waits until the server is ready again; how the statements ended.
    fn say(&mut self, bytes: &[u8]) -> Vec<String> {
        self.socket.write_all(bytes).expect("sent");
        let mut ended = Vec::new();
        loop {
            while let Some((kind, message)) = message(&mut self.buffer) {
                assert!(kind != b'R' || message[5..9] == [0; 4], "the user of the test database needs a password");
                ended.extend(end_of(kind, &message));
                if kind == b'Z' {
                    return ended;
                }
            }
            let mut chunk = [0; 16 * 1024];
            let count = self.socket.read(&mut chunk).expect("an answer");
            assert!(count > 0, "Postgres hung up");
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }
}

/// The name of the statement that an exchange prepares or executes.
fn statement(sent: &[u8]) -> Option<&[u8]> {
    let mut names = sent.get(5..)?.split(|byte| *byte == 0);
    match sent.first()? {
        b'P' => names.next(),
        // After that of the portal.
        b'B' => names.nth(1),
        _ => None,
    }
}

#[tokio::test]
async fn what_the_previous_release_says_does_the_same_on_this_schema() {
    let Some(database) = Database::create("previous").await else { return };
    let migrated = binary().args(["migrate", "--database-url", &database.url]).status().expect("it runs");
    assert!(migrated.success());
    let lines = std::fs::read_to_string(file()).expect("the record");
    let exchanges: Vec<Exchange> = lines.lines().map(|line| serde_json::from_str(line).expect("an exchange")).collect();
    let url = database.url.clone();
    let replaying = tokio::task::spawn_blocking(move || {
        let mut clients: HashMap<usize, Client> = HashMap::new();
        // The list of migrations is longer now.
        let mut longer = HashSet::new();
        for (number, exchange) in exchanges.iter().enumerate() {
            let sent = bytes(&exchange.sent);
            let statement = (exchange.connection, statement(&sent).map(<[u8]>::to_vec));
            if exchange.sent.starts_with('P') && exchange.sent.contains("schema_migrations") {
                longer.insert(statement.clone());
            }
            let client = clients.entry(exchange.connection).or_insert_with(|| Client::connect(&url));
            let ended = client.say(&sent);
            let is_longer = longer.contains(&statement) && ended.iter().all(|end| end.starts_with("SELECT "));
            assert!(is_longer || ended == exchange.ended, "{number}: {ended:?} instead of {exchange:?}");
        }
        exchanges.len()
    });
    assert!(replaying.await.expect("replayed") > 100);
    // The tables that a conversation is made of were written.
    for table in [
        "threads",
        "runs",
        "run_lookup",
        "checkpoints",
        "task_writes",
        "payloads",
        "events",
        "interrupts",
        "assistants",
        "assistant_versions",
        "items",
        "crons",
        "idempotency_keys",
    ] {
        let sql = format!("SELECT COUNT(*)::bigint FROM {table}");
        assert!(crate::support::process::number(&database.url, &sql).await > 0, "nothing in {table}");
    }
}

// ---- Recording ----------------------------------------------------------------------------------------------------

type Record = Arc<Mutex<Vec<Exchange>>>;

/// Passes a connection on and notes what is said.
fn note(client: &TcpStream, server: &TcpStream, connection: usize, record: &Record) {
    let waiting: Arc<Mutex<VecDeque<Vec<u8>>>> = Arc::default();
    let (mut from, mut to, said) =
        (client.try_clone().expect("cloned"), server.try_clone().expect("cloned"), Arc::clone(&waiting));
    std::thread::spawn(move || {
        let (mut buffer, mut has_begun, mut exchange, mut chunk) = (Vec::new(), false, Vec::new(), [0; 16 * 1024]);
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            buffer.extend_from_slice(&chunk[..count]);
            // A request for TLS, which is refused, and the settings have no kind.
            while !has_begun && buffer.len() >= 8 {
                let length = u32::from_be_bytes(buffer[..4].try_into().expect("four bytes")) as usize;
                if buffer.len() < length {
                    break;
                }
                buffer.drain(..length);
                has_begun = length != 8;
            }
            while has_begun && let Some((kind, message)) = message(&mut buffer) {
                exchange.extend(message);
                if matches!(kind, b'S' | b'Q') {
                    said.lock().expect("not poisoned").push_back(std::mem::take(&mut exchange));
                }
            }
            if to.write_all(&chunk[..count]).is_err() {
                return;
            }
        }
    });
    let (mut from, mut to, record) =
        (server.try_clone().expect("cloned"), client.try_clone().expect("cloned"), Arc::clone(record));
    std::thread::spawn(move || {
        let (mut buffer, mut refused, mut is_ready, mut ended) = (Vec::new(), false, false, Vec::new());
        let mut chunk = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            buffer.extend_from_slice(&chunk[..count]);
            if !refused && buffer.first() == Some(&b'N') {
                buffer.remove(0);
            }
            refused = true;
            while let Some((kind, message)) = message(&mut buffer) {
                ended.extend(end_of(kind, &message));
                if kind == b'Z' {
                    if let Some(sent) = waiting.lock().expect("not poisoned").pop_front().filter(|_| is_ready) {
                        let exchange = Exchange { connection, sent: shown(&sent), ended: std::mem::take(&mut ended) };
                        record.lock().expect("not poisoned").push(exchange);
                    }
                    is_ready = true;
                }
            }
            if to.write_all(&chunk[..count]).is_err() {
                return;
            }
        }
    });
}

/// Some of all that a server does, one after the other, so that it can be repeated in this order.
async fn work(server: &Server) {
    let url = |path: &str| format!("{}{path}", server.url);
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}, "stream_resumable": true});
    post(&url("/threads"), json!({"thread_id": "0b0e0000-0000-4000-8000-000000000001", "metadata": {"a": 1}})).await;
    for _ in 0..2 {
        post(&url("/threads/first/runs/wait"), counter.clone()).await;
    }
    let key = reqwest::Client::new().post(url("/threads/first/runs")).header("idempotency-key", "once").json(&counter);
    let run: Value = key.send().await.expect("answered").json().await.expect("JSON");
    let run = url(&format!("/threads/first/runs/{}", run["run_id"].as_str().expect("an id")));
    get(&format!("{run}/join")).await;
    get(&run).await;
    let chat = json!({"assistant_id": "chat", "input": {"messages": [{"role": "user", "content": "hello"}]}});
    post(&url("/threads/talk/runs/wait"), chat).await;
    post(&url("/threads/asked/runs/wait"), json!({"assistant_id": "approval", "input": {"request": "a cake"}})).await;
    get(&url("/threads/asked/state")).await;
    post(&url("/threads/asked/runs/wait"), json!({"assistant_id": "approval", "command": {"resume": true}})).await;
    post(&url("/threads/first/state"), json!({"values": {"counter": 9}})).await;
    post(&url("/threads/first/history"), json!({"limit": 5})).await;
    post(&url("/threads/search"), json!({"metadata": {"a": 1}})).await;
    post(&url("/threads/first/copy"), json!({})).await;
    post(&url("/threads/prune"), json!({"thread_ids": ["first"], "strategy": "keep_latest"})).await;
    let slow = post(&url("/threads/slow/runs"), json!({"assistant_id": "slow", "input": {"steps": 1000}})).await;
    let slow = url(&format!("/threads/slow/runs/{}", slow["run_id"].as_str().expect("an id")));
    post(&format!("{slow}/cancel?wait=true"), json!({})).await;
    let assistant = post(&url("/assistants"), json!({"graph_id": "counter", "name": "mine"})).await;
    let assistant = url(&format!("/assistants/{}", assistant["assistant_id"].as_str().expect("an id")));
    send(reqwest::Method::PATCH, &assistant, Some(json!({"name": "ours"}))).await.expect("answered");
    post(&url("/assistants/search"), json!({})).await;
    let item = json!({"namespace": ["a"], "key": "k", "value": {"text": "remembered"}});
    send(reqwest::Method::PUT, &url("/store/items"), Some(item)).await.expect("answered");
    post(&url("/store/items/search"), json!({"namespace_prefix": ["a"]})).await;
    let cron = json!({"assistant_id": "counter", "schedule": "0 0 1 1 *", "input": {"counter": 0}});
    post(&url("/threads/first/runs/crons"), cron).await;
    send(reqwest::Method::DELETE, &url("/threads/talk"), None).await.expect("answered");
}

#[tokio::test]
#[ignore = "not a test: records what the release at IT_PREVIOUS says"]
async fn the_recorder() {
    let previous = std::env::var("IT_PREVIOUS").expect("IT_PREVIOUS: the binary of the previous release");
    let database = Database::create("recorded").await.expect("a Postgres");
    let command = |url: &str| {
        let mut command = Command::new(&previous);
        command.env("DATABASE_URL", url).env("SESSION_STORE__SERVER__LISTEN", "127.0.0.1:0");
        // Few connections, and nothing that comes by time.
        for setting in ["RUNTIME__POLL_SECS", "CRONS__POLL_SECS", "THREADS__SWEEP_SECS"] {
            command.env(format!("SESSION_STORE__{setting}"), "3600");
        }
        command.env("SESSION_STORE__RUNTIME__LEASE_SECS", "600").env("SESSION_STORE__RUNTIME__RENEW_SECS", "60");
        command.env("SESSION_STORE__DATABASE__MAX_CONNECTIONS", "3");
        // A release may not know it yet.
        command.env_remove("SESSION_STORE__RUNTIME__STUCK_AFTER_SECS");
        command
    };
    assert!(command(&database.url).arg("migrate").status().expect("it runs").success());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let place = database.url.rsplit_once('@').expect("a user").1.split('/').next().expect("a host").to_owned();
    let url = database.url.replace(&place, &address.to_string());
    let record: Record = Arc::default();
    let noted = Arc::clone(&record);
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let server = TcpStream::connect(&place).expect("Postgres answers");
            note(&client.expect("a client"), &server, number, &noted);
        }
    });
    let server = Server::spawn(command(&url));
    work(&server).await;
    assert!(server.terminate().success());
    let quiet = async || {
        let before = record.lock().expect("not poisoned").len();
        tokio::time::sleep(Duration::from_millis(200)).await;
        (record.lock().expect("not poisoned").len() == before).then_some(())
    };
    eventually("all is written down", PATIENCE, quiet).await;
    let lines: Vec<String> =
        record.lock().expect("not poisoned").iter().map(|e| serde_json::to_string(e).expect("JSON")).collect();
    std::fs::write(file(), lines.join("\n") + "\n").expect("written");
}
