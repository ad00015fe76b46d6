//! How much memory this process occupies, and how much it may: so that work is turned away, or waits, before the kernel
//! ends the process and everything in it. Linux only; elsewhere nothing is known, and nothing is turned away.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Control groups without a limit say a number like this, or none.
const UNLIMITED: u64 = 1 << 60;
/// What a byte of a body may occupy until it is stored: as it came, as it was read, as it is written.
const COPIES: u64 = 4;
/// A request is small if it needs less than this part of the limit. Small ones are never turned away while they need less
/// than the other part of it together: what they add does not matter, and whoever looks into what is wrong must be served.
const SMALL: u64 = 1024;
const ALL_SMALL: u64 = 64;

/// The memory of this process. Cheap to ask: a system call.
#[derive(Debug)]
pub struct Memory {
    limit: Option<u64>,
    /// `/proc/self/statm`, open.
    statm: Option<File>,
    page: u64,
    /// What the requests in progress may need together: large ones, and small ones.
    large: AtomicU64,
    small: AtomicU64,
    turned_away: AtomicU64,
}

impl Memory {
    /// `max_bytes`, or what the container allows when that is 0. Without either there is no limit.
    pub fn limited(max_bytes: u64) -> Memory {
        let limit = Some(max_bytes).filter(|bytes| *bytes > 0).or_else(|| {
            let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
            limit_of_groups(&groups, Path::new("/sys/fs/cgroup"))
        });
        Memory { limit, ..Memory::unlimited() }
    }

    pub fn unlimited() -> Memory {
        Memory {
            limit: None,
            statm: File::open("/proc/self/statm").ok(),
            page: rustix::param::page_size() as u64,
            large: AtomicU64::new(0),
            small: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        }
    }

    /// Bytes that the process may occupy.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes that it occupies.
    pub fn resident(&self) -> Option<u64> {
        let mut text = [0; 128];
        let length = self.statm.as_ref()?.read_at(&mut text, 0).ok()?;
        let pages: u64 = std::str::from_utf8(&text[..length]).ok()?.split(' ').nth(1)?.parse().ok()?;
        Some(pages * self.page)
    }

    /// Nine tenths of what it may occupy are occupied.
    pub fn is_short(&self) -> bool {
        self.limit.is_some_and(|limit| self.resident().is_some_and(|resident| resident > high(limit)))
    }

    /// Requests that were turned away so far.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Relaxed)
    }

    /// Room for a request with a body of so many bytes, as long as what is returned lives; none when it has to be turned
    /// away.
    pub fn admit(self: &Arc<Self>, body: u64) -> Option<Admitted> {
        let bytes = body.saturating_mul(COPIES);
        let Some(limit) = self.limit else {
            return Some(Admitted { memory: Arc::clone(self), bytes: 0, is_small: true });
        };
        let is_small = bytes < limit / SMALL;
        let needed = if is_small { &self.small } else { &self.large };
        let alike = needed.fetch_add(bytes, Relaxed).saturating_add(bytes);
        let admitted = Admitted { memory: Arc::clone(self), bytes, is_small };
        let all = || self.large.load(Relaxed).saturating_add(self.small.load(Relaxed));
        // What others need may be occupied already, and counts twice then: rather too careful.
        let fits = || self.resident().is_none_or(|resident| resident.saturating_add(all()) <= high(limit));
        if (is_small && alike < limit / ALL_SMALL) || fits() {
            return Some(admitted);
        }
        self.turned_away.fetch_add(1, Relaxed);
        None
    }
}

/// Room that a request takes.
#[derive(Debug)]
pub struct Admitted {
    memory: Arc<Memory>,
    bytes: u64,
    is_small: bool,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let needed = if self.is_small { &self.memory.small } else { &self.memory.large };
        needed.fetch_sub(self.bytes, Relaxed);
    }
}

fn high(limit: u64) -> u64 {
    limit / 10 * 9
}

/// The lowest limit of the control groups that a process is in (`/proc/self/cgroup`) and of those around them, in either
/// version.
fn limit_of_groups(groups: &str, root: &Path) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            v1 if v1.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        // What a container sees is often mounted as the root, whatever its group is called.
        let inside = mount.join(group.trim_start_matches('/'));
        let around = inside.ancestors().take_while(|path| path.starts_with(&mount));
        limits.extend(around.filter_map(|path| limit_in(&path.join(file))));
    }
    limits.into_iter().min()
}

fn limit_in(file: &PathBuf) -> Option<u64> {
    let bytes: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (bytes < UNLIMITED).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    #[test]
    fn the_lowest_limit_around_the_process_counts() {
        let root = with(&[
            ("memory.max", "max\n"),
            ("system/memory.max", "1000000\n"),
            ("system/inner/memory.max", "2000000\n"),
            ("memory/docker/x/memory.limit_in_bytes", "500000\n"),
            ("memory/docker/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let limit = |groups: &str| limit_of_groups(groups, root.path());
        assert_eq!(limit("0::/system/inner\n"), Some(1_000_000), "version 2");
        assert_eq!(limit("0::/\n"), None, "no limit");
        assert_eq!(limit("5:cpu,memory:/docker/x\n4:pids:/docker/x\n0::/\n"), Some(500_000), "version 1");
        assert_eq!(limit("5:memory:/docker\n"), None, "a number that means none");
        assert_eq!(limit("nonsense\n"), None);
        let bare = with(&[("memory.max", "300000\n")]);
        assert_eq!(limit_of_groups("0::/as/the/host/calls/it\n", bare.path()), Some(300_000), "a container's own root");
    }

    #[test]
    fn what_does_not_fit_is_turned_away_and_what_is_small_never() {
        let resident = Memory::unlimited().resident().expect("a Linux process");
        let memory = Arc::new(Memory::limited((resident + (64 << 20)) / 9 * 10));
        assert_eq!(memory.turned_away(), 0);
        let first = memory.admit(8 << 20).expect("there is room for the first");
        assert!(memory.admit(12 << 20).is_none(), "not beside it");
        assert_eq!(memory.turned_away(), 1);
        drop(first);
        drop(memory.admit(12 << 20).expect("it has gone"));
        assert!(!memory.is_short());

        let memory = Arc::new(Memory::limited(resident / 2));
        assert!(memory.is_short());
        assert!(memory.admit(1 << 20).is_none());
        let small: Vec<_> = (0..10).map(|_| memory.admit(1000)).collect();
        assert!(small.iter().all(Option::is_some), "small ones go on");
        assert!(Arc::new(Memory::unlimited()).admit(u64::MAX).is_some());
    }
}
