//! PgBouncer in transaction mode, between a test and the Postgres for tests: Debian's package, on a free port.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::process::{PATIENCE, available};

/// It ends with this value.
pub(crate) struct PgBouncer {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts one for all databases of the server of a URL; `None` when it is not installed and need not be.
    pub(crate) fn before(url: &str) -> Option<PgBouncer> {
        // Debian keeps it where only root looks.
        let program = "/usr/sbin/pgbouncer";
        let program = if std::path::Path::new(program).exists() { program } else { "pgbouncer" };
        if !available(program) {
            return None;
        }
        let authority = url.split_once("://").expect("a URL").1.split(['/', '?']).next().expect("an authority");
        let (who, place) = authority.rsplit_once('@').expect("the URL names a user");
        let (user, password) = who.split_once(':').unwrap_or((who, ""));
        let (host, port) = place.rsplit_once(':').unwrap_or((place, "5432"));
        let password = if password.is_empty() { String::new() } else { format!(" password={password}") };
        // The port may be taken between looking and binding: try again with another.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
            let dir = tempfile::tempdir().expect("a directory");
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("readable");
            let file = dir.path().join("pgbouncer.ini");
            let settings = format!(
                "[databases]\n* = host={host} port={port} user={user}{password}\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {free}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\nmax_client_conn = 500\ndefault_pool_size = 10\n"
            );
            std::fs::write(&file, settings).expect("written");
            let mut command = Command::new(program);
            // It refuses to be root.
            if std::fs::metadata("/proc/self").is_ok_and(|of| of.uid() == 0) {
                command.args(["-u", "nobody"]);
            }
            let quiet = || Stdio::null();
            let mut child = command.arg(&file).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().expect("it runs");
            let began = Instant::now();
            while child.try_wait().expect("a status").is_none() {
                if TcpStream::connect(("127.0.0.1", free)).is_ok() {
                    return Some(PgBouncer { child, port: free, _dir: dir });
                }
                assert!(began.elapsed() < PATIENCE, "PgBouncer does not listen");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        panic!("PgBouncer does not start");
    }

    /// The same database through it.
    pub(crate) fn url(&self, url: &str) -> String {
        let authority = url.split_once("://").expect("a URL").1.split(['/', '?']).next().expect("an authority");
        let (_, place) = authority.rsplit_once('@').expect("the URL names a user");
        url.replacen(place, &format!("127.0.0.1:{}", self.port), 1)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // Both fail when it has ended by itself: nothing is left to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
