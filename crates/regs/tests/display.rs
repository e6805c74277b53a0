//! What each type looks like in a log.

use amdvi_regs::command::{
    Command, CompletePprRequest, CompletionWait, InvalidateInterruptTable, InvalidateIommuPages,
    InvalidateIotlbPages, InvalidationRange, ResetVmmio,
};
use amdvi_regs::dte::{Dte, DteQ0, DteQ1, DteQ2};
use amdvi_regs::event::{Event, IllegalCommandError, InvalidDeviceRequest, IoPageFault};
use amdvi_regs::gcr3::Gcr3Entry;
use amdvi_regs::guest_pte::GuestPte;
use amdvi_regs::irte::{Irte32, Irte128};
use amdvi_regs::log::{GaLogEntry, PprLogEntry};
use amdvi_regs::mmio::{
    CompletionStoreLimit, Control, CounterAddress, CounterFunction, CounterSource, DeviceTableBase,
    ExclusionBase, ExtendedFeature, ExtendedFeature2, HardwareEventStatus, MarcRelocation,
    RingBase, RingPointer, SmiFilter, Status, XtInterruptControl,
};
use amdvi_regs::msi::{Msi, MsiAddress, MsiData};
use amdvi_regs::pci::{CapabilityBlock, CapabilityHeader, DeviceRange, MiscInfo0, MsiCapability};
use amdvi_regs::pte::HostPte;
use amdvi_regs::viommu::{IdMapControl, VfPprControl};
use amdvi_regs::{DeviceId, DomainId};

#[test]
fn dte_prints_translation_then_interrupts() {
    let dte = Dte {
        q0: DteQ0::new()
            .with_v(true)
            .with_tv(true)
            .with_mode(3)
            .with_ir(true)
            .with_iw(true),
        q1: DteQ1::new().with_domain_id(7),
        q2: DteQ2::new()
            .with_iv(true)
            .with_int_tab_len(11)
            .with_int_tab_address(0x20_0000)
            .with_int_ctl(2)
            .with_nmi_pass(true),
        ..Dte::default()
    }
    .with_host_pt_address(0x123_4000);
    assert_eq!(
        dte.to_string(),
        "V TV mode=3 root=0x1234000 IR IW domain=0x0007 | \
         IV len=2^11 root=0x200000 IntCtl=remap NMI"
    );
}

#[test]
fn dte_prints_guest_translation_and_vimu_when_used() {
    let mut dte = Dte::default().with_gcr3_address(0x1234_5000);
    dte.q0 = dte.q0.with_v(true).with_gv(true).with_glx(1);
    dte.q1 = dte.q1.with_sys_mgt(3).with_sa(true);
    dte.q3 = dte
        .q3
        .with_vimu_en(true)
        .with_g_device_id(0x28)
        .with_guest_id(5);
    assert_eq!(
        dte.to_string(),
        "V mode=0 GV GLX=1 gcr3=0x12345000 domain=0x0000 SA SysMgt=translate | - | \
         vImuEn guest=0x5 gdevice=00:05.0"
    );
}

#[test]
fn dte_prints_reserved_bits_in_their_word_and_nothing_when_empty() {
    assert_eq!(Dte::default().to_string(), "- | -");
    let dte = Dte::from_words([0x8000_0000_0000_0004, 0, 1 << 52, 1]);
    assert_eq!(
        dte.to_string(),
        "domain=0x0000 reserved=0x8000000000000004 | reserved=0x10000000000000 | reserved=0x1"
    );
}

#[test]
fn io_page_fault_prints_device_domain_address_and_flags() {
    let event = IoPageFault::new()
        .with_device_id(0x28)
        .with_pasid_domain_id(7)
        .with_address(0xfee0_0000)
        .with_i(true)
        .with_pr(true)
        .with_rw(true);
    let text = "IO_PAGE_FAULT device=00:05.0 domain=0x0007 address=0xfee00000 flags=[I PR RW]";
    assert_eq!(event.to_string(), text);
    assert_eq!(Event::from(event).to_string(), text);
}

