//! The `messages` and `tools` channels: messages as streams of content blocks, and tools by the messages that answer
//! their calls.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

/// One event of a message, not yet numbered.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    pub(super) method: &'static str,
    pub(super) namespace: Vec<String>,
    pub(super) node: Option<String>,
    pub(super) data: Value,
}

/// All messages of one run.
#[derive(Debug, Default)]
pub(super) struct Speech {
    open: IndexMap<(Vec<String>, String), Open>,
    finished: HashSet<(Vec<String>, String)>,
    /// Name and arguments of the tool calls told so far, by id.
    calls: HashMap<String, (Value, Value)>,
}

/// A message that is being spoken.
#[derive(Debug)]
struct Open {
    namespace: Vec<String>,
    node: Option<String>,
    /// The task that speaks.
    task: String,
    id: String,
    blocks: Vec<Block>,
    usage: Value,
}

#[derive(Debug)]
struct Block {
    kind: Kind,
    is_open: bool,
}

#[derive(Debug)]
enum Kind {
    Text(String),
    Reasoning(String),
    Call { index: Value, id: Value, name: Value, args: String },
    Other(Value),
}

impl Kind {
    /// As the block begins.
    fn begun(&self) -> Value {
        match self {
            Kind::Text(_) => json!({"type": "text", "text": ""}),
            Kind::Reasoning(_) => json!({"type": "reasoning", "reasoning": ""}),
            Kind::Call { id, name, .. } => json!({"type": "tool_call_chunk", "id": id, "name": name, "args": ""}),
            Kind::Other(block) => block.clone(),
        }
    }

    /// As the block is when it is complete.
    fn whole(&self) -> Value {
        match self {
            Kind::Text(text) => json!({"type": "text", "text": text}),
            Kind::Reasoning(text) => json!({"type": "reasoning", "reasoning": text}),
            Kind::Call { id, name, args, .. } => {
                let text = if args.is_empty() { "{}" } else { args.as_str() };
                match serde_json::from_str::<Map<String, Value>>(text) {
                    Ok(args) => json!({"type": "tool_call", "id": id, "name": name, "args": args}),
                    Err(error) => json!({
                        "type": "invalid_tool_call", "id": id, "name": name, "args": args, "error": error.to_string(),
                    }),
                }
            }
            Kind::Other(block) => block.clone(),
        }
    }
}

impl Speech {
    /// Hears `[message, metadata]` as the legacy stream tells it in a graph.
    pub(super) fn hear(&mut self, namespace: &[String], pair: &Value) -> Vec<Told> {
        let (message, metadata) = (&pair[0], &pair[1]);
        let role = match message["type"].as_str().unwrap_or_default() {
            "AIMessageChunk" | "ai" => "ai",
            role @ ("human" | "system" | "tool") => role,
            // Instructions to message lists and forms that this channel does not know.
            _ => return Vec::new(),
        };
        let mut told = Vec::new();
        let key = (namespace.to_vec(), message["id"].as_str().unwrap_or_default().to_owned());
        if !key.1.is_empty() && self.finished.contains(&key) {
            return told;
        }
        let was_open = self.open.contains_key(&key);
        let open = self.open.entry(key.clone()).or_insert_with(|| Open::of(&key, metadata));
        if !was_open {
            open.begin(role, message, metadata, &mut told);
        }
        let is_chunk = message["type"] == "AIMessageChunk";
        if is_chunk || !was_open {
            open.add_content(&message["content"], &mut told);
            open.add_calls(message, is_chunk, &mut told);
        }
        if !message["usage_metadata"].is_null() {
            open.usage = message["usage_metadata"].clone();
        }
        if !is_chunk || message["chunk_position"] == "last" {
            self.finish(&key, &mut told);
        }
        if role == "tool" {
            self.tool(namespace, message, &mut told);
        }
        told
    }

    /// A task has ended: nothing more comes of what it was saying.
    pub(super) fn task_ended(&mut self, task: &str) -> Vec<Told> {
        let of_task = |open: &Open| open.task == task;
        let keys: Vec<_> = self.open.iter().filter(|(_, open)| of_task(open)).map(|(key, _)| key.clone()).collect();
        let mut told = Vec::new();
        for key in keys {
            self.finish(&key, &mut told);
        }
        told
    }

