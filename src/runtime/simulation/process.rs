//! Made-up processes: whatever one of them spawns belongs to it, and is killed or stopped with it, at any await.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::task::JoinHandle;

use crate::clock::Dice;
use crate::runtime::shared::lock;

thread_local! {
    /// The process whose code runs on this thread.
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// One process. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Process(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    state: State,
    dice: Dice,
    /// Tasks that want to go on once it does.
    waiting: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    /// As by SIGSTOP: its time goes by, its tasks do not go on.
    Stopped,
    /// As by SIGKILL.
    Dead,
}

impl Process {
    pub(crate) fn new(dice: Dice) -> Process {
        Process(Arc::new(Mutex::new(Inner { state: State::Runs, dice, waiting: Vec::new() })))
    }

    /// A number below `bound`, for what happens by chance inside.
    pub(crate) fn roll(&self, bound: u64) -> u64 {
        lock(&self.0).dice.next() % bound
    }

    /// The process whose task asks.
    pub(crate) fn current() -> Option<Process> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs code of this process.
    pub(crate) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.replace(Some(self.clone()));
        let done = work();
        CURRENT.set(before);
        done
    }

    /// Spawns a task of this process. It never ends if the process dies first.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(Task { process: Some(self.clone()), work: Some(Box::pin(task)) })
    }

    pub(crate) fn kill(&self) {
        self.set(State::Dead);
    }

    pub(crate) fn stop(&self) {
        self.set(State::Stopped);
    }

    pub(crate) fn go_on(&self) {
        self.set(State::Runs);
    }

    pub(crate) fn is_dead(&self) -> bool {
        lock(&self.0).state == State::Dead
    }

    fn set(&self, state: State) {
        let mut inner = lock(&self.0);
        // The dead stay dead.
        if inner.state != State::Dead {
            inner.state = state;
        }
        let woken = if state == State::Stopped { Vec::new() } else { std::mem::take(&mut inner.waiting) };
        drop(inner);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A task of the process whose code spawns it; of none outside of simulations.
pub(crate) fn of_the_current<F: Future>(task: F) -> impl Future<Output = F::Output> + use<F> {
    Task { process: Process::current(), work: Some(Box::pin(task)) }
}

struct Task<F> {
    process: Option<Process>,
    /// `None` once the process is dead.
    work: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let (Some(process), Some(work)) = (&this.process, &mut this.work) else {
            return match &mut this.work {
                Some(work) => work.as_mut().poll(cx),
                None => Poll::Pending,
            };
        };
        let state = {
            let mut inner = lock(&process.0);
            if inner.state == State::Stopped {
                inner.waiting.push(cx.waker().clone());
            }
            inner.state
        };
        if state == State::Runs {
            let polled = process.enter(|| work.as_mut().poll(cx));
            // What it did last, after it had killed itself, nobody has seen.
            if !process.is_dead() {
                return polled;
            }
        }
        if process.is_dead() {
            this.work = None;
        }
        Poll::Pending
    }
}