#[test]
fn io_page_fault_with_gn_prints_the_pasid_instead_of_the_domain() {
    let event = IoPageFault::new()
        .with_device_id(0x28)
        .with_gn(true)
        .with_pasid_domain_id(0x2345)
        .with_pasid_19_16(1)
        .with_address(0x1000);
    assert_eq!(
        event.to_string(),
        "IO_PAGE_FAULT device=00:05.0 pasid=0x12345 address=0x1000 flags=[GN]"
    );
}

#[test]
fn other_events_print_what_they_carry() {
    let illegal = IllegalCommandError::new().with_address_16(0x1_2345);
    assert_eq!(
        illegal.to_string(),
        "ILLEGAL_COMMAND_ERROR address=0x123450"
    );
    let invalid = InvalidDeviceRequest::new()
        .with_device_id(0x100)
        .with_kind(5)
        .with_address(0xfdf8_0000);
    assert_eq!(
        invalid.to_string(),
        "INVALID_DEVICE_REQUEST device=01:00.0 type=reserved-interrupt-range address=0xfdf80000"
    );
    let rows = [
        (1, "ILLEGAL_DEV_TABLE_ENTRY device=00:00.0 address=0x0"),
        (
            3,
            "DEV_TAB_HARDWARE_ERROR device=00:00.0 type=reserved address=0x0",
        ),
        (
            4,
            "PAGE_TAB_HARDWARE_ERROR device=00:00.0 domain=0x0000 type=reserved address=0x0",
        ),
        (6, "COMMAND_HARDWARE_ERROR type=reserved address=0x0"),
        (7, "IOTLB_INV_TIMEOUT device=00:00.0 address=0x0"),
        (9, "INVALID_PPR_REQUEST device=00:00.0 tag=0x0 address=0x0"),
        (0xa, "EVENT_COUNTER_ZERO note=0x0"),
        (0xb, "GUEST_EVENT_FAULT guest=0x0"),
        (0xc, "VIOMMU_HARDWARE_ERROR guest=0x0 source=0 address=0x0"),
        (
            0xd,
            "RMP_PAGE_FAULT device=00:00.0 vm-guard-tag=0x0 gpa=0x0 rmp-flags=0x0",
        ),
        (
            0xe,
            "RMP_HARDWARE_ERROR device=00:00.0 vm-guard-tag=0x0 spa=0x0",
        ),
        (0xf, "UNKNOWN code=15 bits=0xf000000000000000"),
        (0, "UNKNOWN code=0"),
    ];
    for (code, text) in rows {
        assert_eq!(Event::decode([code << 60, 0]).to_string(), text);
    }
}

#[test]
fn commands_print_their_operands() {
    let wait = CompletionWait::new()
        .with_s(true)
        .with_i(true)
        .with_store_address_8(0x200)
        .with_store_data(1);
    assert_eq!(
        wait.to_string(),
        "COMPLETION_WAIT s i store=0x1000 data=0x1"
    );
    let pages = InvalidateIommuPages::new()
        .with_domain_id(7)
        .with_pde(true)
        .with_range(InvalidationRange::All);
    assert_eq!(
        pages.to_string(),
        "INVALIDATE_IOMMU_PAGES domain=0x0007 range=all PDE"
    );
    let iotlb = InvalidateIotlbPages::new()
        .with_device_id(0x28)
        .with_queue_id(0x28)
        .with_max_pend(32)
        .with_range(InvalidationRange::covering(0x20_0000, 0x3f_ffff));
    assert_eq!(
        iotlb.to_string(),
        "INVALIDATE_IOTLB_PAGES device=00:05.0 range=0x200000+2^21 queue=0x28 MaxPend=32"
    );
    let ppr = CompletePprRequest::new()
        .with_device_id(0x28)
        .with_gn(true)
        .with_pasid(0x12)
        .with_completion_tag(0xf003);
    assert_eq!(
        ppr.to_string(),
        "COMPLETE_PPR_REQUEST device=00:05.0 pasid=0x12 tag=0x3 response=15 GN"
    );
    let reset = ResetVmmio::new().with_guest_id(9).with_all(true);
    assert_eq!(reset.to_string(), "RESET_VMMIO guest=0x9 All");
}

