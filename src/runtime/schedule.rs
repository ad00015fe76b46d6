//! When a cron's ticks are: five fields read in an IANA time zone. Pure: the caller says what time it is.
//!
//! Where clocks change: a tick inside the hour that is skipped comes at the first moment after it, once; a tick with a
//! fixed hour inside the hour that is repeated comes once, the first time; one that comes every hour comes in both.

use chrono::{DateTime, TimeZone as _, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::model::Timestamp;

/// The longest schedule and time zone that are looked at.
const MAX_TEXT: usize = 256;

/// A schedule in its time zone.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    cron: Cron,
    zone: Tz,
}

impl Schedule {
    /// Reads both texts. The error names the field and the rule.
    pub(crate) fn parse(schedule: &str, timezone: Option<&str>) -> Result<Schedule, String> {
        let five = "five fields, as in '0 9 * * 1-5': minute, hour, day of the month, month, day of the week";
        if schedule.len() > MAX_TEXT || schedule.split_whitespace().count() != 5 {
            return Err(format!("schedule: expected {five}"));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        // The parser upper-cases and adds fields; it sees exactly five.
        let cron = parser.parse(schedule).map_err(|error| format!("schedule: expected {five}: {error}"))?;
        let zone = match timezone {
            None => Tz::UTC,
            Some(name) => name
                .chars()
                .take(MAX_TEXT)
                .collect::<String>()
                .parse()
                .map_err(|_| "timezone: expected the name of an IANA time zone, as in Europe/Berlin".to_owned())?,
        };
        Ok(Schedule { cron, zone })
    }

    /// The first tick later than `at`; `None` when there is none in any year to come.
    pub(crate) fn after(&self, at: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&self.local(at)?, false).ok()?;
        Some(Timestamp(next.timestamp_micros()))
    }

    /// The last tick that is not later than `at`.
    pub(crate) fn latest(&self, at: Timestamp) -> Option<Timestamp> {
        let previous = self.cron.find_previous_occurrence(&self.local(at)?, true).ok()?;
        Some(Timestamp(previous.timestamp_micros()))
    }

    fn local(&self, at: Timestamp) -> Option<DateTime<Tz>> {
        let at = DateTime::<Utc>::from_timestamp_micros(at.0)?;
        Some(self.zone.from_utc_datetime(&at.naive_utc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).expect("a time")
    }

    fn schedule(schedule: &str, zone: &str) -> Schedule {
        Schedule::parse(schedule, Some(zone)).expect("valid")
    }

    /// The next `n` ticks in UTC, without the date's year.
    fn ticks(schedule: &Schedule, from: &str, n: usize) -> Vec<String> {
        let mut now = at(from);
        (0..n)
            .map(|_| {
                now = schedule.after(now).expect("a tick");
                now.to_iso()[5..16].to_owned()
            })
            .collect()
    }

    #[test]
    fn only_five_fields_and_known_zones_are_schedules() {
        for (text, zone) in [("*/5 * * * *", None), ("0 9 * * MON-FRI", Some("Europe/Berlin")), ("0 0 L * *", None)] {
            assert!(Schedule::parse(text, zone).is_ok(), "{text} {zone:?}");
        }
        for text in ["", "* * * *", "0 * * * * *", "* * * * * * *", "@daily", "61 * * * *", "a b c d e", "*/0 * * * *"]
        {
            let error = Schedule::parse(text, None).expect_err(text);
            assert!(error.starts_with("schedule: "), "{error}");
        }
        for zone in ["", "Mars/Olympus", "+02:00", "europe"] {
            let error = Schedule::parse("* * * * *", Some(zone)).expect_err(zone);
            assert!(error.starts_with("timezone: "), "{error}");
        }
        assert_eq!(Schedule::parse("0 0 30 2 *", None).expect("readable").after(at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn ticks_follow_the_zone() {
        let berlin = schedule("0 9 * * *", "Europe/Berlin");
        assert_eq!(ticks(&berlin, "2026-03-28T00:00:00Z", 2), ["03-28T08:00", "03-29T07:00"]);
        assert_eq!(berlin.latest(at("2026-03-29T07:00:00Z")), Some(at("2026-03-29T07:00:00Z")));
        assert_eq!(berlin.latest(at("2026-03-29T06:59:59.999999Z")), Some(at("2026-03-28T08:00:00Z")));
    }

    #[test]
    fn a_tick_in_the_skipped_hour_comes_right_after_it_and_once() {
        // 2026-03-29 in Berlin: 02:00 becomes 03:00, at 01:00 UTC.
        let nightly = schedule("30 2 * * *", "Europe/Berlin");
        assert_eq!(ticks(&nightly, "2026-03-28T12:00:00Z", 2), ["03-29T01:00", "03-30T00:30"]);
        // Walking back meets the same ticks: what a restart makes up for is what was due.
        assert_eq!(nightly.latest(at("2026-03-29T05:00:00Z")), Some(at("2026-03-29T01:00:00Z")));
    }

    #[test]
    fn a_tick_in_the_repeated_hour_comes_once_and_an_hourly_one_in_both() {
        // 2026-10-25 in Berlin: 03:00 becomes 02:00, at 01:00 UTC.
        let nightly = schedule("30 2 * * *", "Europe/Berlin");
        assert_eq!(ticks(&nightly, "2026-10-24T12:00:00Z", 2), ["10-25T00:30", "10-26T01:30"]);
        let hourly = schedule("30 * * * *", "Europe/Berlin");
        assert_eq!(ticks(&hourly, "2026-10-25T00:00:00Z", 3), ["10-25T00:30", "10-25T01:30", "10-25T02:30"]);
    }
}
