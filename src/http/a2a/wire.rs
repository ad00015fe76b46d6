//! What A2A's two generations call things. Requests of both are read alike; answers are in the words of the one that
//! asked.

use serde_json::{Map, Value, json};

use crate::http::error::{ApiError, ApiResult};
use crate::http::jsonrpc::Refusal;
use crate::http::object::Object;
use crate::model::{Json, Timestamp};

pub(super) const TASK_NOT_FOUND: i64 = -32001;
pub(super) const TASK_NOT_CANCELABLE: i64 = -32002;
pub(super) const NO_PUSH_NOTIFICATIONS: i64 = -32003;
pub(super) const UNSUPPORTED_OPERATION: i64 = -32004;
const CONTENT_TYPE_NOT_SUPPORTED: i64 = -32005;
const MAX_PARTS: usize = 1000;

/// In whose words an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Version 1.0: `SendMessage`.
    V1,
    /// Version 0.3: `message/send`.
    V03,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskState {
    Submitted,
    Working,
    /// A node asks a human.
    InputRequired,
    Completed,
    Canceled,
    Failed,
}

impl TaskState {
    fn word(self, dialect: Dialect) -> &'static str {
        let (v1, v03) = match self {
            TaskState::Submitted => ("TASK_STATE_SUBMITTED", "submitted"),
            TaskState::Working => ("TASK_STATE_WORKING", "working"),
            TaskState::InputRequired => ("TASK_STATE_INPUT_REQUIRED", "input-required"),
            TaskState::Completed => ("TASK_STATE_COMPLETED", "completed"),
            TaskState::Canceled => ("TASK_STATE_CANCELED", "canceled"),
            TaskState::Failed => ("TASK_STATE_FAILED", "failed"),
        };
        if dialect == Dialect::V1 { v1 } else { v03 }
    }
}

/// A run, as a task.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) id: String,
    /// The thread.
    pub(super) context: String,
    pub(super) state: TaskState,
    /// What is to be said about the state: a question, or why it failed.
    pub(super) says: Option<String>,
    pub(super) at: Timestamp,
    /// The answer, once there is one.
    pub(super) artifact: Option<Artifact>,
}

/// A text that an agent made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Artifact {
    /// The id of its message.
    pub(super) id: String,
    pub(super) text: String,
}

/// A message to an agent, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    pub(super) id: Option<String>,
    pub(super) context: Option<String>,
    pub(super) task: Option<String>,
    pub(super) text: String,
}

impl Dialect {
    fn part(self, text: &str) -> Value {
        match self {
            Dialect::V1 => json!({"text": text}),
            Dialect::V03 => json!({"kind": "text", "text": text}),
        }
    }

    /// An object that says its kind, in the generation where objects do.
    fn object(self, kind: &str, members: Value) -> Value {
        let mut object = Map::new();
        if self == Dialect::V03 {
            object.insert("kind".to_owned(), Value::from(kind));
        }
        if let Value::Object(members) = members {
            object.extend(members);
        }
        Value::Object(object)
    }

    fn status(self, task: &Task) -> Value {
        let mut status = json!({"state": task.state.word(self), "timestamp": task.at.to_iso()});
        if let Some(text) = &task.says {
            let role = if self == Dialect::V1 { "ROLE_AGENT" } else { "agent" };
            let members = json!({
                "messageId": format!("{}:status", task.id), "contextId": task.context, "taskId": task.id, "role": role,
                "parts": [self.part(text)],
            });
            status["message"] = self.object("message", members);
        }
        status
    }

    fn artifact(self, artifact: &Artifact) -> Value {
        json!({"artifactId": artifact.id, "name": "answer", "parts": [self.part(&artifact.text)]})
    }

    /// A task as `GetTask` answers it.
    pub(super) fn task(self, task: &Task) -> Value {
        let mut members = json!({"id": task.id, "contextId": task.context, "status": self.status(task)});
        if let Some(artifact) = &task.artifact {
            members["artifacts"] = json!([self.artifact(artifact)]);
        }
        self.object("task", members)
    }

    /// A task as `SendMessage` answers it, and as a stream begins.
    pub(super) fn sent(self, task: &Task) -> Value {
        self.wrapped("task", self.task(task))
    }

    /// A stream's news of the state.
    pub(super) fn status_update(self, task: &Task) -> Value {
        let mut members = json!({"taskId": task.id, "contextId": task.context, "status": self.status(task)});
        if self == Dialect::V03 {
            members["final"] = Value::from(true);
        }
        self.wrapped("statusUpdate", self.object("status-update", members))
    }

    /// A stream's news of a text: more of it (`append`), or all of it.
    pub(super) fn artifact_update(self, task: &Task, artifact: &Artifact, append: bool, last: bool) -> Value {
        let members = json!({
            "taskId": task.id, "contextId": task.context, "artifact": self.artifact(artifact),
            "append": append, "lastChunk": last,
        });
        self.wrapped("artifactUpdate", self.object("artifact-update", members))
    }

    /// What version 0.3 tells by `kind`, version 1.0 tells by the member it is in.
    fn wrapped(self, member: &str, object: Value) -> Value {
        if self == Dialect::V1 { json!({member: object}) } else { object }
    }
}

