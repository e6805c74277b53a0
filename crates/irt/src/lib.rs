//! AMD IOMMU interrupt remapping: from an interrupt request to a delivery or a fault.
#![no_std]
#![forbid(unsafe_code)]

mod delivery;

pub use delivery::{Delivery, DestMode, Trigger};
