//! Page requests: the PPR logs, automatic answers, refusals, COMPLETE_PPR_REQUEST.

use std::sync::{Arc, Mutex};

use amdvi_device::{
    DeviceAts, DeviceInvalidation, Endpoint, InvalidationAnswer, PageRefusal, PageRequest,
    PageRequested, PageResponse, Pasid,
};
use amdvi_regs::DeviceId;
use amdvi_regs::command::CompletePprRequest;
use amdvi_regs::dte::{DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::{Event, InvalidPprRequest};
use amdvi_regs::log::PprLogEntry;
use amdvi_regs::mmio::{Control, PprAutoResponse, PprOverflowEarly, Status, offset};

use crate::rig::*;

/// A DTE that lets the function make page requests; DMA is identity.
fn allowed() -> (DteQ0, DteQ1) {
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_ir(true)
        .with_iw(true)
        .with_ppr(true);
    (q0, DteQ1::new().with_i(true).with_domain_id(7))
}

fn requests_enabled(rig: &Rig) {
    rig.write(offset::PPR_LOG_BASE, PPR_LOG | LEN_8);
    rig.set_control(|c| {
        c.with_ppr_en(true)
            .with_ppr_log_en(true)
            .with_ppr_int_en(true)
            .with_eph_en(true)
    });
}

fn machine() -> (Rig, Endpoint) {
    let rig = Rig::enabled(SVA);
    requests_enabled(&rig);
    let (q0, q1) = allowed();
    rig.set_dte(NIC, q0, q1, DteQ2::new());
    let nic = rig.nic();
    (rig, nic)
}

fn request(tag: u16) -> PageRequest {
    PageRequest {
        pasid: None,
        address: 0x1234_5678,
        read: true,
        write: false,
        tag,
        last: true,
    }
}

fn entry(rig: &Rig, log: u64, n: u64) -> PprLogEntry {
    PprLogEntry::from_words([
        rig.memory.read(log + 16 * n),
        rig.memory.read(log + 16 * n + 8),
    ])
}

/// A device that keeps what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<PageResponse>>);

impl DeviceAts for Heard {
    fn invalidate(&self, _: &DeviceInvalidation) -> InvalidationAnswer {
        InvalidationAnswer::Done
    }

    fn page_response(&self, response: &PageResponse) {
        self.0.lock().unwrap().push(*response);
    }
}

impl Heard {
    fn take(&self) -> Vec<PageResponse> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn clear(rig: &Rig, status: Status) {
    rig.write32(offset::STATUS, status.into_bits() as u32);
}

#[test]
fn a_page_request_is_logged_as_linux_reads_it() {
    let (rig, mut nic) = machine();
    rig.enable_msi(0x52);
    assert_eq!(nic.page_request(&request(0x1a5)), PageRequested::Logged);
    // DeviceID, tag 1a5h with LastPage, READ, code 1; the page.
    let low = u64::from(NIC.0) | 0x3a5 << 32 | 1 << 50 | 1 << 60;
    assert_eq!(rig.memory.read(PPR_LOG), low);
    assert_eq!(rig.memory.read(PPR_LOG + 8), 0x1234_5000);
    assert_eq!(rig.read(offset::PPR_TAIL), 16);
    assert!(rig.status().ppr_int() && rig.status().ppr_log_run());
    assert_eq!(rig.take_vectors(), [0x52]);
    assert!(rig.take_events().is_empty());
}

#[test]
fn a_request_without_pasid_says_nothing_of_execution_and_privilege() {
    let (rig, mut nic) = machine();
    let inner = PageRequest {
        write: true,
        last: false,
        ..request(1)
    };
    assert_eq!(nic.page_request(&inner), PageRequested::Logged);
    let entry = entry(&rig, PPR_LOG, 0);
    assert!(entry.write() && !entry.exec() && !entry.us() && !entry.gn() && !entry.last_page());
}

#[test]
fn a_request_with_pasid_says_all_of_it() {
    let (rig, mut nic) = machine();
    rig.set_control(|c| c.with_gt_en(true));
    let (q0, q1) = allowed();
    rig.set_dte(NIC, q0.with_gv(true).with_glx(1), q1, DteQ2::new());
    let pasid = |value| Some(Pasid::new(value).unwrap());
    let user = PageRequest {
        pasid: pasid(0x5432).map(|p| p.with_execute(true)),
        ..request(7)
    };
    assert_eq!(nic.page_request(&user), PageRequested::Logged);
    // DeviceID, PASID[15:0], tag with LastPage, PASID[19:16], EXEC, READ, US, GN, code.
    let low = u64::from(NIC.0)
        | 0x5432 << 16
        | 0x207 << 32
        | 1 << 49
        | 1 << 50
        | 1 << 54
        | 1 << 56
        | 1 << 60;
    assert_eq!(rig.memory.read(PPR_LOG), low);
    let kernel = PageRequest {
        pasid: pasid(0xffff).map(|p| p.with_privileged(true)),
        ..request(7)
    };
    assert_eq!(nic.page_request(&kernel), PageRequested::Logged);
    assert!(!entry(&rig, PPR_LOG, 1).us() && !entry(&rig, PPR_LOG, 1).exec());
    // EFR.PASmax is 15.
    let wide = PageRequest {
        pasid: pasid(0x1_0000),
        ..request(7)
    };
    assert_eq!(refused(nic.page_request(&wide)), PageRefusal::Pasid);
    assert_eq!(invalid_ppr(&rig).pasid_19_16(), 1);
}

#[test]
fn the_ppr_interrupt_has_an_xt_register_of_its_own() {
    let (rig, mut nic) = machine();
    rig.write(offset::XT_PPR_INTERRUPT, 0x77 << 32 | 5 << 8);
    rig.write(offset::XT_GENERAL_INTERRUPT, 0x78 << 32 | 5 << 8);
    rig.set_control(|c| c.with_int_cap_xt_en(true));
    nic.page_request(&request(0));
    let deliveries = rig.host.take_deliveries();
    assert_eq!(deliveries.len(), 1);
    assert_eq!((deliveries[0].vector, deliveries[0].dest), (0x77, 5));
}

#[test]
fn without_ppr_int_en_ppr_int_is_set_and_nothing_sent() {
    let (rig, mut nic) = machine();
    rig.enable_msi(0x52);
    rig.set_control(|c| c.with_ppr_int_en(false));
    nic.page_request(&request(0));
    assert!(rig.status().ppr_int() && rig.take_vectors().is_empty());
    rig.set_control(|c| c.with_ppr_int_en(true));
    assert_eq!(rig.take_vectors(), [0x52]);
}

#[test]
fn one_slot_of_the_ppr_log_stays_empty_and_a_full_log_stops_until_linux_restarts_it() {
    let (rig, mut nic) = machine();
    for n in 0..255 {
        assert_eq!(nic.page_request(&request(n)), PageRequested::Logged);
    }
    assert!(!rig.status().ppr_overflow());
    assert_eq!(nic.page_request(&request(255)), PageRequested::Lost);
    let status = rig.status();
    assert!(status.ppr_overflow() && !status.ppr_log_run());
    assert_eq!(rig.read(offset::PPR_TAIL), 0xff0);
    // Room alone does not restart it, nor the enable bit while the overflow bit is set.
    rig.write32(offset::PPR_HEAD, 0xff0);
    assert_eq!(nic.page_request(&request(0)), PageRequested::Lost);
    rig.set_control(|c| c.with_ppr_log_en(false).with_ppr_int_en(false));
    rig.set_control(|c| c.with_ppr_log_en(true));
    assert!(!rig.status().ppr_log_run());
    rig.set_control(|c| c.with_ppr_log_en(false));
    clear(&rig, Status::new().with_ppr_overflow(true));
    rig.set_control(|c| c.with_ppr_log_en(true).with_ppr_int_en(true));
    assert!(rig.status().ppr_log_run());
    assert_eq!(nic.page_request(&request(3)), PageRequested::Logged);
    assert_eq!(rig.read(offset::PPR_TAIL), 0, "wrapped");
    assert_eq!(entry(&rig, PPR_LOG, 255).tag(), 3);
}

#[test]
fn without_ppr_log_en_a_request_is_lost_without_overflow() {
    let (rig, mut nic) = machine();
    rig.set_control(|c| c.with_ppr_log_en(false));
    assert_eq!(nic.page_request(&request(0)), PageRequested::Lost);
    assert!(!rig.status().ppr_overflow() && rig.take_events().is_empty());
}

#[test]
fn the_ppr_log_s_base_is_locked_by_its_run_bit_and_a_base_write_empties_it() {
    let (rig, mut nic) = machine();
    nic.page_request(&request(0));
    rig.write(offset::PPR_LOG_BASE, PPR_LOG_B | LEN_8);
    rig.write32(offset::PPR_TAIL, 0x80);
    assert_eq!(rig.read(offset::PPR_LOG_BASE), PPR_LOG | LEN_8);
    assert_eq!(rig.read(offset::PPR_TAIL), 16);
    rig.set_control(|c| c.with_ppr_log_en(false));
    rig.write(offset::PPR_LOG_BASE, PPR_LOG_B | LEN_8);
    assert_eq!(rig.read(offset::PPR_TAIL), 0);
    rig.write(offset::PPR_LOG_BASE, PPR_LOG | 7 << 56);
    assert_eq!(rig.read(offset::PPR_LOG_BASE), PPR_LOG_B | LEN_8, "Len 7");
}

#[test]
fn an_unwritable_ppr_log_loses_the_request_and_nothing_else() {
    let (rig, mut nic) = machine();
    rig.set_control(|c| c.with_ppr_log_en(false));
    rig.write(offset::PPR_LOG_BASE, NOWHERE | LEN_8);
    rig.set_control(|c| c.with_ppr_log_en(true));
    for _ in 0..1000 {
        assert_eq!(nic.page_request(&request(0)), PageRequested::Lost);
    }
    assert_eq!(rig.read(offset::PPR_TAIL), 0);
    assert!(rig.status().ppr_log_run() && !rig.status().ppr_int());
}

#[test]
fn with_dual_ppr_log_en_1_log_b_is_written() {
    let (rig, mut nic) = machine();
    rig.write(offset::PPR_LOG_B_BASE, PPR_LOG_B | LEN_8);
    assert_eq!(
        rig.read(offset::PPR_LOG_B_BASE),
        LEN_8,
        "locked: the logs run"
    );
    rig.set_control(|c| c.with_ppr_log_en(false));
    rig.write(offset::PPR_LOG_B_BASE, PPR_LOG_B | LEN_8);
    rig.set_control(|c| c.with_dual_ppr_log_en(1).with_ppr_log_en(true));
    assert!(rig.status().ppr_log_active());
    assert_eq!(nic.page_request(&request(9)), PageRequested::Logged);
    assert_eq!(rig.read(offset::PPR_TAIL), 0);
    assert_eq!(rig.read(offset::PPR_B_TAIL), 16);
    assert_eq!(entry(&rig, PPR_LOG_B, 0).tag(), 9);
}

#[test]
fn with_automatic_change_a_full_log_leaves_the_entry_to_the_other() {
    let (rig, mut nic) = machine();
    rig.set_control(|c| c.with_ppr_log_en(false));
    rig.write(offset::PPR_LOG_B_BASE, PPR_LOG_B | LEN_8);
    rig.set_control(|c| c.with_dual_ppr_log_en(2).with_ppr_log_en(true));
    for n in 0..256 {
        assert_eq!(nic.page_request(&request(n)), PageRequested::Logged, "{n}");
    }
    let status = rig.status();
    assert!(status.ppr_overflow() && !status.ppr_overflow_b());
    assert!(status.ppr_log_active() && status.ppr_log_run());
    assert_eq!(entry(&rig, PPR_LOG_B, 0).tag(), 255);
    // Log A is read and cleared; it takes over when B is full.
    rig.write32(offset::PPR_HEAD, 0xff0);
    clear(&rig, Status::new().with_ppr_overflow(true));
    for n in 0..255 {
        assert_eq!(nic.page_request(&request(n)), PageRequested::Logged, "{n}");
    }
    let status = rig.status();
    assert!(status.ppr_overflow_b() && !status.ppr_log_active());
    assert_eq!(entry(&rig, PPR_LOG, 255).tag(), 254);
}

#[test]
fn with_both_logs_full_logging_stops_until_both_overflow_bits_are_clear() {
    let (rig, mut nic) = machine();
    rig.set_control(|c| c.with_ppr_log_en(false));
    rig.write(offset::PPR_LOG_B_BASE, PPR_LOG_B | LEN_8);
    rig.set_control(|c| c.with_dual_ppr_log_en(2).with_ppr_log_en(true));
    for _ in 0..510 {
        assert_eq!(nic.page_request(&request(0)), PageRequested::Logged);
    }
    assert_eq!(nic.page_request(&request(0)), PageRequested::Lost);
    let status = rig.status();
    assert!(status.ppr_overflow() && status.ppr_overflow_b() && !status.ppr_log_run());
    rig.write32(offset::PPR_HEAD, 0xff0);
    rig.write32(offset::PPR_B_HEAD, 0xff0);
    clear(&rig, Status::new().with_ppr_overflow(true));
    rig.set_control(|c| c.with_ppr_log_en(true));
    assert!(!rig.status().ppr_log_run());
    clear(&rig, Status::new().with_ppr_overflow_b(true));
    rig.set_control(|c| c.with_ppr_log_en(true));
    assert_eq!(nic.page_request(&request(0)), PageRequested::Logged);
}

#[test]
fn dual_ppr_log_en_3_is_reserved_and_without_the_feature_none_sticks() {
    let rig = Rig::new(SVA);
    for (value, expected) in [(3, 0), (2, 2), (3, 2), (1, 1), (0, 0)] {
        rig.set_control(|c| c.with_dual_ppr_log_en(value));
        assert_eq!(rig.control().dual_ppr_log_en(), expected);
    }
    let single = Rig::new("amd-iommu,pprsup=on");
    single.write(offset::CONTROL, u64::MAX);
    assert_eq!(single.control().dual_ppr_log_en(), 0);
    assert!(!single.control().ppr_auto_rsp_en());
    for at in [0xf0, 0x2050, 0x2058, 0x2080, 0x2088, 0x2090] {
        single.write(at, u64::MAX);
        assert_eq!(single.read(at), 0, "{at:#x}");
    }
}

#[test]
fn the_early_indicator_is_set_at_its_threshold_and_interrupts_on_its_own() {
    let (rig, mut nic) = machine();
    rig.enable_msi(0x52);
    rig.set_control(|c| c.with_ppr_int_en(false));
    let early = PprOverflowEarly::new()
        .with_threshold(3)
        .with_en(true)
        .with_int_en(true);
    rig.write(offset::PPR_OVERFLOW_EARLY, early.into_bits());
    nic.page_request(&request(0));
    nic.page_request(&request(1));
    assert!(!rig.status().ppr_ovrflw_early() && rig.take_vectors().is_empty());
    nic.page_request(&request(2));
    assert!(rig.status().ppr_ovrflw_early() && !rig.status().ppr_overflow());
    assert_eq!(rig.take_vectors(), [0x52]);
    // Below the threshold again, and off.
    rig.write32(offset::PPR_HEAD, 0x20);
    clear(&rig, Status::new().with_ppr_ovrflw_early(true));
    nic.page_request(&request(3));
    assert!(!rig.status().ppr_ovrflw_early());
    rig.write(offset::PPR_OVERFLOW_EARLY, early.with_en(false).into_bits());
    nic.page_request(&request(4));
    assert!(!rig.status().ppr_ovrflw_early());
}

fn auto_response(rig: &Rig, code: u8, change: impl Fn(Control) -> Control) {
    let value = PprAutoResponse::new().with_auto_resp_code(code);
    rig.write(offset::PPR_AUTO_RESPONSE, value.into_bits());
    rig.set_control(|c| change(c.with_ppr_auto_rsp_en(true)));
}

fn answered(tag: u16, code: u8) -> PageRequested {
    PageRequested::Answered(Some(PageResponse {
        tag,
        code,
        pasid: None,
    }))
}

#[test]
fn an_overflowed_log_is_answered_for_automatically_if_software_wants_it() {
    let (rig, mut nic) = machine();
    auto_response(&rig, 0xf, |c| c);
    for n in 0..255 {
        assert_eq!(nic.page_request(&request(n)), PageRequested::Logged);
    }
    assert_eq!(nic.page_request(&request(0x42)), answered(0x42, 0xf));
    assert!(rig.status().ppr_overflow());
    // Only the last request of a group has an answer.
    let inner = PageRequest {
        last: false,
        ..request(1)
    };
    assert_eq!(nic.page_request(&inner), PageRequested::Answered(None));
    // A log that is not enabled has not overflowed.
    let (rig, mut nic) = machine();
    auto_response(&rig, 0xf, |c| c.with_ppr_log_en(false));
    assert_eq!(nic.page_request(&request(0)), PageRequested::Lost);
}

#[test]
fn automatic_answers_begin_at_the_early_threshold() {
    let (rig, mut nic) = machine();
    auto_response(&rig, 0, |c| c);
    let early = PprOverflowEarly::new().with_threshold(2).with_en(true);
    rig.write(offset::PPR_OVERFLOW_EARLY, early.into_bits());
    for n in 0..2 {
        assert_eq!(nic.page_request(&request(n)), PageRequested::Logged);
    }
    assert_eq!(nic.page_request(&request(2)), answered(2, 0));
    assert_eq!(rig.read(offset::PPR_TAIL), 32);
    rig.write32(offset::PPR_HEAD, 16);
    assert_eq!(nic.page_request(&request(3)), PageRequested::Logged);
}

#[test]
fn with_auto_response_always_on_nothing_is_logged() {
    let (rig, mut nic) = machine();
    auto_response(&rig, 1, |c| c.with_ppr_auto_rsp_aon(true));
    assert_eq!(nic.page_request(&request(5)), answered(5, 1));
    assert_eq!(rig.read(offset::PPR_TAIL), 0);
    rig.set_control(|c| c.with_ppr_auto_rsp_en(false));
    assert_eq!(nic.page_request(&request(5)), PageRequested::Logged);
}

/// The only event, which must be INVALID_PPR_REQUEST.
fn invalid_ppr(rig: &Rig) -> InvalidPprRequest {
    match rig.take_events()[..] {
        [Event::InvalidPprRequest(event)] => event,
        ref other => panic!("{other:?}"),
    }
}

fn refused(requested: PageRequested) -> PageRefusal {
    match requested {
        PageRequested::Refused(refusal, Some(answer)) => {
            assert_eq!(answer.code, PageResponse::INVALID);
            refusal
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_that_the_dte_does_not_allow_is_an_invalid_ppr_request() {
    let (rig, mut nic) = machine();
    let (q0, q1) = allowed();
    for (q0, q1) in [
        (q0.with_ppr(false), q1),
        (q0.with_v(false), q1),
        (q0.with_tv(false), q1),
        (q0, q1.with_i(false)),
    ] {
        rig.set_dte(NIC, q0, q1, DteQ2::new());
        assert_eq!(
            refused(nic.page_request(&request(0x15))),
            PageRefusal::NotAllowed
        );
        let event = invalid_ppr(&rig);
        assert_eq!(event.device_id(), NIC.0);
        assert_eq!((event.tag(), event.rx(), event.gn()), (0x215, true, false));
        assert_eq!(event.address(), 0x1234_5000);
    }
    assert_eq!(rig.read(offset::PPR_TAIL), 0);
    rig.set_dte(NIC, q0, q1, DteQ2::new());
    assert_eq!(
        nic.page_request(&request(0)),
        PageRequested::Logged,
        "the DTE is read for each request"
    );
}

#[test]
fn without_ppr_en_requests_are_invalid_and_without_iommu_en_nobody_is_told() {
    let (rig, mut nic) = machine();
    rig.set_control(|c| c.with_ppr_en(false));
    assert_eq!(
        refused(nic.page_request(&request(0))),
        PageRefusal::NotEnabled
    );
    invalid_ppr(&rig);
    rig.set_control(|c| c.with_ppr_en(true).with_iommu_en(false));
    assert_eq!(
        refused(nic.page_request(&request(0))),
        PageRefusal::NotEnabled
    );
    rig.set_control(|c| c.with_iommu_en(true));
    assert!(rig.take_events().is_empty());
}

#[test]
fn without_ephsup_the_dte_has_no_bit_for_it() {
    let rig = Rig::enabled("amd-iommu,pprsup=on,ephsup=off,device-iotlb=on");
    requests_enabled(&rig);
    let (q0, q1) = allowed();
    let mut nic = rig.nic();
    rig.set_dte(NIC, q0.with_ppr(false), q1, DteQ2::new());
    assert_eq!(nic.page_request(&request(0)), PageRequested::Logged);
    rig.set_dte(NIC, q0, q1, DteQ2::new());
    assert!(matches!(
        nic.page_request(&request(0)),
        PageRequested::Refused(PageRefusal::IllegalDte(_), Some(_))
    ));
    assert!(matches!(
        rig.take_events()[..],
        [Event::IllegalDevTableEntry(event)] if event.rz()
    ));
}

#[test]
fn a_pasid_needs_guest_translation_and_the_width_that_is_offered() {
    let (rig, mut nic) = machine();
    let with_pasid = |pasid| PageRequest {
        pasid: Pasid::new(pasid),
        ..request(2)
    };
    // DTE.GV is 0.
    assert_eq!(
        refused(nic.page_request(&with_pasid(0x1_2345))),
        PageRefusal::Pasid
    );
    let event = invalid_ppr(&rig);
    assert!(event.gn());
    assert_eq!((event.pasid_19_16(), event.pasid_15_0()), (1, 0x2345));
}

#[test]
fn a_device_id_out_of_range_or_an_unreadable_dte_is_refused() {
    let (rig, mut nic) = machine();
    rig.write(offset::DEVICE_TABLE_BASE, DEVICE_TABLE);
    assert_eq!(
        refused(nic.page_request(&request(0))),
        PageRefusal::DeviceIdOutOfRange
    );
    invalid_ppr(&rig);
    rig.write(offset::DEVICE_TABLE_BASE, NOWHERE | 0x1ff);
    assert!(matches!(
        refused(nic.page_request(&request(0))),
        PageRefusal::DteUnreadable(_)
    ));
    assert!(matches!(
        rig.take_events()[..],
        [Event::DevTabHardwareError(_)]
    ));
}

#[test]
fn complete_ppr_request_reaches_the_device_by_its_device_id_with_the_tag() {
    let (rig, nic) = machine();
    let heard = Arc::new(Heard::default());
    nic.set_ats(heard.clone());
    let others = Arc::new(Heard::default());
    let other = rig.iommu.endpoint(DeviceId(1));
    other.set_ats(others.clone());
    // Linux answers with GN=0 and no PASID where the device does not want one.
    rig.submit(&[
        CompletePprRequest::new()
            .with_device_id(NIC.0)
            .with_completion_tag(0x1a5 | 0xf << 12),
        CompletePprRequest::new()
            .with_device_id(NIC.0)
            .with_completion_tag(3)
            .with_gn(true)
            .with_pasid(0x5_4321),
    ]);
    assert_eq!(
        heard.take(),
        [
            PageResponse {
                tag: 0x1a5,
                code: PageResponse::FAILURE,
                pasid: None
            },
            PageResponse {
                tag: 3,
                code: PageResponse::SUCCESS,
                pasid: Some(0x5_4321)
            },
        ]
    );
    assert!(others.take().is_empty());
    // The handle's DeviceID of the moment counts, and the handle's life.
    let answer = |id: u16| {
        rig.submit(&[CompletePprRequest::new().with_device_id(id)]);
        heard.take().len()
    };
    nic.set_device_id(DeviceId(9));
    assert_eq!((answer(NIC.0), answer(9)), (0, 1));
    drop(nic);
    assert_eq!(answer(9), 0);
    rig.completion_wait();
}

#[test]
fn page_requests_survive_a_move_and_not_a_reset() {
    let (rig, mut nic) = machine();
    rig.set_control(|c| c.with_ppr_log_en(false));
    rig.write(offset::PPR_LOG_B_BASE, PPR_LOG_B | LEN_8);
    rig.write(offset::PPR_OVERFLOW_EARLY, 1 << 31 | 5);
    rig.write(offset::PPR_AUTO_RESPONSE, 0x1f);
    rig.set_control(|c| c.with_dual_ppr_log_en(2).with_ppr_log_en(true));
    for n in 0..300 {
        nic.page_request(&request(n));
    }
    let other = Rig::new(SVA);
    other.iommu.restore(&rig.iommu.save()).unwrap();
    for at in (0..0x4000).step_by(8) {
        assert_eq!(other.read(at), rig.read(at), "{at:#x}");
    }
    assert!(other.status().ppr_log_active() && other.read(offset::PPR_B_TAIL) != 0);
    rig.iommu.reset();
    assert_eq!(rig.iommu.save(), Rig::new(SVA).iommu.save());
}
