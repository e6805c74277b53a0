//! The architectural state of one IOMMU, all of it and nothing else.
//!
//! Plain data: saved and restored as it stands. What is derived from it (run bits, the engines'
//! view, caches) is computed.

use std::collections::BTreeSet;

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::log::PPR_LOG_ENTRY_SIZE;
use amdvi_regs::mmio::{
    Control, ExtendedFeature, ExtendedFeature2, PprAutoResponse, PprOverflowEarly, RingBase,
    RingPointer, Status, XtInterruptControl,
};
use amdvi_regs::msi::{DeliveryMode, Msi, is_msi_address};
use serde::{Deserialize, Serialize};

use crate::ats::PendingInvalidation;

/// What is fixed when the device is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) efr: ExtendedFeature,
    pub(crate) efr2: ExtendedFeature2,
    pub(crate) np_cache: bool,
    pub(crate) device_iotlb: bool,
    /// Performance counter banks, and counters in each.
    pub(crate) counters: (u8, u8),
    pub(crate) mmio_base: u64,
    pub(crate) mmio_size: u64,
}

/// A ring in guest memory: the command buffer or a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ring {
    pub(crate) base: u64,
    pub(crate) head: u64,
    pub(crate) tail: u64,
}

impl Ring {
    /// Writable bits of a base register (48882 §3.4.1).
    pub(crate) const BASE_MASK: u64 = 0x0f0f_ffff_ffff_f000;

    /// After reset: ComLen, EventLen and GALen are 8.
    pub(crate) const RESET: Self = Self {
        base: RingBase::new().with_length(RingBase::MIN_LEN).into_bits(),
        head: 0,
        tail: 0,
    };

    /// Length in bytes. A reserved length is never stored; were it, the ring would be the shortest.
    pub(crate) fn bytes(self) -> u64 {
        RingBase::from_bits(self.base)
            .bytes()
            .unwrap_or(1 << (RingBase::MIN_LEN + 4))
    }

    pub(crate) fn address(self) -> u64 {
        RingBase::from_bits(self.base).address()
    }

    /// The offset after `offset`.
    pub(crate) fn next(self, offset: u64, entry: u64) -> u64 {
        (offset + entry) % self.bytes()
    }

    /// Whether one more entry would make the tail meet the head: one slot stays empty, since equal
    /// pointers mean an empty ring. A head behind the end of the ring counts modulo its length.
    pub(crate) fn is_full(self, entry: u64) -> bool {
        self.next(self.tail, entry) == self.head % self.bytes()
    }

    /// How many entries are in it.
    pub(crate) fn used(self, entry: u64) -> u64 {
        (self.tail + self.bytes() - self.head % self.bytes()) % self.bytes() / entry
    }

    /// A write to the base register. A reserved length leaves everything as it was; anything else
    /// empties the ring.
    pub(crate) fn write_base(&mut self, value: u64) -> bool {
        if RingBase::from_bits(value).bytes().is_none() {
            return false;
        }
        *self = Self {
            base: value & Self::BASE_MASK,
            head: 0,
            tail: 0,
        };
        true
    }
}

/// The device's own MSI capability, which the MMIO shadow registers show too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MsiState {
    pub(crate) enabled: bool,
    pub(crate) address_low: u32,
    pub(crate) address_high: u32,
    pub(crate) data: u16,
}

impl MsiState {
    pub(crate) const ADDRESS_LOW_MASK: u32 = !3;
}

/// Which of the device's own interrupts (48882 §2.5.1, §3.4.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnInterrupt {
    /// Event log and COMPLETION_WAIT: MsiNum, XT General Interrupt Control.
    General,
    /// PPR logs: MsiNumPPR, XT PPR Interrupt Control.
    PprLog,
    /// GA log: MsiNumGA, XT GA Log Interrupt Control.
    GaLog,
}

/// The PPR logs (48882 §2.6) and what belongs to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PprLogs {
    /// Log A and log B.
    pub(crate) logs: [Ring; 2],
    /// There was no room; writing PPRLogEn with the overflow bits clear starts again.
    pub(crate) stopped: bool,
    /// With automatic change between the logs, log B is the one that is written.
    pub(crate) swapped: bool,
    /// MMIO 2080h.
    pub(crate) auto_response: u64,
    /// MMIO 2088h and 2090h.
    pub(crate) early: [u64; 2],
}

impl Default for PprLogs {
    /// After reset, and in states of version 1, which had none.
    fn default() -> Self {
        Self::RESET
    }
}

