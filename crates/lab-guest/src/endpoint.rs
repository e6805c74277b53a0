//! The test endpoint, as a driver sees it.

use std::fmt;
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::dma::op;
use amdvi_guest::endpoint::{BAR0_SIZE, DEVICE_ID, DMA_BUFFER_SIZE, VENDOR_ID, outcome, reg};
use amdvi_lab_guest::plan::Target;
use amdvi_lab_init::{PciId, pci};
use anyhow::{Context, Result, bail, ensure};

use crate::registers::{Operation, Registers};
use crate::vfio::{Device, Shared};

const BAR0: u32 = 0;
/// Patience with a transfer.
const DMA: Duration = Duration::from_secs(20);
/// How often one looks whether it has ended.
const LOOK: Duration = Duration::from_millis(1);

/// An endpoint that is owned through vfio-pci.
pub(crate) struct Endpoint {
    device: Shared,
    registers: Registers,
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

/// The address of a test endpoint.
pub(crate) fn function(target: Target) -> Result<String> {
    let functions = functions();
    functions.get(target.endpoint).cloned().with_context(|| {
        format!(
            "there are {} test endpoints ({VENDOR_ID:04x}:{DEVICE_ID:04x}), and number {} is \
             asked for",
            functions.len(),
            target.endpoint
        )
    })
}

/// Gives a function to a driver, unless it has that already.
pub(crate) fn bind(function: &str, driver: &str) -> Result<()> {
    let link = format!("/sys/bus/pci/devices/{function}/driver");
    if std::fs::read_link(link).is_ok_and(|bound| bound.ends_with(driver)) {
        return Ok(());
    }
    pci::bind(function, driver).with_context(|| format!("bind to {driver}"))
}

impl Endpoint {
    /// Binds the endpoint to vfio-pci and takes it.
    pub(crate) fn open(target: Target) -> Result<Self> {
        let function = function(target)?;
        bind(&function, pci::VFIO)?;
        let device = Device::open(&function, target.backend)?.share();
        ensure!(
            device.region_size(BAR0) == u64::from(BAR0_SIZE),
            "BAR 0 has {} bytes",
            device.region_size(BAR0)
        );
        let registers = Registers::Vfio(device.clone());
        registers.identify()?;
        Ok(Self { device, registers })
    }

    pub(crate) fn device(&self) -> &Shared {
        &self.device
    }

    pub(crate) fn function(&self) -> &str {
        self.device.function()
    }

    /// How the kernel's log names it: with the driver that owns it.
    pub(crate) fn in_log(&self) -> String {
        format!("vfio-pci {}", self.function())
    }

    pub(crate) fn get(&self, register: u64) -> Result<u32> {
        self.registers.get(register)
    }

    pub(crate) fn set(&self, register: u64, value: u32) -> Result<()> {
        self.registers.set(register, value)
    }

    /// A 64-bit counter that does not move meanwhile.
    pub(crate) fn get64(&self, register: u64) -> Result<u64> {
        self.registers.get64(register)
    }

    fn set64(&self, register: u64, value: u64) -> Result<()> {
        self.registers.set64(register, value)
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
        let ended = self.registers.run(&Operation {
            code: op::FILL,
            target: iova,
            length,
            operand: seed,
            ..Operation::default()
        })?;
        Ok((ended.bytes, ended.aborted.map(|(fault, _)| fault)))
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
