//! Frames on a stream.
//!
//! Each direction of a connection is one unidirectional stream:
//!
//! ```text
//! stream   = preamble frame*
//! preamble = "GDW1"                       4 bytes; sent once the other end is known and welcome
//! frame    = length (u32, little-endian)  payload of exactly that many bytes, which may be none
//! ```
//!
//! The preamble lets the dialer tell "accepted" from "handshake done, certificate about to be refused" (in TLS 1.3
//! a client is done before the server has judged it), and junk from a long frame.
//!
//! A length above the limit is refused before anything is allocated. Below the limit memory follows the bytes that
//! have arrived: at most [`BODY_RESERVE_BYTES`] or twice what arrived, whichever is more, never the length announced.

use bytes::{Buf, Bytes};

/// What each side sends first on its stream.
pub const PREAMBLE: [u8; 4] = *b"GDW1";

/// Bytes of a frame's length prefix.
pub const FRAME_HEADER_BYTES: usize = 4;

/// What a frame may reserve before its bytes have arrived.
const BODY_RESERVE_BYTES: usize = 64 * 1024;

/// Why a stream of frames is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame of {announced} bytes exceeds the limit of {max}")]
    TooLong { announced: u32, max: u32 },
}

/// The length prefix of a frame, or `None` when the frame is longer than a prefix can say.
pub(crate) fn header(frame: &[u8]) -> Option<[u8; FRAME_HEADER_BYTES]> {
    u32::try_from(frame.len()).ok().map(u32::to_le_bytes)
}

/// Cuts a stream of bytes into frames, whatever the pieces in which it arrives.
#[derive(Debug)]
pub(crate) struct Decoder {
    frame_bytes_max: u32,
    header: [u8; FRAME_HEADER_BYTES],
    header_have: usize,
    body: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new(frame_bytes_max: u32) -> Self {
        Self { frame_bytes_max, header: [0; FRAME_HEADER_BYTES], header_have: 0, body: Vec::new() }
    }

    /// Takes bytes off the front of `chunk` until a frame is complete or the chunk is empty.
    ///
    /// Call it again with the same chunk until it returns `None`. After an error the stream is useless.
    pub(crate) fn push(&mut self, chunk: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
        if self.header_have < FRAME_HEADER_BYTES {
            let take = chunk.len().min(FRAME_HEADER_BYTES - self.header_have);
            chunk.copy_to_slice(&mut self.header[self.header_have..self.header_have + take]);
            self.header_have += take;
            if self.header_have < FRAME_HEADER_BYTES {
                return Ok(None);
            }
        }
        let announced = u32::from_le_bytes(self.header);
        if announced > self.frame_bytes_max {
            return Err(FrameError::TooLong { announced, max: self.frame_bytes_max });
        }
        let length = announced as usize;
        let take = chunk.len().min(length - self.body.len());
        self.reserve(take, length);
        // Copied, not sliced: a slice would pin the whole datagram batch that the frame arrived in.
        self.body.extend_from_slice(&chunk[..take]);
        chunk.advance(take);
        if self.body.len() < length {
            return Ok(None);
        }
        self.header_have = 0;
        Ok(Some(Bytes::from(std::mem::take(&mut self.body))))
    }

    /// True between frames: a stream that ends elsewhere was cut short.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.header_have == 0
    }

    fn reserve(&mut self, take: usize, length: usize) {
        let need = self.body.len() + take;
        if need > self.body.capacity() {
            let target = need.max(self.body.capacity() * 2).max(BODY_RESERVE_BYTES).min(length);
            self.body.reserve_exact(target - self.body.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(frames: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            out.extend_from_slice(&header(frame).unwrap());
            out.extend_from_slice(frame);
        }
        out
    }

    fn decode(decoder: &mut Decoder, bytes: &[u8], piece: usize) -> Result<Vec<Bytes>, FrameError> {
        let mut frames = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut chunk = Bytes::copy_from_slice(piece);
            while let Some(frame) = decoder.push(&mut chunk)? {
                frames.push(frame);
            }
            assert!(chunk.is_empty());
        }
        Ok(frames)
    }

    #[test]
    fn any_cutting_gives_the_same_frames() {
        let big = vec![9; 200_000];
        let frames: [&[u8]; 5] = [b"a", b"", b"some more", &big, b"end"];
        let bytes = encode(&frames);
        for piece in [1, 2, 3, 5, 7, 1_200, 70_000, bytes.len()] {
            let mut decoder = Decoder::new(200_000);
            let decoded = decode(&mut decoder, &bytes, piece).unwrap();
            assert_eq!(decoded, frames, "in pieces of {piece}");
            assert!(decoder.is_at_boundary());
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_at_its_header() {
        let mut decoder = Decoder::new(10);
        let error = decode(&mut decoder, &[11, 0, 0, 0], 4).unwrap_err();
        assert_eq!(error, FrameError::TooLong { announced: 11, max: 10 });
        let error = decode(&mut Decoder::new(10), b"GET / HTTP/1.1", 3).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { .. }));
    }

    #[test]
    fn an_announced_length_reserves_little() {
        let mut decoder = Decoder::new(16 << 20);
        let mut bytes = (16_u32 << 20).to_le_bytes().to_vec();
        bytes.push(1);
        assert!(decode(&mut decoder, &bytes, 5).unwrap().is_empty());
        assert!(decoder.body.capacity() <= BODY_RESERVE_BYTES);
        assert!(!decoder.is_at_boundary());
    }
}
