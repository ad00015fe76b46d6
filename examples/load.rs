//! A small load generator for a running server: one thread and one kept-alive connection per unit of concurrency, every
//! answer checked, one JSON object with percentiles at the end.
//!
//! `cargo run --release --example load -- counter http://127.0.0.1:8123 --concurrency 16 --seconds 5`
//!
//! * `counter`: creates a thread, runs `counter` on it and waits for the result.
//! * `state`: reads the state of one thread that has run `counter`.
//! * `chat`: `--turns` runs of `chat` on one thread, one after the other.
//! * `items`: searches `--items` items, which it writes first, for the five nearest to a query. The server needs an
//!   `embedding.provider`.
//! * `durability`: `counter` in each durability mode, in turns, with one client and with `--concurrency`; how each mode
//!   compares with `sync`. With `--postgres URL` (the server's database, used by nobody else meanwhile) also the
//!   transactions and bytes of WAL per run.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [work, url, options @ ..] = args.as_slice() else {
        let usage = "usage: load counter|state|chat|items|durability URL [--concurrency N] [--seconds S] [--turns N] [--items N] [--postgres URL]";
        return Err(usage.into());
    };
    let option = |name: &str, default: f64| -> Outcome<f64> {
        let Some(at) = options.iter().position(|option| option == name) else { return Ok(default) };
        Ok(options.get(at + 1).ok_or_else(|| format!("{name} needs a number"))?.parse()?)
    };
    let address = url.strip_prefix("http://").ok_or("the URL must be http://HOST:PORT")?.trim_end_matches('/');
    let (concurrency, turns) = (option("--concurrency", 1.0)? as usize, option("--turns", 100.0)? as usize);
    let limit = Duration::from_secs_f64(option("--seconds", 5.0)?);
    let mut began = Instant::now();
    let times = match work.as_str() {
        "durability" => {
            let postgres = options.iter().position(|option| option == "--postgres").and_then(|at| options.get(at + 1));
            let postgres = postgres.map(|url| Postgres::connect(url)).transpose()?;
            println!("{}", durability(address, concurrency, limit, postgres)?);
            return Ok(());
        }
        "counter" => everybody(concurrency, limit, || counter(address, None))?,
        "state" => {
            let path = format!("/threads/{}/state", prepared(address)?);
            everybody(concurrency, limit, || state(address, &path))?
        }
        "chat" => chat(address, turns)?,
        "items" => {
            write_items(address, option("--items", 10_000.0)? as usize)?;
            began = Instant::now();
            everybody(concurrency, limit, || search_items(address))?
        }
        other => return Err(format!("unknown work {other:?}: counter, state, chat, items or durability").into()),
    };
    println!("{}", report(work, concurrency, began.elapsed(), times));
    Ok(())
}

/// Runs the operations that `start` makes, on as many threads, until the time is up. Times in milliseconds.
fn everybody<F, O>(concurrency: usize, limit: Duration, start: F) -> Outcome<Vec<f64>>
where
    F: Fn() -> Outcome<O> + Sync,
    O: FnMut() -> Outcome<()>,
{
    let until = Instant::now() + limit;
    thread::scope(|scope| {
        let worker = || -> Outcome<Vec<f64>> {
            let (mut operation, mut times) = (start()?, Vec::new());
            while Instant::now() < until {
                times.push(timed(&mut operation)?);
            }
            Ok(times)
        };
        let workers: Vec<_> = (0..concurrency).map(|_| scope.spawn(worker)).collect();
        let mut times = Vec::new();
        for worker in workers {
            times.extend(worker.join().map_err(|_| "a worker panicked")??);
        }
        Ok(times)
    })
}

