//! Deflates rows of checkpoints from elsewhere, which say the same words again and again: the words are known beforehand, so
//! that a row is made small by itself, however short it is.

use std::cell::RefCell;
use std::io::{Error, ErrorKind, Result};

use miniz_oxide::deflate::core::deflate_flags::TDEFL_FORCE_ALL_STATIC_BLOCKS;
use miniz_oxide::deflate::core::{CompressorOxide, create_comp_flags_from_zip_params};
use miniz_oxide::deflate::stream::deflate;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use miniz_oxide::{MZFlush, MZStatus};

/// What rows may refer back to: the words of LangGraph's checkpoints and of LangChain's messages, the most usual last. Part of
/// the format: another dictionary is another codec.
const DICTIONARY: &[u8] = b"ToolMessage.tool\xactool_call_id\xa6status\xa7success\xa8artifact\
\xa4args\xa9tool_call\xaainput_tokens\xadoutput_tokens\xactotal_tokens\xb3input_token_details\xb4output_token_details\
finish_reason\xa4stop\xaamodel_name\xb0model_provider\xb2system_fingerprint\
SystemMessage.system\xa9AIMessageChunk.AIMessageChunk\xafadditional_kwargs\xa7Command\xa4Send\xa4node\xa3arg\
langgraph.types\xa9Interrupt\xa5value\xa2id\xb2interrupt_id__interrupt____resume____error____no_writes__\
__pregel_tasks\",\"run_id\":\"thread_id\":\"assistant_id\":\"user_id\":\"langgraph_version\":\
\"counters_since_delta_snapshot\":{\"parents\":{\"\":\"json\",\"empty\",\"bytes\",\"fork\",\"update\",\
[{\"channel\":\"branch:to:\",\"idx\":0,\"type\":\"null\",\"at\":[0,0]},{\"channel\":\"messages\",\"idx\":1,\"type\":\"msgpack\",\"at\":[0,\
\x94\xbclangchain_core.messages.tool\xabToolMessage\x94\xbelangchain_core.messages.system\xadSystemMessage\
\x81\xa8messages\x91\x92\x94\xbdlangchain_core.messages.human\xacHumanMessage\x86\xa7content\xb1additional_kwargs\x80\xb1\
response_metadata\x80\xa4type\xa5human\xa4name\xc0\xa2id\xd9$\xb3model_validate_json\
\x05\x94\xbalangchain_core.messages.ai\xa9AIMessage\x89\xa7content\xb1additional_kwargs\x80\xb1response_metadata\x80\xa4type\xa2ai\
\xa4name\xc0\xa2id\xd9$\xaatool_calls\x90\xb2invalid_tool_calls\x90\xaeusage_metadata\xc0\xb3model_validate_json\
{\"checkpoint\":{\"v\":4,\"ts\":\"2026-01-01T00:00:00.000000+00:00\",\"id\":\"1f1e\",\"channel_versions\":{\"__start__\":1,\"messages\":2,\
\"branch:to:\":2},\"versions_seen\":{\"__input__\":{},\"__start__\":{\"__start__\":1},\"branch:to:\":{\"branch:to:\":2}},\
\"updated_channels\":[\"branch:to:\",\"__start__\",\"messages\"]},\"metadata\":{\"source\":\"input\",\"step\":-1,\"source\":\"loop\",\"step\":1,\
\"parents\":{}},\"values\":{\"messages\":{\"type\":\"msgpack\",\"at\":[0,1]},\"branch:to:\":{\"type\":\"null\",\"at\":[0,0]},\
\"__start__\":{\"type\":\"msgpack\",\"hash\":\"";

/// Less than this is left as it is.
const WORTHWHILE: usize = 64;
/// Up to this size rows are deflated with the codes that the format fixes: codes of its own cost a short row as much as they
/// save, and twice the time.
const SHORT: usize = 640;
/// What one row may hold: far above what a request may bring.
const MAX_BYTES: usize = 1 << 32;
const LEVEL: i32 = 6;
/// No header: rows say what they are by their codec.
const RAW: i32 = -15;

