//! Interrupts of a function that sends one when it is told to: the test endpoint, or QEMU's edu.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amdvi_guest::endpoint::{DEVICE_ID, VENDOR_ID, reg};
use amdvi_lab_guest::plan::Repeats;
use amdvi_lab_init::{PciId, pci};
use anyhow::{Context as _, Result, ensure};

use super::{alone, note};
use crate::context::{Context, interrupts, online_cpus, put};
use crate::vfio::{Device, Irq, Received};

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

pub(in crate::checks) fn check(repeats: Repeats, context: &Arc<Context>) -> Result<String> {
    let mut found = SENDERS
        .iter()
        .filter_map(|sender| Some((sender, pci::find(sender.id).into_iter().next()?)));
    let (sender, function) = found.next().context("no function sends MSIs when told")?;
    pci::bind(&function, pci::VFIO).context("bind to vfio-pci")?;
    let device = Device::open(&function, None)?.share();
    let mut received = Received::enable(Arc::clone(&device), Irq::Msi, 1)?;
    // To the processor of the thread that waits: it is not to be measured how another one wakes it.
    let name = format!("vfio-msi[0]({function})");
    let rows = interrupts()?;
    let row = rows.iter().find(|row| row.actions() == name);
    let irq = row
        .with_context(|| format!("no interrupt is called {name}"))?
        .irq;
    let first = online_cpus()?[0].to_string();
    put(format!("/proc/irq/{irq}/smp_affinity_list"), &first)?;
    let mut sent = 0;
    let rates = alone(repeats, || {
        device.write(BAR0, sender.register, &1u32.to_le_bytes())?;
        sent += 1;
        let start = Instant::now();
        while received.counts()[0] < sent {
            ensure!(
                start.elapsed() < PATIENCE,
                "of {sent} interrupts {} came",
                received.counts()[0]
            );
            received.collect(PATIENCE)?;
        }
        Ok(1)
    })?;
    let came = received.counts()[0];
    ensure!(came == sent, "{sent} interrupts were sent and {came} came");
    let said = note(context, "msi", "1/s", rates);
    Ok(format!("{said}; {function}, {sent} sent"))
}
