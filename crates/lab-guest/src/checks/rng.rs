//! The hardware random number generator.

use std::fs::File;
use std::io::Read;

use amdvi_lab_guest::plan::Rng;
use anyhow::{Context, Result, ensure};

use crate::context::text;

const DEVICE: &str = "/dev/hwrng";

pub(super) fn check(want: &Rng) -> Result<String> {
    let current = text("/sys/class/misc/hw_random/rng_current")?;
    ensure!(
        current.starts_with("virtio_rng"),
        "the generator is `{current}`, not virtio's"
    );
    let mut device = File::open(DEVICE).with_context(|| format!("open {DEVICE}"))?;
    let mut bytes = vec![0; want.bytes];
    device
        .read_exact(&mut bytes)
        .with_context(|| format!("read {DEVICE}"))?;
    judge(&bytes)?;
    Ok(format!("{} bytes from {current}", bytes.len()))
}

/// That it is no memory that nobody wrote to, and no copy of one block.
fn judge(bytes: &[u8]) -> Result<()> {
    let blocks: Vec<_> = bytes.chunks_exact(16).collect();
    let mut distinct = blocks.clone();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(
        distinct.len() == blocks.len(),
        "of {} blocks of 16 bytes {} are different",
        blocks.len(),
        distinct.len()
    );
    let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
    let bits = 8 * bytes.len() as u32;
    // Far beyond what chance does to this many bits.
    ensure!(
        bits < 1024 || ones.abs_diff(bits / 2) < bits / 8,
        "{ones} of {bits} bits are set"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_nobody_wrote_to_is_not_random() {
        assert!(judge(&[0; 4096]).is_err());
        let mut bytes = vec![0; 4096];
        amdvi_lab_guest::data::fill(1, 1, &mut bytes);
        assert!(judge(&bytes).is_ok());
        let (first, second) = bytes.split_at_mut(2048);
        second[..16].copy_from_slice(&first[..16]);
        assert!(judge(&bytes).is_err());
    }
}
