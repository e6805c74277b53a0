//! What devices with TLBs do, and what a VMM does for them.

use std::sync::{Arc, Mutex, PoisonError};

use amdvi_dma::{Access, Pasid};

use super::{Input, Machine, PER_COMMAND, PER_REQUEST};
use crate::{
    DeviceAts, DeviceInvalidation, InvalidationAnswer, InvalidationTicket, Iommu, PageRequest,
    PageResponse,
};

/// A device that answers some invalidations at once, some late, and some never.
#[derive(Debug, Default)]
pub(super) struct Device {
    owed: Mutex<Vec<InvalidationTicket>>,
}

impl Device {
    fn owed(&self) -> std::sync::MutexGuard<'_, Vec<InvalidationTicket>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceAts for Device {
    fn invalidate(&self, invalidation: &DeviceInvalidation) -> InvalidationAnswer {
        // By what the guest writes, so that the input decides.
        if invalidation.range.first() >> 12 & 1 == 0 {
            return InvalidationAnswer::Done;
        }
        let mut owed = self.owed();
        // A device has room for few.
        if owed.len() < 64 {
            owed.push(invalidation.ticket);
        }
        InvalidationAnswer::Later
    }

    fn page_response(&self, response: &PageResponse) {
        assert!(response.tag < 0x200 && response.code < 0x10);
    }
}

impl Machine {
    pub(super) fn add_tlbs(&mut self) {
        for endpoint in &self.devices[..2] {
            let device = Arc::new(Device::default());
            endpoint.set_ats(device.clone());
            self.tlbs.push(device);
        }
    }

    /// A request with a PASID, of ATS, or for a page.
    pub(super) fn sva_request(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let address = input.word();
        let data = input.word();
        self.bounded(PER_REQUEST, |machine| {
            let count = machine.devices.len();
            let device = &mut machine.devices[usize::from(choice) % count];
            let pasid = Pasid::new(data as u32 & if choice & 8 == 0 { 3 } else { Pasid::MAX })
                .map(|pasid| pasid.with_execute(data >> 62 & 1 == 1))
                .map(|pasid| pasid.with_privileged(data >> 63 & 1 == 1))
                .filter(|_| choice & 4 == 0);
            let near = address & 0xff_ffff;
            match choice >> 5 {
                0 => drop(device.translate_for(pasid, near, data >> 32 & 0xffff, Access::Write)),
                1 => drop(device.translate_for(pasid, address, 8, Access::Read)),
                2 => drop(device.translation_request(pasid, near, Access::Write)),
                3 => drop(device.translation_request(pasid, address, Access::Read)),
                4 => drop(device.translated(pasid, near, 64, Access::Write)),
                _ => {
                    device.page_request(&PageRequest {
                        pasid,
                        address,
                        read: data >> 40 & 1 == 1,
                        write: data >> 41 & 1 == 1,
                        tag: (data >> 42) as u16,
                        last: data >> 60 & 1 == 1,
                    });
                }
            }
        });
    }

    /// A device answers late, or the VMM's patience ends; and the VMM continues with commands.
    pub(super) fn answer(&mut self, input: &mut Input<'_>) {
        let choice = usize::from(input.byte());
        let tlb = &self.tlbs[choice % self.tlbs.len()];
        let ticket = tlb.owed().pop();
        if let Some(ticket) = ticket {
            self.iommu.invalidation_done(ticket);
        }
        self.host.set_patient(choice & 4 == 0);
        if choice & 8 == 0 {
            for wait in self.host.take_waits() {
                self.iommu.expire_invalidations(&wait);
            }
        }
        let budget = u64::from(Iommu::COMMANDS_PER_CALL) * PER_COMMAND + super::BATCH;
        self.bounded(budget, |machine| machine.iommu.run_commands());
    }
}
