//! What the AMD IOMMU engines share: guest memory access, generations, in-flight guards, the device table
