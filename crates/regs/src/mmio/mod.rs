//! The MMIO register file (48882 §3.4): offsets and fields.

mod control;
mod features;
pub mod offset;
mod rings;
mod status;
mod xt;

pub use control::Control;
pub use features::{ExtendedFeature, ExtendedFeature2};
pub use rings::{DeviceTableBase, RingBase, RingPointer};
pub use status::Status;
pub use xt::XtInterruptControl;
