//! The faults: what is done to replicas, to their connections and, if it is the proof's own, to Postgres.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::dice::Dice;
use super::fleet::Fleet;
use super::own_postgres::OwnPostgres;
use super::proxy::{Act, Hit, Point, Proxy, Trap};
use super::story::Stories;
use crate::storage::scratch::{self, Statement};

/// Longer than a lease of four seconds.
const LONGEST_PAUSE_MS: u64 = 7000;
/// Of what was said when a trap struck: enough to find the runs in it.
const KEPT_BYTES: usize = 32 * 1024;
const REPORT_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Fault {
    TrapKill,
    TrapCut,
    Kill,
    KillAll,
    Pause,
    Stop,
    CutAll,
    Partition,
    Crash,
    Terminate,
    Occupy,
    DiskFull,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Processes killed and database servers crashed.
    pub(super) crashes: u64,
    /// By name.
    done: BTreeMap<String, u64>,
    /// What replicas were saying when they were hit.
    said: Vec<Vec<u8>>,
}

impl Tally {
    fn count(&mut self, what: impl Into<String>) {
        *self.done.entry(what.into()).or_default() += 1;
    }

    fn crash(&mut self, what: impl Into<String>) {
        self.crashes += 1;
        self.count(what);
    }

    /// `name=count ..`
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (name, count) in &self.done {
            // Writing to a String cannot fail.
            let _ = write!(text, "{}{name}={count}", if text.is_empty() { "" } else { " " });
        }
        text
    }

    /// Runs that were hit in their own commit or claim exactly once, and those hit twice or more often. Asked at the end,
    /// when clients know of all runs.
    pub(super) fn runs_hit(&self, stories: &Stories) -> (usize, usize) {
        let mut hits: HashMap<Uuid, u64> = HashMap::new();
        for run in self.said.iter().flat_map(|said| stories.runs_in(said)) {
            *hits.entry(run).or_default() += 1;
        }
        let twice = hits.values().filter(|hits| **hits > 1).count();
        (hits.len() - twice, twice)
    }
}

pub(super) struct Storm {
    pub(super) fleet: Fleet,
    /// One per replica; none where there is no wire.
    pub(super) proxies: Vec<Proxy>,
    pub(super) hits: mpsc::UnboundedReceiver<Hit>,
    pub(super) own: Option<Arc<OwnPostgres>>,
    pub(super) stories: Stories,
    pub(super) dice: Dice,
    pub(super) tally: Arc<watch::Sender<Tally>>,
    /// What is being done to Postgres: one thing at a time.
    pub(super) server: Option<JoinHandle<()>>,
}

impl Storm {
    /// Rages until then, and leaves everything as a calm day would have it.
    pub(super) async fn rage(mut self, until: Instant) {
        let mut next = Instant::now() + self.dice.millis(200, 800);
        let mut report = Instant::now() + REPORT_EVERY;
        while Instant::now() < until {
            tokio::select! {
                hit = self.hits.recv(), if !self.proxies.is_empty() => {
                    if let Some(hit) = hit {
                        self.note(hit);
                    }
                }
                () = tokio::time::sleep_until(next.min(until).into()) => {
                    self.strike();
                    next = Instant::now() + self.dice.millis(50, 700);
                }
            }
            if Instant::now() >= report {
                report = Instant::now() + REPORT_EVERY;
                let (runs, crashes) = (self.stories.accepted_count(), self.tally.borrow().crashes);
                eprintln!("selfproof: {runs} runs accepted, {crashes} crashes");
            }
        }
        for proxy in &self.proxies {
            proxy.arm(None);
            proxy.stall(false);
        }
        self.fleet.replicas.iter().for_each(|replica| replica.resume());
        while let Ok(hit) = self.hits.try_recv() {
            self.note(hit);
        }
        if let Some(server) = self.server.take() {
            // It says itself what went wrong.
            let _told = server.await;
        }
        if let Some(own) = self.own.clone() {
            blocking(move || {
                own.fill(false);
                own.up()
            })
            .await;
        }
    }

    /// Counts a hit; a kill is often followed by another one where the run is taken over.
    fn note(&mut self, hit: Hit) {
        let Hit { replica, trap, mut said } = hit;
        said.truncate(KEPT_BYTES);
        let what = format!("{:?}.{:?}.{:?}", trap.act, trap.point, trap.statement).to_lowercase();
        self.tally.send_modify(|tally| {
            match trap.act {
                Act::Kill => tally.crash(what),
                Act::Cut => tally.count(what),
            }
            tally.said.push(said);
        });
        if trap.act == Act::Kill && self.dice.percent(60) {
            let statement = match trap.statement {
                Statement::Claim => Statement::Commit,
                _ if self.dice.percent(50) => Statement::Claim,
                _ => Statement::Commit,
            };
            let next = (replica + 1 + self.dice.index(self.proxies.len().saturating_sub(1))) % self.proxies.len();
            let point = Point::ALL[self.dice.index(Point::ALL.len())];
            self.proxies[next].arm(Some(Trap { statement, skip: 0, point, act: Act::Kill }));
        }
    }

