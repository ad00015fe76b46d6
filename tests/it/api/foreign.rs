//! Checkpoints of graphs that run elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use session_store::runtime::foreign::{hash_of, hex};

use crate::support::server::{Answer, TestServer};

pub(super) fn value(bytes: &[u8]) -> Value {
    json!({"type": "msgpack", "base64": STANDARD.encode(bytes)})
}

pub(super) fn document(id: &str, versions: Value) -> Value {
    json!({"v": 4, "id": id, "ts": "2026-01-01T00:00:00+00:00", "channel_versions": versions, "versions_seen": {},
           "updated_channels": ["a"], "unknown": {"kept": [1, 1.0, "x\u{0}"]}})
}

/// A checkpoint with a value in channel `a`.
pub(super) fn put(id: &str, parent: Option<&str>, a: &Value) -> Value {
    json!({"checkpoint": document(id, json!({"a": 1})), "parent_checkpoint_id": parent,
           "metadata": {"source": "loop", "step": 1, "parents": {}}, "values": {"a": a}})
}

pub(super) async fn stored(server: &TestServer, thread: &str, body: Value) -> Value {
    server.post(&format!("/threads/{thread}/checkpoints"), body).await.ok()
}

#[track_caller]
pub(super) fn refused(answer: &Answer, status: u16, detail: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let told = answer.json()["detail"].as_str().expect("a detail").to_owned();
    assert!(told.contains(detail), "{told:?} lacks {detail:?}");
}