#[test]
fn commands_print_reserved_bits_and_unknown_opcodes() {
    let table = InvalidateInterruptTable::from_bits(0x5 << 60 | 1 << 32 | 0x28);
    assert_eq!(
        table.to_string(),
        "INVALIDATE_INTERRUPT_TABLE device=00:05.0 reserved=0x100000000"
    );
    assert_eq!(
        Command::decode([0xb << 60 | 1, 0]).to_string(),
        "UNKNOWN opcode=11 bits=0xb000000000000001"
    );
    let rows = [
        (2, "INVALIDATE_DEVTAB_ENTRY device=00:00.0"),
        (6, "PREFETCH_IOMMU_PAGES device=00:00.0 range=0x0+2^12"),
        (8, "INVALIDATE_IOMMU_ALL"),
        (9, "INSERT_GUEST_EVENT guest=0x0"),
    ];
    for (opcode, text) in rows {
        assert_eq!(Command::decode([opcode << 60, 0]).to_string(), text);
    }
}

#[test]
fn registers_print_set_flags_and_non_zero_fields_by_their_names() {
    let rows: [(String, &str); 24] = [
        (
            Control::from_bits(0x000c_0800_0002_1485).to_string(),
            "IommuEn EventLogEn InvTimeOut=4 Coherent CmdBufEn GAEn NumIntRemapMode=1 XTEn \
             IntCapXTEn",
        ),
        (Control::new().to_string(), "-"),
        (
            Control::from_bits(1 << 49).to_string(),
            "reserved=0x2000000000000",
        ),
        (
            Status::from_bits(0x1a).to_string(),
            "EventLogInt EventLogRun CmdBufRun",
        ),
        (
            Status::from_bits(1 << 63).to_string(),
            "reserved=0x8000000000000000",
        ),
        (ExtendedFeature::new().to_string(), "HATS=0 GATS=0"),
        (
            ExtendedFeature2::new()
                .with_num_int_remap_sup(1)
                .to_string(),
            "NumIntRemapSup=1",
        ),
        (
            DeviceTableBase::from_bits(0x1234_51ff).to_string(),
            "base=0x12345000 entries=65536",
        ),
        (
            RingBase::from_bits(0x0900_0000_1234_5000).to_string(),
            "base=0x12345000 ComLen=9",
        ),
        (RingPointer::from_bits(0x40).to_string(), "offset=0x40"),
        (
            XtInterruptControl::new()
                .with_vector(0x30)
                .with_destination(0x101)
                .to_string(),
            "Vector=48 Destination=0x101",
        ),
        (
            ExclusionBase::from_bits(0x1003).to_string(),
            "ExEn Allow base=0x1000",
        ),
        (
            CompletionStoreLimit::from_bits(0x1001).to_string(),
            "limit=0x1000 reserved=0x1",
        ),
        (
            MarcRelocation::from_bits(0x8000_0003).to_string(),
            "RelocEn ReadOnly address=0x80000000",
        ),
        (HardwareEventStatus::from_bits(3).to_string(), "HEV HEO"),
        (
            SmiFilter::from_bits(0x1_0028).to_string(),
            "SmiDid=40 SmiDV",
        ),
        (
            CounterSource::from_bits(5).to_string(),
            "CSource=mem_trans_total",
        ),
        (
            CounterSource::from_bits(0x99).to_string(),
            "CSource=reserved(0x99)",
        ),
        (
            CounterAddress::from_offset(0x4_1208).unwrap().to_string(),
            "bank 1 counter 2 source",
        ),
        (
            IdMapControl::from_bits(1 << 63 | 1 | 0x28 << 14).to_string(),
            "write valid host=0x28",
        ),
        (
            VfPprControl::from_bits(0x1_0508).to_string(),
            "PPRLogEn PPREn base=0x1000 PPRLen=8",
        ),
        (DeviceId(0xabff).to_string(), "ab:1f.7"),
        (DomainId(7).to_string(), "0x0007"),
        (CounterFunction::PasidMatch.to_string(), "PASID match"),
    ];
    for (got, want) in rows {
        assert_eq!(got, want);
    }
}

