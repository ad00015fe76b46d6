//! Assistants as tools: their names, schemas, and which one a name means.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::jsonrpc::{INVALID_PARAMS, Refusal};
use crate::http::object::{Object, check_range};
use crate::http::page::{cut, with_one_more};
use crate::model::{Assistant, Json, special};
use crate::runtime::{AssistantName, RuntimeError};
use crate::storage::{AssistantFilter, AssistantSort, Page};

/// Tools on a page of the list.
const PAGE: i64 = 100;
/// Assistants read at once to find a name.
const SEARCHED: i64 = 200;
/// The longest name of a tool in the protocol.
const MAX_NAME: usize = 128;
const MAX_OFFSET: i64 = 1_000_000_000;

/// `tools/list`: a page of assistants in the order of their names; the cursor is an offset. Assistants whose graph is not
/// in this build, and those that share a name, cannot be called and are left out.
pub(super) async fn list(state: &AppState, caller: &Caller, mut params: Object) -> Result<Json, Refusal> {
    let page = Page { limit: PAGE, offset: offset(params.string("cursor")?.as_deref())? };
    let (filter, window) = (AssistantFilter::default(), with_one_more(page));
    let mut found = state.runtime.search_assistants(&caller.scope, &filter, AssistantSort::Name, true, window).await?;
    let names: Vec<String> = found.iter().map(tool_name).collect();
    let more = cut(&mut found, page);
    let is_only = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
    let tools: Vec<Value> = found
        .iter()
        .zip(&names)
        .filter(|(_, name)| is_only(name))
        .filter_map(|(assistant, name)| {
            let schemas = state.runtime.graph(&assistant.graph_id)?.schemas();
            Some(tool(assistant, name, &schemas.input, &schemas.output))
        })
        .collect();
    let mut result = json!({"tools": tools});
    if more {
        result["nextCursor"] = Value::from((page.offset + PAGE).to_string());
    }
    Ok(Json::from(result))
}

fn offset(cursor: Option<&str>) -> Result<i64, Refusal> {
    let Some(cursor) = cursor.filter(|cursor| !cursor.is_empty()) else { return Ok(0) };
    let refuse = || Refusal::new(INVALID_PARAMS, "params.cursor: expected a nextCursor of an earlier page");
    let offset: i64 = cursor.parse().map_err(|_| refuse())?;
    check_range("params.cursor", offset, &(0..=MAX_OFFSET))?;
    Ok(offset)
}

