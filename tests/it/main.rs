//! The one integration test binary: features at their boundary, for real.

mod api;
mod support;
