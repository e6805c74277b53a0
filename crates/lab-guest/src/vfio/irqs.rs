//! Interrupts of a function as event counters.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE,
};

use super::{Device, Irq, Shared, ioctl};

/// The interrupts of one kind of a function that is owned, counted one by one. They are given
/// back when this is dropped.
pub(crate) struct Received {
    device: Shared,
    irq: Irq,
    fds: Vec<EventFd>,
    epoll: Epoll,
    counts: Vec<u64>,
}

impl Received {
    /// Asks for `count` interrupts. [`Refused`] is in the error's chain if the kernel has not so
    /// many.
    pub(crate) fn enable(device: Shared, irq: Irq, count: u32) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::empty()).context("epoll_create1")?;
        let mut fds = Vec::new();
        for number in 0..u64::from(count) {
            let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)
                .with_context(|| format!("eventfd number {number}"))?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
            epoll.add(&fd, event).context("epoll_ctl")?;
            fds.push(fd);
        }
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        match ioctl::set_irqs(&device.file, flags, irq.index(), 0, count, &raw) {
            Ok(0) => {}
            Ok(available) => bail!(Refused(format!("the kernel has {available} of {count}"))),
            Err(error) => bail!(Refused(error.to_string())),
        }
        Ok(Self {
            device,
            irq,
            counts: vec![0; fds.len()],
            fds,
            epoll,
        })
    }

    /// How often each has come.
    pub(crate) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Waits until each has come as often as `expected` says, or until it is clear that it will
    /// not. Then looks once more for some time, so that what comes too often is seen.
    pub(crate) fn wait(
        &mut self,
        expected: &[u64],
        patience: Duration,
        quiet: Duration,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            let short = expected.iter().zip(&self.counts).any(|(e, c)| c < e);
            let now = Instant::now();
            if !short || now >= until {
                break;
            }
            self.collect(until - now)?;
        }
        let until = Instant::now() + quiet;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.collect(left)?;
        }
        Ok(())
    }

    /// Counts what has come, and waits for something at most so long.
    pub(crate) fn collect(&mut self, patience: Duration) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
        let ready = match self.epoll.wait(&mut events, EpollTimeout::from(millis)) {
            Err(nix::Error::EINTR) => 0,
            other => other.context("epoll_wait")?,
        };
        for event in &events[..ready] {
            let number = event.data() as usize;
            match self.fds[number].read() {
                Ok(count) => self.counts[number] += count,
                Err(nix::Error::EAGAIN) => {}
                Err(error) => return Err(error).context("read an eventfd"),
            }
        }
        Ok(())
    }

    /// Lets a level-triggered interrupt come again.
    pub(crate) fn unmask(&self) -> Result<()> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
        ioctl::set_irqs(&self.device.file, flags, self.irq.index(), 0, 1, &[])
            .context("VFIO_DEVICE_SET_IRQS, unmask")?;
        Ok(())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        // Nothing depends on it: closing the device does the same.
        let _ = ioctl::set_irqs(&self.device.file, flags, self.irq.index(), 0, 0, &[]);
    }
}

/// The kernel can't give so many interrupts.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VFIO_DEVICE_SET_IRQS: {}", self.0)
    }
}

impl std::error::Error for Refused {}

impl Device {
    /// Shares it with what counts its interrupts.
    pub(crate) fn share(self) -> Shared {
        Shared::new(self)
    }
}
