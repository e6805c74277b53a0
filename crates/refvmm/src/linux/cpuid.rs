//! The CPUs' identity: what KVM can show, made a machine of.
//!
//! KVM's list describes one CPU of the host. A guest needs one for each of its own: the APIC ID,
//! and a topology that agrees with itself in every leaf that tells of it. Here all CPUs are cores
//! of one package, one thread each.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};

use crate::kvm::KvmError;

/// "AuthenticAMD" in the order EBX, EDX, ECX.
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
/// Family 17h, model 31h, stepping 0: a Zen 2 server, on hosts whose CPU is not AMD's.
const ZEN_2: u32 = 0x0083_0f10;

/// Leaf 1, ECX.
const CX16: u32 = 1 << 13;
const FMA: u32 = 1 << 12;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const AVX: u32 = 1 << 28;
const F16C: u32 = 1 << 29;
/// Leaf 1, EDX: more than one CPU in the package.
const HTT: u32 = 1 << 28;
/// Leaf 8000_0001h, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const FMA4: u32 = 1 << 16;
const XOP: u32 = 1 << 11;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 7, EBX and ECX: what needs XSAVE's state of AVX, or the wider ones.
const LEAF_7_EBX_AVX: u32 = 1 << 5 | 0b1111 << 26 | 1 << 16 | 1 << 17 | 1 << 21 | 0b11 << 30;
const LEAF_7_ECX_AVX: u32 = 1 << 1 | 1 << 3 | 0b111 << 9 | 1 << 12 | 1 << 14;

/// Leaves of hypervisors: 4000_0000h to 4000_00FFh, several of them 100h apart.
const HYPERVISOR: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;
/// Levels of topology in leaves Bh and 1Fh (ECX\[15:8\]).
const THREADS: u32 = 1;
const CORES: u32 = 2;

/// What the CPUs are to be.
#[derive(Clone, Debug)]
pub(super) struct Cpus {
    supported: Vec<kvm_cpuid_entry2>,
    count: u32,
    id_bits: u32,
}

/// What an operator can choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Hides the leaves by which a guest knows that it runs on KVM.
    pub hide_kvm: bool,
    /// KVM emulates the TSC deadline of the local APIC's timer.
    pub tsc_deadline: bool,
}

impl Cpus {
    /// For CPUs with these x2APIC IDs, of what KVM supports.
    ///
    /// # Errors
    /// The host's CPU lacks something that Linux' driver of the IOMMU needs.
    pub(super) fn new(
        supported: &CpuId,
        apic_ids: &[u32],
        choice: Choice,
    ) -> Result<Self, KvmError> {
        let highest = apic_ids.iter().copied().max().unwrap_or(0);
        let mut cpus = Self {
            supported: supported.as_slice().to_vec(),
            count: apic_ids.len() as u32,
            id_bits: u32::BITS - highest.leading_zeros(),
        };
        if cpus.leaf(1).is_none_or(|leaf| leaf.ecx & CX16 == 0) {
            return Err(KvmError::Capability {
                capability: "CPUID 1 ECX[13] (CMPXCHG16B)",
                purpose: "Linux' AMD IOMMU driver, which changes DTEs and IRTEs with it",
            });
        }
        cpus.make_amd();
        if !cpus.xsave_is_consistent() {
            cpus.remove_xsave();
        }
        if choice.hide_kvm {
            cpus.supported
                .retain(|leaf| !HYPERVISOR.contains(&leaf.function));
        }
        if choice.tsc_deadline {
            cpus.change(1, |leaf| leaf.ecx |= TSC_DEADLINE);
        }
        cpus.common_topology();
        Ok(cpus)
    }

    /// The leaves of the CPU with this x2APIC ID.
    pub(super) fn of(&self, apic_id: u32) -> Result<CpuId, KvmError> {
        let mut leaves = self.supported.clone();
        for leaf in &mut leaves {
            match leaf.function {
                // Eight bits is what this leaf has.
                1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | (apic_id & 0xff) << 24,
                0xb | 0x1f => leaf.edx = apic_id,
                0x8000_001e => {
                    leaf.eax = apic_id;
                    // ID of the core; one thread in it.
                    leaf.ebx = apic_id & 0xff;
                }
                _ => {}
            }
        }
        if leaves.len() > KVM_MAX_CPUID_ENTRIES {
            // What is unknown to everybody is last.
            leaves.truncate(KVM_MAX_CPUID_ENTRIES);
        }
        CpuId::from_entries(&leaves)
            .map_err(|error| KvmError::Config(format!("KVM_SET_CPUID2: {error:?}")))
    }

