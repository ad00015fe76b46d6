//! The execution log: what became of each execution of a task.

use serde_json::{Map, Value, json};

use super::{CheckpointId, ErrorInfo, Json, JsonError, RunId, Timestamp, UsageTotals};

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskOutcome {
    Success,
    /// It failed; another attempt, or the node's error handler, may follow.
    Error,
    /// It asked, or a graph inside it stopped.
    Interrupted,
    /// It was stopped: the run was, or a sibling failed, or its superstep took too long.
    Cancelled,
}

impl TaskOutcome {
    pub const ALL: [TaskOutcome; 4] =
        [TaskOutcome::Success, TaskOutcome::Error, TaskOutcome::Interrupted, TaskOutcome::Cancelled];

    pub fn as_str(self) -> &'static str {
        match self {
            TaskOutcome::Success => "success",
            TaskOutcome::Error => "error",
            TaskOutcome::Interrupted => "interrupted",
            TaskOutcome::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<TaskOutcome> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// One execution of a task: a task that is retried, or runs again after a question, has several.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskExecution {
    /// By the clock of the process that executed it. No other execution of its run has the same.
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    /// The namespace of the graph; `""` is the root graph.
    pub ns: String,
    /// The checkpoint that the task was planned from.
    pub checkpoint_id: CheckpointId,
    pub task_id: String,
    pub node: String,
    pub step: i64,
    /// 1 for the first attempt since the task was started, then 2, ..
    pub attempt: i32,
    pub outcome: TaskOutcome,
    pub detail: TaskDetail,
}

/// What an execution came from and what it left.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskDetail {
    /// The nodes that led here. Empty when the run took the task up where another one left it.
    pub from: Vec<String>,
    /// The nodes it led to, by edges, branches and Sends. One that waits for several nodes is named by each of them.
    pub next: Vec<String>,
    /// The keys it wrote.
    pub written: Vec<String>,
    pub error: Option<ErrorInfo>,
    pub usage: UsageTotals,
}

impl TaskDetail {
    /// `{from, next, written, error, usage}`, without what is empty.
    pub fn to_json(&self) -> Json {
        let mut document = Map::new();
        for (key, names) in [("from", &self.from), ("next", &self.next), ("written", &self.written)] {
            if !names.is_empty() {
                document.insert(key.to_owned(), json!(names));
            }
        }
        if let Some(error) = &self.error {
            document.insert("error".to_owned(), json!({"error": error.error, "message": error.message}));
        }
        if !self.usage.is_empty() {
            document.insert("usage".to_owned(), self.usage.to_json().value().clone());
        }
        Json::from(Value::Object(document))
    }

    /// Reads [`TaskDetail::to_json`].
    ///
    /// # Errors
    /// The document is of another form.
    pub fn from_json(json: &Json) -> Result<TaskDetail, JsonError> {
        let bad = |key: &str| JsonError(format!("not the detail of a task: {key}"));
        let names = |key: &str| match json.get(key) {
            Some(names) => names.decode::<Vec<String>>().map_err(|_| bad(key)),
            None => Ok(Vec::new()),
        };
        Ok(TaskDetail {
            from: names("from")?,
            next: names("next")?,
            written: names("written")?,
            error: json.get("error").map(|error| error.decode()).transpose().map_err(|_| bad("error"))?,
            usage: json.get("usage").map(|usage| UsageTotals::from_json(&usage)).transpose()?.unwrap_or_default(),
        })
    }
}

/// An execution as it is listed.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedTask {
    pub run_id: RunId,
    /// Who asked for the run.
    pub actor: Option<String>,
    pub execution: TaskExecution,
}
