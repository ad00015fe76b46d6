//! The outside world of the proof: a file that each external call adds a line to. No crash of a replica and no fault of a
//! database takes anything back from it, so it tells how often a call was made.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::clock::Clock;
use crate::graph::NodeError;

/// Where a replica finds the file.
pub(super) const VARIABLE: &str = "SELFPROOF_TILL";

/// One external call, as the world remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) thread: String,
    /// What was paid for: `turn.n`.
    pub(super) name: String,
    /// The idempotency key that came with it.
    pub(super) key: String,
    /// What the caller was told.
    pub(super) receipt: String,
}

/// The external call: it has happened once this returns, whatever becomes of the caller.
pub(super) fn pay(thread: &str, name: &str, key: &str) -> Result<String, NodeError> {
    let receipt = Clock::default().new_uuid().simple().to_string();
    let path = std::env::var_os(VARIABLE).unwrap_or_default();
    let call = Call { thread: thread.to_owned(), name: name.to_owned(), key: key.to_owned(), receipt };
    add(Path::new(&path), &call).map_err(|error| NodeError::new("Till", format!("{error:#}")))?;
    Ok(call.receipt)
}

/// Adds a call to the file.
pub(super) fn add(path: &Path, call: &Call) -> anyhow::Result<()> {
    let line = format!("{}\t{}\t{}\t{}\n", call.thread, call.name, call.key, call.receipt);
    let mut file = OpenOptions::new().create(true).append(true).open(path).context("opening the till")?;
    // One write: calls of several processes never mix.
    file.write_all(line.as_bytes()).context("writing to the till")
}

/// All calls so far.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Call>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).context("reading the till")?;
    // A process that was killed while it wrote may leave half a line; the call did not happen then.
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    Ok(lines.filter_map(call_of).collect())
}

fn call_of(line: &str) -> Option<Call> {
    let mut fields = line.split('\t').map(str::to_owned);
    Some(Call { thread: fields.next()?, name: fields.next()?, key: fields.next()?, receipt: fields.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_come_back_and_half_a_line_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("till");
        assert_eq!(read(&path).expect("read"), []);
        let call = Call { thread: "t".into(), name: "1.1".into(), key: "k".into(), receipt: "r".into() };
        add(&path, &call).expect("added");
        let mut file = OpenOptions::new().append(true).open(&path).expect("there");
        file.write_all(b"t\t1.2\tk").expect("written");
        assert_eq!(read(&path).expect("read"), [call]);
    }
}
