//! A userspace IOAPIC for KVM's split irqchip whose pins go through the IOMMU.
//!
//! 24 pins, programmed like an 82093AA; version 20h, which adds the EOI register (Linux uses it
//! behind an IOMMU). What the IOMMU changes:
//!
//! - A pin's redirection entry does not name the interrupt any more. It makes an interrupt *request*
//!   (an x86 message, [`Rte::message`]) of the IOAPIC's own DeviceID; the IOMMU answers with a
//!   [`Delivery`] or blocks it (48882 §2.2.5).
//! - The EOI that a local APIC broadcasts, `KVM_EXIT_IOAPIC_EOI`, has the *remapped* vector, which
//!   the redirection entry does not contain. The IOAPIC remembers it per pin from delivery to EOI.
//! - A write to the EOI register, in contrast, has the redirection entry's vector: that is all a
//!   guest driver can know of the IOAPIC.
//! - When the guest changes its tables, routes that were derived from them are stale:
//!   [`Ioapic::tables_changed`].
//!
//! The caller serializes accesses (a mutex), and must not call back into the same IOAPIC from its
//! sink. Every call does bounded work: at most one request per pin.

mod rte;
mod state;
#[cfg(test)]
mod tests;

use amdvi_irt::Delivery;
use amdvi_regs::msi::Msi;
use thiserror::Error;

pub use rte::Rte;
pub use state::{InService, IoapicState, PinState, StateError};

/// Number of pins.
pub const PINS: usize = 24;

/// Size of the MMIO window in bytes.
pub const WINDOW: u64 = 0x1000;

/// Usual guest physical address of the first IOAPIC's window.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;

/// Offset of the index register (IOREGSEL), 8 bits.
const INDEX: u64 = 0x00;
/// Offset of the data register (IOWIN), 32 bits.
const DATA: u64 = 0x10;
/// Offset of the EOI register, 8 bits, write only.
const EOI: u64 = 0x40;

/// Version 20h (an EOI register exists), and the number of the last pin in \[23:16\].
const VERSION_REGISTER: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Where the IOAPIC's requests go. `pin` is below [`PINS`].
pub trait IoapicSink {
    /// The pin requests an interrupt: what the IOMMU makes of it, `None` when it blocks it (and
    /// logs that). The delivery keeps the request's trigger mode.
    ///
    /// A sink whose interrupts must be sent while the request is in flight (so that COMPLETION_WAIT
    /// covers them) sends here, after it routed a level-triggered delivery, and does nothing in
    /// [`inject`](Self::inject). [`route`](Self::route) with the same delivery follows.
    fn request(&mut self, pin: u8, msi: Msi) -> Option<Delivery>;

    /// What [`request`](Self::request) would answer, without any effect.
    fn resolve(&mut self, pin: u8, msi: Msi) -> Option<Delivery>;

    /// The EOI of this level-triggered delivery must reach [`Ioapic::eoi`] from now on; `None`: the
    /// pin waits for no EOI. Always called before [`inject`](Self::inject) of that delivery.
    fn route(&mut self, pin: u8, target: Option<&Delivery>);

    /// Sends the interrupt to the local APICs.
    fn inject(&mut self, pin: u8, delivery: &Delivery);

    /// A series of [`route`](Self::route) calls without an injection has ended.
    fn settle(&mut self) {}
}

/// A pin number that does not exist: a mistake of the VMM, never of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("IOAPIC pin {pin} does not exist: pins are 0 to {}", PINS - 1)]
pub struct NoSuchPin {
    /// The number asked for.
    pub pin: usize,
}

/// The IOAPIC. See the [module](self).
#[derive(Debug)]
pub struct Ioapic<S> {
    id: u8,
    index: u8,
    pins: [PinState; PINS],
    sink: S,
}

impl<S: IoapicSink> Ioapic<S> {
    /// An IOAPIC after reset. `id` (4 bits) is the one in the MADT and in the IVRS handle.
    pub fn new(id: u8, sink: S) -> Self {
        Self {
            id: id & 0xf,
            index: 0,
            pins: [PinState::RESET; PINS],
            sink,
        }
    }

