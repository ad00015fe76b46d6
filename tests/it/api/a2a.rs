//! `/a2a/{assistant_id}`: messages, tasks and cards, in the words of both versions of the protocol.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{AiChunk, BuildErrors, Context, END, Graph, Message, NodeError, START, StateGraph, Update};
use session_store::http::HttpSettings;
use session_store::update;

use crate::support::server::TestServer;

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Talk {
    messages: Vec<Message>,
}

/// A graph that does what it is told: ask, fail, wait to be cancelled, or talk.
fn talker() -> Result<Graph, BuildErrors> {
    StateGraph::<Talk>::new("talker")
        .description("Talks.")
        .messages("messages")
        .node("talk", talk)
        .edge(START, "talk")
        .edge("talk", END)
        .build()
}

async fn talk(state: Talk, ctx: Context) -> Result<Update, NodeError> {
    let said = state.messages.last().map(|message| message.text().into_owned()).unwrap_or_default();
    let answer = match said.as_str() {
        "ask" => format!("you said {}", ctx.interrupt(json!("Really?"))?.text()),
        "fail" => return Err(NodeError::new("ValueError", "it did not work")),
        "wait" => {
            ctx.cancelled().await;
            String::new()
        }
        _ => {
            for piece in ["Hel", "lo"] {
                ctx.messages().chunk(&AiChunk::new("a1", piece))?;
            }
            return Ok(update!(Talk { messages: vec![Message::ai("Hello").with_id("a1")] }));
        }
    };
    Ok(update!(Talk { messages: vec![Message::ai(answer)] }))
}

async fn server() -> TestServer {
    let graphs = session_store::graphs::all().into_iter().chain([talker()]);
    TestServer::serving(HttpSettings::default(), graphs.map(|graph| graph.expect("valid")).collect()).await
}

async fn ask(server: &TestServer, method: &str, params: Value) -> Value {
    let message = json!({"jsonrpc": "2.0", "id": "q", "method": method, "params": params});
    let answer = server.post("/a2a/talker", message).await.ok();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!("q")), "{answer}");
    answer
}

fn v1(text: &str, more: Value) -> Value {
    let mut message = json!({"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": text}]});
    message.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"message": message})
}

#[tokio::test]
async fn a_message_is_answered_with_a_finished_task() {
    let server = server().await;
    let answer = ask(&server, "SendMessage", v1("hi", json!({"contextId": "user-42"}))).await;
    let task = &answer["result"]["task"];
    assert_eq!((&task["contextId"], &task["status"]["state"]), (&json!("user-42"), &json!("TASK_STATE_COMPLETED")));
    assert_eq!(task["artifacts"], json!([{"artifactId": "a1", "name": "answer", "parts": [{"text": "Hello"}]}]));
    let id = task["id"].as_str().expect("an id");
    assert!(id.starts_with("user-42:"), "{id}");
    assert_eq!(ask(&server, "GetTask", json!({"id": id})).await["result"], *task);

    let state = server.get("/threads/user-42/state").await.ok();
    let messages = state["values"]["messages"].as_array().expect("messages");
    assert_eq!((messages.len(), &messages[0]["id"], &messages[0]["type"]), (2, &json!("m1"), &json!("human")));

    let old = ask(&server, "tasks/get", json!({"id": id})).await["result"].clone();
    assert_eq!((&old["kind"], &old["status"]["state"]), (&json!("task"), &json!("completed")));
    assert_eq!(old["artifacts"][0]["parts"], json!([{"kind": "text", "text": "Hello"}]));
    let message =
        json!({"kind": "message", "messageId": "m", "role": "user", "parts": [{"kind": "text", "text": "hi"}]});
    let sent = ask(&server, "message/send", json!({"message": message})).await["result"].clone();
    assert_eq!((&sent["kind"], &sent["status"]["state"]), (&json!("task"), &json!("completed")));
}

