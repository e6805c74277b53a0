//! Page requests of devices (PCIe PRI; 48882 §2.6): into the PPR log, answered by the IOMMU itself, or
//! refused.

use amdvi_core::dtab;
use amdvi_dma::{DmaEntry, Pasid, WalkContext, check_dte};
use amdvi_regs::DeviceId;
use amdvi_regs::command::CompletePprRequest;
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::{DevTabHardwareError, Event, IllegalDevTableEntry, InvalidPprRequest};
use amdvi_regs::log::PprLogEntry;

use crate::iommu::{Emission, Iommu};
use crate::pci::VIRTUAL_ADDRESS_BITS;

/// Type field of a hardware-error event: nothing answers at the address.
const MASTER_ABORT: u8 = 1;

/// A function asks for a page to be made present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The address space, with execute and privilege as they are asked for; `None` for a request
    /// without PASID.
    pub pasid: Option<Pasid>,
    /// An address in the page, as DMA would name it. Bits \[11:0\] don't count.
    pub address: u64,
    /// Read access is asked for.
    pub read: bool,
    /// Write access is asked for.
    pub write: bool,
    /// Page request group index, in 9 bits: the answer carries it.
    pub tag: u16,
    /// The last request of its group: this is the one that is answered.
    pub last: bool,
}

/// The answer to a group of page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResponse {
    /// The group's index.
    pub tag: u16,
    /// The response code: [`SUCCESS`](Self::SUCCESS), [`INVALID`](Self::INVALID),
    /// [`FAILURE`](Self::FAILURE), or a reserved one, which counts as a failure.
    pub code: u8,
    /// The PASID, if the answer carries one.
    pub pasid: Option<u32>,
}

impl PageResponse {
    /// Every page of the group is there.
    pub const SUCCESS: u8 = CompletePprRequest::RESPONSE_SUCCESS;
    /// A page of the group does not exist or is not accessible so.
    pub const INVALID: u8 = CompletePprRequest::RESPONSE_INVALID;
    /// Page requests don't work; the function should not make any more.
    pub const FAILURE: u8 = CompletePprRequest::RESPONSE_FAILURE;
}

/// What became of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageRequested {
    /// It is in the PPR log. Software answers, through [`DeviceAts::page_response`](crate::DeviceAts).
    Logged,
    /// The IOMMU answers itself (PPR auto response), for the last request of a group; it is not in
    /// the log.
    Answered(Option<PageResponse>),
    /// It was not valid, and is answered for the last request of a group. What the specification
    /// logs is logged.
    Refused(PageRefusal, Option<PageResponse>),
    /// The PPR log does not take it, and nobody will answer: the function has to ask again later.
    Lost,
}

/// Why a page request is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageRefusal {
    /// The IOMMU is off, or does not accept page requests (CONTROL.PPREn).
    #[error("the IOMMU does not accept page requests")]
    NotEnabled,
    /// The DeviceID lies behind the end of its device table.
    #[error("the DeviceID is outside the device table")]
    DeviceIdOutOfRange,
    /// The DTE is not in guest memory.
    #[error("no memory behind the DTE at GPA {0:#x}")]
    DteUnreadable(u64),
    /// The DTE is malformed.
    #[error("{0}")]
    IllegalDte(amdvi_dma::DteDefect),
    /// The DTE does not let the function make page requests: V, TV, I or PPR is 0.
    #[error("the DTE does not allow page requests")]
    NotAllowed,
    /// A PASID, where the DTE has no guest translation or wider than EFR.PASmax says.
    #[error("the PASID is not valid for this function")]
    Pasid,
}

impl Iommu {
    /// Logs, answers or refuses a page request. Runs while an operation of the function is in flight.
    pub(crate) fn page_request(
        &self,
        device_id: DeviceId,
        request: &PageRequest,
    ) -> (PageRequested, Emission) {
        let checked = self.check_page_request(device_id, request);
        self.locked(|inner| {
            let registers = &mut inner.registers;
            let memory = &*self.memory;
            let answer = |code, with_pasid: bool| {
                request.last.then_some(PageResponse {
                    tag: request.tag & 0x1ff,
                    code,
                    pasid: request.pasid.filter(|_| with_pasid).map(Pasid::value),
                })
            };
            let q0 = match checked {
                Ok(q0) => q0,
                Err((refusal, event)) => {
                    if let Some(event) = event {
                        registers.log_event(memory, &event);
                    }
                    let answer = answer(PageResponse::INVALID, true);
                    return PageRequested::Refused(refusal, answer);
                }
            };
            let control = registers.control();
            let ppr = registers.ppr;
            let log = ppr.active(control);
            // DTE.GPRP says whether such an answer carries the PASID.
            let auto = || {
                let code = ppr.auto_response().auto_resp_code();
                PageRequested::Answered(answer(code, q0.gprp()))
            };
            if control.ppr_auto_rsp_en() && (control.ppr_auto_rsp_aon() || ppr.nearly_full(log)) {
                return auto();
            }
            if registers.log_ppr(memory, entry(device_id, request)) {
                PageRequested::Logged
            } else if control.ppr_auto_rsp_en() && registers.ppr.stopped {
                auto()
            } else {
                PageRequested::Lost
            }
        })
    }

