//! Answering questions from outside a run: each answer is checked against its question, then one run per thread resumes
//! by id, strictly.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Answer, Answerer, AssistantName, EXPLAIN_STRICT_RESUME, RunRequest, Runtime, RuntimeError};
use crate::graph::question::ResponseSchema;
use crate::model::{
    Fields, InterruptRecord, InterruptStatus, Json, MultitaskStrategy, OnCompletion, Run, RunKwargs, Scope, ThreadId,
};
use crate::storage::{InterruptFilter, StorageError, idempotency};

impl Runtime {
    /// Answers pending questions: answers for one thread share a run, which goes on with the settings of the run that
    /// asked. Returns, in the order given, the run that each answer started, or why it did not: the thread or the question
    /// is unknown, it is not pending (any more), or the thread is busy. When this returns, the runs are committed.
    ///
    /// Somebody who answers at the same moment may be faster: then the run fails as `UnknownInterruptError`, and nothing is
    /// answered twice.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`]: an answer does not satisfy its question's schema, or a question is named twice. Nothing
    /// was started then.
    pub async fn answer(
        &self,
        scope: &Scope,
        answers: Vec<Answer>,
        by: &Answerer,
    ) -> Result<Vec<Result<Run, RuntimeError>>, RuntimeError> {
        let mut by_thread: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, answer) in answers.iter().enumerate() {
            by_thread.entry(answer.thread.as_str().to_owned()).or_default().push(index);
        }
        let mut outcomes: Vec<Option<Result<Run, RuntimeError>>> = answers.iter().map(|_| None).collect();
        let mut accepted: Vec<(Vec<usize>, InterruptRecord)> = Vec::new();
        for indexes in by_thread.into_values() {
            let mut questions = self.answered(scope, &answers, &indexes).await?;
            let mut good = Vec::new();
            let mut first = None;
            for index in indexes {
                let answer = &answers[index];
                match questions.remove(&answer.interrupt_id) {
                    None => outcomes[index] = Some(Err(RuntimeError::InterruptNotFound(answer.interrupt_id.clone()))),
                    Some(question) if question.status != InterruptStatus::Pending => {
                        outcomes[index] = Some(Err(not_pending(&question)));
                    }
                    Some(question) => {
                        check(&question, answer)?;
                        good.push(index);
                        first.get_or_insert(question);
                    }
                }
            }
            accepted.extend(first.map(|question| (good, question)));
        }
        let is_one = accepted.len() == 1;
        for (part, (indexes, question)) in accepted.into_iter().enumerate() {
            let given =
                indexes.iter().map(|index| (answers[*index].interrupt_id.clone(), answers[*index].answer.clone()));
            let resuming = self.resume(scope, &question, given.collect(), by);
            // Under an idempotency key every run of several has its own: a repeat accepts what is left.
            let started = if is_one { resuming.await } else { idempotency::part(part, resuming).await };
            for index in indexes {
                outcomes[index] = Some(match &started {
                    Ok(run) => Ok(run.clone()),
                    Err(error) => Err(again(error)),
                });
            }
        }
        let forgotten = || Err(RuntimeError::Invalid("an answer was forgotten".to_owned()));
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(forgotten)).collect())
    }

    /// The questions that some answers for one thread name, by id.
    async fn answered(
        &self,
        scope: &Scope,
        answers: &[Answer],
        indexes: &[usize],
    ) -> Result<BTreeMap<String, InterruptRecord>, RuntimeError> {
        let mut ids: Vec<String> = Vec::with_capacity(indexes.len());
        for index in indexes {
            let answer = &answers[*index];
            if ids.contains(&answer.interrupt_id) {
                let text = format!("{}interrupt_id: named twice: {}", answer.place, answer.interrupt_id);
                return Err(RuntimeError::Invalid(text));
            }
            ids.push(answer.interrupt_id.clone());
        }
        let thread = indexes.first().map(|index| answers[*index].thread.clone());
        let limit = ids.len() as i64;
        let filter = InterruptFilter { thread, ids: Some(ids), ..InterruptFilter::default() };
        let found = self.storage().list_interrupts(scope, &filter, true, None, limit).await?;
        Ok(found.into_iter().map(|(_, question)| (question.interrupt_id.clone(), question)).collect())
    }

    /// Starts the run that brings answers, as the run that asked would go on.
    async fn resume(
        &self,
        scope: &Scope,
        question: &InterruptRecord,
        answers: Fields,
        by: &Answerer,
    ) -> Result<Run, RuntimeError> {
        let thread: &ThreadId = &question.thread_id;
        let asked = self.storage().find_run(scope, thread, question.run_id).await?;
        let asked: Option<RunKwargs> = asked.and_then(|run| run.kwargs.decode().ok());
        let durability = asked.as_ref().map(|kwargs| kwargs.durability);
        let kwargs = asked.unwrap_or_default();
        let command = Json::from_fields([("resume", &Json::from(&answers))]);
        let request = RunRequest {
            thread: Some(thread.clone()),
            assistant: Some(AssistantName::Id(question.assistant_id)),
            kwargs: RunKwargs {
                input: None,
                command: Some(command),
                config: resuming_config(&kwargs.config, &by.carried),
                stream_mode: vec!["values".to_owned()],
                temporary: false,
                ..kwargs
            },
            durability,
            metadata: Json::object(),
            multitask_strategy: MultitaskStrategy::Reject,
            create_thread: Some(false),
            after: Duration::ZERO,
            on_completion: OnCompletion::default(),
            cancel_on_disconnect: false,
            start_here: false,
            actor: by.actor.clone(),
        };
        self.submit_once(scope, request).await
    }
}

