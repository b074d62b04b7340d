//! Unique users: exact while few, then HyperLogLog.
//!
//! Guarantee: the sketch is a function of the *set* of users alone. Order, repeats and grouping of inserts and merges
//! change neither the count nor a byte of the encoding, so equal inputs give equal archives and checkpoints.
//! Words: *exact* = a sorted list of hashes, up to [`EXACT_USERS_MAX`]; *dense* = HyperLogLog registers (`registers`).
//! Flow: insert -> exact list -> dense once the list would grow past its limit; never back.
//!
//! Own code, as no crate kept both promises at once: cardinality-estimator's bytes depend on the order of inserts and it
//! keeps 31 bits of a hash; hyperloglogplus fixes no hash, and is estimated where it could be exact.

mod registers;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twice_log::UserId;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use registers::{PACKED_BYTES, Registers};

/// Most users counted exactly: 1 KiB of hashes, a third of the dense encoding.
pub const EXACT_USERS_MAX: usize = 128;

const TAG_EXACT: u8 = 0;
const TAG_DENSE: u8 = 1;

/// A set of users that can be counted, merged and stored.
///
/// Counts up to [`EXACT_USERS_MAX`] are exact (but for a collision of two 64-bit hashes); above that the standard error
/// is 1.6 %.
///
/// ```
/// let mut morning = twice_store::sketch::UserSketch::default();
/// morning.insert(&twice_log::UserId::new("u_1")?);
/// let mut day = twice_store::sketch::UserSketch::from_bytes(&morning.to_bytes()).expect("just written");
/// day.insert(&twice_log::UserId::new("u_2")?);
/// day.merge(&morning);
/// assert_eq!(day.count(), 2);
/// # Ok::<(), twice_log::event::IdError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserSketch(Users);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Users {
    /// Hashes, ascending, without repeats, at most `EXACT_USERS_MAX`.
    Exact(Vec<u64>),
    Dense(Box<Registers>),
}

impl Default for Users {
    fn default() -> Self {
        Users::Exact(Vec::new())
    }
}

impl UserSketch {
    /// Takes one user in; an empty id is no user.
    pub fn insert(&mut self, user: &UserId) {
        self.insert_stored(user.as_str());
    }

    /// Takes one user in by the text of its stored id, as [`UserSketch::insert`] does.
    pub fn insert_stored(&mut self, user: &str) {
        if !user.is_empty() {
            // xxh3_64 of the stored id: part of the stored format, so that sketches of any two builds merge.
            self.insert_hash(xxh3_64(user.as_bytes()));
        }
    }

    /// Takes all users of `other` in.
    pub fn merge(&mut self, other: &UserSketch) {
        match (&mut self.0, &other.0) {
            (_, Users::Exact(hashes)) => hashes.iter().for_each(|hash| self.insert_hash(*hash)),
            (Users::Dense(registers), Users::Dense(others)) => registers.merge(others),
            (Users::Exact(hashes), Users::Dense(others)) => {
                let mut registers = others.clone();
                hashes.iter().for_each(|hash| registers.insert(*hash));
                self.0 = Users::Dense(registers);
            }
        }
    }

