//! PRI: the endpoint asks for pages that are not there, and software answers through the PPR log and
//! COMPLETE_PPR_REQUEST.

use amdvi_regs::command::CompletePprRequest;
use amdvi_regs::dte::Dte;
use amdvi_regs::event::{Event, InvalidPprRequest};
use amdvi_regs::log::{PPR_LOG_ENTRY_SIZE, PprLogEntry};
use amdvi_regs::mmio::{Status, offset};

use super::super::done;
use super::super::own::Own;
use super::access::{LENGTH, Who, aborted, holds, next_seed, operation, passes, put, succeeded};
use super::rig::BOTH;
use super::space::{Gcr3, GuestSpace, HostSpace, invalidate_page, required};
use super::{PAGE, alloc, invalidate_block, passthrough};
use crate::endpoint::dma::{EQUAL, reason};
use crate::endpoint::reg;
use crate::failure::{During, Result, bail, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;
use crate::wait;

const PASID: u32 = 0x4e;
const USER: Who = Who::pasid(PASID);
const SUCCESS: u8 = CompletePprRequest::RESPONSE_SUCCESS;
const INVALID: u8 = CompletePprRequest::RESPONSE_INVALID;
const FAILURE: u8 = CompletePprRequest::RESPONSE_FAILURE;
const PPR_INT: Status = Status::new().with_ppr_int(true);
/// Vector of the PPR log's interrupt.
const VECTOR: u8 = 0x97;

/// `pri`.
pub(in crate::scenarios) fn run<Q: Platform + ?Sized>(
    p: &mut Q,
    report: &mut Report,
) -> Result<()> {
    let mut m = Machine::start(p, |iommu| Config {
        // The smallest log.
        ppr_len: if iommu.efr.ppr_sup() { 8 } else { 0 },
        ..Config::offered(iommu)
    })?;
    required(&m)?;
    ensure!(
        m.iommu.config.ppr_len != 0,
        "EFR is {:#x}: page requests are not offered (PPRSup=0)",
        m.iommu.efr.into_bits()
    );
    m.dev.pasid_enable(m.p, true)?;
    m.dev.ats_enable(m.p, true)?;
    m.dev.pri_enable(m.p, true)?;
    let rig = Rig::new(&mut m)?;
    let mut served = 0;
    let kinds = [
        (USER, false),
        (USER, true),
        (USER.privileged(), false),
        (USER.privileged(), true),
        (USER.execute(), false),
    ];
    for (who, write) in kinds {
        for with_pasid in BOTH {
            serve(&mut m, &rig, who, write, with_pasid)?;
            served += 1;
        }
    }
    interrupt(&mut m, &rig).during("PPR interrupt")?;
    answers(&mut m, &rig)?;
    two_at_once(&mut m, &rig).during("two at once")?;
    without_pasid(&mut m, &rig).during("without a PASID")?;
    overflow(&mut m, &rig).during("overflow")?;
    invalid(&mut m, &rig)?;
    m.expect_no_event()?;
    let (blocked, events) = (m.blocked, m.events);
    done(
        &m,
        report,
        format_args!(
            "{served} page requests by user and kernel, to read, write and execute: log entries compared \
             bit by bit, pages made, COMPLETE_PPR_REQUEST with and without PASID, transfers end with \
             their data; PPRInt; wrong tags and devices change nothing, INVALID and FAILURE abort; a \
             full log stops and starts again without losing a transfer; {blocked} transfers aborted; \
             {events} INVALID_PPR_REQUEST events compared"
        ),
    )
}

/// A process whose pages come and go.
struct Rig {
    space: GuestSpace,
    gcr3: Gcr3,
    pages: [u64; 3],
    /// Addresses of the pages.
    at: [u64; 3],
    dte: Dte,
}

/// Lets a function use ATS and PRI.
fn allowed<Q: Platform + ?Sized>(m: &Machine<'_, Q>, mut dte: Dte) -> Dte {
    dte.q0 = dte.q0.with_ppr(m.iommu.efr.eph_sup());
    dte.q1 = dte.q1.with_i(true);
    dte
}

impl Rig {
    fn new<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<Self> {
        let block = alloc(m, 0x4000)?;
        let pages = core::array::from_fn(|n| block + 0x1000 * n as u64);
        let space = GuestSpace::new(m, 4, 0)?;
        let first = space.address(1, 0, true);
        let at = core::array::from_fn(|n| first + 0x1000 * n as u64);
        let gcr3 = Gcr3::new(m, 1, 0)?;
        gcr3.set(m, PASID, &space)?;
        let dte = allowed(m, gcr3.dte(gcr3.root, 4));
        let rig = Self {
            space,
            gcr3,
            pages,
            at,
            dte,
        };
        for n in 0..3 {
            // The tables on the way stay; only the pages come and go.
            rig.make(m, n)?;
            rig.take(m, n)?;
        }
        rig.restore(m)?;
        Ok(rig)
    }

    fn restore<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<()> {
        let id = m.dev.id;
        m.iommu.set_dte(m.p, id, &self.dte)
    }

    /// Makes a page; what was not there needs no invalidation.
    fn make<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>, n: usize) -> Result<()> {
        self.space.map(m, self.at[n], self.pages[n], 1)
    }

    /// Takes a page away, from IOMMU and device.
    fn take<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>, n: usize) -> Result<()> {
        let slot = self.space.slot(m, self.at[n], 1);
        m.p.write_u64(slot, 0);
        invalidate_page(m, PASID, self.at[n], PAGE)?;
        super::ats::invalidate_device(m, Some(PASID), self.at[n], PAGE)
    }
}

