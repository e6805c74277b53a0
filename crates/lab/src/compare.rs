//! Where the two sides differ.

use std::fmt;

use amdvi_regs::dte::Dte;

use crate::case::{Case, Message, Observation, Observed, Outcome, Refusal, Step};
use crate::layout::Device;

/// One difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    /// The case.
    pub case: &'a Case,
    /// What our side did in the whole case.
    pub ours: &'a Observed,
    /// What QEMU did in the whole case.
    pub theirs: &'a Observed,
    /// What differs.
    pub place: Place,
}

/// What can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What became of a step.
    Outcome(usize),
    /// Both sides deliver a step's interrupt, and this differs.
    Delivery(usize, Field),
    /// The event codes that a step logged.
    Events(usize),
    /// Both sides log the same kinds of events in a step, and this differs in one of them.
    Record(usize, usize, RecordField),
    /// A bit of the status register at the end.
    Status(u32),
    /// A word that COMPLETION_WAITs store to.
    Store(usize),
}

/// What can differ in a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Destination.
    Dest,
    /// Destination mode.
    Logical,
    /// Delivery mode.
    Mode,
    /// Vector.
    Vector,
    /// Trigger mode.
    Level,
    /// Redirection hint.
    Hint,
}

/// What can differ in an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordField {
    /// DeviceID, \[15:0\]; reserved in the events of commands.
    DeviceId,
    /// PASID or DomainID, \[47:32\] and \[19:16\].
    Domain,
    /// \[59:48\], and what is reserved below.
    Flags,
    /// The second word.
    Address,
}

impl RecordField {
    const ALL: [Self; 4] = [Self::DeviceId, Self::Domain, Self::Flags, Self::Address];

    /// The field's bits in an event.
    pub const fn of(self, [low, high]: [u64; 2]) -> u64 {
        match self {
            Self::DeviceId => low & 0xffff,
            Self::Domain => low & 0xffff_000f_0000,
            Self::Flags => low & 0x0fff_0000_fff0_0000,
            Self::Address => high,
        }
    }
}

