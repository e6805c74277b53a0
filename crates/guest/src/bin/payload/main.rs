//! The bare-metal payload: the program that a VM runs instead of firmware and kernel.
//!
//! It is built by `cargo xtask`, with the code generation flags and the linker script that it
//! needs. Any other build of it (`--all-features`, say) is an ordinary program that says so.
#![cfg_attr(panic = "abort", no_std)]
#![cfg_attr(panic = "abort", no_main)]

#[cfg(panic = "abort")]
mod image;

#[cfg(not(panic = "abort"))]
fn main() {
    eprintln!("the payload runs on a bare machine: build and start it with `cargo xtask run`");
    std::process::exit(2);
}
