//! Mappings for a function under vfio-pci.

use std::sync::Arc;

use amdvi_lab_guest::plan::{Backend, MeasureMap};
use amdvi_lab_init::pci;
use anyhow::{Context as _, Result, ensure};

use super::{alone, note, phase};
use crate::context::Context;
use crate::memory::Memory;
use crate::vfio::Device;

/// Where the first mapping is.
const IOVA: u64 = 1 << 30;
/// What is mapped: name, and bytes.
const SIZES: [(&str, u64); 2] = [("map-4k", 4 << 10), ("map-2m", 2 << 20)];
/// Places that are used in turn, so that no mapping is where the last one was.
const PLACES: u64 = 64;

pub(in crate::checks) fn check(want: &MeasureMap, context: &Arc<Context>) -> Result<String> {
    let functions = pci::find(want.function);
    let function = functions.first().with_context(|| {
        let id = want.function;
        format!("there is no function {:04x}:{:04x}", id.vendor, id.device)
    })?;
    pci::bind(function, pci::VFIO).context("bind to vfio-pci")?;
    let device = Device::open(function, Some(Backend::Group))?;
    let mut said = Vec::new();
    for (name, size) in SIZES {
        let memory = Memory::new(size)?;
        ensure!(
            memory.page() >= size,
            "there is no memory with {size:#x} bytes in one piece"
        );
        let (device, memory) = (&device, &memory);
        let mut place = 0;
        phase(name);
        let rates = alone(want.repeats, || {
            let iova = IOVA + place * size;
            device.map(iova, memory, 0, size)?;
            device.unmap(iova, size)?;
            place = (place + 1) % PLACES;
            Ok(1)
        })?;
        said.push(note(context, name, "1/s", rates));
    }
    Ok(said.join("; "))
}