/// A transfer in the background, of one channel.
struct Transfer {
    channel: u32,
    iova: u64,
    page: u64,
    write: bool,
    seed: u64,
}

impl Transfer {
    fn begin<Q: Platform + ?Sized>(
        m: &mut Machine<'_, Q>,
        channel: u32,
        who: Who,
        iova: u64,
        page: u64,
        write: bool,
    ) -> Self {
        let (old, seed) = (next_seed(m), next_seed(m));
        put(m, page, if write { old } else { seed });
        m.dev
            .begin(m.p, channel, &operation(who, iova, write, LENGTH, seed));
        Self {
            channel,
            iova,
            page,
            write,
            seed,
        }
    }

    fn waits<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<()> {
        ensure!(
            !m.dev.has_ended(m.p, self.channel),
            "the transfer at {:#x} has ended before it was answered",
            self.iova
        );
        Ok(())
    }

    fn ended<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<crate::testdev::Ended> {
        let (dev, channel) = (m.dev, self.channel);
        if !wait::until(m.p, |p| dev.has_ended(p, channel)) {
            bail!("the transfer at {:#x} does not end", self.iova);
        }
        Ok(m.dev.ended(m.p, channel))
    }

    /// It ends, and its data arrive.
    fn succeeds<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<()> {
        let ended = self.ended(m)?;
        let what = if self.write { "write" } else { "read" };
        succeeded(&ended, what, self.iova)?;
        if !self.write {
            ensure!(
                ended.result == EQUAL,
                "byte {} of what was read is another",
                ended.result
            );
        }
        holds(m, self.page, self.seed)
    }

    /// It ends, and nothing has happened.
    fn fails<Q: Platform + ?Sized>(&self, m: &mut Machine<'_, Q>) -> Result<()> {
        let ended = self.ended(m)?;
        aborted(&ended, "transfer", self.iova, reason::NO_PAGE)?;
        if self.write && holds(m, self.page, self.seed).is_ok() {
            bail!("a transfer that was aborted has written {:#x}", self.page);
        }
        m.blocked += 1;
        Ok(())
    }
}

/// The next entry of the PPR log.
fn next<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<PprLogEntry> {
    let start = m.p.now_ns();
    loop {
        if let Some(entry) = m.iommu.next_page_request(m.p)? {
            return Ok(entry);
        }
        if m.p.now_ns().wrapping_sub(start) > wait::PATIENCE_NS {
            bail!("no page request comes");
        }
        m.p.pause();
    }
}

/// The next entry of the PPR log, which must be this one but for its tag.
fn request<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    who: Who,
    iova: u64,
    write: bool,
) -> Result<PprLogEntry> {
    let seen = next(m)?;
    let expected = PprLogEntry::new()
        .with_device_id(m.dev.id.0)
        .with_pasid(who.pasid.unwrap_or(0))
        .with_gn(who.pasid.is_some())
        .with_tag(seen.tag())
        // The endpoint makes groups of one request.
        .with_last_page(true)
        .with_read(!write)
        .with_write(write)
        .with_exec(who.executes())
        .with_us(who.pasid.is_some() && !who.is_privileged())
        .with_address_page(iova >> 12);
    let ([a, b], [c, d]) = (seen.words(), expected.words());
    ensure!(
        seen == expected,
        "the PPR log has {a:#018x} {b:#018x}, expected {c:#018x} {d:#018x}"
    );
    Ok(seen)
}

