//! doc
pub mod engine;
pub mod graph;
pub mod model;
pub mod storage;
