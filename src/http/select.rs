//! What part of a row a client wants: `select` (columns) and `extract` (values by path), contract section 1.3.

use super::error::{ApiError, ApiResult};
use super::object::Object;
use crate::model::{Fields, Json, ThreadState};

/// The most columns, aliases and steps of a path.
pub(crate) const MAX_COLUMNS: usize = 100;
pub(crate) const MAX_ALIASES: usize = 10;
const MAX_STEPS: usize = 32;

/// The columns of a row to answer with; all of them when nothing was selected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Columns(Option<Vec<String>>);

impl Columns {
    pub(crate) fn of_body(body: &mut Object, known: &[&str]) -> ApiResult<Columns> {
        Columns::new(body.strings("select", MAX_COLUMNS)?, known)
    }

    /// Refuses names that are no columns.
    pub(crate) fn new(names: Option<Vec<String>>, known: &[&str]) -> ApiResult<Columns> {
        for name in names.iter().flatten() {
            if !known.contains(&name.as_str()) {
                let got: String = name.chars().take(64).collect();
                return Err(ApiError::invalid(format!(
                    "select: expected columns of {}, got '{got}'",
                    known.join(", ")
                )));
            }
        }
        Ok(Columns(names))
    }

    pub(crate) fn includes(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|chosen| chosen == name))
    }

    pub(crate) fn apply(&self, mut row: Fields) -> Fields {
        row.retain(|name, _| self.includes(name));
        row
    }
}

/// The parts of a state: its members, or single values as `values.<key>`.
#[derive(Debug, Clone, Default)]
pub(crate) struct StateParts(Option<Vec<String>>);

impl StateParts {
    const KNOWN: [&str; 8] =
        ["values", "next", "tasks", "checkpoint", "metadata", "created_at", "parent_checkpoint", "interrupts"];

    pub(crate) fn of_body(body: &mut Object) -> ApiResult<StateParts> {
        StateParts::new(body.strings("select", MAX_COLUMNS)?)
    }

    pub(crate) fn new(names: Option<Vec<String>>) -> ApiResult<StateParts> {
        let is_known = |name: &String| Self::KNOWN.contains(&name.as_str()) || name.starts_with("values.");
        if let Some(bad) = names.iter().flatten().find(|name| !is_known(name)) {
            let (known, got) = (Self::KNOWN.join(", "), bad.chars().take(64).collect::<String>());
            return Err(ApiError::invalid(format!("select: expected names of {known}, values.<key>, got '{got}'")));
        }
        Ok(StateParts(names))
    }

    pub(crate) fn apply(&self, state: &ThreadState) -> ApiResult<Json> {
        let whole = Json::of(state).map_err(|error| ApiError::Internal(error.0))?;
        let Some(names) = &self.0 else { return Ok(whole) };
        let mut row = whole.fields().unwrap_or_default();
        let keys: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("values.")).collect();
        let whole_values = names.iter().any(|name| name == "values");
        if !keys.is_empty()
            && !whole_values
            && let Some(mut values) = state.values.fields()
        {
            values.retain(|key, _| keys.contains(&key.as_str()));
            row.insert("values".to_owned(), Json::from(&values));
        }
        row.retain(|name, _| names.iter().any(|chosen| chosen == name) || (name == "values" && !keys.is_empty()));
        Ok(Json::from(&row))
    }
}

/// Values to pull out of each row, by alias.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extract(Vec<(String, Path)>);

/// `values.messages[-1].content`.
#[derive(Debug, Clone, PartialEq)]
struct Path {
    root: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    /// Negative counts from the end.
    Index(i64),
}

impl Extract {
    const ROOTS: [&str; 4] = ["values", "metadata", "config", "interrupts"];

