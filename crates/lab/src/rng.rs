//! The generator's randomness: small, fixed for ever, so that a seed names the same case on every
//! machine and in every year.

/// A SplitMix64 sequence.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of case `number` in the run with `seed`.
    pub fn for_case(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed);
        let base = rng.next();
        let mut rng = Self(base ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.next();
        rng
    }

    /// 64 random bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is no iterator: it never ends"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// One bit of `mask` at random; 0 if it has none.
    pub fn bit_of(&mut self, mask: u64) -> u64 {
        let count = u64::from(mask.count_ones());
        if count == 0 {
            return 0;
        }
        let mut rest = mask;
        for _ in 0..self.below(count) {
            rest &= rest - 1;
        }
        rest & rest.wrapping_neg()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_the_same_wherever_a_run_starts() {
        assert_eq!(Rng::for_case(1, 7).next(), Rng::for_case(1, 7).next());
        assert_ne!(Rng::for_case(1, 7).next(), Rng::for_case(1, 8).next());
        assert_ne!(Rng::for_case(1, 7).next(), Rng::for_case(2, 7).next());
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut rng = Rng::for_case(0, 0);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[rng.below(5) as usize] = true;
            assert_eq!(rng.bit_of(0b1010) & !0b1010, 0);
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(rng.bit_of(0), 0);
    }
}
