//! Seeded choices: the same seed makes the same ones.

use std::time::Duration;

/// A small generator (SplitMix64): good enough to choose with, and the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    /// Dice of its own for one user of the seed, so that one's choices do not depend on another's pace.
    pub(super) fn of(seed: u64, user: &str, number: usize) -> Dice {
        let mut state = seed ^ 0x5e55_1045_70e5_0000;
        for byte in user.bytes().chain(number.to_le_bytes()) {
            state = Dice(state ^ u64::from(byte)).next();
        }
        Dice(state)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 for 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to.saturating_sub(from) + 1))
    }

    /// One of `(weight, value)`; the weights may not all be 0.
    pub(super) fn weighted<T: Copy>(&mut self, choices: &[(u64, T)]) -> Option<T> {
        let total = choices.iter().map(|(weight, _)| weight).sum();
        let mut at = self.below(total);
        for (weight, value) in choices {
            if at < *weight {
                return Some(*value);
            }
            at -= weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_choices() {
        let draw = |seed| -> Vec<u64> {
            let mut dice = Dice::of(seed, "client", 3);
            (0..8).map(|_| dice.below(1000)).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let mut dice = Dice(1);
        let picks: Vec<_> = (0..100).filter_map(|_| dice.weighted(&[(1, 'a'), (0, 'b'), (3, 'c')])).collect();
        assert!(picks.contains(&'a') && picks.contains(&'c') && !picks.contains(&'b') && picks.len() == 100);
    }
}
