//! AMD IOMMU interrupt remapping: from an interrupt request to a delivery or a fault
