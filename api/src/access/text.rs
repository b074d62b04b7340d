//! The text of a key: `twice_{key id}_{secret}`, both in lower-case hexadecimal.
//!
//! Digits and letters alone, so that a double click selects it whole, and a prefix by which scanners for leaked secrets
//! find it.

use std::fmt;

use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const PREFIX: &str = "twice_";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A key as its owner has it. Printed only where it is handed out; `Debug` shows the id alone.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText {
    key_id: String,
    secret: [u8; SECRET_BYTES],
}

impl KeyText {
    /// Draws a new key from the system's random source.
    ///
    /// # Errors
    /// `Internal` where the system has none to give.
    pub fn draw() -> Result<Self> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        let drawn = SysRng.try_fill_bytes(&mut id).and_then(|()| SysRng.try_fill_bytes(&mut secret));
        drawn.map_err(|source| Error::Internal { what: "drawing a key", source: Some(Box::new(source)) })?;
        Ok(Self { key_id: hex(&id), secret })
    }

    /// Reads a key; `None` for anything that is not exactly one.
    pub fn read(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let _: [u8; ID_BYTES] = bytes_of(id)?;
        Some(Self { key_id: id.to_owned(), secret: bytes_of(secret)? })
    }

    /// Returns the public part.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Returns what is stored of the secret.
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }
}

impl fmt::Display for KeyText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}_{}", self.key_id, hex(&self.secret))
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KeyText").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_from_its_text() {
        let key = KeyText::draw().expect("draws");
        let text = key.to_string();
        assert_eq!(text.len(), 6 + 16 + 1 + 64);
        assert_eq!(KeyText::read(&text), Some(key.clone()));
        assert_ne!(KeyText::draw().expect("draws"), key);
    }

    #[test]
    fn nothing_but_a_key_reads_as_one() {
        let text = KeyText::draw().expect("draws").to_string();
        for wrong in [
            "",
            "twice_",
            "twice__",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replace('_', "-"),
            &format!("twice_{}_{}", "é".repeat(8), "0".repeat(64)),
        ] {
            assert_eq!(KeyText::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        let key = KeyText::draw().expect("draws");
        assert!(!format!("{key:?}").contains(&hex(&key.secret)[..8]));
    }
}
