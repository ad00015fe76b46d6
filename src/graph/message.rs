//! Typed messages: what a chat keeps in its state, and the chunks a model's answer arrives in.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The user.
    Human,
    /// The model; a chunk of its message counts as one.
    #[serde(alias = "AIMessageChunk")]
    Ai,
    /// Whoever instructs the model.
    System,
    /// The result of a tool call.
    Tool,
    /// The result of a call in the older form, before tools.
    Function,
    /// Somebody with a role of their own.
    Chat,
    /// Not a message but an instruction to a message list: remove the one with this id.
    Remove,
}

impl Role {
    /// The `type` of a stored message.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Human => "human",
            Role::Ai => "ai",
            Role::System => "system",
            Role::Tool => "tool",
            Role::Function => "function",
            Role::Chat => "chat",
            Role::Remove => "remove",
        }
    }
}

/// What a model wants done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its arguments by name.
    #[serde(default)]
    pub args: Map<String, Value>,
    /// What the tool's answer refers to.
    pub id: Option<String>,
    #[serde(rename = "type", default = "tool_call")]
    kind: String,
}

fn tool_call() -> String {
    "tool_call".to_owned()
}

impl ToolCall {
    /// A call of `name`; the tool's message answers to `id`.
    pub fn new(id: impl Into<String>, name: impl Into<String>, args: Map<String, Value>) -> ToolCall {
        ToolCall { name: name.into(), args, id: Some(id.into()), kind: tool_call() }
    }
}

/// Tokens a model read and wrote.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Read, cached ones included.
    pub input_tokens: u64,
    /// Written, those of reasoning included.
    pub output_tokens: u64,
    /// The sum, as the model reports it.
    pub total_tokens: u64,
    /// Details some models give: cached tokens, reasoning tokens.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

impl Usage {
    /// Tokens read and written, and their sum.
    pub fn new(input_tokens: u64, output_tokens: u64) -> Usage {
        Usage { input_tokens, output_tokens, total_tokens: input_tokens + output_tokens, details: Map::new() }
    }
}

/// One message, in the form in which LangChain's clients know it.
///
/// ```
/// use session_store::graph::Message;
/// let question = Message::human("What is the weather?");
/// let answer = Message::ai("Foggy.").with_id("answer-1");
/// assert_eq!(answer.text(), "Foggy.");
/// # let _ = question;
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Message {
    /// Who speaks.
    #[serde(rename = "type")]
    pub role: Role,
    /// A string, or a list of content blocks.
    #[serde(default)]
    pub content: Value,
    /// Without one, the message list gives it one.
    #[serde(default)]
    pub id: Option<String>,
    /// Of the speaker, where there are several; of a tool message, the tool's.
    #[serde(default)]
    pub name: Option<String>,
    /// What providers add; kept as it is.
    #[serde(default)]
    pub additional_kwargs: Map<String, Value>,
    /// What the provider said about its answer: model, finish reason.
    #[serde(default)]
    pub response_metadata: Map<String, Value>,
    /// Of an ai message: the tools it wants called.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// Of an ai message: calls whose arguments could not be read.
    #[serde(default)]
    pub invalid_tool_calls: Vec<Value>,
    /// Of an ai message: what it cost.
    #[serde(default, rename = "usage_metadata")]
    pub usage: Option<Usage>,
    /// Of a tool message: the call it answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// Of a tool message: a result that is not for the model.
    #[serde(default)]
    pub artifact: Value,
    /// Of a tool message: `success` or `error`.
    #[serde(default)]
    pub status: Option<String>,
    /// Whatever else it came with.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    fn new(role: Role, content: impl Into<Value>) -> Message {
        Message {
            role,
            content: content.into(),
            id: None,
            name: None,
            additional_kwargs: Map::new(),
            response_metadata: Map::new(),
            tool_calls: Vec::new(),
            invalid_tool_calls: Vec::new(),
            usage: None,
            tool_call_id: None,
            artifact: Value::Null,
            status: None,
            extra: Map::new(),
        }
    }

    /// What a person says: text or content blocks.
    pub fn human(content: impl Into<Value>) -> Message {
        Message::new(Role::Human, content)
    }

    /// What a model says.
    pub fn ai(content: impl Into<Value>) -> Message {
        Message::new(Role::Ai, content)
    }

    /// What the model is told about its task.
    pub fn system(content: impl Into<Value>) -> Message {
        Message::new(Role::System, content)
    }

    /// What a tool answered to a call.
    pub fn tool(content: impl Into<Value>, tool_call_id: impl Into<String>) -> Message {
        Message { tool_call_id: Some(tool_call_id.into()), ..Message::new(Role::Tool, content) }
    }

    /// Removes the message with this id from the list it is written to.
    pub fn remove(id: impl Into<String>) -> Message {
        Message::new(Role::Remove, "").with_id(id)
    }

    /// Removes all messages from the list it is written to; what follows in the same write starts it anew.
    pub fn remove_all() -> Message {
        Message::remove(crate::engine::message::REMOVE_ALL)
    }

    /// Names the message; a list replaces the message of this id.
    pub fn with_id(mut self, id: impl Into<String>) -> Message {
        self.id = Some(id.into());
        self
    }

    /// Names the speaker, or the tool.
    pub fn with_name(mut self, name: impl Into<String>) -> Message {
        self.name = Some(name.into());
        self
    }

    /// Adds tools the model wants called.
    pub fn with_tool_calls(mut self, calls: impl IntoIterator<Item = ToolCall>) -> Message {
        self.tool_calls.extend(calls);
        self
    }

    /// Says what the message cost.
    pub fn with_usage(mut self, usage: Usage) -> Message {
        self.usage = Some(usage);
        self
    }

    /// The text of the content: the string, or the texts of its blocks joined.
    pub fn text(&self) -> Cow<'_, str> {
        match &self.content {
            Value::String(text) => Cow::Borrowed(text),
            Value::Array(blocks) => {
                blocks.iter().filter_map(|block| block.as_str().or_else(|| block["text"].as_str())).collect()
            }
            _ => Cow::Borrowed(""),
        }
    }
}