#[tokio::test]
async fn a_checkpoint_comes_back_as_it_was_put() {
    let server = TestServer::start().await;
    let large: Vec<u8> = (0..40_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let versions = json!({"a": 1, "b": "00000000000000000000000000000002.0.1", "c": 1.5});
    let body = json!({
        "checkpoint": document("c1", versions.clone()), "metadata": {"source": "input", "step": -1, "score": 1.0},
        "values": {"a": value(b"\x01"), "b": value(&large), "c": {"type": "null", "base64": ""}},
    });
    let made = stored(&server, "t", body).await;
    assert_eq!(made, json!({"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "c1"}));
    let writes = json!({"checkpoint_id": "c1", "task_id": "task", "task_path": "~p", "writes": [
        {"channel": "a", "type": "msgpack", "base64": "Ag=="}, {"channel": "__interrupt__", "type": "json", "base64": "W10="},
    ]});
    assert_eq!(server.post("/threads/t/checkpoints/writes", writes).await.status, 204);
    for path in ["latest", "c1"] {
        let found = server.get(&format!("/threads/t/checkpoints/{path}")).await;
        assert!(found.text.contains(r#"[1,1.0,"x\u0000"]"#), "{found:?}");
        let found = found.ok();
        assert_eq!(found["checkpoint"], document("c1", versions.clone()));
        assert_eq!(found["metadata"], json!({"source": "input", "step": -1, "score": 1.0}));
        assert_eq!(found["values"]["a"], json!({"type": "msgpack", "base64": "AQ=="}));
        let b = &found["values"]["b"];
        assert_eq!(STANDARD.decode(b["base64"].as_str().expect("bytes")).expect("base64"), large);
        assert_eq!(b["hash"], hex(&hash_of(&large)));
        assert_eq!(found["values"]["c"], json!({"type": "null", "base64": ""}));
        let writes: Vec<(&Value, &Value)> =
            found["pending_writes"].as_array().expect("a list").iter().map(|w| (&w["channel"], &w["idx"])).collect();
        assert_eq!(json!(writes), json!([["__interrupt__", -3], ["a", 0]]));
    }
    assert_eq!(server.get("/threads/t").await.ok()["status"], "interrupted");
    let rows = server.get("/threads/t/checkpoints").await.ok();
    assert_eq!(
        (&rows[0]["checkpoint_id"], &rows[0]["step"], &rows[0]["channels"]),
        (&json!("c1"), &json!(-1), &json!(["a", "b", "c"]))
    );
    // Two large values that share most of their bytes are stored about once.
    let grown = [&large[..], b"more"].concat();
    let body = json!({"checkpoint": document("c2", json!({"b": 2})), "parent_checkpoint_id": "c1",
                      "values": {"b": value(&grown)}});
    stored(&server, "t", body).await;
    let bytes = server.get("/threads/t/storage").await.ok()["channel_values"]["bytes"].as_i64().expect("bytes");
    assert!(bytes < 180_000, "{bytes} for twice 160 000");
    assert_eq!(server.get("/threads/t").await.ok()["status"], "idle");
}

#[tokio::test]
async fn frames_mean_the_same_as_base64() {
    let server = TestServer::start().await;
    let kind = "application/vnd.session-store.frame";
    let headers = [("accept", kind), ("content-type", kind)];
    let header = put("c1", None, &json!({"type": "msgpack", "bytes": [3, 200]})).to_string();
    let bytes: Vec<u8> = (0..=255).collect();
    let frame = [&u32::try_from(header.len()).expect("short").to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    let (status, _) = server.send_bytes("POST", "/threads/t/checkpoints", &headers, frame.clone()).await;
    assert_eq!(status, 200);
    let found = server.get("/threads/t/checkpoints/c1").await.ok();
    assert_eq!(found["values"]["a"]["base64"], STANDARD.encode(&bytes[3..203]));
    let (_, read) = server.send_bytes("GET", "/threads/t/checkpoints/latest", &headers, Vec::new()).await;
    let length = u32::from_le_bytes(read[..4].try_into().expect("four")) as usize;
    let shown: Value = serde_json::from_slice(&read[4..4 + length]).expect("JSON");
    assert_eq!(shown["values"]["a"]["bytes"], json!([0, 200]));
    assert_eq!(&read[4 + length..], &bytes[3..203]);
    for (bad, why) in [
        (b"\x01".to_vec(), "begins with the length"),
        (b"\xff\xff\xff\x7f{}".to_vec(), "shorter than its header"),
        (frame[..frame.len() - 100].to_vec(), "values.a.bytes"),
    ] {
        let (status, text) = server.send_bytes("POST", "/threads/t/checkpoints", &headers, bad).await;
        assert_eq!((status, String::from_utf8_lossy(&text).contains(why)), (422, true), "{why}");
    }
}

#[tokio::test]
async fn what_the_thread_has_need_not_be_sent() {
    let server = TestServer::start().await;
    let bytes = [7; 500];
    let hash = hex(&hash_of(&bytes));
    let known = json!({"type": "msgpack", "hash": hash});
    refused(&server.post("/threads/t/checkpoints", put("c1", None, &known)).await, 409, &hash);
    assert_eq!(server.get("/threads/t").await.status, 404);
    stored(&server, "t", put("c1", None, &value(&bytes))).await;
    stored(&server, "t", put("c2", Some("c1"), &known)).await;
    let found = server.get("/threads/t/checkpoints/c2").await.ok();
    assert_eq!(found["values"]["a"]["base64"], STANDARD.encode(bytes));
    let many = json!({"threads": [
        {"thread_id": "u", "operations": [{"op": "put", "checkpoint": document("c1", json!({"a": 1})), "values": {"a": known}}]},
        {"thread_id": "v", "operations": [{"op": "put", "checkpoint": document("c1", json!({}))},
                                          {"op": "put_writes", "checkpoint_id": "c1", "task_id": "x", "writes": []}]},
        {"thread_id": "no good", "operations": []},
        {"thread_id": "w", "operations": [{"op": "drop"}]},
    ]});
    let results = server.post("/checkpoints/batch", many).await.ok()["results"].clone();
    assert_eq!(results[0]["missing_hashes"], json!([hash]));
    let statuses: Vec<&Value> = results.as_array().expect("a list").iter().map(|result| &result["status"]).collect();
    assert_eq!(json!(statuses), json!([409, 204, 422, 422]));
    assert!(results[3]["detail"].as_str().expect("a text").starts_with("threads[3].operations[0].op"), "{results}");
}

/// The server need not look at what it has stored a moment ago; unless that is gone.
#[tokio::test]
async fn what_was_removed_meanwhile_is_stored_anew() {
    let server = TestServer::start().await;
    let large: Vec<u8> = (0..40_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let grown = [&large[..], b"more"].concat();
    let bytes =
        async || server.get("/threads/t/storage").await.ok()["channel_values"]["bytes"].as_i64().expect("bytes");
    let is_read = async |id: &str, expected: &[u8]| {
        let found = server.get(&format!("/threads/t/checkpoints/{id}")).await.ok();
        assert_eq!(found["values"]["a"]["base64"], STANDARD.encode(expected), "{id}");
    };
    stored(&server, "t", put("c1", None, &value(&large))).await;
    stored(&server, "t", put("c2", Some("c1"), &value(&grown))).await;
    is_read("c2", &grown).await;
    stored(&server, "t", put("c3", Some("c2"), &value(b"small"))).await;
    server.post("/threads/prune", json!({"thread_ids": ["t"], "strategy": "keep_latest"})).await.ok();
    assert!(bytes().await < 100);
    // Both in one request, each a batch of its own: what the first was refused for, the second needs.
    let operation = |id: &str, parent: &str, bytes: &[u8]| {
        let mut operation = put(id, Some(parent), &value(bytes));
        operation["op"] = json!("put");
        json!({"thread_id": "t", "operations": [operation]})
    };
    let both = json!({"threads": [operation("c4", "c3", &grown), operation("c5", "c4", &large)]});
    let results = server.post("/checkpoints/batch", both).await.ok()["results"].clone();
    assert_eq!(results, json!([{"status": 204}, {"status": 204}]));
    is_read("c4", &grown).await;
    is_read("c5", &large).await;
    assert!(bytes().await < 180_000);
    assert_eq!(server.send("DELETE", "/threads/t", String::new()).await.status, 204);
    stored(&server, "t", put("c1", None, &value(&large))).await;
    is_read("c1", &large).await;
    // A hash that the thread does not have is told, whatever it was known to have.
    let nothing = json!({"type": "msgpack", "hash": hex(&hash_of(b"nothing"))});
    refused(&server.post("/threads/t/checkpoints", put("c2", Some("c1"), &nothing)).await, 409, "has no bytes");
}

#[tokio::test]
async fn a_batch_is_all_or_nothing() {
    let server = TestServer::start().await;
    let mut first = put("c1", None, &value(b"1"));
    first["op"] = json!("put");
    let mut second = put("c3", Some("c2"), &value(b"1"));
    second["op"] = json!("put");
    let bad = json!({"operations": [first, second]});
    refused(&server.post("/threads/t/checkpoints/batch", bad).await, 409, "parent_checkpoint_id: checkpoint c2");
    assert_eq!(server.get("/threads/t/checkpoints").await.status, 404);
    second["parent_checkpoint_id"] = json!("c1");
    let writes = json!({"op": "put_writes", "checkpoint_id": "c3", "task_id": "x", "writes": [{"channel": "a", "type": "null", "base64": ""}]});
    let good = json!({"operations": [first, second, writes]});
    for _ in 0..2 {
        assert_eq!(server.post("/threads/t/checkpoints/batch", good.clone()).await.status, 204);
    }
    let found = server.get("/threads/t/checkpoints/latest").await.ok();
    assert_eq!(
        (&found["parent_checkpoint_id"], found["pending_writes"].as_array().map(Vec::len)),
        (&json!("c1"), Some(1))
    );
}

#[tokio::test]
async fn lists_are_filtered_ordered_and_paged() {
    let server = TestServer::start().await;
    for step in 0..5 {
        let body = json!({"checkpoint": document(&format!("c{step}"), json!({})),
                          "metadata": {"step": step, "source": if step % 2 == 0 { "loop" } else { "input" }, "tags": ["x"]}});
        stored(&server, "t", body).await;
    }
    let inner = json!({"checkpoint_ns": "inner:1", "checkpoint": document("c9", json!({})), "metadata": {"step": 0}});
    stored(&server, "t", inner).await;
    let search = async |body: Value| -> Vec<String> {
        let found = server.post("/threads/t/checkpoints/search", body).await.ok();
        let found = found.as_array().expect("a list").clone();
        found.iter().map(|found| found["checkpoint_id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(search(json!({})).await, ["c4", "c3", "c2", "c1", "c0", "c9"]);
    assert_eq!(search(json!({"checkpoint_ns": "", "limit": 2})).await, ["c4", "c3"]);
    assert_eq!(search(json!({"checkpoint_ns": "", "before": "c2"})).await, ["c1", "c0"]);
    assert_eq!(search(json!({"after": {"checkpoint_id": "c1"}})).await, ["c0", "c9"]);
    assert_eq!(search(json!({"metadata": {"source": "input"}})).await, ["c3", "c1"]);
    assert_eq!(search(json!({"metadata": {"step": 4, "tags": ["x"]}})).await, ["c4"]);
    assert!(search(json!({"metadata": {"step": 4, "tags": []}})).await.is_empty());
    assert_eq!(search(json!({"metadata": {"step": 4.0}})).await, ["c4"], "one number");
    assert!(search(json!({"metadata": {"step": "4"}})).await.is_empty());
    assert!(search(json!({"metadata": {"step": true}})).await.is_empty());
    assert!(
        server.post("/threads/nowhere/checkpoints/search", json!({})).await.ok().as_array().expect("a list").is_empty()
    );
    let page = server.get("/threads/t/checkpoints?limit=2").await;
    assert_eq!(page.header("x-pagination-next"), Some("c3"));
    assert_eq!(server.get("/threads/t/checkpoints?limit=2&before=c3").await.ok()[0]["checkpoint_id"], "c2");
    assert_eq!(server.get("/threads/t/checkpoints?ns=inner%3A1").await.ok()[0]["checkpoint_id"], "c9");
}

#[tokio::test]
async fn deltas_follow_parents_up_to_a_seed() {
    let server = TestServer::start().await;
    let chain = [("c1", None), ("c2", Some("c1")), ("c3", Some("c2")), ("side", Some("c1")), ("c4", Some("c3"))];
    for (id, parent) in chain {
        let mut body = put(id, parent, &value(id.as_bytes()));
        if id != "c1" {
            body["values"] = json!({});
        }
        body["metadata"]["counters_since_delta_snapshot"] = json!({"a": [1, 1]});
        stored(&server, "t", body).await;
        let write =
            |task: &str| json!({"channel": "a", "type": "bytes", "base64": STANDARD.encode(format!("{id}{task}"))});
        for (task, path) in [("x", "2"), ("y", "1")] {
            let body = json!({"checkpoint_id": id, "task_id": task, "task_path": path, "writes": [write(task)]});
            assert_eq!(server.post("/threads/t/checkpoints/writes", body).await.status, 204);
        }
    }
    let deltas = async |body: Value| server.post("/threads/t/checkpoints/deltas", body).await.ok()["channels"].clone();
    let texts = |channel: &Value| -> Vec<String> {
        let writes = channel["writes"].as_array().expect("a list").clone();
        writes
            .iter()
            .map(|write| {
                String::from_utf8(STANDARD.decode(write["base64"].as_str().expect("text")).expect("base64"))
                    .expect("text")
            })
            .collect()
    };
    let found = deltas(json!({"checkpoint_id": "c4", "channels": ["a", "b"]})).await;
    assert_eq!(texts(&found["a"]), ["c1y", "c1x", "c2y", "c2x", "c3y", "c3x"]);
    assert_eq!(found["a"]["seed"]["base64"], STANDARD.encode("c1"));
    assert_eq!(found["b"], json!({"writes": []}));
    assert_eq!(texts(&deltas(json!({"checkpoint_id": "side", "channels": ["a"]})).await["a"]), ["c1y", "c1x"]);
    // Pruning keeps what the latest one is rebuilt from.
    let pruned = server.post("/threads/prune", json!({"thread_ids": ["t"], "strategy": "keep_latest"})).await.ok();
    assert_eq!(pruned["pruned_count"], 1);
    let left = server.get("/threads/t/checkpoints").await.ok();
    let left: Vec<&Value> = left.as_array().expect("a list").iter().map(|row| &row["checkpoint_id"]).collect();
    assert_eq!(json!(left), json!(["side", "c1"]), "the greatest id is the latest");
    assert_eq!(deltas(json!({"channels": ["a"]})).await["a"]["seed"]["base64"], STANDARD.encode("c1"));
}

#[tokio::test]
async fn parents_that_go_round_in_circles_end_somewhere() {
    let server = TestServer::start().await;
    let with_deltas = |id: &str, parent: Option<&str>| {
        let mut body = put(id, parent, &value(b"1"));
        body["metadata"]["counters_since_delta_snapshot"] = json!({"z": 1});
        body
    };
    stored(&server, "t", with_deltas("c1", None)).await;
    let own = with_deltas("c1", Some("c1"));
    refused(&server.post("/threads/t/checkpoints", own).await, 422, "parent_checkpoint_id: must be another checkpoint");
    stored(&server, "t", with_deltas("c2", Some("c1"))).await;
    stored(&server, "t", with_deltas("c1", Some("c2"))).await;
    for id in ["c1", "c2"] {
        let body = json!({"checkpoint_id": id, "channels": ["z"]});
        let found = server.post("/threads/t/checkpoints/deltas", body).await.ok();
        assert_eq!(found, json!({"channels": {"z": {"writes": []}}}));
    }
    let pruned = server.post("/threads/prune", json!({"thread_ids": ["t"], "strategy": "keep_latest"})).await.ok();
    assert_eq!(pruned["pruned_count"], 1);
}

#[tokio::test]
async fn threads_are_copied_pruned_and_deleted() {
    let server = TestServer::start().await;
    for (id, parent, run) in [("c1", None, "r1"), ("c2", Some("c1"), "r2")] {
        let mut body = put(id, parent, &value(&[id.as_bytes()[1]; 3000]));
        body["metadata"]["run_id"] = json!(run);
        stored(&server, "t", body).await;
    }
    let copy = |to: &str| json!({"thread_id": to});
    assert_eq!(server.post("/threads/t/checkpoints/copy", copy("u")).await.ok(), json!({"thread_id": "u"}));
    refused(&server.post("/threads/t/checkpoints/copy", copy("u")).await, 409, "thread u exists");
    assert_eq!(server.post("/threads/nowhere/checkpoints/copy", copy("v")).await.status, 404);
    assert_eq!(
        server.post("/checkpoints/delete", json!({"run_ids": ["r1", "r9"]})).await.ok(),
        json!({"deleted_count": 2})
    );
    for thread in ["t", "u"] {
        let rows = server.get(&format!("/threads/{thread}/checkpoints")).await.ok();
        assert_eq!(rows.as_array().map(Vec::len), Some(1));
        let found = server.get(&format!("/threads/{thread}/checkpoints/latest")).await.ok();
        assert_eq!((&found["checkpoint_id"], &found["parent_checkpoint_id"]), (&json!("c2"), &Value::Null));
        let sizes = server.get(&format!("/threads/{thread}/storage")).await.ok();
        assert!(sizes["channel_values"]["bytes"].as_i64().expect("bytes") < 3500, "the other value is gone: {sizes}");
    }
    assert_eq!(server.send("DELETE", "/threads/t", String::new()).await.status, 204);
    let late = json!({"checkpoint_id": "c2", "task_id": "x", "writes": []});
    assert_eq!(server.post("/threads/t/checkpoints/writes", late).await.status, 404);
    refused(
        &server.post("/threads/t/checkpoints", put("c3", Some("c2"), &value(b"1"))).await,
        409,
        "parent_checkpoint_id",
    );
}

#[tokio::test]
async fn a_thread_is_native_or_foreign() {
    let server = TestServer::start().await;
    server.post("/threads/native/runs/wait", json!({"assistant_id": "counter", "input": {"counter": 0}})).await.ok();
    refused(
        &server.post("/threads/native/checkpoints", put("c1", None, &value(b"1"))).await,
        409,
        "thread_id: graphs of this server ran",
    );
    stored(&server, "t", put("c1", None, &value(b"1"))).await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    for path in ["/threads/t/runs/wait", "/threads/t/runs", "/threads/t/runs/stream"] {
        refused(&server.post(path, run.clone()).await, 409, "runs elsewhere");
    }
    refused(&server.post("/threads/t/state", json!({"values": {"a": 1}})).await, 409, "runs elsewhere");
    let latest = server.get("/threads/native/checkpoints/latest").await;
    assert_eq!(latest.status, 404, "{latest:?}");
}

#[tokio::test]
async fn two_writers_are_told_apart_when_they_ask() {
    let server = TestServer::start().await;
    let mut first = put("c1", None, &value(b"1"));
    first["if_latest"] = Value::Null;
    stored(&server, "t", first.clone()).await;
    first["checkpoint"]["id"] = json!("c2");
    refused(
        &server.post("/threads/t/checkpoints", first.clone()).await,
        409,
        "if_latest: the latest checkpoint of thread t in namespace '' is c1",
    );
    first["if_latest"] = json!("c1");
    stored(&server, "t", first).await;
}

#[tokio::test]
async fn bad_checkpoints_are_refused_by_field() {
    let server = TestServer::start().await;
    let good = put("c1", None, &value(b"1"));
    let with = |pointer: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).expect("a member") = value;
        bad
    };
    let long = "x".repeat(300);
    for (bad, why) in [
        (json!({}), "checkpoint: field required"),
        (json!([]), "expected an object"),
        (with("/checkpoint", json!([])), "checkpoint: expected an object"),
        (with("/checkpoint/id", Value::Null), "checkpoint.id: field required"),
        (with("/checkpoint/id", json!(7)), "checkpoint.id: expected a string"),
        (with("/checkpoint/id", json!("latest")), "checkpoint.id: must be"),
        (with("/checkpoint/id", json!(long)), "checkpoint.id: must be"),
        (with("/checkpoint/id", json!("a\u{0}")), "checkpoint.id: must not contain NUL"),
        (
            with("/checkpoint/channel_versions", json!({"a": []})),
            "checkpoint.channel_versions.a: must be a string or a number",
        ),
        (
            with("/checkpoint/channel_versions", json!({"b": 1})),
            "values.a: has no version in checkpoint.channel_versions",
        ),
        (with("/checkpoint/channel_versions", json!(3)), "checkpoint.channel_versions: expected an object"),
        (with("/metadata", json!([1])), "metadata: expected an object"),
        (with("/values", json!([1])), "values: expected an object"),
        (with("/values/a", json!(1)), "values.a: expected an object"),
        (with("/values/a", json!({"base64": ""})), "values.a.type: field required"),
        (with("/values/a/type", json!("")), "values.a.type: must be"),
        (with("/values/a/type", json!("a b")), "values.a.type: must be"),
        (with("/values/a/type", json!(["json"])), "values.a.type: expected a string"),
        (with("/values/a/base64", json!("?")), "values.a.base64:"),
        (with("/values/a/base64", json!(5)), "values.a.base64: expected a string"),
        (with("/values/a", json!({"type": "json"})), "values.a.type: one of base64, bytes and hash"),
        (with("/values/a", json!({"type": "json", "hash": "xyz"})), "values.a.hash: must be 32"),
        (with("/values/a", json!({"type": "json", "bytes": [0, 0]})), "values.a.bytes: only in a body of the type"),
        (with("/parent_checkpoint_id", json!({})), "parent_checkpoint_id: expected a string"),
    ] {
        refused(&server.post("/threads/t/checkpoints", bad.clone()).await, 422, why);
        assert_eq!(server.get("/threads/t").await.status, 404, "nothing half-written by {bad}");
    }
    refused(
        &server.post("/threads/t/checkpoints", put("c2", Some("c1"), &value(b"1"))).await,
        409,
        "parent_checkpoint_id: checkpoint c1 is not on thread t",
    );
    let mut free = put("c2", Some("c1"), &value(b"1"));
    free["allow_missing_parent"] = json!(true);
    stored(&server, "free", free).await;
    let mut inside = good.clone();
    inside["checkpoint"]["channel_values"] = json!({"a": 1});
    refused(&server.post("/threads/t/checkpoints", inside).await, 422, "checkpoint.channel_values: must be empty");
    for (bad, why) in [
        (json!({"task_id": "x", "writes": []}), "checkpoint_id: field required"),
        (json!({"checkpoint_id": "c", "writes": []}), "task_id: field required"),
        (json!({"checkpoint_id": "c", "task_id": "x"}), "writes: field required"),
        (
            json!({"checkpoint_id": "c", "task_id": "x", "writes": [{"type": "json", "base64": ""}]}),
            "writes[0].channel: field required",
        ),
        (
            json!({"checkpoint_id": "c", "task_id": "x", "writes": [{"channel": "a", "idx": -1000, "type": "json", "base64": ""}]}),
            "writes[0].idx",
        ),
    ] {
        refused(&server.post("/threads/t/checkpoints/writes", bad).await, 422, why);
    }
    let big = "x".repeat(33 * 1024 * 1024);
    assert_eq!(server.send("POST", "/threads/t/checkpoints", big).await.status, 413);
    for path in ["/threads/a%20b/checkpoints/latest", "/threads/t/checkpoints/search?x"] {
        let status = server.post(path, json!({"limit": 0})).await.status;
        assert!([405, 422].contains(&status), "{path}: {status}");
    }
}

/// What LangGraph puts for a run that waits for a human: two messages, a value that is no JSON, one that cannot be read.
pub(super) async fn waiting(server: &TestServer, thread: &str) {
    let message = b"\x91\xc7\x3a\x05\x94\xbdlangchain_core.messages.human\xacHumanMessage\x81\xa7content\xa2Hi\xa1x";
    let versions =
        json!({"messages": 2, "branch:to:approve": 3, "branch:to:agent": 2, "raw": 1, "secret": 1, "__start__": 2});
    let mut body = json!({
        "checkpoint": document("1efa0000-0000-6000-8000-000000000002", versions),
        "metadata": {"source": "loop", "step": 1, "parents": {}},
        "values": {"messages": value(message), "branch:to:approve": {"type": "null", "base64": ""},
                   "raw": {"type": "bytes", "base64": "AP8="}, "secret": {"type": "msgpack+aes", "base64": "AAAA"}},
    });
    body["checkpoint"]["versions_seen"] = json!({"agent": {"branch:to:agent": 2}, "approve": {"branch:to:approve": 1}});
    stored(server, thread, body).await;
    let asked = json!([{"value": {"question": "ok?"}, "id": "abc"}]).to_string();
    let writes = json!({"checkpoint_id": "1efa0000-0000-6000-8000-000000000002", "task_id": "task-1",
                        "task_path": "~__pregel_pull, approve",
                        "writes": [{"channel": "__interrupt__", "type": "json", "base64": STANDARD.encode(asked)}]});
    assert_eq!(server.post(&format!("/threads/{thread}/checkpoints/writes"), writes).await.status, 204);
}

#[tokio::test]
async fn states_are_shown_decoded() {
    let server = TestServer::start().await;
    waiting(&server, "t").await;
    let state = server.get("/threads/t/state").await.ok();
    assert_eq!(state["values"]["messages"], json!([{"content": "Hi"}]));
    assert_eq!((&state["values"]["raw"]["type"], &state["values"]["raw"]["size"]), (&json!("bytes"), &json!(2)));
    assert_eq!(state["values"]["secret"]["type"], "msgpack+aes");
    assert_eq!(state["values"].as_object().map(|values| values.len()), Some(3), "no triggers");
    assert_eq!(state["next"], json!(["approve"]));
    assert_eq!(state["interrupts"], json!([{"id": "abc", "value": {"question": "ok?"}}]));
    assert_eq!((&state["tasks"][0]["name"], &state["tasks"][0]["id"]), (&json!("approve"), &json!("task-1")));
    assert_eq!(state["created_at"], "2026-01-01T00:00:00.000000+00:00");
    let id = "1efa0000-0000-6000-8000-000000000002";
    assert_eq!(state["checkpoint"], json!({"checkpoint_id": id, "thread_id": "t", "checkpoint_ns": ""}));
    assert_eq!(server.get(&format!("/threads/t/state/{id}")).await.ok(), state);
    assert_eq!(server.get("/threads/t/history").await.ok(), json!([state]));
    assert_eq!(server.post("/threads/t/history", json!({"metadata": {"step": 2}})).await.ok(), json!([]));
    let thread = server.get("/threads/t").await.ok();
    assert_eq!((&thread["status"], &thread["values"]), (&json!("interrupted"), &state["values"]));
    assert_eq!(thread["interrupts"], json!({"task-1": [{"id": "abc", "value": {"question": "ok?"}}]}));
    let found = server.post("/threads/search", json!({"status": "interrupted"})).await.ok();
    assert_eq!(found[0]["values"], state["values"]);
}
