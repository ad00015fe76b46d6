//! The composition root: configuration, then storage, runtime, router; the order of start and of shutdown. [`Server`] is
//! the embedded form.

use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt as _;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{
    Config, DatabaseConfig, DatabaseUrl, EmbeddingProvider, ModelConfig, PgvectorUse, Role, SqliteSynchronous, seconds,
};
use crate::graph::Graph;
use crate::http::{ApiKey, HeaderPatterns, HttpSettings, router};
use crate::memory::Memory;
use crate::model::{Scope, Ttl};
use crate::runtime::doctor::{Expectations, Finding, Verdict, examine, readiness};
use crate::runtime::embed::{Embedder, LocalEmbedder, OpenAiEmbedder, OpenAiSettings};
use crate::runtime::items::Reembedded;
use crate::runtime::usage::{Price, Prices};
use crate::runtime::webhooks::{AllowedHost, WebhookSecrets};
use crate::runtime::{
    CronSettings, ItemSettings, Runtime, Settings, Unresumable, WebhookPolicy, WebhookSettings, unresumable_threads,
};
use crate::storage::connect::{ConnectOptions, connect};
use crate::storage::{Description, Page, Release, SharedStorage};

/// A server that has not been started.
#[derive(Debug)]
pub struct Server {
    config: Config,
    graphs: Vec<Graph>,
    embedder: Option<Arc<dyn Embedder>>,
    clock: Clock,
}

impl Server {
    pub fn new(config: Config, graphs: Vec<Graph>) -> Server {
        Server { config, graphs, embedder: None, clock: Clock::default() }
    }

    /// Embeds items with an embedder of the program's own, whatever `embedding.provider` says.
    #[must_use]
    pub fn embedding(self, embedder: Arc<dyn Embedder>) -> Server {
        Server { embedder: Some(embedder), ..self }
    }

    /// With another clock than the machine's: one that is wrong, to see that nothing depends on it.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Server {
        Server { clock, ..self }
    }

    /// Binds, connects, migrates an empty or old database, and serves until [`Running::shutdown`]. When this returns,
    /// requests are answered.
    pub async fn start(self) -> anyhow::Result<Running> {
        let Server { config, graphs, embedder, clock } = self;
        config.validate()?;
        check_names(&graphs)?;
        let listen = config.listen_addr().context("server.listen is no address")?;
        let listener = bind(listen).await?;
        let addr = listener.local_addr().context("reading the address listened on")?;
        let storage = open_storage(&config.database).await?;
        storage.migrate().await.with_context(|| format!("preparing the database {}", config.database.url))?;

        let mut settings = runtime_settings(&config)?;
        settings.items.embedder = embedder.or(settings.items.embedder);
        let runtime = Runtime::new(storage.clone(), graphs.clone(), clock, settings);
        runtime.start();

        let stopping = CancellationToken::new();
        let http = HttpSettings {
            api_keys: config.auth.api_key.reveal().map(ApiKey::new).into_iter().collect(),
            configurable_headers: HeaderPatterns::parse(&config.http.configurable_headers)
                .context("http.configurable_headers names no headers")?,
            mcp_origins: config.mcp.origins(),
            body_limit: config.server.max_body_bytes,
            heartbeat: seconds(config.server.heartbeat_secs),
            shutdown: stopping.clone(),
            ..HttpSettings::default()
        };
        let mut routes: Router = router(runtime.clone(), http);
        if config.runtime.role == Role::Worker {
            routes = routes.layer(middleware::from_fn(health_only));
        }
        // A small write that waits for the acknowledgement of the one before (Nagle) costs a client up to 40 ms.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection keeps its delay");
            }
        });
        let until = stopping.clone().cancelled_owned();
        let serving = tokio::spawn(async move { axum::serve(listener, routes).with_graceful_shutdown(until).await });
        tracing::info!(%addr, backend = storage.describe().backend, graphs = graphs.len(), "serving");
        Ok(Running { addr, config, graphs, storage, runtime, stopping, serving })
    }
}

