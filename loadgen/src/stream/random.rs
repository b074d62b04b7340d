//! Random numbers that belong to a place in the stream: click n draws the same numbers whoever asks, in any order.

/// A SplitMix64 generator (Steele, Lea and Flood 2014), written out so that a seed means the same for ever.
#[derive(Debug, Clone)]
pub struct Draws {
    state: u64,
}

impl Draws {
    /// Starts the draws of item `number` of the purpose `lane` under `seed`.
    pub fn new(seed: u64, lane: u64, number: u64) -> Self {
        // Mixed at each step: plain sums would make neighbours' sequences overlap.
        Self { state: mix(mix(mix(seed).wrapping_add(lane)).wrapping_add(number)) }
    }

    /// Returns the next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// Returns a number below `bound`; 0 where `bound` is 0. Its bias is below 2^-32 for bounds of 32 bits.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// Returns a number in `[0, 1)`.
    pub fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Picks ranks by Zipf's law.
#[derive(Debug)]
pub struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Prepares ranks `0..ranks`, with rank n as popular as `1 / (n + 1)^exponent`.
    pub fn new(ranks: u32, exponent: f64) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=ranks)
            .map(|rank| {
                sum += f64::from(rank).powf(-exponent);
                sum
            })
            .collect();
        Self { cumulative }
    }

    /// Picks a rank.
    pub fn pick(&self, draws: &mut Draws) -> u32 {
        let Some(sum) = self.cumulative.last() else { return 0 };
        let point = draws.fraction() * sum;
        let rank = self.cumulative.partition_point(|cumulative| *cumulative <= point);
        rank.min(self.cumulative.len() - 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_repeat_for_the_same_place_and_differ_elsewhere() {
        let first = Draws::new(7, 1, 42).bits();
        assert_eq!(Draws::new(7, 1, 42).bits(), first);
        for other in [Draws::new(8, 1, 42), Draws::new(7, 2, 42), Draws::new(7, 1, 43)] {
            let mut other = other;
            assert_ne!(other.bits(), first);
        }
    }

    #[test]
    fn the_draws_of_a_seed_never_change() {
        // Ledgers and golden files of other versions rely on these.
        let mut draws = Draws::new(7, 0, 0);
        assert_eq!(draws.bits(), Draws { state: mix(mix(mix(7))) }.bits());
        assert_eq!(Draws { state: 1_234_567 }.bits(), 6_457_827_717_110_365_317); // published test vector
    }

    #[test]
    fn rank_one_is_about_twice_as_popular_as_rank_two() {
        let zipf = Zipf::new(100, 1.0);
        let mut counts = [0_u32; 100];
        for number in 0..100_000 {
            counts[zipf.pick(&mut Draws::new(1, 0, number)) as usize] += 1;
        }
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        assert!(counts.iter().all(|count| *count > 0));
    }
}
