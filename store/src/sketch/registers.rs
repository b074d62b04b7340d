//! HyperLogLog registers with Ertl's improved estimator.
//!
//! 4096 registers of 6 bits: standard error 1.04 / sqrt(4096) = 1.6 %. The estimator is algorithm 6 of O. Ertl, "New
//! cardinality estimation algorithms for HyperLogLog sketches" (arXiv 1702.01284): unbiased from 0 to the end of the
//! range, with no table of corrections and no threshold between two formulas.

/// Bits of the hash that choose the register.
const INDEX_BITS: u32 = 12;
const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of the hash whose leading zeros a register holds.
const RANK_BITS: u32 = 64 - INDEX_BITS;
/// Highest value of a register: every rank bit zero.
const RANK_MAX: u8 = RANK_BITS as u8 + 1;

/// Length of the packed registers in bytes.
pub(super) const PACKED_BYTES: usize = REGISTERS * 6 / 8;

/// Per register the highest rank seen: 1 + leading zeros below the index bits; 0 while empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers([u8; REGISTERS]);

impl Default for Registers {
    fn default() -> Self {
        Self([0; REGISTERS])
    }
}

impl Registers {
    /// Takes one hash in.
    pub(super) fn insert(&mut self, hash: u64) {
        let index = (hash >> RANK_BITS) as usize; // INDEX_BITS wide
        let rank = ((hash << INDEX_BITS).leading_zeros().min(RANK_BITS) + 1) as u8; // at most RANK_MAX
        let register = &mut self.0[index];
        *register = (*register).max(rank);
    }

    /// Takes every hash of `other` in.
    pub(super) fn merge(&mut self, other: &Registers) {
        for (register, rank) in self.0.iter_mut().zip(&other.0) {
            *register = (*register).max(*rank);
        }
    }

    /// Returns the estimated number of distinct hashes. The same registers give the same number on any machine: only
    /// IEEE additions, multiplications, divisions and square roots, in a fixed order.
    pub(super) fn estimate(&self) -> u64 {
        let mut histogram = [0u32; RANK_MAX as usize + 1];
        for rank in &self.0 {
            histogram[usize::from(*rank)] += 1;
        }
        let size = REGISTERS as f64;
        let full = f64::from(histogram[usize::from(RANK_MAX)]);
        let mut sum = size * tau(1.0 - full / size);
        for rank in (1..usize::from(RANK_MAX)).rev() {
            sum = 0.5 * (sum + f64::from(histogram[rank]));
        }
        sum += size * sigma(f64::from(histogram[0]) / size);
        // 1 / (2 ln 2), the limit of the bias constant for many registers.
        let alpha = 0.5 / std::f64::consts::LN_2;
        (alpha * size * size / sum).round() as u64 // saturates where every register is full
    }

    /// Appends the registers to `bytes`: four of 6 bits in three bytes, the first in the lowest bits, little endian.
    pub(super) fn pack(&self, bytes: &mut Vec<u8>) {
        let (quads, _) = self.0.as_chunks::<4>();
        for [first, second, third, fourth] in quads {
            let word = u32::from(*first)
                | u32::from(*second) << 6
                | u32::from(*third) << 12
                | u32::from(*fourth) << 18;
            bytes.extend_from_slice(&word.to_le_bytes()[..3]);
        }
    }

    /// Reads packed registers; `None` if the length is wrong or a register is out of range.
    pub(super) fn unpack(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != PACKED_BYTES {
            return None;
        }
        let mut registers = [0; REGISTERS];
        let (quads, _) = registers.as_chunks_mut::<4>();
        let (triples, _) = bytes.as_chunks::<3>();
        for (quad, [low, middle, high]) in quads.iter_mut().zip(triples) {
            let word = u32::from_le_bytes([*low, *middle, *high, 0]);
            for (place, register) in quad.iter_mut().enumerate() {
                *register = (word >> (6 * place) & 0x3f) as u8;
                if *register > RANK_MAX {
                    return None;
                }
            }
        }
        Some(Self(registers))
    }
}

/// Ertl's sigma: the weight of empty registers, `x + sum of x^(2^k) * 2^(k-1)`. Infinite at 1.
fn sigma(share: f64) -> f64 {
    if share == 1.0 {
        return f64::INFINITY;
    }
    let (mut power, mut weight, mut sum) = (share, 1.0, share);
    loop {
        power *= power;
        let before = sum;
        sum += power * weight;
        weight += weight;
        if sum == before {
            return sum;
        }
    }
}

/// Ertl's tau: the weight of full registers.
fn tau(share: f64) -> f64 {
    if share == 0.0 || share == 1.0 {
        return 0.0;
    }
    let (mut root, mut weight, mut sum) = (share, 1.0, 1.0 - share);
    loop {
        root = root.sqrt();
        let before = sum;
        weight *= 0.5;
        sum -= (1.0 - root) * (1.0 - root) * weight;
        if sum == before {
            return sum / 3.0;
        }
    }
}
