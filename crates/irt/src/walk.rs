//! The slow path: from a request through the DTE and the IRTE to an outcome (48882 §2.2.5).
//!
//! Every guest word is loaded once; what was checked is what is used. At most six words are loaded
//! and one is written for a request (plus re-reads of a 128-bit IRTE that the guest is rewriting
//! at that moment, see [`PhysMemory::load_pair`]).

use amdvi_core::{View, dtab};
use amdvi_regs::dte::{Dte, DteQ1, DteQ2, IntCtl};
use amdvi_regs::irte::{IRTE32_SIZE, IRTE128_SIZE, Irte32, Irte128GuestLo, Irte128Hi, Irte128Lo};
use amdvi_regs::log::GaLogEntry;
use amdvi_regs::mmio::Control;
use amdvi_regs::msi::{DeliveryMode, Msi, MsiAddress, MsiData, is_msi_address};
use amdvi_regs::{DeviceId, DomainId, PhysMemory};

use crate::delivery::{Delivery, DestMode, Trigger};
use crate::fault::{Fault, FaultReason};
use crate::{LintPin, Outcome, Posted};

/// The longest interrupt remapping table: 2^11 = 2048 entries.
const MAX_INT_TAB_LEN: u8 = 11;
/// GAMEn value that turns the guest virtual APIC on.
const GAM_GUEST_APIC: u8 = 1;
/// Offset of the first IRR word in a virtual APIC backing page (AMD64 APM vol. 2, table 16-2).
const BACKING_PAGE_IRR: u64 = 0x200;

/// What a request is looked up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It happens now: a guest-mode entry is posted.
    Deliver,
    /// A VMM asks where it would go, to set up a route: nothing is written.
    Resolve,
}

/// The result of a walk.
pub(crate) struct Walked {
    pub(crate) outcome: Outcome,
    /// The IRTE's part of the delivery may be used again until the next invalidation.
    pub(crate) cacheable: bool,
}

impl From<Outcome> for Walked {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            cacheable: false,
        }
    }
}

impl From<Fault> for Walked {
    fn from(fault: Fault) -> Self {
        Outcome::Blocked(fault).into()
    }
}

/// How the IOMMU treats a message before it looks at IntCtl.
enum Class {
    /// Fixed or arbitrated, or any message in 2K mode with logical destination: by IntCtl.
    Remappable { index: u16 },
    /// By a pass bit of the DTE.
    Pass(bool),
    /// Never acceptable.
    Abort(FaultReason),
}

/// Sorts a message by CONTROL.NumIntRemapMode, its type and its destination mode.
///
/// The rule that serves every driver (see `docs/spec-choices.md`): the index is data\[10:0\]; for
/// fixed and arbitrated messages that is the 512 rule, since data\[10:9\] are 0. In 2K mode a
/// message with logical destination has no type, all eleven bits are index.
fn classify(two_k: bool, msi: Msi, q2: DteQ2) -> Class {
    let address = MsiAddress::from_bits(msi.address as u32);
    let data = MsiData::from_bits(msi.data);
    if two_k && address.logical() {
        return Class::Remappable {
            index: data.irte_index(),
        };
    }
    let pass = match DeliveryMode::from_bits(data.delivery_mode()) {
        DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
            return Class::Remappable {
                index: data.irte_index(),
            };
        }
        // No SMI filter is offered: SMIs are passed.
        DeliveryMode::Smi => true,
        DeliveryMode::Nmi => q2.nmi_pass(),
        DeliveryMode::Init => q2.init_pass(),
        DeliveryMode::ExtInt => q2.eint_pass(),
        DeliveryMode::Reserved(_) => return Class::Abort(FaultReason::DeliveryModeReserved),
    };
    if address.logical() {
        return Class::Abort(FaultReason::LogicalDestination);
    }
    Class::Pass(pass)
}

/// The interrupt half of a DTE, found and checked.
#[derive(Clone, Copy)]
struct Entry {
    gpa: u64,
    q2: DteQ2,
}