#[tokio::test]
async fn a_stream_tells_the_text_while_it_is_made() {
    let server = server().await;
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": v1("hi", json!({}))});
    let frames = server.frames("POST", "/a2a/talker", &[], message).await;
    let told: Vec<&Value> = frames.iter().map(|frame| &frame.data["result"]).collect();
    assert_eq!(told[0]["task"]["status"]["state"], "TASK_STATE_SUBMITTED");
    let piece = |value: &Value| {
        let update = &value["artifactUpdate"];
        let text = update["artifact"]["parts"][0]["text"].as_str().unwrap_or_default().to_owned();
        (text, update["append"].as_bool(), update["lastChunk"].as_bool())
    };
    assert_eq!(piece(told[1]), ("Hel".to_owned(), Some(false), Some(false)));
    assert_eq!(piece(told[2]), ("lo".to_owned(), Some(true), Some(false)));
    let (whole, last) = (told[told.len() - 2], told[told.len() - 1]);
    assert_eq!(piece(whole), ("Hello".to_owned(), Some(false), Some(true)));
    assert_eq!(last["statusUpdate"]["status"]["state"], "TASK_STATE_COMPLETED");

    let message =
        json!({"parts": [{"kind": "text", "text": "hi"}], "messageId": "m", "role": "user", "kind": "message"});
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "message/stream", "params": {"message": message}});
    let frames = server.frames("POST", "/a2a/talker", &[], message).await;
    assert_eq!(frames[0].data["result"]["kind"], "task");
    let last = &frames[frames.len() - 1].data["result"];
    assert_eq!((&last["kind"], &last["final"]), (&json!("status-update"), &json!(true)));
}

#[tokio::test]
async fn questions_are_answered_under_the_task_that_asked() {
    let server = server().await;
    let asked = ask(&server, "SendMessage", v1("ask", json!({}))).await["result"]["task"].clone();
    assert_eq!(asked["status"]["state"], "TASK_STATE_INPUT_REQUIRED");
    assert_eq!(asked["status"]["message"]["parts"], json!([{"text": "Really?"}]));
    let listed = ask(&server, "ListTasks", json!({"contextId": asked["contextId"]})).await["result"].clone();
    assert_eq!((&listed["totalSize"], &listed["nextPageToken"]), (&json!(1), &json!("")));
    assert_eq!(listed["tasks"][0]["status"]["state"], "TASK_STATE_INPUT_REQUIRED");

    let elsewhere = ask(&server, "SendMessage", v1("yes", json!({"taskId": asked["id"], "contextId": "other"}))).await;
    assert_eq!(elsewhere["error"]["code"], -32602);
    let done = ask(&server, "SendMessage", v1("yes", json!({"taskId": asked["id"]}))).await["result"]["task"].clone();
    assert_eq!(done["status"]["state"], "TASK_STATE_COMPLETED");
    assert_eq!(done["artifacts"][0]["parts"], json!([{"text": "you said \"yes\""}]));
    let again = ask(&server, "SendMessage", v1("yes", json!({"taskId": asked["id"]}))).await;
    assert_eq!(again["error"]["code"], -32004, "it asks nothing any more");
}

#[tokio::test]
async fn tasks_of_all_contexts_are_listed_page_by_page() {
    let server = server().await;
    let mut ids = Vec::new();
    for (context, text) in [("a", "hi"), ("b", "ask"), ("a", "hi")] {
        let task = ask(&server, "SendMessage", v1(text, json!({"contextId": context}))).await["result"]["task"].clone();
        ids.insert(0, task["id"].clone());
    }
    // Of another agent.
    server.post("/threads/a/runs/wait", json!({"assistant_id": "counter", "input": {"counter": 0}})).await.ok();
    let whole = ask(&server, "ListTasks", json!({})).await["result"].clone();
    let of = |page: &Value, key: &str| -> Vec<Value> {
        page["tasks"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|task| task.pointer(key).cloned().unwrap_or_default())
            .collect()
    };
    assert_eq!(of(&whole, "/id"), ids, "newest first");
    let states = ["TASK_STATE_COMPLETED", "TASK_STATE_INPUT_REQUIRED", "TASK_STATE_COMPLETED"];
    assert_eq!(of(&whole, "/status/state"), states.map(Value::from));
    assert_eq!((&whole["totalSize"], &whole["nextPageToken"]), (&json!(3), &json!("")));
    let first = ask(&server, "ListTasks", json!({"pageSize": 2})).await["result"].clone();
    assert_eq!((of(&first, "/id"), &first["totalSize"]), (ids[..2].to_vec(), &json!(3)));
    let next = json!({"pageSize": 2, "pageToken": first["nextPageToken"]});
    let last = ask(&server, "ListTasks", next).await["result"].clone();
    assert_eq!(
        (of(&last, "/id"), &last["totalSize"], &last["nextPageToken"]),
        (ids[2..].to_vec(), &json!(3), &json!(""))
    );
}

