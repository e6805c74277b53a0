//! A guest-side AMD IOMMU driver and the test scenarios that it runs.
//!
//! The same scenario code runs as a bare-metal payload under KVM and in-process against the device
//! model; what differs is hidden behind [`platform::Platform`].
#![no_std]
#![cfg_attr(not(feature = "bare"), forbid(unsafe_code))]
// A `Failure` carries its text, since there is no heap. It is built once, at the end of a scenario.
#![allow(clippy::result_large_err)]

pub mod acpi;
#[cfg(all(feature = "bare", target_arch = "x86_64"))]
pub mod bare;
pub mod boot;
pub mod endpoint;
pub mod failure;
pub mod iommu;
pub mod ivrs;
pub mod machine;
pub mod pci;
pub mod platform;
pub mod report;
pub mod scenarios;
pub mod smoke;
pub mod testdev;
mod wait;

#[cfg(test)]
mod fake;
