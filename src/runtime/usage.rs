//! What models cost: reported by nodes, found in the messages they return, and summed by superstep.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::messages::each_write;
use super::shared::{Shared, lock};
use crate::engine::command::Output;
use crate::engine::execution::{Effect, Execution};
use crate::engine::message::{message_id, scan_id};
use crate::engine::record::TaskRecord;
use crate::model::{Cost, Fields, Json, ModelUsage, UsageTotals, special};

/// The longest name of a model, in bytes.
const MAX_MODEL: usize = 255;
/// What a message must hold to be worth a look.
const MARK: &str = "usage_metadata";

/// What a model's tokens cost, per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    pub input: Cost,
    pub output: Cost,
    /// Input tokens that the provider had cached.
    pub cached: Cost,
}

/// Prices by model.
pub type Prices = BTreeMap<String, Price>;

/// What one task reported.
#[derive(Debug, Default)]
pub(crate) struct Report {
    totals: UsageTotals,
    /// Messages that graphs inside returned: their usage was counted there.
    inner: HashSet<String>,
}

impl Report {
    /// Adds a report. `cached`: how many of the input tokens came from the provider's cache.
    pub(crate) fn add(&mut self, prices: &Prices, model: &str, usage: ModelUsage, cached: i64, cost: Option<Cost>) {
        let model = clean(model);
        let cost = cost.unwrap_or_else(|| {
            let Some(price) = prices.get(&model) else { return Cost::default() };
            let cached = cached.clamp(0, usage.input_tokens.max(0));
            let fresh = price.input.of_tokens(usage.input_tokens - cached);
            fresh.plus(price.cached.of_tokens(cached)).plus(price.output.of_tokens(usage.output_tokens))
        });
        self.totals.add(&model, ModelUsage { cost: cost.min(Cost::MAX), ..usage });
    }

    /// Remembers the messages of a graph inside.
    pub(crate) fn note_inner(&mut self, result: &Fields) {
        for value in result.values() {
            each_priced(value, &mut |message| {
                self.inner.insert(identity(message));
            });
        }
    }

    /// Adds the usage of messages that are new with this output: not in the state before, not counted in this run, not
    /// from a graph inside. A message is known by its id.
    pub(crate) fn add_messages(&mut self, shared: &Shared, execution: &Execution, output: &Output) {
        each_write(output, &mut |key, value| {
            let mut before: Option<HashSet<String>> = None;
            each_priced(value, &mut |message| {
                if self.inner.contains(&identity(message)) {
                    return;
                }
                if let Some(id) = message_id(message) {
                    let before = before.get_or_insert_with(|| ids_of(key.and_then(|key| execution.value_of(key))));
                    if before.contains(id) || !lock(&shared.counted_messages).insert(id.to_owned()) {
                        return;
                    }
                }
                let (model, usage, cached) = read(message);
                self.add(&shared.runtime.settings().prices, &model, usage, cached, None);
            });
        });
    }
}

/// The usage of the superstep in progress, by task.
#[derive(Default)]
pub(crate) struct Ledger {
    /// What the tasks that run now report.
    open: HashMap<Arc<str>, Arc<Mutex<Report>>>,
    /// What tasks that have ended cost, in earlier attempts and runs too.
    ended: HashMap<Arc<str>, UsageTotals>,
    /// What supersteps cost whose checkpoints were not stored: with durability `exit` the next one that is tells it.
    carried: UsageTotals,
}

impl Ledger {
    /// Takes over what is recorded with the tasks of a checkpoint.
    pub(crate) fn of(records: &[TaskRecord]) -> Ledger {
        let recorded = |record: &TaskRecord| {
            let usage = UsageTotals::from_json(record.get(special::USAGE)?).ok()?;
            Some((Arc::clone(&record.task_id), usage))
        };
        Ledger { ended: records.iter().filter_map(recorded).collect(), ..Ledger::default() }
    }

    /// Where a task reports to.
    pub(crate) fn open(&mut self, task_id: &Arc<str>) -> Arc<Mutex<Report>> {
        Arc::clone(self.open.entry(Arc::clone(task_id)).or_default())
    }

    /// What a task has cost since it was opened, with the messages of its output.
    pub(crate) fn close(
        &mut self,
        shared: &Shared,
        execution: &Execution,
        task_id: &str,
        output: Option<&Output>,
    ) -> UsageTotals {
        let Some(report) = self.open.remove(task_id) else { return UsageTotals::default() };
        let mut report = std::mem::take(&mut *lock(&report));
        if let Some(output) = output {
            report.add_messages(shared, execution, output);
        }
        report.totals
    }

    /// Stores the end of a task with what it cost: `__usage__` in its record holds all its attempts.
    pub(crate) fn record(
        &mut self,
        shared: &Shared,
        ns: &str,
        task_id: &Arc<str>,
        usage: &UsageTotals,
        effects: &mut Vec<Effect>,
    ) {
        if usage.is_empty() && !self.ended.contains_key(task_id) {
            return;
        }
        let total = self.ended.entry(Arc::clone(task_id)).or_default();
        total.merge(usage);
        let is_its = |effect: &Effect| matches!(effect, Effect::Writes { record, .. } if record.task_id == *task_id);
        match effects.iter().position(is_its).map(|at| effects.remove(at)) {
            Some(Effect::Writes { checkpoint_id, mut record }) => {
                let noted = Arc::make_mut(&mut record);
                noted.remove(special::USAGE);
                noted.writes.push((special::USAGE.into(), total.to_json()));
                shared.record(ns, checkpoint_id, record, usage);
            }
            _ => shared.spend(ns, usage),
        }
    }