/// The complete form, with every field its type has.
impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let content = if self.content.is_null() { json!("") } else { self.content.clone() };
        let mut message = Map::new();
        let mut put = |key: &str, value: Value| message.insert(key.to_owned(), value);
        put("content", content);
        put("additional_kwargs", Value::Object(self.additional_kwargs.clone()));
        put("response_metadata", Value::Object(self.response_metadata.clone()));
        put("type", json!(self.role.as_str()));
        put("name", json!(self.name));
        put("id", json!(self.id));
        match self.role {
            Role::Ai => {
                put("tool_calls", json!(self.tool_calls));
                put("invalid_tool_calls", json!(self.invalid_tool_calls));
                put("usage_metadata", json!(self.usage));
            }
            Role::Tool => {
                put("tool_call_id", json!(self.tool_call_id));
                put("artifact", self.artifact.clone());
                put("status", json!(self.status.as_deref().unwrap_or("success")));
            }
            _ => {}
        }
        for (key, value) in &self.extra {
            message.entry(key).or_insert_with(|| value.clone());
        }
        message.serialize(serializer)
    }
}

impl JsonSchema for Message {
    fn schema_name() -> Cow<'static, str> {
        "Message".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (call, usage) = (generator.subschema_for::<ToolCall>(), generator.subschema_for::<Option<Usage>>());
        json_schema!({
            "type": "object",
            "properties": {
                "type": {"enum": ["human", "ai", "system", "tool", "function", "chat", "remove"]},
                "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "object"]}}]},
                "id": {"type": ["string", "null"]},
                "name": {"type": ["string", "null"]},
                "additional_kwargs": {"type": "object"},
                "response_metadata": {"type": "object"},
                "tool_calls": {"type": "array", "items": call},
                "invalid_tool_calls": {"type": "array"},
                "usage_metadata": usage,
                "tool_call_id": {"type": ["string", "null"]},
                "artifact": true,
                "status": {"enum": ["success", "error", null]},
            },
            "required": ["type", "content"],
        })
    }
}

/// A piece of an ai message that is still being written, for `ctx.messages().chunk(..)`. All pieces of a message carry
/// its id; the finished message, written to the state with the same id, is not streamed again.
///
/// ```
/// use session_store::graph::AiChunk;
/// let chunk = AiChunk::new("answer-1", "Hel");
/// let last = AiChunk::new("answer-1", "lo").last();
/// # let _ = (chunk, last);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct AiChunk {
    /// The id of the message.
    pub id: String,
    /// What is added to its content.
    pub content: String,
    /// Pieces of tool calls; the arguments of one `index` are joined as text.
    pub tool_call_chunks: Vec<ToolCallChunk>,
    /// What the message cost, usually in the last piece.
    pub usage: Option<Usage>,
    /// Nothing follows.
    pub is_last: bool,
}

