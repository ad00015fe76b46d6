//! The contract for idempotency keys: an operation with a key has one effect for a day (contract of `Idempotency-Key`).
//!
//! A key is not a parameter of every method. Whoever serves a request runs it inside [`under`]; the first operation in it
//! that writes inserts the key's row in its own transaction, whichever method that is, and so is committed with the key
//! or not at all. Where the key is taken, nothing of the operation happens and it fails with
//! [`super::StorageError::KeyUsed`]. Backends do this where all their writes pass: no method can forget it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::model::Scope;

/// How long a key is remembered, in microseconds: a day.
pub(crate) const REMEMBERED_US: i64 = 86_400 * 1_000_000;

tokio::task_local! {
    static CURRENT: Option<Arc<Keyed>>;
}

/// A key as a client sent it, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub tenant: Uuid,
    /// Method and path template: keys of different operations have nothing to do with each other.
    pub operation: String,
    pub key: String,
    /// A hash of the whole request.
    pub fingerprint: [u8; 32],
}

/// A key in use by the request being served.
#[derive(Debug)]
pub struct Keyed {
    pub key: IdempotencyKey,
    location: Mutex<Option<String>>,
    used: AtomicBool,
    /// Of a part of a request: the whole.
    whole: Option<Arc<Keyed>>,
}

impl Keyed {
    pub fn new(key: IdempotencyKey) -> Arc<Keyed> {
        Arc::new(Keyed { key, location: Mutex::default(), used: AtomicBool::new(false), whole: None })
    }

    /// Whether an operation was committed with it.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::SeqCst)
    }

    /// What the operation makes.
    pub(crate) fn location(&self) -> Option<String> {
        self.location.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_used(&self) {
        self.used.store(true, Ordering::SeqCst);
        if let Some(whole) = &self.whole {
            whole.set_used();
        }
    }
}

/// Runs a request under its key. Tasks it spawns are not part of it.
pub async fn under<F: Future>(keyed: Arc<Keyed>, request: F) -> F::Output {
    CURRENT.scope(Some(keyed), request).await
}

/// Runs one of several equal parts of a request, each with an effect of its own: a repeat does what is left.
pub async fn part<F: Future>(index: usize, part: F) -> F::Output {
    let Some(whole) = current() else { return part.await };
    // A character that no header can hold.
    let key = IdempotencyKey { key: format!("{}\u{1f}{index}", whole.key.key), ..whole.key.clone() };
    let location = Mutex::default();
    let keyed = Keyed { key, location, used: AtomicBool::new(false), whole: Some(whole) };
    under(Arc::new(keyed), part).await
}

/// Runs what an operation has to do before it, in transactions of its own: not part of the request.
pub(crate) async fn aside<F: Future>(work: F) -> F::Output {
    CURRENT.scope(None, work).await
}

fn current() -> Option<Arc<Keyed>> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Says what the operation to come makes: where a repeat of the request can read it.
pub fn leads_to(location: impl FnOnce() -> String) {
    // Without a key nobody will ask.
    if let Some(keyed) = current() {
        *keyed.location.lock().unwrap_or_else(PoisonError::into_inner) = Some(location());
    }
}

/// Whether the request being served has a key.
pub fn is_keyed() -> bool {
    current().is_some()
}

/// The key of the request being served, as long as no operation was committed with it.
pub fn unused() -> Option<Arc<Keyed>> {
    current().filter(|keyed| !keyed.is_used())
}

/// A key's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    pub fingerprint: [u8; 32],
    pub location: Option<String>,
    /// Status and body, once known.
    pub answer: Option<(u16, Vec<u8>)>,
}

/// Idempotency keys. To be called outside [`under`].
#[async_trait]
pub trait IdempotencyKeys {
    /// Reads a key that has not expired.
    async fn find_key(&self, scope: &Scope, operation: &str, key: &str) -> Result<Option<KeyRow>>;

    /// Adds the answer to a key's row; inserts the row where only parts of the request have one.
    async fn answer_key(&self, scope: &Scope, key: &IdempotencyKey, status: u16, answer: Vec<u8>) -> Result<()>;

    /// Forgets a key: what it was used for was refused.
    async fn forget_key(&self, scope: &Scope, operation: &str, key: &str) -> Result<()>;

    /// Deletes up to `limit` expired keys; returns how many.
    async fn purge_keys(&self, scope: &Scope, limit: i64) -> Result<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed() -> Arc<Keyed> {
        let key =
            IdempotencyKey { tenant: Uuid::nil(), operation: "POST /x".into(), key: "k".into(), fingerprint: [0; 32] };
        Keyed::new(key)
    }

    #[tokio::test]
    async fn a_key_is_offered_until_it_is_used() {
        assert!(unused().is_none());
        let whole = keyed();
        let inside = async {
            leads_to(|| "/x/1".to_owned());
            assert_eq!(unused().and_then(|keyed| keyed.location()).as_deref(), Some("/x/1"));
            assert!(aside(async { unused().is_none() }).await);
            let part = part(1, async { unused().inspect(|keyed| keyed.set_used()) }).await;
            assert_eq!(part.map(|keyed| keyed.key.key.clone()).as_deref(), Some("k\u{1f}1"));
            assert!(unused().is_none(), "the whole is used with its part");
            assert!(tokio::spawn(async { unused().is_none() }).await.expect("ends"), "a task is no part of it");
        };
        under(Arc::clone(&whole), inside).await;
        assert!(whole.is_used());
    }
}
