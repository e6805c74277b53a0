//! A guest-side AMD IOMMU driver that runs test scenarios, bare-metal or in-process
