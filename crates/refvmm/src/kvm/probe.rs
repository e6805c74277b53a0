//! Whether this host can run the payload, found out by running something.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use amdvi_guest::boot::REPORT_GPA;
use amdvi_guest::report::Report;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::bus::NoDevices;
use super::cpu;
use super::error::KvmError;
use super::machine::{Config, Machine, Start};
use super::payload::Payload;
use super::vm;
use crate::ram::Ram;

/// What this host's KVM offers. Its `Display` is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The CPU's virtualization extension, `svm` or `vmx`; `None` when KVM works in software.
    pub extension: Option<&'static str>,
    /// Highest x2APIC ID that a vCPU can have.
    pub max_apic_id: u32,
    /// Bits of a guest physical address.
    pub phys_bits: u8,
    /// Instructions per second of a tight loop, in millions; measured, so it varies.
    pub million_per_second: u64,
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.extension {
            Some(extension) => write!(f, "KVM with {extension}")?,
            None => f.write_str("KVM in software (the CPU shows neither svm nor vmx)")?,
        }
        write!(
            f,
            ": a 64-bit guest runs, about {} million instructions/s, APIC IDs up to {}, \
             {} address bits",
            self.million_per_second.max(1),
            self.max_apic_id,
            self.phys_bits
        )
    }
}

/// Turns of the loop that the probe's guest runs, of two instructions each.
const TURNS: u32 = 20_000;

/// Starts a guest of a few instructions and says what KVM offers.
///
/// # Errors
///
/// Why KVM is not usable here: no device, no permission, a capability missing, or a guest that does
/// not run; the error says which.
pub fn probe() -> Result<Offer, KvmError> {
    let kvm = vm::open()?;
    let cpuid = vm::supported_cpuid(&kvm)?;
    let machine = Machine::new(Config {
        ram: Ram::emulated(2 << 20).map_err(|error| KvmError::Config(error.to_string()))?,
        apic_ids: vec![0],
        timeout: Duration::from_secs(10),
    })?;
    // The guest is too small to write a report of its own.
    let report = Report {
        magic: Report::MAGIC,
        ..Report::new()
    };
    machine
        .memory()
        .write_slice(report.as_bytes(), GuestAddress(REPORT_GPA))
        .map_err(|error| KvmError::Memory(error.to_string()))?;
    let mut code = vec![0xb9]; // mov ecx, TURNS
    code.extend_from_slice(&TURNS.to_le_bytes());
    code.extend_from_slice(&[0xff, 0xc9]); // 1: dec ecx
    code.extend_from_slice(&[0x75, 0xfc]); // jnz 1b
    code.extend_from_slice(&[0x31, 0xc0]); // xor eax, eax
    code.extend_from_slice(&[0x66, 0xba, 0xf4, 0x00]); // mov dx, EXIT_PORT
    code.push(0xef); // out dx, eax
    let start = Start {
        rsdp: 0,
        scenario: "probe",
    };
    let result = machine.run(Arc::new(NoDevices), &Payload::flat(1 << 20, &code), start)?;
    let micros = result.elapsed.as_micros().max(1) as u64;
    Ok(Offer {
        extension: extension(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        max_apic_id: kvm.get_max_vcpu_id() as u32 - 1,
        phys_bits: cpu::phys_bits(&cpuid),
        million_per_second: 2 * u64::from(TURNS) / micros,
    })
}

/// The virtualization extension among the flags of `/proc/cpuinfo`.
fn extension(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))?
        .split_whitespace();
    let mut flags = flags.filter_map(|flag| ["svm", "vmx"].into_iter().find(|e| *e == flag));
    flags.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_guest::boot::EXIT_PORT;

    #[test]
    fn the_probes_code_ends_at_the_exit_port() {
        assert_eq!(EXIT_PORT, 0xf4);
    }

    #[test]
    fn the_extension_is_a_whole_flag() {
        assert_eq!(
            extension("model\t: 1\nflags\t\t: fpu svm lm\n"),
            Some("svm")
        );
        assert_eq!(extension("flags\t\t: fpu svm_lock vmxx\n"), None);
        assert_eq!(extension(""), None);
    }

    #[test]
    fn an_offer_reads_as_a_sentence() {
        let offer = Offer {
            extension: None,
            max_apic_id: 4095,
            phys_bits: 48,
            million_per_second: 0,
        };
        assert_eq!(
            offer.to_string(),
            "KVM in software (the CPU shows neither svm nor vmx): a 64-bit guest runs, about 1 \
             million instructions/s, APIC IDs up to 4095, 48 address bits"
        );
    }
}
