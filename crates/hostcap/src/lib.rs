//! What the host's IOMMU can do, where that is known from, and what a guest can be offered