    /// Reads `extract`; aliases are identifiers and none of the `columns`.
    pub(crate) fn of_body(body: &mut Object, columns: &[&str]) -> ApiResult<Extract> {
        let Some(map) = body.object("extract")? else { return Ok(Extract::default()) };
        let fields = map.fields().unwrap_or_default();
        if fields.len() > MAX_ALIASES {
            return Err(ApiError::invalid(format!("extract: at most {MAX_ALIASES} aliases")));
        }
        let entry = |(alias, path): (String, Json)| {
            let shown: String = alias.chars().take(64).collect();
            if !is_identifier(&alias) || columns.contains(&alias.as_str()) {
                return Err(ApiError::invalid(format!(
                    "extract: alias '{shown}' must be an identifier and not a column name"
                )));
            }
            let path = path.as_str().and_then(parse_path).filter(|path| Self::ROOTS.contains(&path.root.as_str()));
            let Some(path) = path else {
                return Err(ApiError::invalid(format!(
                    "extract.{shown}: expected a path like values.messages[-1].content that starts with {}",
                    Self::ROOTS.join(", ")
                )));
            };
            Ok((alias, path))
        };
        fields.into_iter().map(entry).collect::<ApiResult<_>>().map(Extract)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn needs(&self, root: &str) -> bool {
        self.0.iter().any(|(_, path)| path.root == root)
    }

    /// The extracted values of a whole row; what is not there is `null`.
    pub(crate) fn apply(&self, row: &Fields) -> Json {
        let found = |path: &Path| {
            let root = row.get(&path.root)?.clone();
            path.steps.iter().try_fold(root, |value, step| step.of(&value))
        };
        let values: Fields =
            self.0.iter().map(|(alias, path)| (alias.clone(), found(path).unwrap_or_default())).collect();
        Json::from(&values)
    }
}

impl Step {
    fn of(&self, value: &Json) -> Option<Json> {
        match self {
            Step::Key(key) => value.get(key),
            Step::Index(index) => {
                let items = value.items()?;
                let index = if *index < 0 { items.len() as i64 + index } else { *index };
                items.get(usize::try_from(index).ok()?).cloned()
            }
        }
    }
}

fn is_identifier(text: &str) -> bool {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn parse_path(text: &str) -> Option<Path> {
    let mut segments = text.split('.');
    let root = segments.next()?.to_owned();
    let mut steps = Vec::new();
    for segment in segments {
        let (key, indexes) = segment.split_at(segment.find('[').unwrap_or(segment.len()));
        if key.is_empty() {
            return None;
        }
        steps.push(Step::Key(key.to_owned()));
        let mut rest = indexes;
        while !rest.is_empty() {
            let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
            steps.push(Step::Index(index.parse().ok()?));
            rest = after;
        }
    }
    (steps.len() <= MAX_STEPS).then_some(Path { root, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Fields {
        Json::parse(text).expect("JSON").fields().expect("an object")
    }

    fn extract(text: &str) -> ApiResult<Extract> {
        Extract::of_body(&mut Object::body(&Json::parse(text).expect("JSON")).expect("an object"), &["status"])
    }

    #[test]
    fn selects_columns_and_refuses_unknown_ones() {
        let columns = Columns::new(Some(vec!["b".into()]), &["a", "b"]).expect("known");
        assert_eq!(Json::from(&columns.apply(row(r#"{"a":1,"b":2}"#))).text(), r#"{"b":2}"#);
        assert!(Columns::new(Some(vec!["x".into()]), &["a"]).is_err());
        assert!(Columns::default().includes("anything"));
    }

    #[test]
    fn extracts_by_path() {
        let row = row(r#"{"values":{"m":[{"c":"a"},{"c":"b"}],"n":1},"metadata":{}}"#);
        let all = extract(
            r#"{"extract":{"last":"values.m[-1].c","first":"values.m[0].c","no":"values.m[9].c","x":"metadata.x.y","all":"metadata"}}"#,
        );
        let want = r#"{"last":"b","first":"a","no":null,"x":null,"all":{}}"#;
        assert_eq!(all.expect("valid").apply(&row).text(), want);
    }

    #[test]
    fn bad_aliases_and_paths_are_refused() {
        for bad in [
            r#"{"extract":{"1a":"values.x"}}"#,
            r#"{"extract":{"status":"values.x"}}"#,
            r#"{"extract":{"a":"thread_id"}}"#,
            r#"{"extract":{"a":"values..x"}}"#,
            r#"{"extract":{"a":"values.x[y]"}}"#,
            r#"{"extract":{"a":"values.x[0"}}"#,
            r#"{"extract":{"a":1}}"#,
            r#"{"extract":[]}"#,
        ] {
            assert!(extract(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_of_a_state_may_be_single_values() {
        let state = ThreadState {
            values: Json::parse(r#"{"a":1,"b":2}"#).expect("JSON"),
            next: vec![],
            tasks: vec![],
            metadata: None,
            created_at: None,
            checkpoint: None,
            parent_checkpoint: None,
            interrupts: vec![],
        };
        let pick = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            StateParts::new(Some(names)).expect("known").apply(&state).expect("renders").text()
        };
        assert_eq!(pick(&["values.b", "next"]), r#"{"values":{"b":2},"next":[]}"#);
        assert_eq!(pick(&["values"]), r#"{"values":{"a":1,"b":2}}"#);
        assert!(StateParts::new(Some(vec!["nope".into()])).is_err());
    }
}
