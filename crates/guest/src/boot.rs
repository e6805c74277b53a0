//! How the VMM starts the payload and gets its report.
//!
//! The VMM puts every vCPU straight into 64-bit mode: identity-mapped page tables (the first 4 GiB
//! and the heap at least), CR0=8000_0033h, CR4=20h, EFER=500h, x2APIC enabled, interrupts off, RIP = the ELF
//! entry point, RDI = [`BOOT_INFO_GPA`], RSI = the index of the CPU. CPU 0 runs the scenario and
//! the others wait for interrupts.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::report::Report;

/// Where [`BootInfo`] stands.
pub const BOOT_INFO_GPA: u64 = 0x7000;
/// Where the payload writes its [`Report`].
pub const REPORT_GPA: u64 = 0x8000;
/// Port to which the payload writes the bytes of its log.
pub const LOG_PORT: u16 = 0xe9;
/// Port that ends the run: a dword, 0 after a complete report, else a panic or exception code.
pub const EXIT_PORT: u16 = 0xf4;
/// Most CPUs that a payload can have.
pub const MAX_CPUS: usize = 16;
/// Longest name of a scenario, in bytes.
pub const NAME_BYTES: usize = 32;

const _: () = assert!(size_of::<Report>() <= 0x1000);
const _: () = assert!(size_of::<BootInfo>() <= 0x1000);

/// What the payload is told.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootInfo {
    /// [`BootInfo::MAGIC`].
    pub magic: u64,
    /// GPA of the ACPI RSDP.
    pub rsdp: u64,
    /// First GPA of RAM that the payload may allocate, page aligned.
    pub heap_start: u64,
    /// First GPA behind that RAM.
    pub heap_end: u64,
    /// The scenario to run.
    pub scenario: ScenarioName,
    /// TSC ticks per microsecond; 0 when unknown.
    pub tsc_per_us: u64,
    /// Number of CPUs, 1–[`MAX_CPUS`].
    pub cpus: u64,
    /// x2APIC IDs of the CPUs.
    pub apic_ids: [u32; MAX_CPUS],
}

impl BootInfo {
    /// Marks a valid structure of this form.
    pub const MAGIC: u64 = 0x3266_6e69_746f_6f62;
}

/// The name of a scenario, padded with zeros. By name, so that a payload and a VMM that were not built
/// from the same sources never take one scenario for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ScenarioName([u8; NAME_BYTES]);

impl ScenarioName {
    /// `None` for a name that is empty, longer than [`NAME_BYTES`] or has a zero in it.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; NAME_BYTES];
        let room = bytes.get_mut(..name.len())?;
        room.copy_from_slice(name.as_bytes());
        (!name.is_empty() && !name.contains('\0')).then_some(Self(bytes))
    }

    /// The name; `None` when the bytes are none.
    pub fn as_str(&self) -> Option<&str> {
        let used = self.0.iter().position(|&byte| byte == 0);
        let (name, rest) = self.0.split_at(used.unwrap_or(NAME_BYTES));
        let name = core::str::from_utf8(name).ok()?;
        (!name.is_empty() && rest.iter().all(|&byte| byte == 0)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;

    #[test]
    fn a_name_that_fits_comes_back_as_it_was() {
        let longest = format!("{:x<NAME_BYTES$}", "");
        for name in ["discover", "é", &longest] {
            let packed = ScenarioName::new(name).unwrap();
            let read = ScenarioName::read_from_bytes(packed.as_bytes()).unwrap();
            assert_eq!(read.as_str(), Some(name));
        }
        for name in ["", "a\0b", &format!("{longest}x")] {
            assert_eq!(ScenarioName::new(name), None, "{name:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_name_have_none() {
        let mut odd = [0; NAME_BYTES];
        assert_eq!(ScenarioName(odd).as_str(), None, "empty");
        odd[0] = 0xff;
        assert_eq!(ScenarioName(odd).as_str(), None, "not UTF-8");
        odd[..3].copy_from_slice(b"a\0b");
        assert_eq!(ScenarioName(odd).as_str(), None, "something behind the end");
    }
}
