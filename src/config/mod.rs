//! Settings: `config.toml` (embedded) < a file < the environment < `DATABASE_URL` < flags. Every problem is reported at
//! once, naming section.key, value and rule. Secrets never reach `Debug` or `check-config`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};
use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Durability, TtlStrategy};

mod models;
#[cfg(test)]
mod tests;

pub use models::{ModelConfig, ModelsConfig};

/// The list of all settings with their defaults.
pub const DEFAULTS: &str = include_str!("../../config.toml");

/// Why a build without the feature refuses a collector.
pub const NO_OTLP: &str = "this build exports no traces: build it with --features otlp, or leave this empty";

const ENV_PREFIX: &str = "SESSION_STORE";

/// The section whose keys are not known beforehand.
const MODELS: &str = "models";

/// What is in force.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: ServerConfig,
    pub database: DatabaseConfig,
    pub auth: AuthConfig,
    pub http: HttpConfig,
    pub runtime: RuntimeConfig,
    pub crons: CronsConfig,
    pub threads: ThreadsConfig,
    pub items: ItemsConfig,
    pub embedding: EmbeddingConfig,
    pub mcp: McpConfig,
    pub webhooks: WebhooksConfig,
    #[serde(default)]
    pub models: ModelsConfig,
    pub telemetry: TelemetryConfig,
    pub log: LogConfig,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    pub listen: String,
    pub insecure: bool,
    pub max_body_bytes: usize,
    pub max_memory_bytes: u64,
    pub heartbeat_secs: f64,
    pub shutdown_grace_secs: f64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    pub url: DatabaseUrl,
    pub max_connections: u32,
    pub acquire_timeout_secs: f64,
    pub statement_timeout_secs: f64,
    pub pgbouncer: bool,
    pub distributed: bool,
    #[serde(deserialize_with = "word")]
    pub pgvector: PgvectorUse,
    #[serde(deserialize_with = "word")]
    pub sqlite_synchronous: SqliteSynchronous,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    pub api_key: Secret,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    pub concurrency: usize,
    pub lease_secs: f64,
    pub renew_secs: f64,
    pub poll_secs: f64,
    pub max_attempts: i32,
    pub stuck_after_secs: f64,
    pub run_timeout_secs: f64,
    pub recursion_limit: i64,
    pub cache_bytes: u64,
    pub task_log: bool,
    #[serde(deserialize_with = "word")]
    pub durability: Durability,
    #[serde(deserialize_with = "word")]
    pub role: Role,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CronsConfig {
    pub poll_secs: f64,
    pub catch_up_secs: f64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadsConfig {
    pub default_ttl_minutes: f64,
    #[serde(deserialize_with = "word")]
    pub default_ttl_strategy: TtlStrategy,
    pub sweep_secs: f64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ItemsConfig {
    pub default_ttl_minutes: f64,
    pub refresh_ttl: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingConfig {
    #[serde(deserialize_with = "word")]
    pub provider: EmbeddingProvider,
    pub url: String,
    pub api_key: Secret,
    pub model: String,
    pub dims: usize,
    pub fields: String,
    pub timeout_secs: f64,
}

impl EmbeddingConfig {
    /// The paths of `fields`, one by one.
    pub fn paths(&self) -> Vec<String> {
        self.fields.split_whitespace().map(str::to_owned).collect()
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    pub configurable_headers: String,
}

/// One of `configurable_headers`, or nothing.
fn is_header_pattern(text: &str) -> bool {
    let text = text.trim();
    let (name, is_left_out) = text.strip_prefix('!').map_or((text, false), |name| (name.trim(), true));
    let is_named = |byte: u8| byte.is_ascii_alphanumeric() || b"#$%&'*+-.^_`|~".contains(&byte);
    name.bytes().all(is_named) && !(is_left_out && name.is_empty())
}

/// What embeds the texts of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingProvider {
    None,
    /// In the process.
    Local,
    /// A service that speaks OpenAI's `/v1/embeddings`.
    OpenAi,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct McpConfig {
    pub allowed_origins: String,
}

impl McpConfig {
    /// The origins of `allowed_origins`, one by one.
    pub fn origins(&self) -> Vec<String> {
        let origins = self.allowed_origins.split(',').map(|origin| origin.trim().to_owned());
        origins.filter(|origin| !origin.is_empty()).collect()
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WebhooksConfig {
    pub secret: Secret,
    pub allow_private: bool,
    pub https_only: bool,
    pub allowed_hosts: String,
    pub max_attempts: i32,
    pub timeout_secs: f64,
    pub keep_dead_days: f64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    pub otlp_endpoint: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub filter: String,
    #[serde(deserialize_with = "word")]
    pub format: LogFormat,
}

/// Reads one of a few words. By way of a string, because then the error lists the words.
fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// What this process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Answers the API and executes runs.
    All,
    /// Answers the API; takes nothing from the queue.
    Api,
    /// Executes runs; answers /ok and /info only.
    Worker,
}

/// Whether the extension pgvector is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PgvectorUse {
    /// Where it is installed.
    Auto,
    Off,
}

/// SQLite's `synchronous` setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SqliteSynchronous {
    Normal,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// A value that is never printed.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// The value; `None` when it is empty.
    pub fn reveal(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|value| !value.is_empty())
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { "[redacted]" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A database URL, printed without its password.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    pub fn new(url: impl Into<String>) -> DatabaseUrl {
        DatabaseUrl(url.into())
    }

    /// The URL with its password.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, query) = match self.0.split_once('?') {
            Some((address, query)) => (address, Some(query)),
            None => (self.0.as_str(), None),
        };
        // The last `@` ends the user info, so that an unescaped `/` or `@` in a password is covered too.
        match address.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?))) {
            Some((scheme, (user, host))) => match user.split_once(':') {
                Some((name, _)) => write!(f, "{scheme}://{name}:[redacted]@{host}")?,
                None => write!(f, "{scheme}://{user}@{host}")?,
            },
            None => f.write_str(address)?,
        }
        for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            let mark = if index == 0 { '?' } else { '&' };
            match pair.split_once('=') {
                Some((name, _)) if name.contains("password") => write!(f, "{mark}{name}=[redacted]")?,
                _ => write!(f, "{mark}{pair}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is wrong with the settings: one line per problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl ConfigError {
    fn one(problem: impl Into<String>) -> ConfigError {
        ConfigError(vec![problem.into()])
    }
}

/// What the command line overrides.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub database_url: Option<String>,
    pub listen: Option<String>,
    /// `true` only: a flag cannot take the permission away.
    pub insecure: bool,
    pub role: Option<Role>,
}

impl Config {
    /// Reads all layers and validates the result.
    pub fn load(
        file: Option<&Path>,
        env: &HashMap<String, String>,
        overrides: &Overrides,
    ) -> Result<Config, ConfigError> {
        let config = Config::read(file, env, overrides)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads all layers. Types and names are checked, values are not: see [`Config::validate`].
    pub fn read(
        file: Option<&Path>,
        env: &HashMap<String, String>,
        overrides: &Overrides,
    ) -> Result<Config, ConfigError> {
        let known = known_keys();
        let mut problems = Vec::new();
        let mut builder = config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));

        if let Some(path) = file {
            let source = File::from(PathBuf::from(path)).format(FileFormat::Toml);
            let values =
                source.collect().map_err(|error| ConfigError::one(format!("--config {}: {error}", path.display())))?;
            for key in flatten(&values).keys() {
                if let Some(problem) = unknown(key, &known) {
                    problems.push(format!("{}: {problem}", path.display()));
                }
            }
            builder = builder.add_source(source);
        }

        let own: Map<String, String> = env
            .iter()
            .filter(|(name, value)| name.starts_with("SESSION_STORE__") && !value.is_empty())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut names: Vec<&String> = own.keys().collect();
        names.sort();
        for name in names {
            let key = name["SESSION_STORE__".len()..].to_lowercase().replace("__", ".");
            if let Some(problem) = unknown(&key, &known) {
                problems.push(format!("{name}: {problem}"));
            }
        }
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        // Strings stay strings (no `try_parsing`, which turns the key 0123 into 123); numbers and booleans are read
        // from them where a field wants one.
        builder = builder
            .add_source(Environment::with_prefix(ENV_PREFIX).prefix_separator("__").separator("__").source(Some(own)));

        let overridden = [
            ("database.url", env.get("DATABASE_URL").filter(|url| !url.is_empty()).cloned()),
            ("database.url", overrides.database_url.clone()),
            ("server.listen", overrides.listen.clone()),
        ];
        for (key, value) in overridden {
            builder = builder.set_override_option(key, value).map_err(|error| ConfigError::one(error.to_string()))?;
        }
        let mut config: Config = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| ConfigError::one(error.to_string()))?;
        config.server.insecure |= overrides.insecure;
        if let Some(role) = overrides.role {
            config.runtime.role = role;
        }
        Ok(config)
    }

    /// The defaults alone, for embedding and tests.
    pub fn defaults() -> Result<Config, ConfigError> {
        Config::read(None, &HashMap::new(), &Overrides::default())
    }

    /// Checks every value against its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut rule = |key: &str, value: &dyn fmt::Display, holds: bool, rule: &str| {
            if !holds {
                problems.push(format!("{key} = {value}: {rule}"));
            }
        };
        let duration = |secs: f64| secs.is_finite() && (0.001..=31_536_000.0).contains(&secs);
        const DURATION: &str = "must be seconds between 0.001 and 31536000 (a year)";

        let server = &self.server;
        let listen = self.listen_addr();
        rule(
            "server.listen",
            &server.listen,
            listen.is_some(),
            "must be an IP address and a port, as in 127.0.0.1:8123 or [::]:8123",
        );
        rule("server.max_body_bytes", &server.max_body_bytes, server.max_body_bytes >= 1024, "must be at least 1024");
        rule("server.heartbeat_secs", &server.heartbeat_secs, duration(server.heartbeat_secs), DURATION);
        rule("server.shutdown_grace_secs", &server.shutdown_grace_secs, duration(server.shutdown_grace_secs), DURATION);
        if let Some(addr) = listen {
            rule(
                "server.listen",
                &addr,
                addr.ip().is_loopback() || server.insecure || self.auth.api_key.reveal().is_some(),
                "other machines can reach this address and nothing would check who asks. Set auth.api_key (or \
                 SESSION_STORE__AUTH__API_KEY), or listen on 127.0.0.1, or pass --insecure if something in front \
                 controls access",
            );
        }

        let database = &self.database;
        rule("database.url", &"\"\"", !database.url.reveal().is_empty(), "must not be empty");
        rule(
            "database.max_connections",
            &database.max_connections,
            (2..=10_000).contains(&database.max_connections),
            "must be between 2 and 10000",
        );
        rule(
            "database.acquire_timeout_secs",
            &database.acquire_timeout_secs,
            duration(database.acquire_timeout_secs),
            DURATION,
        );
        rule(
            "database.statement_timeout_secs",
            &database.statement_timeout_secs,
            duration(database.statement_timeout_secs),
            DURATION,
        );

        let key = &self.auth.api_key;
        let header_safe = |key: &str| key.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        rule(
            "auth.api_key",
            key,
            key.reveal().is_none_or(header_safe),
            "must be printable ASCII without spaces: it travels in a header",
        );

        rule(
            "http.configurable_headers",
            &self.http.configurable_headers,
            self.http.configurable_headers.split(',').all(is_header_pattern),
            "must be names of headers separated by commas, with * for any text and ! before what is left out",
        );

        let runtime = &self.runtime;
        rule(
            "runtime.concurrency",
            &runtime.concurrency,
            (1..=100_000).contains(&runtime.concurrency),
            "must be between 1 and 100000",
        );
        rule("runtime.lease_secs", &runtime.lease_secs, duration(runtime.lease_secs), DURATION);
        rule("runtime.renew_secs", &runtime.renew_secs, duration(runtime.renew_secs), DURATION);
        rule(
            "runtime.renew_secs",
            &runtime.renew_secs,
            runtime.renew_secs * 2.0 < runtime.lease_secs,
            "must be less than half of runtime.lease_secs, so that one lost renewal costs nothing",
        );
        rule("runtime.poll_secs", &runtime.poll_secs, duration(runtime.poll_secs), DURATION);
        rule("runtime.stuck_after_secs", &runtime.stuck_after_secs, duration(runtime.stuck_after_secs), DURATION);
        rule("runtime.max_attempts", &runtime.max_attempts, runtime.max_attempts >= 1, "must be at least 1");
        rule("runtime.run_timeout_secs", &runtime.run_timeout_secs, duration(runtime.run_timeout_secs), DURATION);
        rule("runtime.recursion_limit", &runtime.recursion_limit, runtime.recursion_limit >= 1, "must be at least 1");
        rule(
            "runtime.cache_bytes",
            &runtime.cache_bytes,
            runtime.cache_bytes <= 1 << 50,
            "must be between 0 (nothing is kept in the database) and 1125899906842624 (a pebibyte)",
        );

        let crons = &self.crons;
        rule("crons.poll_secs", &crons.poll_secs, duration(crons.poll_secs), DURATION);
        rule(
            "crons.catch_up_secs",
            &crons.catch_up_secs,
            (60.0..=31_536_000.0).contains(&crons.catch_up_secs) && crons.catch_up_secs > crons.poll_secs,
            "must be seconds between 60 and 31536000 (a year), and more than crons.poll_secs: every tick is a little late",
        );

        let threads = &self.threads;
        rule(
            "threads.default_ttl_minutes",
            &threads.default_ttl_minutes,
            threads.default_ttl_minutes.is_finite() && (0.0..=1e9).contains(&threads.default_ttl_minutes),
            "must be minutes between 0 (threads are kept) and 1e9",
        );
        rule("threads.sweep_secs", &threads.sweep_secs, duration(threads.sweep_secs), DURATION);

        let items = &self.items;
        rule(
            "items.default_ttl_minutes",
            &items.default_ttl_minutes,
            items.default_ttl_minutes.is_finite() && (0.0..=1e9).contains(&items.default_ttl_minutes),
            "must be minutes between 0 (items are kept) and 1e9",
        );

        let embedding = &self.embedding;
        rule(
            "embedding.url",
            &embedding.url,
            embedding.provider != EmbeddingProvider::OpenAi || is_base_url(&embedding.url),
            "must be an http or https URL without a query, as in https://api.openai.com/v1",
        );
        rule(
            "embedding.api_key",
            &embedding.api_key,
            embedding.api_key.reveal().is_none_or(header_safe),
            "must be printable ASCII without spaces: it travels in a header",
        );
        rule(
            "embedding.model",
            &embedding.model,
            embedding.provider != EmbeddingProvider::OpenAi || (1..=200).contains(&embedding.model.len()),
            "must be 1 to 200 characters",
        );
        rule(
            "embedding.dims",
            &embedding.dims,
            embedding.dims == 0 || (8..=16_384).contains(&embedding.dims),
            "must be 0 (what the model has) or between 8 and 16384",
        );
        rule(
            "embedding.fields",
            &embedding.fields,
            (1..=32).contains(&embedding.paths().len()) && embedding.paths().iter().all(|path| path.len() <= 512),
            "must be 1 to 32 paths of at most 512 bytes, separated by spaces",
        );
        rule("embedding.timeout_secs", &embedding.timeout_secs, duration(embedding.timeout_secs), DURATION);

        rule(
            "mcp.allowed_origins",
            &self.mcp.allowed_origins,
            self.mcp.origins().iter().all(|origin| origin == "*" || is_origin(origin)),
            "must be origins separated by commas, as in https://app.example.com or http://10.0.0.7:3000, or *",
        );

        let webhooks = &self.webhooks;
        // Whether they are well-formed to the last byte is decided by what reads them, at the start.
        rule(
            "webhooks.secret",
            &webhooks.secret,
            webhooks.secret.reveal().is_none_or(|text| text.split_whitespace().all(|one| one.starts_with("whsec_"))),
            "must be whsec_ followed by base64; several are separated by spaces",
        );
        rule("webhooks.max_attempts", &webhooks.max_attempts, webhooks.max_attempts >= 1, "must be at least 1");
        rule("webhooks.timeout_secs", &webhooks.timeout_secs, duration(webhooks.timeout_secs), DURATION);
        rule(
            "webhooks.keep_dead_days",
            &webhooks.keep_dead_days,
            (0.01..=365.0).contains(&webhooks.keep_dead_days),
            "must be days between 0.01 and 365",
        );

        let endpoint = &self.telemetry.otlp_endpoint;
        rule("telemetry.otlp_endpoint", endpoint, endpoint.is_empty() || cfg!(feature = "otlp"), NO_OTLP);
        rule(
            "telemetry.otlp_endpoint",
            endpoint,
            endpoint.is_empty() || is_base_url(endpoint),
            "must be an http or https URL without a query, as in http://127.0.0.1:4318; /v1/traces is added",
        );

        let filter = tracing_subscriber::EnvFilter::try_new(&self.log.filter);
        rule(
            "log.filter",
            &self.log.filter,
            filter.is_ok(),
            "must be a level or target=level pairs, as in info,sqlx=warn",
        );

        problems.extend(models::problems(&self.models));
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }

    /// Where to listen; `None` when the setting is no address. `localhost` is 127.0.0.1.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        let text = self.server.listen.trim();
        match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}").parse().ok(),
            None => text.parse().ok(),
        }
    }

    /// What is in force, in the form of `config.toml`, secrets redacted.
    pub fn render(&self) -> Result<String, serde_json::Error> {
        let mut text = String::new();
        if let serde_json::Value::Object(sections) = serde_json::to_value(self)? {
            for (section, keys) in &sections {
                let keys = keys.as_object().into_iter().flatten();
                let (tables, values): (Vec<_>, Vec<_>) = keys.partition(|(_, value)| value.is_object());
                if !values.is_empty() {
                    text.push_str(&format!("[{section}]\n"));
                }
                for (key, value) in values {
                    text.push_str(&format!("{key} = {value}\n"));
                }
                for (name, keys) in tables {
                    // A string of JSON is a string of TOML.
                    text.push_str(&format!("[{section}.{}]\n", serde_json::to_string(name)?));
                    for (key, value) in keys.as_object().into_iter().flatten() {
                        text.push_str(&format!("{key} = {value}\n"));
                    }
                }
                text.push('\n');
            }
        }
        text.truncate(text.trim_end().len());
        Ok(text)
    }
}

