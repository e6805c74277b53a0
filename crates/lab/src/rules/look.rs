//! What rules look at.

use amdvi_device::Abort;
use amdvi_dma::Reason;
use amdvi_regs::command::Command;
use amdvi_regs::dte::Dte;
use amdvi_regs::msi::{MsiAddress, MsiData, is_msi_address};
use amdvi_regs::pte::{HostPte, TABLE_ENTRIES, level_shift};

use crate::case::{Case, Message, Observation, Outcome, Refusal, Step};
use crate::compare::{Difference, Field, Place};
use crate::layout::Device;
use crate::setup;

/// The codes of events.
pub(super) const ILLEGAL_DEV_TABLE_ENTRY: u8 = 1;
pub(super) const IO_PAGE_FAULT: u8 = 2;
pub(super) const PAGE_TAB_HARDWARE_ERROR: u8 = 4;
pub(super) const ILLEGAL_COMMAND_ERROR: u8 = 5;
pub(super) const COMMAND_HARDWARE_ERROR: u8 = 6;

pub(super) fn events_are(d: &Difference<'_>, ours: &[u8], theirs: &[u8]) -> bool {
    d.events() == Some((ours, theirs))
}

/// Whether our side refused DMA for such a reason.
pub(super) fn dma_refused(d: &Difference<'_>, such: fn(&Reason) -> bool) -> bool {
    matches!(d.refusal(), Some(Refusal::Dma(Abort::Translation(reason))) if such(&reason))
}

/// QEMU did the access, so it logged nothing.
pub(super) fn theirs_went_on(d: &Difference<'_>) -> bool {
    d.theirs().is_some_and(|theirs| {
        matches!(theirs.outcome, Outcome::Landed(_) | Outcome::Elsewhere)
            && theirs.events.is_empty()
    })
}

pub(super) fn theirs_illegal_dte(d: &Difference<'_>) -> bool {
    d.theirs().is_some_and(|theirs| {
        !theirs.events.is_empty()
            && theirs
                .events
                .iter()
                .all(|&code| code == ILLEGAL_DEV_TABLE_ENTRY)
            && matches!(theirs.outcome, Outcome::Aborted | Outcome::Blocked)
    })
}

pub(super) fn ours_illegal_dte(d: &Difference<'_>) -> bool {
    d.ours()
        .is_some_and(|ours| ours.events == [ILLEGAL_DEV_TABLE_ENTRY])
}

/// The bits that QEMU calls reserved, found by setting each.
const QEMU_RESERVED: [u64; 4] = [
    0x8000_0000_0000_007c,
    0,
    0x0030_0000_0000_0000,
    0x003f_0000_0000_7fff,
];

pub(super) fn has_qemu_reserved(dte: &Dte) -> bool {
    dte.words()
        .iter()
        .zip(QEMU_RESERVED)
        .any(|(word, reserved)| word & reserved != 0)
}

pub(super) fn qemu_reserved(d: &Difference<'_>) -> bool {
    d.requester()
        .is_some_and(|(_, dte)| has_qemu_reserved(&dte))
}

/// Bits that both sides refuse in the half of the DTE that the request needs.
pub(super) fn has_qemu_reserved_in_use(d: &Difference<'_>) -> bool {
    let Some((_, dte)) = d.requester() else {
        return false;
    };
    let words = dte.words();
    let halves = if matches!(d.step(), Some((_, Step::Dma { .. }))) {
        0..2
    } else {
        2..4
    };
    halves.into_iter().any(|i| words[i] & QEMU_RESERVED[i] != 0)
}

/// Whether the entry that denies our access is the leaf.
pub(super) fn denied_by_leaf(d: &Difference<'_>) -> bool {
    let (Some((_, dte)), Some((i, Step::Dma { iova, .. }))) = (d.requester(), d.step()) else {
        return false;
    };
    let Some(Refusal::Dma(Abort::Translation(Reason::Permission {
        level: Some(denier),
    }))) = d.refusal()
    else {
        return false;
    };
    walk(d.case, dte, *iova, i, denier).is_some_and(|(entry, _)| entry.is_leaf())
}

/// Whether the IOMMU is off when the request comes.
pub(super) fn is_off(d: &Difference<'_>) -> bool {
    d.step().is_some_and(|(i, _)| !d.case.control(i).iommu_en())
}

/// The refusal of an address in the HyperTransport ranges.
pub(super) fn hyper_transport(d: &Difference<'_>) -> Option<()> {
    let Some((_, Step::Dma { iova, .. })) = d.step() else {
        return None;
    };
    (0xfd_0000_0000..=0xff_ffff_ffff)
        .contains(iova)
        .then_some(())
}

/// For DMA to the MSI window, whether it writes.
pub(super) fn in_msi_window(d: &Difference<'_>) -> Option<bool> {
    match d.step() {
        Some((_, Step::Dma { iova, write, .. })) if is_msi_address(*iova) => Some(*write),
        _ => None,
    }
}

/// The field of a delivery that differs.
pub(super) fn delivery(d: &Difference<'_>) -> Option<Field> {
    match d.place {
        Place::Delivery(_, field) => Some(field),
        _ => None,
    }
}

pub(super) fn message_of(d: &Difference<'_>) -> Option<(MsiAddress, MsiData)> {
    let (_, msi) = d.case.message(d.step()?.0)?;
    Some((
        MsiAddress::from_bits(msi.address as u32),
        MsiData::from_bits(msi.data),
    ))
}

