//! AMD IOMMU DMA remapping: from an IOVA to a guest physical address
