//! The register file (48882 §3.4): any size, any alignment, halves in any order.
//!
//! Every access is taken apart into aligned quadwords. A write comes as a value and a mask of the
//! bits it covers, and each register merges it by its own rules, so that a 4-byte write to one half
//! never touches the other half.

use amdvi_core::{Counters, Subject};
use amdvi_regs::mmio::{Control, CounterEvent, Status, offset};

use crate::pci;
use crate::state::{
    EXCLUSION_MASKS, GA_TAIL_ADDRESS_MASK, Offer, POINTER_MASK_8, POINTER_MASK_16,
    PPR_AUTO_RESPONSE_MASK, PPR_EARLY_MASK, Registers, XT_INTERRUPT_MASK, device_table_mask,
    device_table_max_size, settle_control,
};

/// What a write makes necessary outside the registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// The engines' view is out of date.
    pub(crate) view: bool,
    /// What a request means has changed for all devices.
    pub(crate) translation: bool,
    /// There may be commands to run.
    pub(crate) commands: bool,
    /// A command in flight is no longer the one at the head.
    pub(crate) commands_moved: bool,
    /// Other events are counted than before.
    pub(crate) counting: bool,
}

impl Effects {
    pub(crate) fn merge(&mut self, other: Self) {
        self.view |= other.view;
        self.translation |= other.translation;
        self.commands |= other.commands;
        self.commands_moved |= other.commands_moved;
        self.counting |= other.counting;
    }
}

/// One aligned quadword of a write: `value` counts where `mask` has ones.
#[derive(Clone, Copy)]
struct Write {
    value: u64,
    mask: u64,
}

impl Write {
    /// `old` with the bits replaced that are both covered and in `writable`.
    fn over(self, old: u64, writable: u64) -> u64 {
        let mask = self.mask & writable;
        (old & !mask) | (self.value & mask)
    }

    fn touches(self, bits: u64) -> bool {
        self.mask & bits != 0
    }

    fn low(self) -> (u32, u32) {
        (self.value as u32, self.mask as u32)
    }

    fn high(self) -> (u32, u32) {
        ((self.value >> 32) as u32, (self.mask >> 32) as u32)
    }
}

/// Reads `data.len()` bytes; outside the register file and in holes they are 0.
pub(crate) fn read(
    registers: &Registers,
    offer: &Offer,
    counters: &Counters,
    at: u64,
    data: &mut [u8],
) {
    let mut quad = None;
    for (i, byte) in data.iter_mut().enumerate() {
        let Some(at) = at.checked_add(i as u64) else {
            *byte = 0;
            continue;
        };
        let base = at & !7;
        let value = match quad {
            Some((known, value)) if known == base => value,
            _ => {
                let value = match outside(counters, base) {
                    Some(counters) => counters.read(base),
                    None => read_quad(registers, offer, base),
                };
                quad = Some((base, value));
                value
            }
        };
        *byte = (value >> (8 * (at & 7))) as u8;
    }
}

/// Writes `data`, quadword by quadword in ascending order.
pub(crate) fn write(
    registers: &mut Registers,
    offer: &Offer,
    counters: &Counters,
    at: u64,
    data: &[u8],
) -> Effects {
    // As nearly all drivers write.
    if let Ok(quad) = data.try_into().map(u64::from_le_bytes)
        && at & 7 == 0
        && at < offer.mmio_size
    {
        let write = Write {
            value: quad,
            mask: !0,
        };
        return write_at(registers, offer, counters, at, write);
    }
    let mut effects = Effects::default();
    let mut i = 0;
    while i < data.len() {
        let base = at.wrapping_add(i as u64) & !7;
        if base >= offer.mmio_size {
            break;
        }
        let mut write = Write { value: 0, mask: 0 };
        while let Some(&byte) = data.get(i) {
            let byte_at = at.wrapping_add(i as u64);
            if byte_at & !7 != base {
                break;
            }
            let shift = 8 * (byte_at & 7);
            write.value |= u64::from(byte) << shift;
            write.mask |= 0xff << shift;
            i += 1;
        }
        effects.merge(write_at(registers, offer, counters, base, write));
    }
    effects
}

