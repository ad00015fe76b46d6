//! A graph with consequences: it charges a card, once, and says what judging the order cost.
//!
//! `cargo run --example order`

use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_store::graph::{
    BuildErrors, Context, EffectOptions, Graph, NodeError, OnUnknown, START, StateGraph, Update,
};
use session_store::update;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    cents: u64,
    receipt: Option<String>,
}

async fn charge(order: Order, ctx: Context) -> Result<Update, NodeError> {
    // Should the process die during the call, nobody knows whether the card was charged: a human is asked.
    let options = EffectOptions { on_unknown: OnUnknown::Ask, ..EffectOptions::default() };
    let receipt: String = ctx.effect_with(options, "charge-card", async || pay(order.cents).await).await?;
    // 1200 tokens read, 40 written, at the model's price in `[models]`.
    ctx.usage("gpt-4o-mini", 1200, 40, None);
    Ok(update!(Order { receipt: Some(receipt) }))
}

async fn pay(cents: u64) -> Result<String, NodeError> {
    // Here a payment service is called.
    Ok(format!("receipt for {cents} cents"))
}

pub(crate) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Order>::new("order").node("charge", charge).edge(START, "charge").build()
}

fn main() -> ExitCode {
    session_store::main([graph()])
}
