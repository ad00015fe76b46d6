//! Which texts of an item are embedded: paths into its value, as LangGraph spells them. `a.b` is a key of an object, `[0]`,
//! `[-1]` and `[*]` are entries of a list, `*` is all of either, `{a,b.c}` are several keys, `$` is the whole value as JSON.

use serde_json::Value;

use crate::model::Json;

/// Paths of one item.
pub(crate) const MAX_PATHS: usize = 32;
/// Bytes of a path.
pub(crate) const MAX_PATH_BYTES: usize = 512;
/// Texts of one item, each of which becomes a vector.
pub(crate) const MAX_TEXTS: usize = 64;
/// Values looked at on the way.
const MAX_STEPS: usize = 100_000;

/// The texts at these paths, with the name of their place; what is missing, null or blank is none. The error says what
/// there is too much of.
pub(crate) fn texts(value: &Json, paths: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut walk = Walk { texts: Vec::new(), steps: 0 };
    for path in paths {
        match path.as_str() {
            "" | "$" => walk.texts.push(value.text()),
            path => walk.go(value.value(), &tokens(path))?,
        }
        let several = walk.texts.len() > 1;
        for (index, text) in walk.texts.drain(..).enumerate() {
            let place = if several { format!("{path}.{index}") } else { path.clone() };
            if text.trim().is_empty() || found.iter().any(|(known, _)| *known == place) {
                continue;
            }
            found.push((place, text));
        }
        if found.len() > MAX_TEXTS {
            return Err(format!("more than {MAX_TEXTS} texts of one item"));
        }
    }
    Ok(found)
}

/// A step of a path.
#[derive(Debug, Clone, PartialEq)]
enum Token<'p> {
    Key(&'p str),
    /// An entry of a list, counted from its end if negative; `None`: all.
    Entry(Option<i64>),
    /// All values of an object or list.
    Any,
    /// Several paths of keys.
    Several(Vec<Vec<&'p str>>),
    /// What leads nowhere, such as `[x]`.
    Nothing,
}

fn tokens(path: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let closing = match first {
            '[' => ']',
            '{' => '}',
            '.' => {
                rest = &rest[1..];
                continue;
            }
            _ => {
                let end = rest.find(['.', '[', '{']).unwrap_or(rest.len());
                tokens.push(if &rest[..end] == "*" { Token::Any } else { Token::Key(&rest[..end]) });
                rest = &rest[end..];
                continue;
            }
        };
        let (inner, after) = rest[1..].split_once(closing).unwrap_or((&rest[1..], ""));
        tokens.push(match first {
            '[' if inner == "*" => Token::Entry(None),
            '[' => inner.trim().parse().map_or(Token::Nothing, |index| Token::Entry(Some(index))),
            _ => Token::Several(inner.split(',').map(|path| path.trim().split('.').collect()).collect()),
        });
        rest = after;
    }
    tokens
}

struct Walk {
    texts: Vec<String>,
    steps: usize,
}

impl Walk {
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(format!("the paths lead to more than {MAX_STEPS} values of one item"));
        }
        Ok(())
    }

    fn go(&mut self, value: &Value, path: &[Token<'_>]) -> Result<(), String> {
        self.step()?;
        let Some((token, rest)) = path.split_first() else { return self.end(value) };
        match (token, value) {
            (Token::Key(key), Value::Object(fields)) => match fields.get(*key) {
                Some(inner) => self.go(inner, rest),
                None => Ok(()),
            },
            (Token::Entry(None) | Token::Any, Value::Array(items)) => {
                items.iter().try_for_each(|item| self.go(item, rest))
            }
            (Token::Any, Value::Object(fields)) => fields.values().try_for_each(|inner| self.go(inner, rest)),
            (Token::Entry(Some(index)), Value::Array(items)) => {
                let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = if *index < 0 { count.saturating_add(*index) } else { *index };
                match usize::try_from(at).ok().and_then(|at| items.get(at)) {
                    Some(item) => self.go(item, rest),
                    None => Ok(()),
                }
            }
            (Token::Several(paths), Value::Object(_)) => paths.iter().try_for_each(|keys| {
                self.step()?;
                match keys.iter().try_fold(value, |inner, key| inner.get(*key)) {
                    Some(inner) => self.end(inner),
                    None => Ok(()),
                }
            }),
            _ => Ok(()),
        }
    }

    /// Takes what a path leads to.
    fn end(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::Null => return Ok(()),
            Value::String(text) => self.texts.push(text.clone()),
            other => self.texts.push(other.to_string()),
        }
        if self.texts.len() > MAX_TEXTS {
            return Err(format!("more than {MAX_TEXTS} texts of one item"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str, path: &str) -> Vec<String> {
        let found = texts(&Json::parse(value).expect("JSON"), &[path.to_owned()]).expect("few");
        found.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn paths_are_those_of_langgraph() {
        let value =
            r#"{"t":"x","n":1.5,"b":true,"z":null,"e":" ","o":{"p":"y","q":{"r":"z"}},"l":[{"t":"1"},{"t":"2"},"3"]}"#;
        for (path, expected) in [
            ("t", &["x"][..]),
            ("n", &["1.5"]),
            ("b", &["true"]),
            ("z", &[]),
            ("e", &[]),
            ("missing", &[]),
            ("t.x", &[]),
            ("o.p", &["y"]),
            ("o.q", &[r#"{"r":"z"}"#]),
            ("l[0].t", &["1"]),
            ("l[-2].t", &["2"]),
            ("l[-1]", &["3"]),
            ("l[9]", &[]),
            ("l[x]", &[]),
            ("l[*].t", &["1", "2"]),
            ("l.*.t", &["1", "2"]),
            ("o.*", &["y", r#"{"r":"z"}"#]),
            ("{t,o.q.r,missing}", &["x", "z"]),
            ("o.{p,q}", &["y", r#"{"r":"z"}"#]),
            ("$", &[value]),
            ("", &[value]),
            ("l[", &[]),
            ("{t", &["x"]),
        ] {
            assert_eq!(of(value, path), expected, "{path}");
        }
    }

    #[test]
    fn places_are_named_and_bounded() {
        let value = Json::parse(r#"{"t":"x","l":["a","","b"]}"#).expect("JSON");
        let found = texts(&value, &["t".into(), "l[*]".into(), "t".into()]).expect("few");
        let places: Vec<&str> = found.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["t", "l[*].0", "l[*].2"]);
        let many = |item: &str, count: usize| Json::parse(&format!("[{}]", vec![item; count].join(","))).expect("JSON");
        assert!(texts(&many("\"x\"", MAX_TEXTS), &["[*]".into()]).is_ok());
        assert!(texts(&many("\"x\"", MAX_TEXTS + 1), &["[*]".into()]).is_err());
        assert!(texts(&many("0", MAX_STEPS), &["[*].x".into()]).is_err());
    }
}
