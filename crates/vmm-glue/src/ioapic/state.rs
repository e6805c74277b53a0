//! What of an IOAPIC is saved, and what a restore accepts.

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::msi::DeliveryMode;
use thiserror::Error;

use super::{PINS, Rte};

/// A level interrupt that was accepted by a local APIC and has had no EOI: the *remapped* one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct InService {
    /// The vector that the EOI will carry.
    pub vector: u8,
    /// Destination APIC ID.
    pub dest: u32,
    /// Logical destination mode.
    pub logical: bool,
    /// Lowest priority instead of fixed.
    pub lowest_priority: bool,
    /// IRTE.RqEoi.
    pub rq_eoi: bool,
}

impl InService {
    /// What has to be remembered of `delivery`; `None` when it needs no EOI: edge triggered, or of
    /// a type that a local APIC treats as edge whatever the trigger says.
    pub(super) fn of(delivery: &Delivery) -> Option<Self> {
        let lowest_priority = match delivery.delivery_mode {
            DeliveryMode::Fixed => false,
            DeliveryMode::LowestPriority => true,
            _ => return None,
        };
        (delivery.trigger == Trigger::Level).then_some(Self {
            vector: delivery.vector,
            dest: delivery.dest,
            logical: delivery.dest_mode == DestMode::Logical,
            lowest_priority,
            rq_eoi: delivery.rq_eoi,
        })
    }

    /// The delivery again.
    pub fn delivery(&self) -> Delivery {
        Delivery {
            dest: self.dest,
            dest_mode: if self.logical {
                DestMode::Logical
            } else {
                DestMode::Physical
            },
            delivery_mode: if self.lowest_priority {
                DeliveryMode::LowestPriority
            } else {
                DeliveryMode::Fixed
            },
            vector: self.vector,
            trigger: Trigger::Level,
            assert: true,
            redirection_hint: false,
            rq_eoi: self.rq_eoi,
        }
    }
}

/// One pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PinState {
    /// The software-written bits of the redirection entry.
    pub rte: u64,
    /// The line is asserted.
    pub asserted: bool,
    /// The IOMMU blocked the last request of this level pin; it is made again when the tables
    /// change.
    pub blocked: bool,
    /// Remote IRR is 1 exactly when this is present.
    pub in_service: Option<InService>,
}

impl PinState {
    pub(super) const RESET: Self = Self {
        rte: Rte::RESET.into_bits(),
        asserted: false,
        blocked: false,
        in_service: None,
    };
}

/// Everything that an IOAPIC holds, version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IoapicState {
    /// Layout version, [`IoapicState::VERSION`].
    pub version: u32,
    /// IOAPIC ID, 0–15.
    pub id: u8,
    /// The index register.
    pub index: u8,
    /// The pins, by number.
    pub pins: [PinState; PINS],
}

/// Why saved state was refused. Nothing is changed then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// Saved by an incompatible version of this crate.
    #[error(
        "IOAPIC state has version {found}; this version restores version {}",
        IoapicState::VERSION
    )]
    Version {
        /// The version in the state.
        found: u32,
    },
    /// The ID has four bits.
    #[error("IOAPIC state has ID {id}; 0 to 15 is possible")]
    Id {
        /// The ID in the state.
        id: u8,
    },
    /// A state that no sequence of accesses leads to.
    #[error("IOAPIC state, pin {pin}: {problem}")]
    Pin {
        /// The pin.
        pin: usize,
        /// What is impossible.
        problem: &'static str,
    },
}

impl IoapicState {
    /// The layout version that this crate writes.
    pub const VERSION: u32 = 1;

    pub(super) fn check(&self) -> Result<(), StateError> {
        if self.version != Self::VERSION {
            return Err(StateError::Version {
                found: self.version,
            });
        }
        if self.id > 15 {
            return Err(StateError::Id { id: self.id });
        }
        for (pin, state) in self.pins.iter().enumerate() {
            let rte = Rte::from_bits(state.rte);
            let problem = if state.rte & !Rte::WRITABLE != 0 {
                "reserved or read-only bits are set in the redirection entry"
            } else if state.in_service.is_some() && !rte.level() {
                "an edge-triggered pin can't wait for an EOI"
            } else if state.blocked && (!rte.level() || !state.asserted) {
                "only an asserted level-triggered pin can be blocked"
            } else if state.blocked && state.in_service.is_some() {
                "a pin can't be blocked and in service"
            } else {
                continue;
            };
            return Err(StateError::Pin { pin, problem });
        }
        Ok(())
    }
}
