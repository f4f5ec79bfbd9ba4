//! Bincode frames with a size limit and a version byte. They are used in files and sockets between
//! our own programs on one machine, never for bytes from a network.

use serde::{Serialize, de::DeserializeOwned};
use std::io::{Read, Write};

/// Maximum size of a frame that is written or accepted, bytes, without its header.
pub const MAX_FRAME: usize = 64 * 1024;

/// First byte of every frame: the version of the layout.
pub const VERSION: u8 = 1;

/// The reason why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other program uses another version of the layout.
    #[error(
        "frame version {found}, expected {VERSION}: plugin and agent are of different releases; install both from one release"
    )]
    Version {
        /// The version byte that was received.
        found: u8,
    },
    /// The frame is larger than [`MAX_FRAME`]. Holds its size, bytes.
    #[error("frame of {0} bytes is larger than the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// The bytes do not hold the expected message.
    #[error("frame does not hold the expected message: {0}")]
    Malformed(String),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME>()
}

/// Encodes a message: version byte, length (u32, big endian), body.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body = bincode::serde::encode_to_vec(message, config()).map_err(|e| FrameError::Malformed(e.to_string()))?;
    let length = u32::try_from(body.len()).map_err(|_| FrameError::TooLarge(body.len()))?;
    if body.len() > MAX_FRAME {
        return Err(FrameError::TooLarge(body.len()));
    }
    let mut frame = Vec::with_capacity(body.len() + 5);
    frame.push(VERSION);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Checks the version and the limit in a header. Returns the length of the body that follows,
/// bytes.
pub fn body_length(header: [u8; 5]) -> Result<usize, FrameError> {
    let [version, a, b, c, d] = header;
    if version != VERSION {
        return Err(FrameError::Version { found: version });
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME { Err(FrameError::TooLarge(length)) } else { Ok(length) }
}

/// Decodes a body. Fails if octets are left over.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads frames")]
    match bincode::serde::decode_from_slice(body, config()) {
        Ok((message, used)) if used == body.len() => Ok(message),
        Ok((_, used)) => Err(FrameError::Malformed(format!("{} bytes left over", body.len() - used))),
        Err(error) => Err(FrameError::Malformed(error.to_string())),
    }
}

/// Writes one frame.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)?)?;
    Ok(to.flush()?)
}

/// Reads one frame.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; 5];
    from.read_exact(&mut header)?;
    let mut body = vec![0; body_length(header)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let mut bytes = Vec::new();
        write(&mut bytes, &("segment".to_owned(), 7u32)).unwrap();
        assert_eq!(read::<(String, u32)>(&mut bytes.as_slice()).unwrap(), ("segment".to_owned(), 7));
    }

    #[test]
    fn other_versions_and_huge_lengths_are_refused_before_anything_is_allocated() {
        assert!(matches!(body_length([9, 0, 0, 0, 1]), Err(FrameError::Version { found: 9 })));
        assert!(matches!(body_length([VERSION, 255, 255, 255, 255]), Err(FrameError::TooLarge(_))));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = read::<crate::agent_protocol::AgentRequest>(&mut bytes.as_slice());
            let _ = read::<crate::agent_protocol::AgentResponse>(&mut bytes.as_slice());
        }
    }
}
