//! The test endpoint, as a driver sees it.

use std::fmt;
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::dma::{LIMIT, channel, op, status};
use amdvi_guest::endpoint::{
    BAR0_SIZE, DEVICE_ID, DMA_BUFFER_SIZE, ID_VALUE, VENDOR_ID, outcome, reg,
};
use amdvi_lab_guest::plan::Target;
use amdvi_lab_init::{PciId, pci};
use anyhow::{Context, Result, bail, ensure};

use crate::vfio::{Device, Shared};

const BAR0: u32 = 0;
/// Patience with a transfer.
const DMA: Duration = Duration::from_secs(20);
/// How often one looks whether it has ended.
const LOOK: Duration = Duration::from_millis(1);

/// An endpoint that is owned through vfio-pci.
pub(crate) struct Endpoint {
    device: Shared,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dma {
    Done,
    Aborted,
}

impl fmt::Display for Dma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "passed",
            Self::Aborted => "was aborted",
        })
    }
}

/// Addresses of the test endpoints.
pub(crate) fn functions() -> Vec<String> {
    pci::find(PciId {
        vendor: VENDOR_ID,
        device: DEVICE_ID,
    })
}

impl Endpoint {
    /// Binds the endpoint to vfio-pci and takes it.
    pub(crate) fn open(target: Target) -> Result<Self> {
        let functions = functions();
        let function = functions.get(target.endpoint).with_context(|| {
            format!(
                "there are {} test endpoints ({VENDOR_ID:04x}:{DEVICE_ID:04x}), and number {} is \
                 asked for",
                functions.len(),
                target.endpoint
            )
        })?;
        let driver = format!("/sys/bus/pci/devices/{function}/driver");
        let bound = std::fs::read_link(driver).is_ok_and(|driver| driver.ends_with("vfio-pci"));
        if !bound {
            pci::bind(function).context("bind to vfio-pci")?;
        }
        let device = Device::open(function, target.backend)?.share();
        ensure!(
            device.region_size(BAR0) == u64::from(BAR0_SIZE),
            "BAR 0 has {} bytes",
            device.region_size(BAR0)
        );
        let endpoint = Self { device };
        let id = endpoint.get(reg::ID)?;
        ensure!(id == ID_VALUE, "the ID register reads {id:#x}");
        Ok(endpoint)
    }

    pub(crate) fn device(&self) -> &Shared {
        &self.device
    }

    pub(crate) fn function(&self) -> &str {
        self.device.function()
    }

