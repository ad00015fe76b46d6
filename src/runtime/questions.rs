//! Interrupts as rows: what a task's end says about the questions it asked, to be stored with the writes of its
//! superstep.

use super::executor::GraphRun;
use super::host::{Asked, Exchange};
use super::shared::Shared;
use crate::engine::execution::{Execution, Job};
use crate::model::Interrupt;
use crate::storage::{InterruptChange, InterruptRow};

/// Notes what the end of a job changed: the question it waits for, answers it took, and questions of `open` (its own or
/// of graphs inside it, before it ran) that nobody will answer now.
pub(super) fn note(
    shared: &Shared,
    run: &GraphRun,
    execution: &Execution,
    job: &Job,
    exchange: &Exchange,
    open: &[Interrupt],
) {
    // Answers that an earlier execution took were stored then.
    let mut asked = exchange.asked.iter().filter(|asked| asked.index >= job.recorded).peekable();
    if asked.peek().is_none() && open.is_empty() {
        return;
    }
    let waiting = execution.questions_of(&job.task.id);
    let row = |interrupt: &Interrupt, checked: bool, change: InterruptChange| InterruptRow {
        id: interrupt.id.clone(),
        ns: run.ns.clone(),
        checkpoint_id: execution.checkpoint_id().to_owned(),
        root_checkpoint_id: match run.parents.get("") {
            Some(root) if !run.ns.is_empty() => root.clone(),
            _ => execution.checkpoint_id().to_owned(),
        },
        task_id: job.task.id.to_string(),
        node: job.task.name.to_string(),
        question: interrupt.value.clone(),
        response_schema: interrupt.response_schema.clone(),
        checked,
        change,
    };
    let is_in = |list: &[Interrupt], id: &str| list.iter().any(|interrupt| interrupt.id == id);
    let mut rows: Vec<InterruptRow> = Vec::new();
    for Asked { index, interrupt, checked } in asked {
        match exchange.answers.get(*index) {
            Some(answer) => rows.push(row(interrupt, *checked, InterruptChange::Answered(answer.clone()))),
            None if is_in(&waiting, &interrupt.id) => rows.push(row(interrupt, *checked, InterruptChange::Asked)),
            // Asked, but the task went on or failed without waiting.
            None => {}
        }
    }
    for interrupt in open {
        let is_answered = rows.iter().any(|row| row.id == interrupt.id);
        if !is_answered && !is_in(&waiting, &interrupt.id) {
            rows.push(row(interrupt, false, InterruptChange::Withdrawn));
        }
    }
    shared.take_questions(rows);
}

/// Adds rows to others. Of one question the last counts, but an answer is never withdrawn: the task around the one that
/// took it only sees that the question is gone.
pub(super) fn merge(into: &mut Vec<InterruptRow>, rows: Vec<InterruptRow>) {
    for row in rows {
        match into.iter_mut().find(|other| other.id == row.id) {
            None => into.push(row),
            Some(other)
                if matches!(
                    (&other.change, &row.change),
                    (InterruptChange::Answered(_), InterruptChange::Withdrawn)
                ) => {}
            Some(other) => *other = row,
        }
    }
}