/// COMPLETE_PPR_REQUEST for a request, and its completion.
fn answer<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    to: PprLogEntry,
    code: u8,
    with_pasid: bool,
) -> Result<()> {
    let mut command = CompletePprRequest::new()
        .with_device_id(to.device_id())
        .with_completion_tag(u16::from(code) << 12 | to.tag());
    if with_pasid {
        command = command.with_gn(true).with_pasid(to.pasid());
    }
    m.iommu.command(m.p, command)
}

/// The PPR log holds nothing more.
fn no_request<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>) -> Result<()> {
    if let Some(seen) = m.iommu.next_page_request(m.p)? {
        let [a, b] = seen.words();
        bail!("the PPR log has {a:#018x} {b:#018x}, expected nothing");
    }
    Ok(())
}

/// One request from the beginning to the end.
fn serve<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    rig: &Rig,
    who: Who,
    write: bool,
    with_pasid: bool,
) -> Result<()> {
    let responses = m.dev.read64(m.p, reg::PAGE_RESPONSES);
    let transfer = Transfer::begin(m, 0, who, rig.at[0], rig.pages[0], write);
    let asked = request(m, who, rig.at[0], write)?;
    transfer.waits(m)?;
    rig.make(m, 0)?;
    answer(m, asked, SUCCESS, with_pasid)?;
    transfer.succeeds(m)?;
    let seen = m.dev.read64(m.p, reg::PAGE_RESPONSES) - responses;
    ensure!(seen == 1, "the device has got {seen} answers, not 1");
    // It is there now: nothing to ask for.
    passes(m, who, rig.at[0], rig.pages[0])?;
    no_request(m)?;
    rig.take(m, 0)
}

/// PPRInt, and the interrupt that it sends.
fn interrupt<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let cpu = m.low_cpu()?;
    m.iommu.clear_status(m.p, PPR_INT);
    ensure!(
        !m.iommu.status(m.p).ppr_int(),
        "PPRInt stays 1 after 1 was written"
    );
    let own = Own::by_msi(m, cpu, VECTOR)?;
    let control = m.iommu.control;
    for enabled in BOTH {
        m.iommu.set_control(m.p, control.with_ppr_int_en(enabled));
        for _ in 0..2 {
            let transfer = Transfer::begin(m, 1, USER, rig.at[1], rig.pages[1], true);
            let asked = request(m, USER, rig.at[1], true)?;
            ensure!(
                m.iommu.status(m.p).ppr_int(),
                "PPRInt is 0 after a page request"
            );
            if enabled {
                own.one(m)?;
            } else {
                own.none(m)?;
            }
            m.iommu.clear_status(m.p, PPR_INT);
            rig.make(m, 1)?;
            answer(m, asked, SUCCESS, true)?;
            transfer.succeeds(m)?;
            rig.take(m, 1)?;
        }
    }
    own.off(m);
    m.iommu.set_control(m.p, control);
    Ok(())
}

/// Answers that are for others, that promise too much, and that refuse.
fn answers<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let (iova, page) = (rig.at[0], rig.pages[0]);
    let transfer = Transfer::begin(m, 0, USER, iova, page, true);
    let asked = request(m, USER, iova, true)?;
    rig.make(m, 0)?;
    answer(m, asked.with_tag(asked.tag() ^ 1), SUCCESS, true)?;
    answer(m, asked.with_device_id(m.dev.id.0 ^ 8), SUCCESS, true)?;
    transfer.waits(m).during("an answer for somebody else")?;
    answer(m, asked, SUCCESS, true)?;
    transfer.succeeds(m).during("after answers for others")?;
    rig.take(m, 0)?;

    // "Here it is", though it is not: the device asks again.
    let transfer = Transfer::begin(m, 0, USER, iova, page, false);
    for _ in 0..3 {
        let asked = request(m, USER, iova, false)?;
        transfer.waits(m)?;
        answer(m, asked, SUCCESS, true)?;
    }
    let asked = request(m, USER, iova, false)?;
    rig.make(m, 0)?;
    answer(m, asked, SUCCESS, false)?;
    transfer.succeeds(m).during("answered too early")?;
    rig.take(m, 0)?;

    for write in BOTH {
        let transfer = Transfer::begin(m, 0, USER, iova, page, write);
        let asked = request(m, USER, iova, write)?;
        answer(m, asked, INVALID, true)?;
        transfer.fails(m).during("INVALID")?;
        no_request(m)?;
    }
    // A failure ends page requests until they are enabled again.
    let transfer = Transfer::begin(m, 0, USER, iova, page, true);
    let asked = request(m, USER, iova, true)?;
    answer(m, asked, FAILURE, true)?;
    transfer.fails(m).during("FAILURE")?;
    let requests = m.dev.read64(m.p, reg::PAGE_REQUESTS);
    let transfer = Transfer::begin(m, 0, USER, iova, page, true);
    transfer.fails(m).during("after FAILURE")?;
    let seen = m.dev.read64(m.p, reg::PAGE_REQUESTS);
    ensure!(seen == requests, "the device asks for pages after FAILURE");
    no_request(m)?;
    m.dev.pri_enable(m.p, false)?;
    m.dev.pri_enable(m.p, true)?;
    serve(m, rig, USER, true, true).during("enabled again")
}

