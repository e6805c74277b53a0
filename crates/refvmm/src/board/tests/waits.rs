//! An IOMMU that waits for an endpoint that does not answer.

use std::thread::sleep;
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::{reg, vmm};
use amdvi_regs::command::InvalidateIommuAll;

use super::rig::eventually;
use super::sharing::Rig;

/// Values of CONTROL.InvTimeOut.
const NONE: u8 = 0;
const ONE_MS: u8 = 1;
const ONE_SECOND: u8 = 4;

/// A machine whose IOMMU begins to wait.
fn waiting(inv_time_out: u8) -> Rig {
    let rig = Rig::new();
    rig.host();
    rig.ats(true);
    rig.enable(inv_time_out);
    rig.m.tell(reg::TLB_MUTE, 1);
    rig.begin(Rig::invalidate_device());
    assert_eq!(rig.counter(reg::TLB_INVALIDATIONS), 1);
    rig
}

#[test]
fn it_waits_for_as_long_as_the_guest_says_and_holds_nobody() {
    let began = Instant::now();
    let rig = waiting(ONE_SECOND);
    let told = began.elapsed();
    rig.end();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(told < Duration::from_millis(900), "{told:?}");
}

#[test]
fn the_end_does_not_move_when_more_commands_come() {
    let began = Instant::now();
    let rig = waiting(ONE_SECOND);
    for _ in 0..9 {
        sleep(Duration::from_millis(100));
        rig.begin(InvalidateIommuAll::new().into());
    }
    rig.end();
    let waited = began.elapsed();
    assert!(waited < Duration::from_millis(1800), "{waited:?}");
}

#[test]
fn a_guest_that_sets_no_time_waits_until_it_restarts_the_ring_with_one() {
    let rig = waiting(NONE);
    sleep(Duration::from_millis(200));
    assert!(!rig.is_complete());
    rig.restart(ONE_MS);
    rig.begin(InvalidateIommuAll::new().into());
    rig.end();
}

#[test]
fn while_the_machine_is_frozen_no_time_is_over() {
    let rig = waiting(ONE_SECOND);
    rig.m.board.freeze();
    sleep(Duration::from_millis(1200));
    assert!(!rig.is_complete());
    rig.m.board.thaw();
    rig.end();
}

#[test]
fn an_iommu_that_takes_over_asks_the_endpoint_again_and_has_a_wait_of_its_own() {
    let began = Instant::now();
    let rig = waiting(ONE_SECOND);
    sleep(Duration::from_millis(300));
    let replaced = Instant::now();
    rig.m.tell(reg::VMM_COMMAND, vmm::SAVE_RESTORE);
    eventually("another invalidation", || {
        rig.counter(reg::TLB_INVALIDATIONS) == 2
    });
    rig.end();
    assert!(replaced.elapsed() >= Duration::from_secs(1));
    assert!(began.elapsed() >= Duration::from_millis(1300));
}
