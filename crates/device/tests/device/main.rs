//! Tests of the whole device, by topic.

mod commands;
mod dma;
mod endpoint;
mod fuzz;

mod interrupts;
mod logs;
mod options;
mod pci;
mod peers;
mod registers;
mod rig;
mod rings;
mod save;
