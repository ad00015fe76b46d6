//! Whose turn it is among the jobs of a run.
//!
//! The jobs of one run take turns, first come, first served, so that what siblings do is told and recorded in the same
//! order every time. LangGraph gets such an order from its event loop, and clients see it: in streams of inner graphs, in
//! what siblings read from the items, in whose question a plain answer goes to. Here a job's turn lasts until it waits for
//! something; [`Turns::pass`] stands for the rounds of the event loop that LangGraph's own machinery takes.
//!
//! A job that keeps its turn for some 200 ms, because it computes or blocks its thread, loses it: the others go on beside it,
//! on another thread.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::shared::lock;
use super::tasks;

/// How often jobs are looked at while there are siblings, and how rarely while all of them wait for something else.
const LOOK: Duration = Duration::from_millis(5);
const REST: Duration = Duration::from_millis(100);
/// A job that is seen in the same turn so many times in a row loses it. Counted, not measured: on a machine that is busy
/// elsewhere, looks come late as well. Many, since they come less late than a job that computes: what a job needs ten
/// milliseconds for takes a hundred where ten others want the processor.
const PATIENCE: u32 = 40;
/// Turns after which the thread is offered to other runs.
const ROUND: usize = 64;

/// The rounds of LangGraph's event loop that its own machinery takes, measured on the reference. They decide whose event
/// comes first when siblings take different ways to it.
pub(crate) mod rounds {
    /// From the start of a superstep to the bodies of its tasks: for one task, and for each of several.
    pub(crate) const TO_LONE_BODY: usize = 1;
    pub(crate) const TO_BODY: usize = 1;
    /// From the end of a body to its record.
    pub(crate) const TO_LONE_RECORD: usize = 4;
    pub(crate) const TO_RECORD: usize = 5;
    /// What each router of the node adds.
    pub(crate) const ROUTER: usize = 5;
    /// From the end of a graph to the task it ran in.
    pub(crate) const OUT_OF_GRAPH: usize = 7;
    pub(crate) const OUT_OF_INTERRUPTED_GRAPH: usize = 10;
    pub(crate) const OUT_OF_GRAPH_BY_COMMAND: usize = 8;
    /// For a read or write of an item.
    pub(crate) const ITEM: usize = 2;
}

thread_local! {
    /// The job that this thread gives its turn to.
    static CURRENT: Cell<Option<JobId>> = const { Cell::new(None) };
}

type JobId = u64;

/// The turns of one run.
#[derive(Clone)]
pub(crate) struct Turns {
    table: Arc<Table>,
}

struct Table {
    nodes: Handle,
    state: Mutex<State>,
    /// Somebody is ready, or there is nothing left to do.
    news: Notify,
}

#[derive(Default)]
struct State {
    jobs: HashMap<JobId, Slot>,
    ready: VecDeque<JobId>,
    next_id: JobId,
    /// The worker that gives turns; those before it lost theirs to a job that does not end its own.
    worker: Option<u64>,
    workers: u64,
    /// Turns given so far, and whether the last is still going on.
    turns: u64,
    is_busy: bool,
    /// Nobody else gets a turn until this job has gone on.
    holder: Option<JobId>,
    is_watched: bool,
}

struct Slot {
    /// Absent while it is polled.
    work: Option<BoxFuture<'static, ()>>,
    is_queued: bool,
    /// Woken while a worker that lost its turn polls it.
    is_missed: bool,
}

enum Next {
    Turn(JobId, BoxFuture<'static, ()>),
    Wait,
    Stop,
}

impl Turns {
    /// `nodes`: the threads that jobs run on.
    pub(crate) fn new(nodes: Handle) -> Turns {
        Turns { table: Arc::new(Table { nodes, state: Mutex::default(), news: Notify::new() }) }
    }

    /// Adds jobs at the end of the queue, in order. Each runs until it ends or is given up.
    fn spawn(&self, work: Vec<BoxFuture<'static, ()>>) -> Vec<JobId> {
        let mut state = lock(&self.table.state);
        let mut ids = Vec::with_capacity(work.len());
        for work in work {
            let id = state.next_id;
            state.next_id += 1;
            state.jobs.insert(id, Slot { work: Some(work), is_queued: true, is_missed: false });
            state.ready.push_back(id);
            ids.push(id);
        }
        if state.worker.is_none() {
            self.table.employ(&mut state);
        }
        if state.jobs.len() > 1 && !state.is_watched {
            state.is_watched = true;
            tasks::spawn_on(&self.table.nodes, watch(Arc::clone(&self.table)));
        }
        drop(state);
        self.table.news.notify_one();
        ids
    }

