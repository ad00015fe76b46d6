//! Is there a serial order? The search of Wing and Gong with Lowe's memory of what was tried: operations have a beginning
//! and an end in real time, a model says what each may do in which state, and the answer is an order that keeps real time
//! and the model, or that there is none.
//!
//! A model may say of an operation that it is best done at once, or that nothing is lost by doing it later. That is what
//! keeps the search short for histories that have no order: without it, all subsets of what may be done early are tried.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// States tried before the question is given up: a hundred times what the histories of these tests take.
const BUDGET: usize = 200_000;

/// An operation with what it answered, and when it began and ended.
#[derive(Debug, Clone)]
pub(super) struct Timed<O> {
    pub(super) op: O,
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// When an operation is to be tried. Must not cost an order that there is otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// As soon as it can be: then nothing else is tried in its place.
    AtOnce,
    Possibly,
    /// [`When::Possibly`], and of several with the same number the one that ends first will do.
    FirstOf(u8),
    /// Whatever order begins with it, another one has it later.
    Later,
}

/// What may be done.
pub(super) trait Model {
    type Op;
    type State: Clone + Eq + Hash;

    /// The state after an operation, or `None` where it cannot have answered as it did.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// Whether to try it there. `due`: of what is left, what ended first; nothing that begins later can come before it.
    /// `is_due`: it is among them.
    fn when(&self, state: &Self::State, op: &Self::Op, is_due: bool, due: &[&Self::Op]) -> When;
}

/// What the search found out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Indexes of operations, in an order that explains all answers.
    Serial(Vec<usize>),
    /// There is none. The longest beginning of one that was found, and what could not be explained then.
    None { explained: Vec<usize>, left: Vec<usize> },
}

/// One decision on the way.
struct Choice<S> {
    state: S,
    /// What may still be tried there, the best last.
    untried: Vec<usize>,
}

/// Finds an order. Operations are tried in the order in which they are given; where it is close to the true one, the
/// search hardly ever turns back. Also how many states it took.
pub(super) fn serial_order<M: Model>(model: &M, history: &[Timed<M::Op>], start: M::State) -> (Verdict, usize) {
    let mut tried: HashSet<(Vec<u64>, M::State)> = HashSet::new();
    let mut done = vec![0_u64; history.len().div_ceil(64)];
    let (mut order, mut furthest): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut choices = vec![Choice { untried: candidates(model, history, &done, &start), state: start }];
    while order.len() < history.len() {
        let Some(choice) = choices.last_mut() else {
            let left = (0..history.len()).filter(|index| !furthest.contains(index)).collect();
            return (Verdict::None { explained: furthest, left }, tried.len());
        };
        let Some(index) = choice.untried.pop() else {
            // A dead end: the choice that led here was wrong.
            choices.pop();
            if let Some(index) = order.pop() {
                flip(&mut done, index);
            }
            continue;
        };
        let Some(state) = model.step(&choice.state, &history[index].op) else { continue };
        flip(&mut done, index);
        if !tried.insert((done.clone(), state.clone())) {
            flip(&mut done, index);
            continue;
        }
        assert!(tried.len() < BUDGET, "undecided after {BUDGET} states");
        order.push(index);
        if order.len() > furthest.len() {
            furthest.clone_from(&order);
        }
        choices.push(Choice { untried: candidates(model, history, &done, &state), state });
    }
    (Verdict::Serial(order), tried.len())
}

fn has(done: &[u64], index: usize) -> bool {
    done[index / 64] >> (index % 64) & 1 == 1
}

fn flip(done: &mut [u64], index: usize) {
    done[index / 64] ^= 1 << (index % 64);
}

/// What may come next, the best last.
fn candidates<M: Model>(model: &M, history: &[Timed<M::Op>], done: &[u64], state: &M::State) -> Vec<usize> {
    let open = (0..history.len()).filter(|index| !has(done, *index));
    let Some(first_end) = open.clone().map(|index| history[index].end).min() else { return Vec::new() };
    let due: Vec<&M::Op> =
        open.clone().filter(|index| history[*index].end == first_end).map(|index| &history[index].op).collect();
    let mut possible = Vec::new();
    let mut firsts: HashMap<u8, usize> = HashMap::new();
    // Whatever has ended comes before what has not begun.
    for index in open.filter(|index| history[*index].begin <= first_end) {
        let timed = &history[index];
        match model.when(state, &timed.op, timed.end == first_end, &due) {
            When::AtOnce if model.step(state, &timed.op).is_some() => return vec![index],
            When::Later => {}
            When::AtOnce | When::Possibly => possible.push(index),
            When::FirstOf(number) => {
                let first = firsts.entry(number).or_insert(index);
                if timed.end < history[*first].end {
                    *first = index;
                }
            }
        }
    }
    possible.extend(firsts.into_values());
    possible.sort_unstable_by(|a, b| b.cmp(a));
    possible
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

    struct Register;

    impl Model for Register {
        type Op = Op;
        type State = u8;

        fn step(&self, state: &u8, op: &Op) -> Option<u8> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read(value) => (value == state).then_some(*state),
            }
        }

        fn when(&self, _: &u8, op: &Op, _: bool, _: &[&Op]) -> When {
            if matches!(op, Op::Read(_)) { When::AtOnce } else { When::Possibly }
        }
    }

    fn judged(history: &[(Op, u64, u64)]) -> Verdict {
        let history: Vec<Timed<Op>> =
            history.iter().map(|(op, begin, end)| Timed { op: op.clone(), begin: *begin, end: *end }).collect();
        serial_order(&Register, &history, 0).0
    }

    fn is_serial(history: &[(Op, u64, u64)]) -> bool {
        matches!(judged(history), Verdict::Serial(_))
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

    #[test]
    fn the_order_and_what_has_none_are_told() {
        use Op::{Read, Write};
        let history = [(Write(1), 1, 9), (Write(2), 1, 9), (Read(2), 2, 3), (Read(1), 4, 5)];
        assert_eq!(judged(&history), Verdict::Serial(vec![1, 2, 0, 3]));
        let history = [(Write(1), 1, 2), (Read(1), 3, 4), (Read(7), 5, 6)];
        assert_eq!(judged(&history), Verdict::None { explained: vec![0, 1], left: vec![2] });
    }
}