    /// The sink.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    /// The sink.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Reads `data.len()` bytes at `offset` of the window.
    ///
    /// Index and data can be read with 1, 2 or 4 bytes, aligned; everything else in the window reads
    /// as 0. Reading has no side effect.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset & !3 {
            INDEX => u32::from(self.index),
            DATA => self.read_register(self.index),
            _ => return,
        };
        let first = (offset & 3) as usize;
        if matches!(data.len(), 1 | 2 | 4) && first.is_multiple_of(data.len()) {
            data.copy_from_slice(&value.to_le_bytes()[first..first + data.len()]);
        }
    }

    /// Writes `data` at `offset` of the window.
    ///
    /// The index and EOI registers take the low byte of a 1, 2 or 4-byte write, the data register
    /// only 4 bytes at once; everything else is ignored.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (INDEX, &[byte] | &[byte, _] | &[byte, _, _, _]) => self.index = byte,
            (DATA, &[a, b, c, d]) => {
                self.write_register(self.index, u32::from_le_bytes([a, b, c, d]));
            }
            (EOI, &[vector] | &[vector, _] | &[vector, _, _, _]) => self.directed_eoi(vector),
            _ => {}
        }
    }

    fn read_register(&self, index: u8) -> u32 {
        match index {
            // ID and arbitration ID; the latter follows the former.
            0x00 | 0x02 => u32::from(self.id) << 24,
            0x01 => VERSION_REGISTER,
            _ => match rte_half(index) {
                Some((pin, false)) => self.read_rte(pin).into_bits() as u32,
                Some((pin, true)) => (self.read_rte(pin).into_bits() >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, index: u8, value: u32) {
        if index == 0x00 {
            self.id = (value >> 24) as u8 & 0xf;
        } else if let Some((pin, high)) = rte_half(index) {
            let old = self.pins[pin].rte;
            let value = u64::from(value);
            let new = if high {
                old & 0xffff_ffff | value << 32
            } else {
                old & !0xffff_ffff | value
            };
            self.write_rte(pin, Rte::from_bits(new & Rte::WRITABLE));
        }
    }

    fn write_rte(&mut self, pin: usize, new: Rte) {
        let state = &mut self.pins[pin];
        state.rte = new.into_bits();
        if !new.level() {
            // Drivers of IOAPICs without an EOI register clear Remote IRR this way.
            state.in_service = None;
            state.blocked = false;
        }
        if new.masked() {
            // The route stays: the interrupt may still be in service, and a driver that masks and
            // unmasks must not cost a new routing table each time.
            return;
        }
        if new.level() {
            self.evaluate(pin);
        } else {
            self.sink.route(pin as u8, None);
        }
    }

    fn read_rte(&self, pin: usize) -> Rte {
        let state = &self.pins[pin];
        Rte::from_bits(state.rte).with_remote_irr(state.in_service.is_some())
    }

    /// The redirection entry of `pin` as the guest reads it.
    ///
    /// # Errors
    /// When there is no such pin.
    pub fn rte(&self, pin: usize) -> Result<Rte, NoSuchPin> {
        if pin < PINS {
            Ok(self.read_rte(pin))
        } else {
            Err(NoSuchPin { pin })
        }
    }

    /// Sets the state of the line at `pin`: *asserted* or not. An edge pin fires when its line
    /// becomes asserted, a level pin while it is.
    ///
    /// The polarity bit has no say here: what counts as asserted on the wire is between the ACPI
    /// tables and the guest, and an emulated line has no voltage.
    ///
    /// # Errors
    /// When there is no such pin.
    pub fn set_line(&mut self, pin: usize, asserted: bool) -> Result<(), NoSuchPin> {
        let state = self.pins.get_mut(pin).ok_or(NoSuchPin { pin })?;
        let rising = asserted && !state.asserted;
        state.asserted = asserted;
        if !asserted {
            state.blocked = false;
        }
        if rising {
            let rte = Rte::from_bits(state.rte);
            if rte.level() {
                self.evaluate(pin);
            } else if !rte.masked() {
                // An edge at a masked pin is lost (82093AA §3.2.4, bit 16).
                self.fire(pin);
            }
        }
        Ok(())
    }

    /// Asserts and releases an edge-triggered line.
    ///
    /// # Errors
    /// When there is no such pin.
    pub fn pulse(&mut self, pin: usize) -> Result<(), NoSuchPin> {
        self.set_line(pin, true)?;
        self.set_line(pin, false)
    }

    /// A local APIC broadcast the EOI of `vector`: `KVM_EXIT_IOAPIC_EOI`. The vector is the one that
    /// was delivered, not that of a redirection entry. Pins whose line is still asserted fire again.
    pub fn eoi(&mut self, vector: u8) {
        self.end(|state| {
            state
                .in_service
                .is_some_and(|served| served.vector == vector)
        });
    }

    /// The guest wrote the EOI register: `vector` is that of redirection entries.
    fn directed_eoi(&mut self, vector: u8) {
        self.end(|state| {
            state.in_service.is_some() && Rte::from_bits(state.rte).vector() == vector
        });
    }

    fn end(&mut self, is_ended: impl Fn(&PinState) -> bool) {
        // In two passes, so that an interrupt that is sent by this EOI can't be ended by it.
        let mut ended = [false; PINS];
        for (ended, state) in ended.iter_mut().zip(&mut self.pins) {
            *ended = is_ended(state);
            if *ended {
                state.in_service = None;
            }
        }
        for pin in (0..PINS).filter(|&pin| ended[pin]) {
            self.evaluate(pin);
        }
    }

    /// The guest's interrupt remapping tables changed (the IOMMU processed an invalidation that
    /// concerns the IOAPIC's DeviceID, or was turned on or off).
    ///
    /// Re-resolves the routes of the unmasked level pins, in one batch, and repeats the requests
    /// that were blocked and would not be now. A pin in service keeps its route until its EOI,
    /// since that EOI still comes from the old CPU with the old vector.
    pub fn tables_changed(&mut self) {
        let mut routed = false;
        let mut unblocked = [false; PINS];
        for (pin, unblocked) in unblocked.iter_mut().enumerate() {
            let state = self.pins[pin];
            let rte = Rte::from_bits(state.rte);
            if rte.masked() || !rte.level() || state.in_service.is_some() {
                continue;
            }
            let target = self.sink.resolve(pin as u8, rte.message());
            *unblocked = state.blocked && target.is_some();
            let needs_eoi = target.filter(|delivery| InService::of(delivery).is_some());
            self.sink.route(pin as u8, needs_eoi.as_ref());
            routed = true;
        }
        if routed {
            self.sink.settle();
        }
        // Their routes are in force by now, so sending costs no table for each.
        for pin in (0..PINS).filter(|&pin| unblocked[pin]) {
            self.evaluate(pin);
        }
    }

    /// Fires a level pin if there is something to fire.
    fn evaluate(&mut self, pin: usize) {
        let state = &self.pins[pin];
        let rte = Rte::from_bits(state.rte);
        if rte.level() && !rte.masked() && state.asserted && state.in_service.is_none() {
            self.fire(pin);
        }
    }

    fn fire(&mut self, pin: usize) {
        let number = pin as u8;
        let rte = Rte::from_bits(self.pins[pin].rte);
        let delivery = self.sink.request(number, rte.message());
        let state = &mut self.pins[pin];
        state.blocked = rte.level() && delivery.is_none();
        let Some(delivery) = delivery else { return };
        state.in_service = if rte.level() {
            InService::of(&delivery)
        } else {
            None
        };
        // What is remembered is what is routed and what is sent: one answer of the IOMMU, used
        // three times.
        if state.in_service.is_some() {
            self.sink.route(number, Some(&delivery));
        }
        self.sink.inject(number, &delivery);
    }

    /// Back to the state after reset; lines keep their state, the devices drive them.
    pub fn reset(&mut self) {
        self.index = 0;
        for pin in 0..PINS {
            let asserted = self.pins[pin].asserted;
            self.pins[pin] = PinState {
                asserted,
                ..PinState::RESET
            };
            self.sink.route(pin as u8, None);
        }
        self.sink.settle();
    }

    /// Everything that a restore needs.
    pub fn save(&self) -> IoapicState {
        IoapicState {
            version: IoapicState::VERSION,
            id: self.id,
            index: self.index,
            pins: self.pins,
        }
    }

    /// Takes over saved state, and routes the interrupts that were in service.
    ///
    /// Nothing is sent: an interrupt in service is in the saved local APIC. Call
    /// [`tables_changed`](Self::tables_changed) once the IOMMU is restored, too.
    ///
    /// # Errors
    /// When the state is of another version, or impossible; the IOAPIC is then unchanged.
    pub fn restore(&mut self, state: &IoapicState) -> Result<(), StateError> {
        state.check()?;
        self.id = state.id;
        self.index = state.index;
        self.pins = state.pins;
        for pin in 0..PINS {
            let served = self.pins[pin].in_service.map(|served| served.delivery());
            self.sink.route(pin as u8, served.as_ref());
        }
        self.sink.settle();
        Ok(())
    }
}

/// Register index → pin and whether it is the high half.
fn rte_half(index: u8) -> Option<(usize, bool)> {
    let word = usize::from(index.checked_sub(0x10)?);
    (word < PINS * 2).then_some((word / 2, word % 2 == 1))
}