impl PprLogs {
    /// CONTROL.DualPprLogEn: log A, log B, or both in turn.
    pub(crate) const LOG_B: u8 = 1;
    pub(crate) const SWAP: u8 = 2;

    const RESET: Self = Self {
        logs: [Ring::RESET; 2],
        stopped: false,
        swapped: false,
        auto_response: 0,
        early: [0; 2],
    };

    /// The log that gets the next entry: 0 for A, 1 for B.
    pub(crate) fn active(self, control: Control) -> usize {
        usize::from(match control.dual_ppr_log_en() {
            Self::LOG_B => true,
            Self::SWAP => self.swapped,
            _ => false,
        })
    }

    pub(crate) fn early(self, log: usize) -> PprOverflowEarly {
        PprOverflowEarly::from_bits(self.early[log])
    }

    pub(crate) fn auto_response(self) -> PprAutoResponse {
        PprAutoResponse::from_bits(self.auto_response)
    }

    /// Whether log `log` holds as many entries as its early indicator waits for.
    pub(crate) fn nearly_full(self, log: usize) -> bool {
        let early = self.early(log);
        early.en() && self.logs[log].used(PPR_LOG_ENTRY_SIZE) >= u64::from(early.threshold())
    }
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registers {
    pub(crate) control: u64,
    /// The RW1C bits only; the run bits are derived.
    pub(crate) status: u64,
    pub(crate) device_tables: [u64; 8],
    pub(crate) exclusion: [u64; 2],
    pub(crate) command: Ring,
    pub(crate) event: Ring,
    pub(crate) ga: Ring,
    pub(crate) ga_tail_address: u64,
    #[serde(default)]
    pub(crate) ppr: PprLogs,
    /// 0170h general, 0178h PPR, 0180h GA log.
    pub(crate) xt_interrupts: [u64; 3],
    pub(crate) msi: MsiState,
    pub(crate) pci_command: u16,
    pub(crate) pci_interrupt_line: u8,
    /// An error stopped the command processor; CmdBufEn 0→1 starts it again.
    pub(crate) command_halted: bool,
    /// The log overflowed; writing its enable bit with the overflow bit clear starts it again. So it
    /// is set whenever the overflow bit is.
    pub(crate) event_stopped: bool,
    pub(crate) ga_stopped: bool,
    /// Devices with DTE.SE=1 whose first IO_PAGE_FAULT is logged. At most one entry per DeviceID.
    pub(crate) faulted_once: BTreeSet<u16>,
    /// Invalidations that devices have not answered yet, oldest first; at most
    /// [`PendingInvalidation::MAX`].
    #[serde(default)]
    pub(crate) invalidations: Vec<PendingInvalidation>,
}

impl Registers {
    pub(crate) fn reset() -> Self {
        Self {
            control: Control::RESET.into_bits(),
            status: 0,
            device_tables: [0; 8],
            exclusion: [0; 2],
            command: Ring::RESET,
            event: Ring::RESET,
            ga: Ring::RESET,
            ga_tail_address: 0,
            ppr: PprLogs::RESET,
            xt_interrupts: [0; 3],
            msi: MsiState::default(),
            pci_command: 0,
            pci_interrupt_line: 0,
            command_halted: false,
            event_stopped: false,
            ga_stopped: false,
            faulted_once: BTreeSet::new(),
            invalidations: Vec::new(),
        }
    }

    pub(crate) fn control(&self) -> Control {
        Control::from_bits(self.control)
    }

    /// The status register, with the run bits that follow from the rest.
    pub(crate) fn status(&self) -> Status {
        let control = self.control();
        let sticky = Status::from_bits(self.status & Status::RW1C);
        let on = control.iommu_en();
        sticky
            .with_cmd_buf_run(self.commands_run())
            .with_event_log_run(on && control.event_log_en() && !self.event_stopped)
            .with_ga_log_run(on && control.ga_log_en() && !self.ga_stopped)
            .with_ppr_log_run(on && control.ppr_log_en() && !self.ppr.stopped)
            .with_ppr_log_active(self.ppr.active(control) == 1)
    }

    /// Of these, CmdBufRun.
    pub(crate) fn commands_run(&self) -> bool {
        let control = self.control();
        control.iommu_en() && control.cmd_buf_en() && !self.command_halted
    }

