//! The ACPI tables of the board: RSDP, XSDT, FADT, DSDT, MADT, MCFG and IVRS.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use amdvi_vmm_glue::ivrs::ConfigError;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use super::config::{AcpiHardware, Config, RootBridge};
use super::legacy::{
    CF9_RESET, PM1_CONTROL, PM1_CONTROL_LENGTH, PM1_EVENT, PM1_EVENT_LENGTH, RESET_VALUE,
    SLEEP_CONTROL, SLEEP_STATUS, write_reset_code,
};
use super::{hpet, ivrs};
use crate::layout;
use crate::ram::Memory;

pub(super) const OEM_ID: [u8; 6] = *b"AMDVI ";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"REFVMM  ";
const OEM_REVISION: u32 = 1;

/// What can be wrong with the tables.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They did not fit below 1 MiB.
    #[error(
        "the ACPI tables end at {end:#x}, {:#x} is the limit",
        layout::ACPI_END
    )]
    TooLarge {
        /// Where they would end.
        end: u64,
    },
    /// There is no RAM where they belong.
    #[error("the ACPI tables can't be written: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The IOMMU's options can't be described.
    #[error(transparent)]
    Ivrs(#[from] ConfigError),
}

/// MADT "Processor Local x2APIC" structure (ACPI 6.5 §5.2.12.12).
#[derive(Clone, IntoBytes, Immutable)]
#[repr(C, packed)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: [u8; 2],
    apic_id: U32,
    flags: U32,
    uid: U32,
}

impl LocalX2Apic {
    fn new(uid: u32, apic_id: u32) -> Self {
        Self {
            kind: 9,
            length: 16,
            reserved: [0; 2],
            apic_id: U32::new(apic_id),
            flags: U32::new(1),
            uid: U32::new(uid),
        }
    }
}

impl Aml for LocalX2Apic {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.as_bytes());
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn madt(apic_ids: &[u32]) -> Vec<u8> {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC_BASE);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for (uid, &apic_id) in apic_ids.iter().enumerate() {
        // IDs from 255 on exist only in the x2APIC form.
        match u8::try_from(apic_id) {
            Ok(id) if id != 0xff => {
                madt.add_structure(ProcessorLocalApic::new(
                    uid as u8,
                    id,
                    EnabledStatus::Enabled,
                ));
            }
            _ => madt.add_structure(LocalX2Apic::new(uid as u32, apic_id)),
        }
    }
    madt.add_structure(IoApic::new(
        layout::IOAPIC_ID,
        layout::IOAPIC_BASE as u32,
        0,
    ));
    bytes(&madt)
}

fn mcfg(bridges: &[RootBridge]) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for bridge in bridges {
        mcfg.add_ecam(bridge.ecam.start, bridge.segment.0, 0, bridge.last_bus);
    }
    bytes(&mcfg)
}

/// FADT IA-PC boot architecture flags (ACPI 6.5 table 5.11). An 8042 is not among them.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// What the FADT says of the machine's own registers.
#[derive(Clone, Copy)]
enum Hardware {
    /// There are none: a machine for a payload, which is ended otherwise.
    Bare,
    /// Sleep and reset registers, hardware-reduced.
    Reduced,
    /// The reset register and ACPI's fixed hardware, with a FACS at this GPA.
    Fixed(u64),
}

/// The interrupt of ACPI's fixed hardware, as on any PC.
const SCI: u16 = 9;

/// Without fixed hardware: no SCI, no PM timer, no fixed events; and no FACS, which is then optional.
fn fadt(dsdt: u64, hardware: Hardware) -> Vec<u8> {
    let ports = |port: u16, bits: u8, access: AccessSize| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
    };
    let port = |port: u16| ports(port, 8, AccessSize::ByteAccess);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        // Neither button is there as fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let mut architecture = VGA_NOT_PRESENT;
    if matches!(hardware, Hardware::Bare) {
        architecture |= CMOS_RTC_NOT_PRESENT;
    } else {
        fadt = fadt.flag(Flags::ResetRegSup);
        fadt.reset_reg = port(CF9_RESET);
        fadt.reset_value = RESET_VALUE;
    }
    match hardware {
        Hardware::Bare => fadt = fadt.flag(Flags::HwReducedAcpi),
        Hardware::Reduced => {
            fadt = fadt.flag(Flags::HwReducedAcpi);
            fadt.sleep_control_reg = port(SLEEP_CONTROL);
            fadt.sleep_status_reg = port(SLEEP_STATUS);
        }
        Hardware::Fixed(facs) => {
            // The clock wakes nobody: its event is not one of PM1's.
            fadt = fadt.flag(Flags::FixRtc).firmware_ctrl_64(facs);
            // Software takes the old fields where it does not know the new ones. There is no SMI
            // command: the machine starts in ACPI mode.
            fadt.sci_int = SCI.into();
            fadt.pm1a_evt_blk = u32::from(PM1_EVENT).into();
            fadt.pm1_evt_len = PM1_EVENT_LENGTH;
            fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
            fadt.pm1_cnt_len = PM1_CONTROL_LENGTH;
            // Above 100 and 1000 µs: there is neither C2 nor C3.
            fadt.p_lvl2_lat = 101.into();
            fadt.p_lvl3_lat = 1001.into();
            fadt.x_pm1a_evt_blk = ports(PM1_EVENT, 32, AccessSize::WordAccess);
            fadt.x_pm1a_cnt_blk = ports(PM1_CONTROL, 16, AccessSize::WordAccess);
        }
    }
    fadt.iapc_boot_arch = architecture.into();
    bytes(&fadt.finalize())
}

