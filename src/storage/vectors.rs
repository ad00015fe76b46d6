//! Vectors of items: their bytes, how near two of them are, and the nearest of many. The search is exact and the same on
//! every backend: a backend streams the vectors that may match past [`Nearest`], which holds no more than the page
//! and what comes before it.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use uuid::Uuid;

use super::Page;

/// Numbers multiplied side by side, so that the processor's wide registers are used.
const LANES: usize = 8;

/// The column form: 32 bits each, little-endian.
pub(crate) fn bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The numbers of the column form.
pub(crate) fn numbers(stored: &[u8]) -> impl Iterator<Item = f32> {
    stored.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number))
}

/// The cosine of the angle between two vectors of length 1, one of them in its column form. `None` when they differ in
/// their number of dimensions.
pub(crate) fn nearness(query: &[f32], stored: &[u8]) -> Option<f32> {
    let (numbers, odd) = stored.as_chunks::<4>();
    if numbers.len() != query.len() || !odd.is_empty() {
        return None;
    }
    let (wide, rest) = query.as_chunks::<LANES>();
    let (wide_stored, rest_stored) = numbers.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (ours, theirs) in wide.iter().zip(wide_stored) {
        for lane in 0..LANES {
            sums[lane] += ours[lane] * f32::from_le_bytes(theirs[lane]);
        }
    }
    let rest: f32 = rest.iter().zip(rest_stored).map(|(ours, theirs)| ours * f32::from_le_bytes(*theirs)).sum();
    Some((sums.iter().sum::<f32>() + rest).clamp(-1.0, 1.0))
}

/// The key of an item among all tenants, as its columns have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) key: String,
    pub(crate) tenant: Uuid,
}

/// An item and what decides its place: the nearest first, then the latest, then by key.
#[derive(Debug, Clone)]
struct Ranked {
    score: f32,
    updated_at: i64,
    key: Key,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = other.score.total_cmp(&self.score);
        by_score.then_with(|| other.updated_at.cmp(&self.updated_at)).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// The nearest items so far. An item with several vectors is as near as the nearest of them.
#[derive(Debug)]
pub(crate) struct Nearest {
    room: usize,
    best: BTreeSet<Ranked>,
    /// What the items of `best` are there with.
    held: HashMap<Key, (f32, i64)>,
}

impl Nearest {
    /// For one page and all before it.
    pub(crate) fn until(page: Page) -> Nearest {
        let room = usize::try_from(page.offset.saturating_add(page.limit).max(0)).unwrap_or(usize::MAX);
        Nearest { room, best: BTreeSet::new(), held: HashMap::new() }
    }

    /// Whether a vector this near may change anything.
    pub(crate) fn may_take(&self, score: f32) -> bool {
        self.best.len() < self.room || self.best.last().is_some_and(|worst| score.total_cmp(&worst.score).is_ge())
    }

    /// Takes one vector of an item.
    pub(crate) fn take(&mut self, score: f32, updated_at: i64, key: Key) {
        if let Some((held, at)) = self.held.get(&key) {
            if score.total_cmp(held).is_le() {
                return;
            }
            self.best.remove(&Ranked { score: *held, updated_at: *at, key: key.clone() });
        }
        self.held.insert(key.clone(), (score, updated_at));
        self.best.insert(Ranked { score, updated_at, key });
        if self.best.len() > self.room
            && let Some(worst) = self.best.pop_last()
        {
            self.held.remove(&worst.key);
        }
    }

    /// The page, and the page of the items without a vector that fills it up.
    pub(crate) fn page(self, page: Page) -> (Vec<(Key, f32)>, Page) {
        let count = i64::try_from(self.best.len()).unwrap_or(i64::MAX);
        let skipped = usize::try_from(page.offset.max(0)).unwrap_or(usize::MAX);
        let found: Vec<(Key, f32)> =
            self.best.into_iter().skip(skipped).map(|ranked| (ranked.key, ranked.score)).collect();
        let left = page.limit - i64::try_from(found.len()).unwrap_or(i64::MAX);
        (found, Page { limit: left.max(0), offset: (page.offset - count).max(0) })
    }
}

/// A score among others.
#[derive(Debug, Clone, Copy)]
struct Score(f32);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

/// The items that may be among the nearest, when somebody else has computed how near they are: whose sum of the same
/// products was rounded in another order. Each item comes once, best those with the highest scores first.
#[derive(Debug)]
pub(crate) struct Candidates {
    room: usize,
    margin: f32,
    /// The highest scores, as many as there is room.
    best: BinaryHeap<Reverse<Score>>,
    found: Vec<(f32, Key)>,
}

/// How far two sums of the products of unit vectors may lie apart that were rounded in different orders: each is off by at
/// most `dims` roundings of 2^-24, and both are taken twice, for the rounding of what is compared.
pub(crate) fn margin(dims: usize) -> f32 {
    dims as f32 / (1 << 22) as f32
}

impl Candidates {
    /// For one page and all before it.
    pub(crate) fn until(page: Page, dims: usize) -> Candidates {
        let room = usize::try_from(page.offset.saturating_add(page.limit).max(0)).unwrap_or(usize::MAX);
        Candidates { room, margin: margin(dims), best: BinaryHeap::new(), found: Vec::new() }
    }