    pub(crate) fn set_status(&mut self, set: impl FnOnce(Status) -> Status) {
        self.status = set(Status::from_bits(self.status)).into_bits() & Status::RW1C;
    }

    /// Status bits whose interrupt is enabled. An interrupt is sent when one of them becomes set.
    pub(crate) fn interrupt_conditions(&self) -> u64 {
        // Nearly always: what is reported is acknowledged soon.
        if self.status == 0 {
            return 0;
        }
        let control = self.control();
        let mut enabled = Status::new();
        if control.event_int_en() {
            enabled = enabled.with_event_log_int(true).with_event_overflow(true);
        }
        if control.com_wait_int_en() {
            enabled = enabled.with_com_wait_int(true);
        }
        if control.ga_int_en() {
            enabled = enabled.with_ga_int(true).with_gal_overflow(true);
        }
        if control.ppr_int_en() {
            enabled = enabled
                .with_ppr_int(true)
                .with_ppr_overflow(true)
                .with_ppr_overflow_b(true);
        }
        enabled = enabled
            .with_ppr_ovrflw_early(self.ppr.early(0).int_en())
            .with_ppr_ovrflw_early_b(self.ppr.early(1).int_en());
        self.status & enabled.into_bits()
    }

    /// The interrupts that newly fulfilled conditions send, `None` where masked or disabled.
    pub(crate) fn own_interrupts(&self, raised: u64) -> [Option<Delivery>; 3] {
        if raised == 0 {
            return [None; 3];
        }
        let raised = Status::from_bits(raised);
        let general = raised.event_log_int() || raised.event_overflow() || raised.com_wait_int();
        let ppr = raised.ppr_int()
            || raised.ppr_overflow()
            || raised.ppr_overflow_b()
            || raised.ppr_ovrflw_early()
            || raised.ppr_ovrflw_early_b();
        let ga = raised.ga_int() || raised.gal_overflow();
        [
            (general, OwnInterrupt::General),
            (ppr, OwnInterrupt::PprLog),
            (ga, OwnInterrupt::GaLog),
        ]
        .map(|(raised, which)| raised.then(|| self.own_interrupt(which)).flatten())
    }

