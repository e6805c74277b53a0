//! Guest tables, PASIDs, the virtual APIC, dirty bits, counters and SNP: machine and command line
//! of each, and what the guest's init can see of it so far.

use amdvi_lab_guest::plan::{Check, Msix, UnmapFault, VfioDma};

use super::{ALL, Built, NEW, Row};
use crate::lab::matrix::Case;
use crate::lab::matrix::expect::{bits, not_zero};

/// Guest translation and what the driver wants beside it.
const GUEST: &str = "dma-remap=on,intremap=on,xtsup=on,gtsup=on,giosup=on";
/// CONTROL.GTEn.
const GT_EN: u64 = 1 << 16;
const CONTROL: &str = "/iommus/0/control";

fn dma(case: Case) -> Case {
    case.check(Check::VfioDma(VfioDma::default()))
        .check(Check::UnmapFault(UnmapFault::default()))
}

fn msix() -> Check {
    Check::Msix(Msix {
        vectors: 64,
        ..Msix::default()
    })
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M6-pgtbl-v2",
        about: "amd_iommu=pgtbl_v2: DMA of drivers through guest tables of 4 levels",
        kernels: ALL,
        subset: &[],
        make: |case| {
            dma(case.iommu(GUEST).cmdline("amd_iommu=pgtbl_v2"))
                .log(&["AMD-Vi: V2 page table enabled (Paging mode : 4 level)"])
                .machine(bits(CONTROL, GT_EN, GT_EN))
        },
    },
    Row {
        name: "M6-no5lvl",
        about: "guest tables of 5 levels that a CPU without LA57 can't share: the driver takes 4",
        kernels: NEW,
        subset: &[],
        make: |case| {
            let device = format!("{GUEST},gats=5");
            dma(case.iommu(&device).cmdline("amd_iommu=pgtbl_v2 no5lvl"))
                .log(&["AMD-Vi: V2 page table enabled (Paging mode : 4 level)"])
        },
    },
    Row {
        name: "M8-hatdis",
        about: "no host tables but guest tables: the driver falls back to them",
        kernels: NEW,
        subset: &[],
        make: |case| {
            case.iommu("dma-remap=off,intremap=on,xtsup=on,gtsup=on,giosup=on")
                .log(&["AMD-Vi: V2 page table enabled (Paging mode : 4 level)"])
                .check(msix())
        },
    },
    Row {
        name: "M8-no-dma",
        about: "neither host nor guest tables: interrupts are remapped all the same",
        kernels: NEW,
        subset: &[],
        make: |case| {
            case.iommu("dma-remap=off,intremap=on,xtsup=on")
                .without(&["iommu-groups", "sysfs-ivhd"])
                .log(&["AMD-Vi: Interrupt remapping enabled"])
        },
    },
    Row {
        name: "M9-pasid",
        about: "a function with PASID, ATS and PRI behind an IOMMU that has all of it",
        kernels: &[Built],
        subset: &[],
        make: |case| {
            let device = format!("{GUEST},pprsup=on,ephsup=on,device-iotlb=on");
            dma(case.iommu(&device))
                .endpoints(&["pasid=on,ats=on,pri=on"])
                .check(msix())
        },
    },
    Row {
        name: "M10-vapic",
        about: "guest-mode entries: the driver enables the virtual APIC",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.iommu("dma-remap=on,intremap=on,xtsup=on,vapic=on")
                .log(&["AMD-Vi: Virtual APIC enabled"])
                .check(msix())
        },
    },
    Row {
        name: "M11-dirty",
        about: "accessed and dirty bits in host tables",
        kernels: &[Built],
        subset: &[],
        make: |case| {
            dma(case.iommu("dma-remap=on,intremap=on,xtsup=on,dirty-tracking=on"))
                .log(&["AMD-Vi: Extended features *"])
        },
    },
    Row {
        name: "M12-counters",
        about: "performance counters: perf has events of the IOMMU",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.iommu("dma-remap=on,intremap=on,xtsup=on,perf-counters=2x4,mmio-base=0xfeb00000")
                .log(&["*perf/amd_iommu: Detected AMD IOMMU #0 (2 banks, 4 counters/bank)*"])
        },
    },
    Row {
        name: "M20-snp",
        about: "EFR.SNPSup without an SNP host: the driver writes the range of its stores, nothing breaks",
        kernels: ALL,
        subset: &[],
        make: |case| {
            dma(case.iommu("dma-remap=on,intremap=on,xtsup=on,snpsup=on"))
                .machine(not_zero("/iommus/0/exclusion_base"))
                .machine(not_zero("/iommus/0/exclusion_limit"))
        },
    },
];
