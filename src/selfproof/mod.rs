//! `session-store selfproof`: shows on a database of one's own choice that nothing is lost, nothing doubled and nothing
//! stuck. Real processes of this binary serve made-up graphs in a scratch schema; clients talk HTTP to whichever lives;
//! meanwhile processes are killed, paused and stopped, and connections cut at chosen messages. Afterwards what the clients
//! were told is compared with what the database holds.
//!
//! The last line of standard output is the verdict; all else goes to standard error.

mod caller;
mod clients;
mod dice;
mod fleet;
mod graphs;
mod judge;
mod own_postgres;
mod place;
mod proxy;
mod storm;
mod story;
mod takeover;
mod till;
mod verdict;
mod wire;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::{mpsc, watch};

use crate::app;
use crate::clock::Clock;
use crate::config::Config;
use caller::Caller;
use dice::Dice;
use fleet::{EndsWithMe, Fleet, Launch, Replica};
use judge::Findings;
use own_postgres::OwnPostgres;
use place::{Folder, Place};
use proxy::Proxy;
use storm::{Storm, Tally};
use story::Stories;

pub(crate) use fleet::{REPLICA, serve};
pub(crate) use verdict::Sabotage;

/// How long clients and runs have to come to an end after the last fault.
const DRAIN: Duration = Duration::from_secs(90);
/// From this long on a proof is held to the times it promises, too. A short one, as in CI, tells them: its machine may be busy
/// with other things.
const LONG_SECS: u64 = 600;
/// How often a long proof measures takeovers, unless it is told otherwise.
const TAKEOVERS: usize = 10;
/// One-hour steps: clocks of replicas are wrong by this much in either direction, or right.
const SKEW_SECS: i64 = 3600;
/// Of the findings so many are shown.
const SHOWN: usize = 40;

/// How to prove it.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// How long faults are made.
    pub(crate) seconds: u64,
    /// `None`: one by chance, which is printed.
    pub(crate) seed: Option<u64>,
    pub(crate) replicas: usize,
    pub(crate) clients: usize,
    /// How often takeovers are measured before the faults begin. `None`: where the proof is a long one.
    pub(crate) takeovers: Option<usize>,
    /// A Postgres of its own in this folder instead of the database of the configuration.
    pub(crate) own_postgres: Option<PathBuf>,
    /// Damages the data before they are judged, to see that the judge sees it.
    pub(crate) sabotage: Option<Sabotage>,
}

/// What came of it: the last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    runs: usize,
    crashes: u64,
    lost: usize,
    doubled: usize,
    stuck: usize,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { runs, crashes, lost, doubled, stuck } = self;
        write!(f, "runs={runs} crashes={crashes} lost={lost} doubled={doubled} stuck={stuck}")
    }
}

/// The whole proof. An error: it could not be carried out, was broken off, or failed; the line is printed if there is one.
pub(crate) async fn run(config: Config, options: Options) -> anyhow::Result<()> {
    let stop = app::stop_signal()?;
    let seed = options.seed.unwrap_or_else(|| Clock::default().new_uuid().as_u64_pair().1 >> 16);
    eprintln!("selfproof: seed {seed}");
    let own = match &options.own_postgres {
        Some(dir) => {
            let dir = dir.clone();
            let own =
                tokio::task::spawn_blocking(move || OwnPostgres::start(&dir)).await.context("starting Postgres")??;
            if !own.has_disk() {
                eprintln!("selfproof: a full disk is left out: that needs root and a file system of its own");
            }
            Some(Arc::new(own))
        }
        None => None,
    };
    let database = own.as_ref().map_or_else(|| config.database.url.reveal().to_owned(), |own| own.url());
    let mut folder = Folder::create(seed)?;
    let place = Place::open(&database, folder.path(), seed).await?;
    let proved = tokio::select! {
        proved = prove(&config, &options, seed, &place, &folder, own.clone()) => proved,
        signal = stop => Err(anyhow::anyhow!("{signal}: broken off")),
    };
    // In this order, whatever came before: no process is left (dropped with `prove`), then no schema, then no server.
    let closed = place.close().await;
    if proved.is_err() {
        folder.keep();
        eprintln!("selfproof: the replicas' logs are in {}", folder.path().display());
    }
    let (line, late) = proved?;
    closed?;
    app::say(&line.to_string());
    if line.lost + line.doubled + line.stuck > 0 {
        folder.keep();
        bail!("the proof failed with seed {seed}; the replicas' logs are in {}", folder.path().display());
    }
    if !late.is_empty() {
        bail!("a run stands still for longer than it may: {}", late.join("; "));
    }
    Ok(())
}

