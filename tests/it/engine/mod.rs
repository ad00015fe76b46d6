//! The pure engine as a whole: properties that hold for every graph, over graphs and crashes made at random.
//!
//! Cases are the same in every run; `PROPTEST_RNG_SEED=.. PROPTEST_CASES=..` tries others. A failure prints the smallest
//! plan that shows it.

mod plan;
mod properties;
mod pruned;
mod world;
