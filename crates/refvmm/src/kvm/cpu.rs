//! The state in which a vCPU starts: 64-bit mode, everything mapped to itself.

use amdvi_guest::boot::BOOT_INFO_GPA;
use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::error::KvmError;
use crate::ram::Memory;

/// Page map level 4; the tables below it follow.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// First GPA behind the page tables.
pub(crate) const PAGE_TABLES_END: u64 = HIGH_DIRECTORY + PAGE;

const PAGE_POINTERS: u64 = PAGE_TABLES + PAGE;
const PAGE_DIRECTORIES: u64 = PAGE_POINTERS + PAGE;
/// For a heap above 4 GiB: pointers, where they are not among those of the first 512 GiB, and a
/// directory.
const HIGH_POINTERS: u64 = PAGE_DIRECTORIES + GIGABYTES * PAGE;
const HIGH_DIRECTORY: u64 = HIGH_POINTERS + PAGE;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 2 << 20;
/// The identity map covers 4 GiB: the payload, BARs, ECAM, IOAPIC and firmware tables are below.
const GIGABYTES: u64 = 4;
const ENTRIES: u64 = 512;
const GIGABYTE: u64 = ENTRIES * LARGE_PAGE;

const PRESENT_WRITABLE: u64 = 0b11;
const PAGE_SIZE_BIT: u64 = 1 << 7;

/// PE, MP, ET, NE, PG.
const CR0: u64 = 0x8000_0033;
/// PAE.
const CR4: u64 = 0x20;
/// LME, LMA.
const EFER: u64 = 0x500;
/// Reserved bit 1, which is always set; interrupts off.
const RFLAGS: u64 = 2;
/// Global enable and x2APIC mode of the APIC base register.
const X2APIC_ENABLED: u64 = 0xc00;

/// Bits of a guest physical address (CPUID 8000_0008h); 36 where the leaf is missing.
pub(crate) fn phys_bits(cpuid: &CpuId) -> u8 {
    let mut leaves = cpuid.as_slice().iter();
    let leaf = leaves.find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax as u8)
}

/// Writes the page tables that all CPUs share: 4 GiB, and the GiB at `high` if there is one.
pub(crate) fn write_page_tables(memory: &Memory, high: Option<u64>) -> Result<(), KvmError> {
    let put = |gpa: u64, entry: u64| {
        memory
            .write_obj(entry, GuestAddress(gpa))
            .map_err(|error| KvmError::Memory(format!("page tables at {gpa:#x}: {error}")))
    };
    put(PAGE_TABLES, PAGE_POINTERS | PRESENT_WRITABLE)?;
    let gigabyte = |pointers: u64, directory: u64, gigabyte: u64| {
        put(
            pointers + gigabyte % ENTRIES * 8,
            directory | PRESENT_WRITABLE,
        )?;
        for entry in 0..ENTRIES {
            let gpa = (gigabyte * ENTRIES + entry) * LARGE_PAGE;
            put(
                directory + entry * 8,
                gpa | PAGE_SIZE_BIT | PRESENT_WRITABLE,
            )?;
        }
        Ok(())
    };
    for n in 0..GIGABYTES {
        gigabyte(PAGE_POINTERS, PAGE_DIRECTORIES + n * PAGE, n)?;
    }
    let Some(high) = high else { return Ok(()) };
    let high = high / GIGABYTE;
    let pointers = match high / ENTRIES {
        0 => PAGE_POINTERS,
        pml4e => {
            put(PAGE_TABLES + pml4e * 8, HIGH_POINTERS | PRESENT_WRITABLE)?;
            HIGH_POINTERS
        }
    };
    gigabyte(pointers, HIGH_DIRECTORY, high)
}

/// Puts a new vCPU where the payload's border says that CPU `index` starts.
pub(super) fn set_up(
    vcpu: &VcpuFd,
    cpuid: &CpuId,
    index: usize,
    apic_id: u32,
    entry: u64,
) -> Result<(), KvmError> {
    vcpu.set_cpuid2(&with_apic_id(cpuid, apic_id))
        .map_err(KvmError::call("KVM_SET_CPUID2"))?;

    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x08,
        type_: 0b1011,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 0x10,
        type_: 0b0011,
        db: 1,
        l: 0,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.cr0 = CR0;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
    sregs.apic_base |= X2APIC_ENABLED;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;

    let regs = kvm_regs {
        rip: entry,
        rdi: BOOT_INFO_GPA,
        rsi: index as u64,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(KvmError::call("KVM_SET_REGS"))?;

    // All but the boot CPU would wait for a SIPI.
    let runnable = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    vcpu.set_mp_state(runnable)
        .map_err(KvmError::call("KVM_SET_MP_STATE"))
}

/// The host's CPUID with this CPU's APIC ID, and x2APIC.
fn with_apic_id(cpuid: &CpuId, apic_id: u32) -> CpuId {
    let mut cpuid = cpuid.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                // Eight bits is what this leaf has.
                entry.ebx = entry.ebx & 0x00ff_ffff | (apic_id & 0xff) << 24;
                entry.ecx |= 1 << 21;
            }
            0xb | 0x1f => entry.edx = apic_id,
            _ => {}
        }
    }
    cpuid
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn the_identity_map_reaches_the_last_byte_below_4_gib_and_of_a_heap_above() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let read = |gpa: u64| memory.read_obj::<u64>(GuestAddress(gpa)).unwrap();
        let walk = |gpa: u64| {
            let pml4e = read(PAGE_TABLES + (gpa >> 39 & 511) * 8);
            let pdpte = read((pml4e & !0xfff) + (gpa >> 30 & 511) * 8);
            let pde = read((pdpte & !0xfff) + (gpa >> 21 & 511) * 8);
            assert_eq!(
                [pml4e & 0xfff, pdpte & 0xfff, pde & 0xfff],
                [3, 3, 0x83],
                "{gpa:#x}"
            );
            assert_eq!(pde & !0x1f_ffff, gpa & !0x1f_ffff, "{gpa:#x}");
        };
        for high in [None, Some(1 << 32), Some(1 << 40)] {
            write_page_tables(&memory, high).unwrap();
            for gpa in [0, 0x10_0000, 0xe000_0000, 0xfec0_0000, 0xffff_ffff_u64] {
                walk(gpa);
            }
            if let Some(high) = high {
                walk(high);
                walk(high + GIGABYTE - 1);
            }
        }
    }

    #[test]
    fn the_width_of_addresses_is_the_low_byte_of_its_leaf() {
        let leaf = kvm_cpuid_entry2 {
            function: 0x8000_0008,
            eax: 0x3028,
            ..Default::default()
        };
        assert_eq!(phys_bits(&CpuId::from_entries(&[leaf]).unwrap()), 40);
        assert_eq!(phys_bits(&CpuId::from_entries(&[]).unwrap()), 36);
    }

    #[test]
    fn the_apic_id_appears_in_every_cpuid_leaf_that_has_it() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            ebx: 0x1234_5678,
            ..Default::default()
        };
        let host = CpuId::from_entries(&[leaf(0), leaf(1), leaf(0xb), leaf(0x1f)]).unwrap();
        let guest = with_apic_id(&host, 300);
        let [zero, one, b, f] = guest.as_slice() else {
            panic!("four leaves")
        };
        assert_eq!(zero.ebx, 0x1234_5678);
        assert_eq!((one.ebx, one.ecx), (0x2c34_5678, 1 << 21));
        assert_eq!((b.edx, f.edx), (300, 300));
    }
}