    /// What tasks that were stopped have reported.
    pub(crate) fn abandon(&mut self) -> UsageTotals {
        let mut totals = UsageTotals::default();
        for report in self.open.drain().map(|(_, report)| report) {
            totals.merge(&std::mem::take(&mut lock(&report).totals));
        }
        totals
    }

    /// No task of the superstep has ended that cost anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.ended.is_empty()
    }

    /// The last checkpoint was stored, with what was carried.
    pub(crate) fn note_stored(&mut self) {
        self.carried = UsageTotals::default();
    }

    /// The superstep of these tasks is applied: its sum goes into the metadata of the checkpoint it made. `carry`: that
    /// checkpoint may never be stored.
    pub(crate) fn apply(&mut self, tasks: &HashSet<Arc<str>>, effects: &mut [Effect], carry: bool) {
        let mut sum = std::mem::take(&mut self.carried);
        for (task_id, usage) in self.ended.drain() {
            if tasks.contains(&task_id) {
                sum.merge(&usage);
            }
        }
        if sum.is_empty() {
            return;
        }
        for effect in effects {
            if let Effect::Checkpoint(draft) = effect {
                Arc::make_mut(&mut draft.extra).insert(USAGE.to_owned(), sum.to_json());
            }
        }
        if carry {
            self.carried = sum;
        }
    }
}

/// The key of usage in metadata.
pub(crate) const USAGE: &str = "usage";

/// A model's name as it is stored: short, without control characters, never empty.
fn clean(model: &str) -> String {
    let mut end = model.len().min(MAX_MODEL);
    while !model.is_char_boundary(end) {
        end -= 1;
    }
    let name: String = model[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// The messages of a value that have usage.
fn each_priced(value: &Json, visit: &mut dyn FnMut(&Json)) {
    if !(value.is_array() || value.is_object()) || !value.as_raw().get().contains(MARK) {
        return;
    }
    let mut look = |value: &Json| {
        if is_priced(value) {
            visit(value);
        }
    };
    if value.is_object() {
        look(value);
    } else {
        value.items().into_iter().flatten().for_each(|item| look(&item));
    }
}

/// An AI message that says what it cost, also one that no reducer has completed yet.
fn is_priced(value: &Json) -> bool {
    let kind = |key: &str| value.value()[key].as_str();
    value.is_object()
        && value.value()[MARK].is_object()
        && (matches!(kind("type"), Some("ai" | "AIMessage" | "AIMessageChunk" | "assistant"))
            || matches!(kind("role"), Some("ai" | "assistant")))
}

/// A message's id; without one, its text.
fn identity(message: &Json) -> String {
    message_id(message).map_or_else(|| message.text(), str::to_owned)
}

fn ids_of(value: Option<Json>) -> HashSet<String> {
    let items = value.and_then(|value| value.items()).unwrap_or_default();
    items.iter().filter_map(|item| scan_id(item).map(Cow::into_owned)).collect()
}

/// A message's model, its tokens, and how many of them the provider had cached. What is missing or no number counts as
/// nothing.
fn read(message: &Json) -> (String, ModelUsage, i64) {
    let message = message.value();
    let (usage, response) = (&message[MARK], &message["response_metadata"]);
    let model = ["model_name", "model"].iter().find_map(|key| response[*key].as_str()).unwrap_or_default();
    let number = |key: &str| usage[key].as_i64().unwrap_or(0).clamp(0, 1_000_000_000_000);
    let (input_tokens, output_tokens) = (number("input_tokens"), number("output_tokens"));
    let total_tokens =
        if usage["total_tokens"].is_i64() { number("total_tokens") } else { input_tokens + output_tokens };
    let cached = usage["input_token_details"]["cache_read"].as_i64().unwrap_or(0);
    (model.to_owned(), ModelUsage { input_tokens, output_tokens, total_tokens, cost: Cost::default() }, cached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_that_is_not_given_is_the_price_of_the_tokens() {
        let cost = |text: &str| text.parse::<Cost>().expect("a price");
        let price = Price { input: cost("2.5"), output: cost("10"), cached: cost("1.25") };
        let prices = Prices::from([("m".to_owned(), price)]);
        let usage = ModelUsage { input_tokens: 1000, output_tokens: 100, total_tokens: 1100, cost: Cost::default() };
        let total = |model: &str, cached, cost| {
            let mut report = Report::default();
            report.add(&prices, model, usage, cached, cost);
            report.totals.to_json().value()["cost"].as_str().expect("a cost").to_owned()
        };
        assert_eq!(total("m", 0, None), "0.0035");
        assert_eq!(total("m", 400, None), "0.003");
        assert_eq!(total("m", 5000, None), "0.00225", "no more can be cached than was read");
        assert_eq!(total("m", 0, Some(cost("7"))), "7");
        assert_eq!(total("other", 0, None), "0");
    }

    #[test]
    fn names_of_models_are_short_and_printable() {
        assert_eq!(clean("a\0b"), "a b");
        assert_eq!(clean(""), "unknown");
        assert_eq!(clean(&"ä".repeat(200)).len(), 254);
    }
}
