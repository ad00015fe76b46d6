//! Humans in the loop: questions with a shape, strict resume, the inbox, answers, and who did what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{Checkpointing, Context, Destination, END, Graph, Question, START, StateGraph, send};
use session_store::http::{ApiKey, HttpSettings};
use session_store::model::Json;
use session_store::update;

use crate::support::server::{Answer, TestServer};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Log {
    log: Vec<String>,
}

/// The answer to a typed question.
#[derive(Deserialize, JsonSchema)]
struct Decision {
    ok: bool,
}

/// A node that asks `question`, and then notes the answer.
async fn asks(ctx: Context, question: Value) -> Result<session_store::graph::Update, session_store::graph::NodeError> {
    let answer = ctx.interrupt(question)?;
    Ok(update!(Log { log: vec![answer.text()] }))
}

/// Asks for a decision, twice: typed, and then for anything, showing a schema.
fn review() -> Graph {
    let graph = StateGraph::<Log>::new("review")
        .append("log")
        .node("ask", async |_: Log, ctx: Context| {
            let decision: Decision = ctx.ask("publish?")?;
            let schema = Json::from(json!({"type": "string"}));
            let why = ctx.interrupt_with(&Question::new("why?")?.showing(schema))?;
            Ok(update!(Log { log: vec![format!("{} {why}", decision.ok)] }))
        })
        .edge(START, "ask")
        .edge("ask", END)
        .build();
    graph.expect("builds")
}

/// Two nodes ask at once, a third does not.
fn pair() -> Graph {
    let graph = StateGraph::<Log>::new("pair")
        .append("log")
        .node("p", async |_: Log, ctx: Context| asks(ctx, json!("p?")).await)
        .node("q", async |_: Log, ctx: Context| asks(ctx, json!("q?")).await)
        .node("r", async |_: Log, _: Context| Ok(update!(Log { log: vec!["r".to_owned()] })))
        .edge(START, "p")
        .edge(START, "q")
        .edge(START, "r")
        .build();
    graph.expect("builds")
}

/// What one task is sent.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Share {
    i: i64,
}

/// Two Sends ask, inside a graph that is a node.
fn nested(name: &str, checkpointing: Checkpointing) -> Graph {
    let inner = StateGraph::<Log>::new("inner")
        .checkpointing(checkpointing)
        .append("log")
        .task("work", async |share: Share, ctx: Context| asks(ctx, json!(share.i)).await)
        .branch(START, "fan_out", ["work"], |(): &()| -> Vec<Destination> {
            (0..2).map(|i| send("work", Share { i })).collect()
        })
        .edge("work", END)
        .build();
    let inner = inner.expect("builds");
    let outer = StateGraph::<Log>::new(name).append("log").subgraph("sub", inner).edge(START, "sub").build();
    outer.expect("builds")
}

/// Asks until the state says that it need not, or the run's context does.
fn patient() -> Graph {
    let graph = StateGraph::<Log>::new("patient")
        .append("log")
        .node("ask", async |state: Log, ctx: Context| {
            if state.log.contains(&"enough".to_owned()) {
                return Ok(update!(Log { log: vec!["skipped".to_owned()] }));
            }
            let tone = ctx.info().context.get("tone").map_or_else(|| "none".to_owned(), |tone| tone.text());
            let answer = ctx.interrupt("go on?")?;
            Ok(update!(Log { log: vec![format!("{answer} {tone}")] }))
        })
        .node("other", async |_: Log, ctx: Context| asks(ctx, json!("other?")).await)
        .edge(START, "ask")
        .edge(START, "other")
        .build();
    graph.expect("builds")
}

async fn server() -> TestServer {
    let graphs = vec![
        review(),
        pair(),
        nested("nested", Checkpointing::Inherit),
        nested("nested_off", Checkpointing::Off),
        nested("nested_own", Checkpointing::Own),
        patient(),
    ];
    TestServer::serving(HttpSettings::default(), graphs).await
}

