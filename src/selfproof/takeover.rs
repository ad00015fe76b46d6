//! How long runs stand still when their process is killed, and when it is told to stop: measured before the storm, since
//! in it the next blow falls before a takeover is over.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use reqwest::Client;
use serde_json::{Value, json};

use super::fleet::Fleet;
use super::graphs;

/// Runs that are taken over at once.
const RUNS: usize = 10;
const PAUSE_MS: u64 = 25;
const LOOK_EVERY: Duration = Duration::from_millis(15);
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a run may stand still at its 99th percentile after a clean stop, and beyond the lease after a kill.
const PROMISED: Duration = Duration::from_secs(1);

/// What is promised, in words.
pub(super) fn promise(lease: Duration) -> String {
    let (kill, stop) = ((lease + PROMISED).as_millis(), PROMISED.as_millis());
    format!("after a kill p99 under {kill} ms (the lease and {stop} ms); after a stop under {stop} ms")
}

/// What was measured, sorted.
#[derive(Debug, Default)]
pub(super) struct Measured {
    kill: Vec<Duration>,
    stop: Vec<Duration>,
}

impl Measured {
    pub(super) fn text(&self) -> String {
        format!("after a kill {}; after a stop {}", shown(&self.kill), shown(&self.stop))
    }

    /// Which promise was not kept, a line each.
    pub(super) fn late(&self, lease: Duration) -> Vec<String> {
        let promises = [("a kill", &self.kill, lease + PROMISED), ("a stop", &self.stop, PROMISED)];
        let broken = promises.into_iter().filter_map(|(what, sorted, limit)| {
            let took = percentile(sorted, 99);
            (took >= limit)
                .then(|| format!("after {what} p99 {} ms, promised under {}", took.as_millis(), limit.as_millis()))
        });
        broken.collect()
    }
}

/// Zero of nothing.
fn percentile(sorted: &[Duration], share: usize) -> Duration {
    sorted.get((sorted.len() * share).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

fn shown(sorted: &[Duration]) -> String {
    let at = |share| percentile(sorted, share).as_millis();
    format!("p50 {} ms, p99 {} ms of {} runs", at(50), at(99), sorted.len())
}

/// So many times each.
pub(super) async fn measure(fleet: &Fleet, rounds: usize) -> anyhow::Result<Measured> {
    let http = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().context("an HTTP client")?;
    let mut measured = Measured::default();
    for round in 0..rounds {
        for is_kill in [true, false] {
            let took = once(fleet, &http, &format!("takeover-{round}-{is_kill}"), round, is_kill).await?;
            if is_kill { measured.kill.extend(took) } else { measured.stop.extend(took) }
        }
    }
    measured.kill.sort();
    measured.stop.sort();
    Ok(measured)
}

async fn once(fleet: &Fleet, http: &Client, name: &str, round: usize, is_kill: bool) -> anyhow::Result<Vec<Duration>> {
    super::wait_for_all(fleet).await?;
    // Not the one that only answers: it executes nothing.
    let owner = &fleet.replicas[round % fleet.replicas.len().min(3)];
    let survivor = fleet.replicas.iter().find(|replica| replica.name != owner.name).context("another replica")?;
    let (at, other) = (owner.url().context("the owner's address")?, survivor.url().context("the other's address")?);
    let threads: Vec<String> = (0..RUNS).map(|number| format!("{name}-{number}")).collect();
    let input = json!({"turn": 1, "n": 0, "to": 2000, "pause_ms": PAUSE_MS});
    let body = json!({"assistant_id": graphs::COUNT, "input": input, "durability": "sync"}).to_string();
    for thread in &threads {
        let sent = http.post(format!("{at}/threads/{thread}/runs")).body(body.clone()).send().await;
        sent.and_then(reqwest::Response::error_for_status).context("starting a run")?;
    }
    for thread in &threads {
        reaches(http, &other, thread, 3).await?;
    }
    let blow = Instant::now();
    if is_kill {
        owner.kill()
    } else {
        owner.terminate()
    };
    let mut waits = tokio::task::JoinSet::new();
    for thread in &threads {
        let (http, other, thread) = (http.clone(), other.clone(), thread.clone());
        waits.spawn(async move {
            // What it had stored before it was gone is no takeover: that may still grow for a moment.
            let mut seen = (progress(&http, &other, &thread).await, Instant::now());
            let mut longest = Duration::ZERO;
            let until = blow + PATIENCE;
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = progress(&http, &other, &thread).await;
                if now > seen.0 {
                    longest = longest.max(seen.1.elapsed());
                    seen = (now, Instant::now());
                }
                // It goes on, well after the blow.
                let goes_on = seen.1 > blow + Duration::from_millis(500) && seen.1.elapsed() < Duration::from_secs(1);
                if goes_on && (!is_kill || longest > Duration::from_secs(1)) {
                    return Ok(longest);
                }
                if Instant::now() > until {
                    bail!("{thread} was not taken over in {PATIENCE:?}");
                }
            }
        });
    }
    let mut took = Vec::new();
    while let Some(waited) = waits.join_next().await {
        took.push(waited.context("a wait")??);
    }
    for thread in &threads {
        // One that cannot be cancelled in time ends by itself.
        let _cancelled = http.post(format!("{other}/threads/{thread}/runs/cancel?action=rollback")).send().await;
    }
    Ok(took)
}

async fn reaches(http: &Client, url: &str, thread: &str, n: i64) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while progress(http, url, thread).await < n {
        if Instant::now() > until {
            bail!("{thread} made no progress in {PATIENCE:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The last committed number; -1 if there is none, or no answer.
async fn progress(http: &Client, url: &str, thread: &str) -> i64 {
    let Ok(response) = http.get(format!("{url}/threads/{thread}/state")).send().await else { return -1 };
    let bytes = response.bytes().await.unwrap_or_default();
    let state: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    state["values"]["n"].as_i64().unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_is_named_with_both_figures() {
        let lease = Duration::from_secs(4);
        let all = |millis: u64| vec![Duration::from_millis(millis); 100];
        assert_eq!(Measured { kill: all(4999), stop: all(999) }.late(lease), [""; 0]);
        let late = Measured { kill: all(5000), stop: all(1200) }.late(lease);
        assert_eq!(
            late,
            ["after a kill p99 5000 ms, promised under 5000", "after a stop p99 1200 ms, promised under 1000"]
        );
        // One in a hundred may take longer.
        let mut stop = all(300);
        stop[99] = Duration::from_secs(3);
        assert_eq!(Measured { kill: all(4200), stop }.late(lease), [""; 0]);
        assert_eq!(Measured::default().late(lease), [""; 0], "nothing was measured");
    }
}
