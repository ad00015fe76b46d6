//! Points in time as stored and as shown: microseconds since 1970, ISO-8601 with `+00:00` on the wire.

#![deny(missing_docs)]

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// Microseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Milliseconds since the epoch.
    pub fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// `2026-11-21T00:05:53.888063+00:00`, the form of the contract (section 1.1).
    pub fn to_iso(self) -> String {
        DateTime::<Utc>::from_timestamp_micros(self.0)
            .map(|at| at.to_rfc3339_opts(SecondsFormat::Micros, false))
            .unwrap_or_else(|| format!("{}us", self.0))
    }

    /// Reads any RFC 3339 time; one without an offset is UTC (Python's `isoformat()` of a naive time), and a date is where
    /// it begins.
    pub fn parse(text: &str) -> Option<Timestamp> {
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Some(Timestamp(at.timestamp_micros()));
        }
        ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
            .iter()
            .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
            .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))
            .map(|at| Timestamp(at.and_utc().timestamp_micros()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_iso())
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn prints_microseconds_and_an_offset() {
        let at = Timestamp::parse("2026-11-21T00:05:53.888063Z").expect("a time");
        assert_eq!(at.to_iso(), "2026-11-21T00:05:53.888063+00:00");
        assert_eq!(Timestamp::parse("2026-11-21T00:05:53.888063"), Some(at));
        assert_eq!(
            Timestamp::parse("2026-11-21").map(Timestamp::to_iso).as_deref(),
            Some("2026-11-21T00:00:00.000000+00:00")
        );
        for bad in ["", "soon", "2026-11-32", "2026", "2026-11-21T"] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }
}
