//! Sums of JSON numbers: integers of any length stay exact, everything else is a double.

use std::cmp::Ordering;

use super::{type_error, type_name};
use crate::engine::EngineError;
use crate::model::Json;

/// `left + right` as Python computes it; true and false count as 1 and 0.
///
/// # Errors
/// `TypeError` for what is not a number, `OverflowError` for a sum beyond a double.
pub(super) fn sum(left: &Json, right: &Json) -> Result<Json, EngineError> {
    let (Some(a), Some(b)) = (number(left), number(right)) else {
        let (left, right) = (type_name(left), type_name(right));
        return Err(type_error(format!("unsupported operand type(s) for +: '{left}' and '{right}'")));
    };
    let text = if is_integer_text(a) && is_integer_text(b) {
        match (a.parse::<i128>(), b.parse::<i128>()) {
            (Ok(a), Ok(b)) if a.checked_add(b).is_some() => (a + b).to_string(),
            _ => add_decimal(a, b),
        }
    } else {
        let total: f64 = double(a) + double(b);
        return match serde_json::Number::from_f64(total) {
            Some(total) => Ok(Json::from(serde_json::Value::Number(total))),
            None => Err(EngineError::new("OverflowError", format!("{a} + {b} is out of range"))),
        };
    };
    Json::trusted(text).map_err(|error| EngineError::value(error.0))
}

/// True for numbers without point and exponent.
pub(super) fn is_integer(json: &Json) -> bool {
    is_integer_text(json.as_raw().get())
}

fn is_integer_text(text: &str) -> bool {
    !text.contains(['.', 'e', 'E'])
}

fn number(json: &Json) -> Option<&str> {
    let text = json.as_raw().get().trim_ascii();
    match text.as_bytes().first()? {
        b't' => Some("1"),
        b'f' => Some("0"),
        b'-' | b'0'..=b'9' => Some(text),
        _ => None,
    }
}

fn double(text: &str) -> f64 {
    text.parse().unwrap_or(f64::INFINITY)
}

/// Adds decimal integers of any length.
fn add_decimal(a: &str, b: &str) -> String {
    let (a_negative, a) = sign(a);
    let (b_negative, b) = sign(b);
    let (negative, digits) = if a_negative == b_negative {
        (a_negative, add_digits(a, b))
    } else {
        match compare(a, b) {
            Ordering::Less => (b_negative, subtract_digits(b, a)),
            _ => (a_negative, subtract_digits(a, b)),
        }
    };
    let digits = digits.trim_start_matches('0');
    match (digits, negative) {
        ("", _) => "0".to_owned(),
        (digits, true) => format!("-{digits}"),
        (digits, false) => digits.to_owned(),
    }
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    }
}

fn compare(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn add_digits(a: &str, b: &str) -> String {
    let mut carry = 0;
    combine(a, b, |a, b| {
        let sum = a + b + carry;
        carry = sum / 10;
        sum % 10
    })
}

/// `a - b` where `a` is not the smaller one.
fn subtract_digits(a: &str, b: &str) -> String {
    let mut borrow = 0;
    combine(a, b, |a, b| {
        let (b, ten) = (b + borrow, 10);
        borrow = u8::from(a < b);
        (a + ten * borrow) - b
    })
}

/// Walks two numbers from their last digit, one place further than the longer one.
fn combine(a: &str, b: &str, mut step: impl FnMut(u8, u8) -> u8) -> String {
    let digit = |text: &str, place: usize| match text.len().checked_sub(place + 1) {
        Some(at) => text.as_bytes()[at] - b'0',
        None => 0,
    };
    let places = a.len().max(b.len()) + 1;
    let digits: Vec<char> =
        (0..places).map(|place| char::from(b'0' + step(digit(a, place), digit(b, place)))).collect();
    digits.into_iter().rev().collect()
}
