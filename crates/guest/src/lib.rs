//! A guest-side AMD IOMMU driver and the test scenarios that it runs.
//!
//! The same scenario code runs as a bare-metal payload under KVM and in-process against the device
//! model; what differs is hidden behind [`platform::Platform`].
#![no_std]
#![cfg_attr(not(feature = "bare"), forbid(unsafe_code))]

#[cfg(all(feature = "bare", target_arch = "x86_64"))]
pub mod bare;
pub mod boot;
pub mod endpoint;
pub mod platform;
pub mod report;
pub mod scenarios;
pub mod smoke;