    fn strike(&mut self) {
        let wire = u64::from(!self.proxies.is_empty());
        // With one process, stopping it for long would only be waiting.
        let many = u64::from(self.fleet.replicas.len() > 1);
        let server = u64::from(self.own.is_some());
        let disk = u64::from(self.own.as_ref().is_some_and(|own| own.has_disk()));
        let faults = [
            (34 * wire, Fault::TrapKill),
            (14 * wire, Fault::TrapCut),
            (14, Fault::Kill),
            (3, Fault::KillAll),
            (2 + 6 * many, Fault::Pause),
            (5, Fault::Stop),
            (5 * wire, Fault::CutAll),
            (5 * wire, Fault::Partition),
            (8 * server, Fault::Crash),
            (8 * server, Fault::Terminate),
            (3 * server, Fault::Occupy),
            (2 * disk, Fault::DiskFull),
        ];
        let Some(fault) = self.dice.weighted(&faults) else { return };
        let index = self.dice.index(self.fleet.replicas.len());
        let replica = Arc::clone(&self.fleet.replicas[index]);
        match fault {
            Fault::TrapKill | Fault::TrapCut => {
                let statements = [
                    (12, Statement::Commit),
                    (4, Statement::Create),
                    (3, Statement::Claim),
                    (2, Statement::OtherWrite),
                    (1, Statement::Renew),
                ];
                let statement = self.dice.weighted(&statements).unwrap_or(Statement::Commit);
                let point = Point::ALL[self.dice.index(Point::ALL.len())];
                let act = if matches!(fault, Fault::TrapKill) { Act::Kill } else { Act::Cut };
                let skip = self.dice.below(6);
                self.proxies[index].arm(Some(Trap { statement, skip, point, act }));
            }
            Fault::Kill => {
                if replica.kill() {
                    self.tally.send_modify(|tally| tally.crash("kill.random"));
                }
            }
            Fault::KillAll => {
                for replica in self.fleet.replicas.iter() {
                    if replica.kill() {
                        self.tally.send_modify(|tally| tally.crash("kill.all"));
                    }
                }
            }
            Fault::Pause => {
                let pause = self.dice.millis(200, LONGEST_PAUSE_MS);
                if replica.pause() {
                    self.tally.send_modify(|tally| tally.count("pause"));
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        replica.resume();
                    });
                }
            }
            Fault::Stop => {
                if replica.terminate() {
                    self.tally.send_modify(|tally| tally.count("stop"));
                }
            }
            Fault::CutAll => {
                self.proxies[index].cut();
                self.tally.send_modify(|tally| tally.count("cut.all"));
            }
            Fault::Partition => {
                let (proxy, pause) = (self.proxies[index].clone(), self.dice.millis(500, LONGEST_PAUSE_MS));
                proxy.stall(true);
                self.tally.send_modify(|tally| tally.count("partition"));
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    proxy.stall(false);
                });
            }
            Fault::Crash | Fault::Terminate | Fault::Occupy | Fault::DiskFull => {
                if self.server.as_ref().is_none_or(JoinHandle::is_finished) {
                    self.server = self.strike_server(fault);
                }
            }
        }
    }

    /// Does something to Postgres, beside the rest.
    fn strike_server(&mut self, fault: Fault) -> Option<JoinHandle<()>> {
        let own = self.own.clone()?;
        let (hold, limit) = (self.dice.millis(0, 2500), 1 + self.dice.below(8) as i64);
        let tally = Arc::clone(&self.tally);
        Some(tokio::spawn(async move {
            match fault {
                Fault::Crash => {
                    tally.send_modify(|tally| tally.crash("postgres.crash"));
                    blocking(move || {
                        // It may have ended by itself: of a full disk.
                        let _crashed = own.crash();
                        std::thread::sleep(hold);
                        own.up()
                    })
                    .await;
                }
                Fault::Terminate => {
                    if scratch::terminate_backends(&own.url(), limit).await.is_ok() {
                        tally.send_modify(|tally| tally.count("postgres.terminate"));
                    }
                }
                Fault::Occupy => {
                    if let Ok(occupied) = scratch::occupy_connections(&own.url(), own.max_connections()).await {
                        tally.send_modify(|tally| tally.count("postgres.occupied"));
                        tokio::time::sleep(hold).await;
                        drop(occupied);
                    }
                }
                _ => {
                    tally.send_modify(|tally| tally.count("postgres.disk_full"));
                    blocking(move || {
                        own.fill(true);
                        std::thread::sleep(hold);
                        own.fill(false);
                        // A log that cannot be written ends the server.
                        own.up()
                    })
                    .await;
                }
            }
        }))
    }
}

/// Runs what blocks beside the rest.
async fn blocking(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("selfproof: {error:#}"),
        Err(error) => eprintln!("selfproof: {error}"),
    }
}
