//! What handlers read of a request: the names of members and parameters they ask for, whether or not they are there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::mem::take;

/// Names that were asked for. Elements of lists are `name[]`, members of members `name.name`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) members: BTreeSet<String>,
    pub(super) parameters: BTreeSet<String>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

pub(in crate::http) fn member(name: &str) {
    let mut shown = String::new();
    let mut is_index = false;
    for c in name.chars() {
        is_index = (is_index || c == '[') && c != ']';
        if !is_index || c == '[' {
            shown.push(c);
        }
    }
    SEEN.with_borrow_mut(|seen| seen.members.insert(shown));
}

pub(in crate::http) fn parameter(name: &str) {
    SEEN.with_borrow_mut(|seen| seen.parameters.insert(name.to_owned()));
}

/// What this thread has seen since the last time.
pub(super) fn seen() -> Seen {
    SEEN.with_borrow_mut(take)
}
