//! What the host's IOMMU can do, where that is known from, and what a guest can be offered.
//!
//! A VMM that emulates an AMD IOMMU must not promise the guest what the host can't keep. With a
//! PCI function passed through, the host's own IOMMU remaps its interrupts and translates its DMA
//! as well: 2048 interrupts per function in the guest need 2048 in the host. The answer to "can
//! it?" comes from places that differ in what they know, *when* they can be asked, and how far
//! they can be trusted. This crate keeps those differences apart:
//!
//! - a [`Fact`] is a value with its [source](Fact::source), its [`Aspect`] (what the *hardware*
//!   supports, what the *firmware* set, what the *kernel* enabled), its [`Scope`] (the host, one
//!   IOMMU, one PCI function) and its phase: known [`Early`], before RAM is laid out, or [`Late`],
//!   after a device was bound;
//! - a [`HostCapSource`] is a place that can be asked for facts;
//! - [`negotiate`] is a pure function from a [`Request`] and the [`Facts`] to an [`Offer`]: for
//!   each feature what was requested, what is granted, and one sentence why.
//!
//! The rules, each pinned by a test: **unknown is never yes**; a statement that says no is never
//! outvoted by one that says yes; the order in which sources are asked does not matter; a bit that
//! firmware set is not proof that the kernel can use it.
//!
//! # Just this crate
//!
//! It depends on `amdvi-regs` and nothing else of the project, and on no device model. Without
//! its default features it has no system calls and no unsafe code either.
//!
//! ```
//! use amdvi_hostcap::{Facts, Feature, HostCapSpec, Request, negotiate};
//!
//! // What the user asked for, and the host as an option describes it.
//! let request: Request = "numint2k=on,xtsup=on".parse()?;
//! let host: HostCapSpec = "mock:numint2k.hw=on,numint2k.kernel=off".parse()?;
//! let source = host.build();
//!
//! let facts = Facts::collect([source.as_ref()], &[]);
//! let offer = negotiate(&request, &facts);
//!
//! assert!(!offer.is_granted(Feature::NumInt2K));
//! assert!(offer.is_granted(Feature::Xt));
//! for decision in offer.withheld() {
//!     eprintln!("warning: {decision}");
//! }
//! assert!(offer.decision(Feature::NumInt2K).reason.contains("host kernel"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Three situations
//!
//! [`Situation::Emulated`] (source `none`): all devices are emulated, nothing depends on the host.
//! [`Situation::Passthrough`]: facts decide. [`Situation::LegacyVfio`]: a container of the legacy
//! VFIO interface reports nothing about the IOMMU, hence always 512 interrupts per function.
//!
//! # Too late is a type error
//!
//! Where RAM goes depends on the host ([`Feature::HtRangeIgnore`]) and is decided before any
//! device is bound. A function that takes [`EarlyFacts`] can't be given anything else:
//!
//! ```
//! use amdvi_hostcap::{EarlyFacts, Feature, HostCapSpec, Setting};
//!
//! fn ram_may_use_the_hypertransport_range(facts: &EarlyFacts) -> bool {
//!     facts.decide(Feature::HtRangeIgnore, Setting::ON).is_granted()
//! }
//!
//! let source = "mock:htrangeignore=on".parse::<HostCapSpec>()?.build();
//! assert!(ram_may_use_the_hypertransport_range(&EarlyFacts::collect([source.as_ref()])));
//! # Ok::<(), amdvi_hostcap::SpecError>(())
//! ```
//!
//! Facts that may hold late ones are another type:
//!
//! ```compile_fail,E0308
//! use amdvi_hostcap::{EarlyFacts, Facts, Feature, HostCapSpec, Setting};
//!
//! fn ram_may_use_the_hypertransport_range(facts: &EarlyFacts) -> bool {
//!     facts.decide(Feature::HtRangeIgnore, Setting::ON).is_granted()
//! }
//!
//! let source = "mock:htrangeignore=on".parse::<HostCapSpec>().unwrap().build();
//! ram_may_use_the_hypertransport_range(&Facts::collect([source.as_ref()], &[]));
//! ```
//!
//! and a late fact can't be slipped in among early ones:
//!
//! ```compile_fail,E0308
//! use amdvi_hostcap::{Aspect, EarlyFacts, Fact, Feature, Late, Scope};
//!
//! let late: Fact<Late> =
//!     Fact::new(Feature::HtRangeIgnore, true, Aspect::Hardware, Scope::Host, "iommufd", "EFR2[11]=1");
//! EarlyFacts::default().insert(late);
//! ```
//!
//! # Sources
//!
//! | [`HostCapSpec`] | early | what it knows |
//! |---|---|---|
//! | `sysfs[:ROOT]` | yes | EFR and EFR2 of every IOMMU, which IOMMU serves which function |
//! | `debugfs[:ROOT]` | yes | CONTROL of every IOMMU (root) |
//! | `iommufd[:PATH][,FUNCTION…]` | of the functions named | `IOMMU_GET_HW_INFO`: EFR, EFR2, on some kernels CONTROL; generic capabilities |
//! | `kvm:NUMBER` | yes | whether a capability of that number promises 2K; none is assigned upstream |
//! | `kernel-inference[:ROOT]` | yes | a conclusion: Linux 6.15, EFR2 and remapped interrupts together mean 2K |
//! | `file:PATH` | as recorded | what `amdvi-hostcap probe --json` printed on any host |
//! | `legacy-vfio`, `none`, `mock:…` | | nothing; nothing is asked; what is written |
//! | `auto` | yes | sysfs, debugfs, and iommufd for functions that are bound |
//!
//! A VMM that has bound a function itself asks through its own descriptors:
//! `source::hw_info_of_bound`, [`RawHwInfo::answer`], and [`source::Fixed`] to hand the answer on.
//!
//! # What to build on it
//!
//! - [`ram::plan`] places RAM, from [`EarlyFacts`] alone;
//! - [`Passthrough`] follows the functions that are set and unset: what they take from a guest
//!   before it starts, and which are refused afterwards;
//! - [`baseline`](fn@baseline) finds what every host of a migration pool can offer.
//!
//! # Features of this crate
//!
//! - `iommufd`, `kvm` (default): the sources of that name. They make system calls (Linux) through
//!   traits that a test can replace; the only unsafe code is theirs, in one small module.
//! - `file` (default): recordings as files.
//! - `mock`: `MockHostCapSource` and the like, generated by `mockall`, so that a VMM's tests can
//!   swap the host.
//! - `cli`: what the program `amdvi-hostcap` needs: `cargo install amdvi-hostcap --features cli`.
#![deny(unsafe_code)]

