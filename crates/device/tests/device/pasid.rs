//! DMA with PASIDs through the whole device: events, invalidations, ATS with page requests.

use std::sync::{Arc, Mutex};

use amdvi_device::{
    Abort, Access, DeviceAts, DeviceInvalidation, Endpoint, Invalidated, InvalidationAnswer,
    Observer, PageRequest, PageRequested, PageResponse, Pasid, Permissions,
};
use amdvi_regs::command::{
    Command, CompletePprRequest, InvalidateIommuPages, InvalidateIotlbPages, InvalidationRange,
};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2};
use amdvi_regs::log::PprLogEntry;
use amdvi_regs::mmio::offset;

use crate::rig::*;

const GCR3: u64 = PAGE_TABLE;
const DOMAIN: u16 = 7;

/// The tables of PASID 1 and 2 lie behind the GCR3 table, four pages each.
fn leaf(pasid: u64, page: u64) -> u64 {
    GCR3 + 0x1000 * (4 * pasid) + 0x3000 + 8 * page
}

const RW: u64 = 0x27;

/// Guest translation by one level of GCR3, without a host table.
fn machine(options: &str) -> (Rig, Endpoint) {
    let rig = Rig::enabled(options);
    rig.set_control(|c| {
        c.with_gt_en(true)
            .with_ppr_en(true)
            .with_ppr_log_en(true)
            .with_eph_en(true)
    });
    for pasid in [1, 2] {
        let table = |n: u64| GCR3 + 0x1000 * (4 * pasid + n);
        rig.memory.write(GCR3 + 8 * pasid, table(0) | 1);
        for n in 0..3 {
            rig.memory.write(table(n), table(n + 1) | RW);
        }
        rig.memory.write(leaf(pasid, 5), (0x20_0000 * pasid) | RW);
    }
    let q0 = DteQ0::new()
        .with_v(true)
        .with_tv(true)
        .with_ir(true)
        .with_iw(true)
        .with_ppr(true)
        .with_gv(true);
    let q1 = DteQ1::new().with_i(true).with_domain_id(DOMAIN);
    let dte = Dte::from_words([q0.into_bits(), q1.into_bits(), 0, 0]).with_gcr3_address(GCR3);
    rig.set_dte(NIC, dte.q0, dte.q1, DteQ2::new());
    let nic = rig.nic();
    (rig, nic)
}

fn pasid(value: u32) -> Option<Pasid> {
    Pasid::new(value)
}

fn read(nic: &mut Endpoint, of: u32) -> Result<u64, Abort> {
    nic.translate_for(pasid(of), 0x5008, 8, Access::Read)
        .map(|mapped| mapped.gpa)
}

#[test]
fn a_fault_of_a_process_has_its_pasid_and_the_flags_of_its_request() {
    let (rig, mut nic) = machine(SVA);
    assert_eq!(read(&mut nic, 1), Ok(0x20_0008));
    let write = pasid(2);
    assert!(
        nic.translate_for(write, 0x1_2340, 8, Access::Write)
            .is_err()
    );
    // Code 2, DeviceID, PASID, GN, US and RW; PR=0.
    let expected = 2 << 60 | 1 << 48 | 1 << 50 | 1 << 53 | 2 << 32 | u64::from(NIC.0);
    assert_eq!(rig.take_event_words(), [expected, 0x1_2340]);
    // A privileged read of something to execute, of a PASID without a table.
    let code = pasid(3).map(|p| p.with_execute(true).with_privileged(true));
    assert!(nic.translate_for(code, 0x5000, 8, Access::Read).is_err());
    let words = rig.take_event_words();
    assert_eq!(words[0] & (1 << 50 | 1 << 48), 1 << 48, "GN without US");
    assert_eq!(words[0] >> 32 & 0xffff, 3);
    // Without a PASID and without GIoV the request is not translated.
    assert_eq!(nic.translate(0x5008, 8, Access::Read).unwrap().gpa, 0x5008);
}

