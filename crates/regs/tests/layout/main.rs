//! Every field of every format against its literal bit position in the specification.
//!
//! The tables state position and reserved mask as the specification's figures do, high bit first,
//! counted from the start of the whole structure. They are written down a second time, apart from
//! the definitions, on purpose: a field that moves by one bit moves everything after it.

mod commands;
mod events;
mod ivrs;
mod masks;
mod more_registers;
mod pci;
mod pin;
mod registers;
mod tables;
mod viommu;
