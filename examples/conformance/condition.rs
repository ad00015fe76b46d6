//! Conditions on what a template can see.

use std::cmp::Ordering;

use serde_json::{Value, json};
use session_store::graph::NodeError;

use super::template::{Env, eval, fixture_error};

/// Whether a condition holds.
pub(crate) fn holds(condition: &Value, env: &Env) -> Result<bool, NodeError> {
    let unknown = || fixture_error(format!("unknown condition {condition}"));
    if let Value::Bool(truth) = condition {
        return Ok(*truth);
    }
    let (operator, argument) = condition.as_object().and_then(|fields| fields.iter().next()).ok_or_else(unknown)?;
    let all = || argument.as_array().into_iter().flatten();
    Ok(match operator.as_str() {
        "else" => argument == &Value::Bool(true),
        "eq" => pair(argument, env).map(|(left, right)| left == right)?,
        "ne" => pair(argument, env).map(|(left, right)| left != right)?,
        "lt" => pair(argument, env).map(|(left, right)| less(&left, &right))?,
        "len_lt" => {
            let len = eval(&json!({"$len": argument[0]}), env)?;
            len.as_u64() < argument[1].as_u64()
        }
        "contains" => pair(argument, env).map(|(base, part)| contains(&base, &part))?,
        "not" => !holds(argument, env)?,
        "all" => {
            for condition in all() {
                if !holds(condition, env)? {
                    return Ok(false);
                }
            }
            true
        }
        "any" => {
            for condition in all() {
                if holds(condition, env)? {
                    return Ok(true);
                }
            }
            false
        }
        _ => return Err(unknown()),
    })
}

fn pair(argument: &Value, env: &Env) -> Result<(Value, Value), NodeError> {
    Ok((eval(&argument[0], env)?, eval(&argument[1], env)?))
}

/// Null counts as zero.
fn less(left: &Value, right: &Value) -> bool {
    let number = |value: &Value| if value.is_null() { Some(0.0) } else { value.as_f64() };
    let order = match (left.as_str(), right.as_str()) {
        (Some(left), Some(right)) => Some(left.cmp(right)),
        _ => number(left).partial_cmp(&number(right)),
    };
    order == Some(Ordering::Less)
}

fn contains(base: &Value, part: &Value) -> bool {
    match base {
        Value::Array(items) => items.contains(part),
        Value::String(text) => part.as_str().is_some_and(|part| text.contains(part)),
        Value::Object(fields) => part.as_str().is_some_and(|part| fields.contains_key(part)),
        _ => false,
    }
}
