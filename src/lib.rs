//! doc
pub mod engine;
pub mod graph;
pub mod graphs;
pub mod model;
pub mod storage;
