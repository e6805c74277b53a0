//! Adapters between the emulated AMD IOMMU and a VMM: vm-memory, KVM, IOAPIC, ACPI IVRS
