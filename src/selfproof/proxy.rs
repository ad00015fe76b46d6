//! A proxy between one replica and Postgres: it lets everything pass until it is told to strike at a chosen message.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::fleet::Replica;
use super::story::lock;
use super::wire::{self, Client, Message, Unit};
use crate::storage::scratch::Statement;

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upstream {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// Where in a commit to strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Point {
    /// Nothing of the commit has reached the server.
    Before,
    /// Half of its bytes have.
    Torn,
    /// All of it was sent; nobody knows whether it happened.
    Sent,
    /// It happened, and the answer gets lost.
    After,
}

impl Point {
    pub(super) const ALL: [Point; 4] = [Point::Before, Point::Torn, Point::Sent, Point::After];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Act {
    /// SIGKILL to the replica.
    Kill,
    /// The connection breaks.
    Cut,
}

/// Strikes once, at the first commit of the kind after `skip` others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trap {
    pub(super) statement: Statement,
    pub(super) skip: u64,
    pub(super) point: Point,
    pub(super) act: Act,
}

/// A trap has struck.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) replica: usize,
    pub(super) trap: Trap,
    /// What the replica was saying.
    pub(super) said: Vec<u8>,
}

/// The proxy of one replica.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    number: usize,
    upstream: Upstream,
    trap: Mutex<Option<Trap>>,
    /// Set once, before the replica is started.
    victim: OnceLock<Arc<Replica>>,
    hits: mpsc::UnboundedSender<Hit>,
    /// Nothing passes while it is true.
    stalled: watch::Sender<bool>,
    /// Grows when all connections are to break.
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Listens on a free port of this machine.
    pub(super) async fn start(
        number: usize,
        upstream: Upstream,
        hits: mpsc::UnboundedSender<Hit>,
    ) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listening for a replica")?;
        let port = listener.local_addr().context("the proxy's address")?.port();
        let shared = Arc::new(Shared {
            number,
            upstream,
            trap: Mutex::default(),
            victim: OnceLock::new(),
            hits,
            stalled: watch::Sender::new(false),
            cuts: watch::Sender::new(0),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let shared = Arc::clone(&serving);
                        tokio::spawn(async move {
                            let mut cuts = shared.cuts.subscribe();
                            tokio::select! {
                                // How a connection ends is not the proxy's business.
                                _ = relay(&shared, stream) => {}
                                _ = cuts.changed() => {}
                            }
                        });
                    }
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                }
            }
        });
        Ok(Proxy { port, shared })
    }

    /// Whom to kill.
    pub(super) fn serves(&self, victim: Arc<Replica>) {
        let _only_once = self.shared.victim.set(victim);
    }

    pub(super) fn arm(&self, trap: Option<Trap>) {
        *lock(&self.shared.trap) = trap;
    }

    /// A partition: nothing passes, and nobody is told.
    pub(super) fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// Breaks all connections.
    pub(super) fn cut(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }
}

impl Shared {
    /// The trap, if it strikes at a commit of this.
    fn strikes(&self, statement: Statement) -> Option<Trap> {
        let mut slot = lock(&self.trap);
        let trap = slot.as_mut().filter(|trap| trap.statement == statement)?;
        if trap.skip > 0 {
            trap.skip -= 1;
            return None;
        }
        slot.take()
    }

    fn strike(&self, trap: Trap, said: Vec<u8>) {
        if trap.act == Act::Kill
            && let Some(victim) = self.victim.get()
        {
            victim.kill();
        }
        // Nobody counts any more at the end.
        let _uncounted = self.hits.send(Hit { replica: self.number, trap, said });
    }

    /// Returns at once unless there is a partition.
    async fn passage(&self) {
        let mut stalled = self.stalled.subscribe();
        // The sender is ours.
        let _open = stalled.wait_for(|stalled| !stalled).await;
    }
}

/// A trap that waits for the server's answer.
#[derive(Debug)]
struct Pending {
    trap: Trap,
    said: Vec<u8>,
}

