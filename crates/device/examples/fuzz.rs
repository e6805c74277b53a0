//! Runs one fuzz target on seeded random bytes: `fuzz TARGET SECONDS [SEED]`.
//!
//! `cargo xtask fuzz` is the usual way in. The seed of each round is printed; given again it
//! repeats that round.

use std::env::args;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use amdvi_device::fuzz;

/// Inputs per round, that is per printed seed.
const ROUND: u32 = 20_000;

/// A small generator with a full period (SplitMix64): quality enough to make hostile bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Up to 512 bytes; runs of zeros and ones are likelier than chance makes them.
    fn input(&mut self, bytes: &mut Vec<u8>) {
        bytes.clear();
        for _ in 0..self.next() % 64 + 1 {
            let word = match self.next() % 8 {
                0 => 0,
                1 => u64::MAX,
                2 => 1 << (self.next() % 64),
                _ => self.next(),
            };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
}

fn main() -> ExitCode {
    let mut args = args().skip(1);
    let target: fn(&[u8]) = match args.next().as_deref() {
        Some("mmio") => fuzz::mmio,
        Some("command_ring") => fuzz::command_ring,
        Some("remap") => fuzz::remap,
        Some("translate") => fuzz::translate,
        Some("process") => fuzz::process,
        Some("restore") => fuzz::restore,
        _ => {
            eprintln!(
                "usage: fuzz mmio|command_ring|remap|translate|process|restore SECONDS [SEED]"
            );
            return ExitCode::from(2);
        }
    };
    let seconds = args.next().and_then(|text| text.parse().ok()).unwrap_or(10);
    let repeated = args.next().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed: u64 = repeated.unwrap_or(1);
    let mut inputs = 0u64;
    let mut bytes = Vec::new();
    loop {
        println!("seed {seed}");
        let mut random = Random(seed);
        for _ in 0..ROUND {
            random.input(&mut bytes);
            target(&bytes);
            inputs += 1;
            if Instant::now() >= end {
                println!("{inputs} inputs, no finding");
                return ExitCode::SUCCESS;
            }
        }
        if repeated.is_some() {
            println!("{inputs} inputs, no finding");
            return ExitCode::SUCCESS;
        }
        seed += 1;
    }
}
