//! placeholder
#[derive(Debug)]
pub struct Channel;
#[derive(Debug)]
pub struct Updated;