/// A piece of a tool call.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ToolCallChunk {
    /// The tool; in the first piece of a call only.
    pub name: Option<String>,
    /// A piece of the arguments' JSON text.
    pub args: Option<String>,
    /// The id of the call; in its first piece only.
    pub id: Option<String>,
    /// Which of the message's calls it belongs to.
    pub index: Option<u32>,
    #[serde(rename = "type")]
    kind: ChunkKind,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
enum ChunkKind {
    #[default]
    #[serde(rename = "tool_call_chunk")]
    ToolCall,
}

impl ToolCallChunk {
    /// A piece of the `index`-th tool call of the message.
    pub fn new(index: u32, id: Option<String>, name: Option<String>, args: Option<String>) -> ToolCallChunk {
        ToolCallChunk { name, args, id, index: Some(index), kind: ChunkKind::ToolCall }
    }
}

impl AiChunk {
    /// A piece of text of the message `id`.
    pub fn new(id: impl Into<String>, content: impl Into<String>) -> AiChunk {
        AiChunk { id: id.into(), content: content.into(), tool_call_chunks: Vec::new(), usage: None, is_last: false }
    }

    /// Adds pieces of tool calls.
    pub fn with_tool_call_chunks(mut self, chunks: Vec<ToolCallChunk>) -> AiChunk {
        self.tool_call_chunks = chunks;
        self
    }

    /// Says what the message cost.
    pub fn with_usage(mut self, usage: Usage) -> AiChunk {
        self.usage = Some(usage);
        self
    }

    /// Marks the last piece.
    pub fn last(mut self) -> AiChunk {
        self.is_last = true;
        self
    }
}

impl Serialize for AiChunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({
            "content": self.content,
            "additional_kwargs": {},
            "response_metadata": {},
            "type": "AIMessageChunk",
            "name": null,
            "id": self.id,
            "tool_calls": [],
            "invalid_tool_calls": [],
            "usage_metadata": self.usage,
            "tool_call_chunks": self.tool_call_chunks,
            "chunk_position": self.is_last.then_some("last"),
        })
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::message as engine;
    use crate::model::Json;

    #[test]
    fn every_constructor_encodes_to_what_the_engine_keeps() {
        let args = Map::from_iter([("city".to_owned(), json!("SF"))]);
        for message in [
            Message::human("hi"),
            Message::ai("yes").with_tool_calls([ToolCall::new("c1", "weather", args)]).with_usage(Usage::new(1, 2)),
            Message::system("be kind").with_name("rules"),
            Message::tool("foggy", "c1"),
            Message::remove("x"),
        ] {
            let message = Message { id: Some("1".to_owned()), ..message };
            let json = Json::of(&message).expect("encodes");
            assert!(engine::is_message(&json));
            let kept = engine::coerce(&json, |_| String::new()).expect("coerces");
            assert_eq!(kept[0].text(), json.text());
            assert_eq!(json.decode::<Message>().expect("decodes"), stored(message));
        }
    }

    /// What a message is after a round trip: a tool message says that it succeeded.
    fn stored(mut message: Message) -> Message {
        if message.role == Role::Tool {
            message.status = Some("success".to_owned());
        }
        message
    }

    #[test]
    fn unknown_fields_survive() {
        let json =
            Json::parse(r#"{"type":"human","content":[{"type":"text","text":"a"},"b"],"mood":"good"}"#).expect("valid");
        let message: Message = json.decode().expect("decodes");
        assert_eq!(message.text(), "ab");
        assert_eq!(Json::of(&message).expect("encodes").value()["mood"], "good");
    }

    #[test]
    fn chunks_have_the_form_clients_know() {
        let chunk = Json::of(&AiChunk::new("t1", "Hel")).expect("encodes");
        assert_eq!(
            chunk.value(),
            &json!({"additional_kwargs":{},"chunk_position":null,"content":"Hel","id":"t1","invalid_tool_calls":[],
                "name":null,"response_metadata":{},"tool_call_chunks":[],"tool_calls":[],"type":"AIMessageChunk",
                "usage_metadata":null})
        );
        assert_eq!(Json::of(&AiChunk::new("t1", "lo").last()).expect("encodes").value()["chunk_position"], "last");
    }
}