    /// The run has ended or begins again: what is still being said breaks off.
    pub(super) fn break_off(&mut self, why: &str) -> Vec<Told> {
        let open = std::mem::take(&mut self.open);
        open.into_values().map(|open| open.told(json!({"event": "error", "id": open.id, "message": why}))).collect()
    }

    fn finish(&mut self, key: &(Vec<String>, String), told: &mut Vec<Told>) {
        let Some(mut open) = self.open.shift_remove(key) else { return };
        open.close_blocks(told);
        for block in &open.blocks {
            if let Kind::Call { id, name, .. } = &block.kind
                && let Some(id) = id.as_str()
            {
                self.calls.insert(id.to_owned(), (name.clone(), block.kind.whole()["args"].clone()));
            }
        }
        let mut data = json!({"event": "message-finish", "id": open.id});
        if let Some(usage) = open.usage.as_object() {
            let count = |key: &str| usage.get(key).cloned().unwrap_or_else(|| json!(0));
            data["usage"] = json!({
                "input_tokens": count("input_tokens"), "output_tokens": count("output_tokens"),
                "total_tokens": count("total_tokens"),
            });
        }
        told.push(open.told(data));
        self.finished.insert(key.clone());
    }

    /// What a tool's message says about the tool: the call began and ended. Mirrored as a message below the graph.
    fn tool(&self, namespace: &[String], message: &Value, told: &mut Vec<Told>) {
        let Some(call) = message["tool_call_id"].as_str() else { return };
        let (name, input) = self.calls.get(call).cloned().unwrap_or_else(|| (message["name"].clone(), json!({})));
        let event = |data: Value| Told { method: "tools", namespace: namespace.to_vec(), node: None, data };
        let started = json!({"event": "tool-started", "tool_call_id": call, "tool_name": name, "input": input});
        told.push(event(started));
        if message["status"] == "error" {
            let text = message["content"].as_str().map_or_else(|| message["content"].to_string(), str::to_owned);
            told.push(event(json!({"event": "tool-error", "tool_call_id": call, "message": text})));
            return;
        }
        told.push(event(json!({"event": "tool-finished", "tool_call_id": call, "output": message["content"]})));
        let mut below = namespace.to_vec();
        below.push(format!("tools:{call}"));
        let key = (below, message["id"].as_str().unwrap_or_default().to_owned());
        let mut mirror = Open::of(&key, &Value::Null);
        mirror.begin("tool", message, &Value::Null, told);
        mirror.add_content(&message["content"], told);
        mirror.close_blocks(told);
        told.push(mirror.told(json!({"event": "message-finish", "id": mirror.id})));
    }
}

impl Open {
    fn of(key: &(Vec<String>, String), metadata: &Value) -> Open {
        let task = metadata["langgraph_checkpoint_ns"].as_str().unwrap_or_default();
        Open {
            namespace: key.0.clone(),
            node: metadata["langgraph_node"].as_str().map(str::to_owned),
            task: task.rsplit(['|', ':']).next().unwrap_or_default().to_owned(),
            id: key.1.clone(),
            blocks: Vec::new(),
            usage: Value::Null,
        }
    }

    fn told(&self, data: Value) -> Told {
        Told { method: "messages", namespace: self.namespace.clone(), node: self.node.clone(), data }
    }

