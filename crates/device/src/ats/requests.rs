//! What a device with ATS or PRI asks of the IOMMU.

use std::sync::Arc;

use amdvi_dma::{Access, Answer, Answered, Cause, Failure, Mapped, Pasid, Piece, Reason};
use amdvi_regs::DeviceId;
use amdvi_regs::event::{InvalidDeviceRequest, InvalidRequestType};

use super::{DeviceAts, Registered};
use crate::endpoint::{Abort, DmaOperation, Endpoint};
use crate::iommu::Iommu;
use crate::page_request::{PageRequest, PageRequested};

impl Endpoint {
    /// Registers what hears of invalidations and page responses for this function, under the DeviceID
    /// that this handle has at the time. It replaces an earlier one of the same handle and goes with
    /// the handle; clones of the handle don't have it. Several handles of a function, each with a TLB
    /// of its own, may each have one: all of them are told.
    pub fn set_ats(&self, device: Arc<dyn DeviceAts>) {
        let registered = Registered {
            slot: self.mapper.slot().clone(),
            device,
        };
        let old = self.iommu.update(|inner| {
            let old = inner.take_ats(self.mapper.slot());
            inner.ats.push(registered);
            old
        });
        // The device may do as it likes when it is dropped, so no lock is held.
        drop(old);
    }

    /// Asks for the translation of the page around `iova` (PCIe AT = translation request), for the
    /// device's own TLB.
    ///
    /// `access` is what the device would like to do: anything but [`Access::Read`] asks for write
    /// permission, too (NW = 0 in PCIe's terms). An [`Answer`] without permissions says that there
    /// is no such page; a [page request](Self::page_request) may help. Put the answer into the TLB
    /// while it lives: an invalidation that has to find it there comes after that. The thread that
    /// holds it must not access the device's registers.
    ///
    /// # Errors
    ///
    /// [`Abort`] if the function may not ask (DTE.I = 0, `device-iotlb=off`), or the tables can't be
    /// read.
    pub fn translation_request(
        &mut self,
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
    ) -> Result<Answered<'_>, Abort> {
        let iommu = &*self.iommu;
        if let Some(failure) = iommu.without_ats(self.device_id(), true, pasid, iova) {
            return Err(iommu.abort_at_once(self.device_id(), &failure));
        }
        self.mapper
            .translation_request(&*iommu.memory, pasid, iova, access)
            .map_err(|failed| iommu.abort(failed))
    }

    /// Checks the beginning of a DMA request whose address comes from the device's TLB (PCIe
    /// AT = translated). As [`translate`](Self::translate) otherwise; the result's GPA is `gpa`.
    ///
    /// # Errors
    ///
    /// [`Abort`] if the function may not send such requests.
    pub fn translated(
        &mut self,
        pasid: Option<Pasid>,
        gpa: u64,
        len: u64,
        access: Access,
    ) -> Result<Mapped<'_>, Abort> {
        let iommu = &*self.iommu;
        if let Some(failure) = iommu.without_ats(self.device_id(), false, pasid, gpa) {
            return Err(iommu.abort_at_once(self.device_id(), &failure));
        }
        self.mapper
            .translated(&*iommu.memory, pasid, gpa, len, access)
            .map_err(|failed| iommu.abort(failed))
    }

    /// Carries out a DMA transaction whose address comes from the device's TLB, as
    /// [`access`](Self::access) does for others.
    ///
    /// The TLB entry must have been looked up inside the device's own lock, or whatever else makes
    /// its [`DeviceAts::invalidate`] wait for this call: an answer to an invalidation says that no
    /// access by the old entry begins any more.
    ///
    /// # Errors
    ///
    /// [`Abort`] if a part of it must not happen.
    pub fn access_translated(
        &mut self,
        pasid: Option<Pasid>,
        mut gpa: u64,
        mut len: u64,
        access: Access,
        mut piece: impl FnMut(&Piece),
    ) -> Result<(), Abort> {
        let mut operation = self.begin();
        loop {
            let part = operation.translated(pasid, gpa, len, access)?;
            piece(&part);
            len -= part.len;
            if len == 0 {
                return Ok(());
            }
            // The first part was refused unless all of them fit into the address space.
            gpa += part.len;
        }
    }

    /// Asks for a page to be made present (PCIe PRI, 48882 §2.6).
    ///
    /// Its group is answered through [`DeviceAts::page_response`] if it is
    /// [logged](PageRequested::Logged), and by the result otherwise.
    pub fn page_request(&mut self, request: &PageRequest) -> PageRequested {
        let iommu = &*self.iommu;
        let operation = self.mapper.enter();
        let (requested, emission) = iommu.page_request(operation.device_id(), request);
        drop(operation);
        iommu.emit(emission);
        requested
    }
}

impl DmaOperation<'_> {
    /// As [`Endpoint::translation_request`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn translation_request(
        &mut self,
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
    ) -> Result<Answer, Abort> {
        let iommu = self.late.iommu;
        if let Some(failure) = iommu.without_ats(self.operation.device_id(), true, pasid, iova) {
            return Err(self.abort(&failure));
        }
        self.operation
            .translation_request(&*iommu.memory, pasid, iova, access)
            .map_err(|failure| self.abort(&failure))
    }

    /// As [`Endpoint::translated`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn translated(
        &mut self,
        pasid: Option<Pasid>,
        gpa: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Abort> {
        let iommu = self.late.iommu;
        if let Some(failure) = iommu.without_ats(self.operation.device_id(), false, pasid, gpa) {
            return Err(self.abort(&failure));
        }
        self.operation
            .translated(&*iommu.memory, pasid, gpa, len, access)
            .map_err(|failure| self.abort(&failure))
    }
}

impl Iommu {
    /// Why a request of ATS fails where ATS is not offered: as with DTE.I = 0, whatever the DTE says.
    fn without_ats(
        &self,
        device_id: DeviceId,
        translation: bool,
        pasid: Option<Pasid>,
        address: u64,
    ) -> Option<Failure> {
        if self.offer.device_iotlb {
            return None;
        }
        let kind = if translation {
            InvalidRequestType::TranslationDisabled
        } else {
            InvalidRequestType::PretranslatedNotAllowed
        };
        let (tr, bits) = kind.bits();
        let value = pasid.map_or(0, Pasid::value);
        let event = InvalidDeviceRequest::new()
            .with_device_id(device_id.0)
            .with_gn(pasid.is_some())
            .with_pasid_15_0(value as u16)
            .with_pasid_19_16((value >> 16) as u8)
            .with_tr(tr)
            .with_kind(bits)
            .with_address(address);
        Some(Failure {
            cause: Cause::Translation(Reason::InvalidRequest(kind)),
            // An IOMMU that is off tells nobody.
            event: self.control().iommu_en().then(|| event.into()),
            suppress_after_first: false,
        })
    }

    /// Logs a failure of a request that nothing is in flight of.
    fn abort_at_once(&self, device_id: DeviceId, failure: &Failure) -> Abort {
        if let Some(emission) = self.log_failure(device_id, failure) {
            self.emit(emission);
        }
        failure.cause.into()
    }
}
