//! LISTEN/NOTIFY between replicas: one connection per process, ids only, fanned out into the process's broadcast.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::model::ThreadKey;
use crate::storage::Notice;

const CHANNEL: &str = "session_store";
const RETRY: Duration = Duration::from_secs(1);

/// What a notice is on the wire; `None` for one that only means something here.
pub(super) fn payload(notice: &Notice) -> Option<String> {
    match notice {
        Notice::RunPending => Some("p".to_owned()),
        Notice::CancelRequested(run_id) => Some(format!("c:{run_id}")),
        Notice::RunEnded(run_id) => Some(format!("e:{run_id}")),
        Notice::Events(thread) => Some(format!("v:{}", thread.0)),
        Notice::RunWanted(run_id) => Some(format!("w:{run_id}")),
        Notice::Missed => None,
    }
}

fn parse(payload: &str) -> Option<Notice> {
    if payload == "p" {
        return Some(Notice::RunPending);
    }
    let (kind, id) = payload.split_once(':')?;
    let id = Uuid::try_parse(id).ok()?;
    match kind {
        "c" => Some(Notice::CancelRequested(id)),
        "e" => Some(Notice::RunEnded(id)),
        "v" => Some(Notice::Events(ThreadKey(id))),
        "w" => Some(Notice::RunWanted(id)),
        // A newer replica may say more than this one understands.
        _ => None,
    }
}

async fn open(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// A pool of its own, so that listening takes no connection from the operations.
fn own_pool(pool: &PgPool) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with((*pool.connect_options()).clone())
}

/// Starts listening. Tries to be connected when it returns; if that fails it goes on trying in the background.
pub(super) async fn start(pool: &PgPool, notices: broadcast::Sender<Notice>) -> JoinHandle<()> {
    let own = own_pool(pool);
    let first = open(&own).await.ok();
    tokio::spawn(listen(own, first, notices))
}

/// Starts anew with other connections.
pub(super) fn restart(pool: &PgPool, notices: broadcast::Sender<Notice>) -> JoinHandle<()> {
    tokio::spawn(listen(own_pool(pool), None, notices))
}

async fn listen(pool: PgPool, mut first: Option<PgListener>, notices: broadcast::Sender<Notice>) {
    loop {
        let opened = match first.take() {
            Some(listener) => Ok(listener),
            None => open(&pool).await.inspect(|_| {
                // Whatever was said before this moment was not heard.
                let _unheard = notices.send(Notice::Missed);
            }),
        };
        match opened {
            Ok(mut listener) => loop {
                match listener.try_recv().await {
                    Ok(Some(notification)) => {
                        if let Some(notice) = parse(notification.payload()) {
                            let _unheard = notices.send(notice);
                        }
                    }
                    // The connection was lost and made again.
                    Ok(None) => {
                        let _unheard = notices.send(Notice::Missed);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the listening connection is lost; connecting again");
                        break;
                    }
                }
            },
            Err(error) => tracing::warn!(%error, "cannot listen for notices of other replicas; looking only"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_survive_the_wire() {
        let id = Uuid::from_u128(7);
        for notice in [
            Notice::RunPending,
            Notice::CancelRequested(id),
            Notice::RunEnded(id),
            Notice::Events(ThreadKey(id)),
            Notice::RunWanted(id),
        ] {
            assert_eq!(payload(&notice).as_deref().and_then(parse), Some(notice));
        }
        for strange in ["", "x:1", "z:00000000-0000-0000-0000-000000000007"] {
            assert_eq!(parse(strange), None);
        }
    }
}
