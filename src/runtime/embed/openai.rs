//! The embedder that asks a service: `POST {url}/embeddings`, as OpenAI has it and many others do (vLLM, Ollama, LiteLLM,
//! text-embeddings-inference).

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, redirect};
use serde::{Deserialize, Serialize};

use super::{EmbedError, Embedder, MAX_DIMS};

/// Texts of one request.
const BATCH: usize = 96;
/// Requests for one batch, the first included.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause a service may ask for while somebody waits for the answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// More than any batch of vectors takes as text.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// What is told of a refusal.
const MAX_REASON: usize = 300;

/// Where the service is and what to ask it for.
#[derive(Clone)]
pub struct OpenAiSettings {
    /// Up to and without `/embeddings`.
    pub url: String,
    /// Sent as a bearer token; never logged or shown.
    pub api_key: Option<String>,
    pub model: String,
    /// Asked for when it is not 0; some models can do fewer than they have.
    pub dims: usize,
    /// Of one request.
    pub timeout: Duration,
}

impl fmt::Debug for OpenAiSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiSettings").field("model", &self.model).field("dims", &self.dims).finish_non_exhaustive()
    }
}

/// Asks a service.
#[derive(Debug)]
pub struct OpenAiEmbedder {
    client: reqwest::Client,
    settings: OpenAiSettings,
    endpoint: String,
    authorization: Option<HeaderValue>,
    model: String,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    index: usize,
    embedding: Vec<f32>,
}

/// A failed attempt.
struct Failure {
    error: EmbedError,
    /// Trying again may help; after this long, if the service says so.
    again: Option<Option<Duration>>,
}

impl OpenAiEmbedder {
    /// # Errors
    /// Says which setting is unusable.
    pub fn new(settings: OpenAiSettings) -> Result<OpenAiEmbedder, String> {
        let client = reqwest::Client::builder()
            // The key is for this service and for no other.
            .redirect(redirect::Policy::none())
            .timeout(settings.timeout)
            .user_agent(concat!("session-store/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        let authorization = settings
            .api_key
            .as_ref()
            .map(|key| HeaderValue::try_from(format!("Bearer {key}")))
            .transpose()
            .map_err(|_| "the API key holds what a header cannot".to_owned())?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        let endpoint = format!("{}/embeddings", settings.url.trim_end_matches('/'));
        let model = match settings.dims {
            0 => format!("openai:{}", settings.model),
            dims => format!("openai:{}:{dims}", settings.model),
        };
        Ok(OpenAiEmbedder { client, settings, endpoint, authorization, model })
    }

    async fn batch(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let failure = match self.attempt(texts).await {
                Ok(vectors) => return Ok(vectors),
                Err(failure) => failure,
            };
            let Some(told) = failure.again.filter(|_| attempt < ATTEMPTS) else { return Err(failure.error) };
            tracing::info!(model = self.model, attempt, error = %failure.error, "embedding failed; it is tried again");
            tokio::time::sleep(told.unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause *= 3;
        }
        Ok(Vec::new())
    }

    async fn attempt(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
        let is_over = |text: String| Failure { error: EmbedError::Unavailable(text), again: None };
        let asked = Request {
            model: &self.settings.model,
            input: texts,
            encoding_format: "float",
            dimensions: Some(self.settings.dims).filter(|dims| *dims > 0),
        };
        let body = serde_json::to_vec(&asked).map_err(|error| is_over(error.to_string()))?;
        let mut request = self.client.post(&self.endpoint).header(CONTENT_TYPE, "application/json").body(body);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let unreached = |error: reqwest::Error| {
            // The URL may hold a secret.
            let error = EmbedError::Unavailable(format!("the embedding service: {}", error.without_url()));
            Failure { error, again: Some(None) }
        };
        let mut response = request.send().await.map_err(unreached)?;
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(response).await);
        }
        let mut text = Vec::new();
        while let Some(part) = response.chunk().await.map_err(unreached)? {
            if text.len() + part.len() > MAX_ANSWER {
                return Err(is_over(format!("the embedding service: an answer of more than {MAX_ANSWER} bytes")));
            }
            text.extend_from_slice(&part);
        }
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|error| is_over(format!("the embedding service: an answer of another form: {error}")))?;
        in_order(answer, texts.len()).map_err(|text| is_over(format!("the embedding service: {text}")))
    }
}

/// The vectors in the order of the texts.
fn in_order(answer: Answer, count: usize) -> Result<Vec<Vec<f32>>, String> {
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); count];
    for entry in answer.data {
        match vectors.get_mut(entry.index) {
            Some(place) if place.is_empty() && (1..=MAX_DIMS).contains(&entry.embedding.len()) => {
                *place = entry.embedding;
            }
            _ => return Err(format!("an entry for text {} that was not asked for", entry.index)),
        }
    }
    match vectors.iter().position(Vec::is_empty) {
        Some(missing) => Err(format!("no entry for text {missing} of {count}")),
        None => Ok(vectors),
    }
}

/// What a status that is no success means.
async fn refusal(mut response: Response) -> Failure {
    let status = response.status();
    let told = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let unavailable = |text: String| EmbedError::Unavailable(format!("the embedding service answered {status}{text}"));
    match status {
        // Their texts may repeat the key.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Failure { error: unavailable(": is embedding.api_key right?".to_owned()), again: None }
        }
        StatusCode::NOT_FOUND => {
            Failure { error: unavailable(": are embedding.url and embedding.model right?".to_owned()), again: None }
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            Failure { error: unavailable(String::new()), again: Some(told.map(Duration::from_secs)) }
        }
        status if status.is_client_error() => {
            let error = EmbedError::Refused(format!(
                "the embedding service answered {status}{}",
                reason(&mut response).await.map(|text| format!(": {text}")).unwrap_or_default()
            ));
            Failure { error, again: None }
        }
        status if status.is_server_error() => {
            Failure { error: unavailable(String::new()), again: Some(told.map(Duration::from_secs)) }
        }
        _ => Failure { error: unavailable(String::new()), again: None },
    }
}

/// The message in a refusal, if there is one.
async fn reason(response: &mut Response) -> Option<String> {
    let mut text = Vec::new();
    while let Some(part) = response.chunk().await.ok()? {
        text.extend_from_slice(&part);
        if text.len() > 64 * 1024 {
            return None;
        }
    }
    let body: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let message = body.pointer("/error/message").or_else(|| body.get("message")).or_else(|| body.get("error"))?;
    Some(message.as_str()?.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect())
}

#[async_trait]
impl Embedder for OpenAiEmbedder {
    fn model(&self) -> &str {
        &self.model
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = Vec::with_capacity(texts.len());
        for part in texts.chunks(BATCH) {
            vectors.extend(self.batch(part).await?);
        }
        Ok(vectors)
    }
}
