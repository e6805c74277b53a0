//! Tests of the whole device, by topic.

mod ats;
mod commands;
mod counters;
mod dma;
mod endpoint;
mod fuzz;
mod interrupts;
mod logs;
mod options;
mod page_requests;
mod pasid;
mod pci;
mod peers;
mod registers;
mod rig;
mod rings;
mod save;
