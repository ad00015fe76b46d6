//! JSON containment, as Postgres' `@>`: every given key and item is somewhere in the whole.

use serde_json::Value;

pub(crate) fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| contains(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|part| whole.iter().any(|whole| contains(whole, part)))
        }
        (Value::Number(whole), Value::Number(part)) => whole == part || whole.as_f64() == part.as_f64(),
        _ => whole == part,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::contains;

    #[test]
    fn follows_postgres() {
        let whole = json!({"a": {"b": 1, "c": [1, {"d": 2, "e": 3}]}, "n": null});
        for part in [json!({}), json!({"a": {"b": 1.0}}), json!({"a": {"c": [{"d": 2}]}}), json!({"n": null})] {
            assert!(contains(&whole, &part), "{part}");
        }
        for part in [json!({"a": {"b": 2}}), json!({"x": null}), json!({"a": []}), json!({"a": {"c": [9]}})] {
            assert!(!contains(&whole, &part), "{part}");
        }
    }
}