/// Two transfers wait for different pages, and are answered in the other order.
fn two_at_once<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let first = Transfer::begin(m, 0, USER, rig.at[0], rig.pages[0], true);
    let a = request(m, USER, rig.at[0], true)?;
    let second = Transfer::begin(m, 1, USER.privileged(), rig.at[1], rig.pages[1], false);
    let b = request(m, USER.privileged(), rig.at[1], false)?;
    ensure!(
        a.tag() != b.tag(),
        "two requests at once have the same tag, {:#x}",
        a.tag()
    );
    rig.make(m, 1)?;
    answer(m, b, SUCCESS, true)?;
    second.succeeds(m)?;
    first.waits(m)?;
    rig.make(m, 0)?;
    answer(m, a, SUCCESS, true)?;
    first.succeeds(m)?;
    rig.take(m, 0)?;
    rig.take(m, 1)
}

/// A request of a host table: GN=0.
fn without_pasid<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let space = HostSpace::new(m, 4)?;
    let (iova, page) = (0x12_3456_7000, rig.pages[2]);
    let id = m.dev.id;
    let dte = allowed(m, space.under(passthrough()));
    m.iommu.set_dte(m.p, id, &dte)?;
    for write in BOTH {
        let transfer = Transfer::begin(m, 2, Who::PLAIN, iova, page, write);
        let asked = request(m, Who::PLAIN, iova, write)?;
        space.map(m, iova, page, 1, 12)?;
        answer(m, asked, SUCCESS, false)?;
        transfer.succeeds(m)?;
        let slot = space.slot(m, iova, 1);
        m.p.write_u64(slot, 0);
        invalidate_block(m, iova, PAGE)?;
        super::ats::invalidate_device(m, None, iova, PAGE)?;
    }
    rig.restore(m)
}

/// A log with room for two.
fn overflow<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let bytes = m.iommu.ppr_log.bytes;
    let tail = m.iommu.read32(m.p, offset::PPR_TAIL);
    ensure!(
        tail == m.iommu.ppr_log.at,
        "the PPR log is not empty: tail {tail:#x}, head {:#x}",
        m.iommu.ppr_log.at
    );
    let ahead = |n: u64| (tail + n * PPR_LOG_ENTRY_SIZE) % bytes;
    // One slot stays free always.
    m.iommu.write32(m.p, offset::PPR_HEAD, ahead(3) as u32);
    let mut transfers = [None, None, None];
    for (n, transfer) in transfers.iter_mut().enumerate() {
        *transfer = Some(Transfer::begin(
            m,
            n as u32,
            USER,
            rig.at[n],
            rig.pages[n],
            true,
        ));
        let iommu = m.iommu;
        let came = wait::until(m.p, |p| match n {
            2 => iommu.status(p).ppr_overflow(),
            _ => iommu.read32(p, offset::PPR_TAIL) == ahead(n as u64 + 1),
        });
        let status = m.iommu.status(m.p);
        ensure!(
            came,
            "after {} page requests the tail is {:#x}, STATUS {:#x}",
            n + 1,
            m.iommu.read32(m.p, offset::PPR_TAIL),
            status.into_bits()
        );
        ensure!(
            status.ppr_log_run() == (n < 2) && status.ppr_overflow() == (n == 2),
            "after {} page requests STATUS is {:#x}",
            n + 1,
            status.into_bits()
        );
    }
    let mut asked = [PprLogEntry::new(); 3];
    for (asked, iova) in asked.iter_mut().zip(rig.at).take(2) {
        *asked = request(m, USER, iova, true)?;
    }
    // There is room now, but the log does not run.
    no_request(m)?;
    ensure!(
        !m.iommu.status(m.p).ppr_log_run(),
        "PPRLogRun is 1 before the log was started again"
    );
    m.iommu.restart_ppr_log(m.p)?;
    let status = m.iommu.status(m.p);
    ensure!(
        status.ppr_log_run() && !status.ppr_overflow(),
        "STATUS is {:#x} after the PPR log was started again",
        status.into_bits()
    );
    // Who got no answer asks again.
    asked[2] = request(m, USER, rig.at[2], true)?;
    for (n, transfer) in transfers.into_iter().enumerate() {
        rig.make(m, n)?;
        answer(m, asked[n], SUCCESS, true)?;
        if let Some(transfer) = transfer {
            transfer.succeeds(m)?;
        }
        rig.take(m, n)?;
    }
    no_request(m)
}

