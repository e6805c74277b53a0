//! Who is compared: a virtual machine monitor with an IOMMU in one of its modes. All have the same
//! kernel, CPUs, memory and virtio devices.

use amdvi_lab_init::Tap;
use std::net::Ipv4Addr;

/// RAM of a guest.
pub(super) const MEMORY: &str = "512M";
/// The interface of the emulated machine that guests are connected to, and its side of it.
pub(super) const TAP: &str = "tap0";
pub(super) const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const ECHO: u16 = 7;

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Monitor {
    /// The reference VMM.
    Ours,
    Qemu,
}

/// One of those that are compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contender {
    /// Its name on command lines and in tables.
    pub(super) name: &'static str,
    /// What it is, for people.
    pub(super) about: &'static str,
    pub(super) monitor: Monitor,
    /// Arguments of the monitor that make its IOMMU.
    pub(super) iommu: &'static [&'static str],
    /// What the kernel's command line says of it.
    pub(super) cmdline: &'static str,
    /// Whether the guest has an IOMMU that it uses.
    pub(super) translates: bool,
    /// The contender with the same monitor and no IOMMU in use.
    pub(super) baseline: &'static str,
    /// Part of a run that names nobody.
    pub(super) usual: bool,
}

const OURS: &[&str] = &[
    "--device",
    "amd-iommu,dma-remap=on,intremap=on,xtsup=on,numint2k=on",
];
const QEMU_AMD: &[&str] = &["-device", "amd-iommu,dma-remap=on,intremap=on,xtsup=on"];
const QEMU_INTEL: &[&str] = &["-device", "intel-iommu,intremap=on"];
const LAZY: &str = "iommu.passthrough=0 iommu.strict=0";
const STRICT: &str = "iommu.passthrough=0 iommu.strict=1";

/// All that there are, in the order of tables.
pub(super) static ALL: [Contender; 9] = [
    Contender {
        name: "ours-off",
        about: "the reference VMM, its IOMMU left alone by the guest (amd_iommu=off)",
        monitor: Monitor::Ours,
        iommu: OURS,
        cmdline: "amd_iommu=off",
        translates: false,
        baseline: "ours-off",
        usual: true,
    },
    Contender {
        name: "ours-lazy",
        about: "the reference VMM, unmapped pages are invalidated in batches",
        monitor: Monitor::Ours,
        iommu: OURS,
        cmdline: LAZY,
        translates: true,
        baseline: "ours-off",
        usual: true,
    },
    Contender {
        name: "ours-strict",
        about: "the reference VMM, every unmap is invalidated at once",
        monitor: Monitor::Ours,
        iommu: OURS,
        cmdline: STRICT,
        translates: true,
        baseline: "ours-off",
        usual: true,
    },
    Contender {
        name: "ours-pt",
        about: "the reference VMM, devices of the kernel's are passed through (iommu.passthrough=1)",
        monitor: Monitor::Ours,
        iommu: OURS,
        cmdline: "iommu.passthrough=1",
        translates: true,
        baseline: "ours-off",
        usual: true,
    },
    Contender {
        name: "qemu-off",
        about: "QEMU without an IOMMU",
        monitor: Monitor::Qemu,
        iommu: &[],
        cmdline: "",
        translates: false,
        baseline: "qemu-off",
        usual: true,
    },
    Contender {
        name: "qemu-amd",
        about: "QEMU with amd-iommu, unmapped pages are invalidated in batches",
        monitor: Monitor::Qemu,
        iommu: QEMU_AMD,
        cmdline: LAZY,
        translates: true,
        baseline: "qemu-off",
        usual: true,
    },
    Contender {
        name: "qemu-intel",
        about: "QEMU with intel-iommu, unmapped pages are invalidated in batches",
        monitor: Monitor::Qemu,
        iommu: QEMU_INTEL,
        cmdline: "intel_iommu=on iommu.passthrough=0 iommu.strict=0",
        translates: true,
        baseline: "qemu-off",
        usual: true,
    },
    Contender {
        name: "qemu-amd-strict",
        about: "QEMU with amd-iommu, every unmap is invalidated at once",
        monitor: Monitor::Qemu,
        iommu: QEMU_AMD,
        cmdline: STRICT,
        translates: true,
        baseline: "qemu-off",
        usual: false,
    },
    Contender {
        name: "qemu-intel-strict",
        about: "QEMU with intel-iommu, every unmap is invalidated at once",
        monitor: Monitor::Qemu,
        iommu: QEMU_INTEL,
        cmdline: "intel_iommu=on iommu.passthrough=0 iommu.strict=1",
        translates: true,
        baseline: "qemu-off",
        usual: false,
    },
];

