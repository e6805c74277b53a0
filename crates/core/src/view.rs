//! The registers that the engines read.

use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};

use crate::counters::Counters;
use crate::sync::{AtomicU64, Ordering};

/// The part of the register file that decides how a request is treated.
///
/// The device writes it when a register changes, and bumps the generation afterwards
/// ([`Fabric::invalidate_all`](crate::Fabric::invalidate_all)); engines read it on a miss. Each
/// register is one atomic word, so an engine never sees half of a register.
#[derive(Debug)]
pub struct View {
    control: AtomicU64,
    device_tables: [AtomicU64; 8],
    exclusion_base: AtomicU64,
    exclusion_limit: AtomicU64,
    efr: ExtendedFeature,
    efr2: ExtendedFeature2,
    /// The performance counters; none unless [`with_counters`](Self::with_counters) has put some here.
    pub counters: Counters,
}

impl View {
    /// A view in the reset state of an IOMMU that offers `efr` and `efr2`.
    pub fn new(efr: ExtendedFeature, efr2: ExtendedFeature2) -> Self {
        Self {
            control: AtomicU64::new(Control::RESET.into_bits()),
            device_tables: core::array::from_fn(|_| AtomicU64::new(0)),
            exclusion_base: AtomicU64::new(0),
            exclusion_limit: AtomicU64::new(0),
            efr,
            efr2,
            counters: Counters::default(),
        }
    }

    /// The same with performance counters.
    #[must_use]
    pub fn with_counters(self, counters: Counters) -> Self {
        Self { counters, ..self }
    }

    /// The control register.
    #[inline]
    pub fn control(&self) -> Control {
        Control::from_bits(self.control.load(Ordering::Acquire))
    }

    /// Publishes a new control register.
    pub fn set_control(&self, control: Control) {
        self.control.store(control.into_bits(), Ordering::Release);
    }

    /// The base register of device table segment `segment` (taken modulo 8).
    #[inline]
    pub fn device_table(&self, segment: usize) -> DeviceTableBase {
        DeviceTableBase::from_bits(self.device_tables[segment % 8].load(Ordering::Acquire))
    }

    /// Publishes a new base register of device table segment `segment` (taken modulo 8).
    pub fn set_device_table(&self, segment: usize, base: DeviceTableBase) {
        self.device_tables[segment % 8].store(base.into_bits(), Ordering::Release);
    }

    /// The raw exclusion base and limit registers (MMIO 0020h, 0028h).
    pub fn exclusion(&self) -> [u64; 2] {
        [
            self.exclusion_base.load(Ordering::Acquire),
            self.exclusion_limit.load(Ordering::Acquire),
        ]
    }

    /// Publishes the exclusion registers.
    pub fn set_exclusion(&self, [base, limit]: [u64; 2]) {
        self.exclusion_base.store(base, Ordering::Release);
        self.exclusion_limit.store(limit, Ordering::Release);
    }

    /// The extended features that the guest is offered.
    #[inline]
    pub fn efr(&self) -> ExtendedFeature {
        self.efr
    }

    /// The second extended feature register that the guest is offered.
    #[inline]
    pub fn efr2(&self) -> ExtendedFeature2 {
        self.efr2
    }

    /// Whether 2048 interrupts per function are both offered and turned on
    /// (EFR2.NumIntRemapSup and CONTROL.NumIntRemapMode).
    #[inline]
    pub fn num_int_2k(&self, control: Control) -> bool {
        control.num_int_remap_mode() == Control::NUM_INT_REMAP_2K
            && self.efr2.num_int_remap_sup() == ExtendedFeature2::NUM_INT_REMAP_2K
    }
}
