//! A case: tables, a few steps, and what either side made of them. Plain data.

use std::collections::BTreeMap;
use std::fmt;

use amdvi_device::Abort;
use amdvi_irt::{Delivery, DestMode, FaultReason, Trigger};
use amdvi_regs::command::Command;
use amdvi_regs::dte::Dte;
use amdvi_regs::mmio::Control;
use amdvi_regs::msi::{DeliveryMode, Msi, MsiAddress, MsiData};

use crate::layout::{DEVICE_TABLE, Device};

/// What a case is about; all of it follows from its seed and number.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its number in the run.
    pub number: u64,
    /// The control register.
    pub control: Control,
    /// Size field of the device table's base register: pages − 1.
    pub device_table_size: u64,
    /// Length field of the command ring: 8–12.
    pub ring_length: u64,
    /// Byte offset in the command ring at which head and tail start.
    pub ring_start: u64,
    /// Memory before the first step: 64-bit words by GPA. All other memory is 0.
    pub memory: BTreeMap<u64, u64>,
    /// What happens.
    pub steps: Vec<Step>,
}

/// One thing that happens in a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The guest's CPU stores a 64-bit word.
    Store {
        /// Where.
        gpa: u64,
        /// What.
        value: u64,
    },
    /// The guest's CPU puts commands into the ring and moves the tail.
    Commands(Vec<[u64; 2]>),
    /// The guest writes the control register.
    Control(Control),
    /// Four bytes of DMA.
    Dma {
        /// Who.
        device: Device,
        /// The address, a multiple of 4.
        iova: u64,
        /// Write or read.
        write: bool,
        /// Where the generator meant it to land: looked at when our side aborts.
        target: u64,
    },
    /// `edu` sends its MSI.
    Msi {
        /// Address.
        address: u32,
        /// Data; the upper half of the message is 0.
        data: u16,
    },
    /// An edge on an IOAPIC pin.
    Pin {
        /// Pin, 3–23.
        pin: u8,
        /// The redirection table entry, edge-triggered and unmasked.
        rte: u64,
    },
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to observe.
    Nothing,
    /// DMA reached this GPA.
    Landed(u64),
    /// DMA reached memory, but not where it was looked for.
    Elsewhere,
    /// DMA was aborted, or there is nothing where it went. A read that found other data than
    /// expected counts here: the devices can't tell.
    Aborted,
    /// DMA into the MSI window: an interrupt request.
    Interrupt,
    /// An interrupt was delivered.
    Delivered(Message),
    /// An interrupt was not delivered.
    Blocked,
    /// Head of the command ring after commands or a write of the control register.
    Head(u64),
}

impl Outcome {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "store",
            Self::Landed(_) => "DMA landed at the same address",
            Self::Elsewhere => "DMA landed elsewhere",
            Self::Aborted => "DMA aborted",
            Self::Interrupt => "DMA is an interrupt",
            Self::Delivered(_) => "the same interrupt delivered",
            Self::Blocked => "interrupt blocked",
            Self::Head(_) => "head of the command ring",
        }
    }
}

/// An interrupt as it is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Destination APIC ID.
    pub dest: u32,
    /// Logical destination.
    pub logical: bool,
    /// Delivery mode.
    pub mode: DeliveryMode,
    /// Vector.
    pub vector: u8,
    /// Level-triggered.
    pub level: bool,
    /// The redirection hint of the message, which QEMU also sets for IRTE.RqEoi.
    pub hint: bool,
}

impl Message {
    /// The message in the form that QEMU hands to its APICs: destination\[31:8\] in the upper half
    /// of the address.
    pub fn from_msi(address: u64, data: u32) -> Self {
        let low = MsiAddress::from_bits(address as u32);
        let data = MsiData::from_bits(data);
        Self {
            dest: u32::from(low.dest()) | (address >> 32) as u32 & 0xffff_ff00,
            logical: low.logical(),
            mode: DeliveryMode::from_bits(data.delivery_mode()),
            vector: data.vector(),
            level: data.level(),
            hint: low.redirection_hint(),
        }
    }
}

impl From<Delivery> for Message {
    fn from(delivery: Delivery) -> Self {
        Self {
            dest: delivery.dest,
            logical: delivery.dest_mode == DestMode::Logical,
            mode: delivery.delivery_mode,
            vector: delivery.vector,
            level: delivery.trigger == Trigger::Level,
            hint: delivery.redirection_hint || delivery.rq_eoi,
        }
    }
}

/// What was seen of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What became of it.
    pub outcome: Outcome,
    /// The codes of the events that it logged.
    pub events: Vec<u8>,
    /// The words of each.
    pub records: Vec<[u64; 2]>,
    /// Why our side refused.
    pub refusal: Option<Refusal>,
}

/// Why our side refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The IOMMU aborts DMA.
    Dma(Abort),
    /// The IOMMU blocks an interrupt.
    Interrupt(FaultReason),
    /// There is no memory where the DMA goes.
    NoMemory(u64),
}

