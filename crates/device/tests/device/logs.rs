//! Event log and GA log: rings, overflow, restart.

use amdvi_device::Signal;
use amdvi_regs::event::Event;
use amdvi_regs::irte::{Irte128Hi, Irte128Lo};
use amdvi_regs::mmio::{Status, offset};

use crate::rig::*;

/// A device whose every interrupt faults with an event: index 0 is beyond a table that is empty of
/// valid entries.
fn faulting() -> (Rig, amdvi_device::Endpoint) {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    let nic = rig.nic();
    (rig, nic)
}

#[test]
fn an_event_is_written_before_its_tail_and_sets_event_log_int() {
    let (rig, mut nic) = faulting();
    assert!(matches!(nic.signal(msi(5)), Signal::Blocked(_)));
    assert_eq!(rig.read(offset::EVENT_TAIL), 16);
    assert!(rig.status().event_log_int());
    let events = rig.take_events();
    assert!(matches!(events[..], [Event::IoPageFault(e)] if e.i() && e.device_id() == NIC.0));
}

#[test]
fn one_slot_of_the_event_log_stays_empty() {
    let (rig, mut nic) = faulting();
    for _ in 0..255 {
        nic.signal(msi(0));
    }
    assert_eq!(rig.read(offset::EVENT_TAIL), 0xff0);
    let status = rig.status();
    assert!(!status.event_overflow() && status.event_log_run());
    nic.signal(msi(0));
    assert_eq!(rig.read(offset::EVENT_TAIL), 0xff0);
    let status = rig.status();
    assert!(status.event_overflow() && !status.event_log_run());
    assert_eq!(
        rig.memory.read(EVENTS + 0xff0),
        0,
        "the last slot was not written"
    );
}

#[test]
fn the_event_log_wraps() {
    let (rig, mut nic) = faulting();
    for _ in 0..3 {
        for _ in 0..200 {
            nic.signal(msi(0));
        }
        assert_eq!(rig.take_events().len(), 200);
    }
    assert!(!rig.status().event_overflow());
    assert_eq!(rig.read(offset::EVENT_TAIL), (600 % 256) * 16);
}

#[test]
fn nothing_is_logged_after_an_overflow_until_it_is_cleared_and_the_log_enabled_again() {
    let (rig, mut nic) = faulting();
    for _ in 0..256 {
        nic.signal(msi(0));
    }
    // Room alone does not restart it.
    assert_eq!(rig.take_events().len(), 255);
    nic.signal(msi(0));
    assert!(rig.take_events().is_empty());
    // Neither does EventLogEn while the overflow bit is set.
    rig.set_control(|c| c.with_event_log_en(false));
    rig.set_control(|c| c.with_event_log_en(true));
    assert!(!rig.status().event_log_run());
    // Nor clearing the bit without writing EventLogEn.
    rig.write32(offset::STATUS, 1);
    assert!(!rig.status().event_overflow());
    nic.signal(msi(0));
    assert!(rig.take_events().is_empty() && !rig.status().event_log_run());
    rig.set_control(|c| c.with_event_log_en(true));
    assert!(rig.status().event_log_run());
    nic.signal(msi(0));
    assert_eq!(rig.take_events().len(), 1);
}

#[test]
fn linux_restarts_the_event_log() {
    let (rig, mut nic) = faulting();
    rig.set_control(|c| c.with_event_int_en(true));
    for _ in 0..300 {
        nic.signal(msi(0));
    }
    assert_eq!(rig.take_events().len(), 255);
    assert!(!rig.status().event_log_run());
    rig.set_control(|c| c.with_event_log_en(false));
    rig.set_control(|c| c.with_event_int_en(false));
    rig.write32(offset::STATUS, 1);
    rig.set_control(|c| c.with_event_int_en(true));
    rig.set_control(|c| c.with_event_log_en(true));
    assert!(rig.status().event_log_run());
    nic.signal(msi(0));
    assert_eq!(rig.take_events().len(), 1);
}

#[test]
fn without_event_log_en_events_are_dropped() {
    let (rig, mut nic) = faulting();
    rig.set_control(|c| c.with_event_log_en(false));
    nic.signal(msi(0));
    assert_eq!(rig.read(offset::EVENT_TAIL), 0);
    assert!(!rig.status().event_log_int());
}

#[test]
fn an_unwritable_log_loses_the_event_and_nothing_else() {
    let (rig, mut nic) = faulting();
    rig.set_control(|c| c.with_event_log_en(false));
    rig.write(offset::EVENT_LOG_BASE, NOWHERE | LEN_8);
    rig.set_control(|c| c.with_event_log_en(true));
    for _ in 0..1000 {
        assert!(matches!(nic.signal(msi(0)), Signal::Blocked(_)));
    }
    assert_eq!(rig.read(offset::EVENT_TAIL), 0);
    let status = rig.status();
    assert!(status.event_log_run() && !status.event_log_int() && !status.event_overflow());
}

/// A guest-mode entry that asks for a GA log entry.
fn guest_mode() -> (Rig, amdvi_device::Endpoint) {
    let rig = Rig::enabled("amd-iommu,vapic=on");
    rig.write(offset::GA_LOG_BASE, GA_LOG | LEN_8);
    rig.write(offset::GA_LOG_TAIL_ADDRESS, GA_TAIL);
    rig.set_control(|c| {
        c.with_ga_en(true)
            .with_gam_en(1)
            .with_ga_log_en(true)
            .with_ga_int_en(true)
    });
    assert!(rig.status().ga_log_run());
    rig.remap_interrupts(NIC, 9);
    set_guest_irte(&rig, false);
    let nic = rig.nic();
    (rig, nic)
}