mod answer;
mod aspect;
mod baseline;
mod decide;
mod decision;
mod fact;
mod facts;
mod feature;
mod hw_info;
mod negotiate;
mod passthrough;
pub mod ram;
mod recording;
mod registers;
mod scope;
mod shown;
pub mod source;
mod spec;
#[cfg(any(feature = "iommufd", feature = "kvm"))]
mod sys;

pub use answer::{Answer, Gap, Note, Served, Situation};
pub use aspect::Aspect;
pub use baseline::{Baseline, BaselineFeature, TakenBy, baseline};
pub use decision::Decision;
pub use fact::{Early, Fact, Late, Phase, Subject};
pub use facts::{Conflict, EarlyFacts, Facts};
pub use feature::{Feature, FeatureKind, ParseSettingError, Setting, UnknownFeature};
pub use hw_info::{HwCapabilities, HwInfo, RawHwInfo};
pub use negotiate::negotiate;
pub use negotiate::{Offer, Request, RequestError};
pub use passthrough::{Passthrough, PassthroughError, Warning};
pub use recording::{Asked, Format, NotAsked, Outcome, Recorded, Recording};
pub use registers::{HW_INFO_GUEST_EFR, HW_INFO_GUEST_EFR2, HostRegisters, kernel_allows_in_guest};
pub use scope::{ParsePciFunctionError, PciFunction, Scope};
pub use shown::Shown;
#[cfg(any(test, feature = "mock"))]
pub use source::MockHostCapSource;
pub use source::{HostCapSource, SourceError};
#[cfg(feature = "iommufd")]
pub use spec::IommufdSpec;
pub use spec::{HostCapSpec, MockHost, SpecError};
