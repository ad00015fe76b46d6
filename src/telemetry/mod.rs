//! What the process says about itself: logs to stderr, as text or as JSON lines, and traces to a collector, with the feature
//! `otlp`.

#[cfg(feature = "otlp")]
mod otlp;

use std::io;

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogConfig, LogFormat};

/// Installs the subscriber of the process. Does nothing when one is installed already (an embedding program's own).
pub fn init(log: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let installed = match log.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if installed.is_err() {
        tracing::debug!("a tracing subscriber was installed before: log settings are not applied");
    }
    Ok(())
}

/// Traces that are being exported, if they are. Keep it until the process ends.
#[derive(Debug, Default)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    exporter: Option<otlp::Exporter>,
}

impl Traces {
    /// Sends what has ended, and gives it up after two seconds.
    pub fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
    }
}

/// [`init`], and traces to `telemetry.otlp_endpoint`, if it is set.
pub fn start(config: &Config) -> anyhow::Result<Traces> {
    if config.telemetry.otlp_endpoint.is_empty() {
        init(&config.log)?;
        return Ok(Traces::default());
    }
    export(config)
}

#[cfg(feature = "otlp")]
fn export(config: &Config) -> anyhow::Result<Traces> {
    Ok(Traces { exporter: otlp::install(&config.log, &config.telemetry.otlp_endpoint)? })
}

/// Validated settings do not come here.
#[cfg(not(feature = "otlp"))]
fn export(_: &Config) -> anyhow::Result<Traces> {
    anyhow::bail!("telemetry.otlp_endpoint: {}", crate::config::NO_OTLP)
}
