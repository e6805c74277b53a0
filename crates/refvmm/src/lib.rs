//! The amdvi reference VMM: a small machine around the emulated IOMMU, and its command line.
//!
//! It is an example of use, not a library: what an integrator would copy is in `amdvi-vmm-glue`.
//!
//! - [`board`] is the machine without its CPUs: PCI, IOMMU, IOAPIC, test endpoint, ACPI tables;
//! - [`inproc`] runs a guest's scenario against the board in this process;
//! - `kvm` runs it in a virtual machine under KVM;
//! - [`linux`] boots Linux in one;
//! - [`ram`] is where its RAM lies, which the host has a say in;
//! - [`run`] decides what a machine offers, and runs the scenarios;
//! - `snapshot` saves a whole machine and restores it, or moves it to another process;
//! - [`report`] prints what happened, for people and as JSON;
//! - `virtio` is block, network, console and entropy devices behind the IOMMU;
//! - [`cli`] is the command line.

pub mod board;
pub mod cli;
pub mod inproc;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod layout;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod linux;
pub mod ram;
pub mod report;
pub mod run;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod snapshot;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod virtio;

/// The examples of the workspace's README, compiled and run as documentation tests.
#[cfg(all(doctest, target_arch = "x86_64", target_os = "linux"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
