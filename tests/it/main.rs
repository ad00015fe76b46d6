//! The one integration test binary: features at their boundary, for real.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod storage;
mod support;
