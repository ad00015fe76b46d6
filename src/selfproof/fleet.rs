//! The processes under proof: this same binary several times, killed, paused and stopped from outside, and started again
//! by a supervisor, as an orchestrator would.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::app;
use crate::clock::Clock;
use crate::config::Config;

/// The name of the hidden subcommand that is a replica.
pub(crate) const REPLICA: &str = "selfproof-replica";

/// How often the supervisor looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a replica may take to say where it listens before it is started anew.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a replica is started with.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    /// `SESSION_STORE__..`: settings, the database's URL among them; never shown.
    pub(super) settings: HashMap<String, String>,
    /// How wrong its clock is, in seconds.
    pub(super) skew_secs: i64,
    pub(super) log: PathBuf,
}

/// One process, over all its lives.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) name: String,
    launch: Launch,
    slot: Mutex<Slot>,
    /// Ended without being asked to, after it had begun to serve.
    surprises: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    child: Option<Child>,
    url: Option<String>,
    /// Counts lives: what a former life says late is not believed.
    life: u64,
    started: Option<Instant>,
    /// It was told or made to end.
    doomed: bool,
    paused: bool,
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn pid(&self) -> Option<Pid> {
        // Not reaped as long as it is here: the number is still its own.
        self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?))
    }

    fn signal(&self, signal: Signal) -> bool {
        self.pid().is_some_and(|pid| kill_process(pid, signal).is_ok())
    }
}

impl Replica {
    pub(super) fn new(name: impl Into<String>, launch: Launch) -> Arc<Replica> {
        Arc::new(Replica { name: name.into(), launch, slot: Mutex::default(), surprises: AtomicU64::new(0) })
    }

    pub(super) fn start(self: &Arc<Replica>) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("finding the own program")?;
        let log = OpenOptions::new().create(true).append(true).open(&self.launch.log);
        let log: File = log.with_context(|| format!("opening {}", self.launch.log.display()))?;
        let mut command = Command::new(program);
        command.arg(REPLICA).arg("--skew-secs").arg(self.launch.skew_secs.to_string());
        command.env_remove("DATABASE_URL");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SESSION_STORE__") {
                command.env_remove(name);
            }
        }
        command.envs(&self.launch.settings);
        // Its standard input is our life: when this process is gone, however it went, the replica ends.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut slot = lock(&self.slot);
        let mut child = command.spawn().context("starting a replica")?;
        let stdout = child.stdout.take();
        let life = slot.life + 1;
        *slot = Slot { child: Some(child), life, started: Some(Instant::now()), ..Slot::default() };
        drop(slot);
        let replica = Arc::clone(self);
        std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
                if let Some((_, url)) = line.split_once("listening on ") {
                    let mut slot = lock(&replica.slot);
                    if slot.life == life {
                        slot.url = Some(url.trim().to_owned());
                    }
                }
            }
        });
        Ok(())
    }

    /// Where it answers, if it does.
    pub(super) fn url(&self) -> Option<String> {
        lock(&self.slot).url.clone()
    }

    /// SIGKILL. False: there was nothing to kill.
    pub(super) fn kill(&self) -> bool {
        let mut slot = lock(&self.slot);
        slot.doomed = true;
        slot.url = None;
        slot.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)) && child.kill().is_ok())
    }

    /// SIGTERM: it ends by itself, and soon.
    pub(super) fn terminate(&self) -> bool {
        let mut slot = lock(&self.slot);
        slot.doomed = true;
        slot.signal(Signal::TERM)
    }

    /// SIGSTOP. False: it is not there, or stopped already.
    pub(super) fn pause(&self) -> bool {
        let mut slot = lock(&self.slot);
        if slot.paused || !slot.signal(Signal::STOP) {
            return false;
        }
        slot.paused = true;
        true
    }

    /// SIGCONT.
    pub(super) fn resume(&self) {
        let mut slot = lock(&self.slot);
        if std::mem::take(&mut slot.paused) {
            slot.signal(Signal::CONT);
        }
    }

    /// Looks after it; true when it has ended and must be started again.
    fn has_ended(&self) -> bool {
        let mut slot = lock(&self.slot);
        let Some(child) = slot.child.as_mut() else { return true };
        match child.try_wait() {
            Ok(None) => {
                let late = slot.started.is_some_and(|at| at.elapsed() > START_LIMIT);
                if slot.url.is_none() && late && !slot.doomed && !slot.paused {
                    slot.doomed = true;
                    slot.signal(Signal::KILL);
                }
                false
            }
            ended => {
                if !slot.doomed && slot.url.is_some() {
                    self.surprises.fetch_add(1, Ordering::Relaxed);
                    eprintln!("selfproof: {} ended by itself: {ended:?}", self.name);
                }
                slot.url = None;
                slot.child = None;
                true
            }
        }
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        tail(&self.launch.log, 20)
    }

    /// Makes sure that it is gone.
    pub(super) fn end(&self) {
        let mut slot = lock(&self.slot);
        slot.doomed = true;
        slot.url = None;
        if let Some(mut child) = slot.child.take() {
            // Both fail only when it is gone already.
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// All replicas. Dropped, they are killed.
#[derive(Debug, Clone)]
pub(super) struct Fleet {
    pub(super) replicas: Arc<Vec<Arc<Replica>>>,
    closing: Arc<AtomicBool>,
}

impl Fleet {
    pub(super) fn new(replicas: Vec<Arc<Replica>>) -> Fleet {
        Fleet { replicas: Arc::new(replicas), closing: Arc::default() }
    }

    /// Starts what has ended, until [`Fleet::end`].
    pub(super) async fn supervise(self) {
        while !self.closing.load(Ordering::Relaxed) {
            for replica in self.replicas.iter() {
                if replica.has_ended()
                    && let Err(error) = replica.start()
                {
                    eprintln!("selfproof: {}: {error:#}", replica.name);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Where clients may ask now.
    pub(super) fn urls(&self) -> Vec<String> {
        self.replicas.iter().filter_map(|replica| replica.url()).collect()
    }

    /// Replicas that ended without being asked to.
    pub(super) fn surprises(&self) -> u64 {
        self.replicas.iter().map(|replica| replica.surprises.load(Ordering::Relaxed)).sum()
    }

    /// Kills all and keeps them dead.
    pub(super) fn end(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.replicas.iter().for_each(|replica| replica.end());
    }
}

/// Kills the fleet however its owner ends.
#[derive(Debug)]
pub(super) struct EndsWithMe(pub(super) Fleet);

impl Drop for EndsWithMe {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The last lines of a replica's log.
fn tail(log: &Path, lines: usize) -> String {
    let mut text = String::new();
    let read = File::open(log).and_then(|mut file| file.read_to_string(&mut text));
    if read.is_err() {
        return String::new();
    }
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The replica's own side: serves the graphs of the proof until it is told to stop or whoever started it is gone.
pub(crate) async fn serve(config: Config, skew_secs: i64) -> anyhow::Result<()> {
    std::thread::spawn(|| {
        let mut nothing = [0_u8; 16];
        while matches!(std::io::stdin().lock().read(&mut nothing), Ok(read) if read > 0) {}
        std::process::exit(3);
    });
    let graphs = crate::graph::Registry::new(super::graphs::all())?;
    let clock = Clock::skewed(skew_secs.saturating_mul(1_000_000));
    app::serve_until_signal(app::Server::new(config, graphs.iter().cloned().collect()).with_clock(clock)).await
}
