//! Lab tests: what needs more than a Rust toolchain.
//!
//! The differential run drives two IOMMUs with the same random tables, requests and commands: ours,
//! and QEMU's amd-iommu through its qtest protocol, without any guest code. What the two make of a
//! [`case`](case::Case) is compared; each difference must be explained by a rule in [`rules`],
//! which says who is right and why.
//!
//! What is not compared, because QEMU gives no answer there: what an event says beyond its code
//! (QEMU's address, flags and bus number are not the request's), interrupts of the IOMMU itself,
//! requesters on buses other than 0.
#![forbid(unsafe_code)]

pub mod case;
pub mod compare;
pub mod diff;
pub mod generate;
pub mod layout;
pub mod memory;
pub mod ours;
pub mod qtest;
pub mod rng;
pub mod rules;
pub mod setup;
pub mod theirs;
