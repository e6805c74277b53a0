//! The IOAPIC's pins on KVM's split irqchip.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amdvi_irt::{Delivery, Trigger};
use amdvi_regs::msi::Msi;

use super::{KvmIrqs, KvmMessage, RouteTable};
use crate::ioapic::IoapicSink;
use crate::remap::RemapSource;

/// What went wrong on the host's side while pins fired. A guest can't act on these, so they are
/// counted and the last one is kept for the VMM's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinErrors {
    /// How many operations failed.
    pub count: u64,
    /// The last failure, as a sentence.
    pub last: Option<String>,
}

/// Connects an [`Ioapic`](crate::ioapic::Ioapic) to the IOMMU and to KVM.
///
/// Requests go through `remap`; what comes out is sent by `KVM_SIGNAL_MSI`. For a level-triggered
/// pin the route of the GSI with the pin's number is made the same message *before* it is sent,
/// since that route is what makes KVM exit to the VMM at the EOI of the (remapped) vector. The
/// table is committed then only if the route really changed: not at each interrupt, but once after
/// the guest moved one.
///
/// Pins need no irqfd: KVM refuses resampling irqfds with the split irqchip, so that a level
/// interrupt's EOI has to pass through the IOAPIC anyhow.
#[derive(Debug)]
pub struct KvmPins<R, K> {
    remap: R,
    vm: Vm<K>,
}

/// The host's side, apart from `remap` so that it can be used while a request is in flight.
#[derive(Debug)]
struct Vm<K> {
    kvm: K,
    routes: Arc<Mutex<RouteTable>>,
    errors: PinErrors,
}

impl<R: RemapSource, K: KvmIrqs> KvmPins<R, K> {
    /// `routes` is the VM's one table; `remap` is the IOAPIC's way through the IOMMU.
    pub fn new(remap: R, kvm: K, routes: Arc<Mutex<RouteTable>>) -> Self {
        Self {
            remap,
            vm: Vm {
                kvm,
                routes,
                errors: PinErrors::default(),
            },
        }
    }

    /// Host-side failures since the last call.
    pub fn take_errors(&mut self) -> PinErrors {
        std::mem::take(&mut self.vm.errors)
    }
}

impl<K: KvmIrqs> Vm<K> {
    /// A panic elsewhere doesn't make the table inconsistent: each change is a single assignment.
    fn routes(&self) -> MutexGuard<'_, RouteTable> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<E: Display>(&mut self, what: impl Display, result: Result<(), E>) {
        if let Err(error) = result {
            self.errors.count += 1;
            self.errors.last = Some(format!("{what}: {error}"));
        }
    }

    fn route(&mut self, pin: u8, target: Option<&Delivery>) {
        // An edge route would intercept nothing and only make the table longer.
        let target = target.filter(|delivery| delivery.trigger == Trigger::Level);
        let result = self.routes().set(u32::from(pin), target).map(drop);
        self.note(format_args!("IOAPIC pin {pin}"), result);
    }

    fn commit(&mut self) {
        let result = self.routes().commit(&self.kvm).map(drop);
        self.note("IOAPIC routes", result);
    }

    fn send(&mut self, pin: u8, delivery: &Delivery) {
        let format = self.routes().format();
        let message = match KvmMessage::encode(delivery, format) {
            Ok(message) => message,
            Err(error) => return self.note(format_args!("IOAPIC pin {pin}"), Err(error)),
        };
        if delivery.trigger == Trigger::Level {
            // The way back before the way out.
            self.route(pin, Some(delivery));
            self.commit();
        }
        let sent = self.kvm.signal_msi(message.to_msi()).map(drop);
        self.note(
            format_args!("IOAPIC pin {pin}: KVM_SIGNAL_MSI of {delivery}"),
            sent,
        );
    }
}

impl<R: RemapSource, K: KvmIrqs> IoapicSink for KvmPins<R, K> {
    fn request(&mut self, pin: u8, msi: Msi) -> Option<Delivery> {
        let vm = &mut self.vm;
        self.remap
            .request_with(msi, &mut |delivery| vm.send(pin, delivery))
    }

