//! Usage totals as both backends select them: `[[model, input, output, total, nanos], ..]`, as JSON text.

use super::Result;
use super::encoding::Place;
use crate::model::{Cost, ModelUsage, UsageTotals};

/// Reads the column; NULL where nothing was counted.
pub(crate) fn totals(text: Option<String>, id: &dyn std::fmt::Display) -> Result<UsageTotals> {
    let mut totals = UsageTotals::default();
    let Some(text) = text else { return Ok(totals) };
    let at = Place { table: "usage_totals", column: "model", id };
    let rows: Vec<(String, i64, i64, i64, i64)> =
        serde_json::from_str(&text).map_err(|error| at.corrupt(error.to_string()))?;
    for (model, input_tokens, output_tokens, total_tokens, nanos) in rows {
        let cost = Cost::from_nanos(nanos);
        totals.add(&model, ModelUsage { input_tokens, output_tokens, total_tokens, cost });
    }
    Ok(totals)
}