fn timed(operation: &mut impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let began = Instant::now();
    operation()?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

fn counter(address: &str, durability: Option<&'static str>) -> Outcome<impl FnMut() -> Outcome<()>> {
    let mut client = Client::connect(address)?;
    Ok(move || run_counter(&mut client, durability).map(drop))
}

/// Creates a thread and runs `counter` on it; returns the thread's id.
fn run_counter(client: &mut Client, durability: Option<&str>) -> Outcome<String> {
    let thread = client.send("POST", "/threads", "{}")?;
    let id = thread["thread_id"].as_str().ok_or("a thread without an id")?.to_owned();
    let body = json!({"assistant_id": "counter", "input": {"counter": 0}, "durability": durability});
    let result = client.send("POST", &format!("/threads/{id}/runs/wait"), &body.to_string())?;
    expect(&result["counter"], &json!(3))?;
    Ok(id)
}

fn prepared(address: &str) -> Outcome<String> {
    run_counter(&mut Client::connect(address)?, None)
}

/// What one durability mode was measured to cost, over all rounds.
#[derive(Default)]
struct Cost {
    alone: Vec<f64>,
    together: Vec<f64>,
    together_ms: f64,
    transactions: i64,
    wal_bytes: i64,
}

/// Runs the modes in turns, so that whatever else the machine does meets all of them alike.
fn durability(address: &str, clients: usize, limit: Duration, mut postgres: Option<Postgres>) -> Outcome<Value> {
    const MODES: [&str; 3] = ["sync", "async", "exit"];
    const ROUNDS: u32 = 3;
    let mut costs: [Cost; 3] = Default::default();
    // Connections prepare their statements first.
    everybody(clients, Duration::from_secs(1), || counter(address, Some("sync")))?;
    for _ in 0..ROUNDS {
        for (mode, cost) in MODES.into_iter().zip(&mut costs) {
            let before = postgres.as_mut().map(Postgres::counters).transpose()?;
            cost.alone.extend(everybody(1, limit / ROUNDS, || counter(address, Some(mode)))?);
            let began = Instant::now();
            cost.together.extend(everybody(clients, limit / ROUNDS, || counter(address, Some(mode)))?);
            cost.together_ms += began.elapsed().as_secs_f64() * 1000.0;
            let after = postgres.as_mut().map(Postgres::counters).transpose()?;
            if let (Some(before), Some(after)) = (before, after) {
                cost.transactions += after.0 - before.0;
                cost.wal_bytes += after.1 - before.1;
            }
        }
    }
    let figures = |cost: &Cost| {
        let runs = (cost.alone.len() + cost.together.len()) as f64;
        let per_second = cost.together.len() as f64 / cost.together_ms * 1000.0;
        [median(&cost.alone), per_second, cost.transactions as f64 / runs, cost.wal_bytes as f64 / runs]
    };
    let sync = figures(&costs[0]);
    let shown = |figures: [f64; 4]| {
        let [p50, per_second, transactions, wal] = figures.map(|figure| (figure * 1000.0).round() / 1000.0);
        let database = postgres.is_some().then(|| json!({"transactions": transactions, "wal_bytes": wal}));
        json!({"p50_alone": p50, "per_second": per_second, "per_run": database})
    };
    let modes = MODES.into_iter().zip(&costs).map(|(mode, cost)| {
        let own = figures(cost);
        let ratios = [own[0] / sync[0], own[1] / sync[1], own[2] / sync[2], own[3] / sync[3]];
        (mode.to_owned(), json!({"measured": shown(own), "to_sync": shown(ratios)}))
    });
    Ok(json!({"work": "durability", "concurrency": clients, "modes": modes.collect::<serde_json::Map<_, _>>()}))
}

/// The counters of a Postgres server.
struct Postgres {
    runtime: tokio::runtime::Runtime,
    connection: sqlx::PgConnection,
}

impl Postgres {
    fn connect(url: &str) -> Outcome<Postgres> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connection = runtime.block_on(<sqlx::PgConnection as sqlx::Connection>::connect(url))?;
        Ok(Postgres { runtime, connection })
    }

    /// Transactions committed in the database, and bytes of WAL, so far. Waits until backends have reported.
    fn counters(&mut self) -> Outcome<(i64, i64)> {
        thread::sleep(Duration::from_millis(1500));
        let query = "SELECT xact_commit, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
                     FROM pg_stat_database WHERE datname = current_database()";
        Ok(self.runtime.block_on(sqlx::query_as(query).fetch_one(&mut self.connection))?)
    }
}

fn state(address: &str, path: &str) -> Outcome<impl FnMut() -> Outcome<()>> {
    let mut client = Client::connect(address)?;
    Ok(move || expect(&client.send("GET", path, "")?["values"]["counter"], &json!(3)))
}

