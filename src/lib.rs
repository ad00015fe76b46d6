//! doc
pub mod clock;
pub mod engine;
pub mod graph;
pub mod http;
pub mod model;
pub mod runtime;
pub mod storage;
