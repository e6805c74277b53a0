//! Why an interrupt request was not delivered, and what the event log gets to know of it.

use core::fmt;

use amdvi_regs::event::{
    DevTabHardwareError, Event, IllegalDevTableEntry, IoPageFault, PageTabHardwareError,
};
use amdvi_regs::{DeviceId, DomainId};

/// Why an interrupt request was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// The address is not in the MSI window FEEx_xxxxh: this is a DMA write, not an interrupt.
    NotAnInterrupt,
    /// The DeviceID lies behind the end of its device table.
    DeviceIdOutOfRange,
    /// The DTE could not be read.
    DteUnreadable,
    /// A reserved bit of the DTE's upper half is set.
    DteReservedBits,
    /// DTE.IntCtl = 11b.
    IntCtlReserved,
    /// DTE.IntTabLen is above 11 (2048 entries).
    IntTabLenReserved,
    /// DTE.IntCtl = 00b: fixed and arbitrated interrupts are aborted.
    IntCtlAbort,
    /// NMI, INIT, ExtINT, LINT0 or LINT1 whose pass bit in the DTE is 0.
    NotPassed,
    /// SMI, NMI, INIT or ExtINT with logical destination mode.
    LogicalDestination,
    /// Reserved delivery mode, 011b or 110b.
    DeliveryModeReserved,
    /// The index lies behind the end of the interrupt remapping table.
    IndexOutOfRange,
    /// The IRTE could not be read.
    IrteUnreadable,
    /// IRTE.RemapEn = 0.
    RemapDisabled,
    /// A reserved IRTE.IntType, or another reserved value in the IRTE.
    IrteReserved,
    /// The guest virtual APIC backing page could not be written.
    BackingPageUnwritable,
}

impl FaultReason {
    /// What a person reads in a trace.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAnInterrupt => "address outside FEEx_xxxxh",
            Self::DeviceIdOutOfRange => "DeviceID behind the device table",
            Self::DteUnreadable => "DTE unreadable",
            Self::DteReservedBits => "reserved DTE bits set",
            Self::IntCtlReserved => "IntCtl=11b is reserved",
            Self::IntTabLenReserved => "IntTabLen above 11 is reserved",
            Self::IntCtlAbort => "IntCtl=00b aborts",
            Self::NotPassed => "pass bit is 0",
            Self::LogicalDestination => "message type needs physical destination mode",
            Self::DeliveryModeReserved => "reserved delivery mode",
            Self::IndexOutOfRange => "index behind the interrupt remapping table",
            Self::IrteUnreadable => "IRTE unreadable",
            Self::RemapDisabled => "RemapEn=0",
            Self::IrteReserved => "reserved value in the IRTE",
            Self::BackingPageUnwritable => "virtual APIC backing page unwritable",
        }
    }
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A blocked interrupt request. The requester sees a target abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Why.
    pub reason: FaultReason,
    /// The words of the event log entry. Not an [`Event`]: plain words keep [`Outcome`] cheap to
    /// tell apart on the hit path.
    ///
    /// [`Outcome`]: crate::Outcome
    words: Option<[u64; 2]>,
}

/// Type field of a hardware-error event: master abort, nothing answers at that address.
const MASTER_ABORT: u8 = 1;

impl Fault {
    /// A fault that logs `event`.
    pub const fn new(reason: FaultReason, event: Event) -> Self {
        Self {
            reason,
            words: Some(event.words()),
        }
    }

    /// A fault without an event.
    pub const fn silent(reason: FaultReason) -> Self {
        Self {
            reason,
            words: None,
        }
    }

    /// The event log entry; `None` when the specification defines none for this reason, or when
    /// the guest suppressed it (DTE.IG, IRTE.SupIOPF).
    pub fn event(&self) -> Option<Event> {
        self.words.map(Event::decode)
    }

    /// ILLEGAL_DEV_TABLE_ENTRY of an interrupt request (48882 §2.5.2).
    pub(crate) fn illegal_dte(
        reason: FaultReason,
        device_id: DeviceId,
        address: u64,
        reserved: bool,
    ) -> Self {
        let event = IllegalDevTableEntry::new()
            .with_device_id(device_id.0)
            .with_i(true)
            .with_rz(reserved)
            .with_address_4(address >> 2);
        Self::new(reason, event.into())
    }

    /// IO_PAGE_FAULT of an interrupt request (48882 §2.5.3): I=1; RW is not defined for
    /// interrupts and stays 0; PR tells whether the entry was marked as remapped.
    pub(crate) fn page_fault(
        reason: FaultReason,
        device_id: DeviceId,
        domain_id: DomainId,
        address: u64,
        present: bool,
        reserved: bool,
    ) -> Self {
        let event = IoPageFault::new()
            .with_device_id(device_id.0)
            .with_pasid_domain_id(domain_id.0)
            .with_i(true)
            .with_pr(present)
            .with_rz(reserved)
            .with_address(address);
        Self::new(reason, event.into())
    }

    /// DEV_TAB_HARDWARE_ERROR of an interrupt request (48882 §2.5.4).
    pub(crate) fn dev_tab_hardware(device_id: DeviceId, dte_gpa: u64) -> Self {
        let event = DevTabHardwareError::new()
            .with_device_id(device_id.0)
            .with_i(true)
            .with_kind(MASTER_ABORT)
            .with_address_16(dte_gpa >> 4);
        Self::new(FaultReason::DteUnreadable, event.into())
    }

    /// PAGE_TAB_HARDWARE_ERROR of an interrupt request (48882 §2.5.5).
    pub(crate) fn page_tab_hardware(
        reason: FaultReason,
        device_id: DeviceId,
        domain_id: DomainId,
        gpa: u64,
    ) -> Self {
        let event = PageTabHardwareError::new()
            .with_device_id(device_id.0)
            .with_pasid_domain_id(domain_id.0)
            .with_i(true)
            .with_kind(MASTER_ABORT)
            .with_address_8(gpa >> 3);
        Self::new(reason, event.into())
    }
}
