//! What this host's IOMMU can do, and what a guest can be offered.

fn main() {}
