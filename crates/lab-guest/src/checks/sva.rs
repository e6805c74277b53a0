//! Shared virtual addressing: the test endpoint has a PASID that stands for this process, and uses
//! its addresses. What is not there yet comes by page requests; what is gone is gone for it, too.

use std::fs::File;

use amdvi_guest::endpoint::dma::{Checksum, EQUAL, op, reason};
use amdvi_guest::endpoint::reg;
use amdvi_lab_guest::data::{differs, fill};
use amdvi_lab_guest::plan::Sva;
use anyhow::{Context, Result, bail, ensure};
use vm_memory::{MmapRegion, VolatileMemory};

use crate::context::{names, text};
use crate::endpoint::{bind, function};
use crate::perf::Unit;
use crate::registers::{Ended, Operation, Registers};

const DRIVER: &str = "uio_pci_sva";
const PAGE: u64 = 4096;

pub(super) fn check(want: &Sva) -> Result<String> {
    let function = function(want.target)?;
    bind(&function, DRIVER)?;
    let folder = format!("/sys/bus/pci/devices/{function}");
    let name = names(format!("{folder}/uio"))?;
    let name = name.first().context("the function has no UIO device")?;
    let path = format!("/dev/{name}");
    let opened = File::options().read(true).write(true).open(&path);
    if want.refused {
        return match opened {
            Ok(_) => bail!("{path} can be opened: the function has a PASID"),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(format!("{function} gets no PASID: {path}: {error}"))
            }
            Err(error) => Err(error).with_context(|| format!("open {path}")),
        };
    }
    let bound = opened.with_context(|| format!("open {path}: no PASID for this process"))?;
    let pasid = text(format!("{folder}/pasid"))?;
    let pasid: u32 = pasid.parse().with_context(|| format!("PASID {pasid}"))?;
    ensure!(pasid > 0, "the kernel gave PASID 0");
    let job = Job {
        registers: Registers::map(&function)?,
        pasid,
    };
    let faulted = job.untouched(want.pages)?;
    let read = job.read_first()?;
    let gone = job.gone(want.counted)?;
    drop(bound);
    let closed = job.closed()?;
    Ok(format!(
        "{function} with PASID {pasid}: {faulted}; {read}; {gone}; {closed}"
    ))
}

struct Job {
    registers: Registers,
    pasid: u32,
}

/// The endpoint's counters of its TLB.
#[derive(Clone, Copy, Debug)]
struct Seen {
    requests: u64,
    responses: u64,
    invalidations: u64,
}

impl Job {
    fn seen(&self) -> Result<Seen> {
        Ok(Seen {
            requests: self.registers.get64(reg::PAGE_REQUESTS)?,
            responses: self.registers.get64(reg::PAGE_RESPONSES)?,
            invalidations: self.registers.get64(reg::TLB_INVALIDATIONS)?,
        })
    }

    fn run(&self, operation: Operation) -> Result<Ended> {
        self.registers.run(&Operation {
            pasid: Some(self.pasid),
            ..operation
        })
    }

    /// The endpoint writes memory that nobody has touched: each page comes by a request.
    fn untouched(&self, pages: u64) -> Result<String> {
        let memory = memory(pages * PAGE)?;
        let before = self.seen()?;
        let ended = self.run(Operation {
            code: op::FILL,
            target: address(&memory),
            length: pages * PAGE,
            operand: 1,
            ..Operation::default()
        })?;
        let after = self.seen()?;
        ensure!(
            ended.aborted.is_none() && ended.bytes == pages * PAGE,
            "the endpoint wrote {:#x} bytes of {pages} pages, aborted {:x?}",
            ended.bytes,
            ended.aborted
        );
        let mut seen = vec![0; (pages * PAGE) as usize];
        memory.get_slice(0, seen.len())?.copy_to(&mut seen[..]);
        if let Some(at) = differs(1, 0, &seen) {
            bail!("memory has not what the endpoint wrote, from byte {at:#x} on");
        }
        let requests = after.requests - before.requests;
        let responses = after.responses - before.responses;
        ensure!(
            requests >= pages && responses == requests,
            "{pages} pages came by {requests} page requests, of which {responses} were answered"
        );
        Ok(format!(
            "{pages} pages that nobody had touched came by {requests} page requests"
        ))
    }