/// A server that answers requests. Dropping it does not stop it: call [`Running::shutdown`].
pub struct Running {
    pub addr: SocketAddr,
    config: Config,
    graphs: Vec<Graph>,
    storage: SharedStorage,
    runtime: Runtime,
    stopping: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

impl Running {
    /// The address clients use, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn storage(&self) -> &SharedStorage {
        &self.storage
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What the start line says.
    pub fn greeting(&self) -> String {
        greeting(&self.url(), &self.storage.describe(), &self.graphs, &self.config)
    }

    /// Stops in order: no new connections and open streams end; runs commit their superstep and are handed over; storage
    /// closes. Takes at most about `server.shutdown_grace_secs`.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let grace = seconds(self.config.server.shutdown_grace_secs);
        let deadline = tokio::time::Instant::now() + grace;
        self.stopping.cancel();
        if tokio::time::timeout_at(deadline, self.runtime.drain()).await.is_err() {
            tracing::warn!("runs did not reach a commit in {grace:?}: their leases will expire instead");
        }
        let abort = self.serving.abort_handle();
        match tokio::time::timeout_at(deadline, self.serving).await {
            Ok(Ok(result)) => result.context("serving")?,
            Ok(Err(panic)) => bail!("the accept loop failed: {panic}"),
            Err(_) => {
                tracing::warn!("requests were still open after {grace:?}: they are cut off");
                abort.abort();
            }
        }
        self.storage.close().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// `serve`: start, say so on stdout, and stop on SIGTERM or SIGINT. A second signal ends the process at once.
pub async fn serve(config: Config, graphs: Vec<Graph>) -> anyhow::Result<()> {
    serve_until_signal(Server::new(config, graphs)).await
}

/// [`serve`] for a server that is put together already.
pub(crate) async fn serve_until_signal(server: Server) -> anyhow::Result<()> {
    // Registered before anything is announced, so that a signal right after the start line is not lost.
    let stop = stop_signal()?;
    let running = server.start().await?;
    say(&running.greeting());
    let signal = stop.await;
    tracing::info!("{signal}: shutting down; a second signal ends the process at once");
    let again = stop_signal()?;
    tokio::select! {
        result = running.shutdown() => result,
        signal = again => bail!("{signal} during the shutdown: ended without waiting"),
    }
}

/// Serves `graphs` with default settings but for the address and the database, until a signal: for small programs.
pub async fn run_with(graphs: Vec<Graph>, listen: &str, database_url: &str) -> anyhow::Result<()> {
    let mut config = Config::defaults()?;
    config.server.listen = listen.to_owned();
    config.database.url = DatabaseUrl::new(database_url);
    serve(config, graphs).await
}

/// `migrate`: applies missing migrations and says how many.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    let storage = open_storage(&config.database).await?;
    let result = storage.migrate().await.with_context(|| format!("migrating {}", config.database.url));
    let place = place(&storage.describe());
    storage.close().await;
    match result? {
        0 => say(&format!("{place} is up to date")),
        count => say(&format!("{place}: applied {count} migration{}", if count == 1 { "" } else { "s" })),
    }
    Ok(())
}

/// `reembed`: embeds the items that the configured model has not embedded as they are, and says how many.
pub(crate) async fn reembed(config: &Config) -> anyhow::Result<()> {
    let settings = runtime_settings(config)?;
    if settings.items.embedder.is_none() {
        bail!("embedding.provider is \"none\": there is no model to embed items with");
    }
    let storage = open_storage(&config.database).await?;
    let made = async {
        storage.migrate().await.with_context(|| format!("preparing the database {}", config.database.url))?;
        let runtime = Runtime::new(storage.clone(), Vec::new(), Clock::default(), settings);
        runtime.reembed_items().await.context("embedding items; those before are done")
    }
    .await;
    storage.close().await;
    let Reembedded { done, changed, refused } = made?;
    say(&format!("embedded {done} items; {changed} were written meanwhile, {refused} were refused"));
    if refused > 0 {
        bail!("the log names the items that were refused");
    }
    Ok(())
}

/// Prints the waiting threads of the database that these graphs could not resume, as a table or as JSON lines. A schema that
/// is behind this build is refused: other processes may still need it as it is.
pub(crate) async fn check_graphs(config: &Config, graphs: Vec<Graph>, json: bool, migrate: bool) -> anyhow::Result<()> {
    check_names(&graphs)?;
    let storage = open_storage(&config.database).await?;
    let mut found: u64 = 0;
    let looked_at = async {
        let place = || format!("preparing the database {}", config.database.url);
        let schema = storage.schema().await.with_context(place)?;
        if schema.missing > 0 {
            if schema.applied > 0 && !migrate {
                bail!(
                    "the schema of {} lacks {} migrations of this build, and checking changes nothing: run `migrate` \
                     first, or add --migrate",
                    config.database.url,
                    schema.missing
                );
            }
            storage.migrate().await.with_context(place)?;
        }
        let mut tell = |thread: Unresumable| {
            if found == 0 && !json {
                say("thread\tgraph\tversion\ttopology\tmissing\treason");
            }
            found += 1;
            say(&if json { thread.to_json().text() } else { thread.to_string() });
        };
        Ok::<u64, anyhow::Error>(unresumable_threads(&storage, &graphs, &mut tell).await?)
    }
    .await;
    storage.close().await;
    let looked_at = looked_at?;
    if found > 0 {
        bail!("{found} of {looked_at} waiting threads could not be resumed by this build");
    }
    if !json {
        say(&format!("this build can resume all waiting threads: {looked_at}"));
    }
    Ok(())
}

/// `doctor`: looks at the database and says how it is, a line per finding as soon as it is known. An error when something
/// failed.
/// `server`: what the server of these settings answered when it was asked whether it is ready; `None`: nobody answered.
pub(crate) async fn doctor(config: &Config, server: Option<&str>, json: bool) -> anyhow::Result<()> {
    let expected = Expectations {
        stuck_after: seconds(config.runtime.stuck_after_secs),
        connections: config.database.max_connections.saturating_add(1),
        signs_webhooks: config.webhooks.secret.reveal().is_some(),
        has_key: config.auth.api_key.reveal().is_some(),
    };
    let mut totals = [0_usize; 3];
    let mut tell = |finding: Finding| {
        totals[finding.verdict as usize] += 1;
        let Finding { check, verdict, text } = finding;
        say(&match json {
            true => serde_json::json!({"check": check, "verdict": verdict.as_str(), "text": text}).to_string(),
            false => format!("{:<5} {check}: {text}", verdict.as_str()),
        });
    };
    let failed = |text: String| Finding { check: "database", verdict: Verdict::Fail, text };
    match open_storage(&config.database).await {
        Ok(storage) => {
            let examined = examine(&storage, &Clock::default(), &expected, &mut tell).await;
            storage.close().await;
            if let Err(error) = examined {
                tell(failed(error.to_string()));
            }
        }
        Err(error) => tell(failed(format!("{error:#}"))),
    }
    tell(readiness(server));
    let [well, warnings, failures] = totals;
    if failures > 0 {
        bail!("{failures} of {} checks failed", well + warnings + failures);
    }
    if !json {
        say(&format!("{well} checks are well, {warnings} with a warning"));
    }
    Ok(())
}

/// `quarantine`: lists the runs that were set aside, or releases those named.
pub(crate) async fn quarantine(config: &Config, release: &[uuid::Uuid]) -> anyhow::Result<()> {
    let storage = open_storage(&config.database).await?;
    let done = async {
        storage.migrate().await.with_context(|| format!("preparing the database {}", config.database.url))?;
        let mut refused = 0;
        for run_id in release {
            match storage.release_run_from_quarantine(&Scope::Server, *run_id).await? {
                Release::Released => say(&format!("{run_id}\treleased")),
                Release::NotQuarantined | Release::Superseded => {
                    refused += 1;
                    say(&format!("{run_id}\tnot released: not in quarantine, or its thread has gone on"));
                }
            }
        }
        let mut page = Page { limit: 100, offset: 0 };
        while release.is_empty() {
            let runs = storage.list_quarantined(&Scope::Server, page).await?;
            for run in &runs {
                let reason = run.error.as_ref().map(|error| error.message.as_str()).unwrap_or_default();
                let at = run.quarantined_at.to_iso();
                say(&format!("{}\t{}\t{}\t{at}\t{reason}", run.run_id, run.thread_id, run.graph_id));
            }
            if (runs.len() as i64) < page.limit {
                break;
            }
            page.offset += page.limit;
        }
        anyhow::ensure!(refused == 0, "{refused} of {} runs were not released", release.len());
        Ok(())
    }
    .await;
    storage.close().await;
    done
}

/// Prints to stdout; a reader that went away is no reason to stop.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    if let Err(error) = written {
        tracing::debug!("stdout is gone: {error}");
    }
}