    /// Drops jobs. One that keeps its turn is dropped when it ends it.
    fn give_up(&self, jobs: &[JobId]) {
        let mut state = lock(&self.table.state);
        let dropped: Vec<Option<Slot>> = jobs.iter().map(|id| state.jobs.remove(id)).collect();
        if state.holder.is_some_and(|holder| jobs.contains(&holder)) {
            state.holder = None;
        }
        drop(state);
        // Not under the lock: what they hold may wake others, or give up jobs of its own.
        drop(dropped);
        self.table.news.notify_one();
    }

    /// Turns given so far: as long as it stays the same, no job has begun or gone on.
    pub(crate) fn given(&self) -> u64 {
        lock(&self.table.state).turns
    }

    /// No other job of the run is there to be overtaken.
    pub(crate) fn is_alone(&self) -> bool {
        lock(&self.table.state).jobs.len() <= 1
    }

    /// Lets the others have their turns, so many times.
    pub(crate) async fn pass(&self, times: usize) {
        if self.is_alone() {
            return;
        }
        for _ in 0..times {
            let mut has_passed = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut has_passed, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
    }

    /// Waits for something of the run's own, such as its database, without losing the turn: how long that takes says
    /// nothing about whose turn it is.
    pub(crate) async fn hold<T>(&self, work: impl Future<Output = T>) -> T {
        let (mut work, held) = (pin!(work), Held { table: &self.table, job: CURRENT.get() });
        poll_fn(|cx| {
            let polled = work.as_mut().poll(cx);
            if polled.is_pending() {
                held.hold();
            }
            polled
        })
        .await
    }
}

/// The turn that a job keeps while it waits; given up with this value.
struct Held<'a> {
    table: &'a Table,
    /// `None` outside of jobs: there is no turn to keep.
    job: Option<JobId>,
}

impl Held<'_> {
    fn hold(&self) {
        let mut state = lock(&self.table.state);
        if let Some(id) = self.job.filter(|id| state.jobs.contains_key(id)) {
            state.holder.get_or_insert(id);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.table.state);
        if state.holder.is_some() && state.holder == self.job {
            state.holder = None;
            drop(state);
            self.table.news.notify_one();
        }
    }
}

impl Table {
    /// Puts a worker in charge.
    fn employ(self: &Arc<Table>, state: &mut State) {
        state.workers += 1;
        state.worker = Some(state.workers);
        state.is_busy = false;
        // Turns are short and the worker yields by itself: the budget of a tokio task does not fit many jobs.
        tasks::spawn_on(&self.nodes, tokio::task::unconstrained(work(Arc::clone(self), state.workers)));
    }

    fn next(&self, worker: u64) -> Next {
        let mut state = lock(&self.state);
        if state.worker != Some(worker) {
            return Next::Stop;
        }
        if state.jobs.is_empty() {
            state.worker = None;
            state.ready.clear();
            return Next::Stop;
        }
        loop {
            let id = match state.holder {
                Some(holder) => state.ready.iter().position(|id| *id == holder).and_then(|at| state.ready.remove(at)),
                None => state.ready.pop_front(),
            };
            let Some(id) = id else { return Next::Wait };
            let Some(slot) = state.jobs.get_mut(&id) else { continue };
            slot.is_queued = false;
            match slot.work.take() {
                Some(work) => {
                    state.turns += 1;
                    state.is_busy = true;
                    return Next::Turn(id, work);
                }
                None => slot.is_missed = true,
            }
        }
    }

    /// A turn is over; `work` is what is left to do.
    fn end_turn(&self, worker: u64, id: JobId, work: Option<BoxFuture<'static, ()>>) {
        let mut state = lock(&self.state);
        if state.worker == Some(worker) {
            state.is_busy = false;
        }
        let mut over = None;
        match (work, state.jobs.get_mut(&id)) {
            (Some(work), Some(slot)) => {
                slot.work = Some(work);
                if std::mem::take(&mut slot.is_missed) && !slot.is_queued {
                    slot.is_queued = true;
                    state.ready.push_back(id);
                    self.news.notify_one();
                }
            }
            (work, None) => over = work,
            (None, Some(_)) => {
                state.jobs.remove(&id);
                if state.holder == Some(id) {
                    state.holder = None;
                }
                self.news.notify_one();
            }
        }
        drop(state);
        drop(over);
    }
}

