//! Signs of life of a task, for its idle timeout and for those of the tasks around it.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::model::{RefreshOn, TimeoutPolicy};

/// Where the signs of a task go that has an idle timeout.
#[derive(Debug)]
pub(crate) struct Alive {
    seen: Notify,
    refresh_on: RefreshOn,
    /// That of the task around, if one has an idle timeout.
    around: Option<Arc<Alive>>,
}

impl Alive {
    /// For a task with these limits; `None`: nobody waits for its signs.
    pub(crate) fn of(limits: &TimeoutPolicy, around: Option<&Arc<Alive>>) -> Option<Arc<Alive>> {
        if limits.idle_timeout.is_none() {
            return around.cloned();
        }
        Some(Arc::new(Alive { seen: Notify::new(), refresh_on: limits.refresh_on, around: around.cloned() }))
    }

    /// The node says that it is alive.
    pub(crate) fn beat(&self) {
        self.seen.notify_one();
        if let Some(around) = &self.around {
            around.beat();
        }
    }

    /// The node does something that can be seen.
    pub(crate) fn stir(&self) {
        if self.refresh_on == RefreshOn::Auto {
            self.seen.notify_one();
        }
        if let Some(around) = &self.around {
            around.stir();
        }
    }

    /// Waits for the next sign.
    pub(crate) async fn seen(&self) {
        self.seen.notified().await;
    }
}