/// Runs a graph on a named thread and returns what `wait` answers.
async fn run(server: &TestServer, thread: &str, graph: &str, extra: Value) -> Value {
    let mut body = json!({"assistant_id": graph});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    server.post(&format!("/threads/{thread}/runs/wait"), body).await.ok()
}

async fn begin(server: &TestServer, thread: &str, graph: &str) -> Vec<String> {
    let asked = run(server, thread, graph, json!({"input": {"log": []}})).await;
    let questions = asked["__interrupt__"].as_array().unwrap_or_else(|| panic!("no question: {asked}")).clone();
    questions.iter().map(|question| question["id"].as_str().expect("an id").to_owned()).collect()
}

/// The questions of a list, as `value:status` in the order they were asked.
async fn listed(server: &TestServer, path: &str) -> Vec<String> {
    let list = server.get(path).await.ok();
    let mut shown: Vec<String> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| format!("{}:{}", row["value"], row["status"].as_str().expect("a status")))
        .collect();
    shown.sort();
    shown
}

/// Waits for a run that an answer started, and returns what it left.
async fn joined(server: &TestServer, thread: &str, started: &Value) -> Value {
    let run = started["run_id"].as_str().expect("a run");
    server.get(&format!("/threads/{thread}/runs/{run}/join")).await.ok()
}