/// Reads the interrupt half of the DTE. `Ok(None)`: IV=0, interrupts pass unmapped, whatever V.
fn load_entry(
    view: &View,
    memory: &(impl PhysMemory + ?Sized),
    device_id: DeviceId,
    address: u64,
) -> Result<Option<Entry>, Fault> {
    let gpa = dtab::locate(view, device_id).map_err(|_| {
        Fault::page_fault(
            FaultReason::DeviceIdOutOfRange,
            device_id,
            DomainId(0),
            address,
            false,
            false,
        )
    })?;
    let unreadable = |_| Fault::dev_tab_hardware(device_id, gpa);
    let q2 = DteQ2::from_bits(memory.load_u64(gpa + 16).map_err(unreadable)?);
    if !q2.iv() {
        return Ok(None);
    }
    let q3 = memory.load_u64(gpa + 24).map_err(unreadable)?;
    let (q2_reserved, q3_reserved) = reserved_masks(view);
    if q2.into_bits() & q2_reserved != 0 || q3 & q3_reserved != 0 {
        return Err(Fault::illegal_dte(
            FaultReason::DteReservedBits,
            device_id,
            address,
            true,
        ));
    }
    Ok(Some(Entry { gpa, q2 }))
}

/// The bits of a DTE's upper half that are reserved given the offered features.
fn reserved_masks(view: &View) -> (u64, u64) {
    let efr = view.efr();
    let mut q2 = Dte::Q2_RESERVED;
    let mut q3 = Dte::Q3_RESERVED;
    if !efr.gt_sup() {
        q2 |= DteQ2::new().with_guest_paging_mode(3).into_bits();
    }
    if !efr.snp_sup() {
        q2 |= DteQ2::new().with_hpt_mode(true).into_bits();
    }
    if !efr.v_iommu_sup() {
        // vImuEn, GDeviceID, GuestID: DTE[239:207].
        q3 |= 0x0000_ffff_ffff_8000;
    }
    (q2, q3)
}

/// Looks a message up.
pub(crate) fn message(
    view: &View,
    memory: &(impl PhysMemory + ?Sized),
    device_id: DeviceId,
    msi: Msi,
    purpose: Purpose,
) -> Walked {
    if !is_msi_address(msi.address) {
        return Fault::silent(FaultReason::NotAnInterrupt).into();
    }
    let control = view.control();
    if !control.iommu_en() {
        return Outcome::Deliver(Delivery::from_msi(msi)).into();
    }
    match load_entry(view, memory, device_id, msi.address) {
        Ok(Some(entry)) => by_entry(view, control, memory, device_id, entry, msi, purpose),
        Ok(None) => Outcome::Deliver(Delivery::from_msi(msi)).into(),
        Err(fault) => fault.into(),
    }
}

/// Where each of a function's `messages` would go now, in their order: what [`message`] says of them
/// with [`Purpose::Resolve`], with one look at the registers and the DTE for all.
pub(crate) fn deliveries(
    view: &View,
    memory: &(impl PhysMemory + ?Sized),
    device_id: DeviceId,
    messages: &[Msi],
    mut tell: impl FnMut(Option<Delivery>),
) {
    let control = view.control();
    let entry = if control.iommu_en() {
        // The address is that of an event, and there is none.
        load_entry(view, memory, device_id, 0)
    } else {
        Ok(None)
    };
    for &msi in messages {
        let walked = match entry {
            _ if !is_msi_address(msi.address) => None,
            Ok(Some(entry)) => {
                let purpose = Purpose::Resolve;
                let walked = by_entry(view, control, memory, device_id, entry, msi, purpose);
                walked.outcome.delivery()
            }
            Ok(None) => Some(Delivery::from_msi(msi)),
            Err(_) => None,
        };
        tell(walked);
    }
}

