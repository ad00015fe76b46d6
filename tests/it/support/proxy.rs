//! A network between a server and its Postgres that a test can damage: bytes are held back, connections cut, refused, or
//! left half-open. It also tells which statements went through.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// They stay where they are; nobody is told.
    Hold,
    /// Connections end, and new ones end at once.
    Refuse,
}

struct Shared {
    mode: watch::Sender<Mode>,
    /// Grows with every [`Proxy::leave_half_open`]: connections made before lose their server.
    age: watch::Sender<u64>,
    refused: AtomicUsize,
    statements: Mutex<BTreeSet<String>>,
}

/// It ends with this value.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to the server of a database URL.
    pub(crate) async fn to(url: &str) -> Proxy {
        let server = authority(url).rsplit('@').next().expect("a host").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            mode: watch::channel(Mode::Pass).0,
            age: watch::channel(0).0,
            refused: AtomicUsize::new(0),
            statements: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, server, Arc::clone(&shared)));
        Proxy { port, shared, accepting }
    }

    /// The same database through the proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        let host = authority(url).rsplit('@').next().expect("a host");
        url.replacen(host, &format!("127.0.0.1:{}", self.port), 1)
    }

    pub(crate) fn hold(&self) {
        self.shared.mode.send_replace(Mode::Hold);
    }

    pub(crate) fn refuse(&self) {
        self.shared.mode.send_replace(Mode::Refuse);
    }

    pub(crate) fn pass(&self) {
        self.shared.mode.send_replace(Mode::Pass);
    }

    /// The server's side of all connections goes away without the client being told; new ones are well.
    pub(crate) fn leave_half_open(&self) {
        self.shared.age.send_modify(|age| *age += 1);
    }

    /// Connections that were refused so far.
    pub(crate) fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// The distinct statements that were sent so far.
    pub(crate) fn statements(&self) -> BTreeSet<String> {
        self.shared.statements.lock().expect("not poisoned").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.mode.send_replace(Mode::Refuse);
    }
}

/// `user@host:port` of a URL.
fn authority(url: &str) -> &str {
    url.split_once("://").expect("a URL").1.split(['/', '?']).next().expect("an authority")
}

async fn accept(listener: TcpListener, server: String, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if *shared.mode.borrow() == Mode::Refuse {
            shared.refused.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let (server, shared) = (server.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let Ok(upstream) = TcpStream::connect(server).await else { return };
            carry(client, upstream, shared).await;
        });
    }
}

async fn carry(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    for socket in [&client, &server] {
        let _unset = socket.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (mut mode, mut age) = (shared.mode.subscribe(), shared.age.subscribe());
    let born = *age.borrow_and_update();
    let (mut from_client, mut to_client, mut from_server, mut to_server) =
        (from_client, to_client, from_server, to_server);
    let mut statements = Reader::default();
    let mut ignore = |_: &[u8]| ();
    let mut tell = |bytes: &[u8]| {
        shared.statements.lock().expect("not poisoned").extend(statements.read(bytes));
    };
    tokio::select! {
        () = pump(&mut from_client, &mut to_server, mode.clone(), &mut tell) => return,
        () = pump(&mut from_server, &mut to_client, mode.clone(), &mut ignore) => return,
        _ = mode.wait_for(|mode| *mode == Mode::Refuse) => return,
        _ = age.wait_for(|age| *age > born) => {}
    }
    // The client keeps its socket, and hears nothing any more.
    drop((from_server, to_server));
    let _ended = mode.wait_for(|mode| *mode == Mode::Refuse).await;
    drop((from_client, to_client));
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    tell: &mut (dyn FnMut(&[u8]) + Send),
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let Ok(count) = from.read(&mut bytes).await else { return };
        if count == 0 || mode.wait_for(|mode| *mode != Mode::Hold).await.is_err() {
            return;
        }
        tell(&bytes[..count]);
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// Finds the texts of statements in what a client of Postgres sends.
#[derive(Default)]
struct Reader {
    buffer: Vec<u8>,
    has_begun: bool,
}

impl Reader {
    fn read(&mut self, bytes: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(bytes);
        let mut found = Vec::new();
        loop {
            // The first message has no kind.
            let kind = usize::from(self.has_begun);
            let Some(length) = self.buffer.get(kind..kind + 4) else { return found };
            let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
            if self.buffer.len() < kind + length {
                return found;
            }
            let message: Vec<u8> = self.buffer.drain(..kind + length).collect();
            // An SSL request is answered with one byte, and the true first message follows.
            self.has_begun |= length != 8;
            let body = &message[kind + 4..];
            let text = |bytes: &[u8]| {
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                String::from_utf8_lossy(&bytes[..end]).into_owned()
            };
            match message.first() {
                Some(b'Q') if kind == 1 => found.push(text(body)),
                Some(b'P') if kind == 1 => {
                    // The name of the prepared statement comes first.
                    let name = body.iter().position(|byte| *byte == 0).map_or(0, |end| end + 1);
                    found.push(text(&body[name..]));
                }
                _ => {}
            }
        }
    }
}
