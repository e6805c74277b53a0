//! Where in low memory the VMM puts what the boot CPU starts with. All of it is RAM that the kernel
//! takes over once it has read it; below 1 MiB nothing else of the machine's is in RAM but the
//! firmware tables.

use crate::kvm::cpu::{PAGE_TABLES, PAGE_TABLES_END};
use crate::layout;

/// The descriptor table with the selectors that the boot protocols name.
pub(super) const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH protocol.
pub(super) const START_INFO: u64 = 0x6000;
/// Its list of modules: at most the initial ramdisk.
pub(super) const MODULES: u64 = 0x6080;
/// Its memory map.
pub(super) const MEMORY_MAP: u64 = 0x6100;
/// `boot_params` of the Linux protocol.
pub(super) const BOOT_PARAMS: u64 = 0x7000;
/// The command line.
pub(super) const CMDLINE: u64 = 0x2_0000;
/// Room for it, with the zero at its end.
pub(super) const CMDLINE_SIZE: usize = 0x1_0000;

const _: () = assert!(BOOT_PARAMS + 0x1000 <= PAGE_TABLES);
const _: () = assert!(PAGE_TABLES_END <= CMDLINE);
const _: () = assert!(CMDLINE + CMDLINE_SIZE as u64 <= layout::LEGACY_WINDOWS);
