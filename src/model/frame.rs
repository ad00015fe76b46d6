//! Frames: a JSON header with bytes behind it. The length of the header comes first, in 4 bytes, little endian.

/// Joins a header and its bytes.
pub fn join(header: &str, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(4 + header.len() + bytes.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(header.as_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// Takes a frame apart. The error says what is wrong with it.
pub fn split(frame: &[u8]) -> Result<(&str, &[u8]), &'static str> {
    let (length, rest) = frame.split_first_chunk::<4>().ok_or("a frame begins with the length of its header")?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (header, bytes) = rest.split_at_checked(length).ok_or("the frame is shorter than its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "the header of the frame is not UTF-8")?;
    Ok((header, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_apart_as_they_were_joined() {
        assert_eq!(split(&join("{}", b"\xff\x00")), Ok(("{}", &b"\xff\x00"[..])));
        for bad in [&b""[..], b"\x01\x00\x00", b"\x05\x00\x00\x00{}", b"\x01\x00\x00\x00\xff"] {
            assert!(split(bad).is_err(), "{bad:?}");
        }
    }
}
