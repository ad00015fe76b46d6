//! `agent`: a model that may call tools, on any server that speaks OpenAI's chat completions.
//!
//! The model's words are streamed token by token; what it wants done is done by the node `tools`, whose results go back
//! to the model until it has an answer. Every step of that is a checkpoint.
//!
//! ```sh
//! OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=qwen3 cargo run --example agent -- serve
//! curl localhost:8123/runs/stream -d '{"input": {"messages": "What is 19 + 23?"}, "stream_mode": "messages-tuple"}'
//! ```

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::types::chat::{
    ChatCompletionMessageToolCall, ChatCompletionMessageToolCalls, ChatCompletionRequestAssistantMessage,
    ChatCompletionRequestMessage, ChatCompletionRequestSystemMessage, ChatCompletionRequestToolMessage,
    ChatCompletionRequestUserMessage, ChatCompletionStreamOptions, ChatCompletionTool, ChatCompletionTools,
    CreateChatCompletionRequest, FunctionCall, FunctionObject,
};
use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use session_store::graph::{
    AiChunk, BuildErrors, Context, END, Graph, Message, Node, NodeError, RetryPolicy, Role, START, StateGraph,
    ToolCall, ToolCallChunk, Update, Usage,
};
use session_store::update;

const INSTRUCTIONS: &str = "You are a helpful assistant. Use the tools where they help; answer briefly.";

/// The conversation.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Conversation {
    messages: Vec<Message>,
}

/// A model behind an OpenAI-compatible server.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    client: Client<OpenAIConfig>,
    name: String,
}

impl Model {
    pub(crate) fn new(base_url: &str, api_key: &str, name: &str) -> Model {
        let config = OpenAIConfig::new().with_api_base(base_url).with_api_key(api_key);
        Model { client: Client::with_config(config), name: name.to_owned() }
    }

    /// From `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `OPENAI_MODEL`.
    fn from_env() -> Model {
        let var = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
        Model::new(
            &var("OPENAI_BASE_URL", "https://api.openai.com/v1"),
            &var("OPENAI_API_KEY", "none"),
            &var("OPENAI_MODEL", "gpt-4o-mini"),
        )
    }
}

/// The graph: `agent`, and `tools` as long as it wants something.
pub(crate) fn graph(model: Model) -> Result<Graph, BuildErrors> {
    let agent = Node::with(model, agent).retry(RetryPolicy::default()).idle_timeout(Duration::from_secs(60));
    StateGraph::<Conversation>::new("agent")
        .description("A model that may call tools.")
        .messages("messages")
        .node_with("agent", agent)
        .node("tools", tools)
        .edge(START, "agent")
        .branch("agent", "wants_tools", ["tools", END], |state: &Conversation| match state.messages.last() {
            Some(message) if !message.tool_calls.is_empty() => "tools",
            _ => END,
        })
        .edge("tools", "agent")
        .build()
}

/// Asks the model, and passes its words on as they come.
async fn agent(model: Model, state: Conversation, ctx: Context) -> Result<Update, NodeError> {
    // The same for every attempt of this task, so that an answer that is asked for again replaces the torn one.
    let id = format!("ai-{}", ctx.info().task_id);
    let mut stream = model.client.chat().create_stream(request(&model.name, &state.messages)).await.map_err(failed)?;
    let mut answer = Answer::new(id);
    while let Some(part) = stream.next().await {
        let part = part.map_err(failed)?;
        if let Some(usage) = part.usage {
            answer.usage = Some(Usage::new(usage.prompt_tokens.into(), usage.completion_tokens.into()));
        }
        let Some(choice) = part.choices.into_iter().next() else { continue };
        let text = choice.delta.content.unwrap_or_default();
        let calls = choice.delta.tool_calls.unwrap_or_default().into_iter().map(|call| {
            let (name, args) = call.function.map_or((None, None), |function| (function.name, function.arguments));
            ToolCallChunk::new(call.index, call.id, name, args)
        });
        let calls: Vec<ToolCallChunk> = calls.collect();
        if !text.is_empty() || !calls.is_empty() {
            answer.add(&text, &calls);
            ctx.messages().chunk(&AiChunk::new(&answer.id, text).with_tool_call_chunks(calls))?;
        }
    }
    let last = AiChunk { usage: answer.usage.clone(), ..AiChunk::new(&answer.id, "").last() };
    ctx.messages().chunk(&last)?;
    Ok(update!(Conversation { messages: vec![answer.finish(&model.name)?] }))
}

/// Does what the model asked for. A tool that fails says so to the model, which may try something else.
async fn tools(state: Conversation, _ctx: Context) -> Result<Update, NodeError> {
    let calls = state.messages.last().map(|message| message.tool_calls.clone()).unwrap_or_default();
    let results = calls.into_iter().map(|call| {
        let id = call.id.unwrap_or_default();
        let (text, status) = match use_tool(&call.name, &call.args) {
            Ok(text) => (text, "success"),
            Err(text) => (text, "error"),
        };
        Message { status: Some(status.to_owned()), ..Message::tool(text, id).with_name(call.name) }
    });
    Ok(update!(Conversation { messages: results.collect() }))
}

