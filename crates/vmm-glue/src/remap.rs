//! How an interrupt source of the VMM asks its IOMMU.

use std::sync::Arc;

use amdvi_irt::Delivery;
use amdvi_regs::msi::Msi;

/// One interrupt source's way through the IOMMU: its requester identity is bound in.
///
/// An implementation calls the IOMMU's interrupt remapping for the source's DeviceID (for the
/// IOAPIC the one that the IVRS special-device entry names, 00:14.0 for every known guest). It
/// decides, and does not send: sending is up to the caller.
pub trait RemapSource {
    /// An interrupt was requested. What is to be delivered, or `None` when the IOMMU blocks it; the
    /// IOMMU logs its event in that case.
    fn request(&self, msi: Msi) -> Option<Delivery>;

    /// What `request` would answer, with no event and nothing delivered. For keeping routes in
    /// step with the guest's tables.
    fn resolve(&self, msi: Msi) -> Option<Delivery>;

    /// What `resolve` answers if interrupts of that message may take a way on which the IOMMU does not
    /// see them (an irqfd); `None` if each of them has to be requested.
    ///
    /// Override it when there can be a reason besides the tables, such as counters that count
    /// interrupts.
    fn route(&self, msi: Msi) -> Option<Delivery> {
        self.resolve(msi)
    }

    /// As `route` for each of `messages`: tells the answers in their order.
    ///
    /// `tell` only takes note. Override it when there is a faster way for many messages of one source.
    fn routes(&self, messages: &[Msi], tell: &mut dyn FnMut(Option<Delivery>)) {
        messages.iter().for_each(|msi| tell(self.route(*msi)));
    }

    /// As `request`, and calls `send` with the delivery *while the request is in flight*: a
    /// COMPLETION_WAIT that follows an invalidation must not complete before `send` returned, or the
    /// old target could be hit after it (48882 §2.4.1).
    ///
    /// The provided implementation gives no such guarantee: override it when the IOMMU has an
    /// in-flight guard.
    fn request_with(&self, msi: Msi, send: &mut dyn FnMut(&Delivery)) -> Option<Delivery> {
        let delivery = self.request(msi)?;
        send(&delivery);
        Some(delivery)
    }
}

/// No IOMMU between the source and the CPUs: the message is delivered as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unremapped;

impl RemapSource for Unremapped {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        Some(Delivery::from_msi(msi))
    }

    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        Some(Delivery::from_msi(msi))
    }
}

impl<R: RemapSource + ?Sized> RemapSource for &R {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        (**self).request(msi)
    }

    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        (**self).resolve(msi)
    }

    fn route(&self, msi: Msi) -> Option<Delivery> {
        (**self).route(msi)
    }

    fn routes(&self, messages: &[Msi], tell: &mut dyn FnMut(Option<Delivery>)) {
        (**self).routes(messages, tell);
    }

    fn request_with(&self, msi: Msi, send: &mut dyn FnMut(&Delivery)) -> Option<Delivery> {
        (**self).request_with(msi, send)
    }
}

impl<R: RemapSource + ?Sized> RemapSource for Arc<R> {
    fn request(&self, msi: Msi) -> Option<Delivery> {
        (**self).request(msi)
    }

    fn resolve(&self, msi: Msi) -> Option<Delivery> {
        (**self).resolve(msi)
    }

    fn route(&self, msi: Msi) -> Option<Delivery> {
        (**self).route(msi)
    }

    fn routes(&self, messages: &[Msi], tell: &mut dyn FnMut(Option<Delivery>)) {
        (**self).routes(messages, tell);
    }

    fn request_with(&self, msi: Msi, send: &mut dyn FnMut(&Delivery)) -> Option<Delivery> {
        (**self).request_with(msi, send)
    }
}
