//! Effects: external calls whose outcome is recorded with the task, so that no later execution of it repeats them.
//!
//! [`Context::effect`] writes twice, both times under the run's lease: `started` is durable before the call is made, and
//! `recorded`, with the result, before the node goes on. A node that runs again (after a crash, a question, a hand-over
//! or by its retry policy) gets the recorded result. A call that was started and never recorded may or may not have
//! happened: [`OnUnknown`] says what to do then.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::context::Context;
use super::node::NodeError;
use super::question::Question;
use crate::engine::EngineError;
use crate::model::{EffectEntry, EffectState, ErrorInfo, Json};

/// The longest key, in bytes.
const MAX_KEY: usize = 255;

/// What to do with a call that was started, and whose outcome was never recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnknown {
    /// Make it again. Right for calls that may be repeated, such as those that carry [`Context::idempotency_key`].
    #[default]
    Retry,
    /// Ask a human, by an interrupt that names the call. The answers are `{"action": "retry"}`,
    /// `{"action": "result", "result": ..}` and `{"action": "fail"}`; the first and the last may be given as a word.
    Ask,
}

/// What an error of the call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// It did not happen: the next execution makes it again.
    #[default]
    Forget,
    /// It is the outcome: recorded, and returned to every later execution.
    Record,
    /// It leaves the outcome open, as a timeout does: [`OnUnknown`] decides in the next execution.
    Unknown,
}

/// How an effect behaves when things go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EffectOptions {
    /// When the outcome of an earlier call is unknown.
    pub on_unknown: OnUnknown,
    /// When the call returns an error.
    pub on_error: OnError,
}

enum Answer {
    Retry,
    Result(Json),
    Fail,
}

