//! Interrupts of a function that sends one when it is told to: the test endpoint, or QEMU's edu.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::{DEVICE_ID, VENDOR_ID, reg};
use amdvi_lab_guest::plan::Repeats;
use amdvi_lab_init::{PciId, pci};
use anyhow::{Context as _, Result, ensure};

use super::{alone, note, phase};
use crate::context::{Context, interrupts, online_cpus, put};
use crate::vfio::{Device, Irq, Received, Shared};

/// How long an interrupt may take.
const PATIENCE: Duration = Duration::from_secs(5);
const BAR0: u32 = 0;

/// A function, and the register of its BAR 0 that sends an MSI when 1 is written to it.
struct Sender {
    id: PciId,
    register: u64,
}

const SENDERS: [Sender; 2] = [
    Sender {
        id: PciId {
            vendor: VENDOR_ID,
            device: DEVICE_ID,
        },
        // How many vectors, from the first one on.
        register: reg::FIRE_COUNT,
    },
    Sender {
        id: PciId {
            vendor: 0x1234,
            device: 0x11e8,
        },
        // "Interrupt raise": what is or-ed to the status.
        register: 0x60,
    },
];

/// A function that sends an MSI when told, and is ready to.
pub(super) struct Ready {
    device: Shared,
    register: u64,
    received: Received,
    sent: u64,
    /// Its interrupt.
    pub(super) irq: u32,
    /// Its address.
    pub(super) function: String,
}

impl Ready {
    /// Takes the first one that there is.
    pub(super) fn open() -> Result<Self> {
        let mut found = SENDERS
            .iter()
            .filter_map(|sender| Some((sender, pci::find(sender.id).into_iter().next()?)));
        let (sender, function) = found.next().context("no function sends MSIs when told")?;
        pci::bind(&function, pci::VFIO).context("bind to vfio-pci")?;
        let device = Device::open(&function, None)?.share();
        let received = Received::enable(Arc::clone(&device), Irq::Msi, 1)?;
        let name = format!("vfio-msi[0]({function})");
        let rows = interrupts()?;
        let row = rows.iter().find(|row| row.actions() == name);
        let irq = row
            .with_context(|| format!("no interrupt is called {name}"))?
            .irq;
        Ok(Self {
            device,
            register: sender.register,
            received,
            sent: 0,
            irq,
            function,
        })
    }

    /// Has it send one, and waits for it.
    pub(super) fn send(&mut self) -> Result<()> {
        self.device
            .write(BAR0, self.register, &1u32.to_le_bytes())?;
        self.sent += 1;
        let start = Instant::now();
        while self.came() < self.sent {
            ensure!(
                start.elapsed() < PATIENCE,
                "of {} interrupts {} came",
                self.sent,
                self.came()
            );
            self.received.collect(PATIENCE)?;
        }
        Ok(())
    }

    fn came(&self) -> u64 {
        self.received.counts()[0]
    }

    /// How many were sent; an error if not as many came.
    pub(super) fn sent(&self) -> Result<u64> {
        let (sent, came) = (self.sent, self.came());
        ensure!(came == sent, "{sent} interrupts were sent and {came} came");
        Ok(sent)
    }
}

pub(in crate::checks) fn check(repeats: Repeats, context: &Arc<Context>) -> Result<String> {
    let mut sender = Ready::open()?;
    // To the processor of the thread that waits: it is not to be measured how another one wakes it.
    let first = online_cpus()?[0].to_string();
    put(
        format!("/proc/irq/{}/smp_affinity_list", sender.irq),
        &first,
    )?;
    phase("msi");
    let rates = alone(repeats, || {
        sender.send()?;
        Ok(1)
    })?;
    let sent = sender.sent()?;
    let said = note(context, "msi", "1/s", rates);
    Ok(format!("{said}; {}, {sent} sent", sender.function))
}