#[test]
fn an_invalidation_with_gn_concerns_one_pasid_and_all_means_all() {
    let (rig, mut nic) = machine(SVA);
    let mut both = |expected: [u64; 2]| {
        assert_eq!([1, 2].map(|of| read(&mut nic, of).unwrap()), expected);
    };
    both([0x20_0008, 0x40_0008]);
    for pasid in [1, 2] {
        rig.memory.write(leaf(pasid, 5), 0x30_0000 | RW);
    }
    both([0x20_0008, 0x40_0008]);
    let page = InvalidateIommuPages::new()
        .with_domain_id(DOMAIN)
        .with_gn(true)
        .with_address_page(5);
    rig.submit(&[page.with_pasid(1)]);
    both([0x30_0008, 0x40_0008]);
    rig.submit(&[page.with_pasid(2).with_address_page(6)]);
    rig.submit(&[page.with_pasid(2).with_domain_id(DOMAIN + 1)]);
    both([0x30_0008, 0x40_0008]);
    rig.submit(&[page.with_pasid(2)]);
    both([0x30_0008, 0x30_0008]);
    for pasid in [1, 2] {
        rig.memory.write(leaf(pasid, 5), 0x31_0000 | RW);
    }
    // GN=0 names the whole domain's; so does INVALIDATE_IOMMU_ALL.
    let domain = InvalidateIommuPages::new()
        .with_domain_id(DOMAIN)
        .with_range(InvalidationRange::All);
    rig.submit(&[domain]);
    both([0x31_0008, 0x31_0008]);
    rig.memory.write(leaf(1, 5), 0x32_0000 | RW);
    rig.submit(&[invalidate_all()]);
    both([0x32_0008, 0x31_0008]);
}

#[derive(Default)]
struct Heard(Mutex<Vec<Invalidated>>);

impl Observer for Heard {
    fn changed(&self, _: &amdvi_device::Changes) {}
    fn invalidated(&self, ranges: &Invalidated) {
        self.0.lock().unwrap().push(ranges.clone());
    }
}

#[test]
fn with_guest_translation_observers_hear_of_the_whole_domain() {
    let (rig, _nic) = machine(SVA);
    let heard = Arc::new(Heard::default());
    rig.iommu.add_observer(heard.clone());
    let page = InvalidateIommuPages::new()
        .with_domain_id(DOMAIN)
        .with_address_page(5);
    let last = |command: InvalidateIommuPages| {
        rig.submit(&[command]);
        rig.completion_wait();
        heard.0.lock().unwrap().pop().unwrap()
    };
    let whole = Invalidated::Ranges(vec![(DOMAIN, InvalidationRange::All)]);
    let part = Invalidated::Ranges(vec![(DOMAIN, page.range())]);
    assert_eq!(last(page), whole);
    assert_eq!(last(page.with_gn(true)), part);
    rig.set_control(|c| c.with_gt_en(false));
    assert_eq!(last(page), part);
}

/// A device with a TLB of one entry per PASID, as a driver of SVA meets it.
#[derive(Default)]
struct Tlb {
    /// By PASID: the GPA of the page at 5000h.
    entries: Mutex<[Option<u64>; 3]>,
    responses: Mutex<Vec<PageResponse>>,
}

impl DeviceAts for Tlb {
    fn invalidate(&self, invalidation: &DeviceInvalidation) -> InvalidationAnswer {
        if invalidation.range.contains(0x5000)
            && let Some(pasid) = invalidation.pasid
        {
            self.entries.lock().unwrap()[pasid as usize] = None;
        }
        InvalidationAnswer::Done
    }

    fn page_response(&self, response: &PageResponse) {
        self.responses.lock().unwrap().push(*response);
    }
}