/// Gives turns until no job is left, or somebody else does.
async fn work(table: Arc<Table>, worker: u64) {
    for turn in 1_usize.. {
        match table.next(worker) {
            Next::Stop => return,
            Next::Wait => table.news.notified().await,
            Next::Turn(id, mut work) => {
                let waker = Waker::from(Arc::new(JobWaker { table: Arc::clone(&table), id }));
                let before = CURRENT.replace(Some(id));
                let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
                CURRENT.set(before);
                let left = polled.is_pending().then_some(work);
                table.end_turn(worker, id, left);
            }
        }
        if turn.is_multiple_of(ROUND) {
            tokio::task::yield_now().await;
        }
    }
}

/// While there are siblings: sees to it that none keeps the others from their turns.
async fn watch(table: Arc<Table>) {
    let (mut seen, mut wait, mut times) = (0, LOOK, 0);
    loop {
        tokio::time::sleep(wait).await;
        let mut state = lock(&table.state);
        if state.jobs.len() < 2 {
            state.is_watched = false;
            return;
        }
        let is_same = state.turns == seen;
        times = if is_same && state.is_busy { times + 1 } else { 0 };
        if times >= PATIENCE && !state.ready.is_empty() {
            table.employ(&mut state);
            times = 0;
        }
        wait = if is_same && !state.is_busy { (wait * 2).min(REST) } else { LOOK };
        seen = state.turns;
    }
}

struct JobWaker {
    table: Arc<Table>,
    id: JobId,
}

impl Wake for JobWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = lock(&self.table.state);
        let Some(slot) = state.jobs.get_mut(&self.id).filter(|slot| !slot.is_queued) else { return };
        slot.is_queued = true;
        state.ready.push_back(self.id);
        drop(state);
        self.table.news.notify_one();
    }
}

/// Jobs that end with whoever started them.
pub(crate) struct Siblings {
    turns: Turns,
    jobs: Vec<JobId>,
}

impl Siblings {
    pub(crate) fn spawn(turns: &Turns, work: Vec<BoxFuture<'static, ()>>) -> Siblings {
        Siblings { turns: turns.clone(), jobs: turns.spawn(work) }
    }
}

impl Drop for Siblings {
    fn drop(&mut self) {
        self.turns.give_up(&self.jobs);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    type Log = Arc<Mutex<Vec<String>>>;

    fn note(log: &Log, what: impl Into<String>) {
        lock(log).push(what.into());
    }

    async fn ended(turns: &Turns) {
        while !lock(&turns.table.state).jobs.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn jobs_go_round_in_the_order_they_came() {
        let (turns, log) = (Turns::new(Handle::current()), Log::default());
        let jobs = ["a", "b", "c"].map(|name| {
            let (turns, log) = (turns.clone(), Arc::clone(&log));
            async move {
                for round in 0..3 {
                    note(&log, format!("{name}{round}"));
                    turns.pass(1).await;
                }
            }
            .boxed()
        });
        let _siblings = Siblings::spawn(&turns, jobs.into());
        ended(&turns).await;
        assert_eq!(*lock(&log), ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_turn_that_is_held_is_kept_while_waiting() {
        let (turns, log) = (Turns::new(Handle::current()), Log::default());
        let (send, receive) = oneshot::channel();
        let first = {
            let (turns, log) = (turns.clone(), Arc::clone(&log));
            async move {
                turns.hold(receive).await.expect("sent");
                note(&log, "first");
            }
        };
        let second = {
            let log = Arc::clone(&log);
            async move { note(&log, "second") }
        };
        let _siblings = Siblings::spawn(&turns, vec![first.boxed(), second.boxed()]);
        while lock(&turns.table.state).holder.is_none() {
            tokio::task::yield_now().await;
        }
        send.send(()).expect("somebody waits");
        ended(&turns).await;
        assert_eq!(*lock(&log), ["first", "second"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_job_that_blocks_its_thread_does_not_block_its_siblings() {
        let turns = Turns::new(Handle::current());
        let (send, receive) = mpsc::channel();
        let (told, ended_at_last) = oneshot::channel();
        let blocking = async move {
            receive.recv().expect("the sibling has had its turn");
            told.send(()).expect("the test waits");
        };
        let sibling = async move { send.send(()).expect("the blocking job waits") };
        let _siblings = Siblings::spawn(&turns, vec![blocking.boxed(), sibling.boxed()]);
        ended_at_last.await.expect("both ended");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn jobs_that_are_given_up_are_dropped() {
        let turns = Turns::new(Handle::current());
        let (kept, dropped) = oneshot::channel::<()>();
        let waiting = async move {
            std::future::pending::<()>().await;
            drop(kept);
        };
        let siblings = Siblings::spawn(&turns, vec![waiting.boxed(), std::future::pending().boxed()]);
        drop(siblings);
        assert!(dropped.await.is_err(), "what the job held is gone");
        ended(&turns).await;
    }
}