/// Writes items of some ten words each, on eight connections.
fn write_items(address: &str, count: usize) -> Outcome<()> {
    const WRITERS: usize = 8;
    const WORDS: [&str; 16] = [
        "coffee", "invoice", "monday", "holiday", "garden", "python", "violin", "harbour", "letter", "winter",
        "engine", "mother", "ticket", "museum", "salad", "doctor",
    ];
    let write = |from: usize| -> Outcome<()> {
        let mut client = Client::connect(address)?;
        for n in (from..count).step_by(WRITERS) {
            // Words chosen by the digits of a number that grows in large steps: all different, and always the same.
            let words: Vec<&str> = (0..10).map(|place| WORDS[((n * 7919) >> (place * 2)) % WORDS.len()]).collect();
            let value = json!({"text": format!("{} {n}", words.join(" ")), "n": n % 10});
            let item = json!({"namespace": ["load", "items"], "key": n.to_string(), "value": value});
            client.send("PUT", "/store/items", &item.to_string())?;
        }
        Ok(())
    };
    let write = &write;
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|from| scope.spawn(move || write(from))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| "a writer panicked")?)
    })
}

fn search_items(address: &str) -> Outcome<impl FnMut() -> Outcome<()>> {
    let mut client = Client::connect(address)?;
    let search =
        json!({"namespace_prefix": ["load"], "query": "coffee in the museum", "limit": 5, "refresh_ttl": false});
    let search = search.to_string();
    Ok(move || {
        let found = client.send("POST", "/store/items/search", &search)?;
        let scores = found["items"].as_array().into_iter().flatten().filter(|item| item["score"].is_number()).count();
        expect(&json!(scores), &json!(5))
    })
}

fn chat(address: &str, turns: usize) -> Outcome<Vec<f64>> {
    let mut client = Client::connect(address)?;
    let thread = client.send("POST", "/threads", "{}")?;
    let path = format!("/threads/{}/runs/wait", thread["thread_id"].as_str().ok_or("a thread without an id")?);
    let mut turn = 0;
    let mut ask = || {
        turn += 1;
        let question =
            format!("Question {turn}: about one hundred characters of text, as somebody who asks would write.");
        let input = json!({"messages": [{"role": "user", "content": question}]});
        let answer = client.send("POST", &path, &json!({"assistant_id": "chat", "input": input}).to_string())?;
        // Every turn adds the question and its answer.
        expect(&json!(answer["messages"].as_array().map_or(0, Vec::len)), &json!(2 * turn))
    };
    (0..turns).map(|_| timed(&mut ask)).collect()
}

fn expect(found: &Value, expected: &Value) -> Outcome<()> {
    if found == expected { Ok(()) } else { Err(format!("expected {expected}, got {found}").into()) }
}

fn report(work: &str, concurrency: usize, took: Duration, times: Vec<f64>) -> Value {
    let tenth = (times.len() / 10).max(1).min(times.len());
    let (first, last) = (median(&times[..tenth]), median(&times[times.len() - tenth..]));
    let mut sorted = times;
    sorted.sort_by(f64::total_cmp);
    json!({
        "work": work,
        "concurrency": concurrency,
        "operations": sorted.len(),
        "per_second": sorted.len() as f64 / took.as_secs_f64(),
        "milliseconds": {
            "p50": at(&sorted, 0.5), "p95": at(&sorted, 0.95), "p99": at(&sorted, 0.99), "max": at(&sorted, 1.0),
            "median_of_first_tenth": first, "median_of_last_tenth": last,
        },
    })
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    at(&sorted, 0.5)
}

/// The time that this part of the sorted times do not exceed.
fn at(sorted: &[f64], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// A kept-alive HTTP/1.1 connection: as little work per request as possible, so that the server is what is measured.
struct Client {
    address: String,
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: &str) -> Outcome<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Client { address: address.to_owned(), stream: BufReader::new(stream) })
    }

    /// Sends a request and reads its JSON answer; anything but a 2xx is an error.
    fn send(&mut self, method: &str, path: &str, body: &str) -> Outcome<Value> {
        let (address, length) = (&self.address, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = status.starts_with("HTTP/1.1 204").then_some(0);
        loop {
            let header = self.line()?.to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("content-length", value)) => length = Some(value.trim().parse()?),
                Some(_) => {}
            }
        }
        let body = match length {
            Some(length) => self.exactly(length)?,
            None => self.chunks()?,
        };
        if !status.starts_with("HTTP/1.1 2") {
            return Err(format!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body)).into());
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&body)?)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    fn chunks(&mut self) -> Outcome<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let length = usize::from_str_radix(&self.line()?, 16)?;
            body.extend(self.exactly(length)?);
            self.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
}
