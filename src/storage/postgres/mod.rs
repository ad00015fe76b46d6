//! Postgres.

use super::Result;
use super::connect::ConnectOptions;

pub(super) struct PostgresStorage;
