//! Machines that are saved, restored and moved while everything in them is busy.

use amdvi_lab_guest::plan::{Check, Disk, Msix, Net, Step};

use super::{NEW, Row};
use crate::lab::journey::Journey;
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
                label: Some(format!("{name}-{round}")),
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
    case.seconds += 40;
    case
}

const ROUNDS: u32 = 2;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M22-saved",
        about: "saved and restored by another process, again and again, while disk, network and MSI-X are checked",
        kernels: NEW,
        subset: &[],
        make: |case| busy(case).journey(Journey::Saved(&[4000, 9000, 5000, 8000, 6000, 7000])),
    },
    Row {
        name: "M22-moved",
        about: "moved live from process to process while disk, network and MSI-X are checked",
        kernels: NEW,
        subset: &[],
        make: |case| busy(case).journey(Journey::Moved(&[15_000, 15_000])),
    },
];