/// What was seen of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// One per step.
    pub steps: Vec<Observation>,
    /// The status register at the end.
    pub status: u64,
    /// The words at [`STORE`](crate::layout::STORE) at the end.
    pub stores: Vec<u64>,
    /// What the other side traced, for people.
    pub trace: Vec<String>,
}

impl Case {
    /// The device's DTE before step `step`, stores of earlier steps applied.
    pub fn dte(&self, device: Device, step: usize) -> Dte {
        let words = [0, 8, 16, 24].map(|offset| self.word(device.dte() + offset, step));
        Dte::from_words(words)
    }

    /// The 64-bit word at `gpa` before step `step`.
    pub fn word(&self, gpa: u64, step: usize) -> u64 {
        self.steps[..step]
            .iter()
            .rev()
            .find_map(|step| match step {
                Step::Store { gpa: at, value } if *at == gpa => Some(*value),
                _ => None,
            })
            .or_else(|| self.memory.get(&gpa).copied())
            .unwrap_or(0)
    }

    /// The control register before step `step`.
    pub fn control(&self, step: usize) -> Control {
        let written = self.steps[..step].iter().rev().find_map(|step| match step {
            Step::Control(control) => Some(*control),
            _ => None,
        });
        written.unwrap_or(self.control)
    }

    /// The message that a step sends, and who sends it.
    pub fn message(&self, step: usize) -> Option<(Device, Msi)> {
        match self.steps[step] {
            Step::Msi { address, data } => Some((
                Device::Edu,
                Msi {
                    address: address.into(),
                    data: data.into(),
                },
            )),
            Step::Pin { rte, .. } => Some((Device::Ioapic, pin_message(rte))),
            _ => None,
        }
    }
}

/// The message of an edge-triggered IOAPIC pin: destination, destination mode, delivery mode and
/// vector stand where an MSI has them.
pub fn pin_message(rte: u64) -> Msi {
    Msi {
        address: 0xfee0_0000 | (rte >> 56) << 12 | (rte >> 11 & 1) << 2,
        data: (rte & 0x7ff) as u32,
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "case {}", self.number)?;
        writeln!(f, "  control {:#x}", self.control.into_bits())?;
        writeln!(
            f,
            "  device table of {} pages; ring of 2^{} commands, from {:#x}",
            self.device_table_size + 1,
            self.ring_length,
            self.ring_start
        )?;
        for device in Device::ALL {
            let dte = self.dte(device, 0);
            if dte.words() != [0; 4] {
                writeln!(f, "  DTE {device:?} {}: {:#x?}", device.id(), dte.words())?;
            }
        }
        for (gpa, value) in &self.memory {
            if !(DEVICE_TABLE..DEVICE_TABLE + 0x2000).contains(gpa) {
                writeln!(f, "  [{gpa:#x}] = {value:#018x}")?;
            }
        }
        for (i, step) in self.steps.iter().enumerate() {
            writeln!(f, "  step {i}: {step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store { gpa, value } => write!(f, "store [{gpa:#x}] = {value:#018x}"),
            Self::Commands(list) => {
                write!(f, "{} commands:", list.len())?;
                for &words in list {
                    write!(f, "\n      {words:x?} {}", Command::decode(words))?;
                }
                Ok(())
            }
            Self::Control(control) => write!(f, "control {:#x}", control.into_bits()),
            Self::Dma {
                device,
                iova,
                write,
                target,
            } => write!(
                f,
                "{device:?} {} {iova:#x}, meant for {target:#x}",
                if *write { "writes" } else { "reads" }
            ),
            Self::Msi { address, data } => write!(f, "MSI {address:#x} {data:#x}"),
            Self::Pin { pin, rte } => write!(f, "IOAPIC pin {pin}, entry {rte:#x}"),
        }
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            Outcome::Landed(gpa) => write!(f, "landed at {gpa:#x}")?,
            Outcome::Head(head) => write!(f, "head {head:#x}")?,
            Outcome::Delivered(message) => write!(
                f,
                "delivered {} vector {:#x} to {} {:#x}{}{}",
                message.mode,
                message.vector,
                if message.logical {
                    "logical"
                } else {
                    "physical"
                },
                message.dest,
                if message.level { ", level" } else { "" },
                if message.hint { ", hint" } else { "" },
            )?,
            other => write!(f, "{other:?}")?,
        }
        if let Some(refusal) = self.refusal {
            write!(f, " ({refusal:?})")?;
        }
        if !self.events.is_empty() {
            write!(f, "; events")?;
            for [low, high] in &self.records {
                write!(f, " {low:016x}:{high:x}")?;
            }
        }
        Ok(())
    }
}

/// The code of an event log entry, from its first word.
pub const fn event_code(word: u64) -> u8 {
    (word >> 60) as u8
}
