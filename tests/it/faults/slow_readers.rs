//! Listeners that hardly read: what is kept for them is bounded, and the run does not wait for them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::*;
use crate::support::process::sqlite_url;

/// In CI. `IT_FAULTS_READERS=1000` is the size of the measurement in the README.
const READERS: usize = 100;
const STEPS: i64 = 120;

/// Resident bytes of a process.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a Linux process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_cost_bounded_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = tempfile::tempdir().expect("a directory");
    let server = server(&sqlite_url(&dir), traces.path(), &[]);
    let readers = std::env::var("IT_FAULTS_READERS").ok().and_then(|n| n.parse().ok()).unwrap_or(READERS);
    // Once without anybody, so that what the first run needs is there.
    let first = run(&server, "alone").await;
    assert_eq!(ended(&server, &first).await, "success");
    let mut sizes = vec![resident(&server)];
    let mut sockets: Vec<TcpStream> = Vec::new();
    for round in 0..2 {
        let run = run(&server, &format!("watched{round}")).await;
        let path = format!("/threads/{}/stream", run.split_once("/threads/").expect("a path").1);
        for _ in 0..readers {
            let mut socket = TcpStream::connect(("127.0.0.1", server.port())).expect("connected");
            let request = format!("GET {path} HTTP/1.1\r\nhost: it\r\nlast-event-id: -1\r\n\r\n");
            socket.write_all(request.as_bytes()).expect("sent");
            sockets.push(socket);
        }
        // It ends although nobody listens.
        assert_eq!(ended(&server, &run).await, "success");
        // One byte each: they are alive, and far behind.
        for socket in &mut sockets {
            socket.read_exact(&mut [0]).expect("a byte");
        }
        sizes.push(resident(&server));
    }
    eprintln!("{readers} readers: {sizes:?} bytes without, with them, with twice as many");
    let each = sizes[2].saturating_sub(sizes[0]) / (2 * readers as u64);
    assert!(each < 512 * 1024, "{each} bytes for each reader");
}
