//! What the firmware tables say, what they leave out, and what the command line overrides.

use amdvi_lab_guest::plan::{Check, Msix};

use super::{ALL, NEW, Row, V7};
use crate::lab::matrix::Case;

/// Interrupts are not remapped.
fn not_remapped(case: Case) -> Case {
    case.interrupts(|seen| {
        seen.remapped = false;
        seen.forbid.push("IR-*".to_owned());
    })
    .no_log(&["AMD-Vi: Interrupt remapping enabled"])
}

/// No IOMMU as far as the guest's drivers are concerned.
fn no_iommu(case: Case) -> Case {
    not_remapped(case).without(&["iommu-groups", "sysfs-ivhd"])
}

fn msix() -> Check {
    Check::Msix(Msix {
        vectors: 64,
        ..Msix::default()
    })
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M0-boot",
        about: "a machine with an IOMMU and nothing behind it boots and says nothing unexpected",
        kernels: ALL,
        subset: &[],
        make: |case| case.bare().log(&["AMD-Vi: Interrupt remapping enabled"]),
    },
    Row {
        name: "M16-intremap-off",
        about: "intremap=off: DMA is remapped, interrupts are not",
        kernels: ALL,
        subset: &[],
        make: |case| not_remapped(case.cmdline("intremap=off")),
    },
    Row {
        name: "M16-device-intremap-off",
        about: "a device without interrupt remapping: DMA is remapped",
        kernels: ALL,
        subset: &[],
        make: |case| not_remapped(case.iommu("dma-remap=on,intremap=off")),
    },
    Row {
        name: "M16-iommu-off",
        about: "iommu=off: the IOMMU stays off, everything works",
        kernels: ALL,
        subset: &[],
        make: |case| no_iommu(case.cmdline("iommu=off")),
    },
    Row {
        name: "M16-amd-iommu-off",
        about: "amd_iommu=off: the IOMMU stays off, everything works",
        kernels: ALL,
        subset: &[],
        make: |case| no_iommu(case.cmdline("amd_iommu=off")),
    },
    Row {
        name: "M16-nox2apic",
        about: "nox2apic: interrupts are remapped to 8-bit destinations",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.cmdline("nox2apic")
                .log(&["AMD-Vi: Interrupt remapping enabled"])
                .check(msix())
        },
    },
    Row {
        name: "M16-noapic",
        about: "noapic: no IOAPIC, MSIs are remapped",
        kernels: &[V7],
        subset: &[],
        make: |case| case.cmdline("noapic").check(msix()),
    },
    Row {
        name: "M16-ivrs-ioapic",
        about: "ivrs_ioapic= on the command line in place of the IVRS entry",
        kernels: NEW,
        subset: &[],
        make: |case| {
            case.cmdline("ivrs_ioapic=0@0000:00:14.0")
                .log(&["AMD-Vi: Interrupt remapping enabled"])
                .check(msix())
        },
    },
    Row {
        name: "M16-no-ioapic",
        about: "an IVRS without the IOAPIC: no interrupt remapping, and the message that says so",
        kernels: ALL,
        subset: &[],
        make: |case| {
            not_remapped(case.args(&["--ivrs", "ioapic=off"])).log(&[
                "*AMD-Vi: *IOAPIC*not in IVRS table*",
                "AMD-Vi: Disabling interrupt remapping",
            ])
        },
    },
    Row {
        name: "M16-no-southbridge",
        about: "no function at 00:14.0: no interrupt remapping, and the message that says so",
        kernels: &[V7],
        subset: &[],
        make: |case| {
            not_remapped(case.args(&["--ivrs", "southbridge=off"])).log(&[
                "*AMD-Vi: No southbridge IOAPIC found*",
                "AMD-Vi: Disabling interrupt remapping",
            ])
        },
    },
];
