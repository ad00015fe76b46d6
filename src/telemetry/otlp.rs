//! Traces over OTLP (HTTP, protobuf). A collector that is down, slow or silent costs spans, and nothing else: spans wait in
//! a bounded queue and are dropped where it is full, and one thread of its own sends them, with a limit for every request.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, filter, fmt};

use crate::config::{LogConfig, LogFormat};

/// Spans that wait to be sent; further ones are dropped.
const QUEUE: usize = 8192;
const BATCH: usize = 512;
/// How often what waits is sent, if that is less than a batch.
const EVERY: Duration = Duration::from_secs(1);
/// How long a collector may take for one batch, which is lost then.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of the process waits for what is left.
const LAST: Duration = Duration::from_secs(2);

/// The exporter of this process.
#[derive(Debug)]
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    pub(super) fn finish(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// Installs the subscriber of the process with logs and traces. `None` when one is installed already.
pub(super) fn install(log: &LogConfig, endpoint: &str) -> anyhow::Result<Option<Exporter>> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new()?)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(PATIENCE)
        // What is not taken is lost: later spans are worth more than those.
        .with_retry_policy(RetryPolicy::disabled())
        .build()?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(EVERY)
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
        .with_resource(Resource::builder().with_service_name("session-store").build())
        .build();
    // Spans only: what is logged may quote what users wrote.
    let own = filter::filter_fn(|about| {
        let is_own = about.target().starts_with("session_store");
        about.is_span() && *about.level() <= if is_own { LevelFilter::DEBUG } else { LevelFilter::INFO }
    });
    let traces = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("session-store"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(own);
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(EnvFilter::try_new(&log.filter)?);
    if tracing_subscriber::registry().with(lines).with(traces).try_init().is_err() {
        tracing::warn!("a tracing subscriber was installed before: nothing is exported");
        return Ok(None);
    }
    Ok(Some(Exporter(provider)))
}

/// Sends from the exporter's own thread, on a runtime of its own: the server's is neither used nor waited for.
#[derive(Debug)]
struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    /// The last batch was not taken: said once, not with every batch.
    is_failing: AtomicBool,
}

impl Client {
    fn new() -> anyhow::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let none = reqwest::redirect::Policy::none();
        // A connection for each batch: between two of them nobody would notice that one was closed.
        let http = reqwest::Client::builder().timeout(PATIENCE).redirect(none).pool_max_idle_per_host(0).build()?;
        Ok(Client { runtime, http, is_failing: AtomicBool::new(false) })
    }

    async fn send(&self, request: reqwest::Request) -> Result<Response<Bytes>, reqwest::Error> {
        // What it says besides its status is read by nobody.
        let answer = self.http.execute(request).await.map_err(reqwest::Error::without_url)?;
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = answer.status();
        answer.error_for_status().map_err(reqwest::Error::without_url)?;
        Ok(response)
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = request.try_into()?;
        let sent = self.runtime.block_on(self.send(request));
        match (&sent, self.is_failing.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                let error: &(dyn std::error::Error + 'static) = error;
                tracing::warn!(error, "the collector does not take spans: they are lost until it does");
            }
            (Ok(_), true) => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        Ok(sent?)
    }
}
