//! Interrupts, effects and usage turned into columns, for the commits that have any: see [`super::columns`].

use std::collections::HashSet;

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;

use crate::storage::encoding::{self, error_bytes, hide_nul};
use crate::storage::{EffectRow, InterruptRow, StepRows, UsageRow};

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Parameters 61-72.
#[derive(Default)]
struct InterruptColumns {
    member: Vec<i32>,
    interrupt_id: Vec<String>,
    ns: Vec<String>,
    checkpoint_id: Vec<String>,
    root_checkpoint_id: Vec<String>,
    task_id: Vec<String>,
    node: Vec<String>,
    question: Vec<Vec<u8>>,
    response_schema: Vec<Option<Vec<u8>>>,
    checked: Vec<bool>,
    change: Vec<String>,
    answer: Vec<Option<Vec<u8>>>,
}

impl InterruptColumns {
    /// Adds the rows of a member, each question once: the last says how it stands.
    fn push(&mut self, member: i32, rows: &[InterruptRow]) {
        let mut seen = HashSet::new();
        for row in rows.iter().rev().filter(|row| seen.insert(&row.id)) {
            self.member.push(member);
            self.interrupt_id.push(row.id.clone());
            self.ns.push(row.ns.clone());
            self.checkpoint_id.push(row.checkpoint_id.clone());
            self.root_checkpoint_id.push(row.root_checkpoint_id.clone());
            self.task_id.push(row.task_id.clone());
            self.node.push(row.node.clone());
            self.question.push(encoding::bytes(&row.question));
            self.response_schema.push(row.response_schema.as_ref().map(encoding::bytes));
            self.checked.push(row.checked);
            self.change.push(row.change.as_str().to_owned());
            self.answer.push(row.change.answer().map(encoding::bytes));
        }
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.interrupt_id).bind(self.ns).bind(self.checkpoint_id);
        let query = query.bind(self.root_checkpoint_id).bind(self.task_id).bind(self.node).bind(self.question);
        query.bind(self.response_schema).bind(self.checked).bind(self.change).bind(self.answer)
    }
}

/// Parameters 73-83.
#[derive(Default)]
struct EffectColumns {
    member: Vec<i32>,
    ns: Vec<String>,
    checkpoint_id: Vec<String>,
    task_id: Vec<String>,
    key: Vec<String>,
    node: Vec<String>,
    state: Vec<String>,
    attempt: Vec<i32>,
    asked: Vec<i32>,
    result: Vec<Option<Vec<u8>>>,
    error: Vec<Option<Vec<u8>>>,
}

impl EffectColumns {
    fn push(&mut self, member: i32, row: &EffectRow) {
        let (place, entry) = (&row.place, &row.entry);
        self.member.push(member);
        self.ns.push(place.ns.clone());
        self.checkpoint_id.push(place.checkpoint_id.clone());
        self.task_id.push(place.task_id.clone());
        self.key.push(entry.key.clone());
        self.node.push(hide_nul(&place.node).into_owned());
        self.state.push(entry.state.as_str().to_owned());
        self.attempt.push(entry.attempt);
        self.asked.push(entry.asked);
        self.result.push(entry.result.as_ref().map(encoding::bytes));
        self.error.push(entry.error.as_ref().map(error_bytes));
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.ns).bind(self.checkpoint_id).bind(self.task_id).bind(self.key);
        let query = query.bind(self.node).bind(self.state).bind(self.attempt).bind(self.asked);
        query.bind(self.result).bind(self.error)
    }
}

/// Parameters 84-90.
#[derive(Default)]
struct UsageColumns {
    member: Vec<i32>,
    model: Vec<String>,
    input_tokens: Vec<i64>,
    output_tokens: Vec<i64>,
    total_tokens: Vec<i64>,
    cost_nanos: Vec<i64>,
    seq: Vec<i64>,
}

impl UsageColumns {
    fn push(&mut self, member: i32, row: &UsageRow) {
        self.member.push(member);
        self.model.push(row.model.clone());
        self.input_tokens.push(row.usage.input_tokens);
        self.output_tokens.push(row.usage.output_tokens);
        self.total_tokens.push(row.usage.total_tokens);
        self.cost_nanos.push(row.usage.cost.nanos());
        self.seq.push(row.seq);
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.model).bind(self.input_tokens).bind(self.output_tokens);
        query.bind(self.total_tokens).bind(self.cost_nanos).bind(self.seq)
    }
}

/// The interrupts, the effects and the usage of all members: parameters 61-90, bound when there are any.
#[derive(Default)]
pub(super) struct Extras {
    interrupts: InterruptColumns,
    effects: EffectColumns,
    usage: UsageColumns,
}

impl Extras {
    /// Adds those of a member. Of several rows for one call the last counts: one statement may update a row once.
    pub(super) fn push(&mut self, member: i32, rows: &StepRows) {
        self.interrupts.push(member, &rows.interrupts);
        let mut seen = HashSet::new();
        for row in rows.effects.iter().rev() {
            if seen.insert((&row.place.ns, &row.place.checkpoint_id, &row.place.task_id, &row.entry.key)) {
                self.effects.push(member, row);
            }
        }
        for row in &rows.usage {
            self.usage.push(member, row);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.interrupts.member.is_empty() && self.effects.member.is_empty() && self.usage.member.is_empty()
    }

    pub(super) fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        self.usage.bind(self.effects.bind(self.interrupts.bind(query)))
    }
}
