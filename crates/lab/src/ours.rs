//! Our device, as a guest and the devices behind it drive it.

use std::sync::Arc;

use amdvi_device::testing::TestHost;
use amdvi_device::{Abort, Endpoint, Iommu, Options, Signal};
use amdvi_dma::{Access, Reason};
use amdvi_regs::mmio::offset;
use amdvi_regs::msi::Msi;

use crate::case::{Case, Observation, Observed, Outcome, Refusal, Step, event_code};
use crate::layout::{COMMANDS, Device, EVENTS, STORE, STORE_WORDS, is_ram};
use crate::memory::SparseMemory;
use crate::setup::{self, EVENT_RING, invalidate_everything, marker};

/// What the device offers here: what QEMU's does as well.
const OPTIONS: &str = "amd-iommu,xtsup=on";

/// Our side.
pub struct Ours {
    memory: Arc<SparseMemory>,
    host: Arc<TestHost>,
    iommu: Arc<Iommu>,
    endpoints: [Endpoint; 3],
}

impl Ours {
    /// Builds the device.
    pub fn new() -> Self {
        let memory = Arc::new(SparseMemory::default());
        let host = Arc::new(TestHost::default());
        let options: Options = OPTIONS.parse().expect("the options of the lab are valid");
        let iommu = Iommu::new(&options, memory.clone(), host.clone());
        let endpoints = Device::ALL.map(|device| iommu.endpoint(device.id()));
        Self {
            memory,
            host,
            iommu,
            endpoints,
        }
    }

    /// Runs a case from reset.
    pub fn run(&mut self, case: &Case) -> Observed {
        self.memory.clear();
        self.iommu.reset();
        for (&gpa, &value) in &case.memory {
            self.memory.write(gpa, value);
        }
        for (offset, value) in setup::registers(case) {
            self.write(offset, value);
        }
        let mut tail = case.ring_start;
        let mut prologue = invalidate_everything();
        prologue.push(marker(0));
        self.submit(case, &mut tail, &prologue);
        let mut logged = self.read(offset::EVENT_TAIL);
        let mut steps = Vec::new();
        for step in &case.steps {
            let (outcome, refusal) = self.step(case, step, &mut tail);
            let end = self.read(offset::EVENT_TAIL);
            let (mut events, mut records) = (Vec::new(), Vec::new());
            while logged != end {
                let words = [0, 8].map(|at| self.memory.read(EVENTS + logged + at));
                events.push(event_code(words[0]));
                records.push(words);
                logged = (logged + 16) % EVENT_RING;
            }
            steps.push(Observation {
                outcome,
                events,
                records,
                refusal,
            });
        }
        self.host.take_deliveries();
        Observed {
            steps,
            status: self.read(offset::STATUS),
            stores: (0..STORE_WORDS)
                .map(|i| self.memory.read(STORE + 8 * i))
                .collect(),
            trace: Vec::new(),
        }
    }

    fn step(&mut self, case: &Case, step: &Step, tail: &mut u64) -> (Outcome, Option<Refusal>) {
        match *step {
            Step::Store { gpa, value } => {
                self.memory.write(gpa, value);
                (Outcome::Nothing, None)
            }
            Step::Commands(ref list) => {
                self.submit(case, tail, list);
                (Outcome::Head(self.read(offset::COMMAND_HEAD)), None)
            }
            Step::Control(control) => {
                self.write(offset::CONTROL, control.into_bits());
                while self.iommu.run_commands() {}
                (Outcome::Head(self.read(offset::COMMAND_HEAD)), None)
            }
            Step::Dma {
                device,
                iova,
                write,
                ..
            } => self.dma(device, iova, write),
            Step::Msi { address, data } => self.signal(
                Device::Edu,
                Msi {
                    address: address.into(),
                    data: data.into(),
                },
            ),
            Step::Pin { rte, .. } => self.signal(Device::Ioapic, crate::case::pin_message(rte)),
        }
    }

    fn endpoint(&mut self, device: Device) -> &mut Endpoint {
        &mut self.endpoints[device as usize]
    }

    fn dma(&mut self, device: Device, iova: u64, write: bool) -> (Outcome, Option<Refusal>) {
        let access = if write { Access::Write } else { Access::Read };
        match self.endpoint(device).translate(iova, 4, access) {
            // Four aligned bytes are never in two pages.
            Ok(mapped) if mapped.len != 4 => (Outcome::Elsewhere, None),
            Ok(mapped) if is_ram(mapped.gpa) => (Outcome::Landed(mapped.gpa), None),
            Ok(mapped) => (Outcome::Aborted, Some(Refusal::NoMemory(mapped.gpa))),
            Err(Abort::Translation(Reason::InterruptWindow)) => (Outcome::Interrupt, None),
            Err(abort) => (Outcome::Aborted, Some(Refusal::Dma(abort))),
        }
    }

    fn signal(&mut self, device: Device, msi: Msi) -> (Outcome, Option<Refusal>) {
        match self.endpoint(device).signal(msi) {
            Signal::Delivered(delivery) => (Outcome::Delivered(delivery.into()), None),
            Signal::Posted => (Outcome::Blocked, None),
            Signal::Blocked(reason) => (Outcome::Blocked, Some(Refusal::Interrupt(reason))),
        }
    }

    fn submit(&mut self, case: &Case, tail: &mut u64, commands: &[[u64; 2]]) {
        for &[low, high] in commands {
            self.memory.write(COMMANDS + *tail, low);
            self.memory.write(COMMANDS + *tail + 8, high);
            *tail = (*tail + 16) % setup::ring_bytes(case);
        }
        self.write(offset::COMMAND_TAIL, *tail);
        while self.iommu.run_commands() {}
    }

    fn write(&self, at: u64, value: u64) {
        self.iommu.mmio_write(at, &value.to_le_bytes());
    }

    fn read(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.iommu.mmio_read(at, &mut data);
        u64::from_le_bytes(data)
    }
}

impl Default for Ours {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DEVICE_TABLE;

    #[test]
    fn every_device_has_its_own_dte_in_the_table() {
        for (i, device) in Device::ALL.into_iter().enumerate() {
            assert_eq!(device as usize, i);
            assert!((DEVICE_TABLE..DEVICE_TABLE + 0x2000).contains(&device.dte()));
        }
    }
}
