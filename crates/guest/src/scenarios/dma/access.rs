//! Accesses by a DMA channel of the endpoint, with a PASID or without, checked at both ends.

use amdvi_regs::event::{
    Event, IllegalDevTableEntry, InvalidDeviceRequest, InvalidRequestType, IoPageFault,
    PageTabHardwareError,
};

use super::{DOMAIN, Flags};
use crate::endpoint::dma::{EQUAL, op, pasid, pattern, reason, status};
use crate::failure::{Result, ensure};
use crate::machine::Machine;
use crate::platform::Platform;
use crate::testdev::{Ended, Operation};

/// Bytes of an access.
pub(super) const LENGTH: u32 = 64;
const WORDS: u64 = LENGTH as u64 / 8;

/// Whose request it is, and what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// The process address space; `None` for a request without PASID.
    pub(super) pasid: Option<u32>,
    privileged: bool,
    execute: bool,
}

impl Who {
    /// A request without PASID.
    pub(super) const PLAIN: Self = Self {
        pasid: None,
        privileged: false,
        execute: false,
    };

    /// A user's request.
    pub(super) const fn pasid(pasid: u32) -> Self {
        Self {
            pasid: Some(pasid),
            ..Self::PLAIN
        }
    }

    /// Privileged Mode Requested.
    pub(super) const fn privileged(self) -> Self {
        Self {
            privileged: true,
            ..self
        }
    }

    /// Execute Requested.
    pub(super) const fn execute(self) -> Self {
        Self {
            execute: true,
            ..self
        }
    }

    /// Whether it is privileged.
    pub(super) const fn is_privileged(self) -> bool {
        self.privileged
    }

    /// Whether it is to execute what it reads.
    pub(super) const fn executes(self) -> bool {
        self.execute
    }

    /// The PASID register of a channel.
    const fn register(self) -> u32 {
        match self.pasid {
            Some(value) => {
                let mut bits = pasid::ON | value;
                if self.privileged {
                    bits |= pasid::PRIVILEGED;
                }
                if self.execute {
                    bits |= pasid::EXECUTE;
                }
                bits
            }
            None => 0,
        }
    }

    const fn value(self) -> u32 {
        match self.pasid {
            Some(value) => value,
            None => 0,
        }
    }

    /// IO_PAGE_FAULT of the guest's tables, or of a request with a PASID: GN=1. A request without one
    /// has PASID 0 there.
    pub(super) fn fault<P: Platform + ?Sized>(
        self,
        m: &Machine<'_, P>,
        iova: u64,
        write: bool,
        flags: Flags,
    ) -> Event {
        IoPageFault::new()
            .with_device_id(m.dev.id.0)
            .with_pasid_19_16((self.value() >> 16) as u8)
            .with_pasid_domain_id(self.value() as u16)
            .with_gn(true)
            .with_nx(self.execute && !write)
            .with_us(!self.privileged)
            .with_pr(flags.pr)
            .with_rw(write)
            .with_pe(flags.pe)
            .with_rz(flags.rz)
            .with_address(iova)
            .into()
    }

    /// ILLEGAL_DEV_TABLE_ENTRY.
    pub(super) fn illegal<P: Platform + ?Sized>(
        self,
        m: &Machine<'_, P>,
        iova: u64,
        write: bool,
        rz: bool,
    ) -> Event {
        IllegalDevTableEntry::new()
            .with_device_id(m.dev.id.0)
            .with_pasid_19_16((self.value() >> 16) as u8)
            .with_pasid_15_0(self.value() as u16)
            .with_gn(self.pasid.is_some())
            .with_rw(write)
            .with_rz(rz)
            .with_address_4(iova >> 2)
            .into()
    }

    /// PAGE_TAB_HARDWARE_ERROR for an entry of the guest's tables at `gpa`.
    pub(super) fn table_error<P: Platform + ?Sized>(
        self,
        m: &Machine<'_, P>,
        gpa: u64,
        write: bool,
    ) -> Event {
        PageTabHardwareError::new()
            .with_device_id(m.dev.id.0)
            .with_pasid_domain_id(self.value() as u16)
            .with_gn(true)
            .with_rw(write)
            .with_kind(1)
            .with_address_8(gpa >> 3)
            .into()
    }

    /// INVALID_DEVICE_REQUEST. US has a meaning with a PASID only.
    pub(super) fn invalid<P: Platform + ?Sized>(
        self,
        m: &Machine<'_, P>,
        address: u64,
        kind: InvalidRequestType,
    ) -> Event {
        let (tr, kind) = kind.bits();
        InvalidDeviceRequest::new()
            .with_device_id(m.dev.id.0)
            .with_pasid_19_16((self.value() >> 16) as u8)
            .with_pasid_15_0(self.value() as u16)
            .with_gn(self.pasid.is_some())
            .with_us(self.pasid.is_some() && !self.privileged)
            .with_tr(tr)
            .with_kind(kind)
            .with_address(address)
            .into()
    }
}

/// IO_PAGE_FAULT of the host's tables on behalf of the guest's: GN=0, and the address is a guest
/// physical one.
pub(super) fn host_fault<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    gpa: u64,
    write: bool,
    flags: Flags,
) -> Event {
    super::page_fault(m, gpa, write, flags)
}