    fn leaf(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.supported
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == 0)
    }

    fn change(&mut self, function: u32, change: impl Fn(&mut kvm_cpuid_entry2)) {
        for leaf in &mut self.supported {
            if leaf.function == function {
                change(leaf);
            }
        }
    }

    fn replace(&mut self, function: u32, with: &[kvm_cpuid_entry2]) {
        self.supported.retain(|leaf| leaf.function != function);
        self.supported.extend(with);
        // Leaf 0 and 8000_0000h say how far the leaves go.
        let range = function & 0x8000_0000;
        self.change(range, |leaf| leaf.eax = leaf.eax.max(function));
    }

    /// Drivers look for AMD's IOMMU on AMD's CPUs.
    fn make_amd(&mut self) {
        let vendor = |leaf: &kvm_cpuid_entry2| [leaf.ebx, leaf.edx, leaf.ecx];
        if self.leaf(0).is_some_and(|leaf| vendor(leaf) == AMD) {
            return;
        }
        for function in [0, 0x8000_0000] {
            self.change(function, |leaf| [leaf.ebx, leaf.edx, leaf.ecx] = AMD);
        }
        // Family and model of another vendor would be taken for a CPU that AMD never made.
        self.change(1, |leaf| leaf.eax = ZEN_2);
    }

    /// Whether leaf Dh adds up: the largest area, and the one of what is enabled, must be what the
    /// components say. Linux goes without XSAVE where it does not (or worse); under nested
    /// virtualization it may not.
    fn xsave_is_consistent(&self) -> bool {
        let on = |ecx| ecx & XSAVE != 0;
        if !self.leaf(1).is_some_and(|leaf| on(leaf.ecx)) {
            return true;
        }
        let Some(sizes) = self.leaf(0xd) else {
            return false;
        };
        // x87 and SSE are in the legacy area; the header follows it.
        let mut end = 512 + 64;
        for component in 2..32 {
            if sizes.eax >> component & 1 == 0 {
                continue;
            }
            let sub = |leaf: &&kvm_cpuid_entry2| leaf.function == 0xd && leaf.index == component;
            match self.supported.iter().find(sub) {
                Some(sub) if sub.eax > 0 => end = end.max(sub.eax.saturating_add(sub.ebx)),
                _ => return false,
            }
        }
        sizes.eax & 0b11 == 0b11 && sizes.ecx == end
    }

    fn remove_xsave(&mut self) {
        self.change(1, |leaf| {
            leaf.ecx &= !(XSAVE | OSXSAVE | AVX | F16C | FMA);
        });
        self.change(7, |leaf| {
            if leaf.index == 0 {
                leaf.ebx &= !LEAF_7_EBX_AVX;
                leaf.ecx &= !LEAF_7_ECX_AVX;
            }
        });
        self.change(0x8000_0001, |leaf| leaf.ecx &= !(XOP | FMA4));
        self.supported.retain(|leaf| leaf.function != 0xd);
    }

    /// All of the topology but the APIC ID itself.
    fn common_topology(&mut self) {
        let (count, id_bits) = (self.count, self.id_bits);
        let more_than_one = |bit| if count > 1 { bit } else { 0 };
        self.change(1, |leaf| {
            leaf.ecx = (leaf.ecx | X2APIC) & !OSXSAVE;
            leaf.edx = leaf.edx & !HTT | more_than_one(HTT);
            leaf.ebx = leaf.ebx & 0xff00_ffff | count.min(0xff) << 16;
        });
        // Caches: of the package they are shared by all, else by nobody.
        self.change(4, |leaf| {
            if leaf.eax & 0x1f != 0 {
                leaf.eax = leaf.eax & 0x0000_3fff | (count - 1).min(0x3f) << 26;
            }
        });
        self.change(0x8000_001d, |leaf| leaf.eax &= 0x0000_3fff);
        let level = |index, kind, shift, cpus| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: cpus,
            ecx: kind << 8 | index,
            ..Default::default()
        };
        let levels = [
            level(0, THREADS, 0, 1),
            level(1, CORES, id_bits, count),
            level(2, 0, 0, 0),
        ];
        self.replace(0xb, &levels);
        // Other forms of the same.
        self.supported
            .retain(|leaf| !matches!(leaf.function, 0x1f | 0x8000_0026));
        self.change(0x8000_0001, |leaf| {
            leaf.ecx = leaf.ecx & !CMP_LEGACY | more_than_one(CMP_LEGACY) | TOPOLOGY_EXTENSIONS;
        });
        self.change(0x8000_0008, |leaf| {
            leaf.ecx = leaf.ecx & !0xf0ff | (count - 1).min(0xff) | id_bits.min(0xf) << 12;
        });
        let topology = kvm_cpuid_entry2 {
            function: 0x8000_001e,
            ..Default::default()
        };
        self.replace(0x8000_001e, &[topology]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn sub(index: u32, eax: u32, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            ..leaf(0xd, [eax, ebx, 0, 0])
        }
    }

    /// An Intel host with AVX.
    fn host() -> Vec<kvm_cpuid_entry2> {
        let intel = [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69];
        vec![
            leaf(0, intel),
            leaf(
                1,
                [0x000c_0660, 0x0710_0800, CX16 | XSAVE | AVX | OSXSAVE, 0],
            ),
            leaf(0xd, [7, 832, 832, 0]),
            sub(2, 256, 576),
            leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
            leaf(0x8000_0001, [0, 0, 0, 0]),
            leaf(0x8000_0008, [0x3028, 0, 0, 0]),
        ]
    }

    fn cpus(host: &[kvm_cpuid_entry2], ids: &[u32], choice: Choice) -> Cpus {
        Cpus::new(&CpuId::from_entries(host).unwrap(), ids, choice).unwrap()
    }

    fn find(leaves: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        let is = |leaf: &&kvm_cpuid_entry2| leaf.function == function && leaf.index == index;
        leaves.as_slice().iter().find(is).copied()
    }

    #[test]
    fn every_leaf_with_topology_tells_the_same_apic_id() {
        let cpus = cpus(&host(), &[0, 1, 300], Choice::default());
        for id in [0, 1, 300] {
            let leaves = cpus.of(id).unwrap();
            let get = |function, index| find(&leaves, function, index).unwrap();
            assert_eq!(get(1, 0).ebx >> 24, id & 0xff);
            assert_eq!(get(1, 0).ebx >> 16 & 0xff, 3);
            assert_ne!(get(1, 0).edx & HTT, 0);
            assert_eq!((get(0xb, 0).edx, get(0xb, 1).edx), (id, id));
            assert_eq!(get(0x8000_001e, 0).eax, id);
            // 300 needs nine bits.
            assert_eq!((get(0xb, 1).eax, get(0xb, 1).ebx), (9, 3));
            assert_eq!(get(0x8000_0008, 0).ecx, 9 << 12 | 2);
            assert_ne!(get(0x8000_0001, 0).ecx & TOPOLOGY_EXTENSIONS, 0);
            assert_eq!(get(0, 0).eax, 0xd);
            assert_eq!(get(0x8000_0000, 0).eax, 0x8000_001e);
        }
    }

    #[test]
    fn one_cpu_is_no_package_of_many() {
        let leaves = cpus(&host(), &[0], Choice::default()).of(0).unwrap();
        let get = |function, index| find(&leaves, function, index).unwrap();
        assert_eq!(get(1, 0).edx & HTT, 0);
        assert_eq!(get(0x8000_0001, 0).ecx & CMP_LEGACY, 0);
        assert_eq!((get(0xb, 1).eax, get(0xb, 1).ebx), (0, 1));
        assert_ne!(get(1, 0).ecx & X2APIC, 0);
    }

    #[test]
    fn a_host_of_another_vendor_shows_amd_and_an_amd_host_stays_what_it_is() {
        let leaves = cpus(&host(), &[0], Choice::default()).of(0).unwrap();
        let vendor = find(&leaves, 0, 0).unwrap();
        let name: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(name, b"AuthenticAMD");
        assert_eq!(find(&leaves, 1, 0).unwrap().eax, ZEN_2);
        let mut amd = host();
        [amd[0].ebx, amd[0].edx, amd[0].ecx] = AMD;
        let leaves = cpus(&amd, &[0], Choice::default()).of(0).unwrap();
        assert_eq!(find(&leaves, 1, 0).unwrap().eax, 0x000c_0660);
    }

    #[test]
    fn the_leaves_of_kvm_stay_unless_they_are_to_be_hidden() {
        let shown = cpus(&host(), &[0], Choice::default()).of(0).unwrap();
        assert!(find(&shown, 0x4000_0001, 0).is_some());
        let choice = Choice {
            hide_kvm: true,
            ..Choice::default()
        };
        let hidden = cpus(&host(), &[0], choice).of(0).unwrap();
        assert!(
            hidden
                .as_slice()
                .iter()
                .all(|l| !HYPERVISOR.contains(&l.function))
        );
    }

    #[test]
    fn xsave_stays_only_where_its_sizes_add_up() {
        let has = |host: &[kvm_cpuid_entry2]| {
            let leaves = cpus(host, &[0], Choice::default()).of(0).unwrap();
            let ecx = find(&leaves, 1, 0).unwrap().ecx;
            assert_eq!(ecx & XSAVE != 0, ecx & AVX != 0);
            assert_eq!(find(&leaves, 0xd, 0).is_some(), ecx & XSAVE != 0);
            ecx & XSAVE != 0
        };
        assert!(has(&host()));
        let mut larger = host();
        larger[2].ecx = 2696;
        assert!(!has(&larger));
        let mut unknown = host();
        unknown.remove(3);
        assert!(!has(&unknown));
    }

    #[test]
    fn a_cpu_without_cmpxchg16b_is_refused_by_name() {
        let mut old = host();
        old[1].ecx = 0;
        let cpuid = CpuId::from_entries(&old).unwrap();
        let error = Cpus::new(&cpuid, &[0], Choice::default()).unwrap_err();
        assert!(error.to_string().contains("CMPXCHG16B"), "{error}");
    }
}