/// The tools, as the model is told about them.
fn catalogue() -> Vec<ChatCompletionTools> {
    let tool = |name: &str, description: &str, properties: Value| {
        let required: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
        ChatCompletionTools::Function(ChatCompletionTool {
            function: FunctionObject {
                name: name.to_owned(),
                description: Some(description.to_owned()),
                parameters: Some(json!({"type": "object", "required": required, "properties": properties})),
                strict: None,
            },
        })
    };
    vec![
        tool("add", "Adds two numbers.", json!({"a": {"type": "number"}, "b": {"type": "number"}})),
        tool("weather", "Tells the weather in a city.", json!({"city": {"type": "string"}})),
    ]
}

fn use_tool(name: &str, args: &Map<String, Value>) -> Result<String, String> {
    let number = |key: &str| args.get(key).and_then(Value::as_f64).ok_or_else(|| format!("`{key}` must be a number"));
    match name {
        "add" => Ok((number("a")? + number("b")?).to_string()),
        "weather" => {
            let city = args.get("city").and_then(Value::as_str).ok_or("`city` must be a name")?;
            Ok(format!("It is 16 degrees and foggy in {city}."))
        }
        unknown => Err(format!("there is no tool `{unknown}`")),
    }
}

/// A model's answer while it arrives.
struct Answer {
    id: String,
    text: String,
    /// Id, name and the arguments' JSON text so far, by index.
    calls: Vec<(String, String, String)>,
    usage: Option<Usage>,
}

impl Answer {
    fn new(id: String) -> Answer {
        Answer { id, text: String::new(), calls: Vec::new(), usage: None }
    }

    fn add(&mut self, text: &str, calls: &[ToolCallChunk]) {
        self.text.push_str(text);
        for call in calls {
            let index = call.index.unwrap_or_default() as usize;
            if self.calls.len() <= index {
                self.calls.resize_with(index + 1, Default::default);
            }
            let (id, name, args) = &mut self.calls[index];
            id.push_str(call.id.as_deref().unwrap_or_default());
            name.push_str(call.name.as_deref().unwrap_or_default());
            args.push_str(call.args.as_deref().unwrap_or_default());
        }
    }

    /// The whole message. Its usage is counted under the name of the model.
    fn finish(self, model: &str) -> Result<Message, NodeError> {
        let calls = self.calls.into_iter().map(|(id, name, args)| {
            let args = if args.is_empty() { Map::new() } else { serde_json::from_str(&args)? };
            Ok::<_, NodeError>(ToolCall::new(id, name, args))
        });
        let calls: Vec<ToolCall> = calls.collect::<Result<_, _>>()?;
        let response_metadata = Map::from_iter([("model_name".to_owned(), json!(model))]);
        Ok(Message {
            usage: self.usage,
            response_metadata,
            ..Message::ai(self.text).with_id(self.id).with_tool_calls(calls)
        })
    }
}

fn request(model: &str, messages: &[Message]) -> CreateChatCompletionRequest {
    let instructions = ChatCompletionRequestSystemMessage::from(INSTRUCTIONS).into();
    CreateChatCompletionRequest {
        model: model.to_owned(),
        messages: std::iter::once(instructions).chain(messages.iter().map(spoken)).collect(),
        tools: Some(catalogue()),
        stream_options: Some(ChatCompletionStreamOptions { include_usage: Some(true), include_obfuscation: None }),
        ..CreateChatCompletionRequest::default()
    }
}

/// A message as the model's server wants it.
fn spoken(message: &Message) -> ChatCompletionRequestMessage {
    let text = message.text().into_owned();
    match message.role {
        Role::Ai => assistant(text, &message.tool_calls).into(),
        Role::System => ChatCompletionRequestSystemMessage::from(text).into(),
        Role::Tool => ChatCompletionRequestToolMessage {
            content: text.into(),
            tool_call_id: message.tool_call_id.clone().unwrap_or_default(),
        }
        .into(),
        _ => ChatCompletionRequestUserMessage::from(text).into(),
    }
}

fn assistant(text: String, calls: &[ToolCall]) -> ChatCompletionRequestAssistantMessage {
    let calls = calls.iter().map(|call| {
        let function = FunctionCall { name: call.name.clone(), arguments: json!(call.args).to_string() };
        ChatCompletionMessageToolCalls::Function(ChatCompletionMessageToolCall {
            id: call.id.clone().unwrap_or_default(),
            function,
        })
    });
    let calls: Vec<ChatCompletionMessageToolCalls> = calls.collect();
    let mut message = ChatCompletionRequestAssistantMessage::from(text);
    message.tool_calls = (!calls.is_empty()).then_some(calls);
    message
}

/// A class of its own, which the default policy retries.
fn failed(error: impl std::error::Error) -> NodeError {
    NodeError::new("ModelError", error.to_string())
}

fn main() -> ExitCode {
    session_store::main([graph(Model::from_env())])
}