impl Context {
    /// Makes an external call at most once for this task, as far as that can be known, and returns its result.
    ///
    /// `key` names the call within the task: 1 to 255 bytes without control characters, once per execution. In a loop it
    /// holds what is being called for (`charge-7`), not a counter of calls, unless their order is always the same.
    ///
    /// This is a commit barrier in every durability mode: the call is made once the checkpoint that the task hangs on,
    /// and the fact that the call begins, are durable. Two commits per effect; neither is made when the result is known.
    /// The result is kept with the thread: treat it like state.
    ///
    /// Results belong to a task. A fork, time travel and new input have tasks of their own and make the call again; so
    /// does a graph inside a node that is retried. A copy of a thread takes the results along.
    ///
    /// Asking (`interrupt`) inside the call is no good idea: ask before it.
    ///
    /// ```
    /// use session_store::graph::{Context, NodeError};
    ///
    /// async fn charge(cents: u64, ctx: Context) -> Result<String, NodeError> {
    ///     let receipt: String = ctx.effect("charge-card", async || Ok(pay(cents).await?)).await?;
    ///     Ok(receipt)
    /// }
    /// # async fn pay(_: u64) -> std::io::Result<String> { Ok("receipt-1".into()) }
    /// ```
    ///
    /// # Errors
    /// The call's own, see [`OnError`]; `ValueError` for a bad key or one that was used before in this execution;
    /// `EffectUnknown` when a human said that the call failed; [`NodeError::Interrupted`] when a human is asked; an error
    /// of encoding when the result is no JSON or is not read as it was written.
    pub async fn effect<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        call: impl AsyncFnOnce() -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        self.effect_with(EffectOptions::default(), key, call).await
    }

    /// [`Context::effect`] with options.
    ///
    /// # Errors
    /// As there.
    pub async fn effect_with<T: Serialize + DeserializeOwned>(
        &self,
        options: EffectOptions,
        key: &str,
        call: impl AsyncFnOnce() -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        self.take_effect_key(key)?;
        let new = || EffectEntry {
            key: key.to_owned(),
            state: EffectState::Failed,
            attempt: 0,
            asked: 0,
            result: None,
            error: None,
        };
        let mut entry = self.host.find_effect(key).await?.unwrap_or_else(new);
        // Questions answered in earlier executions keep their places among this task's questions.
        self.questions.fetch_add(usize::try_from(entry.asked).unwrap_or(0), Ordering::Relaxed);
        match (entry.state, options.on_unknown) {
            (EffectState::Recorded, _) => return recorded(entry),
            (EffectState::Started, OnUnknown::Ask) => match self.ask_about::<T>(&mut entry)? {
                Answer::Retry => {}
                Answer::Result(result) => {
                    let entry = EffectEntry { state: EffectState::Recorded, result: Some(result), ..entry };
                    self.host.put_effect(entry.clone(), true).await?;
                    return recorded(entry);
                }
                Answer::Fail => {
                    // Not recorded: whoever resumes the thread is asked again.
                    self.host.put_effect(entry, false).await?;
                    return Err(NodeError::new("EffectUnknown", format!("effect '{key}': it was said to have failed")));
                }
            },
            (EffectState::Started | EffectState::Failed, _) => {}
        }
        entry = EffectEntry { state: EffectState::Started, attempt: entry.attempt + 1, error: None, ..entry };
        self.host.put_effect(entry.clone(), true).await?;
        match call().await {
            Ok(value) => {
                let entry = EffectEntry { state: EffectState::Recorded, result: Some(Json::of(&value)?), ..entry };
                self.host.put_effect(entry.clone(), true).await?;
                // What this execution gets is what a later one will get.
                recorded(entry)
            }
            Err(NodeError::Failed(error)) => {
                // Whole, as in task errors.
                let info = Some(ErrorInfo { error: error.class.clone(), message: error.message.clone() });
                match options.on_error {
                    OnError::Forget => {
                        let entry = EffectEntry { state: EffectState::Failed, error: info, ..entry };
                        self.host.put_effect(entry, false).await?;
                    }
                    OnError::Record => {
                        let entry = EffectEntry { state: EffectState::Recorded, error: info, ..entry };
                        self.host.put_effect(entry, true).await?;
                    }
                    OnError::Unknown => {}
                }
                Err(NodeError::Failed(error))
            }
            Err(NodeError::Cancelled) => Err(NodeError::Cancelled),
            Err(control) => {
                self.host.put_effect(EffectEntry { state: EffectState::Failed, ..entry }, false).await?;
                Err(control)
            }
        }
    }

    fn take_effect_key(&self, key: &str) -> Result<(), NodeError> {
        if key.is_empty() || key.len() > MAX_KEY || key.chars().any(char::is_control) {
            let rule = format!("must have 1 to {MAX_KEY} bytes and no control characters");
            return Err(NodeError::new("ValueError", format!("effect key {key:?} {rule}")));
        }
        if self.effects.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned()) {
            return Ok(());
        }
        let text = format!("effect key '{key}' is used twice in one execution: each call needs a key of its own");
        Err(NodeError::new("ValueError", text))
    }

    /// Asks until there is an answer that can be used; each one used or refused is counted.
    fn ask_about<T: DeserializeOwned>(&self, entry: &mut EffectEntry) -> Result<Answer, NodeError> {
        let mut problem = None;
        loop {
            let mut value = json!({
                "question": "A call was started and its outcome was never recorded. What became of it?",
                "effect": entry.key,
                "node": self.info().node,
                "attempt": entry.attempt,
            });
            if let Some(problem) = &problem {
                value["problem"] = json!(problem);
            }
            let schema = json!({"anyOf": [
                {"enum": ["retry", "fail"]},
                {
                    "type": "object",
                    "required": ["action"],
                    "properties": {
                        "action": {"enum": ["retry", "result", "fail"]},
                        "result": {"description": "with the action `result`: what the call returned"},
                    },
                },
            ]});
            let answer = self.interrupt_with(&Question::new(value)?.showing(Json::from(schema)))?;
            entry.asked += 1;
            match understood::<T>(&answer) {
                Ok(answer) => return Ok(answer),
                Err(reason) => problem = Some(reason),
            }
        }
    }
}

fn understood<T: DeserializeOwned>(answer: &Json) -> Result<Answer, String> {
    let action = answer.get("action");
    match action.as_ref().and_then(Json::as_str).or_else(|| answer.as_str()) {
        Some("retry") => Ok(Answer::Retry),
        Some("fail") => Ok(Answer::Fail),
        Some("result") => {
            let result = answer.get("result").ok_or("the action `result` needs a `result`")?;
            result.decode::<T>().map_err(|error| format!("`result` is not what the call returns: {error}"))?;
            Ok(Answer::Result(result))
        }
        _ => Err("the answer must be `retry`, `fail`, or an object with an `action`".to_owned()),
    }
}