/// Requests that the IOMMU does not accept.
fn invalid<Q: Platform + ?Sized>(m: &mut Machine<'_, Q>, rig: &Rig) -> Result<()> {
    let id = m.dev.id;
    let mut refusing = rig.dte;
    if m.iommu.efr.eph_sup() {
        refusing.q0 = refusing.q0.with_ppr(false);
        m.iommu.set_dte(m.p, id, &refusing)?;
        for write in BOTH {
            is_invalid(m, rig, USER, write).during("DTE.PPR=0")?;
        }
        is_invalid(m, rig, Who::pasid(0), true).during("DTE.PPR=0, PASID 0")?;
    }
    refusing = rig.dte;
    refusing.q0 = refusing.q0.with_gv(false);
    m.iommu.set_dte(m.p, id, &refusing)?;
    // Mode 0 would let a request without PASID pass.
    is_invalid(m, rig, USER.privileged(), true).during("GV=0")?;
    rig.restore(m)?;
    let most = m.iommu.efr.max_pasid().unwrap_or(0);
    if most < 0xf_ffff {
        is_invalid(m, rig, Who::pasid(most + 1), false).during("PASID above EFR.PASmax")?;
    }
    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_ppr_en(false));
    is_invalid(m, rig, USER, true).during("PPREn=0")?;
    m.iommu.set_control(m.p, control);
    // A PASID without a table is software's business.
    let other = Who::pasid(PASID + 1);
    let transfer = Transfer::begin(m, 0, other, rig.at[0], rig.pages[0], true);
    let asked = request(m, other, rig.at[0], true)?;
    rig.gcr3.set(m, PASID + 1, &rig.space)?;
    rig.make(m, 0)?;
    answer(m, asked, SUCCESS, true)?;
    transfer.succeeds(m).during("a PASID that gets a table")?;
    m.dev.cancel(m.p, 0);
    Ok(())
}

/// A request that is answered by the IOMMU itself, and told of by an event.
fn is_invalid<Q: Platform + ?Sized>(
    m: &mut Machine<'_, Q>,
    rig: &Rig,
    who: Who,
    write: bool,
) -> Result<()> {
    let transfer = Transfer::begin(m, 0, who, rig.at[0], rig.pages[0], write);
    transfer.fails(m)?;
    let Some(event) = m.iommu.next_event(m.p)? else {
        bail!("no event was logged, expected INVALID_PPR_REQUEST");
    };
    // Its tag is the device's choice; it is the last of its group.
    let tag = match event {
        Event::InvalidPprRequest(seen) => seen.tag(),
        _ => 0,
    };
    let pasid = who.pasid.unwrap_or(0);
    let expected: Event = InvalidPprRequest::new()
        .with_device_id(m.dev.id.0)
        .with_pasid_15_0(pasid as u16)
        .with_pasid_19_16((pasid >> 16) as u8)
        .with_gn(who.pasid.is_some())
        .with_tag(tag | 1 << 9)
        .with_rx(true)
        .with_address(rig.at[0] & !0xfff)
        .into();
    let ([a, b], [c, d]) = (event.words(), expected.words());
    ensure!(
        event == expected,
        "event {a:#018x} {b:#018x} was logged, expected {c:#018x} {d:#018x}"
    );
    m.events += 1;
    m.expect_no_event()?;
    no_request(m)
}