async fn open_storage(config: &DatabaseConfig) -> anyhow::Result<SharedStorage> {
    let options = ConnectOptions {
        max_connections: config.max_connections,
        pgbouncer: config.pgbouncer,
        distributed: config.distributed,
        pgvector: config.pgvector == PgvectorUse::Auto,
        acquire_timeout: seconds(config.acquire_timeout_secs),
        statement_timeout: seconds(config.statement_timeout_secs),
        sqlite_synchronous_full: config.sqlite_synchronous == SqliteSynchronous::Full,
    };
    connect(config.url.reveal(), &options).await.with_context(|| format!("opening the database {}", config.url))
}

async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{listen} is in use by another process: stop it, or choose another port with --listen {}:PORT",
            listen.ip()
        ),
        _ => anyhow::anyhow!("cannot listen on {listen}: {error}"),
    })
}

fn check_names(graphs: &[Graph]) -> anyhow::Result<()> {
    let mut seen = std::collections::HashSet::new();
    for graph in graphs {
        if !seen.insert(graph.name()) {
            bail!("two graphs are named {:?}: names address graphs and must be unique", graph.name());
        }
    }
    Ok(())
}

fn webhook_settings(config: &Config) -> anyhow::Result<WebhookSettings> {
    let webhooks = &config.webhooks;
    let bad = |rule: String| anyhow::anyhow!("webhooks: {rule}");
    Ok(WebhookSettings {
        policy: WebhookPolicy {
            allow_private: webhooks.allow_private,
            https_only: webhooks.https_only,
            allowed_hosts: AllowedHost::parse_list(&webhooks.allowed_hosts).map_err(bad)?,
        },
        secrets: WebhookSecrets::parse(webhooks.secret.reveal().unwrap_or_default())
            .map_err(|rule| bad(format!("secret {rule}")))?,
        max_attempts: webhooks.max_attempts,
        timeout: seconds(webhooks.timeout_secs),
        keep_dead: seconds(webhooks.keep_dead_days * 86_400.0),
    })
}

