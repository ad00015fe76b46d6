//! As much of the Postgres protocol as it takes to know what passes by: where messages end, which statement is executed,
//! and whether it commits by itself.

use std::collections::HashMap;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::storage::scratch::Statement;

/// Messages are read whole; a longer one is no message.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// A request for an encrypted connection: SSL or GSSAPI.
const ENCRYPT: [u32; 2] = [80_877_103, 80_877_104];

/// A message, with its first byte and its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn kind(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    fn body(&self) -> &[u8] {
        self.0.get(5..).unwrap_or_default()
    }

    /// Of a ReadyForQuery: `I` idle, `T` in a transaction, `E` in a failed one.
    pub(super) fn status(&self) -> Option<u8> {
        (self.kind() == b'Z').then(|| self.body().first().copied()).flatten()
    }
}

/// Reads the next message; `None` at the end.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Message>> {
    let mut head = [0_u8; 5];
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    read_rest(from, head.to_vec(), length.wrapping_sub(4)).await.map(Some)
}

/// Reads what a client says first: no kind, only a length. `Ok(None)`: it asked for encryption, which it is to be denied.
pub(super) async fn read_startup(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Message>> {
    let mut head = [0_u8; 8];
    from.read_exact(&mut head).await?;
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if ENCRYPT.contains(&number(4)) {
        return Ok(None);
    }
    read_rest(from, head.to_vec(), (number(0) as usize).wrapping_sub(8)).await.map(Some)
}

async fn read_rest(from: &mut (impl AsyncRead + Unpin), mut head: Vec<u8>, rest: usize) -> io::Result<Message> {
    if rest > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of an impossible length"));
    }
    let start = head.len();
    head.resize(start + rest, 0);
    from.read_exact(&mut head[start..]).await?;
    Ok(Message(head))
}

/// What a client has said on one connection, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// Prepared statements by name.
    prepared: HashMap<Vec<u8>, Statement>,
    /// What the portal that was bound last executes.
    bound: Option<Statement>,
    /// What has been executed since the last Sync.
    executed: Option<Statement>,
    /// What the open transaction has written.
    transaction: Option<Statement>,
    /// Messages that are not sent on yet.
    pub(super) held: Vec<u8>,
}

/// What the messages up to here ask the server to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// More belongs to it.
    Open,
    /// Nothing that commits.
    Plain,
    /// It commits this.
    Commits(Statement),
}

impl Client {
    /// Takes in the next message. `status`: that of the connection, by the server's last word.
    pub(super) fn take(&mut self, message: &Message, status: u8) -> Unit {
        self.held.extend_from_slice(&message.0);
        match message.kind() {
            b'P' => {
                if let Some((name, rest)) = text(message.body())
                    && let Some((sql, _)) = text(rest)
                {
                    self.prepared.insert(name.to_vec(), Statement::of(&String::from_utf8_lossy(sql)));
                }
                Unit::Open
            }
            b'B' => {
                let name = text(message.body()).and_then(|(_, rest)| text(rest)).map(|(name, _)| name.to_vec());
                self.bound = name.and_then(|name| self.prepared.get(&name).copied());
                Unit::Open
            }
            b'E' => {
                self.executed = self.bound.filter(|statement| statement.writes()).or(self.executed);
                Unit::Open
            }
            b'D' | b'C' => Unit::Open,
            b'S' => match self.executed.take() {
                Some(statement) if status == b'I' => Unit::Commits(statement),
                Some(statement) => {
                    // Of several writes the first tells what the transaction is for.
                    self.transaction.get_or_insert(statement);
                    Unit::Plain
                }
                None => Unit::Plain,
            },
            b'Q' => {
                let sql = text(message.body()).map(|(sql, _)| String::from_utf8_lossy(sql).into_owned());
                let sql = sql.unwrap_or_default();
                let word = sql.trim_start().split([' ', ';']).next().unwrap_or_default().to_ascii_uppercase();
                match word.as_str() {
                    "COMMIT" => self.transaction.take().map_or(Unit::Plain, Unit::Commits),
                    "ROLLBACK" | "BEGIN" => {
                        self.transaction = None;
                        Unit::Plain
                    }
                    _ if status == b'I' && Statement::of(&sql).writes() => Unit::Commits(Statement::of(&sql)),
                    _ => Unit::Plain,
                }
            }
            _ => Unit::Plain,
        }
    }
}

/// Text up to a zero byte, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Message {
        let length = u32::try_from(body.len() + 4).expect("short");
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(body);
        Message(bytes)
    }

    fn say(client: &mut Client, status: u8, messages: &[Message]) -> Unit {
        messages.iter().map(|message| client.take(message, status)).last().expect("a message")
    }

    #[tokio::test]
    async fn messages_are_read_whole() {
        let sent = [message(b'Q', b"SELECT 1\0"), message(b'X', b"")];
        let bytes: Vec<u8> = sent.iter().flat_map(|message| message.0.clone()).collect();
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from).await.expect("reads"), Some(sent[0].clone()));
        assert_eq!(read(&mut from).await.expect("reads"), Some(sent[1].clone()));
        assert_eq!(read(&mut from).await.expect("reads"), None);
        let mut encrypt: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
        assert_eq!(read_startup(&mut encrypt).await.expect("reads"), None);
        assert_eq!(message(b'Z', b"T").status(), Some(b'T'));
    }

    #[test]
    fn a_statement_by_itself_commits_with_its_sync() {
        let mut client = Client::default();
        let parse = message(b'P', b"s1\0INSERT INTO t VALUES (1)\0\0\0");
        assert_eq!(say(&mut client, b'I', &[parse, message(b'D', b"Ss1\0"), message(b'S', b"")]), Unit::Plain);
        let run = [message(b'B', b"\0s1\0\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")];
        assert_eq!(say(&mut client, b'I', &run), Unit::Commits(Statement::OtherWrite));
        assert_eq!(say(&mut client, b'I', &run[..2]), Unit::Open);
    }

    #[test]
    fn a_transaction_commits_with_its_commit() {
        let mut client = Client::default();
        let run = [
            message(b'P', b"s1\0DELETE FROM t\0\0\0"),
            message(b'B', b"\0s1\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
        ];
        assert_eq!(say(&mut client, b'I', &[message(b'Q', b"BEGIN\0")]), Unit::Plain);
        assert_eq!(say(&mut client, b'T', &run), Unit::Plain);
        assert_eq!(say(&mut client, b'T', &[message(b'Q', b"COMMIT\0")]), Unit::Commits(Statement::OtherWrite));
        assert_eq!(say(&mut client, b'I', &[message(b'Q', b"COMMIT\0")]), Unit::Plain);
    }
}
