//! The body of a scripted node: its operations, one after the other.

use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use indexmap::IndexMap;
use serde_json::{Value, json};
use session_store::graph::{
    AiChunk, Command, CommandUpdate, Context, Graph, IntoOutput, Json, Message, NodeBody, NodeError, NodeInput, Output,
    Question,
};

use super::template::{Env, destinations, eval, fixture_error, message, text};
use super::{condition, counters, policies};

/// A scripted body.
pub(crate) struct Body {
    graph: String,
    path: String,
    ops: Vec<Value>,
    child: Option<Graph>,
}

impl Body {
    pub(crate) fn new(graph: &str, path: &str, ops: &[Value], child: Option<Graph>) -> Body {
        Body { graph: graph.to_owned(), path: path.to_owned(), ops: ops.to_vec(), child }
    }
}

#[async_trait]
impl NodeBody for Body {
    async fn run(&self, input: NodeInput, ctx: Context) -> Result<Output, NodeError> {
        let thread = ctx.info().thread_id.clone();
        let mut env = Env {
            input: input.to_json().value().clone(),
            context: ctx.info().context.value().clone(),
            runs: counters::bump([&self.graph, &self.path, &thread]),
            ..Env::default()
        };
        if let Some(failure) = ctx.error() {
            let facts = [("error_node", &failure.node), ("error_class", &failure.error.class)];
            env.vars.extend(facts.map(|(name, value)| (name.to_owned(), json!(value))));
            env.vars.insert("error_message".to_owned(), json!(failure.error.text()));
        }
        let mut execution = Execution { body: self, ctx, thread, env, update: IndexMap::new() };
        match execution.block(&self.ops, "").await? {
            Some(output) => output.into_output(),
            None => Ok(Output::Update(execution.update.into_iter().map(|(key, value)| (key, value.into())).collect())),
        }
    }
}

/// One execution of a body.
struct Execution<'a> {
    body: &'a Body,
    ctx: Context,
    thread: String,
    env: Env,
    /// What the body returns if nothing else is returned.
    update: IndexMap<String, Value>,
}

