//! Crons: made, changed, found, and fired.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use session_store::model::{Cron, Scope, Timestamp};
use uuid::Uuid;

use super::webhooks::server as listened_to;
use crate::support::receiver::Receiver;
use crate::support::server::TestServer;

fn counter() -> Value {
    json!({"assistant_id": "counter", "schedule": "0 9 * * 1-5", "input": {"counter": 0}})
}

fn with(more: Value) -> Value {
    let mut body = counter();
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn crons_are_made_read_changed_and_deleted() {
    let server = TestServer::start().await;
    let body = with(json!({"timezone": "Europe/Berlin", "metadata": {"team": "a", "run_id": "x"}, "context": {"c": 1},
                           "end_time": "2099-01-01T00:00:00"}));
    let cron = server.post("/runs/crons", body.clone()).await.ok();
    let id = cron["cron_id"].as_str().expect("an id");
    assert_eq!(Uuid::try_parse(id).expect("a UUID").get_version_num(), 7);
    assert_eq!(
        (&cron["schedule"], &cron["timezone"], &cron["enabled"], &cron["thread_id"], &cron["on_run_completed"]),
        (&json!("0 9 * * 1-5"), &json!("Europe/Berlin"), &json!(true), &Value::Null, &json!("delete"))
    );
    assert_eq!((&cron["metadata"], &cron["user_id"]), (&json!({"team": "a"}), &Value::Null));
    assert_eq!(cron["end_time"], "2099-01-01T00:00:00.000000+00:00");
    assert_eq!(cron["payload"]["input"], json!({"counter": 0}));
    assert_eq!(cron["payload"]["config"]["configurable"], json!({"cron_id": id}));
    let next = Timestamp::parse(cron["next_run_date"].as_str().expect("a date")).expect("a time");
    assert!(next > Timestamp::parse(cron["created_at"].as_str().expect("a date")).expect("a time"));
    let place = format!("/runs/crons/{id}");
    assert_eq!(server.get(&place).await.ok(), cron);

    let changed = server.send("PATCH", &place, r#"{"end_time":null,"schedule":"30 8 * * *"}"#).await.ok();
    assert_eq!((&changed["end_time"], &changed["schedule"]), (&Value::Null, &json!("30 8 * * *")));
    assert_eq!((&changed["timezone"], &changed["metadata"]), (&cron["timezone"], &cron["metadata"]));
    assert_ne!(changed["next_run_date"], cron["next_run_date"]);
    let changed = server.send("PATCH", &place, r#"{"enabled":false,"input":{"counter":2}}"#).await.ok();
    assert_eq!((&changed["enabled"], &changed["payload"]["input"]), (&json!(false), &json!({"counter": 2})));
    assert_eq!(changed["payload"]["context"], json!({"c": 1}));
    let text = server.send("PATCH", &place, "{}").await.refused(400);
    assert!(text.contains("at least one field"), "{text}");
    server.send("PATCH", &place, r#"{"foo":1,"cron_id":"x"}"#).await.refused(400);
    let ending = server.send("PATCH", &place, r#"{"foo":1,"end_time":"2130-01-01"}"#).await.ok();
    assert_eq!(ending["end_time"], "2130-01-01T00:00:00.000000+00:00", "a date is where it begins");
    assert_eq!(ending["payload"].get("foo"), None);
    server.send("PATCH", &place, r#"{"schedule":"nope"}"#).await.refused(422);
    assert_eq!(server.get(&place).await.ok()["schedule"], "30 8 * * *", "a refused change changes nothing");
    assert_eq!(server.send("DELETE", &place, "").await.status, 204);
    for method in ["GET", "PATCH", "DELETE"] {
        assert_eq!(server.send(method, &place, r#"{"enabled":true}"#).await.refused(404), "Cron not found");
    }
}

#[tokio::test]
async fn bad_crons_are_refused_by_name() {
    let server = TestServer::start().await;
    for (more, field) in [
        (json!({"schedule": null}), "schedule"),
        (json!({"schedule": "* * * *"}), "schedule"),
        (json!({"schedule": "0 * * * * *"}), "schedule"),
        (json!({"schedule": "0 0 30 2 *"}), "schedule"),
        (json!({"timezone": "Mars/Olympus"}), "timezone"),
        (json!({"end_time": "soon"}), "end_time"),
        (json!({"on_run_completed": "explode"}), "on_run_completed"),
        (json!({"enabled": "yes"}), "enabled"),
        (json!({"webhook": "/relative"}), "webhook"),
        (json!({"assistant_id": "nobody"}), "Invalid assistant"),
    ] {
        let text = server.post("/runs/crons", with(more)).await.refused(422);
        assert!(text.starts_with(field), "{text}");
    }
    server.post("/runs/crons", with(json!({"assistant_id": Uuid::nil()}))).await.refused(404);
    server.post("/threads/nobody/runs/crons", counter()).await.refused(404);
    server.post("/runs/crons/search", json!({"assistant_id": "counter"})).await.refused(422);
    server.post("/runs/crons/search", json!({"sort_by": "schedule"})).await.refused(422);
    server.get("/runs/crons/nope").await.refused(422);
    assert_eq!(server.post("/runs/crons/count", json!({})).await.ok(), json!(0));
}

#[tokio::test]
async fn crons_are_found_and_go_with_their_thread() {
    let server = TestServer::start().await;
    let thread = server.thread().await;
    let free = server.post("/runs/crons", with(json!({"metadata": {"a": 1}}))).await.ok();
    let bound = server.post(&format!("/threads/{thread}/runs/crons"), counter()).await.ok();
    assert_eq!((&bound["thread_id"], &bound["on_run_completed"]), (&json!(thread), &Value::Null));
    let page = json!({"limit": 1, "sort_order": "asc", "select": ["cron_id"]});
    let first = server.post("/runs/crons/search", page).await;
    assert_eq!(first.header("x-pagination-next"), Some("1"));
    assert_eq!(first.ok(), json!([{"cron_id": free["cron_id"]}]));
    let found = server.post("/runs/crons/search", json!({"thread_id": thread})).await.ok();
    assert_eq!((found.as_array().map(Vec::len), &found[0]), (Some(1), &bound));
    let by_metadata = json!({"metadata": {"a": 1}, "assistant_id": free["assistant_id"]});
    assert_eq!(server.post("/runs/crons/count", by_metadata).await.ok(), json!(1));
    assert_eq!(server.send("DELETE", &format!("/threads/{thread}"), "").await.status, 204);
    assert_eq!(server.post("/runs/crons/count", json!({})).await.ok(), json!(1));
}

/// Moves the cron's next date into the past: what waiting would do.
async fn make_due(server: &TestServer, cron: &Value, date: Timestamp) {
    let id = Uuid::try_parse(cron["cron_id"].as_str().expect("an id")).expect("a UUID");
    let storage = server.runtime.storage();
    let found = storage.find_cron(&Scope::default(), id).await.expect("reads").expect("is there");
    let due = Cron { next_run_date: Some(date), ..found };
    storage.replace_cron(&Scope::default(), due).await.expect("replaced");
}

async fn eventually(what: &str, mut look: impl AsyncFnMut() -> Option<Value>) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The runs of a thread, once there are any and all have ended.
async fn ended_runs(server: &TestServer, thread: &str) -> Value {
    eventually("the cron's run ends", async || {
        let runs = server.get(&format!("/threads/{thread}/runs")).await.ok();
        let all = runs.as_array().expect("a list");
        let ended = |run: &Value| !matches!(run["status"].as_str(), Some("pending" | "running"));
        (!all.is_empty() && all.iter().all(ended)).then_some(runs)
    })
    .await
}

#[tokio::test]
async fn missed_ticks_are_made_up_for_by_one_run() {
    let server = TestServer::start().await;
    let thread = server.thread().await;
    let body = with(json!({"schedule": "* * * * *", "metadata": {"m": 1}}));
    let cron = server.post(&format!("/threads/{thread}/runs/crons"), body).await.ok();
    let now = server.runtime.storage().database_time(&Scope::default()).await.expect("a time");
    // An hour of ticks was missed.
    make_due(&server, &cron, Timestamp(now.0 - 3_600_000_000)).await;
    let runs = ended_runs(&server, &thread).await;
    // One for the missed ticks; a full minute may have passed since, with a tick of its own.
    assert!((1..=2).contains(&runs.as_array().expect("a list").len()), "{runs}");
    let run = &runs[0];
    assert_eq!((&run["status"], &run["kwargs"]["input"]), (&json!("success"), &json!({"counter": 0})));
    assert_eq!(run["kwargs"]["config"]["configurable"]["cron_id"], cron["cron_id"]);
    assert_eq!(run["metadata"]["m"], 1);
    let state = server.get(&format!("/threads/{thread}/state")).await.ok();
    assert_eq!((&state["values"], &state["metadata"]["cron_id"]), (&json!({"counter": 3}), &cron["cron_id"]));
    let after = server.get(&format!("/runs/crons/{}", cron["cron_id"].as_str().expect("an id"))).await.ok();
    let next = Timestamp::parse(after["next_run_date"].as_str().expect("a date")).expect("a time");
    assert!(next > now, "the date lies ahead again");
}

#[tokio::test]
async fn ticks_that_are_too_late_or_after_the_end_are_left_out() {
    let server = TestServer::start().await;
    let late = server.thread().await;
    // Daily, and missed by more than `catch_up` (a day): only the newest tick counts, which is a leap year old.
    let yearly = with(json!({"schedule": "0 0 29 2 *"}));
    let cron = server.post(&format!("/threads/{late}/runs/crons"), yearly).await.ok();
    make_due(&server, &cron, Timestamp(1_000)).await;
    let place = format!("/runs/crons/{}", cron["cron_id"].as_str().expect("an id"));
    eventually("the date moves on", async || {
        let found = server.get(&place).await.ok();
        (found["next_run_date"] == cron["next_run_date"]).then_some(found)
    })
    .await;
    assert_eq!(server.get(&format!("/threads/{late}/runs")).await.ok(), json!([]));

    let ended = with(json!({"schedule": "* * * * *", "end_time": "2020-01-01T00:00:00Z"}));
    let ended = server.post("/runs/crons", ended).await.ok();
    assert_eq!(ended["next_run_date"], Value::Null, "it never comes");
}

#[tokio::test]
async fn threads_of_crons_are_kept_or_deleted() {
    let server = TestServer::start().await;
    let now = server.runtime.storage().database_time(&Scope::default()).await.expect("a time");
    let kept = with(json!({"schedule": "* * * * *", "on_run_completed": "keep"}));
    let cron = server.post("/runs/crons", kept).await.ok();
    make_due(&server, &cron, now).await;
    let threads = eventually("a thread with the result", async || {
        let found = server.post("/threads/search", json!({"values": {"counter": 3}})).await.ok();
        (found != json!([])).then_some(found)
    })
    .await;
    assert_eq!(threads[0]["metadata"]["graph_id"], "counter");
    let gone = server.post("/runs/crons", with(json!({"schedule": "0 0 1 1 *"}))).await.ok();
    assert_eq!(gone["on_run_completed"], "delete");
}

#[tokio::test]
async fn an_ended_thread_takes_no_crons_and_those_it_has_rest() {
    let server = TestServer::start().await;
    let thread = server.thread().await;
    let place = format!("/threads/{thread}/runs/crons");
    let cron = server.post(&place, with(json!({"schedule": "0 0 1 1 *"}))).await.ok();
    server.post(&format!("/threads/{thread}/end"), json!({"reason": "done"})).await.ok();
    let text = server.post(&place, counter()).await.refused(409);
    assert!(text.starts_with(&format!("Thread {thread} was ended at ")) && text.contains("(done)"), "{text}");
    let now = server.runtime.storage().database_time(&Scope::default()).await.expect("a time");
    make_due(&server, &cron, now).await;
    let own = format!("/runs/crons/{}", cron["cron_id"].as_str().expect("an id"));
    eventually("the cron rests", async || {
        let found = server.get(&own).await.ok();
        (found["enabled"] == false).then_some(found)
    })
    .await;
    assert_eq!(server.get(&format!("/threads/{thread}/runs")).await.ok(), json!([]));
    // Opened again, it goes on when somebody says so.
    server.post(&format!("/threads/{thread}/reopen"), json!({})).await.ok();
    server.send("PATCH", &own, json!({"enabled": true}).to_string()).await.ok();
    // Another tick: each is fired once.
    make_due(&server, &cron, Timestamp(now.0 - 1_000_000)).await;
    ended_runs(&server, &thread).await;
}

#[tokio::test]
async fn a_paused_cron_fires_nothing_and_goes_on_when_resumed() {
    let server = TestServer::start().await;
    let thread = server.thread().await;
    let body = with(json!({"schedule": "0 0 1 1 *", "enabled": false}));
    let paused = server.post(&format!("/threads/{thread}/runs/crons"), body.clone()).await.ok();
    let other = server.thread().await;
    let awake = server.post(&format!("/threads/{other}/runs/crons"), with(json!({"schedule": "0 0 1 1 *"}))).await.ok();
    let now = server.runtime.storage().database_time(&Scope::default()).await.expect("a time");
    make_due(&server, &paused, now).await;
    make_due(&server, &awake, now).await;
    // What was due beside it has run.
    ended_runs(&server, &other).await;
    assert_eq!(server.get(&format!("/threads/{thread}/runs")).await.ok(), json!([]));
    let own = format!("/runs/crons/{}", paused["cron_id"].as_str().expect("an id"));
    let resumed = server.send("PATCH", &own, json!({"enabled": true}).to_string()).await.ok();
    let next = Timestamp::parse(resumed["next_run_date"].as_str().expect("a date")).expect("a time");
    assert!(next > now, "what passed during the pause is not made up for");
    make_due(&server, &paused, now).await;
    ended_runs(&server, &thread).await;
}

#[tokio::test]
async fn a_cron_may_leave_no_thread_behind() {
    let server = listened_to(3).await;
    let mut receiver = Receiver::start().await;
    receiver.answer(200);
    let body = json!({"schedule": "0 0 1 1 *", "on_run_completed": "delete", "webhook": receiver.url});
    let cron = server.post("/runs/crons", with(body)).await.ok();
    let now = server.runtime.storage().database_time(&Scope::default()).await.expect("a time");
    make_due(&server, &cron, now).await;
    // The run is known by what it told when it had ended.
    let told = receiver.next().await.json();
    assert_eq!((&told["status"], &told["values"]), (&json!("success"), &json!({"counter": 3})), "{told}");
    server.until("its thread is gone", async || server.post("/threads/count", json!({})).await.ok() == json!(0)).await;
}
