//! Connections at hand: those that were used a moment ago, for whoever comes next.
//!
//! The pool hands out the connection that was idle the longest, whose server process has gone cold, and tests each one that
//! comes back with a round trip of its own, in a task of its own. Neither is worth it for a connection whose last statement
//! was answered in full: those stay here for a while, and the one used last is used next. Whatever ends otherwise (a
//! transaction, an error, a caller who went away) goes back to the pool, which looks at what state it is in.
//!
//! Nobody waits for the pool while a connection lies here: what is given back while somebody waits goes to the pool, which
//! serves in turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use tokio::time::Instant;

/// Then a connection goes back to the pool, which knows how old it may become.
const AWAY_AT_MOST: Duration = Duration::from_secs(60);

/// The connections at hand of one pool.
#[derive(Debug, Default)]
pub(super) struct AtHand {
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// The one used last is the last.
    idle: Vec<Idle>,
    /// Who asks the pool.
    waiting: usize,
    is_closed: bool,
}

#[derive(Debug)]
struct Idle {
    conn: PoolConnection<Postgres>,
    /// When it left the pool.
    since: Instant,
    used: Instant,
}

/// A connection for one statement. Dropped, it goes back to the pool.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) conn: PoolConnection<Postgres>,
    /// When it left the pool.
    since: Instant,
    home: Arc<AtHand>,
}

/// Somebody asks the pool, until this is dropped.
pub(super) struct Waiting {
    home: Arc<AtHand>,
}

impl AtHand {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection used last, if that was less than `fresh` ago; otherwise one of the pool. Cancel-safe.
    pub(super) async fn take(self: &Arc<Self>, pool: &PgPool, fresh: Duration) -> sqlx::Result<Lent> {
        let stale;
        {
            let mut shelf = self.shelf();
            match shelf.idle.pop_if(|idle| idle.used.elapsed() < fresh) {
                Some(Idle { conn, since, .. }) => return Ok(Lent { conn, since, home: self.clone() }),
                // The others were used even before.
                None => stale = std::mem::take(&mut shelf.idle),
            }
            shelf.waiting += 1;
        }
        let _waiting = Waiting { home: self.clone() };
        drop(stale);
        let conn = pool.acquire().await?;
        Ok(Lent { conn, since: Instant::now(), home: self.clone() })
    }

    /// For who is about to ask the pool: it has one that lies here, then. Keep what this returns until the pool has answered.
    pub(super) fn make_room(self: &Arc<Self>) -> Waiting {
        let mut shelf = self.shelf();
        shelf.waiting += 1;
        let coldest = match shelf.idle.is_empty() {
            true => None,
            false => Some(shelf.idle.remove(0)),
        };
        drop(shelf);
        drop(coldest);
        Waiting { home: self.clone() }
    }

    /// How many lie here.
    pub(super) fn len(&self) -> usize {
        self.shelf().idle.len()
    }

    /// Gives all of them back to the pool.
    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut self.shelf().idle);
        // Dropping them begins tasks; that is not done under the lock.
        drop(idle);
    }

    /// As [`AtHand::clear`], from now on.
    pub(super) fn close(&self) {
        self.shelf().is_closed = true;
        self.clear();
    }
}

impl Lent {
    /// Puts a connection at hand whose last statement was answered in full.
    pub(super) fn give_back(self) {
        let home = self.home.clone();
        let mut shelf = home.shelf();
        if shelf.waiting == 0 && !shelf.is_closed && self.since.elapsed() < AWAY_AT_MOST {
            shelf.idle.push(Idle { conn: self.conn, since: self.since, used: Instant::now() });
        } else {
            drop(shelf);
            drop(self);
        }
    }
}

impl Drop for AtHand {
    /// The pool goes, too: its connections are closed as those are that lie there, with or without a runtime around.
    fn drop(&mut self) {
        for idle in self.shelf.get_mut().unwrap_or_else(PoisonError::into_inner).idle.drain(..) {
            drop(idle.conn.detach());
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.home.shelf().waiting -= 1;
    }
}
