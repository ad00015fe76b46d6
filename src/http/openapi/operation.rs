//! One operation: parameters, body and answers, and what all operations have in common.

use axum::http::Method;
use serde_json::{Map, Value, json};

use super::schema::{Schema, Shape, any, boolean, component, integer, text, uuid};
use crate::http::page::{LIMITS, OFFSETS};

/// What a method of a path takes and answers.
#[derive(Debug, Clone)]
pub(in crate::http) struct Operation {
    /// `noun.verb`, the noun being one of [`super::paths::TAGS`].
    id: &'static str,
    summary: &'static str,
    about: Option<&'static str>,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Vec<Answer>,
}

#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    about: &'static str,
    /// Media types with their schemas.
    content: Vec<(&'static str, Schema)>,
    headers: Vec<&'static str>,
}

/// Begins the description of an operation.
pub(super) fn operation(id: &'static str, summary: &'static str) -> Operation {
    Operation { id, summary, about: None, parameters: Vec::new(), body: None, answers: Vec::new() }
}

impl Operation {
    pub(super) fn about(mut self, text: &'static str) -> Operation {
        self.about = Some(text);
        self
    }

    /// A parameter of the URL.
    pub(super) fn query(self, name: &'static str, schema: Schema, about: &str) -> Operation {
        self.parameter(json!({"name": name, "in": "query", "description": about, "schema": schema.json()}))
    }

    /// A parameter of the URL without which nothing works.
    pub(super) fn required_query(self, name: &'static str, schema: Schema, about: &str) -> Operation {
        let schema = schema.json();
        self.parameter(json!({"name": name, "in": "query", "description": about, "required": true, "schema": schema}))
    }

    pub(super) fn header(self, name: &'static str, schema: Schema, about: &str) -> Operation {
        self.parameter(json!({"name": name, "in": "header", "description": about, "schema": schema.json()}))
    }

    /// A parameter of the path that is not what its name usually is.
    pub(super) fn path(self, name: &'static str, schema: Schema, about: &str) -> Operation {
        let schema = schema.json();
        self.parameter(json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema}))
    }

    fn parameter(mut self, parameter: Value) -> Operation {
        self.parameters.push(parameter);
        self
    }

    /// `limit` and `offset`.
    pub(super) fn window(self) -> Operation {
        self.query("limit", integer(&LIMITS).default(10), "How many rows").query(
            "offset",
            integer(&OFFSETS).default(0),
            "How many rows to skip",
        )
    }

    /// A body that is an object.
    pub(super) fn body(self, shape: Shape) -> Operation {
        let required = shape.needs_something();
        self.any_body(shape.schema(), required)
    }

    /// A body; one that is not required may be left out.
    pub(super) fn any_body(mut self, schema: Schema, required: bool) -> Operation {
        self.body = Some(json!({"required": required, "content": {"application/json": {"schema": schema.json()}}}));
        self
    }

    /// 200 with JSON.
    pub(super) fn ok(self, schema: Schema, about: &'static str) -> Operation {
        self.answer(200, "application/json", schema, about)
    }

    /// Any status with JSON.
    pub(super) fn json(self, status: u16, schema: Schema, about: &'static str) -> Operation {
        self.answer(status, "application/json", schema, about)
    }

    /// 200 with an event stream.
    pub(super) fn stream(self, about: &'static str) -> Operation {
        self.events(about)
    }

    /// Frames, of which readers make what they like: some take the schema for that of the text, some for that of an event.
    pub(super) fn events(self, about: &'static str) -> Operation {
        self.answer(200, "text/event-stream", any(), about)
    }

    pub(super) fn answer(mut self, status: u16, media: &'static str, schema: Schema, about: &'static str) -> Operation {
        match self.answers.iter_mut().find(|answer| answer.status == status) {
            Some(answer) => answer.content.push((media, schema)),
            None => self.answers.push(Answer { status, about, content: vec![(media, schema)], headers: Vec::new() }),
        }
        self
    }

    /// A status without a body.
    pub(super) fn empty(mut self, status: u16, about: &'static str) -> Operation {
        self.answers.push(Answer { status, about, content: Vec::new(), headers: Vec::new() });
        self
    }

    /// The latest answer carries this header, one of those that `components::headers` describes.
    pub(super) fn carries(mut self, header: &'static str) -> Operation {
        self.answers.iter_mut().next_back().into_iter().for_each(|answer| answer.headers.push(header));
        self
    }

    /// The latest answer says how the list goes on.
    pub(super) fn pages(self) -> Operation {
        self.carries("X-Pagination-Total").carries("X-Pagination-Next")
    }

    /// A refusal of this operation beyond those that all have.
    pub(super) fn refuses(self, status: u16, about: &'static str) -> Operation {
        self.json(status, component("Error"), about)
    }

    pub(super) fn render(self, path: &str, method: &Method, is_open: bool) -> Value {
        let tag = self.id.split('.').next().unwrap_or_default();
        let mut answers = self.common(method, is_open);
        let mut parameters: Vec<Value> = Vec::new();
        for name in path.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
            let is_own = |parameter: &&Value| parameter["in"] == "path" && parameter["name"] == name;
            parameters.push(self.parameters.iter().find(is_own).cloned().unwrap_or_else(|| usual_path(name)));
        }
        parameters.extend(self.parameters.iter().filter(|parameter| parameter["in"] != "path").cloned());
        let mut common = vec!["actor", "pretty"];
        if *method == Method::POST {
            common.push("idempotencyKey");
        }
        parameters.extend(common.iter().map(|name| json!({"$ref": format!("#/components/parameters/{name}")})));
        answers.extend(self.answers.into_iter().map(|answer| (answer.status, answer.render())));
        answers.sort_by_key(|(status, _)| *status);
        let answers: Map<String, Value> =
            answers.into_iter().map(|(status, answer)| (status.to_string(), answer)).collect();
        let mut operation = json!({"operationId": self.id, "tags": [tag], "summary": self.summary});
        if let Some(about) = self.about {
            operation["description"] = json!(about);
        }
        if is_open {
            operation["security"] = json!([]);
        }
        operation["parameters"] = json!(parameters);
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        operation["responses"] = json!(answers);
        operation
    }

    /// The refusals that every operation, or every one of its kind, has.
    fn common(&self, method: &Method, is_open: bool) -> Vec<(u16, Value)> {
        let is_post = *method == Method::POST;
        let has = |status: u16| match status {
            401 | 403 => !is_open,
            408 | 413 => is_post || self.body.is_some(),
            409 => is_post,
            _ => true,
        };
        let is_own = |status: u16| self.answers.iter().any(|answer| answer.status == status);
        let refusals = REFUSALS.iter().filter(|(status, ..)| has(*status) && !is_own(*status));
        refusals.map(|(status, name, _)| (*status, json!({"$ref": format!("#/components/responses/{name}")}))).collect()
    }
}

