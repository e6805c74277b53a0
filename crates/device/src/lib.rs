//! An emulated AMD IOMMU: registers, command processor, logs, PCI function, save and restore
