//! What the firmware tables say, what they leave out, and what the command line overrides.

use amdvi_lab_guest::plan::{Check, Msix, SysfsIvhd, Target, UnmapFault, VfioDma};

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

/// The driver prints what it reads in the IVRS.
fn dump(case: Case) -> Case {
    case.cmdline("amd_iommu_dump").log_allow(&["AMD-Vi: *"])
}

fn vfio_dma() -> Check {
    Check::VfioDma(VfioDma::default())
}

/// The log must have these lines, which no other machine's may have.
fn expected(case: Case, lines: &[&str]) -> Case {
    case.log(lines).log_allow(lines)
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
        name: "M15-types",
        about: "IVHD blocks of type 10h and 11h only: the driver takes the second",
        kernels: ALL,
        subset: &[],
        make: |case| {
            dump(case.args(&["--ivrs", "types=10+11"]))
                // Linux 6.12 prints its name twice.
                .log(&["AMD-Vi: *Using IVHD type 0x11"])
                .check(msix())
        },
    },
    Row {
        name: "M15-alias",
        about: "a function whose requests carry another function's DeviceID",
        kernels: ALL,
        subset: &[],
        make: |case| {
            dump(case.args(&["--ivrs", "alias=08.0@1d.0"]))
                .endpoints(&["addr=08.0"])
                .log(&["AMD-Vi: *DEV_ALIAS*"])
                .log_allow(&["pci 0000:00:08.0: Enabling fixed DMA alias to 1d.0"])
                .check(msix())
                .check(vfio_dma())
                .check(Check::UnmapFault(UnmapFault {
                    alias: Some("0000:00:1d.0".to_owned()),
                    ..UnmapFault::default()
                }))
        },
    },
    Row {
        name: "M15-ivmd",
        about: "memory that stays mapped one to one, and memory that is excluded: reserved regions of type direct",
        kernels: ALL,
        subset: &[],
        make: |case| {
            dump(case.args(&[
                "--ivrs",
                "unity=0x1000000-0x1ffffff@08.0,exclusion=0x3000000-0x30fffff@08.0",
            ]))
            .endpoints(&["addr=08.0", "addr=0a.0"])
            .groups(|groups| {
                let patterns = ["0x<x> 0x<x> direct*"].map(str::to_owned).to_vec();
                groups.reserved.insert("0000:00:08.0".to_owned(), patterns);
            })
            // A program can't own a function with such memory; the other one has none.
            .check(Check::Msix(Msix {
                target: Target {
                    endpoint: 1,
                    ..Target::default()
                },
                vectors: 64,
                ..Msix::default()
            }))
        },
    },
    Row {
        name: "M15-acpi-hid",
        about: "a device that only ACPI names",
        kernels: ALL,
        subset: &[],
        make: |case| {
            dump(case.args(&["--ivrs", "acpi=AMDI0010@1e.0/1"]))
                .log(&["AMD-Vi: *DEV_ACPI_HID(AMDI0010*"])
                .check(msix())
        },
    },
    Row {
        name: "M15-two-iommus",
        about: "two IOMMUs, a function behind each, both translated and remapped",
        kernels: ALL,
        subset: &[],
        make: |case| {
            let second = Target {
                endpoint: 1,
                ..Target::default()
            };
            dump(case)
                .more_iommu("addr=10.2,mmio-base=0xfeb90000,dma-remap=on,intremap=on,xtsup=on")
                .endpoints(&["addr=08.0", "addr=11.0"])
                .check(msix())
                .check(Check::Msix(Msix {
                    target: second,
                    vectors: 64,
                    ..Msix::default()
                }))
                .check(vfio_dma())
                .check(Check::VfioDma(VfioDma {
                    target: second,
                    ..VfioDma::default()
                }))
                .check(Check::SysfsIvhd(SysfsIvhd {
                    index: 1,
                    ..SysfsIvhd::default()
                }))
        },
    },
    Row {
        name: "M15-segment",
        about: "a second PCI segment with an IOMMU of its own",
        kernels: ALL,
        subset: &[],
        make: |case| {
            let second = Target {
                endpoint: 1,
                ..Target::default()
            };
            dump(case)
                .more_iommu("segment=1,mmio-base=0xfeb90000,dma-remap=on,intremap=on,xtsup=on")
                .endpoints(&["addr=08.0", "addr=1:00:05.0"])
                .check(msix())
                .check(Check::Msix(Msix {
                    target: second,
                    vectors: 64,
                    ..Msix::default()
                }))
                .check(Check::VfioDma(VfioDma {
                    target: second,
                    ..VfioDma::default()
                }))
        },
    },
    Row {
        name: "M15-hpet",
        about: "an HPET whose timers send messages through the IOMMU",
        kernels: ALL,
        subset: &[],
        make: |case| {
            // On hardware-reduced machines Linux does not touch an HPET.
            dump(case.args(&["--ivrs", "hpet=14.1", "--acpi", "fixed"]))
                // Else the kernel does without: the local APIC's timer never stops.
                .cmdline("clearcpuid=arat")
                .log(&["hpet: 3 channels of <n> reserved for per-cpu timers"])
                .log_allow(&[
                    "clearcpuid: force-disabling CPU feature flag: arat",
                    "Clearing CPUID bits: arat",
                    "!!! setcpuid=/clearcpuid= in use, this is for TESTING ONLY*",
                    "ACPI: FACS <x> <x>",
                    "ACPI: HPET id: <x> base: 0xfed00000",
                    // A PC of today: neither an 8259 nor an 8254.
                    "Using NULL legacy PIC",
                    "Failed to register legacy timer interrupt",
                    "hpet0: at MMIO 0xfed00000, IRQs *",
                    "hpet0: 3 comparators, 64-bit 10.000000 MHz counter",
                    // On a busy host the counter has passed what was programmed.
                    "CE: hpet<n> increased min_delta_ns to <n> nsec",
                ])
                .interrupts(|seen| seen.require.push("IR-HPET-MSI*".to_owned()))
        },
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
        // Without the IOAPIC in the IVRS, which is how firmware says so.
        make: |case| {
            expected(
                not_remapped(case.iommu("dma-remap=on,intremap=off")),
                &[
                    "AMD-Vi: [Firmware Bug]: : IOAPIC[0] not in IVRS table",
                    "AMD-Vi: Disabling interrupt remapping",
                ],
            )
            .log_allow(&["AMD-Vi: [Firmware Bug]: : No southbridge IOAPIC found"])
        },
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
        about: "noapic: no IOAPIC, and so no interrupt remapping, as the kernel says",
        kernels: &[V7],
        subset: &[],
        // The serial port has no interrupt then, and a program can't open it.
        make: |case| {
            expected(
                not_remapped(case.cmdline("noapic console=hvc0")),
                &[
                    "ACPI: Skipping IOAPIC probe due to 'noapic' option.",
                    "Not enabling interrupt remapping due to skipped IO-APIC setup",
                ],
            )
            .log_allow(&[
                "ACPI: Using ACPI for processor (LAPIC) configuration information",
                "ACPI: setting ELCR to <x> (from <x>)",
                "ACPI: Using PIC for interrupt routing",
                "printk: legacy console [hvc0] enabled",
            ])
        },
    },
    Row {
        name: "M16-ivrs-ioapic",
        about: "ivrs_ioapic= on the command line in place of the IVRS entry",
        kernels: NEW,
        subset: &[],
        make: |case| {
            case.cmdline("ivrs_ioapic=0@0000:00:14.0")
                .log(&[
                    "AMD-Vi: Interrupt remapping enabled",
                    "AMD-Vi: Command-line override present for IOAPIC id 0 - ignoring",
                ])
                .check(msix())
        },
    },
    Row {
        name: "M16-no-ioapic",
        about: "an IVRS without the IOAPIC: no interrupt remapping, and the message that says so",
        kernels: ALL,
        subset: &[],
        make: |case| {
            expected(
                not_remapped(case.args(&["--ivrs", "ioapic=off"])),
                &[
                    "AMD-Vi: [Firmware Bug]: : IOAPIC[0] not in IVRS table",
                    "AMD-Vi: Disabling interrupt remapping",
                ],
            )
            .log_allow(&["AMD-Vi: [Firmware Bug]: : No southbridge IOAPIC found"])
        },
    },
    Row {
        name: "M16-no-southbridge",
        about: "no function at 00:14.0: no interrupt remapping, and the message that says so",
        kernels: &[V7],
        subset: &[],
        make: |case| {
            expected(
                not_remapped(case.args(&["--ivrs", "southbridge=off"])),
                &[
                    "AMD-Vi: [Firmware Bug]: : No southbridge IOAPIC found",
                    "AMD-Vi: Disabling interrupt remapping",
                ],
            )
        },
    },
];
