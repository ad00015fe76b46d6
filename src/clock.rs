//! The only place that asks the machine for time, randomness and new ids.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use uuid::Uuid;

use crate::model::{CheckpointId, Timestamp};

/// Time and ids. The system clock in production; tests may shift it.
#[derive(Debug, Default)]
pub struct Clock {
    /// Added to the machine's time, in microseconds: clock-skew tests.
    skew_us: i64,
    /// The last 100 ns tick used in a checkpoint id by this process.
    last_tick: AtomicU64,
    #[cfg(test)]
    simulated: Option<simulated::Simulated>,
}

/// 100 ns ticks between 1582-10-15 (the epoch of UUID versions 1 and 6) and 1970.
const GREGORIAN_TICKS: u64 = 0x01b2_1dd2_1381_4000;

impl Clock {
    /// A clock that is off by so many microseconds.
    pub fn skewed(skew_us: i64) -> Clock {
        Clock { skew_us, ..Clock::default() }
    }

    pub fn now(&self) -> Timestamp {
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return Timestamp(simulated.now().saturating_add(self.skew_us));
        }
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        Timestamp(i64::try_from(micros).unwrap_or(i64::MAX).saturating_add(self.skew_us))
    }

    /// For measuring durations.
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    pub fn new_run_id(&self) -> Uuid {
        #[cfg(test)]
        if self.simulated.is_some() {
            return self.new_uuid();
        }
        Uuid::now_v7()
    }

    pub fn new_thread_id(&self) -> Uuid {
        self.new_run_id()
    }

    pub fn new_uuid(&self) -> Uuid {
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return simulated.new_uuid();
        }
        Uuid::new_v4()
    }

    /// A fraction in `0..1`, for jitter.
    pub fn random_fraction(&self) -> f64 {
        (self.new_uuid().as_u128() >> 64) as u64 as f64 / u64::MAX as f64
    }

    /// A new checkpoint id and its time: UUID version 6, so that ids sort by age as text; later than every id this
    /// process made and than `newest`, whatever the machine's clock says. The clock sequence carries the step, as in the
    /// reference (engine specification, section 1.9).
    pub fn new_checkpoint_id(&self, step: i64, newest: Option<&str>) -> (CheckpointId, Timestamp) {
        let now = (self.now().0.max(0) as u64) * 10 + GREGORIAN_TICKS;
        let floor = newest.and_then(checkpoint_ticks).map_or(0, |ticks| ticks + 1);
        let mut tick = now.max(floor);
        let mut last = self.last_tick.load(Ordering::Relaxed);
        loop {
            tick = tick.max(last + 1);
            match self.last_tick.compare_exchange_weak(last, tick, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(seen) => last = seen,
            }
        }
        let node = (self.new_uuid().as_u128() & 0xffff_ffff_ffff) as u64;
        let sequence = (step & 0x3fff) as u64;
        let high = ((tick >> 12) << 16) | 0x6000 | (tick & 0xfff);
        let low = (0b10 << 62) | (sequence << 48) | node;
        let at = Timestamp(((tick - GREGORIAN_TICKS) / 10) as i64);
        (Uuid::from_u64_pair(high, low).hyphenated().to_string(), at)
    }

    /// Waits. Cancel-safe.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// The tick inside a version 6 id; `None` for foreign ids.
fn checkpoint_ticks(id: &str) -> Option<u64> {
    let uuid = Uuid::try_parse(id).ok().filter(|uuid| uuid.get_version_num() == 6)?;
    let high = uuid.as_u64_pair().0;
    Some(((high >> 16) << 12) | (high & 0xfff))
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clock with a skew of {} us", self.skew_us)
    }
}

#[cfg(test)]
mod simulated {
    //! A made-up time, which goes by as that of a paused async runtime does, and ids that follow from a seed.

    use std::sync::{Mutex, PoisonError};

    use tokio::time::Instant;
    use uuid::Uuid;

    use super::Clock;

    /// When made-up time begins: a day in November 2023.
    const BEGIN_US: i64 = 1_700_000_000_000_000;

    #[derive(Debug)]
    pub(super) struct Simulated {
        began: Instant,
        dice: Mutex<Dice>,
    }

    impl Clock {
        /// The clock of a machine in a simulation that began then. It is off by so many microseconds.
        pub(crate) fn simulated(began: Instant, skew_us: i64, dice: Dice) -> Clock {
            Clock { skew_us, simulated: Some(Simulated { began, dice: Mutex::new(dice) }), ..Clock::default() }
        }
    }

    impl Simulated {
        pub(super) fn now(&self) -> i64 {
            BEGIN_US.saturating_add(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
        }

        pub(super) fn new_uuid(&self) -> Uuid {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            let (high, low) = (dice.next(), dice.next());
            uuid::Builder::from_random_bytes(Uuid::from_u64_pair(high, low).into_bytes()).into_uuid()
        }
    }

    /// Random numbers that follow from a seed (SplitMix64).
    #[derive(Debug, Clone)]
    pub(crate) struct Dice(u64);

    impl Dice {
        pub(crate) fn new(seed: u64) -> Dice {
            Dice(seed)
        }

        pub(crate) fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }
    }
}

#[cfg(test)]
pub(crate) use simulated::Dice;

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn checkpoint_ids_grow_even_behind_a_slow_clock() {
        let ahead = Clock::skewed(3_600_000_000);
        let behind = Clock::skewed(-3_600_000_000);
        let (first, at_first) = ahead.new_checkpoint_id(-1, None);
        let (second, at_second) = behind.new_checkpoint_id(0, Some(&first));
        let (third, _) = behind.new_checkpoint_id(1, Some(&second));
        assert!(first < second && second < third, "{first} {second} {third}");
        assert!(at_first <= at_second);
        assert!(first[19..].starts_with("bfff"), "{first}");
        assert!(second[19..].starts_with("8000"), "{second}");
        assert_eq!(&second[14..15], "6");
    }
}
