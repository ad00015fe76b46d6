//! Is there a serial order? The algorithm of Wing and Gong with Lowe's memory of what was tried: operations have a
//! beginning and an end in real time, a model says what each may do in which state, and the answer is an order that keeps
//! real time and the model, or that there is none.

use std::collections::HashSet;
use std::hash::Hash;

/// States tried before the question is given up: far more than a history that is in order takes.
const BUDGET: usize = 2_000_000;

/// An operation with what it answered, and when it began and ended.
#[derive(Debug, Clone)]
pub(super) struct Timed<O> {
    pub(super) op: O,
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// Finds an order; `None` when there is none. `step`: the state after an operation, or `None` where it cannot have
/// answered as it did. Operations are tried in the order in which they are given; one that leaves the state as it is and
/// `only_looks` is best done as soon as it may be, so that nothing else is tried in its place.
pub(super) fn serial_order<O, S: Clone + Eq + Hash>(
    history: &[Timed<O>],
    start: S,
    step: impl Fn(&S, &O) -> Option<S>,
    only_looks: impl Fn(&O) -> bool,
) -> Option<Vec<usize>> {
    let mut tried: HashSet<(Vec<u64>, S)> = HashSet::new();
    let mut done = vec![0_u64; history.len().div_ceil(64)];
    let mut order: Vec<usize> = Vec::new();
    let mut states = vec![start];
    let mut next = vec![0_usize];
    let has = |done: &[u64], index: usize| done[index / 64] >> (index % 64) & 1 == 1;
    loop {
        if order.len() == history.len() {
            return Some(order);
        }
        assert!(tried.len() < BUDGET, "undecided after {BUDGET} states");
        // Whatever has ended comes before what has not begun.
        let open = (0..history.len()).filter(|index| !has(&done, *index));
        let first_end = open.clone().map(|index| history[index].end).min().expect("something is open");
        let depth = order.len();
        let found =
            open.filter(|index| *index >= next[depth] && history[*index].begin <= first_end).find_map(|index| {
                let state = step(&states[depth], &history[index].op)?;
                let mut after = done.clone();
                after[index / 64] |= 1 << (index % 64);
                tried.insert((after.clone(), state.clone())).then_some((index, state, after))
            });
        match found {
            Some((index, state, after)) => {
                next[depth] = if only_looks(&history[index].op) { usize::MAX } else { index + 1 };
                order.push(index);
                states.push(state);
                next.push(0);
                done = after;
            }
            None => {
                // A dead end: the last choice was wrong.
                let index = order.pop()?;
                states.pop();
                next.pop();
                done[index / 64] &= !(1 << (index % 64));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: writes, and reads that saw a value.
    #[derive(Debug, Clone)]
    enum Op {
        Write(u8),
        Read(u8),
    }

    fn is_serial(history: &[(Op, u64, u64)]) -> bool {
        let history: Vec<Timed<Op>> =
            history.iter().map(|(op, begin, end)| Timed { op: op.clone(), begin: *begin, end: *end }).collect();
        let step = |state: &u8, op: &Op| match op {
            Op::Write(value) => Some(*value),
            Op::Read(value) => (value == state).then_some(*state),
        };
        serial_order(&history, 0, step, |op| matches!(op, Op::Read(_))).is_some()
    }

    #[test]
    fn registers_are_judged_by_real_time() {
        use Op::{Read, Write};
        assert!(is_serial(&[(Write(1), 1, 2), (Read(1), 3, 4)]));
        assert!(!is_serial(&[(Write(1), 1, 2), (Read(0), 3, 4)]), "a stale read");
        assert!(is_serial(&[(Write(1), 1, 5), (Read(0), 3, 4)]), "the write may have come later");
        assert!(is_serial(&[(Write(1), 1, 9), (Write(2), 1, 9), (Read(2), 2, 3), (Read(1), 4, 5)]));
        assert!(!is_serial(&[(Write(1), 1, 9), (Read(1), 2, 3), (Read(0), 4, 5)]), "back in time");
    }
}