/// Looks a message up by the DTE of its function.
fn by_entry(
    view: &View,
    control: Control,
    memory: &(impl PhysMemory + ?Sized),
    device_id: DeviceId,
    entry: Entry,
    msi: Msi,
    purpose: Purpose,
) -> Walked {
    let index = match classify(view.num_int_2k(control), msi, entry.q2) {
        Class::Remappable { index } => index,
        Class::Pass(true) => return Outcome::Deliver(Delivery::from_msi(msi)).into(),
        Class::Pass(false) => return Fault::silent(FaultReason::NotPassed).into(),
        Class::Abort(reason) => return Fault::silent(reason).into(),
    };
    match IntCtl::from_bits(entry.q2.int_ctl()) {
        IntCtl::Abort => Fault::silent(FaultReason::IntCtlAbort).into(),
        IntCtl::Forward => Outcome::Deliver(Delivery::from_msi(msi)).into(),
        IntCtl::Reserved => {
            Fault::illegal_dte(FaultReason::IntCtlReserved, device_id, msi.address, true).into()
        }
        IntCtl::Remap => Lookup {
            view,
            control,
            memory,
            device_id,
            entry,
            msi,
            purpose,
        }
        .remap(index),
    }
}

/// Looks a LINT message up: DTE.Lint0Pass and DTE.Lint1Pass.
///
/// These are message types of the legacy interrupt controller that have no MSI encoding.
pub(crate) fn lint(
    view: &View,
    memory: &(impl PhysMemory + ?Sized),
    device_id: DeviceId,
    pin: LintPin,
) -> Outcome {
    let delivery = Delivery {
        dest: 0xff,
        dest_mode: DestMode::Physical,
        delivery_mode: match pin {
            LintPin::Lint0 => DeliveryMode::ExtInt,
            LintPin::Lint1 => DeliveryMode::Nmi,
        },
        vector: 0,
        trigger: Trigger::Edge,
        assert: true,
        redirection_hint: false,
        rq_eoi: false,
    };
    if !view.control().iommu_en() {
        return Outcome::Deliver(delivery);
    }
    match load_entry(view, memory, device_id, 0) {
        Ok(None) => Outcome::Deliver(delivery),
        Err(fault) => Outcome::Blocked(fault),
        Ok(Some(entry)) => {
            let pass = match pin {
                LintPin::Lint0 => entry.q2.lint0_pass(),
                LintPin::Lint1 => entry.q2.lint1_pass(),
            };
            if pass {
                Outcome::Deliver(delivery)
            } else {
                Outcome::Blocked(Fault::silent(FaultReason::NotPassed))
            }
        }
    }
}

/// A remappable message with its checked DTE.
struct Lookup<'a, M: ?Sized> {
    view: &'a View,
    control: Control,
    memory: &'a M,
    device_id: DeviceId,
    entry: Entry,
    msi: Msi,
    purpose: Purpose,
}