    pub(crate) fn get(&self, register: u64) -> Result<u32> {
        let mut word = [0; 4];
        self.device.read(BAR0, register, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    pub(crate) fn set(&self, register: u64, value: u32) -> Result<()> {
        self.device.write(BAR0, register, &value.to_le_bytes())
    }

    /// A 64-bit counter that does not move meanwhile.
    pub(crate) fn get64(&self, register: u64) -> Result<u64> {
        let low = self.get(register)?;
        Ok(u64::from(self.get(register + 4)?) << 32 | u64::from(low))
    }

    fn set64(&self, register: u64, value: u64) -> Result<()> {
        self.set(register, value as u32)?;
        self.set(register + 4, (value >> 32) as u32)
    }

    /// Sends `count` MSI-X vectors from `first` on.
    pub(crate) fn fire(&self, first: u32, count: u32) -> Result<()> {
        self.set(reg::FIRE_START, first)?;
        self.set(reg::FIRE_COUNT, count)
    }

    /// Raises or clears the interrupt condition of INTA#.
    pub(crate) fn set_intx(&self, raised: bool) -> Result<()> {
        self.set(reg::INTX, u32::from(raised))
    }

    /// Sends a message of the endpoint's own making; one of [`outcome`].
    pub(crate) fn message(&self, address: u64, data: u32) -> Result<u32> {
        self.set64(reg::RAW_ADDRESS, address)?;
        self.set(reg::RAW_DATA, data)?;
        self.get(reg::OUTCOME)
    }

    /// Whether the last message has left the IOMMU as an interrupt.
    pub(crate) const fn delivered(outcome: u32) -> bool {
        matches!(outcome, outcome::DELIVERED | outcome::POSTED)
    }

    fn transfer(&self, iova: u64, length: usize, command: u32) -> Result<Dma> {
        ensure!(
            length <= DMA_BUFFER_SIZE as usize,
            "the endpoint transfers {DMA_BUFFER_SIZE} bytes at a time, not {length}"
        );
        self.set64(reg::DMA_IOVA, iova)?;
        self.set(reg::DMA_LENGTH, length as u32)?;
        self.set(reg::DMA_COMMAND, command)?;
        let until = Instant::now() + DMA;
        loop {
            match self.get(reg::DMA_STATUS)? {
                1 => return Ok(Dma::Done),
                2 => return Ok(Dma::Aborted),
                status if Instant::now() > until => {
                    bail!("DMA at {iova:#x} does not end: DMA_STATUS is {status}")
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }

    /// Lets the first DMA channel write the pattern of `seed`, see [`amdvi_guest::endpoint::dma`].
    /// How far it came: the bytes, and the IOVA that was aborted if it did not come to the end.
    pub(crate) fn dma_fill(&self, iova: u64, length: u64, seed: u64) -> Result<(u64, Option<u64>)> {
        ensure!(
            length > 0 && length <= u64::from(LIMIT),
            "a DMA channel fills {LIMIT:#x} bytes at a time, not {length:#x}"
        );
        let at = |register| reg::DMA_CHANNEL_0 + register;
        self.set64(at(channel::TARGET), iova)?;
        self.set(at(channel::LENGTH), length as u32)?;
        self.set64(at(channel::OPERAND), seed)?;
        self.set(at(channel::INTERRUPT), 0)?;
        self.set(at(channel::PASID), 0)?;
        self.set(at(channel::OPERATION), op::FILL)?;
        let until = Instant::now() + DMA;
        loop {
            match self.get(at(channel::STATUS))? {
                status::DONE => return Ok((self.get64(at(channel::DONE))?, None)),
                status::ABORTED => {
                    let fault = self.get64(at(channel::FAULT_IOVA))?;
                    return Ok((self.get64(at(channel::DONE))?, Some(fault)));
                }
                status::RUNNING if Instant::now() < until => std::thread::sleep(LOOK),
                status => bail!(
                    "a fill of {length:#x} bytes at {iova:#x} has status {status} after {} bytes",
                    self.get64(at(channel::DONE))?
                ),
            }
        }
    }

    /// Lets the endpoint write to memory.
    pub(crate) fn dma_write(&self, iova: u64, data: &[u8]) -> Result<Dma> {
        self.device.write(BAR0, reg::DMA_BUFFER, data)?;
        self.transfer(iova, data.len(), 2)
    }

    /// Lets the endpoint read from memory.
    pub(crate) fn dma_read(&self, iova: u64, data: &mut [u8]) -> Result<Dma> {
        let ended = self.transfer(iova, data.len(), 1)?;
        self.device.read(BAR0, reg::DMA_BUFFER, data)?;
        Ok(ended)
    }

    /// Lets DMA carry another DeviceID.
    pub(crate) fn set_requester(&self, requester: u16) -> Result<()> {
        self.set(reg::DMA_REQUESTER, u32::from(requester))
    }

    /// The DeviceID that DMA carries.
    pub(crate) fn requester(&self) -> Result<u16> {
        Ok(self.get(reg::DMA_REQUESTER)? as u16)
    }

    /// Writes to a page for some time; how many writes there were, and how many were aborted.
    pub(crate) fn flood(&self, iova: u64, time: Duration) -> Result<(u64, u64)> {
        self.set64(reg::DMA_IOVA, iova)?;
        self.set(reg::DMA_STORM_BYTES, 4096)?;
        self.set(reg::DMA_STORM, 1)?;
        std::thread::sleep(time);
        self.set(reg::DMA_STORM, 0)?;
        let sent = self.get64(reg::DMA_STORM_SENT)?;
        Ok((sent, self.get64(reg::DMA_STORM_ABORTED)?))
    }
}