    /// The endpoint reads first: there are zeroes. Then each writes for the other, by a page that
    /// takes the place of that of the zeroes.
    fn read_first(&self) -> Result<String> {
        let memory = memory(PAGE)?;
        let at = address(&memory);
        let checksum = |job: &Self| {
            job.run(Operation {
                code: op::CHECKSUM,
                source: at,
                length: PAGE,
                ..Operation::default()
            })
        };
        let zeroes = Checksum::of(&[0; PAGE as usize]);
        let ended = checksum(self)?;
        ensure!(
            ended.aborted.is_none() && ended.result == zeroes,
            "a page that nobody had touched reads as {ended:x?}, not as zeroes"
        );
        let before = self.seen()?;
        let mut data = [0; PAGE as usize];
        fill(2, 0, &mut data);
        memory.get_slice(0, data.len())?.copy_from(&data);
        let after = self.seen()?;
        // The page of zeroes is another one, and the endpoint may have known it.
        ensure!(
            after.invalidations > before.invalidations,
            "the endpoint was not told that the page has changed"
        );
        let ended = self.run(Operation {
            code: op::COMPARE,
            source: at,
            length: PAGE,
            operand: 2,
            ..Operation::default()
        })?;
        ensure!(
            ended.aborted.is_none() && ended.result == EQUAL,
            "the endpoint has not what the processor wrote: {ended:x?}"
        );
        Ok("zeroes and what the processor wrote later were read".to_owned())
    }

    /// After the unmap nothing of it can be used.
    fn gone(&self, counted: bool) -> Result<String> {
        let memory = memory(4 * PAGE)?;
        let at = address(&memory);
        let write = Operation {
            code: op::FILL,
            target: at,
            length: 4 * PAGE,
            operand: 3,
            ..Operation::default()
        };
        let ended = self.run(write)?;
        ensure!(ended.aborted.is_none(), "before the unmap: {ended:x?}");
        let counter = if counted {
            let only = [("pasid", u64::from(self.pasid)), ("pasid_mask", 0xf_ffff)];
            let counter = Unit::open(0)?.counter("tlb_inv", &only)?;
            counter.start()?;
            Some(counter)
        } else {
            None
        };
        let before = self.seen()?;
        drop(memory);
        let after = self.seen()?;
        let invalidations = after.invalidations - before.invalidations;
        let by_pasid = counter.map(crate::perf::Counter::stop).transpose()?;
        ensure!(
            invalidations > 0,
            "the endpoint was not told that the memory is gone"
        );
        ensure!(
            by_pasid != Some(0),
            "no INVALIDATE_IOMMU_PAGES had PASID {}",
            self.pasid
        );
        let ended = self.run(write)?;
        let last = self.seen()?;
        ensure!(
            ended.bytes == 0 && ended.aborted == Some((at, reason::NO_PAGE)),
            "after the unmap: {ended:x?}"
        );
        ensure!(
            last.requests > after.requests && last.responses > after.responses,
            "after the unmap: {after:?}, then {last:?}"
        );
        Ok(format!(
            "its unmap invalidated {invalidations} times in the endpoint and {by_pasid:?} times in \
             the IOMMU, then it was refused"
        ))
    }

    /// Without the driver's file the PASID stands for nothing.
    fn closed(&self) -> Result<String> {
        let memory = memory(PAGE)?;
        memory.get_slice(0, 1)?.copy_from(&[1u8]);
        let ended = self.run(Operation {
            code: op::FILL,
            target: address(&memory),
            length: PAGE,
            operand: 4,
            ..Operation::default()
        })?;
        ensure!(
            ended.bytes == 0 && ended.aborted.is_some(),
            "once the PASID was given back: {ended:x?}"
        );
        Ok("and so was all once the PASID was given back".to_owned())
    }
}

/// Memory of this process that has never been touched.
fn memory(bytes: u64) -> Result<MmapRegion> {
    MmapRegion::new(usize::try_from(bytes)?).context("mmap of memory")
}

fn address(memory: &MmapRegion) -> u64 {
    memory.as_ptr() as u64
}
