//! Contents that follow from a seed: what is written once is checked wherever it turns up.

/// The contents of stretch `number` of what `seed` names, as long as `out`. A stretch that is in
/// the wrong place, or from another seed, differs from the right one in every word.
pub fn fill(seed: u64, number: u64, out: &mut [u8]) {
    let mut state = mix(seed) ^ mix(number.wrapping_add(0x5bd1_e995));
    for chunk in out.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bytes = mix(state).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
}

/// Where `seen` is not what [`fill`] gives: the first byte that differs.
pub fn differs(seed: u64, number: u64, seen: &[u8]) -> Option<usize> {
    let mut expected = vec![0; seen.len()];
    fill(seed, number, &mut expected);
    (expected != seen).then(|| {
        let pairs = expected.iter().zip(seen);
        pairs.take_while(|(a, b)| a == b).count()
    })
}

/// A checksum for two sides that both know this crate: FNV-1a, 64 bits, of `bytes` after what
/// `so_far` stands for; begin with [`CHECKSUM`].
pub fn checksum(so_far: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(so_far, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The checksum of nothing.
pub const CHECKSUM: u64 = 0xcbf2_9ce4_8422_2325;

/// The finalizer of SplitMix64.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_from_elsewhere_differs_from_its_first_word_on() {
        let mut block = [0; 512];
        fill(1, 7, &mut block);
        assert_eq!(differs(1, 7, &block), None);
        for (seed, number) in [(1, 8), (2, 7), (7, 1), (0, 0)] {
            assert!(differs(seed, number, &block).is_some_and(|at| at < 8));
        }
        block[300] ^= 1;
        assert_eq!(differs(1, 7, &block), Some(300));
        let mut odd = [0; 13];
        fill(1, 7, &mut odd);
        assert_eq!(odd[..8], block[..8]);
        assert_eq!(differs(1, 7, &odd), None);
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(checksum(CHECKSUM, b"foobar"), 0x8594_4171_f739_67e8);
        let half = checksum(CHECKSUM, b"foo");
        assert_eq!(checksum(half, b"bar"), checksum(CHECKSUM, b"foobar"));
    }
}
