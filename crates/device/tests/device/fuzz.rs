//! The fuzz targets with seeded input: a short run of each on every test.
//!
//! For a long one: `AMDVI_FUZZ_FACTOR=1000 AMDVI_FUZZ_SEED=7 cargo test --release -p amdvi-device
//! --test device fuzz`.

use amdvi_device::fuzz;

/// SplitMix64: the same bytes on every run and every machine.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn take(&mut self, max: u64) -> Vec<u8> {
        let len = self.next() % max;
        // Words of different character: noise, small numbers, and single bits.
        (0..=len / 8)
            .flat_map(|_| {
                let noise = self.next();
                match self.next() % 4 {
                    0 => noise & 0xffff,
                    1 => 1 << (noise % 64),
                    _ => noise,
                }
                .to_le_bytes()
            })
            .take(len as usize)
            .collect()
    }
}

fn run(target: fn(&[u8]), iterations: u32, max: u64) {
    let number = |name, default| {
        std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
    };
    let mut bytes = Bytes(number("AMDVI_FUZZ_SEED", 0x5eed));
    for _ in 0..u64::from(iterations) * number("AMDVI_FUZZ_FACTOR", 1) {
        target(&bytes.take(max));
    }
    target(&[]);
}

#[test]
fn registers_survive_any_access() {
    run(fuzz::mmio, 3000, 1500);
}

#[test]
fn the_command_processor_survives_any_ring() {
    run(fuzz::command_ring, 5000, 4000);
}

#[test]
fn requests_survive_any_table() {
    run(fuzz::remap, 5000, 1500);
}

#[test]
fn translations_survive_tables_that_change_while_they_are_walked() {
    run(fuzz::translate, 5000, 800);
}

#[test]
fn processes_survive_tables_that_change_while_they_are_walked_and_marked() {
    run(fuzz::process, 4000, 800);
}

#[test]
fn restore_survives_any_state() {
    run(fuzz::restore, 5000, 400);
}