#[tokio::test]
async fn tasks_fail_and_are_cancelled() {
    let server = server().await;
    let failed = ask(&server, "SendMessage", v1("fail", json!({}))).await["result"]["task"].clone();
    assert_eq!(failed["status"]["state"], "TASK_STATE_FAILED");
    assert_eq!(failed["status"]["message"]["parts"], json!([{"text": "ValueError: it did not work"}]));

    let mut params = v1("wait", json!({}));
    params["configuration"] = json!({"returnImmediately": true});
    let task = ask(&server, "SendMessage", params).await["result"]["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_SUBMITTED");
    let cancelled = ask(&server, "CancelTask", json!({"id": task["id"]})).await["result"].clone();
    assert_eq!((&cancelled["id"], &cancelled["status"]["state"]), (&task["id"], &json!("TASK_STATE_CANCELED")));
    assert_eq!(ask(&server, "tasks/cancel", json!({"id": task["id"]})).await["error"]["code"], -32002);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_code() {
    let server = server().await;
    let missing = "x:01a1fc10-b52f-73cd-b3b0-b7bff7cdedd2";
    let file = json!({"message": {"parts": [{"url": "https://x/y.png"}]}});
    let mut push = v1("hi", json!({}));
    push["configuration"] = json!({"pushNotificationConfig": {"url": "https://x"}});
    for (method, params, code) in [
        ("GetTask", json!({"id": missing}), -32001),
        ("GetTask", json!({"id": "x"}), -32001),
        ("CancelTask", json!({}), -32602),
        ("ListTasks", json!({"pageToken": "1"}), -32602),
        ("ListTasks", json!({"pageToken": "1.x"}), -32602),
        ("ListTasks", json!({"contextId": "c", "pageToken": "x"}), -32602),
        ("SendMessage", json!({}), -32602),
        ("SendMessage", v1("hi", json!({"contextId": "a b"})), -32602),
        ("SendMessage", v1("hi", json!({"taskId": missing})), -32001),
        ("SendMessage", file, -32005),
        ("message/send", push, -32003),
        ("tasks/pushNotificationConfig/set", json!({}), -32003),
        ("SubscribeToTask", json!({"id": missing}), -32004),
        ("nothing", json!({}), -32601),
    ] {
        assert_eq!(ask(&server, method, params).await["error"]["code"], code, "{method}");
    }
    assert_eq!(server.post("/a2a/talker", json!([])).await.status, 400);
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {}});
    assert_eq!(server.post("/a2a/nobody", ping.clone()).await.status, 404);
    assert!(server.post("/a2a/counter", ping).await.refused(400).contains("messages"));
}

#[tokio::test]
async fn every_agent_has_a_card() {
    let server = server().await;
    let card = server.get("/a2a/talker").await.ok();
    assert_eq!((&card["name"], &card["description"]), (&json!("talker"), &json!("Talks.")));
    let url = card["url"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with(&format!("{}/a2a/", server.url)), "{url}");
    assert_eq!(
        card["supportedInterfaces"][0],
        json!({"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"})
    );
    for path in [
        "/a2a/talker/.well-known/agent-card.json",
        "/a2a/talker/.well-known/agent.json",
        "/.well-known/agent-card.json?assistant_id=talker",
    ] {
        assert_eq!(server.get(path).await.ok(), card, "{path}");
    }
    server.get("/.well-known/agent-card.json").await.refused(422);
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "GetExtendedAgentCard", "params": {}});
    let answer = server.post(url.strip_prefix(&server.url).expect("of this server"), request).await.ok();
    assert_eq!(answer["result"]["name"], "talker", "the address in the card works");
}