impl Execution<'_> {
    /// Runs operations until one returns.
    async fn block(&mut self, ops: &[Value], address: &str) -> Result<Option<Output>, NodeError> {
        for (index, op) in ops.iter().enumerate() {
            if let Some(output) = Box::pin(self.op(op, &format!("{address}/{index}"))).await? {
                return Ok(Some(output));
            }
        }
        Ok(None)
    }

    async fn op(&mut self, op: &Value, address: &str) -> Result<Option<Output>, NodeError> {
        let name = op["op"].as_str().unwrap_or_default();
        match name {
            "write" => {
                for (key, template) in op["values"].as_object().into_iter().flatten() {
                    let value = self.eval(template)?;
                    self.update.insert(key.clone(), value);
                }
            }
            "interrupt" => self.interrupt(op)?,
            "fail_first" => self.fail_first(op, address)?,
            "fail" => return Err(policies::error(op)),
            "sleep" => tokio::time::sleep(Duration::from_millis(op["ms"].as_u64().unwrap_or_default())).await,
            "custom" => self.ctx.write(self.eval(&op["value"])?)?,
            "let" => {
                let value = self.eval(&op["value"])?;
                self.set(&op["name"], value);
            }
            "if" => {
                let (branch, mark) =
                    if condition::holds(&op["cond"], &self.env)? { ("then", "t") } else { ("else", "e") };
                let ops = op[branch].as_array().cloned().unwrap_or_default();
                return self.block(&ops, &format!("{address}{mark}")).await;
            }
            "message" => {
                let written = message(self.eval(&op["message"])?)?;
                self.push(op, written);
            }
            "ai_stream" => self.ai_stream(op).await?,
            "call_subgraph" => {
                let child = self.body.child.as_ref().ok_or_else(|| fixture_error("the node has no child"))?;
                let input = op.get("input").map_or_else(|| Ok(self.env.input.clone()), |input| self.eval(input))?;
                let result = self.ctx.call(child, Json::from(input)).await?;
                let into = op["into"].as_str().unwrap_or("result").to_owned();
                self.env.vars.insert(into, result.value().clone());
            }
            "drain" => self.ctx.request_drain(op["reason"].as_str().unwrap_or("drain")),
            "command" => return self.command(op, true).map(|command| Some(Output::Command(command))),
            "return" => return Json::from(self.eval(&op["value"])?).into_output().map(Some),
            "return_null" => return Ok(Some(Output::Nothing)),
            "return_list" => return self.return_list(op).map(Some),
            store if store.starts_with("store_") => self.store(store, op).await?,
            unknown => return Err(fixture_error(format!("unknown op {unknown}"))),
        }
        Ok(None)
    }

    fn eval(&self, template: &Value) -> Result<Value, NodeError> {
        eval(template, &self.env)
    }

    fn set(&mut self, name: &Value, value: Value) {
        self.env.vars.insert(name.as_str().unwrap_or_default().to_owned(), value);
    }

    /// Appends to a key of the update.
    fn push(&mut self, op: &Value, value: Value) {
        let key = op["key"].as_str().unwrap_or("messages").to_owned();
        if let Value::Array(items) = self.update.entry(key).or_insert_with(|| json!([])) {
            items.push(value);
        }
    }

    fn interrupt(&mut self, op: &Value) -> Result<(), NodeError> {
        let mut question = Question::new(self.eval(&op["value"])?)?;
        if let Some(schema) = op.get("response_schema").filter(|schema| !schema.is_null()) {
            question = question.showing(Json::from(schema));
        }
        let answer = self.ctx.interrupt_with(&question)?;
        self.env.answers.push(answer.value().clone());
        Ok(())
    }

    fn fail_first(&self, op: &Value, address: &str) -> Result<(), NodeError> {
        let key = op.get("key").map_or(Ok(Value::Null), |key| self.eval(key))?;
        let key = if op.get("key").is_some() { format!("={}", text(&key)) } else { String::new() };
        let count = counters::bump([&self.body.graph, &self.body.path, &self.thread, address, &key]);
        if count <= op["n"].as_u64().unwrap_or(1) { Err(policies::error(op)) } else { Ok(()) }
    }

    async fn ai_stream(&mut self, op: &Value) -> Result<(), NodeError> {
        let id = op["id"].as_str().unwrap_or_default();
        let tokens: Vec<&str> = op["tokens"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (index, token) in tokens.iter().enumerate() {
            let chunk = AiChunk::new(id, *token);
            let chunk = if index + 1 == tokens.len() { chunk.last() } else { chunk };
            self.ctx.messages().chunk(&chunk)?;
        }
        // As long as the chat model of the reference takes: rounds of its event loop.
        for _ in 0..9 {
            go_round().await;
        }
        self.push(op, json!(Message::ai(tokens.concat()).with_id(id)));
        Ok(())
    }

    /// A Command. With `merge`, what was written so far is merged below an update that is an object or absent.
    fn command(&mut self, op: &Value, merge: bool) -> Result<Command, NodeError> {
        let below = |execution: &Self| if merge { execution.update.clone() } else { IndexMap::new() };
        let fields = |fields: IndexMap<String, Value>| {
            CommandUpdate::Fields(fields.into_iter().map(|(key, value)| (key, Json::from(value))).collect())
        };
        let update = match op.get("update") {
            None if below(self).is_empty() => None,
            None => Some(fields(below(self))),
            Some(Value::Array(pairs)) => {
                let pair = |pair: &Value| Ok((text(&pair[0]), Json::from(self.eval(&pair[1])?)));
                Some(CommandUpdate::Pairs(pairs.iter().map(pair).collect::<Result<_, NodeError>>()?))
            }
            Some(template) => match self.eval(template)? {
                Value::Null => None,
                Value::Object(written) => {
                    let mut merged = below(self);
                    merged.extend(written);
                    Some(fields(merged))
                }
                other => Some(CommandUpdate::Other(Json::from(other))),
            },
        };
        let goto = op.get("goto").map_or(Ok(Vec::new()), |goto| destinations(goto, &mut self.env))?;
        let parent = op["graph"] == "__parent__";
        Ok(Command { update, goto, parent, resume: None })
    }

    /// A list of Commands and updates; without a Command in it, it is a bad return value.
    fn return_list(&mut self, op: &Value) -> Result<Output, NodeError> {
        let items = op["items"].as_array().cloned().unwrap_or_default();
        if !items.iter().any(|item| item.get("command").is_some()) {
            let plain: Result<Vec<Value>, NodeError> = items.iter().map(|item| self.eval(&item["write"])).collect();
            return Ok(Output::Other(Json::from(Value::Array(plain?))));
        }
        let outputs = items.iter().map(|item| match item.get("command") {
            Some(command) => self.command(command, false).map(Output::Command),
            None => Json::from(self.eval(&item["write"])?).into_output(),
        });
        Ok(Output::Many(outputs.collect::<Result<_, NodeError>>()?))
    }

    async fn store(&mut self, name: &str, op: &Value) -> Result<(), NodeError> {
        let namespace = self.eval(&op["namespace"])?;
        let namespace: Vec<String> = namespace.as_array().into_iter().flatten().map(text).collect();
        let key = self.eval(&op["key"]).map(|key| text(&key))?;
        let items = self.ctx.items();
        match name {
            "store_put" => {
                let value = Json::from(self.eval(&op["value"])?);
                items.put(&namespace, &key, value).await?;
            }
            "store_delete" => items.delete(&namespace, &key).await?,
            "store_get" => {
                let item = items.get(&namespace, &key).await?;
                self.set(&op["into"], item.map(|item| item.value.value().clone()).unwrap_or_default());
            }
            "store_search" => {
                let filter = op.get("filter").filter(|filter| !filter.is_null()).map(Json::from);
                let mut found = items.search(&namespace, filter, op["limit"].as_i64().unwrap_or(10)).await?;
                found.sort_by(|a, b| (&a.namespace, &a.key).cmp(&(&b.namespace, &b.key)));
                let found = found.into_iter().map(|item| json!([item.namespace, item.key, item.value.value()]));
                self.set(&op["into"], found.collect());
            }
            unknown => return Err(fixture_error(format!("unknown op {unknown}"))),
        }
        Ok(())
    }
}

/// Lets all siblings that are ready go on, once.
async fn go_round() {
    let mut has_gone = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut has_gone, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