/// The fields in which two deliveries differ.
fn fields(a: Message, b: Message) -> impl Iterator<Item = Field> {
    [
        (Field::Dest, a.dest != b.dest),
        (Field::Logical, a.logical != b.logical),
        (Field::Mode, a.mode != b.mode),
        (Field::Vector, a.vector != b.vector),
        (Field::Level, a.level != b.level),
        (Field::Hint, a.hint != b.hint),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
}

impl<'a> Difference<'a> {
    /// All differences of a case.
    pub fn all(case: &'a Case, ours: &'a Observed, theirs: &'a Observed) -> Vec<Self> {
        let mut places = Vec::new();
        for (i, (a, b)) in ours.steps.iter().zip(&theirs.steps).enumerate() {
            match (a.outcome, b.outcome) {
                (Outcome::Delivered(a), Outcome::Delivered(b)) => {
                    places.extend(fields(a, b).map(|field| Place::Delivery(i, field)));
                }
                // What a PC has below 4 GiB besides RAM, ours doesn't have.
                _ if matches!(a.refusal, Some(Refusal::NoMemory(0..0x1_0000_0000))) => {}
                (a, b) if a != b => places.push(Place::Outcome(i)),
                _ => {}
            }
            if a.events != b.events {
                places.push(Place::Events(i));
                continue;
            }
            for (n, (a, b)) in a.records.iter().zip(&b.records).enumerate() {
                let differing = RecordField::ALL
                    .into_iter()
                    .filter(|f| f.of(*a) != f.of(*b));
                places.extend(differing.map(|field| Place::Record(i, n, field)));
            }
        }
        let status = ours.status ^ theirs.status;
        places.extend(
            (0..64)
                .filter(|bit| status >> bit & 1 != 0)
                .map(Place::Status),
        );
        for (i, (a, b)) in ours.stores.iter().zip(&theirs.stores).enumerate() {
            if a != b {
                places.push(Place::Store(i));
            }
        }
        let difference = |place| Self {
            case,
            ours,
            theirs,
            place,
        };
        places.into_iter().map(difference).collect()
    }

    /// The step in which the sides differ.
    pub fn step(&self) -> Option<(usize, &'a Step)> {
        match self.place {
            Place::Outcome(i) | Place::Delivery(i, _) | Place::Events(i) | Place::Record(i, ..) => {
                Some((i, &self.case.steps[i]))
            }
            Place::Status(_) | Place::Store(_) => None,
        }
    }

    /// What our side did in that step.
    pub fn ours(&self) -> Option<&'a Observation> {
        self.step().map(|(i, _)| &self.ours.steps[i])
    }

    /// What QEMU did in that step.
    pub fn theirs(&self) -> Option<&'a Observation> {
        self.step().map(|(i, _)| &self.theirs.steps[i])
    }

    /// Both outcomes, if it is the outcome that differs.
    pub fn outcomes(&self) -> Option<(Outcome, Outcome)> {
        match self.place {
            Place::Outcome(i) => Some((self.ours.steps[i].outcome, self.theirs.steps[i].outcome)),
            _ => None,
        }
    }

    /// Both lists of events, if it is the events that differ.
    pub fn events(&self) -> Option<(&'a [u8], &'a [u8])> {
        match self.place {
            Place::Events(i) => Some((&self.ours.steps[i].events, &self.theirs.steps[i].events)),
            _ => None,
        }
    }

    /// The event and both sides' words of it, if it is in an event that they differ.
    pub fn records(&self) -> Option<(u8, RecordField, [u64; 2], [u64; 2])> {
        let Place::Record(i, n, field) = self.place else {
            return None;
        };
        let (ours, theirs) = (&self.ours.steps[i], &self.theirs.steps[i]);
        Some((ours.events[n], field, ours.records[n], theirs.records[n]))
    }

    /// Who sends the request of the step, and its DTE at that time.
    pub fn requester(&self) -> Option<(Device, Dte)> {
        let (i, step) = self.step()?;
        let device = match *step {
            Step::Dma { device, .. } => device,
            Step::Msi { .. } => Device::Edu,
            Step::Pin { .. } => Device::Ioapic,
            Step::Store { .. } | Step::Commands(_) | Step::Control(_) => return None,
        };
        Some((device, self.case.dte(device, i)))
    }

    /// The kind of the difference: the same for differences that have likely the same cause.
    pub fn kind(&self) -> String {
        let side = |observation: &Observation| {
            let outcome = head(&format!("{:?}", observation.outcome));
            let refusal = observation
                .refusal
                .map(|refusal| head(&format!("{refusal:?}")));
            format!(
                "{outcome} {} {:?}",
                refusal.unwrap_or_default(),
                observation.events
            )
        };
        let what = match self.place {
            Place::Outcome(_) => "outcome".into(),
            Place::Events(_) => "events".into(),
            Place::Record(i, n, field) => {
                let code = self.ours.steps[i].events[n];
                return format!("{field:?} of event {code}");
            }
            Place::Delivery(_, field) => format!("{field:?}"),
            Place::Status(bit) => format!("status bit {bit}"),
            Place::Store(_) => "store".into(),
        };
        match (self.ours(), self.theirs()) {
            (Some(ours), Some(theirs)) => {
                format!("{what}: ours {} / theirs {}", side(ours), side(theirs))
            }
            _ => what,
        }
    }

    /// Why our side refused the request of the step.
    pub fn refusal(&self) -> Option<Refusal> {
        self.ours()?.refusal
    }
}

/// A value's debug form without its numbers.
fn head(text: &str) -> String {
    let end = text.find(|c: char| c == '{' || c.is_ascii_digit());
    let head = &text[..end.unwrap_or(text.len())];
    head.trim_end_matches(['(', ' ']).into()
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Outcome(i) | Place::Delivery(i, _) | Place::Events(i) | Place::Record(i, ..) => {
                writeln!(f, "{:?}: {}", self.place, self.case.steps[i])?;
                writeln!(f, "    ours:   {}", self.ours.steps[i])?;
                write!(f, "    theirs: {}", self.theirs.steps[i])
            }
            Place::Status(bit) => write!(
                f,
                "status bit {bit} at the end: ours {:#x}, theirs {:#x}",
                self.ours.status, self.theirs.status
            ),
            Place::Store(i) => write!(
                f,
                "stored word {i}: ours {:#x}, theirs {:#x}",
                self.ours.stores[i], self.theirs.stores[i]
            ),
        }
    }
}
