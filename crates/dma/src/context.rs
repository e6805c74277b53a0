//! What the engine needs to know of the IOMMU's registers.

use amdvi_core::View;
use amdvi_regs::dte::DteQ0;
use amdvi_regs::mmio::{Control, ExtendedFeature, ExtendedFeature2};

use crate::request::Pasid;

/// The register state that a translation depends on.
///
/// A plain value: a device computes it when one of its sources is written and hands it to every
/// translation. The default is an IOMMU that is off and offers no host translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkContext {
    /// Control.IommuEn (48882 §3.4.1). With `false` every request passes untranslated.
    pub iommu_enabled: bool,
    /// The most levels that EFR.HATS offers (48882 §3.4.2): 4, 5 or 6; 0 when host translation is
    /// not available.
    pub host_levels: u8,
    /// Width in bits of the addresses that page tables may translate (IVinfo.VASize, 48882 §5.1).
    /// 0 and anything from 64 on mean that only the DTE's Mode limits it.
    pub va_bits: u8,
    /// EFR.EPHSup: DTE\[53:52\] are defined.
    pub eph_sup: bool,
    /// EFR.HASup: a DTE may ask for accessed bits in its host page table (HAD = 01b).
    pub host_accessed: bool,
    /// EFR.HDSup: a DTE may ask for dirty bits, too (HAD = 11b).
    pub host_dirty: bool,
    /// Guest page tables.
    pub guest: GuestContext,
    /// EFR2.HTRangeIgnore: FD_0000_0000h–FF_FFFF_FFFFh are ordinary addresses.
    pub ht_range_ignore: bool,
    /// The exclusion range, if it is enabled. It must be `None` under SNP, where the same registers
    /// hold the completion store range.
    pub exclusion: Option<Exclusion>,
}

impl WalkContext {
    /// The context for a control register, the features *offered to the guest*, and the address
    /// width that its IVRS states; without an exclusion range.
    pub const fn new(
        control: Control,
        features: ExtendedFeature,
        features2: ExtendedFeature2,
        va_bits: u8,
    ) -> Self {
        Self {
            iommu_enabled: control.iommu_en(),
            host_levels: match features.hats() {
                0 => 4,
                1 => 5,
                2 => 6,
                _ => 0,
            },
            va_bits,
            eph_sup: features.eph_sup(),
            host_accessed: features.ha_sup(),
            host_dirty: features.ha_sup() && features.hd_sup(),
            guest: GuestContext::new(control, features, features2),
            ht_range_ignore: features2.ht_range_ignore(),
            exclusion: None,
        }
    }

    /// The context that the registers give now.
    pub(crate) fn of_view(view: &View, va_bits: u8) -> Self {
        let [base, limit] = view.exclusion();
        // Under SNP the same registers hold the range of completion stores.
        let exclusion = if view.efr().snp_sup() {
            None
        } else {
            Exclusion::from_registers(base, limit)
        };
        Self::new(view.control(), view.efr(), view.efr2(), va_bits).with_exclusion(exclusion)
    }

    /// Whether the guest tables of an entry with V=1 and DTE\[63:0\] = `q0` are in use: GV=1, and
    /// guest translation is enabled.
    pub const fn uses_guest_tables(&self, q0: DteQ0) -> bool {
        self.guest.supported && self.guest.enabled && q0.v() && q0.tv() && q0.gv()
    }

    /// The same context with an exclusion range.
    #[must_use]
    pub const fn with_exclusion(mut self, exclusion: Option<Exclusion>) -> Self {
        self.exclusion = exclusion;
        self
    }
}

/// The register state that guest (v2) page tables and PASIDs depend on. The default is an IOMMU
/// without them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestContext {
    /// EFR.GTSup: the DTE's guest fields are defined.
    pub supported: bool,
    /// Control.GTEn: DTE.GV is obeyed.
    pub enabled: bool,
    /// EFR.GIoSup: DTE.GIoV is defined.
    pub giov: bool,
    /// The most levels of a guest page table (EFR.GATS): 4 or 5.
    pub levels: u8,
    /// The most levels of a GCR3 table (EFR.GLXSup): 1–3.
    pub gcr3_levels: u8,
    /// The largest PASID (EFR.PASmax).
    pub max_pasid: u32,
    /// Control.GCR3TRPMode, where EFR2 offers it: the DTE's GCR3 root is a guest physical address,
    /// translated by the DTE's host page table; otherwise it is a system physical address.
    pub gcr3_root_is_gpa: bool,
    /// EFR.NXSup: bit 63 of a guest entry denies execution.
    pub no_execute: bool,
    /// Accessed bits of guest tables are set (not Control.GAUpdateDis).
    pub accessed: bool,
    /// Dirty bits of guest tables are set (not Control.GDUpdateDis).
    pub dirty: bool,
}

impl GuestContext {
    const fn new(control: Control, features: ExtendedFeature, features2: ExtendedFeature2) -> Self {
        Self {
            supported: features.gt_sup(),
            enabled: features.gt_sup() && control.gt_en(),
            giov: features.gt_sup() && features.gio_sup(),
            levels: match features.guest_levels() {
                // Six levels are an encoding of old revisions; no table has them.
                Some(5..) => 5,
                Some(levels) => levels,
                None => 0,
            },
            gcr3_levels: match features.gcr3_levels() {
                Some(levels) => levels,
                None => 0,
            },
            max_pasid: match features.max_pasid() {
                Some(max) if max < Pasid::MAX => max,
                Some(_) => Pasid::MAX,
                None => 0,
            },
            gcr3_root_is_gpa: features2.gcr3_trp_mode() && control.gcr3_trp_mode(),
            no_execute: features.nx_sup(),
            accessed: features.gt_sup()
                && !(features.ga_update_dis_sup() && control.ga_update_dis()),
            dirty: features.gt_sup() && !(features.v2_hd_dis_sup() && control.gd_update_dis()),
        }
    }
}

/// The enabled exclusion range (48882 §2.2.2.3 and §3.4.1): both bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// First address of the range.
    pub first: u64,
    /// Last address of the range; a range with `last < first` is empty.
    pub last: u64,
    /// Allow: every device may use the range; otherwise only those whose DTE has EX set.
    pub allow_all: bool,
}

impl Exclusion {
    /// Decodes MMIO 0020h (`base`) and 0028h (`limit`); `None` if ExEn is 0.
    ///
    /// The limit's low twelve bits count as ones whatever is stored there.
    pub const fn from_registers(base: u64, limit: u64) -> Option<Self> {
        const PAGE: u64 = 0x000f_ffff_ffff_f000;
        if base & 1 == 0 {
            return None;
        }
        Some(Self {
            first: base & PAGE,
            last: limit & PAGE | 0xfff,
            allow_all: base & 2 != 0,
        })
    }
}