fn item_settings(config: &Config) -> anyhow::Result<ItemSettings> {
    let embedding = &config.embedding;
    let embedder: Option<Arc<dyn Embedder>> = match embedding.provider {
        EmbeddingProvider::None => None,
        EmbeddingProvider::Local => Some(Arc::new(LocalEmbedder::new(embedding.dims))),
        EmbeddingProvider::OpenAi => {
            let settings = OpenAiSettings {
                url: embedding.url.clone(),
                api_key: embedding.api_key.reveal().map(str::to_owned),
                model: embedding.model.clone(),
                dims: embedding.dims,
                timeout: seconds(embedding.timeout_secs),
            };
            Some(Arc::new(OpenAiEmbedder::new(settings).map_err(|error| anyhow::anyhow!("embedding: {error}"))?))
        }
    };
    Ok(ItemSettings {
        default_ttl_minutes: Some(config.items.default_ttl_minutes).filter(|minutes| *minutes > 0.0),
        refresh_ttl: config.items.refresh_ttl,
        fields: embedding.paths(),
        embedder,
    })
}

fn runtime_settings(config: &Config) -> anyhow::Result<Settings> {
    let runtime = &config.runtime;
    Ok(Settings {
        worker: worker_name(),
        concurrency: runtime.concurrency,
        lease: seconds(runtime.lease_secs),
        renew_every: seconds(runtime.renew_secs),
        poll_every: seconds(runtime.poll_secs),
        max_attempts: runtime.max_attempts,
        stuck_after: seconds(runtime.stuck_after_secs),
        run_timeout: seconds(runtime.run_timeout_secs),
        recursion_limit: runtime.recursion_limit,
        durability: runtime.durability,
        default_ttl: (config.threads.default_ttl_minutes > 0.0)
            .then(|| Ttl::of_minutes(config.threads.default_ttl_strategy, config.threads.default_ttl_minutes)),
        sweep_every: seconds(config.threads.sweep_secs),
        cache_bytes: runtime.cache_bytes,
        task_log: runtime.task_log,
        prices: prices(config),
        memory: Arc::new(Memory::limited(config.server.max_memory_bytes)),
        claims: runtime.role != Role::Api,
        crons: CronSettings {
            poll_every: seconds(config.crons.poll_secs),
            catch_up: seconds(config.crons.catch_up_secs),
        },
        webhooks: webhook_settings(config)?,
        items: item_settings(config)?,
    })
}

