//! Interrupt remapping: formats of entries, x2APIC, 2048 interrupts, and interrupts that move.

use amdvi_lab_guest::plan::{Affinity, Bits, Check, Cpus, Debugfs, Limit, Msix, Pin};

use super::{ALL, HAS_2K, NEW, Row, V6_12, V7};
use crate::lab::matrix::Case;
use crate::lab::matrix::expect::{at_most, bits, equal, not_zero};

/// CONTROL.NumIntRemapMode, bits 44:43.
const NUM_INT: u64 = 3 << 43;
const NUM_INT_2K: u64 = 1 << 43;
/// CONTROL.XTEn and CONTROL.GAEn.
const XT: u64 = 1 << 50;
const GA: u64 = 1 << 17;
const CONTROL: &str = "/iommus/0/control";
/// IntTabLen in the endpoint's DTE, as the device saw it.
const INT_TAB_LEN: &str = "/endpoints/0/int_tab_len";

const TWO_K: &str = "dma-remap=on,intremap=on,xtsup=on,numint2k=on";

fn msix(vectors: u32) -> Check {
    Check::Msix(Msix {
        vectors,
        ..Msix::default()
    })
}

fn limit_512() -> Check {
    Check::Limit(Limit::default())
}

/// A machine that does not tell of KVM: the TSC's frequency is told on the command line, and without
/// a clock to measure against, a busy host makes the kernel's own attempts fail.
fn without_kvm_leaf(case: Case) -> Case {
    case.args(&["--hide-kvm"])
        .cmdline("tsc_early_khz=2000000")
        .log_allow(&[
            "tsc: Fast TSC calibration failed",
            // What it is compared with is no better.
            "clocksource:                       'refined-jiffies' wd_nsec: *",
            "clocksource:                       No current clocksource.",
            // One record of two lines.
            "calibrate_delay_direct() failed to get a good estimate for loops_per_jiffy.*",
            "calibrate_delay_direct() dropping <w> bogoMips estimate *",
            "Probably due to long platform interrupts. Consider using \"lpj=\" boot option.",
        ])
}