#[tokio::test]
async fn a_bad_answer_is_refused_and_the_question_stays_open() {
    let server = server().await;
    let ids = begin(&server, "s124", "review").await;
    let state = server.get("/threads/s124/state").await.ok();
    let asked = &state["tasks"][0]["interrupts"][0];
    assert_eq!(asked["response_schema"]["properties"]["ok"]["type"], "boolean");
    let bad = json!({"command": {"resume": {"ok": "notbool"}}});
    let want =
        json!({"__error__": {"error": "ValidationError", "message": r#"answer.ok: value is not of type "boolean""#}});
    assert_eq!(run(&server, "s124", "review", bad).await, want);
    // Null input tries the same answer again.
    assert_eq!(run(&server, "s124", "review", json!({"input": null})).await, want);
    let state = server.get("/threads/s124/state").await.ok();
    assert_eq!((&state["tasks"][0]["interrupts"][0], &state["next"]), (asked, &json!(["ask"])));
    assert_eq!(listed(&server, "/threads/s124/interrupts").await, [r#""publish?":pending"#]);
    // By id it is refused as well, and forgotten.
    let bad = json!({"command": {"resume": {&ids[0]: {"ok": 1}}}});
    assert_eq!(run(&server, "s124", "review", bad).await["__error__"]["error"], "ValidationError");
    assert_eq!(run(&server, "s124", "review", json!({"input": null})).await["__interrupt__"][0]["id"], json!(ids[0]));
    let good = run(&server, "s124", "review", json!({"command": {"resume": {"ok": true}}})).await;
    assert_eq!(good["__interrupt__"][0]["value"], "why?");
    assert_eq!(good["__interrupt__"][0]["response_schema"], json!({"type": "string"}));
    // A schema that is only shown refuses nothing.
    let done = run(&server, "s124", "review", json!({"command": {"resume": 7}})).await;
    assert_eq!(done, json!({"log": ["true 7"]}));
    let all = ["\"publish?\":answered", "\"why?\":answered"];
    assert_eq!(listed(&server, "/threads/s124/interrupts").await, all);
}

#[tokio::test]
async fn strict_resume_takes_only_answers_that_are_waited_for() {
    let server = server().await;
    let ids = begin(&server, "strict", "pair").await;
    let history = server.get("/threads/strict/history").await.ok();
    let unknown = "0".repeat(32);
    for (resume, reason, named) in [
        (json!({&unknown: 1}), "not_pending", vec![unknown.clone()]),
        (json!({&ids[0]: 1, &unknown: 1}), "not_pending", vec![unknown.clone()]),
        (json!({}), "empty_map", vec![]),
        (json!("plain"), "ambiguous", vec![]),
    ] {
        for strict in
            [json!({"strict_resume": true}), json!({"config": {"configurable": {"__pregel_strict_resume": true}}})]
        {
            let mut body = json!({"command": {"resume": resume}});
            body.as_object_mut().expect("an object").extend(strict.as_object().expect("an object").clone());
            let error = run(&server, "strict", "pair", body).await["__error__"].take();
            assert_eq!(error["error"], "UnknownInterruptError");
            let message = error["message"].as_str().expect("a message");
            if strict.get("strict_resume").is_none() {
                assert_eq!(message, "An internal error occurred", "as in the reference");
                continue;
            }
            assert!(message.contains(&format!("({reason})")), "{message}");
            assert!(message.contains(&format!("interrupt_ids: {}", json!(named))), "{message}");
            assert!(ids.iter().all(|id| message.split("pending_ids").nth(1).is_some_and(|rest| rest.contains(id))));
        }
    }
    assert_eq!(server.get("/threads/strict/history").await.ok(), history, "nothing was written");
    // Without it, an unknown answer is ignored (S106), and so is one for a question that was answered (S119).
    let again = run(&server, "strict", "pair", json!({"command": {"resume": {&unknown: 1}}})).await;
    assert_eq!(again["__interrupt__"].as_array().map(Vec::len), Some(2));
    let first = json!({"command": {"resume": {&ids[0]: "P"}}, "strict_resume": true});
    let left = run(&server, "strict", "pair", first.clone()).await;
    assert_eq!(left["__interrupt__"].as_array().map(Vec::len), Some(1));
    assert_eq!(run(&server, "strict", "pair", first).await["__error__"]["error"], "UnknownInterruptError");
    let last = json!({"command": {"resume": "Q"}, "strict_resume": true});
    assert_eq!(run(&server, "strict", "pair", last.clone()).await, json!({"log": [r#""P""#, r#""Q""#, "r"]}));
    // Nothing is pending: on a finished thread, and on one that never ran.
    for thread in ["strict", "strict-fresh"] {
        let error = run(&server, thread, "pair", last.clone()).await["__error__"].take();
        assert!(error["message"].as_str().is_some_and(|text| text.contains("(not_pending)")), "{thread}: {error}");
    }
}

#[tokio::test]
async fn history_shows_each_question_with_its_answer_who_gave_it_and_when() {
    let server = server().await;
    begin(&server, "who", "review").await;
    let place = "/threads/who/runs/wait";
    let body = json!({"assistant_id": "review", "command": {"resume": {"ok": false}}});
    server.post_as("alice", place, body).await.ok();
    let open = server.get("/threads/who/state?include=answers").await.ok();
    let questions = open["tasks"][0]["questions"].as_array().expect("questions").clone();
    assert_eq!(questions.len(), 2);
    assert_eq!((&questions[0]["value"], &questions[0]["answer"]), (&json!("publish?"), &json!({"ok": false})));
    assert_eq!((&questions[0]["status"], &questions[0]["answered_by"]), (&json!("answered"), &json!("alice")));
    assert!(questions[0]["asked_at"].as_str() < questions[0]["answered_at"].as_str());
    assert_eq!((&questions[1]["value"], &questions[1]["status"]), (&json!("why?"), &json!("pending")));
    assert_eq!((&questions[1]["answer"], &questions[1]["answered_by"]), (&Value::Null, &Value::Null));
    let body = json!({"assistant_id": "review", "command": {"resume": "because"}});
    server.post_as("bob", place, body).await.ok();
    // The same in every form of reading, and nothing more than the contract unless asked for.
    let history = server.get("/threads/who/history?include=answers").await.ok();
    let at =
        history.as_array().expect("states").iter().find(|state| state["next"] == json!(["ask"])).expect("the step");
    let cursor = &at["checkpoint"];
    let id = cursor["checkpoint_id"].as_str().expect("an id");
    for read in [
        server.post("/threads/who/history", json!({"include": ["answers"], "checkpoint": cursor})).await.ok()[0].take(),
        server.get(&format!("/threads/who/state/{id}?include=answers&select=tasks")).await.ok(),
        server.post("/threads/who/state/checkpoint", json!({"checkpoint": cursor, "include": ["answers"]})).await.ok(),
        at.clone(),
    ] {
        let by: Vec<&Value> = read["tasks"][0]["questions"]
            .as_array()
            .expect("questions")
            .iter()
            .map(|row| &row["answered_by"])
            .collect();
        assert_eq!(by, ["alice", "bob"], "{read}");
    }
    let plain = server.get(&format!("/threads/who/state/{id}")).await.ok();
    assert_eq!(plain["tasks"][0].get("questions"), None);
    assert_eq!(plain["tasks"][0]["interrupts"], at["tasks"][0]["interrupts"]);
    server.get("/threads/who/state?include=everything").await.refused(422);
    server.post("/threads/who/history", json!({"include": "answers"})).await.refused(422);
}

#[tokio::test]
async fn the_inbox_lists_what_is_pending_everywhere_and_takes_an_answer() {
    let server = server().await;
    server.post("/threads", json!({"thread_id": "inbox-1", "metadata": {"team": "red"}})).await.ok();
    let ids = begin(&server, "inbox-1", "review").await;
    begin(&server, "inbox-2", "pair").await;
    assert_eq!(listed(&server, "/interrupts").await, [r#""p?":pending"#, r#""publish?":pending"#, r#""q?":pending"#]);
    for (filter, want) in [
        ("thread_id=inbox-1", vec!["\"publish?\":pending"]),
        ("graph_id=pair&node=q", vec!["\"q?\":pending"]),
        ("metadata=%7B%22team%22:%22red%22%7D", vec!["\"publish?\":pending"]),
        ("status=answered", vec![]),
        ("status=any&node=ask", vec!["\"publish?\":pending"]),
        ("asked_before=2026-01-01T00:00:00Z", vec![]),
        ("asked_after=2026-01-01T00:00:00%2B00:00&node=p", vec!["\"p?\":pending"]),
    ] {
        assert_eq!(listed(&server, &format!("/interrupts?{filter}")).await, want, "{filter}");
    }
    let mut seen = Vec::new();
    let mut next = String::new();
    loop {
        let page = server.get(&format!("/interrupts?limit=1&sort_order=asc{next}")).await;
        seen.extend(page.ok().as_array().expect("a page").iter().map(|row| row["value"].clone()));
        match page.header("x-pagination-next") {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!((seen.len(), &seen[0]), (3, &json!("publish?")));
    for bad in ["status=open", "metadata=x", "asked_after=yesterday", "cursor=1", "limit=0", "assistant_id=x"] {
        server.get(&format!("/interrupts?{bad}")).await.refused(422);
    }

    let place = format!("/threads/inbox-1/interrupts/{}/answer", ids[0]);
    let refused = server.post(&place, json!({"answer": {"ok": "x"}})).await.refused(422);
    assert!(refused.starts_with(r#"answer.ok: value is not of type "boolean""#), "{refused}");
    assert!(server.post(&place, json!({})).await.refused(422).starts_with("answer: "));
    let runs = server.get("/threads/inbox-1/runs").await.ok();
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "nothing was started");
    let started = server.post_as("carol", &place, json!({"answer": {"ok": true}})).await.ok();
    assert_eq!((&started["thread_id"], &started["status"]), (&json!("inbox-1"), &json!("pending")));
    assert_eq!(joined(&server, "inbox-1", &started).await["__interrupt__"][0]["value"], "why?");
    let twice = server.post(&place, json!({"answer": {"ok": true}})).await.refused(409);
    assert!(twice.contains("was answered by carol at 2"), "{twice}");
    let unknown = "f".repeat(32);
    server.post(&format!("/threads/inbox-1/interrupts/{unknown}/answer"), json!({"answer": 1})).await.refused(404);
    server.post(&format!("/threads/nobody/interrupts/{unknown}/answer"), json!({"answer": 1})).await.refused(404);
    server.get("/threads/nobody/interrupts").await.refused(404);
    // New input drops what was asked.
    let open = server.get("/threads/inbox-1/interrupts?status=pending").await.ok()[0]["interrupt_id"].take();
    begin(&server, "inbox-1", "review").await;
    let place = format!("/threads/inbox-1/interrupts/{}/answer", open.as_str().expect("an id"));
    assert!(server.post(&place, json!({"answer": "x"})).await.refused(409).contains("not pending any more"));
    let all = [r#""publish?":answered"#, r#""publish?":pending"#, r#""why?":dropped"#];
    assert_eq!(listed(&server, "/threads/inbox-1/interrupts").await, all);
}

#[tokio::test]
async fn many_are_answered_at_once_with_a_run_per_thread() {
    let server = server().await;
    let one = begin(&server, "bulk-1", "review").await;
    let two = begin(&server, "bulk-2", "pair").await;
    let item =
        |thread: &str, id: &str, answer: Value| json!({"thread_id": thread, "interrupt_id": id, "answer": answer});
    let send = async |answers: Vec<Value>| -> Answer {
        server.post_as("dora", "/interrupts/answer", json!({"answers": answers})).await
    };
    // One that does not fit refuses them all, and says where.
    let bad = vec![item("bulk-2", &two[0], json!(1)), item("bulk-1", &one[0], json!({"ok": 1}))];
    let refused = send(bad).await.refused(422);
    assert!(refused.starts_with("answers[1].answer.ok: value is not of type"), "{refused}");
    let twice = vec![item("bulk-2", &two[0], json!(1)), item("bulk-2", &two[0], json!(2))];
    assert!(send(twice).await.refused(422).starts_with("answers[1].interrupt_id: named twice"));
    assert!(send(vec![json!({"thread_id": "x"})]).await.refused(422).starts_with("answers[0].interrupt_id: "));
    assert!(send(vec![item("bulk-1", &one[0], json!(true)); 101]).await.refused(422).contains("100"));
    server.post("/interrupts/answer", json!({})).await.refused(422);
    assert_eq!(server.get("/interrupts?status=answered").await.ok(), json!([]));

    let unknown = "f".repeat(32);
    let answers = vec![
        item("bulk-2", &two[0], json!("P")),
        item("bulk-1", &one[0], json!({"ok": true})),
        item("bulk-1", &unknown, json!(1)),
        item("bulk-2", &two[1], json!("Q")),
    ];
    let results = send(answers.clone()).await.ok();
    let statuses: Vec<&Value> = results.as_array().expect("results").iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [200, 200, 404, 200]);
    assert_eq!((&results[0]["thread_id"], &results[0]["interrupt_id"]), (&json!("bulk-2"), &json!(two[0])));
    assert_eq!(results[0]["run_id"], results[3]["run_id"], "one run brings both answers");
    assert!(results[2]["detail"].as_str().is_some_and(|detail| detail.contains("not found")));
    assert_eq!(joined(&server, "bulk-2", &results[0]).await, json!({"log": [r#""P""#, r#""Q""#, "r"]}));
    joined(&server, "bulk-1", &results[1]).await;
    let answered = server.get("/interrupts?status=answered").await.ok();
    let by: Vec<&Value> = answered.as_array().expect("rows").iter().map(|row| &row["answered_by"]).collect();
    assert_eq!(by, ["dora", "dora", "dora"]);
    let again = send(answers).await.ok();
    assert_eq!((&again[0]["status"], &again[1]["status"]), (&json!(409), &json!(409)));
}

#[tokio::test]
async fn questions_in_sends_and_subgraphs_are_rows_of_their_own() {
    let server = server().await;
    for graph in ["nested", "nested_off", "nested_own"] {
        let ids = begin(&server, graph, graph).await;
        assert_eq!(ids.len(), 2, "{graph}");
        let rows = server.get(&format!("/threads/{graph}/interrupts?sort_order=asc")).await.ok();
        for row in rows.as_array().expect("rows") {
            assert_eq!((&row["node"], &row["status"]), (&json!("work"), &json!("pending")), "{graph}: {row}");
            assert!(ids.contains(&row["interrupt_id"].as_str().expect("an id").to_owned()));
            assert!(row["checkpoint_ns"].as_str().is_some_and(|ns| ns.starts_with("sub")), "{row}");
        }
        // Asked again by null input: the same questions, or new ones where nothing was kept to continue from.
        run(&server, graph, graph, json!({"input": null})).await;
        let open = listed(&server, &format!("/threads/{graph}/interrupts?status=pending")).await;
        assert_eq!(open, ["0:pending", "1:pending"], "{graph}");
        let pending = server.get(&format!("/threads/{graph}/interrupts?status=pending&sort_order=asc")).await.ok();
        let find = |value: i64| {
            pending.as_array().expect("rows").iter().find(|row| row["value"] == json!(value)).expect("asked")
        };
        if graph == "nested_off" {
            continue;
        }
        let state = server.get(&format!("/threads/{graph}/state?include=answers&subgraphs=true")).await.ok();
        assert_eq!(state["tasks"][0]["questions"].as_array().map(Vec::len), Some(2), "{graph}: {state}");
        let inner = &state["tasks"][0]["state"]["tasks"];
        assert_eq!(inner[1]["questions"][0]["value"], json!(1), "{graph}: {inner}");
        for (value, left) in [(1, vec!["0:pending", "1:answered"]), (0, vec!["0:answered", "1:answered"])] {
            let id = find(value)["interrupt_id"].as_str().expect("an id").to_owned();
            let place = format!("/threads/{graph}/interrupts/{id}/answer");
            let started = server.post(&place, json!({"answer": format!("a{value}")})).await.ok();
            joined(&server, graph, &started).await;
            assert_eq!(listed(&server, &format!("/threads/{graph}/interrupts")).await, left, "{graph}");
        }
        let state = server.get(&format!("/threads/{graph}/state")).await.ok();
        assert_eq!((&state["values"]["log"], &state["next"]), (&json!([r#""a0""#, r#""a1""#]), &json!([])), "{graph}");
    }
}

#[tokio::test]
async fn a_question_whose_task_goes_on_without_an_answer_is_dropped() {
    let server = server().await;
    let ids = begin(&server, "skip", "patient").await;
    assert_eq!(ids.len(), 2);
    let update = json!({"command": {"update": {"log": ["enough"]}}});
    let left = run(&server, "skip", "patient", update).await;
    assert_eq!(left["__interrupt__"].as_array().map(Vec::len), Some(1), "{left}");
    assert_eq!(listed(&server, "/threads/skip/interrupts").await, [r#""go on?":dropped"#, r#""other?":pending"#]);
}

#[tokio::test]
async fn an_answer_goes_on_with_the_settings_of_the_run_that_asked() {
    let server = server().await;
    for durability in ["sync", "async", "exit"] {
        let thread = format!("tone-{durability}");
        let body = json!({"input": {"log": []}, "context": {"tone": "kind"}, "durability": durability});
        let asked = run(&server, &thread, "patient", body).await;
        assert_eq!(asked["__interrupt__"].as_array().map(Vec::len), Some(2), "{asked}");
        let open = server.get(&format!("/threads/{thread}/interrupts?status=pending")).await.ok();
        let answers: Vec<Value> = open
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| json!({"thread_id": thread, "interrupt_id": row["interrupt_id"], "answer": "yes"}))
            .collect();
        assert_eq!(answers.len(), 2, "{durability}");
        let results = server.post("/interrupts/answer", json!({"answers": answers})).await.ok();
        let done = joined(&server, &thread, &results[0]).await;
        assert_eq!(done, json!({"log": [r#""yes" "kind""#, r#""yes""#]}), "{durability}");
        let rows = listed(&server, &format!("/threads/{thread}/interrupts")).await;
        assert_eq!(rows, [r#""go on?":answered"#, r#""other?":answered"#], "{durability}");
        let run =
            server.get(&format!("/threads/{thread}/runs/{}", results[0]["run_id"].as_str().expect("a run"))).await.ok();
        assert_eq!(run["kwargs"]["durability"], durability);
    }
}

#[tokio::test]
async fn a_run_taken_back_takes_its_answers_back() {
    let server = server().await;
    let ids = begin(&server, "back", "pair").await;
    let place = format!("/threads/back/interrupts/{}/answer", ids[0]);
    let started = server.post(&place, json!({"answer": "P"})).await.ok();
    joined(&server, "back", &started).await;
    let run = started["run_id"].as_str().expect("a run");
    assert_eq!(listed(&server, "/threads/back/interrupts").await, [r#""p?":answered"#, r#""q?":pending"#]);
    let deleted = server.send("DELETE", &format!("/threads/back/runs/{run}"), "").await;
    assert_eq!(deleted.status, 204);
    assert_eq!(listed(&server, "/threads/back/interrupts").await, [r#""p?":pending"#, r#""q?":pending"#]);
}

#[tokio::test]
async fn edits_say_who_made_them_and_why_if_they_were_told() {
    let server = server().await;
    begin(&server, "edit", "pair").await;
    let metadata = async || server.get("/threads/edit/state").await.ok()["metadata"].take();
    let place = "/threads/edit/state";
    server.post(place, json!({"values": {"log": ["a"]}, "as_node": "p"})).await.ok();
    let plain = metadata().await;
    assert_eq!((plain.get("actor"), plain.get("reason")), (None, None));
    server.post_as("erin", place, json!({"values": {"log": ["b"]}, "as_node": "p", "reason": "typo"})).await.ok();
    let said = metadata().await;
    assert_eq!((&said["actor"], &said["reason"]), (&json!("erin"), &json!("typo")));
    let copy = json!({"values": null, "as_node": "__copy__", "actor": "frank"});
    server.post_as("erin", place, copy).await.ok();
    assert_eq!(metadata().await["actor"], "frank");
    // Found by it, too.
    let by = server.post("/threads/edit/history", json!({"metadata": {"actor": "erin"}})).await.ok();
    assert_eq!(by.as_array().map(Vec::len), Some(1));
    let steps = json!({"updates": [{"values": {"log": ["x"]}, "as_node": "p"}]});
    let new =
        json!({"thread_id": "import", "metadata": {"graph_id": "pair"}, "supersteps": [steps], "reason": "import"});
    server.post_as("gina", "/threads", new).await.ok();
    let state = server.get("/threads/import/state").await.ok();
    assert_eq!((&state["metadata"]["actor"], &state["metadata"]["reason"]), (&json!("gina"), &json!("import")));
    let long = "x".repeat(257);
    assert!(server.post_as(&long, place, json!({})).await.refused(422).starts_with("x-actor: "));
    assert!(server.post(place, json!({"actor": long})).await.refused(422).starts_with("actor: "));
}

#[tokio::test]
async fn with_a_key_the_actor_is_the_key_unless_a_label_is_given() {
    let settings = HttpSettings { api_keys: vec![ApiKey::new("s3cret")], ..HttpSettings::default() };
    let server = TestServer::serving(settings, vec![pair()]).await;
    let client = reqwest::Client::new();
    let send = async |path: &str, actor: &str, body: Value| -> Value {
        let request = client.post(format!("{}{path}", server.url)).header("x-api-key", "s3cret");
        let answer = request.header("x-actor", actor).body(body.to_string()).send().await.expect("an answer");
        serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
    };
    let asked = send("/threads/key/runs/wait", "", json!({"input": {"log": []}})).await;
    for (index, actor) in ["", "hal"].iter().enumerate() {
        let id = asked["__interrupt__"][index]["id"].as_str().expect("an id");
        send("/threads/key/runs/wait", actor, json!({"command": {"resume": {id: 1}}})).await;
    }
    let request = client.get(format!("{}/threads/key/interrupts", server.url)).header("x-api-key", "s3cret");
    let rows: Value = request.send().await.expect("an answer").json().await.expect("JSON");
    let mut by: Vec<&str> =
        rows.as_array().expect("rows").iter().filter_map(|row| row["answered_by"].as_str()).collect();
    by.sort_unstable();
    assert_eq!(by, ["api-key", "hal"]);
}