    /// Where an interrupt of the device itself goes: never through remapping.
    fn own_interrupt(&self, which: OwnInterrupt) -> Option<Delivery> {
        if self.control().int_cap_xt_en() {
            let raw = self.xt_interrupts[match which {
                OwnInterrupt::General => 0,
                OwnInterrupt::PprLog => 1,
                OwnInterrupt::GaLog => 2,
            }];
            let register = XtInterruptControl::from_bits(raw);
            return (raw != 0).then(|| Delivery {
                dest: register.destination(),
                dest_mode: if register.dest_mode() {
                    DestMode::Logical
                } else {
                    DestMode::Physical
                },
                delivery_mode: if register.delivery_mode() {
                    DeliveryMode::LowestPriority
                } else {
                    DeliveryMode::Fixed
                },
                vector: register.vector(),
                trigger: Trigger::Edge,
                assert: false,
                redirection_hint: false,
                rq_eoi: false,
            });
        }
        let address = u64::from(self.msi.address_high) << 32 | u64::from(self.msi.address_low);
        // Anywhere else the message is a write to memory, which this device does not make.
        (self.msi.enabled && is_msi_address(address)).then(|| {
            Delivery::from_msi(Msi {
                address,
                data: self.msi.data.into(),
            })
        })
    }
}

/// Writable bits of Device Table Base register `segment` (48882 §3.4.1, §3.4.9).
pub(crate) const fn device_table_mask(segment: usize) -> u64 {
    if segment == 0 {
        0x000f_ffff_ffff_f1ff
    } else {
        0x000f_ffff_ffff_f0ff
    }
}

/// The largest Size of Device Table Base register `segment`: a segment n must not be larger than
/// the smallest part of the DeviceID space that it can be responsible for.
pub(crate) const fn device_table_max_size(segment: usize) -> u16 {
    match segment {
        0 => 0x1ff,
        1 => 0xff,
        2 | 3 => 0x7f,
        _ => 0x3f,
    }
}

/// Writable bits of the exclusion registers.
pub(crate) const EXCLUSION_MASKS: [u64; 2] = [0x000f_ffff_ffff_f003, 0x000f_ffff_ffff_f000];
/// Writable bits of the GA Log Tail Address register.
pub(crate) const GA_TAIL_ADDRESS_MASK: u64 = 0x000f_ffff_ffff_fff8;
/// Writable bits of an XT interrupt control register.
pub(crate) const XT_INTERRUPT_MASK: u64 = 0xff00_01ff_ffff_ff04;
/// Writable bits of the PCI command register: memory space, bus master, interrupt disable.
pub(crate) const PCI_COMMAND_MASK: u16 = 0x0406;
/// Writable bits of the PPR Log Auto Response register.
pub(crate) const PPR_AUTO_RESPONSE_MASK: u64 = !PprAutoResponse::RESERVED;
/// Writable bits of a PPR Log Overflow Early Indicator register.
pub(crate) const PPR_EARLY_MASK: u64 = !PprOverflowEarly::RESERVED;
/// Writable bits of ring pointers.
pub(crate) const POINTER_MASK_16: u64 = RingPointer::MASK_16;
/// Writable bits of the GA log's pointers.
pub(crate) const POINTER_MASK_8: u64 = RingPointer::MASK_8;

/// Writable bits of CONTROL for what is offered. Fields whose *values* are restricted as well are
/// checked when they are written.
pub(crate) fn control_mask(efr: ExtendedFeature, efr2: ExtendedFeature2) -> u64 {
    let mut mask = Control::new()
        .with_iommu_en(true)
        .with_event_log_en(true)
        .with_event_int_en(true)
        .with_com_wait_int_en(true)
        .with_inv_time_out(7)
        .with_pass_pw(true)
        .with_res_pass_pw(true)
        .with_coherent(true)
        .with_isoc(true)
        .with_cmd_buf_en(true)
        .with_irt_cache_dis(true);
    if efr.ppr_sup() {
        mask = mask
            .with_ppr_log_en(true)
            .with_ppr_int_en(true)
            .with_ppr_en(true);
    }
    if efr.ppr_auto_rsp_sup() {
        mask = mask.with_ppr_auto_rsp_en(true).with_ppr_auto_rsp_aon(true);
    }
    if efr.dual_ppr_log_sup() != 0 {
        mask = mask.with_dual_ppr_log_en(3);
    }
    if efr.gt_sup() {
        mask = mask.with_gt_en(true);
    }
    if efr2.gcr3_trp_mode() {
        mask = mask.with_gcr3_trp_mode(true);
    }
    if efr.ha_sup() {
        mask = mask.with_had_update(3);
    }

    if efr.ga_sup() {
        mask = mask
            .with_ga_en(true)
            .with_ga_log_en(true)
            .with_ga_int_en(true);
    }
    if efr.gam_sup() != 0 {
        mask = mask.with_gam_en(7);
    }
    if efr.dev_tbl_seg_sup() != 0 {
        mask = mask.with_dev_tbl_seg_en(7);
    }
    if efr2.num_int_remap_sup() == ExtendedFeature2::NUM_INT_REMAP_2K {
        mask = mask.with_num_int_remap_mode(3);
    }
    if efr.eph_sup() {
        mask = mask.with_eph_en(true);
    }
    if efr.xt_sup() {
        mask = mask.with_xt_en(true).with_int_cap_xt_en(true);
    }
    mask.into_bits()
}

/// The control register that results from writing `new` over `old`: a field whose new value is
/// reserved or not offered keeps its old value, and XTEn can't stand without GAEn.
pub(crate) fn settle_control(
    old: Control,
    new: u64,
    efr: ExtendedFeature,
    efr2: ExtendedFeature2,
) -> Control {
    let mask = control_mask(efr, efr2);
    let mut control = Control::from_bits((old.into_bits() & !mask) | (new & mask));
    if control.gam_en() > efr.gam_sup() {
        control.set_gam_en(old.gam_en());
    }
    if control.dev_tbl_seg_en() > efr.dev_tbl_seg_sup() {
        control.set_dev_tbl_seg_en(old.dev_tbl_seg_en());
    }
    if control.dual_ppr_log_en() > PprLogs::SWAP {
        control.set_dual_ppr_log_en(old.dual_ppr_log_en());
    }
    // 10b is reserved, and dirty bits need HDSup.
    let most = if efr.hd_sup() { 3 } else { 1 };
    if control.had_update() == 2 || control.had_update() > most {
        control.set_had_update(old.had_update());
    }
    if control.num_int_remap_mode() > Control::NUM_INT_REMAP_2K {
        control.set_num_int_remap_mode(old.num_int_remap_mode());
    }
    if !control.ga_en() {
        control.set_xt_en(false);
    }
    control
}