fn recorded<T: DeserializeOwned>(entry: EffectEntry) -> Result<T, NodeError> {
    if let Some(error) = entry.error {
        return Err(NodeError::Failed(EngineError::new(error.error, error.message)));
    }
    entry.result.unwrap_or_default().decode().map_err(|error| {
        NodeError::new(
            "ValueError",
            format!("effect '{}': its result is not read as it was written: {error}", entry.key),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::graph::testing::Probe;

    const ASK: EffectOptions = EffectOptions { on_unknown: OnUnknown::Ask, on_error: OnError::Unknown };

    async fn call(
        probe: &Probe,
        options: EffectOptions,
        result: Result<i64, NodeError>,
    ) -> (Result<i64, NodeError>, bool) {
        let (context, called) = (probe.context("n"), Cell::new(false));
        let answer = context.effect_with(options, "k", async || {
            called.set(true);
            result
        });
        (answer.await, called.get())
    }

    fn boom<T>() -> Result<T, NodeError> {
        Err(NodeError::new("Boom", "it broke"))
    }

    #[tokio::test]
    async fn a_recorded_call_is_not_made_again() {
        let probe = Probe::new();
        assert!(matches!(call(&probe, EffectOptions::default(), Ok(1)).await, (Ok(1), true)));
        assert!(matches!(call(&probe, EffectOptions::default(), Ok(2)).await, (Ok(1), false)));
        let known = probe.effects().remove(0);
        assert_eq!((known.state, known.attempt, known.result), (EffectState::Recorded, 1, Some(Json::from(1_i64))));
    }

    #[tokio::test]
    async fn an_error_is_forgotten_recorded_or_left_open() {
        let probe = Probe::new();
        assert!(matches!(call(&probe, EffectOptions::default(), boom()).await, (Err(NodeError::Failed(_)), true)));
        let known = probe.effects().remove(0);
        assert_eq!((known.state, known.error.expect("an error").message.as_str()), (EffectState::Failed, "it broke"));
        assert!(matches!(call(&probe, EffectOptions::default(), Ok(1)).await, (Ok(1), true)));
        assert_eq!(probe.effects()[0].attempt, 2);

        let (probe, record) = (Probe::new(), EffectOptions { on_error: OnError::Record, ..EffectOptions::default() });
        assert!(call(&probe, record, boom()).await.0.is_err());
        let (again, called) = call(&probe, record, Ok(1)).await;
        assert!(matches!(again, Err(NodeError::Failed(error)) if error.class == "Boom") && !called);

        let (probe, open) = (Probe::new(), EffectOptions { on_error: OnError::Unknown, ..EffectOptions::default() });
        assert!(call(&probe, open, boom()).await.0.is_err());
        assert_eq!(probe.effects()[0].state, EffectState::Started);
        assert!(matches!(call(&probe, open, Ok(1)).await, (Ok(1), true)));
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_asked_about() {
        let probe = Probe::new();
        assert!(call(&probe, ASK, boom()).await.0.is_err());
        let (asked, called) = call(&probe, ASK, Ok(1)).await;
        assert!(matches!(asked, Err(NodeError::Interrupted)) && !called);
        assert_eq!(probe.questions()[0]["effect"], "k");
        // A bad answer, then one that will do. The call is left open again, and the next question is a new one.
        let probe = probe.answering(json!({"action": "result", "result": "text"})).answering("retry");
        assert!(matches!(call(&probe, ASK, boom()).await, (Err(_), true)));
        assert!(probe.questions().last().expect("asked")["problem"].as_str().expect("why").contains("`result`"));
        assert_eq!(probe.effects()[0].asked, 2);
        let (asked, called) = call(&probe, ASK, Ok(1)).await;
        assert!(matches!(asked, Err(NodeError::Interrupted)) && !called, "{asked:?}");
        let probe = probe.answering(json!({"action": "result", "result": 7}));
        assert!(matches!(call(&probe, ASK, Ok(1)).await, (Ok(7), false)));
        // The questions keep their places: one that is asked after them has the fourth answer.
        let probe = probe.answering("fourth");
        let context = probe.context("n");
        let result: i64 = context.effect_with(ASK, "k", async || boom()).await.expect("recorded");
        assert_eq!((result, context.interrupt("?").expect("answered")), (7, Json::from("fourth")));
    }

    #[tokio::test]
    async fn a_human_may_say_that_it_failed() {
        let probe = Probe::new();
        assert!(call(&probe, ASK, boom()).await.0.is_err());
        let probe = probe.answering("fail");
        let (failed, called) = call(&probe, ASK, Ok(1)).await;
        assert!(matches!(failed, Err(NodeError::Failed(error)) if error.class == "EffectUnknown") && !called);
        assert!(matches!(call(&probe, ASK, Ok(1)).await.0, Err(NodeError::Interrupted)), "it is asked again");
    }

    #[tokio::test]
    async fn a_key_names_one_call() {
        let context = Probe::new().context("n");
        let make = async |key: &str| context.effect(key, async || Ok(1)).await;
        assert!(make("a").await.is_ok() && make("b").await.is_ok());
        for bad in ["a", "", "a\0", &"x".repeat(256)] {
            assert!(matches!(make(bad).await, Err(NodeError::Failed(error)) if error.class == "ValueError"), "{bad:?}");
        }
    }
}
