//! Listeners that hardly read, a thousand of them: what is kept for them is bounded and does not grow, and runs do not wait
//! for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::*;
use crate::support::process::sqlite_url;

const READERS: u64 = 1000;
/// Files that a process needs besides.
const OTHER_FILES: u64 = 200;
const STEPS: i64 = 30;
/// Of each reader, in the server. Measured: some 50 KiB.
const EACH: u64 = 192 * 1024;
/// Of all of them together, while more and more is told that they have not read.
const GROWTH: u64 = 64 << 20;

/// Resident bytes of a process.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a Linux process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

/// As many readers as this process, and the server it starts, may have files open for.
fn readers() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = READERS + OTHER_FILES;
    if limit.current.is_none_or(|current| current >= wanted) {
        return READERS;
    }
    let most = limit.maximum.map_or(wanted, |most| most.min(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }).expect("below the maximum");
    if most < wanted {
        println!("SKIPPED in part: {most} files may be open, so there are fewer readers");
    }
    most.saturating_sub(OTHER_FILES).min(READERS)
}

/// Runs `slow` almost without a pause; each step tells some ten events.
async fn run(server: &Server, thread: &str) -> String {
    let url = format!("{}/threads/{thread}/runs", server.url);
    let body = json!({
        "assistant_id": "slow", "input": {"n": 0, "steps": STEPS, "sleep_ms": 5},
        "stream_mode": ["values", "custom", "debug"], "stream_resumable": true,
    });
    let run = post(&url, body).await;
    format!("{url}/{}", run["run_id"].as_str().expect("an id"))
}

/// How long a run takes to its end; a run that waited for such readers would take days.
async fn takes(server: &Server, thread: &str) -> Duration {
    let began = Instant::now();
    let run = run(server, thread).await;
    assert_eq!(ended(server, &run).await, "success");
    began.elapsed()
}

/// Reads a byte, and another one each second, for as long as the test lasts.
async fn read_slowly(port: u16, path: String, heard: Arc<AtomicU64>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    // What it has not read waits in the server, not here.
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\nlast-event-id: -1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let byte = stream.read_u8().await.expect("the stream goes on");
        if heard.fetch_add(1, Ordering::SeqCst) == 0 {
            assert_eq!(byte, b'H', "an answer");
        }
        second.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_readers_cost_bounded_memory() {
    let readers = readers();
    let dir = tempfile::tempdir().expect("a directory");
    let traces = tempfile::tempdir().expect("a directory");
    let server = server(&sqlite_url(&dir), traces.path(), &[]);
    // Once without anybody, so that what the first run needs is there.
    takes(&server, "first").await;
    let alone = takes(&server, "alone").await;
    let before = resident(&server);
    // They listen to a run while it happens, and to all that happens on its thread.
    let watched = run(&server, "watched").await;
    let run_path = format!("/threads/{}/stream", watched.split_once("/threads/").expect("a path").1);
    let thread_path = "/threads/watched/stream".to_owned();
    let mut reading = tokio::task::JoinSet::new();
    let mut heard = Vec::new();
    for n in 0..readers {
        let count = Arc::<AtomicU64>::default();
        let path = if n % 2 == 0 { run_path.clone() } else { thread_path.clone() };
        reading.spawn(read_slowly(server.port(), path, Arc::clone(&count)));
        heard.push(count);
    }
    assert_eq!(ended(&server, &watched).await, "success", "although nobody keeps up");
    let all_have = async |bytes: u64| {
        let have = async || Some(()).filter(|()| heard.iter().all(|count| count.load(Ordering::SeqCst) >= bytes));
        eventually(&format!("each has read {bytes} bytes"), PATIENCE * 2, have).await;
    };
    all_have(2).await;
    let with_them = resident(&server);
    // More is told to those who have hardly heard the beginning.
    let beside = takes(&server, "watched").await;
    let elsewhere = takes(&server, "elsewhere").await;
    all_have(4).await;
    let later = resident(&server);
    assert!(reading.try_join_next().is_none(), "all of them still listen");
    eprintln!(
        "{readers} readers: {before} bytes without, {with_them} with them, {later} two runs later; a run took {alone:?} alone, \
         {beside:?} and {elsewhere:?} beside them"
    );
    let each = with_them.saturating_sub(before) / readers;
    assert!(each < EACH, "{each} bytes for each reader");
    assert!(later.saturating_sub(with_them) < GROWTH, "from {with_them} to {later} bytes");
}
