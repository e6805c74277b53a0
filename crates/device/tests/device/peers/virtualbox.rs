//! VirtualBox DevIommuAmd, as of 2024. Its defects of the translation caches have their tests in
//! `amdvi-dma`.

use amdvi_device::Access;
use amdvi_regs::command::{Command, CompletionWait};
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::Event;
use amdvi_regs::mmio::offset;

use crate::endpoint::map_page;
use crate::rig::*;

#[test]
fn virtualbox_invalidate_iommu_all_drops_cached_interrupts_too() {
    let rig = Rig::enabled("amd-iommu");
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(5, fixed(0x41, 1));
    let mut nic = rig.nic();
    assert_eq!(delivered(nic.signal(msi(5))).vector, 0x41);
    rig.set_irte32(5, fixed(0x42, 1));
    // Cached, as nobody has said a word.
    assert_eq!(delivered(nic.signal(msi(5))).vector, 0x41);
    rig.submit(&[invalidate_all()]);
    assert_eq!(delivered(nic.signal(msi(5))).vector, 0x42);
}

#[test]
fn virtualbox_an_invalidated_dte_is_cached_again_for_interrupts_and_dma() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, true);
    let mut nic = rig.nic();
    for _ in 0..3 {
        rig.submit(&[invalidate_dte(NIC)]);
        assert!(nic.translate(0x5000, 4, Access::Write).is_ok());
        let before = rig.memory.accesses();
        assert!(nic.translate(0x5000, 4, Access::Write).is_ok());
        assert_eq!(rig.memory.accesses(), before);
    }
}

#[test]
fn virtualbox_the_head_stays_at_an_illegal_command() {
    let rig = Rig::enabled("amd-iommu");
    let wait = Command::from(CompletionWait::new());
    let illegal = Command::decode([0xf << 60, 0]);
    let tail = rig.queue(&[wait, wait, illegal, wait]);
    rig.write(offset::COMMAND_TAIL, tail);
    assert_eq!(rig.read(offset::COMMAND_HEAD), 0x20);
    assert!(
        matches!(rig.take_events()[..], [Event::IllegalCommandError(e)]
            if e.address_16() << 4 == COMMANDS + 0x20)
    );
}

/// A bridge takes its requesters' DeviceIDs away: it is its own that the IOMMU sees (an alias in the
/// IVRS), and the one that events name.
#[test]
fn a_function_with_an_alias_uses_the_dte_of_the_alias_and_is_named_by_it() {
    let rig = Rig::enabled("amd-iommu");
    map_page(&rig, true);
    let behind = amdvi_regs::DeviceId::new(0x13, 7, 0);
    // Its own entry blocks.
    let blocks = DteQ0::new().with_v(true);
    rig.set_dte(behind, blocks, DteQ1::new(), DteQ2::new());
    let mut own = rig.iommu.endpoint(behind);
    assert!(own.translate(0x5000, 4, Access::Write).is_err());
    rig.take_events();
    let mut aliased = rig.nic();
    assert!(aliased.translate(0x5000, 4, Access::Write).is_ok());
    assert!(aliased.translate(0x7000, 4, Access::Write).is_err());
    assert!(matches!(rig.take_events()[..], [Event::IoPageFault(e)] if e.device_id() == NIC.0));
}
