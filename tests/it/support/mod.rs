//! What tests share.

pub(crate) mod server;
