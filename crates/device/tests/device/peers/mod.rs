//! Defects that were observed in other emulations, each asserted not to be here: what is asserted is
//! what publication 48882 says. A number names the same defect in the tests of every crate.

mod openvmm;
mod qemu;
mod virtualbox;

use amdvi_device::Signal;
use amdvi_irt::FaultReason;
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};

use crate::rig::*;

pub(super) fn blocked(signal: Signal) -> FaultReason {
    match signal {
        Signal::Blocked(reason) => reason,
        other => panic!("not blocked: {other:?}"),
    }
}

pub(super) fn set_q2(rig: &Rig, q2: DteQ2) {
    rig.set_dte(NIC, DteQ0::new(), DteQ1::new(), q2);
    rig.submit(&[invalidate_dte(NIC)]);
}
