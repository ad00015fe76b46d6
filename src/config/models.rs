//! `[models]`: what models cost, for usage whose nodes do not say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::Cost;

/// The keys of a model's prices.
pub(super) const KEYS: [&str; 3] = ["input_per_million", "output_per_million", "cached_per_million"];

/// Prices by model, as the model is named in usage.
pub type ModelsConfig = BTreeMap<String, ModelConfig>;

/// What a model's tokens cost, per million.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub input_per_million: f64,
    pub output_per_million: f64,
    /// For input tokens that the provider had cached; without it they cost as much as others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_per_million: Option<f64>,
}

impl ModelConfig {
    /// Input, output and cached input, per million tokens; what is no amount of money costs nothing: it was refused when
    /// the settings were checked.
    pub fn prices(&self) -> [Cost; 3] {
        let cost = |price: f64| Cost::try_from(price).unwrap_or_default();
        let cached = self.cached_per_million.unwrap_or(self.input_per_million);
        [cost(self.input_per_million), cost(self.output_per_million), cost(cached)]
    }
}

/// The prices that are no amounts of money, by setting.
pub(super) fn problems(models: &ModelsConfig) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, model) in models {
        let prices = [Some(model.input_per_million), Some(model.output_per_million), model.cached_per_million];
        for (key, price) in KEYS.iter().zip(prices) {
            if let Some(Err(_)) = price.map(Cost::try_from) {
                let price = price.unwrap_or_default();
                problems.push(format!(
                    "models.{name:?}.{key} = {price}: must be between 0 and 1000000 with at most 9 decimals"
                ));
            }
        }
    }
    problems
}
