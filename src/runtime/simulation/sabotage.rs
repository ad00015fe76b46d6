//! Faults that the database must not have. A simulation over one that has them must fail: that shows that it can.

use crate::storage::{CancelRequest, StepCommit};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sabotage {
    #[default]
    None,
    /// Whoever once had a run may write.
    FenceIsOff,
    /// Runs are taken from those who execute them.
    LeasesAreIgnored,
    /// Nobody takes over what the dead left.
    NothingIsRecovered,
    /// A commit is confirmed, but what it held is not there.
    CommitsAreHalf,
    /// An input that was spent is given again.
    InputIsForgotten,
    /// Cancel flags do not reach the worker.
    CancelsAreForgotten,
}

impl Sabotage {
    pub(super) const ALL: [Sabotage; 6] = [
        Sabotage::FenceIsOff,
        Sabotage::LeasesAreIgnored,
        Sabotage::NothingIsRecovered,
        Sabotage::CommitsAreHalf,
        Sabotage::InputIsForgotten,
        Sabotage::CancelsAreForgotten,
    ];

    /// Whether a running run is claimable.
    pub(super) fn takes_over(self, lease_until: i64, now: i64) -> bool {
        match self {
            Sabotage::LeasesAreIgnored => true,
            Sabotage::NothingIsRecovered => false,
            _ => lease_until <= now,
        }
    }

    pub(super) fn keeps_rows(self, step: &StepCommit) -> bool {
        self != Sabotage::CommitsAreHalf || step.end.is_none()
    }

    pub(super) fn is_told(self, cancel: Option<CancelRequest>) -> Option<CancelRequest> {
        cancel.filter(|_| self != Sabotage::CancelsAreForgotten)
    }
}