/// RemapEn, GALogIntr, GuestMode, GATag beefh, vector 45h.
fn set_guest_irte(rig: &Rig, running: bool) {
    let low = 1 | 1 << 2 | 1 << 7 | 3 << 8 | 0xbeef << 32 | u64::from(running) << 6;
    let high = Irte128Hi::new()
        .with_vector(0x45)
        .with_ga_root(BACKING >> 12);
    rig.set_irte128(0, Irte128Lo::from_bits(low), high);
}

#[test]
fn a_posted_interrupt_sets_irr_and_logs_when_the_processor_does_not_run() {
    let (rig, mut nic) = guest_mode();
    rig.enable_msi(0x51);
    assert_eq!(nic.signal(msi(0)), Signal::Posted);
    assert_eq!(rig.memory.read(BACKING + 0x220), 1 << 5, "IRR bit 45h");
    assert_eq!(rig.read(offset::GA_TAIL), 8);
    assert_eq!(
        rig.memory.read(GA_TAIL),
        8,
        "tail stored at the tail address"
    );
    let entry = 1u64 << 60 | u64::from(NIC.0) << 32 | 0xbeef;
    assert_eq!(rig.memory.read(GA_LOG), entry);
    assert!(rig.status().ga_int());
    assert_eq!(rig.take_vectors(), [0x51]);
    assert!(rig.host.take_doorbells().is_empty());

    set_guest_irte(&rig, true);
    assert_eq!(nic.signal(msi(0)), Signal::Posted);
    assert_eq!(rig.host.take_doorbells(), [3]);
    assert_eq!(
        rig.read(offset::GA_TAIL),
        8,
        "no entry for a running processor"
    );
}

#[test]
fn the_ga_log_of_length_8_has_512_entries_overflows_and_restarts() {
    let (rig, mut nic) = guest_mode();
    for _ in 0..511 {
        nic.signal(msi(0));
    }
    assert_eq!(rig.read(offset::GA_TAIL), 0xff8);
    assert!(rig.status().ga_log_run());
    nic.signal(msi(0));
    let status = rig.status();
    assert!(status.gal_overflow() && !status.ga_log_run());
    assert_eq!(rig.read(offset::GA_TAIL), 0xff8);
    // Linux: run bit 0, disable, clear, enable, poll the run bit.
    rig.write(offset::GA_HEAD, 0xff8);
    rig.set_control(|c| c.with_ga_log_en(false).with_ga_int_en(false));
    rig.write32(
        offset::STATUS,
        Status::new().with_gal_overflow(true).into_bits() as u32,
    );
    rig.set_control(|c| c.with_ga_log_en(true).with_ga_int_en(true));
    assert!(rig.status().ga_log_run());
    nic.signal(msi(0));
    assert_eq!(rig.read(offset::GA_TAIL), 0, "wrapped");
}

#[test]
fn the_ga_log_stays_stopped_until_it_is_cleared_and_enabled_again() {
    let (rig, mut nic) = guest_mode();
    for _ in 0..512 {
        nic.signal(msi(0));
    }
    // Neither room nor GALogEn with the overflow bit set starts it.
    rig.write(offset::GA_HEAD, 0xff8);
    rig.set_control(|c| c.with_ga_log_en(false));
    rig.set_control(|c| c.with_ga_log_en(true));
    assert!(!rig.status().ga_log_run());
    // Nor does clearing the bit.
    rig.write32(
        offset::STATUS,
        Status::new().with_gal_overflow(true).into_bits() as u32,
    );
    nic.signal(msi(0));
    assert_eq!(rig.read(offset::GA_TAIL), 0xff8);
    assert!(!rig.status().ga_log_run());
    rig.set_control(|c| c.with_ga_log_en(true));
    nic.signal(msi(0));
    assert_eq!(rig.read(offset::GA_TAIL), 0);
}

#[test]
fn a_ga_log_head_behind_the_end_is_tolerated() {
    let (rig, mut nic) = guest_mode();
    rig.write(offset::GA_HEAD, 0x1010);
    for _ in 0..600 {
        nic.signal(msi(0));
    }
    assert!(rig.status().gal_overflow());
    assert_eq!(
        rig.read(offset::GA_TAIL),
        0x8,
        "full at the head modulo the length"
    );
}

#[test]
fn an_unwritable_ga_log_or_tail_address_does_no_harm() {
    let (rig, mut nic) = guest_mode();
    rig.write(offset::GA_LOG_TAIL_ADDRESS, NOWHERE);
    assert_eq!(nic.signal(msi(0)), Signal::Posted);
    assert_eq!(rig.read(offset::GA_TAIL), 8);
    rig.set_control(|c| c.with_ga_log_en(false));
    rig.write(offset::GA_LOG_BASE, NOWHERE | LEN_8);
    rig.set_control(|c| c.with_ga_log_en(true));
    assert_eq!(nic.signal(msi(0)), Signal::Posted);
    assert_eq!(rig.read(offset::GA_TAIL), 0);
}

#[test]
fn without_a_tail_address_none_is_stored() {
    let (rig, mut nic) = guest_mode();
    rig.write(offset::GA_LOG_TAIL_ADDRESS, 0);
    rig.memory.write(0, 0x1111);
    assert_eq!(nic.signal(msi(0)), Signal::Posted);
    assert_eq!(rig.memory.read(0), 0x1111);
}
