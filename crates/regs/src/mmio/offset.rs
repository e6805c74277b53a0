//! Register offsets from the MMIO base (48882 §3.4, table 41).

/// Device Table Base (segment 0).
pub const DEVICE_TABLE_BASE: u64 = 0x0000;
/// Command Buffer Base.
pub const COMMAND_BUFFER_BASE: u64 = 0x0008;
/// Event Log Base.
pub const EVENT_LOG_BASE: u64 = 0x0010;
/// Control.
pub const CONTROL: u64 = 0x0018;
/// Exclusion Base; Completion Store Base under SNP.
pub const EXCLUSION_BASE: u64 = 0x0020;
/// Exclusion Limit; Completion Store Limit under SNP.
pub const EXCLUSION_LIMIT: u64 = 0x0028;
/// Extended Feature (EFR).
pub const EXTENDED_FEATURE: u64 = 0x0030;
/// PPR Log Base.
pub const PPR_LOG_BASE: u64 = 0x0038;
/// Hardware Event Upper.
pub const HARDWARE_EVENT_UPPER: u64 = 0x0040;
/// Hardware Event Lower.
pub const HARDWARE_EVENT_LOWER: u64 = 0x0048;
/// Hardware Event Status.
pub const HARDWARE_EVENT_STATUS: u64 = 0x0050;
/// SMI Filter 0; filter n at `SMI_FILTER_0 + 8n`, n < 16.
pub const SMI_FILTER_0: u64 = 0x0060;
/// Guest Virtual APIC Log Base.
pub const GA_LOG_BASE: u64 = 0x00e0;
/// Guest Virtual APIC Log Tail Address.
pub const GA_LOG_TAIL_ADDRESS: u64 = 0x00e8;
/// PPR Log B Base.
pub const PPR_LOG_B_BASE: u64 = 0x00f0;
/// Event Log B Base.
pub const EVENT_LOG_B_BASE: u64 = 0x00f8;
/// Device Table Base of segment 1; segment n at `+ 8(n − 1)`, n ≤ 7.
pub const DEVICE_TABLE_SEGMENT_1: u64 = 0x0100;
/// Device-specific feature extension.
pub const DSFX: u64 = 0x0138;
/// Device-specific control extension.
pub const DSCX: u64 = 0x0140;
/// Device-specific status extension.
pub const DSSX: u64 = 0x0148;
/// MSI Vector 0 (shadow of Miscellaneous Information 0).
pub const MSI_VECTOR_0: u64 = 0x0150;
/// MSI Vector 1 (shadow of Miscellaneous Information 1).
pub const MSI_VECTOR_1: u64 = 0x0154;
/// MSI capability header shadow.
pub const MSI_CAPABILITY: u64 = 0x0158;
/// MSI address low shadow.
pub const MSI_ADDRESS_LOW: u64 = 0x015c;
/// MSI address high shadow.
pub const MSI_ADDRESS_HIGH: u64 = 0x0160;
/// MSI data shadow.
pub const MSI_DATA: u64 = 0x0164;
/// HT MSI mapping capability shadow.
pub const MSI_MAPPING: u64 = 0x0168;
/// Performance Optimization Control.
pub const PERFORMANCE_OPTIMIZATION: u64 = 0x016c;
/// XT General Interrupt Control.
pub const XT_GENERAL_INTERRUPT: u64 = 0x0170;
/// XT PPR Interrupt Control.
pub const XT_PPR_INTERRUPT: u64 = 0x0178;
/// XT GA Log Interrupt Control.
pub const XT_GA_INTERRUPT: u64 = 0x0180;
/// vIOMMU Status.
pub const VIOMMU_STATUS: u64 = 0x0190;
/// Extended Feature 2 (EFR2).
pub const EXTENDED_FEATURE_2: u64 = 0x01a0;
/// MARC aperture 0 base; aperture n at `+ 18h·n`, n < 4.
pub const MARC_0_BASE: u64 = 0x0200;
/// MARC aperture 0 relocation.
pub const MARC_0_RELOCATION: u64 = 0x0208;
/// MARC aperture 0 length.
pub const MARC_0_LENGTH: u64 = 0x0210;
/// IOMMU reserved register: accesses have no effect but are counted.
pub const RESERVED_1FF8: u64 = 0x1ff8;
/// Command Buffer Head Pointer.
pub const COMMAND_HEAD: u64 = 0x2000;
/// Command Buffer Tail Pointer.
pub const COMMAND_TAIL: u64 = 0x2008;
/// Event Log Head Pointer.
pub const EVENT_HEAD: u64 = 0x2010;
/// Event Log Tail Pointer.
pub const EVENT_TAIL: u64 = 0x2018;
/// Status.
pub const STATUS: u64 = 0x2020;
/// PPR Log Head Pointer.
pub const PPR_HEAD: u64 = 0x2030;
/// PPR Log Tail Pointer.
pub const PPR_TAIL: u64 = 0x2038;
/// GA Log Head Pointer.
pub const GA_HEAD: u64 = 0x2040;
/// GA Log Tail Pointer.
pub const GA_TAIL: u64 = 0x2048;
/// PPR Log B Head Pointer.
pub const PPR_B_HEAD: u64 = 0x2050;
/// PPR Log B Tail Pointer.
pub const PPR_B_TAIL: u64 = 0x2058;
/// Event Log B Head Pointer.
pub const EVENT_B_HEAD: u64 = 0x2070;
/// Event Log B Tail Pointer.
pub const EVENT_B_TAIL: u64 = 0x2078;
/// PPR Log Auto Response.
pub const PPR_AUTO_RESPONSE: u64 = 0x2080;
/// PPR Log Overflow Early Indicator.
pub const PPR_OVERFLOW_EARLY: u64 = 0x2088;
/// PPR Log B Overflow Early Indicator.
pub const PPR_B_OVERFLOW_EARLY: u64 = 0x2090;
/// Performance Counter Configuration.
pub const COUNTER_CONFIG: u64 = 0x4000;
/// Performance counter PASID bank lock.
pub const COUNTER_PASID_LOCK: u64 = 0x4008;
/// Performance counter Domain bank lock.
pub const COUNTER_DOMAIN_LOCK: u64 = 0x4010;
/// Performance counter DeviceID bank lock.
pub const COUNTER_DEVICE_LOCK: u64 = 0x4018;
/// First performance counter bank.
pub const COUNTER_BANKS: u64 = 0x40000;

