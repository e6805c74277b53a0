#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "dirty")]
pub mod dirty;
#[cfg(all(feature = "device", feature = "vm-memory"))]
pub mod dma;
#[cfg(feature = "device")]
pub mod endpoint;
#[cfg(feature = "ioapic")]
pub mod ioapic;
#[cfg(feature = "ivrs")]
pub mod ivrs;
#[cfg(all(feature = "kvm", target_arch = "x86_64", target_os = "linux"))]
pub mod kvm;
#[cfg(feature = "vm-memory")]
pub mod ram;
pub mod remap;
#[cfg(feature = "shadow")]
pub mod shadow;

pub use remap::{RemapSource, Unremapped};
