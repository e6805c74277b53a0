//! The MMIO register file (48882 §3.4): offsets and fields.
//!
//! The MSI shadow registers 0150h–0168h have the layout of their originals in configuration space,
//! see [`crate::pci`]; the hardware vIOMMU regions stand in [`crate::viommu`].

mod control;
mod counters;
mod features;
mod misc;
pub mod offset;
mod region;
mod rings;
mod status;
mod xt;

pub use control::Control;
pub use counters::{
    CounterAddress, CounterConfig, CounterEvent, CounterFunction, CounterReport, CounterSource,
    CounterValue, DeviceIdMatch, DomainMatch, PasidMatch,
};
pub use features::{ExtendedFeature, ExtendedFeature2};
pub use misc::{
    DeviceSpecific, HardwareEventLower, HardwareEventStatus, HardwareEventUpper,
    PerformanceOptimization, PprAutoResponse, PprOverflowEarly, SmiFilter, ViommuStatus,
};
pub use region::{
    CompletionStoreBase, CompletionStoreLimit, ExclusionBase, ExclusionLimit, GaLogTailAddress,
    MarcBase, MarcLength, MarcRelocation,
};
pub use rings::{DeviceTableBase, RingBase, RingPointer};
pub use status::Status;
pub use xt::XtInterruptControl;

pub use crate::pci::{
    HtMsiMapping as MsiMapping, MiscInfo0 as MsiVector0, MiscInfo1 as MsiVector1, MsiAddressHigh,
    MsiAddressLow, MsiCapability, MsiDataRegister,
};
