//! From a database URL to a backend.
