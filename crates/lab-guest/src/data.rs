//! Contents that follow from a seed, the same as the test endpoint makes them: what is written once
//! is checked wherever it turns up.

pub use amdvi_guest::endpoint::dma::{Checksum, fill};

/// Where `seen`, which stands at `offset` of what `seed` names, is not what [`fill`] gives: the
/// first byte that differs.
pub fn differs(seed: u64, offset: u64, seen: &[u8]) -> Option<usize> {
    let mut expected = vec![0; seen.len()];
    fill(seed, offset, &mut expected);
    (expected != seen).then(|| {
        let pairs = expected.iter().zip(seen);
        pairs.take_while(|(a, b)| a == b).count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_from_elsewhere_differs_from_its_first_word_on() {
        let mut block = [0; 512];
        fill(1, 0x7000, &mut block);
        assert_eq!(differs(1, 0x7000, &block), None);
        for (seed, offset) in [(1, 0x8000), (2, 0x7000), (0x7000, 1), (0, 0)] {
            assert!(differs(seed, offset, &block).is_some_and(|at| at < 8));
        }
        block[300] ^= 1;
        assert_eq!(differs(1, 0x7000, &block), Some(300));
    }
}
