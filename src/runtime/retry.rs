//! When a failed task is tried again: its policies, as a function of the failure and the attempt.

use std::time::Duration;

use crate::engine::EngineError;
use crate::graph::RetryPolicy;

/// How long to wait after a failed attempt (1 is the first); `None`: no more attempts. The first policy that holds for
/// the failure decides; `random` is below 1.
pub(super) fn after(
    policies: &[RetryPolicy],
    error: &EngineError,
    attempt: u32,
    random: impl FnOnce() -> f64,
) -> Option<Duration> {
    let policy = policies.iter().find(|policy| (policy.retry_on)(error))?;
    if attempt >= policy.max_attempts {
        return None;
    }
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds = policy.initial_interval.as_secs_f64() * policy.backoff_factor.powi(exponent);
    // Negative, infinite or no number at all, with factors nobody should choose.
    let wait = Duration::try_from_secs_f64(seconds).unwrap_or(policy.max_interval).min(policy.max_interval);
    let jitter = if policy.jitter { Duration::from_secs_f64(random()) } else { Duration::ZERO };
    Some(wait.saturating_add(jitter))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn failure(class: &str) -> EngineError {
        EngineError::new(class, "no")
    }

    fn steady() -> RetryPolicy {
        RetryPolicy { jitter: false, max_attempts: u32::MAX, ..RetryPolicy::default() }
    }

    /// Holds for one class only.
    fn only(class: &'static str, policy: RetryPolicy) -> RetryPolicy {
        RetryPolicy { retry_on: Arc::new(move |error| error.class == class), ..policy }
    }

    fn waits(policy: &RetryPolicy, attempts: impl IntoIterator<Item = u32>) -> Vec<Option<Duration>> {
        let policies = std::slice::from_ref(policy);
        attempts.into_iter().map(|attempt| after(policies, &failure("Busy"), attempt, || 0.0)).collect()
    }

    #[test]
    fn waits_grow_up_to_their_bound() {
        let seconds = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 128.0];
        let expected: Vec<_> = seconds.map(|wait| Some(Duration::from_secs_f64(wait))).into();
        assert_eq!(waits(&steady(), 1..=10), expected);
        assert_eq!(waits(&steady(), [5_000, u32::MAX - 1]), [Some(Duration::from_secs(128)); 2]);
        let small = RetryPolicy { max_interval: Duration::from_millis(700), ..steady() };
        assert_eq!(waits(&small, 1..=3), [500, 700, 700].map(|millis| Some(Duration::from_millis(millis))));
        let even = RetryPolicy { backoff_factor: 1.0, ..steady() };
        assert_eq!(waits(&even, [1, 2, 50]), [Some(Duration::from_millis(500)); 3]);
    }

    #[test]
    fn attempts_are_counted_with_the_first() {
        let some = |policy: &RetryPolicy| -> Vec<bool> { waits(policy, 1..=4).iter().map(Option::is_some).collect() };
        assert_eq!(some(&RetryPolicy::default()), [true, true, false, false]);
        assert_eq!(some(&RetryPolicy { max_attempts: 1, ..steady() }), [false; 4]);
        assert_eq!(after(&[], &failure("Busy"), 1, || 0.0), None, "without a policy");
        assert_eq!(after(&[steady()], &failure("ValueError"), 1, || 0.0), None, "what would only repeat");
    }

    #[test]
    fn jitter_adds_less_than_a_second() {
        let jittered = RetryPolicy { max_interval: Duration::from_secs(1), ..RetryPolicy::default() };
        for (random, expected) in [(0.0, 500), (0.25, 750), (0.999, 1499)] {
            let wait = after(std::slice::from_ref(&jittered), &failure("Busy"), 1, || random);
            assert_eq!(wait.map(|wait| wait.as_millis()), Some(expected), "{random}");
        }
        let wait = after(&[jittered], &failure("Busy"), 2, || 0.999);
        assert_eq!(wait, Some(Duration::from_millis(1999)), "the bound is that of the wait without it");
        after(&[steady()], &failure("Busy"), 1, || panic!("without jitter nothing is thrown"));
    }

    #[test]
    fn the_first_policy_that_holds_decides() {
        let seconds = |n: u64| RetryPolicy { initial_interval: Duration::from_secs(n), ..steady() };
        let once = RetryPolicy { max_attempts: 1, ..seconds(1) };
        let policies = [only("Never", once), only("Busy", seconds(2)), seconds(3), only("Busy", seconds(4))];
        let wait = |class: &str| after(&policies, &failure(class), 1, || 0.0).map(|wait| wait.as_secs());
        assert_eq!(wait("Busy"), Some(2));
        assert_eq!(wait("Other"), Some(3));
        assert_eq!(wait("Never"), None, "a later policy would try it again, but is not asked");
        assert_eq!(wait("ValueError"), None);
    }

    #[test]
    fn factors_nobody_should_choose_do_no_harm() {
        for backoff_factor in [-2.0, f64::NAN, f64::INFINITY] {
            let odd = RetryPolicy { backoff_factor, max_interval: Duration::from_secs(5), ..steady() };
            let waits = waits(&odd, 1..=4);
            assert!(waits.iter().all(|wait| wait.is_some_and(|wait| wait <= Duration::from_secs(5))), "{waits:?}");
        }
        let endless = RetryPolicy {
            max_interval: Duration::MAX,
            ..RetryPolicy { max_attempts: u32::MAX, ..RetryPolicy::default() }
        };
        assert_eq!(after(&[endless], &failure("Busy"), 9_999, || 0.5), Some(Duration::MAX));
    }
}