    fn begin(&self, role: &str, message: &Value, metadata: &Value, told: &mut Vec<Told>) {
        let mut data = json!({"event": "message-start", "role": role, "id": message["id"]});
        let scalars: Map<String, Value> = metadata
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !value.is_object() && !value.is_array())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !scalars.is_empty() {
            data["metadata"] = Value::Object(scalars);
        }
        if role == "tool" {
            data["tool_call_id"] = message["tool_call_id"].clone();
        }
        told.push(self.told(data));
    }

    fn add_content(&mut self, content: &Value, told: &mut Vec<Told>) {
        match content {
            Value::String(text) => self.add_text(text, told),
            Value::Array(blocks) => {
                for block in blocks {
                    self.add_block(block, told);
                }
            }
            _ => {}
        }
    }

    fn add_block(&mut self, block: &Value, told: &mut Vec<Told>) {
        if let Some(text) = block.as_str() {
            return self.add_text(text, told);
        }
        match block["type"].as_str().unwrap_or_default() {
            "text" => self.add_text(block["text"].as_str().unwrap_or_default(), told),
            "reasoning" => self.add_reasoning(block["reasoning"].as_str().unwrap_or_default(), told),
            "thinking" => self.add_reasoning(block["thinking"].as_str().unwrap_or_default(), told),
            // Told as the message's tool calls.
            "tool_call" | "tool_call_chunk" | "tool_use" | "input_json_delta" | "invalid_tool_call" => {}
            "image" | "audio" | "video" | "file" | "server_tool_call" | "server_tool_result" | "non_standard" => {
                self.push(Kind::Other(block.clone()), told);
            }
            _ => self.push(Kind::Other(json!({"type": "non_standard", "value": block})), told),
        }
    }

    fn add_text(&mut self, more: &str, told: &mut Vec<Told>) {
        if more.is_empty() {
            return;
        }
        if !matches!(self.blocks.last(), Some(Block { kind: Kind::Text(_), is_open: true })) {
            self.push(Kind::Text(String::new()), told);
        }
        if let Some(Block { kind: Kind::Text(text), .. }) = self.blocks.last_mut() {
            text.push_str(more);
            self.delta(self.blocks.len() - 1, &json!({"type": "text-delta", "text": more}), told);
        }
    }

    fn add_reasoning(&mut self, more: &str, told: &mut Vec<Told>) {
        if more.is_empty() {
            return;
        }
        if !matches!(self.blocks.last(), Some(Block { kind: Kind::Reasoning(_), is_open: true })) {
            self.push(Kind::Reasoning(String::new()), told);
        }
        if let Some(Block { kind: Kind::Reasoning(text), .. }) = self.blocks.last_mut() {
            text.push_str(more);
            self.delta(self.blocks.len() - 1, &json!({"type": "reasoning-delta", "reasoning": more}), told);
        }
    }

    fn add_calls(&mut self, message: &Value, is_chunk: bool, told: &mut Vec<Told>) {
        let empty = Vec::new();
        if is_chunk {
            for chunk in message["tool_call_chunks"].as_array().unwrap_or(&empty) {
                self.add_call_chunk(chunk, told);
            }
            return;
        }
        for call in message["tool_calls"].as_array().unwrap_or(&empty) {
            let chunk = json!({"id": call["id"], "name": call["name"], "args": call["args"].to_string()});
            self.add_call_chunk(&chunk, told);
        }
        for call in message["invalid_tool_calls"].as_array().unwrap_or(&empty) {
            let mut block = call.clone();
            block["type"] = json!("invalid_tool_call");
            self.push(Kind::Other(block), told);
        }
    }

    fn add_call_chunk(&mut self, chunk: &Value, told: &mut Vec<Told>) {
        let wanted = &chunk["index"];
        // Without an index, a piece with an id begins a call, and one without continues the last.
        let is_same = |block: &Block| match &block.kind {
            Kind::Call { index, id, .. } if block.is_open => {
                if wanted.is_null() {
                    chunk["id"].is_null() || *id == chunk["id"]
                } else {
                    index == wanted
                }
            }
            _ => false,
        };
        let at = self.blocks.iter().rposition(is_same).unwrap_or_else(|| {
            let (id, name) = (chunk["id"].clone(), chunk["name"].clone());
            self.push(Kind::Call { index: wanted.clone(), id, name, args: String::new() }, told);
            self.blocks.len() - 1
        });
        let Some(Block { kind: Kind::Call { id, name, args, .. }, .. }) = self.blocks.get_mut(at) else { return };
        if id.is_null() {
            *id = chunk["id"].clone();
        }
        if name.is_null() {
            *name = chunk["name"].clone();
        }
        let more = chunk["args"].as_str().unwrap_or_default();
        if !more.is_empty() {
            args.push_str(more);
            self.delta(at, &json!({"type": "tool-call-delta", "args": more}), told);
        }
    }

    /// Begins a block. Texts before it are complete; tool calls may go on side by side.
    fn push(&mut self, kind: Kind, told: &mut Vec<Told>) {
        let is_call = matches!(kind, Kind::Call { .. });
        for at in 0..self.blocks.len() {
            if !(is_call && matches!(self.blocks[at].kind, Kind::Call { .. })) {
                self.close(at, told);
            }
        }
        let (index, content) = (self.blocks.len(), kind.begun());
        self.blocks.push(Block { kind, is_open: true });
        let data = json!({"event": "content-block-start", "id": self.id, "index": index, "content": content});
        told.push(self.told(data));
    }

    fn delta(&self, index: usize, delta: &Value, told: &mut Vec<Told>) {
        let data = json!({"event": "content-block-delta", "id": self.id, "index": index, "delta": delta});
        told.push(self.told(data));
    }

    fn close(&mut self, at: usize, told: &mut Vec<Told>) {
        if std::mem::take(&mut self.blocks[at].is_open) {
            let content = self.blocks[at].kind.whole();
            let data = json!({"event": "content-block-finish", "id": self.id, "index": at, "content": content});
            told.push(self.told(data));
        }
    }

    fn close_blocks(&mut self, told: &mut Vec<Told>) {
        for at in 0..self.blocks.len() {
            self.close(at, told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(content: Value, calls: Value, last: bool) -> Value {
        json!([
            {"type": "AIMessageChunk", "id": "m", "content": content, "tool_call_chunks": calls,
             "usage_metadata": if last { json!({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "x": {}}) } else { Value::Null },
             "chunk_position": if last { json!("last") } else { Value::Null }},
            {"langgraph_node": "agent", "langgraph_checkpoint_ns": "agent:t1", "langgraph_path": []},
        ])
    }

    fn events(told: &[Told]) -> Vec<String> {
        told.iter().map(|told| told.data["event"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn chunks_become_blocks_with_one_start_and_one_finish() {
        let mut speech = Speech::default();
        let mut told = speech.hear(&[], &chunk(json!("Hel"), json!([]), false));
        told.extend(speech.hear(&[], &chunk(json!("lo"), json!([]), false)));
        let first = json!([{"index": 0, "id": "c1", "name": "look", "args": "{\"a\""}]);
        told.extend(speech.hear(&[], &chunk(json!(""), first, false)));
        told.extend(speech.hear(&[], &chunk(json!(""), json!([{"index": 0, "args": ":1}"}]), true)));
        assert_eq!(
            events(&told),
            [
                "message-start",
                "content-block-start",
                "content-block-delta",
                "content-block-delta",
                "content-block-finish",
                "content-block-start",
                "content-block-delta",
                "content-block-delta",
                "content-block-finish",
                "message-finish"
            ]
        );
        assert_eq!(told[0].data["metadata"]["langgraph_node"], "agent");
        assert!(told[0].data["metadata"].get("langgraph_path").is_none());
        assert_eq!(told[4].data["content"], json!({"type": "text", "text": "Hello"}));
        assert_eq!(told[8].data["content"], json!({"type": "tool_call", "id": "c1", "name": "look", "args": {"a": 1}}));
        assert_eq!(told[9].data["usage"], json!({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}));
        assert!(told.iter().all(|told| told.node.as_deref() == Some("agent") && told.data["id"] == "m"));
        // The whole message, told again by the node's output, adds nothing.
        assert_eq!(speech.hear(&[], &json!([{"type": "ai", "id": "m", "content": "Hello"}, {}])), []);
    }

    #[test]
    fn whole_messages_and_tools_are_told_at_once() {
        let mut speech = Speech::default();
        let call = json!([{"type": "ai", "id": "a", "content": [{"type": "text", "text": "x"}, {"type": "odd"}],
                           "tool_calls": [{"id": "c1", "name": "look", "args": {"q": 1}}]}, {}]);
        let told = speech.hear(&[], &call);
        assert_eq!(told.iter().filter(|told| told.data["event"] == "content-block-finish").count(), 3);
        let answer = json!([{"type": "tool", "id": "t", "tool_call_id": "c1", "content": "found"}, {}]);
        let told = speech.hear(&["sub:1".to_owned()], &answer);
        let tools: Vec<&Value> = told.iter().filter(|told| told.method == "tools").map(|told| &told.data).collect();
        assert_eq!(
            *tools[0],
            json!({"event": "tool-started", "tool_call_id": "c1", "tool_name": "look", "input": {"q": 1}})
        );
        assert_eq!(*tools[1], json!({"event": "tool-finished", "tool_call_id": "c1", "output": "found"}));
        let mirror: Vec<&Told> = told.iter().filter(|told| told.namespace.len() == 2).collect();
        assert_eq!(mirror[0].namespace, ["sub:1", "tools:c1"]);
        assert_eq!(mirror[0].data["role"], "tool");
        let failed = json!([{"type": "tool", "id": "u", "tool_call_id": "c2", "content": "no", "status": "error"}, {}]);
        let told = speech.hear(&[], &failed);
        assert_eq!(told.last().map(|told| &told.data["event"]), Some(&json!("tool-error")));
    }

    #[test]
    fn every_kind_of_block_has_a_start_and_a_whole() {
        let whole = |block: Value| {
            let mut speech = Speech::default();
            let told = speech.hear(&[], &json!([{"type": "ai", "id": "m", "content": [block]}, {}]));
            let of = |kind: &str| -> Vec<Value> {
                told.iter().filter(|told| told.data["event"] == kind).map(|told| told.data["content"].clone()).collect()
            };
            assert_eq!(of("content-block-start").len(), of("content-block-finish").len(), "{told:?}");
            let deltas = told.iter().filter(|told| told.data["event"] == "content-block-delta");
            let deltas: Vec<Value> = deltas.map(|told| told.data["delta"]["type"].clone()).collect();
            (of("content-block-finish").pop().unwrap_or_default(), deltas)
        };
        // What comes in pieces.
        assert_eq!(whole(json!("plain")), (json!({"type": "text", "text": "plain"}), vec![json!("text-delta")]));
        let text = json!({"type": "text", "text": "hi"});
        assert_eq!(whole(text.clone()), (text, vec![json!("text-delta")]));
        let reasoning = json!({"type": "reasoning", "reasoning": "so"});
        assert_eq!(whole(reasoning.clone()), (reasoning.clone(), vec![json!("reasoning-delta")]));
        let thinking = json!({"type": "thinking", "thinking": "so", "signature": "s"});
        assert_eq!(whole(thinking), (reasoning, vec![json!("reasoning-delta")]), "as another provider says it");
        // What comes whole, as it is.
        for block in [
            json!({"type": "image", "url": "https://x/y.png"}),
            json!({"type": "audio", "base64": "AA==", "mime_type": "audio/wav"}),
            json!({"type": "video", "file_id": "f"}),
            json!({"type": "file", "url": "https://x/y.pdf"}),
            json!({"type": "server_tool_call", "id": "s1", "name": "search", "args": {"q": 1}}),
            json!({"type": "server_tool_result", "tool_call_id": "s1", "output": "found"}),
            json!({"type": "non_standard", "value": {"a": 1}}),
        ] {
            assert_eq!(whole(block.clone()), (block, vec![]));
        }
        let odd = json!({"type": "hologram", "depth": 3});
        assert_eq!(whole(odd.clone()), (json!({"type": "non_standard", "value": odd}), vec![]));
        // Told as the message's tool calls, of which this one has none; and nothing is said by nothing.
        for block in [json!({"type": "tool_use", "id": "c"}), json!({"type": "text", "text": ""})] {
            assert_eq!(whole(block), (Value::Null, vec![]));
        }
    }

    #[test]
    fn a_call_with_bad_arguments_is_a_block_of_its_own() {
        let mut speech = Speech::default();
        let bad = json!({"name": "look", "args": "{", "id": "c1", "error": "EOF", "type": "invalid_tool_call"});
        let told =
            speech.hear(&[], &json!([{"type": "ai", "id": "m", "content": "", "invalid_tool_calls": [bad]}, {}]));
        assert_eq!(events(&told), ["message-start", "content-block-start", "content-block-finish", "message-finish"]);
        assert_eq!(told[2].data["content"], bad);
    }

    #[test]
    fn what_is_being_said_ends_with_its_task_or_breaks_off() {
        let mut speech = Speech::default();
        speech.hear(&[], &chunk(json!("a"), json!([]), false));
        assert_eq!(speech.task_ended("other"), []);
        assert_eq!(events(&speech.task_ended("t1")), ["content-block-finish", "message-finish"]);
        speech.hear(&["x".to_owned()], &chunk(json!("a"), json!([{"args": "{"}]), false));
        assert_eq!(events(&speech.break_off("the run failed")), ["error"]);
        let mut bad = Speech::default();
        bad.hear(&[], &chunk(json!(""), json!([{"args": "{"}]), false));
        let told = bad.task_ended("t1");
        assert_eq!(told[0].data["content"]["type"], "invalid_tool_call");
    }
}