async fn prove(
    config: &Config,
    options: &Options,
    seed: u64,
    place: &Place,
    folder: &Folder,
    own: Option<Arc<OwnPostgres>>,
) -> anyhow::Result<(Line, Vec<String>)> {
    let (hits_in, hits) = mpsc::unbounded_channel();
    let is_file = matches!(place, Place::Sqlite { .. });
    // A file is served by one process.
    let count = if is_file { 1 } else { options.replicas.max(2) };
    if is_file {
        eprintln!(
            "selfproof: on SQLite one process is killed, paused and stopped; takeovers and the wire are left out"
        );
    }
    let mut proxies = Vec::new();
    if let Place::Postgres { upstream, .. } = place {
        match upstream {
            Some(upstream) => {
                for number in 0..count {
                    proxies.push(Proxy::start(number, upstream.clone(), hits_in.clone()).await?);
                }
            }
            None => eprintln!("selfproof: the database wants encryption: faults on the wire are left out"),
        }
    }
    let mut dice = Dice::of(seed, "replicas", 0);
    let till = folder.path().join("till");
    let mut replicas = Vec::new();
    for number in 0..count {
        let url = proxies.get(number).map_or_else(|| place.url(), |proxy| place.through(proxy.port));
        let role = if number == 3 { "api" } else { "all" };
        let skew_secs = if is_file { 0 } else { SKEW_SECS * (dice.below(3) as i64 - 1) };
        let log = folder.path().join(format!("replica-{number}.log"));
        let mut settings = settings(config, &url, role);
        settings.insert(till::VARIABLE.to_owned(), till.display().to_string());
        let launch = Launch { settings, skew_secs, log };
        let replica = Replica::new(format!("replica {number}"), launch);
        if let Some(proxy) = proxies.get(number) {
            proxy.serves(Arc::clone(&replica));
        }
        replicas.push(replica);
    }
    let fleet = EndsWithMe(Fleet::new(replicas));
    let supervisor = tokio::spawn(fleet.0.clone().supervise());
    wait_for_all(&fleet.0).await?;
    eprintln!("selfproof: {count} replicas, {} clients, {} s", options.clients, options.seconds);

    let mut late = Vec::new();
    let takeovers = options.takeovers.unwrap_or(if options.seconds < LONG_SECS { 0 } else { TAKEOVERS });
    if takeovers > 0 && count > 1 {
        let measured = takeover::measure(&fleet.0, takeovers).await.context("measuring takeovers")?;
        let lease = Duration::from_secs_f64(config.runtime.lease_secs);
        eprintln!("selfproof: a run stands still {}", measured.text());
        eprintln!("selfproof: promised: {}", takeover::promise(lease));
        late = measured.late(lease);
        for line in &late {
            eprintln!("selfproof: late: {line}");
        }
        if options.seconds < LONG_SECS && !late.is_empty() {
            eprintln!("selfproof: a proof of less than {LONG_SECS} s does not fail for that");
            late.clear();
        }
    }
    let stories = Stories::default();
    let (stop, stopped) = watch::channel(false);
    let (limit, limited) = watch::channel(None);
    let mut living = Vec::new();
    for number in 0..options.clients.max(1) {
        let caller = Caller::new(fleet.0.clone(), Dice::of(seed, "client", number), limited.clone());
        let caller = caller.context("an HTTP client")?;
        living.push(tokio::spawn(clients::live(format!("c{number}"), caller, stories.clone(), stopped.clone())));
    }
    let (tally, tallied) = watch::channel(Tally::default());
    let storm = Storm {
        fleet: fleet.0.clone(),
        proxies,
        hits,
        own,
        stories: stories.clone(),
        dice: Dice::of(seed, "storm", 0),
        tally: Arc::new(tally),
        server: None,
    };
    storm.rage(Instant::now() + Duration::from_secs(options.seconds)).await;
    eprintln!("selfproof: calm; waiting for what is under way");
    let calm = Instant::now();
    stop.send_replace(true);
    limit.send_replace(Some(calm + DRAIN));
    let mut retries = 0;
    for client in living {
        retries += client.await.context("a client")?;
    }
    let drained = verdict::drain(&fleet.0, calm + DRAIN, limited, Dice::of(seed, "drain", 0)).await;
    eprintln!("selfproof: drained {:.1} s after the last fault", calm.elapsed().as_secs_f64());
    let surprises = fleet.0.surprises();
    fleet.0.end();
    supervisor.await.context("the supervisor")?;

    // A process that was not there: what it says comes from the database alone.
    let log = folder.path().join("judge.log");
    let launch = Launch { settings: settings(config, &place.url(), "api"), skew_secs: 0, log };
    let judge = EndsWithMe(Fleet::new(vec![Replica::new("the judge", launch)]));
    let supervisor = tokio::spawn(judge.0.clone().supervise());
    wait_for_all(&judge.0).await?;
    let findings = verdict::of(&judge.0, &stories, &till, options.sabotage, seed).await?;
    judge.0.end();
    supervisor.await.context("the supervisor")?;

    let tally = tallied.borrow().clone();
    let line = tell(&stories, &tally, &findings, retries);
    let calls = till::read(&till)?;
    let distinct: HashSet<_> = calls.iter().map(|call| (&call.thread, &call.name)).collect();
    eprintln!("selfproof: effects: {} external calls made {} times", distinct.len(), calls.len());
    if surprises > 0 {
        bail!("{surprises} times a replica ended by itself ({line})");
    }
    drained.with_context(|| line.to_string())?;
    Ok((line, late))
}