/// Why a run did not start, for each of the answers it was to bring.
fn again(error: &RuntimeError) -> RuntimeError {
    match error {
        RuntimeError::ThreadRunning => RuntimeError::ThreadRunning,
        RuntimeError::Storage(StorageError::Unavailable(why)) => StorageError::Unavailable(why.clone()).into(),
        RuntimeError::Storage(error) => StorageError::Other(error.to_string()).into(),
        error => RuntimeError::Conflict(error.to_string()),
    }
}

/// Answers that do not fit are refused before anything starts.
fn check(question: &InterruptRecord, answer: &Answer) -> Result<(), RuntimeError> {
    let Some(schema) = question.response_schema.as_ref().filter(|_| question.checked) else { return Ok(()) };
    ResponseSchema::new(schema)?
        .check(&answer.answer)
        .map_err(|why| RuntimeError::Invalid(format!("{}{why} (interrupt {})", answer.place, answer.interrupt_id)))
}

fn not_pending(question: &InterruptRecord) -> RuntimeError {
    let id = &question.interrupt_id;
    RuntimeError::Conflict(match question.answered_at {
        Some(at) => {
            let by = question.answered_by.as_ref().map(|actor| format!(" by {actor}")).unwrap_or_default();
            format!("Interrupt {id} was answered{by} at {}", at.to_iso())
        }
        None => format!("Interrupt {id} is not pending any more: its thread went on without an answer, or was closed"),
    })
}

/// What in a run's `configurable` is about that run alone, besides its place in a trace of LangSmith.
const OF_ITS_OWN: [&str; 5] =
    ["checkpoint_id", "checkpoint_ns", "checkpoint_map", "langgraph_request_id", crate::spans::TRACEPARENT];

/// The config of the run that asked, without the place it started from, and with another request.
fn resuming_config(config: &Json, carried: &Fields) -> Json {
    let mut fields = config.fields().unwrap_or_default();
    let mut configurable = fields.get("configurable").and_then(Json::fields).unwrap_or_default();
    configurable.retain(|key, _| !OF_ITS_OWN.contains(&key.as_str()) && !key.starts_with("langsmith-"));
    configurable.insert("__pregel_strict_resume".to_owned(), Json::from(true));
    configurable.insert(EXPLAIN_STRICT_RESUME.to_owned(), Json::from(true));
    configurable.extend(carried.clone());
    fields.insert("configurable".to_owned(), Json::from(&configurable));
    Json::from(&fields)
}
