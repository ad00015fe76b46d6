//! A Postgres of the proof's own, in a folder of its own: what may be crashed, filled up and cut off.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Of the file system made for it: never filled by a proof, and never all of the memory.
const DISK_MIB: u64 = 2048;
const MAX_CONNECTIONS: usize = 60;

/// A running server. Dropped, it is stopped, and what it left in its folder removed.
#[derive(Debug)]
pub(super) struct OwnPostgres {
    dir: PathBuf,
    bin: PathBuf,
    port: u16,
    /// Whom it runs as, if this is root: Postgres refuses to be.
    user: Option<(u32, u32)>,
    /// The folder is a file system of its own, whose size can be changed.
    has_disk: bool,
}

impl OwnPostgres {
    /// Makes a database cluster in `dir`, which must be empty or missing, and starts it.
    pub(super) fn start(dir: &Path) -> anyhow::Result<OwnPostgres> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("looking at {}", dir.display()))?;
        if fs::read_dir(&dir).with_context(|| format!("looking into {}", dir.display()))?.next().is_some() {
            bail!("--own-postgres {}: the folder is not empty", dir.display());
        }
        let bin = binaries().context("--own-postgres: no initdb in PATH or /usr/lib/postgresql")?;
        let is_root = rustix::process::geteuid().is_root();
        let user =
            if is_root { Some(unprivileged().context("--own-postgres as root: no user postgres")?) } else { None };
        let has_disk = is_root && mount(&dir, &format!("size={DISK_MIB}m"), "tmpfs");
        let mut own = OwnPostgres { dir, bin, port: free_port()?, user, has_disk };
        if let Some((uid, gid)) = own.user {
            chown(&own.dir, Some(uid), Some(gid)).context("giving the folder to Postgres")?;
        }
        let data = own.data();
        let initdb = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata"];
        own.run("initdb", initdb.iter().copied().map(str::to_owned).chain([data.display().to_string()]))?;
        for attempt in 0.. {
            match own.up() {
                Ok(()) => break,
                Err(error) if attempt == 4 => return Err(error),
                // The port may have been taken meanwhile.
                Err(_) => own.port = free_port()?,
            }
        }
        Ok(own)
    }

    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Disk-full can be shown.
    pub(super) fn has_disk(&self) -> bool {
        self.has_disk
    }

    pub(super) fn max_connections(&self) -> usize {
        MAX_CONNECTIONS
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Starts it unless it runs.
    pub(super) fn up(&self) -> anyhow::Result<()> {
        if self.pg_ctl(&["status"]).is_ok() {
            return Ok(());
        }
        let settings = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={} -c max_connections={MAX_CONNECTIONS} \
             -c max_wal_size=128MB",
            self.port,
            self.dir.display()
        );
        let log = format!("--log={}", self.log().display());
        self.pg_ctl(&["start", "--wait", "--timeout=60", &log, &format!("--options={settings}")])
    }

    /// `-m immediate`: what a power cut or a crash of the server is to its clients.
    pub(super) fn crash(&self) -> anyhow::Result<()> {
        self.pg_ctl(&["stop", "--mode=immediate", "--wait"])
    }

    /// Leaves no room on its disk, or gives it back.
    pub(super) fn fill(&self, full: bool) -> bool {
        let used = Command::new("du").arg("-sk").arg(&self.dir).stderr(Stdio::null()).output();
        let used = used.ok().and_then(|out| String::from_utf8(out.stdout).ok());
        let used: Option<u64> = used.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let Some(used) = used.filter(|_| self.has_disk) else { return false };
        let size = if full { format!("remount,size={}k", used + 256) } else { format!("remount,size={DISK_MIB}m") };
        mount(&self.dir, &size, "tmpfs")
    }

    fn pg_ctl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let data = format!("--pgdata={}", self.data().display());
        self.run("pg_ctl", arguments.iter().copied().map(str::to_owned).chain([data, "--silent".to_owned()]))
    }

    fn run(&self, program: &str, arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
        let mut command = Command::new(self.bin.join(program));
        command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A signal to the terminal's group is for the proof, which stops the server itself.
        command.process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        let status = command.status().with_context(|| format!("running {program}"))?;
        if !status.success() {
            bail!("{program} failed ({status}); {} may say why", self.log().display());
        }
        Ok(())
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        self.fill(false);
        // It may not run.
        let _stopped = self.crash();
        if self.has_disk {
            let unmounted = Command::new("umount").arg(&self.dir).stderr(Stdio::null()).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("selfproof: {} is still mounted", self.dir.display());
            }
        } else {
            let _left = fs::remove_dir_all(self.data());
            let _left = fs::remove_file(self.log());
        }
    }
}

fn mount(dir: &Path, options: &str, kind: &str) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", kind, "-o", options, "none"]).arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The folder with `initdb`: of PATH, or the newest of Debian's.
fn binaries() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&paths).find(|folder| folder.join("initdb").is_file());
    in_path.or_else(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin"));
        versions.filter(|folder| folder.join("initdb").is_file()).max()
    })
}

/// Uid and gid of the user `postgres`.
fn unprivileged() -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(listener.local_addr().context("finding a free port")?.port())
}
