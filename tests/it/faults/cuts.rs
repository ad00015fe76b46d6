//! Streams that break off, wherever that is, and databases that go back in time under those who listen.

use futures_util::StreamExt as _;

use super::*;
use crate::support::process::sqlite_url;

/// Reads a stream from behind an event: at most so many bytes, then the connection is dropped.
async fn read(url: &str, after: &str, bytes: usize) -> String {
    let request = reqwest::Client::new().get(url).header("last-event-id", after).timeout(PATIENCE);
    let mut chunks = request.send().await.expect("an answer").bytes_stream();
    let mut heard = Vec::new();
    while heard.len() < bytes {
        let Some(chunk) = chunks.next().await else { break };
        heard.extend_from_slice(&chunk.expect("a chunk"));
    }
    heard.truncate(bytes);
    String::from_utf8_lossy(&heard).into_owned()
}

/// The whole frames of a text, and the id of the last of them.
fn whole(text: &str) -> (&str, Option<&str>) {
    let frames = text.rfind("\n\n").map_or("", |end| &text[..end + 2]);
    let id = frames.rsplit("\n\n").find_map(|frame| frame.lines().find_map(|line| line.strip_prefix("id: ")));
    (frames, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_cut_at_any_byte_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = tempfile::tempdir().expect("a directory");
    // No heartbeat in between: what is compared is what was told.
    let server = server(&sqlite_url(&dir), traces.path(), &[("SERVER__HEARTBEAT_SECS", "600")]);
    let body = json!({
        "assistant_id": "counter", "input": {"counter": 2}, "stream_mode": ["values"], "stream_resumable": true,
    });
    let runs = format!("{}/threads/cut/runs", server.url);
    let run = post(&runs, body).await;
    let url = format!("{runs}/{}", run["run_id"].as_str().expect("an id"));
    assert_eq!(ended(&server, &url).await, "success");
    let url = format!("{url}/stream");
    let all = read(&url, "-1", usize::MAX).await;
    assert!(all.matches("\n\n").count() >= 3, "{all}");
    for at in 0..=all.len() {
        let heard = read(&url, "-1", at).await;
        let (frames, id) = whole(&heard);
        let rest = read(&url, id.unwrap_or("-1"), usize::MAX).await;
        assert_eq!(format!("{frames}{rest}"), all, "cut at byte {at}");
    }
}

/// A file is put back as it was some runs ago, while clients remember what came after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_restored_backup_are_told_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let backup = tempfile::tempdir().expect("a directory");
    let traces = tempfile::tempdir().expect("a directory");
    let start = || server(&sqlite_url(&dir), traces.path(), &[]);
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}, "stream_resumable": true});
    let copy = |from: &Path, to: &Path| {
        for entry in std::fs::read_dir(to).expect("a folder").flatten() {
            std::fs::remove_file(entry.path()).expect("removed");
        }
        for entry in std::fs::read_dir(from).expect("a folder").flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    };
    let server = start();
    post(&format!("{}/threads/t/runs/wait", server.url), counter.clone()).await;
    assert!(server.terminate().success());
    copy(dir.path(), backup.path());
    let server = start();
    let later = post(&format!("{}/threads/t/runs", server.url), counter.clone()).await;
    let later = format!("{}/threads/t/runs/{}", server.url, later["run_id"].as_str().expect("an id"));
    assert_eq!(ended(&server, &later).await, "success");
    let heard = read(&format!("{later}/stream"), "-1", usize::MAX).await;
    let last = whole(&heard).1.expect("an id").to_owned();
    server.kill();
    copy(backup.path(), dir.path());
    let server = start();
    // The run is gone, and whoever asks for it hears that; whoever listens to the thread hears where its log ends now.
    let path = later.split_once("/threads/").expect("a path").1;
    let (status, _) =
        send(reqwest::Method::GET, &format!("{}/threads/{path}", server.url), None).await.expect("an answer");
    assert_eq!(status, 404);
    let request = reqwest::Client::new().get(format!("{}/threads/t/stream", server.url)).header("last-event-id", &last);
    let mut chunks = request.timeout(PATIENCE).send().await.expect("an answer").bytes_stream();
    let mut text = String::new();
    while !text.contains("\n\n") || !text.contains("event: ") {
        text.push_str(&String::from_utf8_lossy(&chunks.next().await.expect("an event").expect("a chunk")));
    }
    assert!(text.contains("event: resume_gap") && text.contains(&last), "{text}");
    assert_eq!(get(&format!("{}/threads/t/state", server.url)).await["values"], json!({"counter": 3}));
    assert_eq!(post(&format!("{}/threads/t/runs/wait", server.url), counter).await, json!({"counter": 3}));
}
