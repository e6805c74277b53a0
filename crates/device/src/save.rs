//! Saved state: what may be restored, and why not.
//!
//! A saved state is as untrusted as a guest: it may come from another host. Only states that a
//! guest could have produced by register writes are taken.

use amdvi_regs::mmio::{Control, RingBase, Status};
use serde::{Deserialize, Serialize};

use crate::state::{
    EXCLUSION_MASKS, GA_TAIL_ADDRESS_MASK, MsiState, Offer, PCI_COMMAND_MASK, POINTER_MASK_8,
    POINTER_MASK_16, Registers, Ring, XT_INTERRUPT_MASK, device_table_mask, device_table_max_size,
    settle_control,
};

/// The architectural state of an IOMMU, for any serde format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedState {
    version: u32,
    efr: u64,
    efr2: u64,
    registers: Registers,
}

/// A saved state that this device does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Another version of the format.
    #[error("saved state has version {found}; this device reads version {supported}")]
    Version {
        /// The version of the state.
        found: u32,
        /// The version that can be read.
        supported: u32,
    },
    /// The state belongs to a device that offers something else.
    #[error(
        "saved state is of a device with {register} {saved:#x}, this one has {here:#x}; start it \
         with the same amd-iommu options"
    )]
    Features {
        /// `EFR` or `EFR2`.
        register: &'static str,
        /// Its value in the state.
        saved: u64,
        /// Its value in this device.
        here: u64,
    },
    /// A value that no guest could have written.
    #[error("saved state has an impossible {field}: {value:#x}")]
    Value {
        /// The register.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl SavedState {
    /// The version that is written and read.
    pub const VERSION: u32 = 1;

    pub(crate) fn new(registers: &Registers, offer: &Offer) -> Self {
        Self {
            version: Self::VERSION,
            efr: offer.efr.into_bits(),
            efr2: offer.efr2.into_bits(),
            registers: registers.clone(),
        }
    }

    pub(crate) fn check(&self, offer: &Offer) -> Result<&Registers, RestoreError> {
        if self.version != Self::VERSION {
            return Err(RestoreError::Version {
                found: self.version,
                supported: Self::VERSION,
            });
        }
        for (register, saved, here) in [
            ("EFR", self.efr, offer.efr.into_bits()),
            ("EFR2", self.efr2, offer.efr2.into_bits()),
        ] {
            if saved != here {
                return Err(RestoreError::Features {
                    register,
                    saved,
                    here,
                });
            }
        }
        check_registers(&self.registers, offer)?;
        Ok(&self.registers)
    }
}

fn ensure(ok: bool, field: &'static str, value: u64) -> Result<(), RestoreError> {
    if ok {
        Ok(())
    } else {
        Err(RestoreError::Value { field, value })
    }
}

fn within(field: &'static str, value: u64, mask: u64) -> Result<(), RestoreError> {
    ensure(value & !mask == 0, field, value)
}

fn check_registers(r: &Registers, offer: &Offer) -> Result<(), RestoreError> {
    let efr = offer.efr;
    let settled = settle_control(Control::RESET, r.control, efr, offer.efr2);
    ensure(settled.into_bits() == r.control, "CONTROL", r.control)?;
    let mut sticky = Status::new()
        .with_event_overflow(true)
        .with_event_log_int(true)
        .with_com_wait_int(true);
    if efr.ga_sup() {
        sticky = sticky.with_ga_int(true).with_gal_overflow(true);
    }
    within("STATUS", r.status, sticky.into_bits())?;
    let status = Status::from_bits(r.status);
    let running =
        status.event_overflow() && !r.event_stopped || status.gal_overflow() && !r.ga_stopped;
    ensure(
        !running,
        "STATUS (overflow of a log that is not stopped)",
        r.status,
    )?;
    for (n, &base) in r.device_tables.iter().enumerate() {
        let offered = n < 1 << efr.dev_tbl_seg_sup();
        let ok = base & !device_table_mask(n) == 0
            && (base & 0x1ff) as u16 <= device_table_max_size(n)
            && (offered || base == 0);
        ensure(ok, "device table base", base)?;
    }
    within("exclusion base", r.exclusion[0], EXCLUSION_MASKS[0])?;
    within("exclusion limit", r.exclusion[1], EXCLUSION_MASKS[1])?;
    check_ring(
        &r.command,
        POINTER_MASK_16,
        false,
        ["command base", "command head", "command tail"],
    )?;
    check_ring(
        &r.event,
        POINTER_MASK_16,
        false,
        ["event log base", "event head", "event tail"],
    )?;
    check_ring(
        &r.ga,
        POINTER_MASK_8,
        true,
        ["GA log base", "GA log head", "GA log tail"],
    )?;
    within(
        "GA log tail address",
        r.ga_tail_address,
        GA_TAIL_ADDRESS_MASK,
    )?;
    if !efr.ga_sup() {
        ensure(r.ga == Ring::RESET, "GA log base (not offered)", r.ga.base)?;
        ensure(
            r.ga_tail_address == 0,
            "GA log tail address (not offered)",
            r.ga_tail_address,
        )?;
    }
    for &value in &r.xt_interrupts {
        let mask = if efr.xt_sup() { XT_INTERRUPT_MASK } else { 0 };
        within("XT interrupt control", value, mask)?;
    }
    let low = r.msi.address_low;
    within("MSI address", low.into(), MsiState::ADDRESS_LOW_MASK.into())?;
    within("PCI command", r.pci_command.into(), PCI_COMMAND_MASK.into())
}

fn check_ring(
    ring: &Ring,
    pointers: u64,
    any_head: bool,
    [base, head, tail]: [&'static str; 3],
) -> Result<(), RestoreError> {
    within(base, ring.base, Ring::BASE_MASK)?;
    ensure(
        RingBase::from_bits(ring.base).bytes().is_some(),
        base,
        ring.base,
    )?;
    within(head, ring.head, pointers)?;
    within(tail, ring.tail, pointers)?;
    ensure(any_head || ring.head < ring.bytes(), head, ring.head)?;
    ensure(ring.tail < ring.bytes(), tail, ring.tail)
}
