//! Guest tables, PASIDs, the virtual APIC, dirty bits, counters and SNP.

use amdvi_lab_guest::plan::{
    Check, Counters, Debugfs, DeviceEntry, Dirty, Msix, Sva, UnmapFault, VfioDma,
};

use super::{ALL, Built, NEW, Row, V6_12};
use crate::lab::matrix::Case;
use crate::lab::matrix::expect::{bits, not_zero, some_bits};

/// Guest translation and what the driver wants beside it.
const GUEST: &str = "dma-remap=on,intremap=on,xtsup=on,gtsup=on,giosup=on";
/// And what shared virtual addressing takes.
const SHARED: &str =
    "dma-remap=on,intremap=on,xtsup=on,gtsup=on,giosup=on,pprsup=on,ephsup=on,device-iotlb=on";
/// Counters have their own pages: the registers need a place that is aligned to 512 KiB.
const COUNTERS: &str = "perf-counters=2x4,mmio-base=0xfeb00000";
/// A function that can share a process's addresses.
const SHARING: &str = "pasid=on,ats=on,pri=on";
/// CONTROL: PPREn, GTEn.
const GT_EN: u64 = 1 << 16;
const PPR_EN: u64 = 1 << 15;
const CONTROL: &str = "/iommus/0/control";
/// What the IOMMU was seen to be told of the first endpoint: DTE\[63:0\].
const DTES: &str = "/endpoints/0/dtes";
/// V, TV, Mode, HAD, GIoV, GV.
const VALID: u64 = 3;
const MODE: u64 = 7 << 9;
const HAD: u64 = 3 << 7;
const GIOV: u64 = 1 << 54;
const GV: u64 = 1 << 55;

/// DMA of a program's own, by tables of the kernel's usual kind.
fn dma(case: Case) -> Case {
    case.check(Check::VfioDma(VfioDma::default()))
        .check(Check::UnmapFault(UnmapFault::default()))
}

/// The same where those are guest tables, at these IOVAs; both sides see an entry that says so.
/// Linux 6.12 has them for its drivers only.
fn guest_dma(case: Case, iovas: &[u64]) -> Case {
    let (built, of_programs) = (case.version.is_built(), case.version != V6_12);
    let endpoint = DeviceEntry {
        function: "endpoint".to_owned(),
        mode: Some(0),
        guest: Some(true),
        guest_io: Some(true),
        ..DeviceEntry::default()
    };
    case.check(Check::VfioDma(VfioDma {
        iovas: iovas.to_vec(),
        ..VfioDma::default()
    }))
    .check(Check::UnmapFault(UnmapFault {
        guest: of_programs,
        ..UnmapFault::default()
    }))
    .check_if(
        built,
        Check::Debugfs(Debugfs {
            devices: vec![endpoint],
            ..Debugfs::default()
        }),
    )
    .machine(bits(CONTROL, GT_EN, GT_EN))
    .machine(some_bits(DTES, VALID | GV | GIOV | MODE, VALID | GV | GIOV))
}

/// IOVAs of guest tables with 4 levels: Linux keeps the upper half free.
const FOUR_LEVELS: &[u64] = &[1 << 20, 1 << 32, 1 << 38, 1 << 46];
/// Those that take 5.
const FIVE_LEVELS: &[u64] = &[1 << 20, 1 << 32, 1 << 47, 1 << 48, 1 << 55];

/// What the driver says of counters, and what perf does.
const COUNTERS_ARE_THERE: &[&str] = &[
    "pci *: AMD-Vi: IOMMU performance counters supported",
    "*perf/amd_iommu: Detected AMD IOMMU #0 (2 banks, 4 counters/bank)*",
];
const V2_4: &str = "AMD-Vi: V2 page table enabled (Paging mode : 4 level)";
const V2_5: &str = "AMD-Vi: V2 page table enabled (Paging mode : 5 level)";
/// What the driver says of an IOMMU without host tables: once for the firmware's word, once for the
/// register's.
const HAT_DIS: &str = "AMD-Vi: Host Address Translation is not supported.";
const HATS_3: &str = "AMD-Vi: [Firmware Bug]: Disable host address translation due to invalid \
                      translation level (0x3).";

