//! The graphs of the proof. Each appends to `trail` what it did, so that the list tells afterwards what happened, how
//! often, and in which order.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::till;
use crate::graph::{BuildErrors, Context, Destination, END, Graph, NodeError, START, StateGraph, Update, send};
use crate::model::Json;
use crate::update;

/// One superstep per number: `turn.1` to `turn.to`.
pub(super) const COUNT: &str = "proof_count";
/// `to` tasks in one superstep, then one more: `turn.0` to `turn.to-1`, then `turn.joined`.
pub(super) const FAN: &str = "proof_fan";
/// One external call per superstep: `turn.1` to `turn.to`, and a receipt for each in `receipts`.
pub(super) const PAY: &str = "proof_pay";
/// Asks between two supersteps: `turn.asked`, `turn.answer=..`, `turn.told`.
pub(super) const ASK: &str = "proof_ask";

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Proof {
    /// Which run of the thread it is, as its client counts.
    turn: u64,
    n: u64,
    to: u64,
    /// How long a node takes.
    pause_ms: u64,
    trail: Vec<String>,
    /// How many tasks of `proof_fan` there were, summed by a reducer.
    sum: u64,
    /// `turn.n=receipt` for each call of `proof_pay`.
    receipts: Vec<String>,
}

/// What one task of `proof_fan` is sent.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Share {
    turn: u64,
    i: u64,
    pause_ms: u64,
}

pub(super) fn all() -> Vec<Result<Graph, BuildErrors>> {
    vec![count(), fan(), ask(), pay()]
}

async fn pause(millis: u64) {
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

fn count() -> Result<Graph, BuildErrors> {
    StateGraph::<Proof>::new(COUNT)
        .append("trail")
        .node("step", async |state: Proof, ctx: Context| -> Result<Update, NodeError> {
            let n = state.n + 1;
            ctx.write(format!("{}.{n}", state.turn))?;
            pause(state.pause_ms).await;
            Ok(update!(Proof { n, trail: vec![format!("{}.{n}", state.turn)] }))
        })
        .edge(START, "step")
        .branch("step", "more", ["step", END], |state: &Proof| if state.n < state.to { "step" } else { END })
        .build()
}

fn fan() -> Result<Graph, BuildErrors> {
    StateGraph::<Proof>::new(FAN)
        .append("trail")
        .sum("sum")
        .task("work", async |share: Share, _ctx: Context| -> Result<Update, NodeError> {
            // Not all at once: a crash finds some done and some not.
            pause(share.pause_ms * (share.i % 4)).await;
            Ok(update!(Proof { sum: 1_u64, trail: vec![format!("{}.{}", share.turn, share.i)] }))
        })
        .node("join", async |state: Proof, _ctx: Context| -> Result<Update, NodeError> {
            Ok(update!(Proof { trail: vec![format!("{}.joined", state.turn)] }))
        })
        .branch(START, "spread", ["work"], |state: &Proof| -> Vec<Destination> {
            let share = |i| send("work", Share { turn: state.turn, i, pause_ms: state.pause_ms });
            (0..state.to).map(share).collect()
        })
        .edge("work", "join")
        .edge("join", END)
        .build()
}

fn ask() -> Result<Graph, BuildErrors> {
    StateGraph::<Proof>::new(ASK)
        .append("trail")
        .node("draft", async |state: Proof, _ctx: Context| -> Result<Update, NodeError> {
            pause(state.pause_ms).await;
            Ok(update!(Proof { trail: vec![format!("{}.asked", state.turn)] }))
        })
        .node("ask", async |state: Proof, ctx: Context| -> Result<Update, NodeError> {
            let answer: Json = ctx.interrupt(format!("question {}", state.turn))?;
            pause(state.pause_ms).await;
            let answer = answer.as_str().map_or_else(String::new, |text| text.to_string());
            Ok(update!(Proof { trail: vec![format!("{}.answer={answer}", state.turn)] }))
        })
        .node("tell", async |state: Proof, _ctx: Context| -> Result<Update, NodeError> {
            Ok(update!(Proof { trail: vec![format!("{}.told", state.turn)] }))
        })
        .edge(START, "draft")
        .edge("draft", "ask")
        .edge("ask", "tell")
        .edge("tell", END)
        .build()
}

fn pay() -> Result<Graph, BuildErrors> {
    StateGraph::<Proof>::new(PAY)
        .append("trail")
        .append("receipts")
        .node("pay", async |state: Proof, ctx: Context| -> Result<Update, NodeError> {
            let n = state.n + 1;
            let name = format!("{}.{n}", state.turn);
            let (thread, key) = (ctx.info().thread_id.clone(), ctx.idempotency_key_of("pay").await?);
            let receipt: String = ctx
                .effect("pay", async || {
                    // A crash may find it before, in the middle of, and after the call.
                    pause(state.pause_ms / 2).await;
                    let receipt = till::pay(&thread, &name, &key)?;
                    pause(state.pause_ms / 2).await;
                    Ok(receipt)
                })
                .await?;
            let receipts = vec![format!("{name}={receipt}")];
            Ok(update!(Proof { n, trail: vec![name], receipts }))
        })
        .edge(START, "pay")
        .branch("pay", "more", ["pay", END], |state: &Proof| if state.n < state.to { "pay" } else { END })
        .build()
}