/// PAGE_TAB_HARDWARE_ERROR for an entry of the host's tables at `spa`.
pub(super) fn host_table_error<P: Platform + ?Sized>(
    m: &Machine<'_, P>,
    spa: u64,
    write: bool,
) -> Event {
    PageTabHardwareError::new()
        .with_device_id(m.dev.id.0)
        .with_pasid_domain_id(DOMAIN)
        .with_rw(write)
        .with_kind(1)
        .with_address_8(spa >> 3)
        .into()
}

/// A read that compares with the pattern, or a write of it.
pub(super) fn operation(who: Who, iova: u64, write: bool, length: u32, seed: u64) -> Operation {
    Operation {
        code: if write { op::FILL } else { op::COMPARE },
        iova,
        length,
        operand: seed,
        pasid: who.register(),
    }
}

/// A seed that no operation had before.
pub(super) fn next_seed<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> u64 {
    m.operations += 1;
    m.operations << 32 | 0x5eed
}

/// Puts the pattern of a seed into the memory of an access.
pub(super) fn put<P: Platform + ?Sized>(m: &mut Machine<'_, P>, gpa: u64, seed: u64) {
    for n in 0..WORDS {
        m.p.write_u64(gpa + 8 * n, pattern(seed, n));
    }
}

/// The memory of an access holds the pattern of a seed.
pub(super) fn holds<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    gpa: u64,
    seed: u64,
) -> Result<()> {
    for n in 0..WORDS {
        let seen = m.p.read_u64(gpa + 8 * n);
        let expected = pattern(seed, n);
        ensure!(
            seen == expected,
            "word {n} at {gpa:#x} is {seen:#x}, not {expected:#x}"
        );
    }
    Ok(())
}

/// An operation that must have succeeded.
pub(super) fn succeeded(ended: &Ended, what: &str, iova: u64) -> Result<()> {
    ensure!(
        ended.status == status::DONE,
        "a DMA {what} at {iova:#x} had status {}, reason {}",
        ended.status,
        ended.reason
    );
    Ok(())
}

/// A read at `iova` brings what stands at `gpa`.
pub(super) fn reads<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    who: Who,
    iova: u64,
    gpa: u64,
) -> Result<()> {
    let seed = next_seed(m);
    put(m, gpa, seed);
    let operation = operation(who, iova, false, LENGTH, seed);
    let ended = m.dev.operate(m.p, &operation);
    succeeded(&ended, "read", iova)?;
    ensure!(
        ended.result == EQUAL,
        "a DMA read at {iova:#x} does not bring what stands at {gpa:#x} from byte {} on",
        ended.result
    );
    m.expect_no_event()
}

/// A write at `iova` arrives at `gpa`.
pub(super) fn writes<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    who: Who,
    iova: u64,
    gpa: u64,
) -> Result<()> {
    let (old, seed) = (next_seed(m), next_seed(m));
    put(m, gpa, old);
    let operation = operation(who, iova, true, LENGTH, seed);
    let ended = m.dev.operate(m.p, &operation);
    succeeded(&ended, "write", iova)?;
    holds(m, gpa, seed)?;
    m.expect_no_event()
}

/// Both ways.
pub(super) fn passes<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    who: Who,
    iova: u64,
    gpa: u64,
) -> Result<()> {
    reads(m, who, iova, gpa)?;
    writes(m, who, iova, gpa)
}

/// An access that the IOMMU must abort, with this event or none, and that changes nothing at `gpa`.
pub(super) fn refused<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    who: Who,
    iova: u64,
    write: bool,
    gpa: u64,
    event: Option<Event>,
) -> Result<()> {
    denied(m, who, iova, write, gpa, reason::IOMMU)?;
    if let Some(event) = event {
        m.expect_event(event)?;
    }
    m.expect_no_event()
}

/// An access that must be aborted for this reason, and that changes nothing at `gpa`. Events are the
/// caller's.
pub(super) fn denied<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    who: Who,
    iova: u64,
    write: bool,
    gpa: u64,
    why: u32,
) -> Result<()> {
    let (old, seed) = (next_seed(m), next_seed(m));
    put(m, gpa, old);
    let operation = operation(who, iova, write, LENGTH, seed);
    let ended = m.dev.operate(m.p, &operation);
    let what = if write { "write" } else { "read" };
    aborted(&ended, what, iova, why)?;
    holds(m, gpa, old)?;
    m.blocked += 1;
    Ok(())
}

/// An operation that must have been aborted at its beginning, for this reason.
pub(super) fn aborted(ended: &Ended, what: &str, iova: u64, why: u32) -> Result<()> {
    let expected = Ended {
        status: status::ABORTED,
        reason: why,
        done: 0,
        fault_iova: iova,
        ..*ended
    };
    ensure!(
        *ended == expected,
        "a DMA {what} at {iova:#x} had status {}, reason {} after {} bytes at {:#x}; aborted with \
         reason {why} at once is right",
        ended.status,
        ended.reason,
        ended.done,
        ended.fault_iova
    );
    Ok(())
}