    /// Returns the number of distinct users; exact while few.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Users::Exact(hashes) => hashes.len() as u64,
            Users::Dense(registers) => registers.estimate(),
        }
    }

    /// Returns whether [`UserSketch::count`] is exact.
    pub fn is_exact(&self) -> bool {
        matches!(self.0, Users::Exact(_))
    }

    /// Returns whether no user was taken in.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Users::Exact(hashes) if hashes.is_empty())
    }

    /// Appends the encoding to `bytes`: a tag, then the number of hashes (one byte) and each hash (u64 LE, ascending),
    /// or the registers, four in three bytes.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        match &self.0 {
            Users::Exact(hashes) => {
                bytes.extend([TAG_EXACT, hashes.len() as u8]); // at most EXACT_USERS_MAX
                hashes.iter().for_each(|hash| bytes.extend(hash.to_le_bytes()));
            }
            Users::Dense(registers) => {
                bytes.push(TAG_DENSE);
                registers.pack(bytes);
            }
        }
    }

    /// Returns the encoding: 2 bytes and 8 a user while exact, 3073 bytes when dense.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        self.write_to(&mut bytes);
        bytes
    }

    /// Returns the length of the encoding in bytes.
    pub fn encoded_len(&self) -> usize {
        match &self.0 {
            Users::Exact(hashes) => 2 + 8 * hashes.len(),
            Users::Dense(_) => 1 + PACKED_BYTES,
        }
    }

    /// Returns the bytes it holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Users::Exact(hashes) => 8 * hashes.capacity(),
            Users::Dense(_) => size_of::<Registers>(),
        }
    }

    /// Reads an encoding that fills `bytes` exactly.
    ///
    /// # Errors
    /// `Damage` for any bytes that [`UserSketch::to_bytes`] does not write.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        match Self::read_from(bytes)? {
            (sketch, []) => Ok(sketch),
            _ => Err(damage("bytes follow its end")),
        }
    }

    /// Reads an encoding from the start of `bytes` and returns what follows it.
    ///
    /// # Errors
    /// `Damage` for any bytes that [`UserSketch::to_bytes`] does not write.
    pub fn read_from(bytes: &[u8]) -> Result<(Self, &[u8])> {
        match bytes {
            [TAG_EXACT, length, rest @ ..] => read_exact(usize::from(*length), rest),
            [TAG_DENSE, rest @ ..] => read_dense(rest),
            [] => Err(damage("it is empty")),
            _ => Err(damage("its tag is unknown")),
        }
    }

    fn insert_hash(&mut self, hash: u64) {
        match &mut self.0 {
            Users::Dense(registers) => registers.insert(hash),
            Users::Exact(hashes) => {
                let Err(place) = hashes.binary_search(&hash) else { return };
                if hashes.len() < EXACT_USERS_MAX {
                    hashes.insert(place, hash);
                    return;
                }
                let mut registers = Box::new(Registers::default());
                hashes.iter().for_each(|known| registers.insert(*known));
                registers.insert(hash);
                self.0 = Users::Dense(registers);
            }
        }
    }
}

fn read_exact(length: usize, bytes: &[u8]) -> Result<(UserSketch, &[u8])> {
    if length > EXACT_USERS_MAX {
        return Err(damage("it lists too many users"));
    }
    let (listed, rest) = bytes.split_at_checked(8 * length).ok_or_else(|| damage("it is cut off"))?;
    let (chunks, _) = listed.as_chunks::<8>();
    let hashes: Vec<u64> = chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
    // Sorted and without repeats, or equal sets would no longer be equal bytes.
    if !hashes.is_sorted_by(|left, right| left < right) {
        return Err(damage("its users are not in order"));
    }
    Ok((UserSketch(Users::Exact(hashes)), rest))
}

fn read_dense(bytes: &[u8]) -> Result<(UserSketch, &[u8])> {
    let (packed, rest) = bytes.split_at_checked(PACKED_BYTES).ok_or_else(|| damage("it is cut off"))?;
    let registers = Registers::unpack(packed).ok_or_else(|| damage("a register is out of range"))?;
    Ok((UserSketch(Users::Dense(Box::new(registers))), rest))
}

fn damage(reason: &str) -> Error {
    Error::Damage { what: "user sketch".to_owned(), reason: reason.to_owned() }
}

/// As bytes in binary formats, as a list of numbers in JSON: the encoding of [`UserSketch::to_bytes`].
impl Serialize for UserSketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for UserSketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = UserSketch;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("the bytes of a user sketch")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> std::result::Result<UserSketch, E> {
                UserSketch::from_bytes(bytes).map_err(E::custom)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut items: A,
            ) -> std::result::Result<UserSketch, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = items.next_element::<u8>()? {
                    if bytes.len() > PACKED_BYTES {
                        return Err(serde::de::Error::custom("user sketch is too long"));
                    }
                    bytes.push(byte);
                }
                self.visit_bytes(&bytes)
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}
