//! DMA remapping: domain types, table formats, caching, and functions that a program owns.

use amdvi_lab_guest::plan::{Backend, Check, Msix, Pin, Target, UnmapFault, VfioDma};

use super::{ALL, Built, NEW, Row, V6_12, V7};
use crate::lab::matrix::Case;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What the kernel says of its policy.
const LAZY: &str = "iommu: DMA domain TLB invalidation policy: lazy mode*";
const STRICT: &str = "iommu: DMA domain TLB invalidation policy: strict mode*";
const TRANSLATED: &str = "iommu: Default domain type: Translated*";
const PASSTHROUGH: &str = "iommu: Default domain type: Passthrough*";

/// DMA through mappings of a program, at every size of a page and at the ends of the modes.
fn far(mode: Option<u8>) -> Check {
    Check::VfioDma(VfioDma {
        iovas: vec![MIB, 1 << 32, 1 << 38, 1 << 47, 1 << 56, 1 << 58],
        sizes: vec![4 * KIB, 8 * KIB, 64 * KIB, 2 * MIB, 4 * MIB],
        mode,
        ..VfioDma::default()
    })
}

fn vfio_dma() -> Check {
    Check::VfioDma(VfioDma::default())
}

/// All groups have one of these types.
fn types(case: Case, types: &'static [&'static str]) -> Case {
    case.groups(move |groups| groups.types = types.iter().map(|one| (*one).to_owned()).collect())
}

/// As [`far`], and with debugfs the mode that the table grows to.
fn far_rows(case: Case) -> Case {
    let mode = case.version.is_built().then_some(6);
    case.check_as("vfio-dma", 120, far(mode))
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M5-pt",
        about: "iommu=pt: untranslated domains, remapped interrupts, and a function that is translated all the same once a program owns it",
        kernels: ALL,
        subset: &[V7],
        make: |case| {
            types(case, &["identity"])
                .cmdline("iommu=pt")
                .log(&[PASSTHROUGH])
                .check(vfio_dma())
        },
    },
    Row {
        name: "M5-nopt",
        about: "iommu=nopt: translated domains",
        kernels: ALL,
        subset: &[],
        make: |case| {
            types(case, &["DMA", "DMA-FQ"])
                .cmdline("iommu=nopt")
                .log(&[TRANSLATED])
                .check(vfio_dma())
        },
    },
    Row {
        name: "M5-strict",
        about: "iommu.strict=1: every unmapping is invalidated at once",
        kernels: ALL,
        subset: &[V6_12],
        make: |case| {
            types(case, &["DMA"])
                .cmdline("iommu.strict=1")
                .log(&[TRANSLATED, STRICT])
                .check(vfio_dma())
        },
    },
    Row {
        name: "M5-lazy",
        about: "iommu.strict=0: invalidations are put off",
        kernels: ALL,
        subset: &[],
        make: |case| {
            types(case, &["DMA-FQ"])
                .cmdline("iommu.strict=0")
                .log(&[TRANSLATED, LAZY])
                .check(vfio_dma())
        },
    },
    Row {
        name: "M5-forcedac",
        about: "iommu.forcedac=1: drivers get IOVAs above 4 GiB",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.cmdline("iommu.forcedac=1")
                .log(&["Forcing DAC for PCI devices"])
                .check(vfio_dma())
        },
    },
    Row {
        name: "M7-pgtbl-v1",
        about: "host tables, mapped at 2^38, 2^47, 2^56 and 2^58: Mode grows from 3 to 6",
        kernels: ALL,
        subset: &[V7],
        make: |case| far_rows(case.cmdline("amd_iommu=pgtbl_v1")),
    },
    Row {
        name: "M7-nohugepages",
        about: "host tables of 4 KiB pages only",
        kernels: NEW,
        subset: &[],
        make: |case| {
            far_rows(case.cmdline("amd_iommu=pgtbl_v1,nohugepages"))
                .log(&["AMD-Vi: Restricting V1 page-sizes to 4KiB"])
        },
    },
    Row {
        name: "M7-v2-pgsizes",
        about: "host tables of the CPU's page sizes only",
        kernels: NEW,
        subset: &[],
        make: |case| {
            far_rows(case.cmdline("amd_iommu=pgtbl_v1,v2_pgsizes_only"))
                .log(&["AMD-Vi: Restricting V1 page-sizes to 4KiB/2MiB/1GiB"])
        },
    },
    Row {
        name: "M13-npcache",
        about: "NpCache: the driver goes strict and flushes after mapping",
        kernels: ALL,
        subset: &[],
        make: |case| {
            types(case, &["DMA"])
                .iommu("dma-remap=on,intremap=on,xtsup=on,np-cache=on")
                .log(&["*sing strict mode due to virtualization*"])
                .check(vfio_dma())
        },
    },
    Row {
        name: "M19-vfio",
        about: "a program owns the function, without allow_unsafe_interrupts: INTx, MSI, MSI-X, DMA at every size; DMA after the unmapping is a fault",
        kernels: ALL,
        subset: &[V6_12, Built],
        make: |case| {
            let built = case.version.is_built();
            let case = case
                .check(Check::Intx(Pin::default()))
                .check(Check::Msi(Pin::default()))
                .check(Check::Msix(Msix {
                    vectors: 64,
                    ..Msix::default()
                }))
                .check_as("vfio-dma", 120, far(None))
                .check(Check::UnmapFault(UnmapFault::default()));
            let group = Target {
                backend: Some(Backend::Group),
                ..Target::default()
            };
            case.check_if(
                built,
                Check::VfioDma(VfioDma {
                    target: group,
                    ..VfioDma::default()
                }),
            )
        },
    },
];