fn msix() -> Check {
    Check::Msix(Msix {
        vectors: 64,
        ..Msix::default()
    })
}

/// A process shares its addresses with the endpoint; the endpoint counts what goes to and fro.
fn shared(case: Case, more: &str) -> Case {
    case.iommu(&format!("{SHARED},{COUNTERS}{more}"))
        .endpoints(&[SHARING])
        .groups(|groups| {
            // The driver leaves a function alone that has PASIDs.
            groups
                .functions
                .insert("0000:00:05.0".to_owned(), "identity".to_owned());
        })
        .log(COUNTERS_ARE_THERE)
        .check_as(
            "sva",
            120,
            Check::Sva(Sva {
                counted: true,
                ..Sva::default()
            }),
        )
        .machine(bits(CONTROL, GT_EN | PPR_EN, GT_EN | PPR_EN))
        .machine(some_bits(DTES, VALID | GV | GIOV, VALID | GV))
        .machine(not_zero("/endpoints/0/tlb/translation_requests"))
        .machine(not_zero("/endpoints/0/tlb/page_requests"))
        .machine(not_zero("/endpoints/0/tlb/page_responses"))
        .machine(not_zero("/endpoints/0/tlb/pasid_invalidations"))
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M6-pgtbl-v2",
        about: "amd_iommu=pgtbl_v2: DMA of drivers and of a program through guest tables of 4 levels",
        kernels: ALL,
        subset: &[],
        make: |case| {
            guest_dma(case.iommu(GUEST).cmdline("amd_iommu=pgtbl_v2"), FOUR_LEVELS).log(&[V2_4])
        },
    },
    Row {
        name: "M6-5level",
        about: "guest tables of 5 levels, as those of the CPU",
        kernels: ALL,
        subset: &[],
        make: |case| {
            let device = format!("{GUEST},gats=5");
            let case = case.iommu(&device).cmdline("amd_iommu=pgtbl_v2");
            guest_dma(case.cpu(&["la57"]), FIVE_LEVELS).log(&[V2_5])
        },
    },
    Row {
        name: "M6-no5lvl",
        about: "no5lvl: the CPU's tables have 4 levels, and the driver's too, whatever the IOMMU offers",
        kernels: NEW,
        subset: &[],
        make: |case| {
            let device = format!("{GUEST},gats=5");
            let case = case.iommu(&device).cmdline("amd_iommu=pgtbl_v2 no5lvl");
            // Only what comes before the kernel's own parser knows the word.
            guest_dma(case.cpu(&["la57"]), FOUR_LEVELS)
                .log(&[V2_4, "Unknown kernel command line parameters \"no5lvl\", *"])
        },
    },
    Row {
        name: "M6-no-la57",
        about: "guest tables of 5 levels that a CPU without LA57 can't share: the driver takes 4",
        kernels: NEW,
        subset: &[],
        make: |case| {
            let device = format!("{GUEST},gats=5");
            guest_dma(
                case.iommu(&device).cmdline("amd_iommu=pgtbl_v2"),
                FOUR_LEVELS,
            )
            .log(&[V2_4])
        },
    },
    Row {
        name: "M8-hatdis",
        about: "firmware says HATDis: the driver falls back to guest tables",
        kernels: NEW,
        subset: &[],
        make: |case| {
            let case = case.iommu(GUEST).args(&["--ivrs", "hat-dis=on"]);
            guest_dma(case, FOUR_LEVELS)
                .log(&[HAT_DIS, V2_4])
                .check(msix())
        },
    },
    Row {
        name: "M8-hats3",
        about: "EFR.HATS=3, no host tables, though firmware does not say HATDis: guest tables",
        kernels: NEW,
        subset: &[],
        make: |case| {
            let device = GUEST.replace("dma-remap=on", "dma-remap=off");
            let case = case.iommu(&device).args(&["--ivrs", "hat-dis=off"]);
            guest_dma(case, FOUR_LEVELS)
                .log(&[HATS_3, V2_4])
                .check(msix())
        },
    },
    Row {
        name: "M8-no-dma",
        about: "neither host nor guest tables: the IOAPIC's interrupts are remapped all the same. \
                MSIs of functions can't be: Linux 7.3 gives such a function a table of no entries",
        kernels: NEW,
        subset: &[],
        make: |case| {
            case.bare()
                .iommu("dma-remap=off,intremap=on,xtsup=on")
                .without(&["iommu-groups", "sysfs-ivhd"])
                .interrupts(|interrupts| {
                    interrupts.counted.push("IR-IO-APIC *ttyS0".to_owned());
                })
                .log(&[
                    HAT_DIS,
                    HATS_3,
                    "AMD-Vi: *DMA translation not supported by iommu.",
                    "AMD-Vi: Interrupt remapping enabled",
                ])
        },
    },
    Row {
        name: "M9-pasid",
        about: "a process shares its addresses with a function that has PASID, ATS and PRI: what is \
                not there comes by page requests, what is unmapped is invalidated by PASID",
        kernels: &[Built],
        subset: &[],
        make: |case| shared(case, ""),
    },
    Row {
        name: "M9-5level",
        about: "the same with a CPU whose tables have 5 levels",
        kernels: &[Built],
        subset: &[],
        make: |case| shared(case.cpu(&["la57"]), ",gats=5"),
    },
    Row {
        name: "M9-isolation",
        about: "amd_iommu=force_isolation: the same function is translated like any other and gets no PASID",
        kernels: &[Built],
        subset: &[],
        make: |case| {
            dma(case.iommu(SHARED).cmdline("amd_iommu=force_isolation"))
                .endpoints(&[SHARING])
                .check(msix())
                .check(Check::Sva(Sva {
                    refused: true,
                    ..Sva::default()
                }))
        },
    },
    Row {
        name: "M10-vapic",
        about: "guest-mode entries: the driver enables the virtual APIC and its log. Entries get there \
                only by a KVM with AVIC for a guest of the guest, which an emulated CPU does not have: \
                what comes of them is proved by the scenarios about guest mode",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.iommu("dma-remap=on,intremap=on,xtsup=on,vapic=on")
                .log(&["AMD-Vi: Virtual APIC enabled"])
                .check(msix())
                // GALogEn, GALogIntEn.
                .machine(bits(CONTROL, 3 << 28, 3 << 28))
                .machine(not_zero("/iommus/0/ga_log_base"))
        },
    },
    Row {
        name: "M11-dirty",
        about: "dirty tracking by iommufd: exactly the pages that the endpoint has written, and each \
                once",
        kernels: &[Built],
        subset: &[],
        make: |case| {
            let huge = Dirty {
                granule: 2 << 20,
                count: 6,
                written: vec![0, 3, 5],
                written_later: vec![1],
                ..Dirty::default()
            };
            dma(case.iommu("dma-remap=on,intremap=on,xtsup=on,dirty-tracking=on"))
                .check_as("dirty", 120, Check::Dirty(Dirty::default()))
                .check_as("dirty-2m", 120, Check::Dirty(huge))
                .machine(some_bits(DTES, VALID | HAD, VALID | HAD))
        },
    },
    Row {
        name: "M12-counters",
        about: "performance counters: perf counts what the endpoint does, and no more",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.iommu(&format!("dma-remap=on,intremap=on,xtsup=on,{COUNTERS}"))
                .log(COUNTERS_ARE_THERE)
                .check(Check::Counters(Counters::default()))
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
