//! The threads that nodes run on, apart from HTTP, storage and leases: a node that blocks its thread cannot keep a lease
//! from being renewed or a request from being answered.

use std::sync::Mutex;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shared::lock;
use super::tasks;

/// A thread pool of its own for node bodies.
#[derive(Debug)]
pub(crate) struct NodeThreads {
    runtime: Option<Runtime>,
    handle: Handle,
    /// A task that does nothing, and since when it has waited for a thread.
    probe: Mutex<Option<(Instant, JoinHandle<()>)>>,
    are_blocked: watch::Sender<bool>,
}

impl NodeThreads {
    /// Twice as many threads as the machine has processors, four at least: a few blocking nodes leave others running.
    pub(crate) fn start() -> NodeThreads {
        let threads = std::thread::available_parallelism().map_or(4, |n| (n.get() * 2).max(4));
        let runtime = Builder::new_multi_thread().worker_threads(threads).thread_name("node").enable_all().build();
        let runtime = runtime
            .inspect_err(|error| tracing::warn!(%error, "no threads for nodes; they share those of the server"))
            .ok();
        let handle = runtime.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone());
        NodeThreads { runtime, handle, probe: Mutex::default(), are_blocked: watch::Sender::new(false) }
    }

    /// No threads of their own: those of whoever calls this, for simulations.
    #[cfg(test)]
    pub(crate) fn here() -> NodeThreads {
        let are_blocked = watch::Sender::new(false);
        NodeThreads { runtime: None, handle: Handle::current(), probe: Mutex::default(), are_blocked }
    }

    /// Whether nodes hold every thread, as far as is known: others have no chance to run.
    pub(crate) fn are_blocked(&self) -> bool {
        *self.are_blocked.borrow()
    }

    /// Returns once nodes hold every thread; at once if they do.
    pub(crate) fn blocked(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut are_blocked = self.are_blocked.subscribe();
        async move {
            if are_blocked.wait_for(|are_blocked| *are_blocked).await.is_err() {
                // The process ends.
                std::future::pending().await
            }
        }
    }

    /// Finds out whether a task still gets a thread within `patience`; asked from time to time. True when what
    /// [`NodeThreads::are_blocked`] says has changed.
    pub(crate) fn look(&self, now: Instant, patience: Duration) -> bool {
        let mut probe = lock(&self.probe);
        let are_blocked = match &*probe {
            Some((since, task)) if !task.is_finished() => self.are_blocked() || now.duration_since(*since) >= patience,
            _ => {
                *probe = Some((now, tasks::spawn_on(&self.handle, async {})));
                false
            }
        };
        self.are_blocked.send_replace(are_blocked) != are_blocked
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for NodeThreads {
    fn drop(&mut self) {
        // Not waiting: a node that never yields must not hold up the exit.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