/// Lays the tables out behind each other.
struct Writer<'a> {
    memory: &'a Memory,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let at = self.next;
        let end = at + table.len() as u64;
        if end > layout::ACPI_END {
            return Err(AcpiError::TooLarge { end });
        }
        self.memory.write_slice(table, GuestAddress(at))?;
        self.next = end.next_multiple_of(64);
        Ok(at)
    }
}

/// Writes every table, the RSDP at [`layout::RSDP`], and what other firmware a PC has.
pub(super) fn write(memory: &Memory, config: &Config, apic_ids: &[u32]) -> Result<(), AcpiError> {
    let mut writer = Writer {
        memory,
        next: layout::ACPI_TABLES,
    };
    let dsdt = writer.put(&dsdt::table(config))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let hardware = match (&config.legacy, config.acpi) {
        (None, _) => Hardware::Bare,
        (Some(_), AcpiHardware::Reduced) => Hardware::Reduced,
        (Some(_), AcpiHardware::Fixed) => Hardware::Fixed(writer.put(&bytes(&FACS::new()))?),
    };
    xsdt.add_entry(writer.put(&fadt(dsdt, hardware))?);
    xsdt.add_entry(writer.put(&madt(apic_ids))?);
    xsdt.add_entry(writer.put(&mcfg(&config.root_bridges()))?);
    xsdt.add_entry(writer.put(&ivrs::table(config)?)?);
    if config.ivrs.hpet.is_some() {
        let mut table = Sdt::new(*b"HPET", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        table.append_slice(&hpet::acpi_body());
        xsdt.add_entry(writer.put(&bytes(&table))?);
    }
    let xsdt = writer.put(&bytes(&xsdt))?;
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    memory.write_slice(&rsdp, GuestAddress(layout::RSDP))?;
    if config.legacy.is_some() {
        write_reset_code(memory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_device::Options;

    fn read(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table(memory: &Memory, at: u64) -> Vec<u8> {
        let header = read(memory, at, 8);
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap());
        read(memory, at, len as usize)
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_with_a_good_checksum() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        write(&memory, &Config::scenario(Options::default()), &[0, 1, 300]).unwrap();
        // The firmware of a PC is not there: this is none.
        assert_eq!(read(&memory, 0xf_fff0, 9), [0; 9]);
        let rsdp = read(&memory, layout::RSDP, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(
            &memory,
            u64::from_le_bytes(rsdp[24..32].try_into().unwrap()),
        );
        assert_eq!(sum(&xsdt), 0);
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let table = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&table), 0, "{:?}", &table[..4]);
            names.push(String::from_utf8(table[..4].to_vec()).unwrap());
        }
        assert_eq!(names, ["FACP", "APIC", "MCFG", "IVRS"]);
    }

    #[test]
    fn the_fadt_has_reset_and_sleep_registers_only_where_there_are_some() {
        let register = |fadt: &[u8], at: usize| {
            // System I/O, eight bits, by bytes.
            assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
            u64::from_le_bytes(fadt[at + 4..at + 12].try_into().unwrap())
        };
        let flags = |fadt: &[u8]| u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        let pc = fadt(0xe_1000, Hardware::Reduced);
        assert_eq!((sum(&pc), pc.len()), (0, 276));
        assert_ne!(flags(&pc) & 1 << 20, 0, "hardware-reduced");
        assert_ne!(flags(&pc) & 1 << 10, 0, "a reset register");
        assert_eq!((register(&pc, 116), pc[128]), (0xcf9, 6));
        assert_eq!((register(&pc, 244), register(&pc, 256)), (0x600, 0x601));
        // No VGA; a CMOS clock; MSI is supported.
        assert_eq!(pc[109], 0b0000_0100);
        let bare = fadt(0xe_1000, Hardware::Bare);
        assert_eq!(flags(&bare) & 1 << 10, 0);
        assert_eq!(bare[116..128], [0; 12]);
        assert_eq!(bare[109], 0b0010_0100, "no clock");
    }

    #[test]
    fn the_fadt_of_fixed_hardware_has_an_sci_and_pm1_in_both_forms() {
        let fadt = fadt(0xe_1000, Hardware::Fixed(0xe_2000));
        let word = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(fadt[at..at + 8].try_into().unwrap());
        assert_eq!(sum(&fadt), 0);
        assert_eq!(word(112) & 1 << 20, 0, "not hardware-reduced");
        assert_ne!(word(112) & 1 << 10, 0, "a reset register");
        assert_eq!(fadt[46], 9, "SCI");
        assert_eq!((word(56), fadt[88]), (0x604, 4));
        assert_eq!((word(64), fadt[89]), (0x608, 2));
        assert_eq!(long(132), 0xe_2000, "FACS");
        assert_eq!((&fadt[148..152], long(152)), (&[1, 32, 0, 2][..], 0x604));
        assert_eq!((&fadt[172..176], long(176)), (&[1, 16, 0, 2][..], 0x608));
        assert_eq!(fadt[244..268], [0; 24], "no sleep registers");
    }

    #[test]
    fn an_apic_id_above_255_is_listed_as_x2apic() {
        let madt = madt(&[0, 300]);
        let entries = &madt[44..];
        assert_eq!((entries[0], entries[1], entries[3]), (0, 8, 0));
        let x2apic = &entries[8..24];
        assert_eq!((x2apic[0], x2apic[1]), (9, 16));
        assert_eq!(u32::from_le_bytes(x2apic[4..8].try_into().unwrap()), 300);
        assert_eq!((entries[24], entries[26]), (1, layout::IOAPIC_ID));
    }
}
