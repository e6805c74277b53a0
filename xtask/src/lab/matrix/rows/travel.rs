//! Machines that are saved, restored and moved while everything in them is busy.

use amdvi_lab_guest::plan::{Check, Disk, Msix, Net, Step, Timers};

use super::super::case::Version::Built;
use super::{ALL, Row};
use crate::lab::journey::{self, Journey};
use crate::lab::matrix::Case;

/// What keeps disks, network and interrupts busy for long, each time with other data.
fn busy(mut case: Case) -> Case {
    case.memory = "512M".to_owned();
    for step in &mut case.plan.checks {
        if let Check::Net(net) = &mut step.check {
            // The peer is in the VMM, and what it knows of connections is not saved.
            net.stream_kib = 0;
        }
    }
    for round in 0..ROUNDS {
        let seed = 100 + u64::from(round);
        let mut more = |name: &str, check| {
            case.plan.checks.push(Step {
                label: Some(format!("{}{name}-{round}", journey::BUSY)),
                timeout_s: Some(120),
                check,
            });
        };
        more(
            "disk",
            Check::Disk(Disk {
                mib: 12,
                seed,
                ..Disk::default()
            }),
        );
        more(
            "net",
            Check::Net(Net {
                datagrams: 2000,
                stream_kib: 0,
                seed,
                ..Net::default()
            }),
        );
        more(
            "msix",
            Check::Msix(Msix {
                vectors: 128,
                ..Msix::default()
            }),
        );
    }
    // Until then every journey is over: a save amid the lines of the guest's report would cut it. And a
    // guest whose clock or timers have suffered is late here.
    case.plan.checks.push(Step {
        label: Some("timers-after".to_owned()),
        timeout_s: Some(120),
        check: Check::Timers(Timers {
            millis: journey::LONGEST + 500,
            ..Timers::default()
        }),
    });
    case.seconds += 40;
    case
}

/// Nine checks, during which the machine goes.
const ROUNDS: u32 = 3;

/// Four saves are possible however fast the guest is.
const SAVED: Journey = Journey::Saved { least: 4, most: 9 };

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M22-saved",
        about: "saved and restored by another process, again and again, while disk, network and MSI-X are checked",
        kernels: ALL,
        subset: &[Built],
        make: |case| busy(case).journey(SAVED),
    },
    Row {
        name: "M22-saved-irqfd",
        about: "the same while KVM delivers the vectors by irqfds",
        kernels: ALL,
        subset: &[],
        make: |case| busy(case).args(&["--interrupts", "irqfd"]).journey(SAVED),
    },
    Row {
        name: "M22-moved",
        about: "moved live from process to process while disk, network and MSI-X are checked",
        kernels: ALL,
        subset: &[],
        make: |case| busy(case).journey(Journey::Moved(3)),
    },
];