/// Bytes of the MMIO region without performance counters.
pub const REGION_SIZE: u64 = 0x4000;
/// Bytes of the MMIO region with performance counters (EFR.PCSup).
pub const REGION_SIZE_WITH_COUNTERS: u64 = 0x8_0000;

/// Number of SMI filter registers that the register file has room for.
pub const SMI_FILTERS: u64 = 16;
/// Number of MARC apertures that the register file has room for.
pub const MARC_APERTURES: u64 = 4;

/// Device Table Base of a segment, 0–7; `segment` is taken modulo 8.
pub const fn device_table_base(segment: u8) -> u64 {
    match segment & 7 {
        0 => DEVICE_TABLE_BASE,
        n => DEVICE_TABLE_SEGMENT_1 + 8 * (n as u64 - 1),
    }
}

/// SMI Filter `n`, 0–15; `n` is taken modulo 16.
pub const fn smi_filter(n: u8) -> u64 {
    SMI_FILTER_0 + 8 * (n as u64 % SMI_FILTERS)
}

/// MARC Base of aperture `n`, 0–3; `n` is taken modulo 4.
pub const fn marc_base(n: u8) -> u64 {
    MARC_0_BASE + 0x18 * (n as u64 % MARC_APERTURES)
}

/// MARC Relocation of aperture `n`, 0–3; `n` is taken modulo 4.
pub const fn marc_relocation(n: u8) -> u64 {
    MARC_0_RELOCATION + 0x18 * (n as u64 % MARC_APERTURES)
}

/// MARC Length of aperture `n`, 0–3; `n` is taken modulo 4.
pub const fn marc_length(n: u8) -> u64 {
    MARC_0_LENGTH + 0x18 * (n as u64 % MARC_APERTURES)
}