#[test]
fn a_device_faults_a_page_in_uses_it_and_loses_it() {
    let (rig, mut nic) = machine(SVA);
    rig.set_control(|c| c.with_ppr_log_en(false));
    rig.write(offset::PPR_LOG_BASE, PPR_LOG | LEN_8);
    rig.set_control(|c| c.with_ppr_log_en(true));
    let tlb = Arc::new(Tlb::default());
    nic.set_ats(tlb.clone());
    rig.memory.write(leaf(1, 5), 0);
    // The page is not there: an answer without permissions, and no event.
    let answer = nic
        .translation_request(pasid(1), 0x5123, Access::Write)
        .unwrap();
    assert_eq!(answer.permissions, Permissions::empty());
    drop(answer);
    assert!(rig.take_events().is_empty());
    let request = PageRequest {
        pasid: pasid(1),
        address: 0x5123,
        read: true,
        write: true,
        tag: 0x55,
        last: true,
    };
    assert_eq!(nic.page_request(&request), PageRequested::Logged);
    // The guest makes it present and answers.
    let entry = PprLogEntry::from_words([rig.memory.read(PPR_LOG), rig.memory.read(PPR_LOG + 8)]);
    assert_eq!((entry.pasid(), entry.address_page()), (1, 5));
    rig.memory.write(leaf(1, 5), 0x21_0000 | RW);
    rig.submit(&[CompletePprRequest::new()
        .with_device_id(NIC.0)
        .with_pasid(entry.pasid())
        .with_gn(true)
        .with_completion_tag(entry.tag())]);
    let response = tlb.responses.lock().unwrap().pop().unwrap();
    assert_eq!(
        (response.tag, response.code, response.pasid),
        (0x55, PageResponse::SUCCESS, Some(1))
    );
    let answer = nic
        .translation_request(pasid(1), 0x5123, Access::Write)
        .unwrap();
    assert_eq!((answer.iova, answer.gpa), (0x5000, 0x21_0000));
    assert_eq!(answer.permissions, Permissions::all());
    tlb.entries.lock().unwrap()[1] = Some(answer.gpa);
    drop(answer);
    assert_eq!(
        rig.memory.read(leaf(1, 5)) & 0x60,
        0x60,
        "accessed and dirty"
    );
    let gpa = tlb.entries.lock().unwrap()[1].unwrap();
    let mut written = Vec::new();
    nic.access_translated(pasid(1), gpa + 0x123, 4, Access::Write, |piece| {
        written.push(piece.gpa);
    })
    .unwrap();
    assert_eq!(written, [0x21_0123]);
    // munmap: first the IOMMU, then the device.
    rig.memory.write(leaf(1, 5), 0);
    rig.submit(&[
        Command::from(
            InvalidateIommuPages::new()
                .with_domain_id(DOMAIN)
                .with_pasid(1)
                .with_gn(true)
                .with_address_page(5),
        ),
        InvalidateIotlbPages::new()
            .with_device_id(NIC.0)
            .with_queue_id(NIC.0)
            .with_max_pend(32)
            .with_pasid(1)
            .with_gn(true)
            .with_address_page(5)
            .into(),
    ]);
    rig.completion_wait();
    assert_eq!(*tlb.entries.lock().unwrap(), [None; 3]);
    let answer = nic
        .translation_request(pasid(1), 0x5123, Access::Read)
        .unwrap();
    assert!(answer.permissions.is_empty());
    drop(answer);
    assert!(rig.take_events().is_empty());
}

#[test]
fn gcr3_trp_mode_sticks_only_where_it_is_offered() {
    for (options, sticks) in [(SVA, false), ("amd-iommu,gtsup=on,gcr3trpmode=on", true)] {
        let rig = Rig::new(options);
        rig.set_control(|c| c.with_gcr3_trp_mode(true).with_gt_en(true));
        assert_eq!(rig.control().gcr3_trp_mode(), sticks);
        assert!(rig.control().gt_en());
    }
    let none = Rig::new("amd-iommu");
    none.set_control(|c| c.with_gt_en(true).with_had_update(3));
    assert!(!none.control().gt_en() && none.control().had_update() == 0);
}

#[test]
fn had_update_takes_what_is_offered_and_not_10b() {
    for (options, values) in [
        ("amd-iommu,dirty-tracking=on", [0, 1, 1, 3]),
        ("amd-iommu,dirty-tracking=accessed", [0, 1, 1, 1]),
        ("amd-iommu", [0; 4]),
    ] {
        let rig = Rig::new(options);
        for (value, expected) in (0..).zip(values) {
            rig.set_control(|c| c.with_had_update(value));
            assert_eq!(rig.control().had_update(), expected, "{options} {value}");
        }
    }
}

#[test]
fn with_snpsup_the_exclusion_registers_take_a_completion_store_range_and_exclude_nothing() {
    let rig = Rig::enabled("amd-iommu,snpsup=on");
    // Linux writes the page of its COMPLETION_WAIT stores to both; a bit 0 of it would be ExEn.
    rig.write(offset::EXCLUSION_BASE, STORE | 3);
    rig.write(offset::EXCLUSION_LIMIT, STORE);
    assert_eq!(rig.read(offset::EXCLUSION_BASE) & !0xfff, STORE);
    assert_eq!(rig.read(offset::EXCLUSION_LIMIT), STORE);
    rig.completion_wait();
    let q0 = DteQ0::new().with_v(true).with_tv(true);
    rig.set_dte(NIC, q0, DteQ1::new(), DteQ2::new());
    assert!(rig.nic().translate(STORE, 8, Access::Write).is_err());
    rig.remap_interrupts(NIC, 9);
    rig.set_irte32(1, fixed(0x41, 0));
    assert_eq!(delivered(rig.nic().signal(msi(1))).vector, 0x41);
}
