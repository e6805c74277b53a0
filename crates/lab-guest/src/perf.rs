//! Counters of an IOMMU, as `perf stat` has them: the driver's performance monitoring unit.

use std::fs::File;
use std::io::Read;

use amdvi_lab_guest::perf_format::{Field, terms};
use anyhow::{Context, Result};

use crate::context::text;
use crate::sys;

/// The driver's unit of an IOMMU.
pub(crate) struct Unit {
    folder: String,
    kind: u32,
    /// The processor that its counters belong to.
    cpu: i32,
}

impl Unit {
    /// That of the IOMMU with this index.
    pub(crate) fn open(index: u32) -> Result<Self> {
        let folder = format!("/sys/bus/event_source/devices/amd_iommu_{index}");
        let kind = text(format!("{folder}/type"))
            .context("the driver has no counters: EFR.PCSup is 0, or the kernel has no perf")?;
        let cpu = text(format!("{folder}/cpumask"))?;
        Ok(Self {
            kind: kind.parse().with_context(|| format!("type is {kind}"))?,
            cpu: cpu.parse().with_context(|| format!("cpumask is {cpu}"))?,
            folder,
        })
    }

    /// A counter of an event by its name, of what fits the terms; it does not count yet.
    pub(crate) fn counter(&self, event: &str, only: &[(&str, u64)]) -> Result<Counter> {
        let path = format!("{}/events/{event}", self.folder);
        let said = text(&path)?;
        let mut all = terms(&said).with_context(|| format!("{path} says {said:?}"))?;
        all.extend(only);
        let mut config = [0; 2];
        for (term, value) in all {
            let path = format!("{}/format/{term}", self.folder);
            let said = text(&path)?;
            Field::parse(&said)
                .and_then(|field| field.put(&mut config, value))
                .with_context(|| format!("{term}={value:#x} does not fit {path}, {said:?}"))?;
        }
        let file = sys::perf_event_open(self.kind, config, self.cpu)
            .with_context(|| format!("perf_event_open of {event}, {config:x?}"))?;
        Ok(Counter {
            event: event.to_owned(),
            file,
        })
    }
}

/// A counter.
pub(crate) struct Counter {
    event: String,
    file: File,
}

impl Counter {
    /// Starts it.
    pub(crate) fn start(&self) -> Result<()> {
        sys::perf_event_enable(&self.file, true)
            .with_context(|| format!("PERF_EVENT_IOC_ENABLE of {}", self.event))
    }

    /// Stops it, and reads it. The driver adds what the hardware has counted whenever it looks at it,
    /// so it must look once only.
    pub(crate) fn stop(mut self) -> Result<u64> {
        sys::perf_event_enable(&self.file, false)
            .with_context(|| format!("PERF_EVENT_IOC_DISABLE of {}", self.event))?;
        let mut count = [0; 8];
        self.file
            .read_exact(&mut count)
            .with_context(|| format!("read the counter of {}", self.event))?;
        Ok(u64::from_ne_bytes(count))
    }
}
