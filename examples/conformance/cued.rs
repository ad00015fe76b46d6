//! `cued`: a chat whose client decides when it goes on, for tests of what happens in the middle of a run.
//!
//! The last human message says what to do:
//!
//! | Message | What happens |
//! |---|---|
//! | `hold: a b c` | streams `a `, waits for its cue, streams the rest |
//! | `ask: a question` | asks it, then says what was answered |
//! | `fail: a reason` | streams a word, then fails with the reason |
//! | anything else | streams it back |
//!
//! The cue is an item: the namespace `["cues", thread id]`, the key being the message, any value.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use session_store::graph::{
    AiChunk, BuildErrors, Context, END, Graph, Message, NodeError, Role, START, StateGraph, Update,
};
use session_store::update;

/// How often a held message looks for its cue.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Serialize, Deserialize, JsonSchema)]
struct Chat {
    messages: Vec<Message>,
}

pub(crate) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Chat>::new("cued")
        .description("Says what it is told to, and waits for its cue where it is told to.")
        .messages("messages")
        .node("speak", speak)
        .edge(START, "speak")
        .edge("speak", END)
        .build()
}

async fn speak(state: Chat, ctx: Context) -> Result<Update, NodeError> {
    let heard = state.messages.iter().rev().find(|message| message.role == Role::Human);
    let heard = heard.map(|message| message.text().into_owned()).unwrap_or_default();
    let speech = Speech { id: format!("run--{}", ctx.info().task_id), ctx: &ctx };
    let said = match heard.split_once(": ") {
        Some(("hold", text)) => {
            let first = text.split_inclusive(' ').next().unwrap_or_default();
            speech.say(first).await?;
            speech.wait_for_cue(&heard).await?;
            speech.say(&text[first.len()..]).await?;
            text.to_owned()
        }
        Some(("ask", question)) => {
            let answer = ctx.interrupt(json!({"question": question}))?;
            let text = format!("The answer is {}.", answer.value());
            speech.say(&text).await?;
            text
        }
        Some(("fail", reason)) => {
            speech.say("Well, ").await?;
            return Err(NodeError::new("ValueError", reason.to_owned()));
        }
        _ => {
            let text = format!("You said {heard}");
            speech.say(&text).await?;
            text
        }
    };
    Ok(update!(Chat { messages: vec![Message::ai(said).with_id(speech.id)] }))
}

/// A message while it is said.
struct Speech<'c> {
    id: String,
    ctx: &'c Context,
}

impl Speech<'_> {
    /// Word by word.
    async fn say(&self, text: &str) -> Result<(), NodeError> {
        for word in text.split_inclusive(' ') {
            self.ctx.messages().chunk(&AiChunk::new(&self.id, word))?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn wait_for_cue(&self, message: &str) -> Result<(), NodeError> {
        let namespace = ["cues".to_owned(), self.ctx.info().thread_id.clone()];
        while self.ctx.items().get(&namespace, message).await?.is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}
