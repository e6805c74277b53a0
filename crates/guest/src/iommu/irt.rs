//! Interrupt remapping tables as a driver builds them (48882 §2.2.5).

use amdvi_regs::DeviceId;
use amdvi_regs::dte::DteQ2;
use amdvi_regs::irte::{IRTE32_SIZE, IRTE128_SIZE, Irte32, Irte128GuestLo, Irte128Hi, Irte128Lo};

use crate::failure::{Result, bail};
use crate::platform::Platform;

/// IntTabLen of a table of 512 entries.
pub const LEN_512: u8 = 9;
/// IntTabLen of a table of 2048 entries.
pub const LEN_2K: u8 = 11;

/// What an entry says, independent of its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irte {
    /// RemapEn.
    pub remap_en: bool,
    /// SupIOPF.
    pub sup_iopf: bool,
    /// IntType: 0 fixed, 1 arbitrated, others reserved.
    pub int_type: u8,
    /// RqEoi.
    pub rq_eoi: bool,
    /// Logical destination mode.
    pub logical: bool,
    /// Destination APIC ID.
    pub dest: u32,
    /// Vector.
    pub vector: u8,
}

impl Irte {
    /// A fixed interrupt to one CPU.
    pub const fn fixed(dest: u32, vector: u8) -> Self {
        Self {
            remap_en: true,
            sup_iopf: false,
            int_type: 0,
            rq_eoi: false,
            logical: false,
            dest,
            vector,
        }
    }

    const fn narrow(self) -> Irte32 {
        Irte32::new()
            .with_remap_en(self.remap_en)
            .with_sup_iopf(self.sup_iopf)
            .with_int_type(self.int_type)
            .with_rq_eoi(self.rq_eoi)
            .with_dm(self.logical)
            .with_destination(self.dest as u8)
            .with_vector(self.vector)
    }

    const fn wide(self) -> [u64; 2] {
        [
            Irte128Lo::new()
                .with_remap_en(self.remap_en)
                .with_sup_iopf(self.sup_iopf)
                .with_int_type(self.int_type)
                .with_rq_eoi(self.rq_eoi)
                .with_dm(self.logical)
                .with_destination_lo(self.dest & 0xff_ffff)
                .into_bits(),
            Irte128Hi::new()
                .with_vector(self.vector)
                .with_destination_hi((self.dest >> 24) as u8)
                .into_bits(),
        ]
    }
}

/// A guest-mode entry (48882 §2.2.5.3): the interrupt goes to a virtual APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestIrte {
    /// GALogIntr: log when the virtual processor does not run.
    pub ga_log_intr: bool,
    /// IsRun: the virtual processor runs on `dest`.
    pub is_run: bool,
    /// APIC ID of the CPU that runs it.
    pub dest: u32,
    /// GATag.
    pub tag: u32,
    /// Vector in the virtual APIC.
    pub vector: u8,
    /// Virtual APIC backing page.
    pub backing_page: u64,
}

impl GuestIrte {
    const fn words(self) -> [u64; 2] {
        [
            Irte128GuestLo::new()
                .with_remap_en(true)
                .with_ga_log_intr(self.ga_log_intr)
                .with_is_run(self.is_run)
                .with_guest_mode(true)
                .with_destination_lo(self.dest & 0xff_ffff)
                .with_ga_tag(self.tag)
                .into_bits(),
            Irte128Hi::new()
                .with_vector(self.vector)
                .with_ga_root(self.backing_page >> 12 & ((1 << 40) - 1))
                .with_destination_hi((self.dest >> 24) as u8)
                .into_bits(),
        ]
    }
}

/// The interrupt remapping table of one device.
#[derive(Clone, Copy, Debug)]
pub struct Irt {
    /// The device that uses it.
    pub device: DeviceId,
    /// Where it stands.
    pub gpa: u64,
    /// IntTabLen: log2 of its entries.
    pub len: u8,
    /// 128-bit entries (CONTROL.GAEn = 1).
    pub wide: bool,
}

impl Irt {
    /// A new table, every entry with RemapEn = 0.
    pub fn new<P: Platform + ?Sized>(
        p: &mut P,
        device: DeviceId,
        len: u8,
        wide: bool,
    ) -> Result<Self> {
        let bytes = (if wide { IRTE128_SIZE } else { IRTE32_SIZE }) << len;
        let Some(gpa) = p.alloc(bytes, 4096) else {
            bail!("no RAM left for an interrupt remapping table of {bytes:#x} bytes");
        };
        Ok(Self {
            device,
            gpa,
            len,
            wide,
        })
    }

    /// Number of entries.
    pub const fn entries(&self) -> u16 {
        1 << self.len
    }

    /// The address of an entry.
    pub const fn entry(&self, index: u16) -> u64 {
        let size = if self.wide { IRTE128_SIZE } else { IRTE32_SIZE };
        self.gpa + size * index as u64
    }

    /// Writes an entry. The IOMMU may go on using the old one until it is invalidated.
    pub fn write<P: Platform + ?Sized>(&self, p: &mut P, index: u16, irte: Irte) {
        if self.wide {
            p.write_pair(self.entry(index), irte.wide());
        } else {
            p.write_u32(self.entry(index), irte.narrow().into_bits());
        }
    }

    /// Writes a guest-mode entry; only tables of 128-bit entries have them.
    pub fn write_guest<P: Platform + ?Sized>(&self, p: &mut P, index: u16, irte: GuestIrte) {
        p.write_pair(self.entry(index), irte.words());
    }

    /// The interrupt half of a DTE that uses the table.
    pub const fn dte(&self) -> DteQ2 {
        DteQ2::new()
            .with_iv(true)
            .with_int_tab_len(self.len)
            .with_int_ctl(2)
            .with_int_tab_address(self.gpa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_the_same_in_both_layouts() {
        let irte = Irte {
            remap_en: true,
            sup_iopf: true,
            int_type: 1,
            rq_eoi: true,
            logical: true,
            dest: 0x5a,
            vector: 0xc3,
        };
        assert_eq!(irte.narrow().into_bits(), 0x00c3_5a67);
        assert_eq!(irte.wide(), [0x5a67, 0xc3]);
        let far = Irte::fixed(0x8765_4321, 0x40);
        assert_eq!(far.wide(), [0x6543_2101, 0x8700_0000_0000_0040]);
    }

    #[test]
    fn a_guest_mode_entry_holds_page_and_tag() {
        let irte = GuestIrte {
            ga_log_intr: true,
            is_run: false,
            dest: 3,
            tag: 0xdead_beef,
            vector: 0x51,
            backing_page: 0x0001_2345_6000,
        };
        assert_eq!(irte.words(), [0xdead_beef_0000_0385, 0x0000_0001_2345_6051]);
    }
}
