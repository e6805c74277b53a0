//! The state in which the CPUs of a Linux guest start.
//!
//! The boot CPU starts where the boot protocol says; the others wait for INIT and SIPI, which the
//! local APICs in KVM take care of.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::image::Entry;
use super::place;
use crate::kvm::{KvmError, cpu};
use crate::ram::Memory;

/// `__BOOT_CS` and `__BOOT_DS` of Linux' boot protocol: entries 2 and 3.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const TSS: u16 = 0x20;

/// CR0.PE and ET.
const PROTECTED: u64 = 0x11;
/// CR0.PG.
const PAGING: u64 = 1 << 31;
/// CR4.PAE.
const PAE: u64 = 1 << 5;
/// EFER.LME and LMA.
const LONG_MODE: u64 = 0x500;
/// Reserved bit 1, which is always set; interrupts off.
const RFLAGS: u64 = 2;

/// MTRRdefType.
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, write-back: without it a guest takes all memory for uncached, and goes without PAT.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Type field of a segment: code that was executed, data that was written, a busy TSS.
const CODE: u8 = 0b1011;
const DATA: u8 = 0b0011;
const BUSY_TSS: u8 = 0b1011;

/// Global enable and x2APIC mode of the APIC base register.
const X2APIC_ENABLED: u64 = 0xc00;
/// The highest APIC ID that a CPU can have outside of x2APIC mode; FFh means all of them.
const HIGHEST_XAPIC_ID: u32 = 0xfe;

/// Sets up the boot CPU, and what it needs in memory.
pub(super) fn boot_cpu(vcpu: &VcpuFd, entry: Entry, memory: &Memory) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    let mut regs = kvm_regs {
        rflags: RFLAGS,
        ..Default::default()
    };
    match entry {
        Entry::Long { rip } => {
            cpu::write_page_tables(memory, None)?;
            segments(&mut sregs, true);
            sregs.cr0 = PROTECTED | PAGING;
            sregs.cr3 = cpu::PAGE_TABLES;
            sregs.cr4 = PAE;
            sregs.efer = LONG_MODE;
            regs.rip = rip;
            regs.rsi = place::BOOT_PARAMS;
        }
        Entry::Pvh { eip } => {
            segments(&mut sregs, false);
            sregs.cr0 = PROTECTED;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = eip.into();
            regs.rbx = place::START_INFO;
        }
    }
    let table = [
        0,
        0,
        descriptor(&sregs.cs),
        descriptor(&sregs.ds),
        descriptor(&sregs.tr),
    ];
    write_gdt(memory, &table)?;
    sregs.gdt.base = place::GDT;
    sregs.gdt.limit = (size_of_val(&table) - 1) as u16;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(KvmError::call("KVM_SET_REGS"))
}

/// What every CPU starts with. Firmware would have set it up.
///
/// Where an APIC ID needs it, all CPUs start in x2APIC mode: outside of it an operating system takes
/// a CPU with such an ID for a mistake of the firmware. Else it is left to switch by itself.
pub(super) fn model_registers(vcpu: &VcpuFd, apic_ids: &[u32]) -> Result<(), KvmError> {
    if apic_ids.iter().any(|id| *id > HIGHEST_XAPIC_ID) {
        let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
        sregs.apic_base |= X2APIC_ENABLED;
        vcpu.set_sregs(&sregs)
            .map_err(KvmError::call("KVM_SET_SREGS"))?;
    }
    let entry = kvm_msr_entry {
        index: MTRR_DEF_TYPE,
        data: MTRR_WRITE_BACK,
        ..Default::default()
    };
    let entries = Msrs::from_entries(&[entry])
        .map_err(|error| KvmError::Config(format!("KVM_SET_MSRS: {error:?}")))?;
    let set = vcpu
        .set_msrs(&entries)
        .map_err(KvmError::call("KVM_SET_MSRS"))?;
    if set == 1 {
        Ok(())
    } else {
        Err(KvmError::Config(
            "KVM_SET_MSRS: this host's KVM does not take MTRRdefType (2FFh)".to_owned(),
        ))
    }
}

/// Flat segments: all of memory for code and data.
fn segments(sregs: &mut kvm_sregs, long: bool) {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: BOOT_CS,
        type_: CODE,
        present: 1,
        s: 1,
        g: 1,
        l: long.into(),
        db: (!long).into(),
        ..Default::default()
    };
    let data = kvm_segment {
        selector: BOOT_DS,
        type_: DATA,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: TSS,
        type_: BUSY_TSS,
        present: 1,
        ..Default::default()
    };
}

/// The segment as an entry of a descriptor table.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let bit = |value: u8, at: u32| u64::from(value & 1) << at;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | u64::from(segment.type_ & 0xf) << 40
        | bit(segment.s, 44)
        | u64::from(segment.dpl & 3) << 45
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

fn write_gdt(memory: &Memory, table: &[u64]) -> Result<(), KvmError> {
    for (entry, at) in table.iter().zip((place::GDT..).step_by(8)) {
        memory
            .write_obj(*entry, GuestAddress(at))
            .map_err(|error| KvmError::Memory(format!("descriptor table: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_are_those_of_flat_segments() {
        let mut sregs = kvm_sregs::default();
        segments(&mut sregs, true);
        assert_eq!(descriptor(&sregs.cs), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&sregs.ds), 0x00cf_9300_0000_ffff);
        segments(&mut sregs, false);
        assert_eq!(descriptor(&sregs.cs), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&sregs.tr), 0x0000_8b00_0000_0067);
        assert_eq!((sregs.cs.selector, sregs.ss.selector), (0x10, 0x18));
    }
}
