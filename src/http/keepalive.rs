//! Answers that take long: status 200 at once, a newline every few seconds, then the JSON (contract section 3.6).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::json;
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use super::AppState;
use super::error::ApiResult;
use super::pretty::indent;
use super::sse::ticker;
use crate::model::Json;

/// Whether the answer could be had; in the extensions of the response. Where it could not, the body says why, which is
/// nothing to tell anybody who asks again.
#[derive(Debug, Clone, Default)]
pub(super) struct Failed(Arc<AtomicBool>);

impl Failed {
    /// Certain once the body has ended.
    pub(super) fn is_so(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A response whose body is the future's answer, or `{"__error__": ..}` when it fails. Dropping the response drops the
/// future; when the server stops, the connection breaks (clients then ask `Location`) and the future lives on.
pub(crate) fn respond<F>(state: &AppState, pretty: bool, answer: F) -> Response
where
    F: Future<Output = ApiResult<Json>> + Send + 'static,
{
    let failed = Failed::default();
    let wait = Wait {
        failed: failed.clone(),
        answer: Some(Box::pin(answer)),
        pretty,
        heartbeat: ticker(state.settings.heartbeat),
        shutdown: state.settings.shutdown.clone(),
    };
    let body = unfold(wait, |mut wait| async move { wait.next().await.map(|chunk| (chunk, wait)) });
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (kind, Extension(failed), Body::from_stream(body)).into_response()
}

struct Wait {
    failed: Failed,
    answer: Option<Pin<Box<dyn Future<Output = ApiResult<Json>> + Send>>>,
    pretty: bool,
    heartbeat: Interval,
    shutdown: CancellationToken,
}

impl Wait {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let answer = self.answer.as_mut()?;
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                tokio::spawn(self.answer.take()?);
                Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is stopping")))
            }
            result = answer => {
                self.answer = None;
                let json = result.unwrap_or_else(|error| {
                    self.failed.0.store(true, Ordering::Release);
                    Json::from(json!({"__error__": error.into_info()}))
                });
                let text = if self.pretty { indent(&json.text()) } else { json.text() };
                Some(Ok(Bytes::from(text)))
            }
            _ = self.heartbeat.tick() => Some(Ok(Bytes::from_static(b"\n"))),
        }
    }
}