    /// The lowest score that may matter.
    fn least(&self) -> f32 {
        match self.best.peek() {
            Some(Reverse(Score(worst))) if self.best.len() >= self.room => worst - self.margin,
            _ if self.room == 0 => f32::INFINITY,
            _ => f32::NEG_INFINITY,
        }
    }

    pub(crate) fn may_take(&self, score: f32) -> bool {
        score >= self.least()
    }

    pub(crate) fn take(&mut self, score: f32, key: Key) {
        if !self.may_take(score) {
            return;
        }
        self.best.push(Reverse(Score(score)));
        if self.best.len() > self.room {
            self.best.pop();
        }
        self.found.push((score, key));
    }

    pub(crate) fn keys(self) -> Vec<Key> {
        let least = self.least();
        self.found.into_iter().filter(|(score, _)| *score >= least).map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "n.".into(), key: name.into(), tenant: Uuid::nil() }
    }

    fn names(nearest: Nearest, page: Page) -> (Vec<String>, Page) {
        let (found, rest) = nearest.page(page);
        (found.into_iter().map(|(key, _)| key.key).collect(), rest)
    }

    #[test]
    fn nearness_is_the_sum_of_products_whatever_the_length() {
        for dims in [1, 7, 8, 9, 31] {
            let query: Vec<f32> = (0..dims).map(|n| if n == dims - 1 { 0.5 } else { 0.0 }).collect();
            let stored = bytes(&vec![1.0; dims]);
            assert_eq!(nearness(&query, &stored), Some(0.5), "{dims}");
            assert_eq!(nearness(&query, &stored[1..]), None);
            assert_eq!(nearness(&query, &stored[..stored.len() - 4]), None);
        }
    }

    #[test]
    fn the_nearest_come_first_and_ties_have_an_order() {
        let page = Page { limit: 3, offset: 0 };
        let mut nearest = Nearest::until(page);
        for (name, score, at) in [("b", 0.5, 1), ("a", 0.5, 1), ("newer", 0.5, 2), ("far", 0.1, 9), ("near", 0.9, 0)] {
            if nearest.may_take(score) {
                nearest.take(score, at, key(name));
            }
        }
        assert_eq!(names(nearest, page).0, ["near", "newer", "a"]);
    }

    #[test]
    fn candidates_are_those_that_rounding_may_put_among_the_nearest() {
        let of = |limit, scores: &[f32]| {
            let mut candidates = Candidates::until(Page { limit, offset: 0 }, 1 << 12);
            for (n, score) in scores.iter().enumerate() {
                candidates.take(*score, key(&n.to_string()));
            }
            candidates.keys().into_iter().map(|key| key.key).collect::<Vec<_>>()
        };
        // The margin of so many dimensions is 2^-10.
        assert_eq!(of(2, &[0.9, 0.5, 0.4995, 0.498, 0.1]), ["0", "1", "2"]);
        assert_eq!(of(2, &[0.1, 0.498, 0.4995, 0.5, 0.9]), ["2", "3", "4"]);
        assert_eq!(of(3, &[0.5, -1.0]), ["0", "1"]);
        assert!(of(0, &[0.5]).is_empty());
    }

    #[test]
    fn an_item_counts_once_with_its_nearest_vector() {
        let page = Page { limit: 2, offset: 0 };
        let mut nearest = Nearest::until(page);
        for (name, score) in [("a", 0.1), ("b", 0.2), ("c", 0.3), ("a", 0.9), ("a", 0.4), ("c", 0.2)] {
            nearest.take(score, 0, key(name));
        }
        assert_eq!(names(nearest, page).0, ["a", "c"]);
    }

    #[test]
    fn what_has_no_vector_fills_the_page() {
        let of = |limit, offset| {
            let page = Page { limit, offset };
            let mut nearest = Nearest::until(page);
            for name in ["a", "b", "c"] {
                nearest.take(0.5, 0, key(name));
            }
            let (found, rest) = names(nearest, page);
            (found.len(), rest.limit, rest.offset)
        };
        assert_eq!(of(2, 0), (2, 0, 0));
        assert_eq!(of(2, 2), (1, 1, 0));
        assert_eq!(of(2, 4), (0, 2, 1));
    }
}
