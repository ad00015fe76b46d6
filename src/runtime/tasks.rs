//! Where the tasks of a runtime begin. In simulations they belong to a made-up process, which may be killed or stopped with
//! all its tasks.

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// [`tokio::spawn`] for the work of this process.
pub(crate) fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    #[cfg(test)]
    let task = super::simulation::process::of_the_current(task);
    tokio::spawn(task)
}

/// [`spawn`] on the threads of somebody else.
pub(crate) fn spawn_on<F>(threads: &Handle, task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    #[cfg(test)]
    let task = super::simulation::process::of_the_current(task);
    threads.spawn(task)
}