impl<M: PhysMemory + ?Sized> Lookup<'_, M> {
    /// The DomainID that events carry. Read only when there is an event; unreadable counts as 0.
    fn domain_id(&self) -> DomainId {
        let q1 = self
            .memory
            .load_u64(self.entry.gpa + 8)
            .map(DteQ1::from_bits);
        DomainId(q1.map_or(0, |q1| q1.domain_id()))
    }

    fn page_fault(
        &self,
        reason: FaultReason,
        present: bool,
        reserved: bool,
        quiet: bool,
    ) -> Walked {
        if quiet || self.entry.q2.ig() {
            return Fault::silent(reason).into();
        }
        let domain = self.domain_id();
        Fault::page_fault(
            reason,
            self.device_id,
            domain,
            self.msi.address,
            present,
            reserved,
        )
        .into()
    }

    fn hardware_error(&self, reason: FaultReason, gpa: u64) -> Walked {
        Fault::page_tab_hardware(reason, self.device_id, self.domain_id(), gpa).into()
    }

    fn remap(&self, index: u16) -> Walked {
        let q2 = self.entry.q2;
        if q2.int_tab_len() > MAX_INT_TAB_LEN {
            let reason = FaultReason::IntTabLenReserved;
            return Fault::illegal_dte(reason, self.device_id, self.msi.address, false).into();
        }
        if u32::from(index) >= 1 << q2.int_tab_len() {
            return self.page_fault(FaultReason::IndexOutOfRange, false, false, false);
        }
        let table = q2.int_tab_address();
        if self.control.ga_en() {
            let gpa = table + u64::from(index) * IRTE128_SIZE;
            match self.memory.load_pair(gpa) {
                Ok(words) => self.irte128(words),
                Err(_) => self.hardware_error(FaultReason::IrteUnreadable, gpa),
            }
        } else {
            let gpa = table + u64::from(index) * IRTE32_SIZE;
            match self.memory.load_u32(gpa) {
                Ok(word) => self.irte32(Irte32::from_bits(word)),
                Err(_) => self.hardware_error(FaultReason::IrteUnreadable, gpa),
            }
        }
    }

    fn irte32(&self, irte: Irte32) -> Walked {
        let quiet = irte.sup_iopf();
        if !irte.remap_en() {
            return self.page_fault(FaultReason::RemapDisabled, false, false, quiet);
        }
        if irte.guest_mode() || irte.int_type() > 1 {
            return self.page_fault(FaultReason::IrteReserved, true, true, quiet);
        }
        self.deliver(
            u32::from(irte.destination()),
            irte.vector(),
            irte.dm(),
            irte.int_type(),
            irte.rq_eoi(),
        )
    }

    fn irte128(&self, [low, high]: [u64; 2]) -> Walked {
        let irte = Irte128Lo::from_bits(low);
        let high = Irte128Hi::from_bits(high);
        let quiet = irte.sup_iopf();
        if !irte.remap_en() {
            return self.page_fault(FaultReason::RemapDisabled, false, false, quiet);
        }
        if irte.guest_mode() {
            return self.guest_mode(Irte128GuestLo::from_bits(low), high, quiet);
        }
        if irte.int_type() > 1 {
            return self.page_fault(FaultReason::IrteReserved, true, true, quiet);
        }
        let dest = self.destination(irte.destination_lo(), high.destination_hi());
        self.deliver(
            dest,
            high.vector(),
            irte.dm(),
            irte.int_type(),
            irte.rq_eoi(),
        )
    }

    /// Destination of a 128-bit IRTE: 32 bits with XTEn, else 8.
    fn destination(&self, low: u32, high: u8) -> u32 {
        if self.control.xt_en() {
            low | u32::from(high) << 24
        } else {
            low & 0xff
        }
    }

    fn deliver(&self, dest: u32, vector: u8, logical: bool, int_type: u8, rq_eoi: bool) -> Walked {
        let data = MsiData::from_bits(self.msi.data);
        let outcome = Outcome::Deliver(Delivery {
            dest,
            dest_mode: if logical {
                DestMode::Logical
            } else {
                DestMode::Physical
            },
            delivery_mode: DeliveryMode::from_bits(int_type),
            vector,
            trigger: if data.level() {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            assert: data.assert(),
            redirection_hint: false,
            rq_eoi,
        });
        Walked {
            outcome,
            cacheable: !self.control.irt_cache_dis(),
        }
    }

    /// Guest virtual APIC (48882 §2.2.5.3). Never cached: software changes IsRun, Destination and
    /// GATag without an INVALIDATE_INTERRUPT_TABLE.
    fn guest_mode(&self, irte: Irte128GuestLo, high: Irte128Hi, quiet: bool) -> Walked {
        let enabled = self.control.gam_en() == GAM_GUEST_APIC && self.view.efr().gam_sup() != 0;
        if !enabled || irte.rsvd_4_3() != 0 {
            return self.page_fault(FaultReason::IrteReserved, true, true, quiet);
        }
        let doorbell = irte
            .is_run()
            .then(|| self.destination(irte.destination_lo(), high.destination_hi()));
        let ga_log = (!irte.is_run() && irte.ga_log_intr()).then(|| {
            GaLogEntry::new()
                .with_ga_tag(irte.ga_tag())
                .with_device_id(self.device_id.0)
                .with_code(GaLogEntry::GUEST_NR)
        });
        if self.purpose == Purpose::Deliver {
            let vector = u64::from(high.vector());
            let gpa = (high.ga_root() << 12) + BACKING_PAGE_IRR + (vector / 32) * 16;
            if self.memory.fetch_or_u32(gpa, 1 << (vector % 32)).is_err() {
                return self.hardware_error(FaultReason::BackingPageUnwritable, gpa);
            }
        }
        Outcome::Posted(Posted { ga_log, doorbell }).into()
    }
}