/// Reads a message to an agent. Texts are taken, and data as JSON text; files are not.
pub(super) fn read_message(message: &mut Object) -> Result<Incoming, Refusal> {
    let parts = message.objects("parts", MAX_PARTS)?.ok_or_else(|| message.missing("parts"))?;
    let texts: Vec<String> = parts.into_iter().map(read_part).collect::<Result<_, Refusal>>()?;
    if texts.is_empty() {
        return Err(ApiError::invalid("params.message.parts: expected at least one part").into());
    }
    Ok(Incoming {
        id: filled(message, "messageId")?,
        context: filled(message, "contextId")?,
        task: filled(message, "taskId")?,
        text: texts.join("\n"),
    })
}

/// A text that says something.
pub(super) fn filled(object: &mut Object, key: &str) -> ApiResult<Option<String>> {
    Ok(object.string(key)?.filter(|text| !text.is_empty()))
}

fn read_part(mut part: Object) -> Result<String, Refusal> {
    if let Some(text) = part.json("text") {
        let text = text.as_str().map(str::to_owned);
        return text.ok_or_else(|| ApiError::invalid("params.message.parts: text: expected a string").into());
    }
    let data = part.json("data").map(|data| data.text());
    data.ok_or_else(|| Refusal::new(CONTENT_TYPE_NOT_SUPPORTED, "params.message.parts: only text and data are taken"))
}

/// The last thing the agent itself said in a state that has `messages`.
pub(super) fn last_answer(values: &Json) -> Option<Artifact> {
    let messages = values.get("messages")?.items()?;
    let last = messages.iter().rev().find(|message| kind_of(message).as_deref() == Some("ai"))?;
    Some(Artifact { id: id_of(last)?, text: text_of(last) })
}

pub(super) fn kind_of(message: &Json) -> Option<String> {
    message.get("type").and_then(|kind| kind.as_str().map(str::to_owned))
}

pub(super) fn id_of(message: &Json) -> Option<String> {
    message.get("id").and_then(|id| id.as_str().map(str::to_owned))
}

/// The text of a message's content: a string, or blocks of which some are text.
pub(super) fn text_of(message: &Json) -> String {
    let content = message.get("content").unwrap_or_default();
    match content.value() {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::jsonrpc::INVALID_PARAMS;

    fn task() -> Task {
        Task {
            id: "t:r".to_owned(),
            context: "t".to_owned(),
            state: TaskState::Completed,
            says: None,
            at: Timestamp(0),
            artifact: Some(Artifact { id: "m".to_owned(), text: "hi".to_owned() }),
        }
    }

    fn read(text: &str) -> Result<Incoming, Refusal> {
        read_message(&mut Object::body(&Json::parse(text).expect("JSON")).expect("an object"))
    }

    #[test]
    fn each_generation_is_answered_in_its_words() {
        let at = "1970-01-01T00:00:00.000000+00:00";
        assert_eq!(
            Dialect::V1.sent(&task()),
            json!({"task": {
                "id": "t:r", "contextId": "t", "status": {"state": "TASK_STATE_COMPLETED", "timestamp": at},
                "artifacts": [{"artifactId": "m", "name": "answer", "parts": [{"text": "hi"}]}],
            }})
        );
        assert_eq!(
            Dialect::V03.sent(&task()),
            json!({
                "kind": "task", "id": "t:r", "contextId": "t", "status": {"state": "completed", "timestamp": at},
                "artifacts": [{"artifactId": "m", "name": "answer", "parts": [{"kind": "text", "text": "hi"}]}],
            })
        );
        let asked = Task { state: TaskState::InputRequired, says: Some("Sure?".to_owned()), ..task() };
        let update = Dialect::V03.status_update(&asked);
        assert_eq!((&update["kind"], &update["final"]), (&json!("status-update"), &json!(true)));
        assert_eq!(update["status"]["state"], "input-required");
        assert_eq!(update["status"]["message"]["parts"], json!([{"kind": "text", "text": "Sure?"}]));
        assert_eq!(Dialect::V1.status_update(&asked)["statusUpdate"]["status"]["message"]["role"], "ROLE_AGENT");
    }

    #[test]
    fn messages_of_both_generations_are_read() {
        let v1 = read(r#"{"messageId":"m","contextId":"","parts":[{"text":"a"},{"data":{"b":1}}]}"#).expect("valid");
        assert_eq!((v1.id.as_deref(), v1.context, v1.text.as_str()), (Some("m"), None, "a\n{\"b\":1}"));
        let v03 = read(r#"{"kind":"message","taskId":"t:r","parts":[{"kind":"text","text":"a"}]}"#).expect("valid");
        assert_eq!((v03.task.as_deref(), v03.text.as_str()), (Some("t:r"), "a"));
        for (bad, code) in [
            ("{}", INVALID_PARAMS),
            (r#"{"parts":[]}"#, INVALID_PARAMS),
            (r#"{"parts":[{"text":1}]}"#, INVALID_PARAMS),
            (r#"{"parts":[{"url":"https://x"}]}"#, CONTENT_TYPE_NOT_SUPPORTED),
        ] {
            assert_eq!(read(bad).expect_err(bad).code, code, "{bad}");
        }
    }

    #[test]
    fn the_answer_is_what_the_agent_said_last() {
        let values = Json::parse(
            r#"{"messages":[{"type":"ai","id":"1","content":"a"},{"type":"ai","id":"2","content":[{"type":"text","text":"b"},{"type":"image"}]},{"type":"human","id":"3","content":"c"}]}"#,
        );
        let answer = last_answer(&values.expect("JSON"));
        assert_eq!(answer, Some(Artifact { id: "2".to_owned(), text: "b".to_owned() }));
        assert_eq!(last_answer(&Json::object()), None);
    }
}
