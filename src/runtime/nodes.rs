//! The threads that nodes run on, apart from HTTP, storage and leases: a node that blocks its thread cannot keep a lease
//! from being renewed or a request from being answered.

use tokio::runtime::{Builder, Handle, Runtime};

/// A thread pool of its own for node bodies.
#[derive(Debug)]
pub(crate) struct NodeThreads {
    runtime: Option<Runtime>,
    handle: Handle,
}

impl NodeThreads {
    /// Twice as many threads as the machine has processors, four at least: a few blocking nodes leave others running.
    pub(crate) fn start() -> NodeThreads {
        let threads = std::thread::available_parallelism().map_or(4, |n| (n.get() * 2).max(4));
        let runtime = Builder::new_multi_thread().worker_threads(threads).thread_name("node").enable_all().build();
        match runtime {
            Ok(runtime) => NodeThreads { handle: runtime.handle().clone(), runtime: Some(runtime) },
            Err(error) => {
                tracing::warn!(%error, "no threads for nodes; they share those of the server");
                NodeThreads { runtime: None, handle: Handle::current() }
            }
        }
    }

    /// On the threads of whoever calls: for simulations, in which nothing happens beside anything else.
    #[cfg(all(test, feature = "simulation"))]
    pub(crate) fn here() -> NodeThreads {
        NodeThreads { runtime: None, handle: Handle::current() }
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