/// Writes to one quadword.
fn write_at(
    registers: &mut Registers,
    offer: &Offer,
    counters: &Counters,
    base: u64,
    write: Write,
) -> Effects {
    match outside(counters, base) {
        Some(counters) => Effects {
            counting: counters.write(base, write.value, write.mask),
            ..Effects::default()
        },
        None => write_quad(registers, offer, base, write),
    }
}

/// The registers of counters are theirs. Accesses to 1FF8h, where there is nothing, are counted.
fn outside(counters: &Counters, base: u64) -> Option<&Counters> {
    if base == offset::RESERVED_1FF8 {
        counters.count_quietly(CounterEvent::IgnRdWrMmio1ff8h, 1, &Subject::default());
    }
    (base >= offset::COUNTER_CONFIG).then_some(counters)
}

/// Device table segments beyond the first that exist.
fn extra_segments(offer: &Offer) -> usize {
    (1 << offer.efr.dev_tbl_seg_sup()) - 1
}

/// The segment whose base register stands at `base`, if it exists.
fn segment_at(offer: &Offer, base: u64) -> Option<usize> {
    if base == offset::DEVICE_TABLE_BASE {
        return Some(0);
    }
    let n = (base.checked_sub(offset::DEVICE_TABLE_SEGMENT_1)? / 8) as usize;
    (n < extra_segments(offer)).then_some(n + 1)
}

/// Registers of a PPR log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PprRegister {
    Base,
    Head,
    Tail,
    Early,
}

/// The register of log 0 (A) or 1 (B) that stands at `base`, if it exists.
fn ppr_register(offer: &Offer, base: u64) -> Option<(usize, PprRegister)> {
    let (log, register) = match base {
        offset::PPR_LOG_BASE => (0, PprRegister::Base),
        offset::PPR_HEAD => (0, PprRegister::Head),
        offset::PPR_TAIL => (0, PprRegister::Tail),
        offset::PPR_OVERFLOW_EARLY => (0, PprRegister::Early),
        offset::PPR_LOG_B_BASE => (1, PprRegister::Base),
        offset::PPR_B_HEAD => (1, PprRegister::Head),
        offset::PPR_B_TAIL => (1, PprRegister::Tail),
        offset::PPR_B_OVERFLOW_EARLY => (1, PprRegister::Early),
        _ => return None,
    };
    let efr = offer.efr;
    let offered = efr.ppr_sup()
        && (log == 0 || efr.dual_ppr_log_sup() != 0)
        && (register != PprRegister::Early || efr.ppr_ovrflw_early_sup());
    offered.then_some((log, register))
}

fn read_quad(r: &Registers, offer: &Offer, base: u64) -> u64 {
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    if let Some(segment) = segment_at(offer, base) {
        return r.device_tables[segment];
    }
    if let Some((log, register)) = ppr_register(offer, base) {
        let ring = r.ppr.logs[log];
        return match register {
            PprRegister::Base => ring.base,
            PprRegister::Head => ring.head,
            PprRegister::Tail => ring.tail,
            PprRegister::Early => r.ppr.early[log],
        };
    }
    let efr = offer.efr;
    match base {
        offset::COMMAND_BUFFER_BASE => r.command.base,
        offset::EVENT_LOG_BASE => r.event.base,
        offset::CONTROL => r.control,
        offset::EXCLUSION_BASE => r.exclusion[0],
        offset::EXCLUSION_LIMIT => r.exclusion[1],
        offset::EXTENDED_FEATURE => efr.into_bits(),
        offset::EXTENDED_FEATURE_2 => offer.efr2.into_bits(),
        offset::COMMAND_HEAD => r.command.head,
        offset::COMMAND_TAIL => r.command.tail,
        offset::EVENT_HEAD => r.event.head,
        offset::EVENT_TAIL => r.event.tail,
        offset::STATUS => r.status().into_bits(),
        offset::GA_LOG_BASE if efr.ga_sup() => r.ga.base,
        offset::GA_LOG_TAIL_ADDRESS if efr.ga_sup() => r.ga_tail_address,
        offset::GA_HEAD if efr.ga_sup() => r.ga.head,
        offset::GA_TAIL if efr.ga_sup() => r.ga.tail,
        offset::PPR_AUTO_RESPONSE if efr.ppr_auto_rsp_sup() => r.ppr.auto_response,
        offset::MSI_VECTOR_0 if efr.msi_cap_mmio_sup() => pair(pci::MISC_INFO_0, pci::MISC_INFO_1),
        offset::MSI_CAPABILITY if efr.msi_cap_mmio_sup() => {
            pair(pci::msi_header(&r.msi), r.msi.address_low)
        }
        offset::MSI_ADDRESS_HIGH if efr.msi_cap_mmio_sup() => {
            pair(r.msi.address_high, r.msi.data.into())
        }
        // 0168h, with Performance Optimization Control (not offered) in the upper half.
        offset::MSI_MAPPING if efr.msi_cap_mmio_sup() => pair(pci::HT_MSI_MAPPING, 0),
        offset::XT_GENERAL_INTERRUPT if efr.xt_sup() => r.xt_interrupts[0],
        offset::XT_PPR_INTERRUPT if efr.xt_sup() => r.xt_interrupts[1],
        offset::XT_GA_INTERRUPT if efr.xt_sup() => r.xt_interrupts[2],
        _ => 0,
    }
}

