//! Saved state: what may be restored, and why not.
//!
//! A saved state is as untrusted as a guest: it may come from another host. Only states that a
//! guest could have produced by register writes are taken.

use amdvi_core::Counters;
use amdvi_regs::mmio::{Control, RingBase, Status};
use serde::{Deserialize, Serialize};

use crate::ats::PendingInvalidation;
use crate::commands::is_legal;
use crate::state::{
    EXCLUSION_MASKS, GA_TAIL_ADDRESS_MASK, MsiState, Offer, PCI_COMMAND_MASK, POINTER_MASK_8,
    POINTER_MASK_16, PPR_AUTO_RESPONSE_MASK, PPR_EARLY_MASK, Registers, Ring, XT_INTERRUPT_MASK,
    device_table_mask, device_table_max_size, settle_control,
};

/// The architectural state of an IOMMU, for any serde format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedState {
    version: u32,
    efr: u64,
    efr2: u64,
    #[serde(default)]
    device_iotlb: bool,
    #[serde(default)]
    perf_counters: (u8, u8),
    registers: Registers,
    /// As [`Counters::save`] gives them.
    #[serde(default)]
    counters: Vec<u64>,
}

/// A saved state that this device does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Another version of the format.
    #[error("saved state has version {found}; this device reads versions {oldest} to {supported}")]
    Version {
        /// The version of the state.
        found: u32,
        /// The oldest version that can be read.
        oldest: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// The state belongs to a device that offers something else.
    #[error(
        "saved state is of a device with {register} {saved:#x}, this one has {here:#x}; start it \
         with the same amd-iommu options"
    )]
    Features {
        /// `EFR`, `EFR2`, or a field that is not among them.
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
    /// The version that is written, and the newest that is read.
    ///
    /// Version 2 knows page requests, devices' TLBs and performance counters. A state of version 1, in
    /// a format that names its fields, is of a device without them, and is read as such.
    pub const VERSION: u32 = 2;
    /// The oldest version that is read.
    pub const OLDEST: u32 = 1;

    pub(crate) fn new(
        registers: &Registers,
        counters: impl Iterator<Item = u64>,
        offer: &Offer,
    ) -> Self {
        Self {
            version: Self::VERSION,
            efr: offer.efr.into_bits(),
            efr2: offer.efr2.into_bits(),
            device_iotlb: offer.device_iotlb,
            perf_counters: offer.counters,
            registers: Registers {
                // Whom they were sent to is nothing that another machine could know.
                invalidations: registers
                    .invalidations
                    .iter()
                    .map(PendingInvalidation::unsent)
                    .collect(),
                ..registers.clone()
            },
            counters: counters.collect(),
        }
    }

    pub(crate) fn check(
        &self,
        offer: &Offer,
        counters: &Counters,
    ) -> Result<(&Registers, &[u64]), RestoreError> {
        if !(Self::OLDEST..=Self::VERSION).contains(&self.version) {
            return Err(RestoreError::Version {
                found: self.version,
                oldest: Self::OLDEST,
                supported: Self::VERSION,
            });
        }
        for (register, saved, here) in [
            ("EFR", self.efr, offer.efr.into_bits()),
            ("EFR2", self.efr2, offer.efr2.into_bits()),
            (
                "IotlbSup",
                self.device_iotlb.into(),
                offer.device_iotlb.into(),
            ),
            (
                "NCounterBanks",
                self.perf_counters.0.into(),
                offer.counters.0.into(),
            ),
            (
                "NCounter",
                self.perf_counters.1.into(),
                offer.counters.1.into(),
            ),
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
        ensure(
            counters.accepts(&self.counters),
            "performance counters",
            self.counters.len() as u64,
        )?;
        Ok((&self.registers, &self.counters))
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
    if efr.ppr_sup() {
        sticky = sticky.with_ppr_int(true).with_ppr_overflow(true);
        if efr.dual_ppr_log_sup() != 0 {
            sticky = sticky.with_ppr_overflow_b(true);
        }
        if efr.ppr_ovrflw_early_sup() {
            sticky = sticky
                .with_ppr_ovrflw_early(true)
                .with_ppr_ovrflw_early_b(efr.dual_ppr_log_sup() != 0);
        }
    }
    within("STATUS", r.status, sticky.into_bits())?;
    let status = Status::from_bits(r.status);
    // Of two PPR logs, one may have overflowed while the other is in use.
    let ppr_overflow = status.ppr_overflow() && efr.dual_ppr_log_sup() == 0;
    let running = status.event_overflow() && !r.event_stopped
        || status.gal_overflow() && !r.ga_stopped
        || ppr_overflow && !r.ppr.stopped;
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
    check_ppr(r, offer)?;
    check_invalidations(r, offer)?;
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

fn check_ppr(r: &Registers, offer: &Offer) -> Result<(), RestoreError> {
    let (efr, ppr) = (offer.efr, &r.ppr);
    for (log, ring) in ppr.logs.iter().enumerate() {
        check_ring(
            ring,
            POINTER_MASK_16,
            false,
            ["PPR log base", "PPR log head", "PPR log tail"],
        )?;
        let second = log == 1;
        let offered = efr.ppr_sup() && (!second || efr.dual_ppr_log_sup() != 0);
        let untouched = offered || *ring == Ring::RESET;
        ensure(untouched, "PPR log base (not offered)", ring.base)?;
        let mask = if offered && efr.ppr_ovrflw_early_sup() {
            PPR_EARLY_MASK
        } else {
            0
        };
        within("PPR overflow early indicator", ppr.early[log], mask)?;
    }
    let mask = if efr.ppr_auto_rsp_sup() {
        PPR_AUTO_RESPONSE_MASK
    } else {
        0
    };
    within("PPR auto response", ppr.auto_response, mask)?;
    let possible = !ppr.stopped || efr.ppr_sup();
    ensure(possible, "PPR log state (not offered)", 1)?;
    let possible = !ppr.swapped || efr.dual_ppr_log_sup() != 0;
    ensure(possible, "PPR log in use (not offered)", 1)
}

fn check_invalidations(r: &Registers, offer: &Offer) -> Result<(), RestoreError> {
    let pending = &r.invalidations;
    let most = if offer.device_iotlb {
        PendingInvalidation::MAX
    } else {
        0
    };
    let count = pending.len();
    ensure(
        count <= most,
        "number of unanswered invalidations",
        count as u64,
    )?;
    for one in pending {
        let legal = one.command().is_some_and(|c| is_legal(&c.into(), offer));
        ensure(legal, "unanswered invalidation", one.words[0])?;
        within("command address", one.gpa, 0x000f_ffff_ffff_fff0)?;
    }
    Ok(())
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