thread_local! {
    // Making one takes longer than deflating a row, by all the memory it needs: each thread keeps them.
    static OF_SHORT: RefCell<Coder> = RefCell::new(Coder::new(TDEFL_FORCE_ALL_STATIC_BLOCKS));
    static OF_LONG: RefCell<Coder> = RefCell::new(Coder::new(0));
}

struct Coder {
    compressor: CompressorOxide,
    /// Where the dictionary goes, deflated: nobody reads it.
    known: Vec<u8>,
}

impl Coder {
    fn new(flags: u32) -> Coder {
        let flags = flags | create_comp_flags_from_zip_params(LEVEL, RAW, 0);
        Coder { compressor: CompressorOxide::new(flags), known: vec![0; 2 * DICTIONARY.len()] }
    }

    fn deflated(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.compressor.reset();
        // Flushed to the edge of a byte, the dictionary's own part can be left out.
        let primed = deflate(&mut self.compressor, DICTIONARY, &mut self.known, MZFlush::Sync);
        if primed.status.is_err() || primed.bytes_consumed < DICTIONARY.len() {
            return None;
        }
        // What does not fit here is not worth it.
        let mut small = vec![0; bytes.len() * 9 / 10];
        let ended = deflate(&mut self.compressor, bytes, &mut small, MZFlush::Finish);
        small.truncate(ended.bytes_written);
        (ended.status == Ok(MZStatus::StreamEnd)).then_some(small)
    }
}

/// Deflates what becomes smaller by it.
pub(super) fn deflated(bytes: &[u8]) -> Option<Vec<u8>> {
    match bytes.len() {
        ..WORTHWHILE => None,
        WORTHWHILE..=SHORT => OF_SHORT.with_borrow_mut(|coder| coder.deflated(bytes)),
        _ => OF_LONG.with_borrow_mut(|coder| coder.deflated(bytes)),
    }
}

pub(super) fn inflated(bytes: &[u8]) -> Result<Vec<u8>> {
    let damaged = || Error::new(ErrorKind::InvalidData, "not what was deflated");
    let mut coder = DecompressorOxide::new();
    // The dictionary stands before what refers back to it.
    let mut plain = Vec::with_capacity(DICTIONARY.len() + bytes.len() * 4);
    plain.extend_from_slice(DICTIONARY);
    plain.resize(plain.capacity(), 0);
    let (mut taken, mut end) = (0, DICTIONARY.len());
    loop {
        let rest = bytes.get(taken..).ok_or_else(damaged)?;
        let (status, read, written) =
            decompress(&mut coder, rest, &mut plain, end, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF);
        taken += read;
        end += written;
        match status {
            TINFLStatus::Done => {
                plain.truncate(end);
                return Ok(plain.split_off(DICTIONARY.len()));
            }
            TINFLStatus::HasMoreOutput if plain.len() < MAX_BYTES => plain.resize(plain.len() * 2, 0),
            _ => return Err(damaged()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deflated_comes_back() {
        let words = b"the same words again ".repeat(5_000);
        let row = br#"{"checkpoint":{"v":4,"ts":"2026-11-27T00:25:55.122155+00:00","id":"1f1e9f91-c020-6ff2-8022-ebbcffde4f7e"}}"#;
        for bytes in [&words[..], &row[..], &[0; 100_000], DICTIONARY] {
            let small = deflated(bytes).expect("smaller");
            assert!(small.len() < bytes.len() * 9 / 10);
            assert_eq!(inflated(&small).expect("reads"), bytes);
        }
        assert!(deflated(&row[..40]).is_none(), "too short");
        let noise: Vec<u8> = (0..500_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        assert!(deflated(&noise).is_none());
    }

    #[test]
    fn a_row_of_today_is_read_for_ever() {
        let row =
            br#"{"metadata":{"source":"loop","step":7,"parents":{}},"values":{"count":{"type":"msgpack","at":[0,1]}}}"#;
        let kept = include_bytes!("deflated_row.bin");
        assert_eq!(inflated(kept).expect("reads"), row);
    }

    #[test]
    fn damage_is_told() {
        let small = deflated(&b"the same words again ".repeat(500)).expect("smaller");
        for bytes in [&[][..], &[0xff; 9], &small[..small.len() / 2], &small[..1]] {
            assert!(inflated(bytes).is_err());
        }
    }
}
