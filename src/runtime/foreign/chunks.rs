//! Where large values are cut: at places that their content decides, so that a list that grew by an item, or a text that
//! was edited in the middle, shares all but a few pieces with what was stored before. Nothing is known of the format.

/// No piece is smaller, but for the last one.
const MIN: usize = 256;
/// Pieces are cut here at the latest.
const MAX: usize = 8 * 1024;
/// A cut is where so many leading bits are 0, one place in 512: pieces are about 768 bytes long.
const BITS: u32 = 9;

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

/// The pieces of a value, in order; together they are the value.
pub(super) fn pieces(value: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = value;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(cut(rest));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// The length of the first piece.
fn cut(value: &[u8]) -> usize {
    let mut hash: u64 = 0;
    for (index, byte) in value.iter().enumerate().take(MAX) {
        // The top bits depend on the last 64 bytes.
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if index + 1 >= MIN && hash >> (u64::BITS - BITS) == 0 {
            return index + 1;
        }
    }
    value.len().min(MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Text that does not repeat.
    fn text(items: std::ops::Range<u64>) -> Vec<u8> {
        items.flat_map(|n| format!("message {n}: {}; ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()).collect()
    }

    #[test]
    fn pieces_are_bounded_and_make_up_the_value() {
        for value in [Vec::new(), vec![7; 100_000], text(0..3000)] {
            let pieces = pieces(&value);
            assert_eq!(pieces.concat(), value);
            assert!(pieces.iter().all(|piece| piece.len() <= MAX));
            assert!(pieces.iter().rev().skip(1).all(|piece| piece.len() >= MIN));
        }
        let average = text(0..3000).len() / pieces(&text(0..3000)).len();
        assert!((500..1200).contains(&average), "{average}");
    }

    #[test]
    fn what_grows_or_changes_in_the_middle_shares_its_pieces() {
        let before = text(0..3000);
        let known: HashSet<&[u8]> = pieces(&before).into_iter().collect();
        let mut edited = before.clone();
        edited.splice(50_000..50_000, *b"inserted");
        // As msgpack writes the length of a list before it.
        let grown = [&b"\xdd\x00\x00\x0b\xb9"[..], &before, &text(3000..3001)].concat();
        for after in [edited, grown] {
            let new = pieces(&after).into_iter().filter(|piece| !known.contains(piece)).count();
            assert!(new <= 4, "{new} new pieces");
        }
    }
}
