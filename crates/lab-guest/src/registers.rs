//! The test endpoint's registers in BAR 0, whoever owns the function.

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::dma::{LIMIT, channel, pasid, status};
use amdvi_guest::endpoint::{BAR0_SIZE, ID_VALUE, reg};
use anyhow::{Context, Result, bail, ensure};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::vfio::Shared;

const BAR0: u32 = 0;
/// Patience with an operation.
const DMA: Duration = Duration::from_secs(20);
/// How often one looks whether it has ended.
const LOOK: Duration = Duration::from_millis(1);

/// BAR 0.
pub(crate) enum Registers {
    /// By reading and writing vfio-pci's file.
    Vfio(Shared),
    /// In this process's own address space.
    Mapped(MmapRegion),
}

/// An operation of a DMA channel, see [`amdvi_guest::endpoint::dma`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Operation {
    /// One of [`amdvi_guest::endpoint::dma::op`].
    pub(crate) code: u32,
    /// IOVA that it reads from.
    pub(crate) source: u64,
    /// IOVA that it writes to.
    pub(crate) target: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// The pattern's seed.
    pub(crate) operand: u64,
    /// The PASID that its requests carry.
    pub(crate) pasid: Option<u32>,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Bytes of the transactions that succeeded.
    pub(crate) bytes: u64,
    /// Where and why it was aborted, if it was: an IOVA, and one of
    /// [`amdvi_guest::endpoint::dma::reason`].
    pub(crate) aborted: Option<(u64, u32)>,
    /// See [`channel::RESULT`].
    pub(crate) result: u64,
}

impl Registers {
    /// Maps them through sysfs. Whoever owns the function must have enabled its memory.
    pub(crate) fn map(function: &str) -> Result<Self> {
        let path = format!("/sys/bus/pci/devices/{function}/resource0");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("open {path}"))?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), BAR0_SIZE as usize)
            .with_context(|| format!("mmap of {path}"))?;
        let registers = Self::Mapped(region);
        registers.identify()?;
        Ok(registers)
    }

    /// Sees whether they are what they should be.
    pub(crate) fn identify(&self) -> Result<()> {
        let id = self.get(reg::ID)?;
        ensure!(id == ID_VALUE, "the ID register reads {id:#x}");
        Ok(())
    }

    pub(crate) fn get(&self, register: u64) -> Result<u32> {
        match self {
            Self::Vfio(device) => {
                let mut word = [0; 4];
                device.read(BAR0, register, &mut word)?;
                Ok(u32::from_le_bytes(word))
            }
            Self::Mapped(region) => Ok(u32::from_le(
                region
                    .get_atomic_ref::<AtomicU32>(register as usize)?
                    .load(Ordering::Acquire),
            )),
        }
    }

    pub(crate) fn set(&self, register: u64, value: u32) -> Result<()> {
        match self {
            Self::Vfio(device) => device.write(BAR0, register, &value.to_le_bytes()),
            Self::Mapped(region) => {
                region
                    .get_atomic_ref::<AtomicU32>(register as usize)?
                    .store(value.to_le(), Ordering::Release);
                Ok(())
            }
        }
    }

    /// A 64-bit counter that does not move meanwhile.
    pub(crate) fn get64(&self, register: u64) -> Result<u64> {
        let low = self.get(register)?;
        Ok(u64::from(self.get(register + 4)?) << 32 | u64::from(low))
    }

    pub(crate) fn set64(&self, register: u64, value: u64) -> Result<()> {
        self.set(register, value as u32)?;
        self.set(register + 4, (value >> 32) as u32)
    }

    /// Lets the first DMA channel carry out an operation, and waits for its end.
    pub(crate) fn run(&self, operation: &Operation) -> Result<Ended> {
        let length = operation.length;
        ensure!(
            length > 0 && length <= u64::from(LIMIT),
            "a DMA channel moves {LIMIT:#x} bytes at a time, not {length:#x}"
        );
        let at = |register| reg::DMA_CHANNEL_0 + register;
        self.set64(at(channel::SOURCE), operation.source)?;
        self.set64(at(channel::TARGET), operation.target)?;
        self.set(at(channel::LENGTH), length as u32)?;
        self.set64(at(channel::OPERAND), operation.operand)?;
        self.set(at(channel::INTERRUPT), 0)?;
        let carried = operation.pasid.map_or(0, |pasid| pasid::ON | pasid);
        self.set(at(channel::PASID), carried)?;
        self.set(at(channel::OPERATION), operation.code)?;
        let until = Instant::now() + DMA;
        loop {
            let aborted = match self.get(at(channel::STATUS))? {
                status::DONE => None,
                status::ABORTED => Some((
                    self.get64(at(channel::FAULT_IOVA))?,
                    self.get(at(channel::REASON))?,
                )),
                status::RUNNING if Instant::now() < until => {
                    std::thread::sleep(LOOK);
                    continue;
                }
                status => bail!(
                    "{operation:x?} has status {status} after {:#x} bytes",
                    self.get64(at(channel::DONE))?
                ),
            };
            return Ok(Ended {
                bytes: self.get64(at(channel::DONE))?,
                aborted,
                result: self.get64(at(channel::RESULT))?,
            });
        }
    }
}