/// What debugfs shows of a register.
fn control(mask: u64, value: u64) -> Check {
    Check::Debugfs(Debugfs {
        mmio: vec![Bits {
            offset: 0x18,
            mask,
            value,
        }],
        ..Debugfs::default()
    })
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M1-32bit-irte",
        about: "IVHD 10h only, no GA, no INVALIDATE_IOMMU_ALL: 32-bit entries, and floods of commands that end",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.iommu("dma-remap=on,intremap=on,ga=off,xtsup=off,ia=off")
                .args(&["--ivrs", "types=10"])
                .interrupts(|seen| seen.require.push("PCI-MSI* AMD-Vi*".to_owned()))
                .log(&["AMD-Vi: Interrupt remapping enabled"])
                .no_log(&["AMD-Vi: Virtual APIC enabled", "AMD-Vi: X2APIC enabled"])
                .check(msix(32))
                .machine(bits(CONTROL, GA | XT, 0))
        },
    },
    Row {
        name: "M2-intr-legacy",
        about: "GA without XT and amd_iommu_intr=legacy: 128-bit entries, no virtual APIC",
        kernels: ALL,
        subset: &[V6_12, V7],
        make: |case| {
            case.iommu("dma-remap=on,intremap=on,ga=on,xtsup=off,vapic=on")
                .cmdline("amd_iommu_intr=legacy")
                .interrupts(|seen| {
                    seen.require
                        .extend(["IR-IO-APIC *", "IR-PCI-MSIX-*"].map(str::to_owned));
                })
                .log(&["AMD-Vi: Interrupt remapping enabled"])
                .no_log(&["AMD-Vi: Virtual APIC enabled", "AMD-Vi: X2APIC enabled"])
                .check(msix(64))
                .check(Check::Msi(Pin::default()))
                .machine(bits(CONTROL, GA | XT, GA))
        },
    },
    Row {
        name: "M3-x2apic",
        about: "x2APIC by the IOMMU alone (no KVM leaf), an APIC ID above 255, the IOMMU's own interrupts by INTCAPXT",
        kernels: ALL,
        subset: &[],
        make: |case| {
            without_kvm_leaf(case.cpus(3))
                .args(&["--high-apic-id"])
                // With such an ID the CPUs start in x2APIC mode, as firmware leaves them.
                .log(&[
                    "AMD-Vi: X2APIC enabled",
                    "x2apic: enabled by BIOS, switching to x2apic ops",
                ])
                .interrupts(|seen| seen.require.push("IOMMU-MSI* AMD-Vi0-Evt".to_owned()))
                .without(&["cpus"])
                .check(Check::Cpus(Cpus {
                    online: Some(3),
                    apic_id_above: Some(255),
                }))
                .check(msix(64))
                .machine(bits(CONTROL, GA | XT, GA | XT))
        },
    },
    Row {
        name: "M3-no-xt",
        about: "without XTSup the kernel stays out of x2APIC and says why",
        kernels: ALL,
        subset: &[],
        make: |case| {
            without_kvm_leaf(case)
                .iommu("dma-remap=on,intremap=on,xtsup=off")
                .log(&["*IRQ remapping doesn't support X2APIC mode*"])
                .no_log(&["AMD-Vi: X2APIC enabled"])
                .check(msix(64))
                .machine(bits(CONTROL, XT, 0))
        },
    },
    Row {
        name: "M4-2k",
        about: "2048 MSI-X vectors of one function on 12 processors, each received exactly once",
        kernels: HAS_2K,
        subset: &[V7],
        make: |case| {
            let built = case.version.is_built();
            case.cpus(12)
                .iommu(TWO_K)
                .check_as(
                    "msix-2048",
                    240,
                    Check::Msix(Msix {
                        int_tab_len: Some(11),
                        ..Msix::default()
                    }),
                )
                .check_if(built, control(NUM_INT, NUM_INT_2K))
                .machine(bits(CONTROL, NUM_INT, NUM_INT_2K))
                .machine(equal(INT_TAB_LEN, 11))
                .machine(equal("/offered/numint2k", true))
        },
    },
    Row {
        name: "M4-256",
        about: "2K on 2 processors, which have room for 256 vectors: enabled on both sides, each received exactly once",
        kernels: HAS_2K,
        subset: &[],
        make: |case| {
            let built = case.version.is_built();
            case.iommu(TWO_K)
                .check_as(
                    "msix-256",
                    120,
                    Check::Msix(Msix {
                        vectors: 256,
                        int_tab_len: Some(11),
                        ..Msix::default()
                    }),
                )
                .check_if(built, control(NUM_INT, NUM_INT_2K))
                .machine(bits(CONTROL, NUM_INT, NUM_INT_2K))
                .machine(equal(INT_TAB_LEN, 11))
                .machine(equal("/offered/numint2k", true))
        },
    },
    Row {
        name: "M4-512",
        about: "the same machine without numint2k: 512 vectors, and Linux's own message for one more",
        kernels: ALL,
        subset: &[],
        make: |case| {
            let built = case.version.is_built();
            case.cpus(12)
                .check_as("msix-512", 120, msix(512))
                .check_as("limit", 120, limit_512())
                .check_if(built, control(NUM_INT, 0))
                .machine(bits(CONTROL, NUM_INT, 0))
                .machine(equal(INT_TAB_LEN, 9))
                .machine(equal("/offered/numint2k", false))
        },
    },
    Row {
        name: "M4-host-lacks-it",
        about: "2K is asked for, the host lacks it: the decision is shown, and the guest gets 512",
        kernels: &[V7],
        subset: &[],
        make: |case| {
            case.cpus(12)
                .iommu(TWO_K)
                .args(&["--host-caps", "mock:numint2k=off"])
                .check_as("msix-512", 120, msix(512))
                .check_as("limit", 120, limit_512())
                .machine(bits(CONTROL, NUM_INT, 0))
                .machine(equal(INT_TAB_LEN, 9))
                .machine(equal("/offered/numint2k", false))
                .machine(equal("/decisions/0/feature", "numint2k"))
                .machine(equal("/decisions/0/requested", true))
                .machine(equal("/decisions/0/granted", false))
        },
    },
    Row {
        name: "M4-old-driver",
        about: "a driver that does not know 2K keeps to 512 on a device that offers it",
        kernels: &[V6_12],
        subset: &[],
        make: |case| {
            case.cpus(4)
                .iommu(TWO_K)
                .check_as("msix-512", 120, msix(512))
                .check_as("limit", 120, limit_512())
                .machine(bits(CONTROL, NUM_INT, 0))
                .machine(equal(INT_TAB_LEN, 9))
                .machine(equal("/offered/numint2k", true))
        },
    },
    Row {
        name: "M14-irtcachedis",
        about: "amd_iommu=irtcachedis: changes of entries without an invalidation are seen",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.cmdline("amd_iommu=irtcachedis")
                .log(&["AMD-Vi: *IRT cache is disabled"])
                .check(msix(128))
                .check(Check::Affinity(Affinity::default()))
                .machine(bits(CONTROL, 1 << 59, 1 << 59))
        },
    },
    Row {
        name: "M18-affinity",
        about: "interrupts that move between processors while they fire, processors that leave and come back: none lost",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.cpus(4)
                .iommu(TWO_K)
                .check_as("affinity", 120, Check::Affinity(Affinity::default()))
                .check_as(
                    "affinity-hotplug",
                    120,
                    Check::Affinity(Affinity {
                        hotplug: true,
                        ..Affinity::default()
                    }),
                )
        },
    },
    Row {
        name: "M18-reset",
        about: "the guest resets the machine",
        kernels: ALL,
        subset: &[V7],
        make: |case| case.bare().reset(),
    },
    Row {
        name: "M18-irqfd",
        about: "affinity of interrupts that KVM delivers by routes: none lost, no more tables than COMPLETION_WAITs",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.iommu(TWO_K)
                .args(&["--interrupts", "irqfd"])
                .check_as("affinity", 120, Check::Affinity(Affinity::default()))
                .machine(not_zero("/routes/by_irqfd"))
                .machine(not_zero("/routes/rederived"))
                .machine(at_most("/routes/commits", "/routes/notifications"))
        },
    },
    Row {
        name: "M18-kexec",
        about: "another kernel without a reset of the machine: everything works again",
        kernels: NEW,
        subset: &[],
        make: |case| case.check(msix(64)).kexec(|next| next),
    },
];
