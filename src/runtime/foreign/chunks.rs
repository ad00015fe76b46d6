//! Where large values are cut: at places that their content decides, so that a list that grew by an item, or a text that
//! was edited in the middle, shares all but a few pieces with what was stored before. Nothing is known of the format.
//!
//! Of a value there are a head, pieces and a tail. Formats begin with a length, which is another one each time: the head is
//! what that spoils. The tail is what no content has ended yet: a list that grows has another one each time, too. Pieces are
//! stored once and for all; so are groups of them, by the same rule, so that a long list is not a long list of pieces.

use crate::storage::PayloadHash;

/// The longest length that a format begins with, and a little more.
const HEAD: usize = 8;
/// No piece is smaller.
const MIN: usize = 256;
/// Pieces are cut here at the latest.
const MAX: usize = 8 * 1024;
/// A cut is where so many leading bits are 0, one place in 256: pieces are about 512 bytes long.
const BITS: u32 = 8;
/// References that need no groups.
const FEW: usize = 8;
/// A group ends at one reference in so many, and has at most `MOST`.
const GROUP: u8 = 8;
const MOST: usize = 32;

/// A random number for each byte. Part of the format: other numbers would cut elsewhere and share nothing.
const GEAR: [u64; 256] = {
    let mut gear = [0; 256];
    let mut state: u64 = 0x5e55_1057_04e5_eed5;
    let mut index = 0;
    while index < 256 {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        gear[index] = mixed ^ (mixed >> 31);
        index += 1;
    }
    gear
};

/// A value taken apart: together, in order, it is the value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut<'a> {
    pub(super) head: &'a [u8],
    pub(super) pieces: Vec<&'a [u8]>,
    pub(super) tail: &'a [u8],
}

pub(super) fn cut(value: &[u8]) -> Cut<'_> {
    let (head, mut rest) = value.split_at(value.len().min(HEAD));
    let mut pieces = Vec::new();
    while let Some(at) = next_cut(rest) {
        let (piece, after) = rest.split_at(at);
        pieces.push(piece);
        rest = after;
    }
    Cut { head, pieces, tail: rest }
}

/// Where the first piece ends; `None` when nothing says so.
fn next_cut(value: &[u8]) -> Option<usize> {
    let mut hash: u64 = 0;
    for (index, byte) in value.iter().enumerate().take(MAX) {
        // The top bits depend on the last 64 bytes.
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if index + 1 >= MIN && hash >> (u64::BITS - BITS) == 0 {
            return Some(index + 1);
        }
    }
    (value.len() >= MAX).then_some(MAX)
}

/// Puts groups in the place of references, until they are few. `group` stores one and says what refers to it.
pub(super) fn grouped(
    mut level: Vec<PayloadHash>,
    mut group: impl FnMut(&[PayloadHash]) -> PayloadHash,
) -> Vec<PayloadHash> {
    let mut loose: Vec<PayloadHash> = Vec::new();
    while level.len() > FEW {
        let mut groups = Vec::new();
        let mut open = 0;
        for (index, hash) in level.iter().enumerate() {
            if hash[0].is_multiple_of(GROUP) || index + 1 - open == MOST {
                groups.push(group(&level[open..=index]));
                open = index + 1;
            }
        }
        // What no reference has ended yet comes after the groups, and before what was loose below.
        loose.splice(0..0, level.drain(open..));
        level = groups;
    }
    level.extend(loose);
    level
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    /// Text that does not repeat.
    fn text(items: std::ops::Range<u64>) -> Vec<u8> {
        items.flat_map(|n| format!("message {n}: {}; ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()).collect()
    }

    fn whole(cut: &Cut<'_>) -> Vec<u8> {
        [cut.head, &cut.pieces.concat(), cut.tail].concat()
    }

    #[test]
    fn pieces_are_bounded_and_make_up_the_value() {
        for value in [Vec::new(), vec![1], vec![7; 100_000], text(0..3000)] {
            let cut = cut(&value);
            assert_eq!(whole(&cut), value);
            assert!(cut.pieces.iter().all(|piece| (MIN..=MAX).contains(&piece.len())) && cut.tail.len() < MAX);
        }
        let average = text(0..3000).len() / cut(&text(0..3000)).pieces.len();
        assert!((350..900).contains(&average), "{average}");
    }

    #[test]
    fn what_grows_or_changes_in_the_middle_shares_its_pieces() {
        let before = text(0..3000);
        let known: HashSet<&[u8]> = cut(&before).pieces.into_iter().collect();
        let mut edited = before.clone();
        edited.splice(50_000..50_000, *b"inserted");
        // As msgpack writes the length of a list before it.
        let grown = [&b"\xdd\x00\x00\x0b\xb9"[..], &before, &text(3000..3001)].concat();
        for after in [edited, grown] {
            let new = cut(&after).pieces.into_iter().filter(|piece| !known.contains(piece)).count();
            assert!(new <= 4, "{new} new pieces");
        }
    }

    #[test]
    fn groups_keep_the_order_and_grow_at_the_end() {
        let hash = |n: u32| super::super::hash_of(&n.to_be_bytes());
        for count in [0, 5, 33, 1_000, 20_000] {
            let mut groups: HashMap<PayloadHash, Vec<PayloadHash>> = HashMap::new();
            let mut store = |parts: &[PayloadHash]| {
                let name = super::super::hash_of(&parts.concat());
                groups.insert(name, parts.to_vec());
                name
            };
            let all: Vec<PayloadHash> = (0..count).map(hash).collect();
            let few = grouped(all.clone(), &mut store);
            let before = grouped(all[..all.len().saturating_sub(1)].to_vec(), &mut store);
            let shared = few.iter().zip(&before).take_while(|(a, b)| a == b).count();
            assert!(few.len() - shared <= MOST, "all but the end stays");
            let mut open: Vec<PayloadHash> = few.into_iter().rev().collect();
            let mut flat = Vec::new();
            while let Some(next) = open.pop() {
                match groups.get(&next) {
                    Some(parts) => open.extend(parts.iter().rev()),
                    None => flat.push(next),
                }
            }
            assert_eq!(flat, all);
        }
    }
}
