//! Guest memory of vm-memory as the IOMMU's engines see it.

use std::sync::Arc;

use amdvi_regs::PhysMemory;
use amdvi_vmm_glue::ram::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The VMM's memory, 1 MiB at 0, shared between the VMM and the IOMMU.
    let memory: Arc<GuestMemoryMmap> =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    let ram = GuestRam::new(Arc::clone(&memory));

    // The guest writes a device table entry's first word; a walker reads it.
    memory.write_obj(0x6000_0000_0000_0003_u64, GuestAddress(0x1000))?;
    println!("DTE word 0: {:#018x}", ram.load_u64(0x1000)?);

    // What isn't there is an error that the IOMMU turns into an event.
    if let Err(error) = ram.load_u64(1 << 20) {
        println!("beyond RAM: {error}");
    }
    Ok(())
}