/// The contender of a name.
pub(super) fn named(name: &str) -> Result<&'static Contender, String> {
    let found = ALL.iter().find(|contender| contender.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|contender| contender.name).collect();
        format!("known: {}", names.join(", "))
    })
}

/// The interface that guests are connected to.
pub(super) fn tap() -> Tap {
    Tap {
        name: TAP.to_owned(),
        address: PEER,
        echo: ECHO,
    }
}

impl Contender {
    /// The monitor's arguments. Files are called `{kernel}`, `{initrd}` and `{disk}`.
    pub(super) fn arguments(&self, cpus: u32, cmdline: &str) -> Vec<String> {
        let cmdline = format!("{cmdline} {}", self.cmdline);
        let mut args: Vec<String> = self.iommu.iter().map(|arg| (*arg).to_owned()).collect();
        let mut add = |more: &[&str]| args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let count = &cpus.to_string();
        match self.monitor {
            Monitor::Ours => {
                add(&["--kernel", "{kernel}", "--initrd", "{initrd}"]);
                add(&["--cmdline", cmdline.trim()]);
                add(&["--cpus", count, "--memory", MEMORY]);
                add(&["--disk", &format!("path={{disk}},queues={count}")]);
                add(&["--net", &format!("tap={TAP}"), "--rng", "--json"]);
                add(&["--endpoint", "vectors=1"]);
            }
            Monitor::Qemu => {
                // No iothread for the disk: QEMU 11.1's amd-iommu dies of one, as its IOTLB is
                // used by that thread and by CPUs that invalidate, without a lock.
                add(&["-nodefaults", "-display", "none", "-no-reboot"]);
                // Interrupt remapping needs the IOAPIC outside of the kernel; without an IOMMU the
                // same, so that nothing else differs.
                add(&["-M", "q35,kernel-irqchip=split", "-accel", "kvm"]);
                add(&["-cpu", "host", "-smp", count, "-m", MEMORY]);
                add(&["-kernel", "{kernel}", "-initrd", "{initrd}"]);
                add(&["-append", cmdline.trim(), "-serial", "stdio"]);
                add(&["-blockdev", "file,node-name=disk,filename={disk}"]);
                add(&[
                    "-device",
                    &format!("virtio-blk-pci,drive=disk,num-queues={count},{SOUTHBRIDGE},{VIRTIO}"),
                ]);
                add(&[
                    "-netdev",
                    &format!("tap,id=net0,ifname={TAP},script=no,downscript=no,vnet_hdr=off"),
                ]);
                add(&[
                    "-device",
                    &format!("virtio-net-pci,netdev=net0,romfile=,{NO_OFFLOADS},{VIRTIO}"),
                ]);
                add(&["-device", &format!("virtio-rng-pci,{VIRTIO}")]);
                add(&["-device", "edu"]);
            }
        }
        args
    }
}

/// Of every virtio device: modern, its DMA translated.
const VIRTIO: &str = "disable-legacy=on,iommu_platform=on,ats=off";
/// Linux trusts QEMU's amd-iommu with interrupts only when the function at the IOAPIC's DeviceID,
/// 00:14.0, is an SMBus controller or an ISA bridge by its class. QEMU has none to put there, but a
/// disk may have any class, and its driver does not look at it.
const SOUTHBRIDGE: &str = "addr=14.0,class=0x0c05";
/// What the reference VMM's network card does not offer: the frames are to be the same.
const NO_OFFLOADS: &str = "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,\
                           guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,\
                           host_ufo=off,mrg_rxbuf=off";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_baseline_is_a_contender_with_the_same_monitor_and_no_iommu() {
        for contender in &ALL {
            let baseline = named(contender.baseline).unwrap();
            assert_eq!(baseline.monitor, contender.monitor, "{}", contender.name);
            assert!(!baseline.translates, "{}", contender.name);
            assert!(std::ptr::eq(named(contender.name).unwrap(), contender));
        }
        assert!(named("kvmtool").is_err());
    }

    #[test]
    fn all_get_the_same_files_cpus_and_memory() {
        for contender in &ALL {
            let args = contender.arguments(3, "quiet").join(" ");
            for part in [
                "{kernel}", "{initrd}", "{disk}", "quiet", " 3 ", MEMORY, TAP,
            ] {
                assert!(args.contains(part), "{}: {part}", contender.name);
            }
            assert!(args.contains(contender.cmdline));
        }
    }
}