#[test]
fn table_entries_print_what_a_walk_wants_to_know() {
    let rows: [(String, &str); 12] = [
        (
            Irte32::from_bits(0x0030_0341).to_string(),
            "RemapEn type=fixed vector=0x30 dest=0x3 logical",
        ),
        (
            Irte128::decode([0x3456_7805, 0x1200_0000_0000_0030]).to_string(),
            "RemapEn type=lowest-priority vector=0x30 dest=0x12345678",
        ),
        (
            Irte128::decode([0x0000_002a_0000_01c5, 0x0000_0000_1234_5030]).to_string(),
            "RemapEn GALogIntr IsRun GuestMode vector=0x30 dest=0x1 GATag=0x2a vAPIC=0x12345000",
        ),
        (
            Irte128::decode([1 << 40 | 1, 1 << 12]).to_string(),
            "RemapEn type=fixed vector=0x0 dest=0x0 reserved=0x10000000000 \
             reserved[127:64]=0x1000",
        ),
        (
            HostPte::table(0x1234_5000, 2)
                .unwrap()
                .with_ir(true)
                .with_iw(true)
                .to_string(),
            "PR table=0x12345000 next=2 IR IW",
        ),
        (
            HostPte::leaf(0x1234_5000, 1, 12)
                .unwrap()
                .with_fc(true)
                .to_string(),
            "PR page=0x12345000 FC",
        ),
        (
            HostPte::leaf(0x4_0000, 1, 16)
                .unwrap()
                .with_ir(true)
                .to_string(),
            "PR page=0x40000 size=2^16 IR",
        ),
        (
            GuestPte::from_bits(0x8000_0000_1234_5067).to_string(),
            "P address=0x12345000 RW US A D XD",
        ),
        (
            Gcr3Entry::from_bits(0x1234_5003).to_string(),
            "V address=0x12345000 reserved=0x2",
        ),
        (
            GaLogEntry::new()
                .with_code(1)
                .with_device_id(0x28)
                .with_ga_tag(0x2a)
                .to_string(),
            "GUEST_NR device=00:05.0 tag=0x2a",
        ),
        (
            PprLogEntry::new()
                .with_device_id(0x28)
                .with_gn(true)
                .with_pasid(0x1_0002)
                .with_address_page(0x12345)
                .with_tag(3)
                .with_last_page(true)
                .with_read(true)
                .to_string(),
            "PAGE_REQUEST device=00:05.0 pasid=0x10002 address=0x12345000 tag=0x3 LastPage READ GN",
        ),
        (
            GaLogEntry::new().to_string(),
            "code=0 device=00:00.0 tag=0x0",
        ),
    ];
    for (got, want) in rows {
        assert_eq!(got, want);
    }
}

#[test]
fn interrupt_messages_print_their_fields() {
    assert_eq!(
        MsiAddress::new()
            .with_dest(3)
            .with_logical(true)
            .to_string(),
        "address=0xfee03004 dest=0x3 logical"
    );
    assert_eq!(
        MsiData::new()
            .with_vector(0x30)
            .with_delivery_mode(4)
            .to_string(),
        "vector=0x30 mode=NMI"
    );
    let msi = Msi {
        address: 0xfee0_0000,
        data: 0x30,
    };
    assert_eq!(msi.to_string(), "address=0xfee00000 data=0x30");
}

#[test]
fn pci_capabilities_print_their_fields() {
    let header = CapabilityHeader::iommu(0x64).with_efr_sup(true);
    assert_eq!(
        header.to_string(),
        "CapId=15 CapPtr=100 CapType=3 CapRev=1 EFRSup"
    );
    assert_eq!(
        MsiCapability::from_bits(0x0081_7405).to_string(),
        "CapId=5 CapPtr=116 MsiEn 64BitEn"
    );
    assert_eq!(
        DeviceRange::from_bits(0xff08_0080).to_string(),
        "RngValid first=00:01.0 last=00:1f.7"
    );
    let mut block = CapabilityBlock::default().with_mmio_base(0xfed8_0000);
    block.header = header;
    block.base_low = block.base_low.with_enable(true);
    block.misc_info_0 = MiscInfo0::new()
        .with_gva_size(2)
        .with_pa_size(48)
        .with_va_size(64);
    assert_eq!(
        block.to_string(),
        "CapId=15 CapPtr=100 CapType=3 CapRev=1 EFRSup | Enable base=0xfed80000 | - | \
         MsiNum=0 GVAsize=2 PAsize=48 VAsize=64 MsiNumPPR=0 | MsiNumGA=0"
    );
}
