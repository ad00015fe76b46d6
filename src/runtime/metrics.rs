//! What this process counts of its own work. Counting is an addition or two on atomics: no lock, no allocation.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use crate::model::RunStatus;

/// Upper bounds in microseconds, with how Prometheus reads them: in seconds.
const BOUNDS: [(u64, &str); 13] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (5_000_000, "5"),
    (30_000_000, "30"),
    (300_000_000, "300"),
];

/// How long something took, over and over.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Those up to each bound and above the one before; the last: above all.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(BOUNDS.len());
        self.counts[at].fetch_add(1, Relaxed);
        self.micros.fetch_add(micros, Relaxed);
    }

    /// Writes its series. `labels`: as in `a="b"`, or empty. Nothing for one that counted nothing yet, unless it has no
    /// labels.
    pub fn write(&self, text: &mut String, name: &str, labels: &str) {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 && !labels.is_empty() {
            return;
        }
        let comma = if labels.is_empty() { "" } else { "," };
        let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        let mut sum = 0;
        for (bound, count) in bounds.zip(&counts) {
            sum += count;
            let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}");
        }
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let seconds = self.micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "{name}_sum{braced} {seconds}\n{name}_count{braced} {total}");
    }
}

/// What the runtime counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From the creation of a run to its first claim by this process.
    pub(crate) queue_wait: Histogram,
    /// Commits of supersteps, and what rides with them, as the database answered.
    pub(crate) commits: Histogram,
    /// Commits that had to be tried again.
    pub(crate) commit_retries: AtomicU64,
    /// Runs that ended here, in the order of [`ENDS`].
    ended: [AtomicU64; ENDS.len()],
    /// Event streams that listeners hold open.
    streams: Arc<AtomicI64>,
}

/// How runs end.
const ENDS: [RunStatus; 4] = [RunStatus::Success, RunStatus::Error, RunStatus::Timeout, RunStatus::Interrupted];

/// A stream that counts as open until it is dropped.
#[derive(Debug)]
pub struct OpenStream(Arc<AtomicI64>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Metrics {
    /// A run ended here.
    pub(crate) fn ended(&self, status: RunStatus) {
        if let Some(at) = ENDS.iter().position(|end| *end == status) {
            self.ended[at].fetch_add(1, Relaxed);
        }
    }

    /// A listener's stream begins.
    pub fn stream(&self) -> OpenStream {
        self.streams.fetch_add(1, Relaxed);
        OpenStream(Arc::clone(&self.streams))
    }

    /// Writes them all.
    pub fn write(&self, text: &mut String) {
        head(text, "session_store_runs_ended_total", "counter", "Runs that ended in this process");
        for (status, count) in ENDS.iter().zip(&self.ended) {
            let (status, count) = (status.as_str(), count.load(Relaxed));
            let _ = writeln!(text, "session_store_runs_ended_total{{status=\"{status}\"}} {count}");
        }
        let name = "session_store_run_queue_wait_seconds";
        head(text, name, "histogram", "From the creation of a run to its first claim, by this process");
        self.queue_wait.write(text, name, "");
        let name = "session_store_commit_seconds";
        head(text, name, "histogram", "How long commits of supersteps took");
        self.commits.write(text, name, "");
        let name = "session_store_commit_retries_total";
        head(text, name, "counter", "Commits that found the database away and were tried again");
        let _ = writeln!(text, "{name} {}", self.commit_retries.load(Relaxed));
        let name = "session_store_open_streams";
        head(text, name, "gauge", "Event streams that listeners hold open");
        let _ = writeln!(text, "{name} {}", self.streams.load(Relaxed));
    }
}

/// What comes before the series of a metric.
pub fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let histogram = Histogram::default();
        let mut text = String::new();
        histogram.write(&mut text, "x", "a=\"b\"");
        assert_eq!(text, "", "nothing was counted");
        for micros in [400, 500, 501, 400_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        histogram.write(&mut text, "x", "a=\"b\"");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"x_bucket{a="b",le="0.0005"} 2"#);
        assert_eq!(lines[1], r#"x_bucket{a="b",le="0.001"} 3"#);
        assert_eq!(
            lines[12..],
            [
                r#"x_bucket{a="b",le="300"} 3"#,
                r#"x_bucket{a="b",le="+Inf"} 4"#,
                r#"x_sum{a="b"} 400.001401"#,
                r#"x_count{a="b"} 4"#,
            ]
        );
        let mut plain = String::new();
        Histogram::default().write(&mut plain, "y", "");
        assert!(plain.starts_with("y_bucket{le=\"0.0005\"} 0\n") && plain.ends_with("y_sum 0\ny_count 0\n"));
    }

    #[test]
    fn a_stream_is_open_until_it_is_dropped() {
        let metrics = Metrics::default();
        let open = [metrics.stream(), metrics.stream()];
        assert_eq!(metrics.streams.load(Relaxed), 2);
        drop(open);
        assert_eq!(metrics.streams.load(Relaxed), 0);
    }
}