fn prices(config: &Config) -> Prices {
    let price = |model: &ModelConfig| {
        let [input, output, cached] = model.prices();
        Price { input, output, cached }
    };
    config.models.iter().map(|(name, model)| (name.clone(), price(model))).collect()
}

/// `host:pid`: a name for humans.
fn worker_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "session-store" } else { host.trim() };
    format!("{host}:{}", std::process::id())
}

/// The routes of a process that only executes runs.
async fn health_only(request: Request, next: Next) -> Response {
    if matches!(request.uri().path(), "/ok" | "/ready" | "/info") {
        return next.run(request).await;
    }
    let body = r#"{"detail":"this process has runtime.role = worker: it answers /ok, /ready and /info only"}"#;
    (StatusCode::NOT_FOUND, [(http::header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Resolves to the name of the first SIGTERM or SIGINT that arrives from now on.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

fn place(storage: &Description) -> String {
    format!("{} {}", storage.backend, storage.location)
}

fn greeting(url: &str, storage: &Description, graphs: &[Graph], config: &Config) -> String {
    let durable = if storage.volatile { "VOLATILE: everything is lost when this process ends" } else { "durable" };
    let ranked_by = storage.ranked_by.as_ref().map(|extension| format!("; {extension}")).unwrap_or_default();
    let names: Vec<&str> = graphs.iter().map(Graph::name).collect();
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "session-store {} listening on {url}", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(text, "  storage  {} ({durable}{ranked_by})", place(storage));
    let _ = writeln!(text, "  graphs   {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") });
    if config.auth.api_key.reveal().is_none() && config.server.insecure {
        let _ = writeln!(text, "  auth     none: whoever reaches this address may do everything");
    }
    let counter = graphs.iter().find(|graph| graph.name() == "counter");
    if let Some(graph) = counter.or(graphs.first()) {
        let input = if graph.name() == "counter" { r#"{"counter":0}"# } else { "{}" };
        let key = if config.auth.api_key.reveal().is_some() { r#" -H "x-api-key: $API_KEY""# } else { "" };
        let _ = writeln!(
            text,
            r#"  try      curl -s {url}/threads/demo-session/runs/wait{key} -d '{{"assistant_id":"{}","input":{input}}}'"#,
            graph.name()
        );
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_says_where_and_whether_it_lasts() {
        let config = Config::defaults().expect("readable");
        let memory = Description { backend: "sqlite", location: "in memory".into(), volatile: true, ranked_by: None };
        let text = greeting("http://127.0.0.1:8123", &memory, &[], &config);
        assert!(text.starts_with("session-store 0.1.0 listening on http://127.0.0.1:8123\n"), "{text}");
        assert!(text.contains("sqlite in memory (VOLATILE"), "{text}");
        let file = Description { backend: "sqlite", location: "a.db".into(), volatile: false, ranked_by: None };
        assert!(greeting("http://x", &file, &[], &config).contains("sqlite a.db (durable)"));
        let ranked = Description { ranked_by: Some("pgvector 0.8.0".into()), ..file };
        assert!(greeting("http://x", &ranked, &[], &config).contains("(durable; pgvector 0.8.0)"));
    }

    #[tokio::test]
    async fn a_port_in_use_is_explained() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let error = bind(taken.local_addr().expect("an address")).await.expect_err("is taken").to_string();
        assert!(error.contains("is in use") && error.contains("--listen 127.0.0.1:PORT"), "{error}");
    }
}
