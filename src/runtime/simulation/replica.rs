//! Replicas: processes that execute the real runtime.

use std::sync::Arc;
use std::time::Duration;

use super::LEASE;
use super::link::Link;
use super::process::Process;
use super::story;
use super::world::World;
use crate::clock::Clock;
use crate::memory::Memory;
use crate::model::Durability;
use crate::runtime::nodes::NodeThreads;
use crate::runtime::{CronSettings, ItemSettings, Runtime, Settings, WebhookSettings};
use crate::storage::nowhere::Nowhere;

/// How long a replica that was told to stop may take.
const GRACE: Duration = Duration::from_secs(10);
const FAR: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) name: String,
    pub(super) process: Process,
    pub(super) runtime: Runtime,
}

/// What all replicas of a simulation have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) concurrency: usize,
    pub(super) max_attempts: i32,
    /// Their clocks are up to an hour off.
    pub(super) are_skewed: bool,
}

impl Replica {
    pub(super) fn start(world: &Arc<World>, kind: Kind, slot: usize, generation: u64) -> Replica {
        let name = format!("{slot}.{generation}");
        let skew_us = if kind.are_skewed { (world.roll(7200) as i64 - 3600) * 1_000_000 } else { 0 };
        let clock = Clock::simulated(world.began(), skew_us, world.dice());
        let process = Process::new(world.dice());
        let runtime = process.enter(|| {
            let storage = Arc::new(Nowhere(Link::new(world, name.clone())));
            let runtime =
                Runtime::over(storage, vec![story::graph()], clock, settings(kind, slot), NodeThreads::here());
            runtime.start_executing();
            runtime
        });
        world.tell(&name, &format!("starts, {skew_us} us off"));
        Replica { name, process, runtime }
    }

    /// As by SIGTERM: hands over what it has, and is gone.
    pub(super) fn drain(self, world: &Arc<World>) {
        world.tell(&self.name, "is told to stop");
        let runtime = self.runtime;
        let drained = self.process.spawn(async move { runtime.drain().await });
        tokio::spawn(async move {
            let _late = tokio::time::timeout(GRACE, drained).await;
            self.process.kill();
        });
    }
}

fn settings(kind: Kind, slot: usize) -> Settings {
    Settings {
        worker: format!("replica {slot}"),
        concurrency: kind.concurrency,
        lease: LEASE,
        renew_every: Duration::from_secs(1),
        poll_every: Duration::from_secs(1),
        max_attempts: kind.max_attempts,
        stuck_after: Duration::from_secs(30),
        run_timeout: FAR,
        recursion_limit: 10_007,
        durability: Durability::Async,
        default_ttl: None,
        sweep_every: FAR,
        cache_bytes: 0,
        task_log: true,
        prices: std::collections::BTreeMap::new(),
        memory: Arc::new(Memory::unlimited()),
        claims: true,
        crons: CronSettings::default(),
        webhooks: WebhookSettings::default(),
        items: ItemSettings::default(),
    }
}
