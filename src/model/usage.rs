//! What models cost: tokens and money, by model.

#![deny(missing_docs)]

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use super::{Json, JsonError};

const NANOS: i128 = 1_000_000_000;

/// An amount of money in 1/1,000,000,000 of a currency unit: the currency of the prices, dollars by custom. Sums are
/// exact; on the wire it is a decimal string, as in `"0.0105"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cost(i64);

impl Cost {
    /// What one report may cost at most: a million units. Totals of billions fit.
    pub const MAX: Cost = Cost(1_000_000 * NANOS as i64);

    /// From billionths of a unit.
    pub fn from_nanos(nanos: i64) -> Cost {
        Cost(nanos)
    }

    /// In billionths of a unit.
    pub fn nanos(self) -> i64 {
        self.0
    }

    /// What `tokens` cost at this price per million tokens, to the nearest billionth of a unit.
    pub fn of_tokens(self, tokens: i64) -> Cost {
        let product = i128::from(self.0) * i128::from(tokens);
        Cost(i64::try_from((product + 500_000).div_euclid(1_000_000)).unwrap_or(i64::MAX))
    }

    /// The sum; what does not fit stays at the greatest amount.
    #[must_use]
    pub fn plus(self, other: Cost) -> Cost {
        Cost(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, nanos) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let (units, rest) = (nanos / NANOS as u64, nanos % NANOS as u64);
        if rest == 0 {
            return write!(f, "{sign}{units}");
        }
        let digits = format!("{rest:09}");
        write!(f, "{sign}{units}.{}", digits.trim_end_matches('0'))
    }
}

/// Not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a decimal amount between 0 and 1000000 with at most 9 decimals")]
pub struct CostError(pub String);

impl FromStr for Cost {
    type Err = CostError;

    fn from_str(text: &str) -> Result<Cost, CostError> {
        let refused = || CostError(text.to_owned());
        let (units, rest) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if units.is_empty() || units.len() > 7 || rest.len() > 9 || !digits(units) || !digits(rest) {
            return Err(refused());
        }
        let units: i64 = units.parse().map_err(|_| refused())?;
        let rest: i64 = format!("{rest:0<9}").parse().map_err(|_| refused())?;
        Some(Cost(units * NANOS as i64 + rest)).filter(|cost| *cost <= Cost::MAX).ok_or_else(refused)
    }
}

/// The shortest decimal that means the number: `0.0105` is exactly that.
impl TryFrom<f64> for Cost {
    type Error = CostError;

    fn try_from(number: f64) -> Result<Cost, CostError> {
        number.to_string().parse()
    }
}

/// Tokens and money of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelUsage {
    /// Tokens the model read.
    pub input_tokens: i64,
    /// Tokens it wrote.
    pub output_tokens: i64,
    /// All tokens, as the provider counts them.
    pub total_tokens: i64,
    /// What they cost.
    pub cost: Cost,
}

impl ModelUsage {
    /// The sum; what does not fit stays at the greatest number.
    #[must_use]
    pub fn plus(self, other: ModelUsage) -> ModelUsage {
        ModelUsage {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            total_tokens: self.total_tokens.saturating_add(other.total_tokens),
            cost: self.cost.plus(other.cost),
        }
    }

    fn to_value(self) -> Value {
        json!({
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
            "cost": self.cost.to_string(),
        })
    }
}

/// Usage by model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageTotals(pub BTreeMap<String, ModelUsage>);

impl UsageTotals {
    /// Adds what one model was asked for.
    pub fn add(&mut self, model: &str, usage: ModelUsage) {
        let sum = self.0.entry(model.to_owned()).or_default();
        *sum = sum.plus(usage);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &UsageTotals) {
        for (model, usage) in &other.0 {
            self.add(model, *usage);
        }
    }

    /// Nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All models together.
    pub fn sum(&self) -> ModelUsage {
        self.0.values().fold(ModelUsage::default(), |sum, usage| sum.plus(*usage))
    }

    /// `{input_tokens, output_tokens, total_tokens, cost, models: {MODEL: {..}}}`, as metadata shows it.
    pub fn to_json(&self) -> Json {
        let sum = self.sum();
        let models: serde_json::Map<String, Value> =
            self.0.iter().map(|(model, usage)| (model.clone(), usage.to_value())).collect();
        let mut document = sum.to_value();
        document["models"] = Value::Object(models);
        Json::from(document)
    }

    /// Reads [`UsageTotals::to_json`].
    ///
    /// # Errors
    /// The document is of another form.
    pub fn from_json(json: &Json) -> Result<UsageTotals, JsonError> {
        let bad = || JsonError("not a usage document".to_owned());
        let models = json.value()["models"].as_object().ok_or_else(bad)?;
        let mut totals = UsageTotals::default();
        for (model, usage) in models {
            let number = |key: &str| usage[key].as_i64().ok_or_else(bad);
            let cost = usage["cost"].as_str().and_then(parse_total).ok_or_else(bad)?;
            let usage = ModelUsage {
                input_tokens: number("input_tokens")?,
                output_tokens: number("output_tokens")?,
                total_tokens: number("total_tokens")?,
                cost,
            };
            totals.0.insert(model.clone(), usage);
        }
        Ok(totals)
    }
}

/// A total may be larger than one report.
fn parse_total(text: &str) -> Option<Cost> {
    let (units, rest) = text.split_once('.').unwrap_or((text, ""));
    if rest.len() > 9 {
        return None;
    }
    let nanos = i128::from(units.parse::<i64>().ok()?) * NANOS + i128::from(format!("{rest:0<9}").parse::<u32>().ok()?);
    i64::try_from(nanos).ok().map(Cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_exact_decimals() {
        for text in ["0", "1", "0.0105", "12.000000001", "1000000"] {
            assert_eq!(text.parse::<Cost>().expect(text).to_string(), text);
        }
        for text in ["", ".5", "-1", "1e3", "1000001", "0.0000000001", "1.2.3", "x"] {
            assert!(text.parse::<Cost>().is_err(), "{text}");
        }
        assert_eq!(Cost::try_from(0.15).expect("a price").of_tokens(1).to_string(), "0.00000015");
        assert_eq!(Cost::try_from(2.5).expect("a price").of_tokens(1_000).to_string(), "0.0025");
        assert!(Cost::try_from(f64::NAN).is_err() && Cost::try_from(-0.1).is_err());
    }

    #[test]
    fn totals_are_read_as_they_are_written() {
        let mut totals = UsageTotals::default();
        let usage =
            |input_tokens, cost| ModelUsage { input_tokens, output_tokens: 2, total_tokens: input_tokens + 2, cost };
        totals.add("a", usage(1, Cost::MAX));
        totals.add("a", usage(2, Cost::MAX));
        totals.add("b", usage(3, Cost::from_nanos(1)));
        let document = totals.to_json();
        assert_eq!(document.value()["cost"], "2000000.000000001");
        assert_eq!(document.value()["models"]["a"]["total_tokens"], 7);
        assert_eq!(UsageTotals::from_json(&document).expect("reads"), totals);
        assert!(UsageTotals::from_json(&Json::parse("{}").expect("JSON")).is_err());
    }
}