    /// The DTE's first word, if the function may make the request; otherwise why not and the event.
    fn check_page_request(
        &self,
        device_id: DeviceId,
        request: &PageRequest,
    ) -> Result<DteQ0, (PageRefusal, Option<Event>)> {
        let view = &self.fabric.view;
        let control = view.control();
        if !control.iommu_en() {
            return Err((PageRefusal::NotEnabled, None));
        }
        let invalid = |refusal| Err((refusal, Some(invalid(device_id, request))));
        if !control.ppr_en() {
            return invalid(PageRefusal::NotEnabled);
        }
        let Ok(gpa) = dtab::locate(view, device_id) else {
            return invalid(PageRefusal::DeviceIdOutOfRange);
        };
        let unreadable = |at: u64| {
            let event = DevTabHardwareError::new()
                .with_device_id(device_id.0)
                .with_kind(MASTER_ABORT)
                .with_address_16(at >> 4);
            Err((PageRefusal::DteUnreadable(at), Some(event.into())))
        };
        let Ok([q0, q1]) = self.memory.load_pair(gpa) else {
            return unreadable(gpa);
        };
        let (q0, q1) = (DteQ0::from_bits(q0), DteQ1::from_bits(q1));
        let efr = view.efr();
        let context = WalkContext::new(control, efr, view.efr2(), VIRTUAL_ADDRESS_BITS);
        let mut dte = DmaEntry::new(q0, q1);
        if context.uses_guest_tables(q0) {
            let Ok(q2) = self.memory.load_u64(gpa + 16) else {
                return unreadable(gpa + 16);
            };
            dte = dte.with_guest_paging_mode(DteQ2::from_bits(q2).guest_paging_mode());
        }
        if q0.v()
            && let Err(defect) = check_dte(&context, &dte)
        {
            let event = IllegalDevTableEntry::new()
                .with_device_id(device_id.0)
                .with_rz(defect.rz())
                .with_address_4(request.address >> 2);
            return Err((PageRefusal::IllegalDte(defect), Some(event.into())));
        }
        // Without EPHSup the DTE has no bit for it, and PPREn alone decides.
        if !q0.v() || !q0.tv() || !q1.i() || efr.eph_sup() && !q0.ppr() {
            return invalid(PageRefusal::NotAllowed);
        }
        let known = |pasid: Pasid| {
            context.uses_guest_tables(q0) && pasid.value() <= context.guest.max_pasid
        };
        if request.pasid.is_some_and(|pasid| !known(pasid)) {
            return invalid(PageRefusal::Pasid);
        }
        Ok(q0)
    }
}

/// The tag as both the log and the event have it: bit 9 says that it is the last of its group.
fn tag(request: &PageRequest) -> u16 {
    request.tag & 0x1ff | u16::from(request.last) << 9
}

fn entry(device_id: DeviceId, request: &PageRequest) -> PprLogEntry {
    let pasid = request.pasid;
    PprLogEntry::new()
        .with_device_id(device_id.0)
        .with_pasid(pasid.map_or(0, Pasid::value))
        .with_gn(pasid.is_some())
        .with_tag(request.tag & 0x1ff)
        .with_last_page(request.last)
        .with_read(request.read)
        .with_write(request.write)
        .with_exec(pasid.is_some_and(Pasid::execute))
        .with_us(pasid.is_some_and(|pasid| !pasid.privileged()))
        .with_address_page(request.address >> 12)
}

/// RX: the IOMMU answers what has to be answered.
fn invalid(device_id: DeviceId, request: &PageRequest) -> Event {
    let pasid = request.pasid.map_or(0, Pasid::value);
    InvalidPprRequest::new()
        .with_device_id(device_id.0)
        .with_pasid_15_0(pasid as u16)
        .with_pasid_19_16((pasid >> 16) as u8 & 0xf)
        .with_gn(request.pasid.is_some())
        .with_tag(tag(request))
        .with_rx(true)
        .with_address(request.address & !0xfff)
        .into()
}