    fn resolve(&mut self, _pin: u8, msi: Msi) -> Option<Delivery> {
        self.remap.resolve(msi)
    }

    fn route(&mut self, pin: u8, target: Option<&Delivery>) {
        self.vm.route(pin, target);
    }

    fn inject(&mut self, _pin: u8, _delivery: &Delivery) {
        // Sent by `request`, while it was in flight.
    }

    fn settle(&mut self) {
        self.vm.commit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::Ioapic;
    use crate::kvm::MsiFormat;
    use crate::remap::Unremapped;
    use kvm_bindings::{kvm_irq_routing_entry, kvm_msi};
    use std::cell::{Cell, RefCell};
    use std::io;

    /// The order of what KVM is asked for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Call {
        Routes(Vec<u32>),
        Msi(u32),
    }

    #[derive(Default)]
    struct Recorder {
        calls: RefCell<Vec<Call>>,
        fail: Cell<bool>,
    }

    impl Recorder {
        fn record(&self, call: Call) -> io::Result<()> {
            self.calls.borrow_mut().push(call);
            if self.fail.get() {
                Err(io::Error::from_raw_os_error(12))
            } else {
                Ok(())
            }
        }
    }

    impl KvmIrqs for Recorder {
        fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
            self.record(Call::Routes(
                entries.iter().map(|entry| entry.gsi).collect(),
            ))
        }
        fn signal_msi(&self, msi: kvm_msi) -> io::Result<bool> {
            self.record(Call::Msi(msi.data)).map(|()| true)
        }
    }

    fn program(ioapic: &mut Ioapic<KvmPins<Unremapped, &Recorder>>, pin: u8, low: u32) {
        ioapic.mmio_write(0x00, &[0x10 + 2 * pin]);
        ioapic.mmio_write(0x10, &low.to_le_bytes());
    }

    fn calls(kvm: &Recorder) -> Vec<Call> {
        kvm.calls.take()
    }

    #[test]
    fn a_level_pins_route_is_committed_before_its_first_message_and_never_again() {
        let kvm = Recorder::default();
        let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let mut ioapic = Ioapic::new(0, KvmPins::new(Unremapped, &kvm, Arc::clone(&routes)));
        program(&mut ioapic, 9, 0x8031);
        ioapic.set_line(9, true).unwrap();
        assert_eq!(calls(&kvm), [Call::Routes(vec![9]), Call::Msi(0xc031)]);
        ioapic.eoi(0x31);
        assert_eq!(calls(&kvm), [Call::Msi(0xc031)]);
        ioapic.tables_changed();
        assert_eq!(calls(&kvm), []);
        assert_eq!(routes.lock().unwrap().commits(), 1);
    }

    #[test]
    fn an_edge_pin_needs_no_route() {
        let kvm = Recorder::default();
        let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let mut ioapic = Ioapic::new(0, KvmPins::new(Unremapped, &kvm, Arc::clone(&routes)));
        program(&mut ioapic, 4, 0x0034);
        ioapic.pulse(4).unwrap();
        assert_eq!(calls(&kvm), [Call::Msi(0x0034)]);
        assert!(!routes.lock().unwrap().is_dirty());
    }

    #[test]
    fn changed_tables_commit_all_pins_at_once() {
        let kvm = Recorder::default();
        let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let mut ioapic = Ioapic::new(0, KvmPins::new(Unremapped, &kvm, routes));
        for pin in 5..12 {
            program(&mut ioapic, pin, 0x8030 + u32::from(pin));
        }
        assert_eq!(calls(&kvm), []);
        ioapic.tables_changed();
        assert_eq!(calls(&kvm), [Call::Routes((5..12).collect())]);
    }

    /// Blocks until it is opened.
    struct Gate(Cell<bool>);

    impl RemapSource for Gate {
        fn request(&self, msi: Msi) -> Option<Delivery> {
            self.0.get().then(|| Delivery::from_msi(msi))
        }
        fn resolve(&self, msi: Msi) -> Option<Delivery> {
            self.request(msi)
        }
    }

    #[test]
    fn pins_that_are_no_longer_blocked_fire_after_one_commit_for_all() {
        let (kvm, gate) = (Recorder::default(), Gate(Cell::new(false)));
        let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let mut ioapic = Ioapic::new(0, KvmPins::new(&gate, &kvm, routes));
        for pin in [5, 6, 7] {
            ioapic.mmio_write(0x00, &[0x10 + 2 * pin]);
            let low = 0x8030 + u32::from(pin);
            ioapic.mmio_write(0x10, &low.to_le_bytes());
            ioapic.set_line(pin.into(), true).unwrap();
        }
        assert_eq!(calls(&kvm), []);
        gate.0.set(true);
        ioapic.tables_changed();
        let sent = [0x35, 0x36, 0x37].map(|vector| Call::Msi(0xc000 | vector));
        let expected: Vec<_> = std::iter::once(Call::Routes(vec![5, 6, 7]))
            .chain(sent)
            .collect();
        assert_eq!(calls(&kvm), expected);
    }

    #[test]
    fn host_failures_are_counted_and_named() {
        let kvm = Recorder::default();
        let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let mut ioapic = Ioapic::new(0, KvmPins::new(Unremapped, &kvm, routes));
        program(&mut ioapic, 9, 0x8031);
        kvm.fail.set(true);
        ioapic.set_line(9, true).unwrap();
        let errors = ioapic.sink_mut().take_errors();
        assert_eq!(errors.count, 2, "the table and the message");
        let last = errors.last.unwrap();
        assert!(last.starts_with("IOAPIC pin 9: KVM_SIGNAL_MSI"), "{last}");
        // The table is tried again with the next interrupt.
        kvm.fail.set(false);
        calls(&kvm);
        ioapic.eoi(0x31);
        assert_eq!(calls(&kvm), [Call::Routes(vec![9]), Call::Msi(0xc031)]);
        assert_eq!(ioapic.sink_mut().take_errors(), PinErrors::default());
    }

    /// Notes when the request is in flight.
    struct Guarded<'a>(&'a Recorder);

    impl RemapSource for Guarded<'_> {
        fn request(&self, msi: Msi) -> Option<Delivery> {
            Some(Delivery::from_msi(msi))
        }
        fn resolve(&self, msi: Msi) -> Option<Delivery> {
            self.request(msi)
        }
        fn request_with(&self, msi: Msi, send: &mut dyn FnMut(&Delivery)) -> Option<Delivery> {
            let delivery = Delivery::from_msi(msi);
            send(&delivery);
            // Here the guard ends.
            self.0.record(Call::Msi(u32::MAX)).unwrap();
            Some(delivery)
        }
    }

    #[test]
    fn routing_and_sending_happen_while_the_request_is_in_flight() {
        let kvm = Recorder::default();
        let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let guarded = Guarded(&kvm);
        let mut ioapic = Ioapic::new(0, KvmPins::new(&guarded, &kvm, routes));
        ioapic.mmio_write(0x00, &[0x22]);
        ioapic.mmio_write(0x10, &0x8031u32.to_le_bytes());
        ioapic.set_line(9, true).unwrap();
        let expected = [
            Call::Routes(vec![9]),
            Call::Msi(0xc031),
            Call::Msi(u32::MAX),
        ];
        assert_eq!(calls(&kvm), expected);
    }

    #[test]
    fn a_reserved_delivery_mode_is_not_sent() {
        let kvm = Recorder::default();
        let routes = Arc::new(Mutex::new(RouteTable::new(MsiFormat::X2ApicApi, 24)));
        let mut ioapic = Ioapic::new(0, KvmPins::new(Unremapped, &kvm, routes));
        program(&mut ioapic, 4, 0x0334);
        ioapic.pulse(4).unwrap();
        assert_eq!(calls(&kvm), []);
        assert_eq!(ioapic.sink_mut().take_errors().count, 1);
    }
}