/// Refusals that operations have in common.
const REFUSALS: [(u16, &str, &str); 10] = [
    (401, "NoKey", "No key was sent, and one is needed"),
    (403, "Forbidden", "The key is not known, or the web page may not call"),
    (408, "TooSlow", "The body did not arrive in time"),
    (409, "Conflict", "The first request with this Idempotency-Key is being answered"),
    (413, "TooLarge", "The body is larger than the server takes"),
    (414, "LongUrl", "The URL is longer than 64 KiB; no text says so"),
    (422, "Malformed", "Something is malformed; the text names it and the rule"),
    (431, "LongHeaders", "The headers are longer than the server takes; no text says so"),
    (500, "Failed", "A failure of the server, in its log under the error id of the text"),
    (503, "Unavailable", "The storage cannot be reached: try again"),
];

pub(super) fn common_refusals() -> Map<String, Value> {
    let refusal = |(status, name, about): &(u16, &'static str, &'static str)| {
        // These two come before any of our code.
        let has_text = !matches!(status, 414 | 431);
        let content = if has_text { vec![("application/json", component("Error"))] } else { Vec::new() };
        let answer = Answer { status: *status, about, content, headers: Vec::new() };
        ((*name).to_owned(), answer.render())
    };
    REFUSALS.iter().map(refusal).collect()
}

impl Answer {
    fn render(self) -> Value {
        let mut answer = json!({"description": self.about});
        if !self.headers.is_empty() {
            let header =
                |name: &&'static str| ((*name).to_owned(), json!({"$ref": format!("#/components/headers/{name}")}));
            answer["headers"] = Value::Object(self.headers.iter().map(header).collect());
        }
        if !self.content.is_empty() {
            let media = |(media, schema): (&'static str, Schema)| (media.to_owned(), json!({"schema": schema.json()}));
            answer["content"] = Value::Object(self.content.into_iter().map(media).collect());
        }
        answer
    }
}

/// What a parameter of a path is by its name.
fn usual_path(name: &str) -> Value {
    let (schema, about) = match name {
        "thread_id" => (component("ThreadId"), "The thread"),
        "run_id" => (uuid(), "The run"),
        "assistant_id" => (uuid(), "The assistant"),
        "cron_id" => (uuid(), "The cron"),
        "checkpoint_id" => (uuid(), "The checkpoint"),
        "interrupt_id" => (text().with("minLength", 1), "The question"),
        _ => (text().with("minLength", 1), ""),
    };
    json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema.json()})
}

/// Parameters that every operation has, and those of every POST.
pub(super) fn common_parameters() -> Value {
    let actor = "Who acts: a label for records of who did what, trusted for nothing else";
    let key = "Makes a POST that is sent again have one effect, for a day; a repeat is answered like the first";
    json!({
        "actor": {"name": "x-actor", "in": "header", "description": actor, "schema": {"type": "string", "maxLength": 256}},
        "pretty": {
            "name": "pretty", "in": "query", "allowEmptyValue": true,
            "description": "Indents JSON", "schema": boolean().default(false).json(),
        },
        "idempotencyKey": {
            "name": "Idempotency-Key", "in": "header", "description": key,
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
        },
    })
}