/// What both directions of a connection share.
#[derive(Debug)]
struct Link {
    /// ReadyForQuery's last word.
    status: AtomicU8,
    pending: Mutex<Option<Pending>>,
    over: CancellationToken,
}

async fn relay(shared: &Shared, client: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    shared.passage().await;
    match &shared.upstream {
        Upstream::Tcp(host, port) => {
            let server = TcpStream::connect((host.as_str(), *port)).await?;
            server.set_nodelay(true)?;
            join(shared, client, server).await
        }
        Upstream::Unix(path) => join(shared, client, UnixStream::connect(path).await?).await,
    }
}

async fn join(
    shared: &Shared,
    client: impl AsyncRead + AsyncWrite + Unpin,
    server: impl AsyncRead + AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let (from_client, mut to_client) = split(client);
    let (from_server, mut to_server) = split(server);
    let (mut from_client, mut from_server) = (BufReader::new(from_client), BufReader::new(from_server));
    let startup = loop {
        match wire::read_startup(&mut from_client).await? {
            Some(startup) => break startup,
            // Encryption would hide what passes by.
            None => to_client.write_all(b"N").await?,
        }
    };
    to_server.write_all(&startup.0).await?;
    let link = Link { status: AtomicU8::new(b'I'), pending: Mutex::default(), over: CancellationToken::new() };
    let up = async {
        let mut client = Client::default();
        while let Some(message) = wire::read(&mut from_client).await? {
            let unit = client.take(&message, link.status.load(Ordering::Acquire));
            if unit == Unit::Open {
                continue;
            }
            let said = std::mem::take(&mut client.held);
            shared.passage().await;
            let trap = match unit {
                Unit::Commits(statement) => shared.strikes(statement),
                _ => None,
            };
            if !send_up(shared, &link, trap, said, &mut to_server).await? {
                break;
            }
        }
        Ok(())
    };
    let down = async {
        let mut withheld: Vec<u8> = Vec::new();
        let mut has_failed = false;
        while let Some(message) = wire::read(&mut from_server).await? {
            shared.passage().await;
            if let Some(status) = message.status() {
                link.status.store(status, Ordering::Release);
            }
            if lock(&link.pending).is_none() {
                to_client.write_all(&message.0).await?;
                continue;
            }
            if answered(shared, &link, &message, &mut has_failed) {
                break;
            }
            withheld.extend_from_slice(&message.0);
            if lock(&link.pending).is_none() {
                to_client.write_all(&std::mem::take(&mut withheld)).await?;
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
        () = link.over.cancelled() => Ok(()),
    }
}

/// Sends a unit on, or strikes. False: the connection is over.
async fn send_up(
    shared: &Shared,
    link: &Link,
    trap: Option<Trap>,
    said: Vec<u8>,
    to_server: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<bool> {
    let Some(trap) = trap else {
        to_server.write_all(&said).await?;
        return Ok(true);
    };
    match trap.point {
        Point::Before => {}
        Point::Torn => to_server.write_all(&said[..said.len() / 2]).await?,
        Point::Sent => to_server.write_all(&said).await?,
        Point::After => {
            *lock(&link.pending) = Some(Pending { trap, said: said.clone() });
            to_server.write_all(&said).await?;
            return Ok(true);
        }
    }
    to_server.flush().await?;
    shared.strike(trap, said);
    Ok(false)
}

/// Looks at an answer that a trap waits for; true once it has struck. A commit that failed is no commit: the answer goes
/// on, and the trap is set again.
fn answered(shared: &Shared, link: &Link, message: &Message, has_failed: &mut bool) -> bool {
    *has_failed |= message.kind() == b'E';
    if message.status().is_none() {
        return false;
    }
    let Some(Pending { trap, said }) = lock(&link.pending).take() else { return false };
    if std::mem::take(has_failed) {
        lock(&shared.trap).get_or_insert(trap);
        return false;
    }
    shared.strike(trap, said);
    link.over.cancel();
    true
}
