//! Stopping a run while it speaks: what the user has seen stays.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::graph::{AiChunk, Context, END, Graph, Message, NodeError, START, StateGraph, Update, reducers};
use session_store::http::HttpSettings;
use session_store::update;

use crate::support::server::{Listener, TestServer};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Chat {
    #[serde(default)]
    messages: Vec<Message>,
}

/// Says the beginning of an answer, and then thinks for ever; asked once more, it finishes.
fn chat() -> Graph {
    async fn speak(state: Chat, ctx: Context) -> Result<Update, NodeError> {
        if state.messages.len() == 3 {
            return Ok(update!(Chat { messages: vec![Message::ai("done")] }));
        }
        for piece in ["Once ", "upon ", "a time"] {
            ctx.messages().chunk(&AiChunk::new("tale", piece))?;
        }
        std::future::pending().await
    }
    StateGraph::<Chat>::new("chat")
        .reducer("messages", reducers::messages())
        .node("speak", speak)
        .edge(START, "speak")
        .edge("speak", END)
        .build()
        .expect("builds")
}

async fn starts(server: &TestServer, thread: &str, body: Value) -> (Listener, String) {
    let mut listener = server.listen("POST", &format!("/threads/{thread}/runs/stream"), &[], body).await;
    let mut heard = listener.until(|frame| frame.data.to_string().contains("a time")).await;
    let run = heard.remove(0).data["run_id"].as_str().expect("metadata comes first").to_owned();
    (listener, run)
}

fn body(mode: &str, durability: &str) -> Value {
    json!({
        "assistant_id": "chat", "input": {"messages": [{"role": "user", "content": "a story", "id": "ask"}]},
        "stream_mode": [mode, "values"], "durability": durability,
    })
}

#[tokio::test]
async fn what_the_user_has_seen_stays_as_a_state_marked_partial() {
    let server = TestServer::serving(HttpSettings::default(), vec![chat()]).await;
    for (mode, durability) in [("messages-tuple", "async"), ("messages", "sync"), ("messages-tuple", "exit")] {
        let thread = format!("told-{mode}-{durability}");
        let (mut listener, run) = starts(&server, &thread, body(mode, durability)).await;
        let path = format!("/threads/{thread}/runs/{run}/cancel?wait=true&reason=enough");
        server.post_as("alice", &path, json!({})).await.ok();
        // The listener is told the state, too.
        let mut last = None;
        while let Some(frame) = listener.next().await {
            last = Some(frame).filter(|frame| frame.event == "values").or(last);
        }
        let said = |state: &Value| -> Vec<String> {
            let messages = state["messages"].as_array().expect("messages");
            messages.iter().map(|message| message["content"].as_str().expect("text").to_owned()).collect()
        };
        let told = ["a story", "Once upon a time"];
        assert_eq!(said(&last.expect("values").data), told, "{thread}");
        let state = server.get(&format!("/threads/{thread}/state")).await.ok();
        assert_eq!(said(&state["values"]), told, "{thread}");
        let message = &state["values"]["messages"][1];
        assert_eq!((&message["id"], &message["type"]), (&json!("tale"), &json!("ai")), "{message}");
        // Marked, with who stopped it and why.
        let metadata = &state["metadata"];
        assert_eq!((&metadata["partial"], &metadata["source"]), (&json!(true), &json!("update")), "{metadata}");
        assert_eq!((&metadata["actor"], &metadata["reason"]), (&json!("alice"), &json!("enough")), "{metadata}");
        assert_eq!(state["next"], json!([]));
        let run = server.get(&format!("/threads/{thread}/runs/{run}")).await.ok();
        assert_eq!(run["status"], "interrupted");
        let shown = server.get(&format!("/threads/{thread}")).await.ok();
        assert_eq!((&shown["status"], said(&shown["values"])), (&json!("idle"), told.map(str::to_owned).to_vec()));
        // The conversation goes on from what was seen.
        let more = json!({"assistant_id": "chat", "input": {"messages": [{"role": "user", "content": "and?"}]}});
        let after = server.post(&format!("/threads/{thread}/runs/wait"), more).await.ok();
        assert_eq!(said(&after), ["a story", "Once upon a time", "and?", "done"], "{thread}");
        let marked = server.get(&format!("/threads/{thread}/history")).await.ok();
        let marked = marked.as_array().expect("a list").iter().filter(|s| s["metadata"]["partial"] == true).count();
        assert_eq!(marked, 1, "the mark is that state's alone");
    }
}

#[tokio::test]
async fn a_rollback_keeps_nothing() {
    let server = TestServer::serving(HttpSettings::default(), vec![chat()]).await;
    let (listener, run) = starts(&server, "taken-back", body("messages-tuple", "async")).await;
    server.post(&format!("/threads/taken-back/runs/{run}/cancel?wait=true&action=rollback"), json!({})).await.ok();
    let state = server.get("/threads/taken-back/state").await.ok();
    assert_eq!((&state["values"], &state["next"]), (&json!({}), &json!([])), "{state}");
    drop(listener);
}
