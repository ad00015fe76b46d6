//! Templates: JSON in which an object with one key that starts with `$` is an expression.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use session_store::graph::{Destination, Json, Message, NodeError, overwrite};

use super::condition;

/// What a template can see.
#[derive(Debug, Default)]
pub(crate) struct Env {
    /// The task's input: a state, or a Send's argument.
    pub(crate) input: Value,
    /// The run's static context.
    pub(crate) context: Value,
    /// How often this body has been started.
    pub(crate) runs: u64,
    pub(crate) answers: Vec<Value>,
    pub(crate) vars: HashMap<String, Value>,
    /// The element and index of a `for_each`.
    pub(crate) item: Option<(Value, usize)>,
}

impl Env {
    fn state(&self, key: &str) -> Value {
        self.input.get(key).cloned().unwrap_or_default()
    }
}

pub(crate) fn fixture_error(message: impl Into<String>) -> NodeError {
    NodeError::new("FixtureError", message)
}

/// The value of a template.
pub(crate) fn eval(template: &Value, env: &Env) -> Result<Value, NodeError> {
    match template {
        Value::Array(items) => items.iter().map(|item| eval(item, env)).collect(),
        Value::Object(fields) => match expression(fields) {
            Some((operator, argument)) => evaluate(operator, argument, env),
            None => {
                let fields = fields.iter().map(|(key, value)| Ok((key.clone(), eval(value, env)?)));
                Ok(Value::Object(fields.collect::<Result<Map<String, Value>, NodeError>>()?))
            }
        },
        scalar => Ok(scalar.clone()),
    }
}

fn expression(fields: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (key, argument) = fields.iter().next().filter(|_| fields.len() == 1)?;
    key.starts_with('$').then_some((key, argument))
}

fn evaluate(operator: &str, argument: &Value, env: &Env) -> Result<Value, NodeError> {
    let name = || argument.as_str().ok_or_else(|| fixture_error(format!("{operator} needs a name")));
    Ok(match operator {
        "$state" => env.state(name()?),
        "$has" => json!(env.input.get(name()?).is_some()),
        "$len" => json!(len(&match argument {
            Value::String(key) => env.state(key),
            template => eval(template, env)?,
        })),
        "$input" => env.input.clone(),
        "$answer" => argument.as_u64().and_then(|n| env.answers.get(n as usize)).cloned().unwrap_or_default(),
        "$var" => env.vars.get(name()?).cloned().unwrap_or_default(),
        "$context" => env.context.get(name()?).cloned().unwrap_or_default(),
        "$runs" => json!(env.runs),
        "$item" => env.item.as_ref().map(|(item, _)| item.clone()).unwrap_or_default(),
        "$index" => env.item.as_ref().map(|(_, index)| json!(index)).unwrap_or_default(),
        "$lit" => argument.clone(),
        "$concat" => Value::String(list(argument, env)?.iter().map(text).collect()),
        "$add" => json!(list(argument, env)?.iter().map(|value| value.as_i64().unwrap_or_default()).sum::<i64>()),
        "$get" => match list(argument, env)?.as_slice() {
            [base, key] => member(base, key).unwrap_or_default(),
            _ => return Err(fixture_error("$get needs [base, key]")),
        },
        "$overwrite" => overwrite(&Json::from(eval(argument, env)?)).value().clone(),
        "$message" => message(eval(argument, env)?)?,
        "$remove_message" => json!(Message::remove(text(&eval(argument, env)?))),
        unknown => return Err(fixture_error(format!("unknown template {unknown}"))),
    })
}

fn list(argument: &Value, env: &Env) -> Result<Vec<Value>, NodeError> {
    match eval(argument, env)? {
        Value::Array(items) => Ok(items),
        other => Err(fixture_error(format!("a list was expected, not {other}"))),
    }
}

fn len(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.len(),
        Value::String(text) => text.chars().count(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    }
}

fn member(base: &Value, key: &Value) -> Option<Value> {
    let index = |len: usize| {
        let key = key.as_i64()?;
        usize::try_from(if key < 0 { key + i64::try_from(len).ok()? } else { key }).ok()
    };
    match base {
        Value::Object(fields) => fields.get(key.as_str()?).cloned(),
        Value::Array(items) => items.get(index(items.len())?).cloned(),
        Value::String(text) => text.chars().nth(index(text.chars().count())?).map(|c| json!(c.to_string())),
        _ => None,
    }
}

/// Strings as they are, everything else as compact JSON with sorted keys.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => sorted(other).to_string(),
    }
}

/// The value with the keys of all its objects in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(fields) => {
            let fields: BTreeMap<&String, Value> = fields.iter().map(|(key, value)| (key, sorted(value))).collect();
            fields.into_iter().map(|(key, value)| (key.clone(), value)).collect()
        }
        other => other.clone(),
    }
}

/// A typed message.
pub(crate) fn message(fields: Value) -> Result<Value, NodeError> {
    let message: Message = serde_json::from_value(fields)?;
    Ok(json!(message))
}

/// Where a list of destinations (or a single one) leads.
pub(crate) fn destinations(to: &Value, env: &mut Env) -> Result<Vec<Destination>, NodeError> {
    let single = std::slice::from_ref(to);
    let mut found = Vec::new();
    for destination in to.as_array().map_or(single, Vec::as_slice) {
        if let Some(node) = destination.as_str() {
            found.push(Destination::from(node));
            continue;
        }
        let node =
            destination["send"].as_str().ok_or_else(|| fixture_error(format!("no destination: {destination}")))?;
        let arg = |env: &Env| eval(&destination["arg"], env).map(|arg| Destination::send(node, Json::from(arg)));
        let Some(each) = destination.get("for_each") else {
            found.push(arg(env)?);
            continue;
        };
        let items = match each {
            Value::String(key) => env.state(key),
            template => eval(template, env)?,
        };
        let limit = destination["limit"].as_u64().map_or(usize::MAX, |limit| limit as usize);
        for (index, item) in items.as_array().into_iter().flatten().take(limit).enumerate() {
            env.item = Some((item.clone(), index));
            found.push(arg(env)?);
        }
        env.item = None;
    }
    Ok(found)
}

/// The decision of the first rule that holds: `None` for "no decision".
pub(crate) fn decide(
    rules: &[Map<String, Value>],
    env: &mut Env,
    mut raises: impl FnMut(usize, &Value) -> Option<NodeError>,
) -> Result<Option<Vec<Destination>>, NodeError> {
    for (index, rule) in rules.iter().enumerate() {
        if !rule.get("if").map_or(Ok(true), |condition| condition::holds(condition, env))? {
            continue;
        }
        if let Some(raise) = rule.get("raise") {
            match raises(index, raise) {
                Some(error) => return Err(error),
                None => continue,
            }
        }
        return match rule.get("to") {
            None | Some(Value::Null) => Ok(None),
            Some(to) => destinations(to, env).map(Some),
        };
    }
    Ok(Some(Vec::new()))
}