fn write_quad(r: &mut Registers, offer: &Offer, base: u64, w: Write) -> Effects {
    let mut effects = Effects::default();
    // First, because a guest writes nothing else as often.
    if base == offset::COMMAND_TAIL {
        r.command.tail = pointer(w, r.command.tail, POINTER_MASK_16, r.command.bytes());
        effects.commands = true;
        return effects;
    }
    if let Some(segment) = segment_at(offer, base) {
        return write_device_table(r, segment, w);
    }
    if let Some((log, register)) = ppr_register(offer, base) {
        write_ppr(r, log, register, w);
        return effects;
    }
    let efr = offer.efr;
    let status = r.status();
    match base {
        offset::COMMAND_BUFFER_BASE if !status.cmd_buf_run() => {
            effects.commands_moved = r.command.write_base(w.over(r.command.base, u64::MAX));
        }
        offset::EVENT_LOG_BASE if !status.event_log_run() => {
            r.event.write_base(w.over(r.event.base, u64::MAX));
        }
        offset::GA_LOG_BASE if efr.ga_sup() && !status.ga_log_run() => {
            r.ga.write_base(w.over(r.ga.base, u64::MAX));
        }
        offset::CONTROL => effects = write_control(r, offer, w),
        offset::EXCLUSION_BASE | offset::EXCLUSION_LIMIT => {
            let n = usize::from(base == offset::EXCLUSION_LIMIT);
            r.exclusion[n] = w.over(r.exclusion[n], EXCLUSION_MASKS[n]);
            effects = Effects {
                view: true,
                translation: true,
                ..effects
            };
        }
        offset::GA_LOG_TAIL_ADDRESS if efr.ga_sup() => {
            r.ga_tail_address = w.over(r.ga_tail_address, GA_TAIL_ADDRESS_MASK);
        }
        offset::XT_GENERAL_INTERRUPT | offset::XT_PPR_INTERRUPT | offset::XT_GA_INTERRUPT
            if efr.xt_sup() =>
        {
            let n = ((base - offset::XT_GENERAL_INTERRUPT) / 8) as usize;
            r.xt_interrupts[n] = w.over(r.xt_interrupts[n], XT_INTERRUPT_MASK);
        }
        offset::MSI_CAPABILITY if efr.msi_cap_mmio_sup() => {
            let (header, header_mask) = w.low();
            pci::write_msi_header(&mut r.msi, header, header_mask);
            let (low, low_mask) = w.high();
            pci::write_msi_address_low(&mut r.msi, low, low_mask);
        }
        offset::MSI_ADDRESS_HIGH if efr.msi_cap_mmio_sup() => {
            let (high, high_mask) = w.low();
            pci::write_msi_address_high(&mut r.msi, high, high_mask);
            let (data, data_mask) = w.high();
            pci::write_msi_data(&mut r.msi, data, data_mask);
        }
        offset::COMMAND_HEAD if !status.cmd_buf_run() => {
            r.command.head = pointer(w, r.command.head, POINTER_MASK_16, r.command.bytes());
            effects.commands_moved = true;
        }
        offset::EVENT_HEAD => {
            r.event.head = pointer(w, r.event.head, POINTER_MASK_16, r.event.bytes());
        }
        offset::EVENT_TAIL if !status.event_log_run() => {
            r.event.tail = pointer(w, r.event.tail, POINTER_MASK_16, r.event.bytes());
        }
        // A GA log head behind the end is taken: its length encoding is read in two ways.
        offset::GA_HEAD if efr.ga_sup() => {
            r.ga.head = pointer(w, r.ga.head, POINTER_MASK_8, u64::MAX);
        }
        offset::GA_TAIL if efr.ga_sup() && !status.ga_log_run() => {
            r.ga.tail = pointer(w, r.ga.tail, POINTER_MASK_8, r.ga.bytes());
        }
        offset::PPR_AUTO_RESPONSE if efr.ppr_auto_rsp_sup() => {
            r.ppr.auto_response = w.over(r.ppr.auto_response, PPR_AUTO_RESPONSE_MASK);
        }
        offset::STATUS => r.status &= !(w.value & w.mask & Status::RW1C),
        _ => {}
    }
    effects
}

