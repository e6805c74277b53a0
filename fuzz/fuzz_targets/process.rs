#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| amdvi_device::fuzz::process(data));
