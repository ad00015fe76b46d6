//! doc
pub mod clock;
pub mod engine;
pub mod graph;
pub mod graphs;
pub mod model;
pub mod runtime;
pub mod storage;