/// The command at which our side has halted, at or before the place of the difference.
pub(super) fn halted(d: &Difference<'_>) -> Option<[u64; 2]> {
    let last = d.step().map_or(d.case.steps.len() - 1, |(i, _)| i);
    let head = d.ours.steps[..=last].iter().find_map(|seen| {
        let stops = |&code: &u8| matches!(code, ILLEGAL_COMMAND_ERROR | COMMAND_HARDWARE_ERROR);
        match seen.outcome {
            Outcome::Head(head) if seen.events.iter().any(stops) => Some(head),
            _ => None,
        }
    })?;
    // What the case has submitted up to there, after the prologue and its marker.
    let start = d.case.ring_start + 16 * (setup::invalidate_everything().len() as u64 + 1);
    let size = setup::ring_bytes(d.case);
    let index = (head + size - start % size) % size / 16;
    let submitted = d.case.steps[..=last].iter().filter_map(|step| match step {
        Step::Commands(list) => Some(list),
        _ => None,
    });
    submitted.flatten().nth(index as usize).copied()
}

/// Whether, at step `i`, something from before a store may still be in use.
pub(super) fn may_be_stale(d: &Difference<'_>, i: usize) -> bool {
    let mut pending = Vec::new();
    for step in &d.case.steps[..i] {
        match step {
            Step::Store { gpa, .. } => pending.push(*gpa),
            Step::Commands(list) => {
                for &words in list {
                    pending.retain(|&gpa| !invalidates(d, words, gpa));
                }
            }
            _ => {}
        }
    }
    !pending.is_empty()
}

/// Whether a command ends what may be cached of the word at `gpa` for the request.
fn invalidates(d: &Difference<'_>, words: [u64; 2], gpa: u64) -> bool {
    let (Some((device, _)), Some((_, step))) = (d.requester(), d.step()) else {
        return true;
    };
    let in_dte = (device.dte()..device.dte() + 32).contains(&gpa);
    let id = device.id().0;
    match (Command::decode(words), step) {
        (Command::InvalidateIommuAll(_), _) => true,
        (Command::InvalidateIommuPages(c), Step::Dma { iova, .. }) => {
            // An entry that overlaps the range goes, whatever its size.
            let offset = (1 << page_shift(d.case, device, *iova)) - 1;
            c.domain_id() == d.case.dte(device, 0).q1.domain_id()
                && c.range().overlaps(iova & !offset, iova | offset)
        }
        (Command::InvalidateInterruptTable(c), Step::Msi { .. } | Step::Pin { .. }) => {
            !in_dte && c.device_id() == id
        }
        (Command::InvalidateDevtabEntry(c), Step::Msi { .. } | Step::Pin { .. }) => {
            in_dte && c.device_id() == id
        }
        _ => false,
    }
}

/// log2 of the size of the page that maps `iova` at the beginning of a case; 12 without one.
fn page_shift(case: &Case, device: Device, iova: u64) -> u32 {
    walk(case, case.dte(device, 0), iova, 0, 0)
        .and_then(|(entry, level)| entry.page_shift(level))
        .unwrap_or(12)
}

/// The entry for `iova` at which a walk ends, and its level: a leaf, or the first at or below level
/// `last`.
fn walk(case: &Case, dte: Dte, iova: u64, i: usize, last: u8) -> Option<(HostPte, u8)> {
    let (mut table, mut level) = (dte.q0.host_pt_root() << 12, dte.q0.mode());
    loop {
        let shift = level_shift(level)?;
        let gpa = table + (iova >> shift & (TABLE_ENTRIES - 1)) * 8;
        let entry = HostPte::from_bits(case.word(gpa, i));
        if level <= last || entry.is_leaf() {
            return Some((entry, level));
        }
        if entry.next_level() >= level {
            return None;
        }
        table = entry.address();
        level = entry.next_level();
    }
}

/// Whether the requester's DTE has got another DomainID since, and was invalidated.
pub(super) fn moved_to_another_domain(d: &Difference<'_>, i: usize) -> bool {
    let Some((device, dte)) = d.requester() else {
        return false;
    };
    let invalidated = |step: &Step| {
        matches!(step, Step::Commands(list) if list.iter().any(|&words| {
            matches!(Command::decode(words),
                Command::InvalidateDevtabEntry(c) if c.device_id() == device.id().0)
        }))
    };
    let before = d.case.dte(device, 0);
    dte.q1.domain_id() != before.q1.domain_id() && d.case.steps[..i].iter().any(invalidated)
}

/// A side does what it did before for a request that uses the same table entries.
pub(super) fn as_before(d: &Difference<'_>, now: &Observation, steps: &[Observation]) -> bool {
    let Some((i, step)) = d.step() else {
        return false;
    };
    (0..i).any(|earlier| {
        let similar = match (&d.case.steps[earlier], step) {
            (Step::Dma { iova: a, .. }, Step::Dma { iova: b, .. }) => a == b,
            _ => match (d.case.message(earlier), d.case.message(i)) {
                (Some((a, first)), Some((b, second))) => {
                    a == b && (first.data ^ second.data) & 0x7ff == 0
                }
                _ => false,
            },
        };
        similar && same_place(steps[earlier].outcome, now.outcome)
    })
}

/// Whether two requests went to the same place, as far as can be told.
fn same_place(before: Outcome, now: Outcome) -> bool {
    match (before, now) {
        // The trigger mode is the message's.
        (Outcome::Delivered(before), Outcome::Delivered(now)) => {
            before
                == Message {
                    level: before.level,
                    ..now
                }
        }
        // QEMU's DMA is looked for where ours went. Where it went before, it is elsewhere.
        (Outcome::Landed(_), Outcome::Elsewhere | Outcome::Aborted) => true,
        _ => before == now,
    }
}