/// Says what was done and found; the line that sums it up.
fn tell(stories: &Stories, tally: &Tally, findings: &Findings, retries: u64) -> Line {
    let (once, twice) = tally.runs_hit(stories);
    eprintln!("selfproof: faults: {}", tally.text());
    eprintln!(
        "selfproof: hit in their own commit: {once} runs once, {twice} runs twice or more; {retries} requests repeated"
    );
    let all = [("lost", &findings.lost), ("doubled", &findings.doubled), ("stuck", &findings.stuck)];
    for (what, list) in all {
        for finding in list.iter().take(SHOWN) {
            eprintln!("selfproof: {what}: {finding}");
        }
    }
    Line {
        runs: stories.accepted_count(),
        crashes: tally.crashes,
        lost: findings.lost.len(),
        doubled: findings.doubled.len(),
        stuck: findings.stuck.len(),
    }
}

/// What a replica is told by its environment.
fn settings(config: &Config, url: &str, role: &str) -> HashMap<String, String> {
    let runtime = &config.runtime;
    let pairs = [
        ("DATABASE__URL", url.to_owned()),
        // Few, so that they run out.
        ("DATABASE__MAX_CONNECTIONS", "6".to_owned()),
        ("SERVER__LISTEN", "127.0.0.1:0".to_owned()),
        ("RUNTIME__ROLE", role.to_owned()),
        ("RUNTIME__LEASE_SECS", runtime.lease_secs.to_string()),
        ("RUNTIME__RENEW_SECS", runtime.renew_secs.to_string()),
        ("RUNTIME__POLL_SECS", runtime.poll_secs.to_string()),
        // Runs are hit on purpose, again and again: that is no reason to set them aside.
        ("RUNTIME__MAX_ATTEMPTS", "1000".to_owned()),
        ("LOG__FILTER", "warn".to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (format!("SESSION_STORE__{name}"), value)).collect()
}

async fn wait_for_all(fleet: &Fleet) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while fleet.urls().len() < fleet.replicas.len() {
        if Instant::now() > until {
            bail!("not all replicas came up in a minute; the log of the first says:\n{}", fleet.replicas[0].log_tail());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