/// Settings in seconds, as a duration. Validated before, so that it cannot be out of range.
pub fn seconds(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs).unwrap_or_default()
}

/// Whether a text is a scheme, a host and perhaps a port, as browsers send them.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let has_host = uri.scheme().is_some() && uri.host().is_some_and(|host| !host.is_empty());
    has_host && uri.query().is_none() && !text.ends_with('/') && uri.path() == "/"
}

/// Whether a text is an address that paths can be added to.
fn is_base_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.query().is_none()
}

/// The keys of `config.toml` in the form `section.key`.
fn known_keys() -> BTreeMap<String, Value> {
    let mut known =
        File::from_str(DEFAULTS, FileFormat::Toml).collect().map(|values| flatten(&values)).unwrap_or_default();
    // Its keys are names of models.
    known.remove(MODELS);
    known
}

fn flatten(values: &Map<String, Value>) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for (name, value) in values {
        match &value.kind {
            ValueKind::Table(table) if !table.is_empty() => {
                flat.extend(flatten(table).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            _ => {
                flat.insert(name.clone(), value.clone());
            }
        }
    }
    flat
}

/// Why `key` is no setting; `None` when it is one.
fn unknown(key: &str, known: &BTreeMap<String, Value>) -> Option<String> {
    if known.contains_key(key) || key == MODELS {
        return None;
    }
    // Names of models may hold dots; what a price is called does not.
    if let Some((_, name)) = key.split_once("models.").filter(|(before, _)| before.is_empty()) {
        let is_price = name.rsplit_once('.').is_some_and(|(_, last)| models::KEYS.contains(&last));
        let keys = models::KEYS.join(", ");
        return (!is_price).then(|| format!("no such setting as {key}; for a model there are {keys}"));
    }
    let section = key.split('.').next().unwrap_or_default();
    let of_section = |known: &&String| known.split('.').next() == Some(section);
    let candidates: Vec<&str> = known.keys().filter(of_section).map(String::as_str).collect();
    Some(if candidates.is_empty() {
        let mut sections: Vec<&str> = known.keys().filter_map(|key| key.split('.').next()).collect();
        sections.dedup();
        format!("no such setting as {key}; the sections are {}", sections.join(", "))
    } else {
        format!("no such setting as {key}; there are {}", candidates.join(", "))
    })
}