/// The assistant that a tool's name means: its own name as tools spell it, or its id.
pub(super) async fn find(state: &AppState, caller: &Caller, name: &str) -> Result<Assistant, Refusal> {
    let shown: String = name.chars().take(MAX_NAME).collect();
    if let Ok(id) = Uuid::try_parse(name) {
        match state.runtime.find_assistant(&caller.scope, &AssistantName::Id(id)).await {
            Ok(assistant) => return Ok(assistant),
            Err(RuntimeError::AssistantNotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // What is between underscores stands in the assistant's name as it is.
    let part = name.split('_').max_by_key(|part| part.len()).filter(|part| !part.is_empty());
    let filter = AssistantFilter { name: part.map(str::to_owned), ..AssistantFilter::default() };
    let mut named: Option<Assistant> = None;
    let mut page = Page { limit: SEARCHED, offset: 0 };
    loop {
        let found = state.runtime.search_assistants(&caller.scope, &filter, AssistantSort::Name, true, page).await?;
        let is_last = (found.len() as i64) < page.limit;
        for assistant in found.into_iter().filter(|assistant| tool_name(assistant) == name) {
            if named.replace(assistant).is_some() {
                let text =
                    format!("Ambiguous tool '{shown}': several assistants have this name; call it by assistant_id");
                return Err(Refusal::new(INVALID_PARAMS, text));
            }
        }
        if is_last {
            let unknown = || Refusal::new(INVALID_PARAMS, format!("Unknown tool '{shown}': tools/list names them"));
            return named.ok_or_else(unknown);
        }
        page.offset += page.limit;
    }
}

/// An assistant's name in the characters that tools may have.
fn tool_name(assistant: &Assistant) -> String {
    if assistant.name.is_empty() {
        return assistant.assistant_id.to_string();
    }
    let spelled = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    assistant.name.chars().take(MAX_NAME).map(spelled).collect()
}

fn tool(assistant: &Assistant, name: &str, input: &Value, output: &Value) -> Value {
    let mut tool = Map::new();
    tool.insert("name".to_owned(), Value::from(name));
    tool.insert("title".to_owned(), Value::from(assistant.name.as_str()));
    if let Some(description) = assistant.description.as_deref().filter(|description| !description.is_empty()) {
        tool.insert("description".to_owned(), Value::from(description));
    }
    tool.insert("inputSchema".to_owned(), input_schema(input));
    if let Some(output) = output_schema(output) {
        tool.insert("outputSchema".to_owned(), output);
    }
    tool.insert("annotations".to_owned(), json!({"title": assistant.name}));
    Value::Object(tool)
}

/// The schema of a graph's input, as that of an object, which arguments are.
fn input_schema(schema: &Value) -> Value {
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    schema.insert("type".to_owned(), Value::from("object"));
    Value::Object(schema)
}

/// The schema of a graph's result, if it is known to be an object. Keys that nobody has written are absent, so none is
/// required; a run that stops to ask a human has its questions beside its values.
pub(super) fn output_schema(schema: &Value) -> Option<Value> {
    let mut schema = schema.as_object().filter(|schema| schema.get("type") == Some(&json!("object")))?.clone();
    schema.remove("required");
    schema.remove("additionalProperties");
    if let Some(properties) = schema.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
        let questions = json!({"type": "array", "description": "What the run stopped to ask a human, if it did."});
        properties.insert(special::INTERRUPT.to_owned(), questions);
    }
    Some(Value::Object(schema))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn assistant(name: &str) -> Assistant {
        let at = Timestamp(0);
        Assistant {
            assistant_id: Uuid::nil(),
            graph_id: "g".to_owned(),
            config: Json::object(),
            context: Json::object(),
            metadata: Json::object(),
            name: name.to_owned(),
            description: None,
            created_at: at,
            updated_at: at,
            version: 1,
        }
    }

    #[test]
    fn names_are_spelled_in_the_characters_of_tools() {
        let name = |name: &str| tool_name(&assistant(name));
        assert_eq!(name("counter-2_b"), "counter-2_b");
        assert_eq!(name("My agent (new).é"), "My_agent__new___");
        assert_eq!(name(""), Uuid::nil().to_string());
        assert_eq!(name(&"x".repeat(1000)).len(), MAX_NAME);
    }

    #[test]
    fn schemas_are_those_of_objects() {
        assert_eq!(input_schema(&json!(true)), json!({"type": "object"}));
        let schema = json!({
            "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false
        });
        assert_eq!(input_schema(&schema), schema);
        let output = output_schema(&schema).expect("known");
        assert_eq!(output["properties"]["a"], json!({"type": "integer"}));
        assert_eq!(output["properties"]["__interrupt__"]["type"], "array");
        assert!(output.get("required").is_none() && output.get("additionalProperties").is_none());
        assert_eq!(output_schema(&json!(true)), None);
        assert_eq!(output_schema(&json!({"type": "array"})), None);
    }

    #[test]
    fn tools_say_no_more_than_is_known() {
        let tool = tool(&assistant("My agent"), "My_agent", &json!(true), &json!(true));
        assert_eq!(
            tool,
            json!({
                "name": "My_agent", "title": "My agent", "inputSchema": {"type": "object"},
                "annotations": {"title": "My agent"}
            })
        );
    }

    #[test]
    fn cursors_are_offsets() {
        assert_eq!(offset(None).expect("the start"), 0);
        assert_eq!(offset(Some("100")).expect("an offset"), 100);
        for bad in ["x", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(offset(Some(bad)).expect_err(bad).code, INVALID_PARAMS);
        }
    }
}