fn write_ppr(r: &mut Registers, log: usize, register: PprRegister, w: Write) {
    let running = r.status().ppr_log_run();
    let ring = &mut r.ppr.logs[log];
    match register {
        PprRegister::Base if !running => {
            ring.write_base(w.over(ring.base, u64::MAX));
        }
        PprRegister::Head => ring.head = pointer(w, ring.head, POINTER_MASK_16, ring.bytes()),
        PprRegister::Tail if !running => {
            ring.tail = pointer(w, ring.tail, POINTER_MASK_16, ring.bytes());
        }
        PprRegister::Early => r.ppr.early[log] = w.over(r.ppr.early[log], PPR_EARLY_MASK),
        PprRegister::Base | PprRegister::Tail => {}
    }
}

/// A ring pointer after a write; one behind the end of the ring is ignored.
fn pointer(w: Write, old: u64, mask: u64, bytes: u64) -> u64 {
    let new = w.over(old, mask);
    if new < bytes { new } else { old }
}

/// Not locked by anything: a crash kernel moves the device table while IommuEn=1. A size that the
/// segment can't have is refused.
fn write_device_table(r: &mut Registers, segment: usize, w: Write) -> Effects {
    let new = w.over(r.device_tables[segment], device_table_mask(segment));
    if (new & 0x1ff) as u16 > device_table_max_size(segment) {
        return Effects::default();
    }
    r.device_tables[segment] = new;
    Effects {
        view: true,
        translation: true,
        ..Effects::default()
    }
}

/// Bits that only switch the command processor, logs and their interrupts.
const CONTROL_NOT_TRANSLATION: Control = Control::new()
    .with_event_log_en(true)
    .with_event_int_en(true)
    .with_com_wait_int_en(true)
    .with_inv_time_out(7)
    .with_cmd_buf_en(true)
    .with_ppr_log_en(true)
    .with_ppr_int_en(true)
    .with_ppr_en(true)
    .with_ppr_auto_rsp_en(true)
    .with_ppr_auto_rsp_aon(true)
    .with_dual_ppr_log_en(3)
    .with_ga_log_en(true)
    .with_ga_int_en(true)
    .with_int_cap_xt_en(true);

fn write_control(r: &mut Registers, offer: &Offer, w: Write) -> Effects {
    let old = r.control();
    let new = settle_control(old, w.over(r.control, u64::MAX), offer.efr, offer.efr2);
    r.control = new.into_bits();
    let mut effects = Effects::default();
    if new.cmd_buf_en() && !old.cmd_buf_en() {
        r.command_halted = false;
        effects.commands_moved = true;
    }
    effects.commands = true;
    let status = Status::from_bits(r.status);
    let writes = |bit: Control| w.touches(bit.into_bits());
    if new.event_log_en()
        && writes(Control::new().with_event_log_en(true))
        && !status.event_overflow()
    {
        r.event_stopped = false;
    }
    if new.ga_log_en() && writes(Control::new().with_ga_log_en(true)) && !status.gal_overflow() {
        r.ga_stopped = false;
    }
    if new.ppr_log_en()
        && writes(Control::new().with_ppr_log_en(true))
        && !status.ppr_overflow()
        && !status.ppr_overflow_b()
    {
        r.ppr.stopped = false;
    }
    let changed = old.into_bits() ^ new.into_bits();
    effects.view = changed != 0;
    effects.translation = changed & !CONTROL_NOT_TRANSLATION.into_bits() != 0;
    effects
}
