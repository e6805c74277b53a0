//! Values whose decoding is known: registers of real machines, address arithmetic, invalidation
//! ranges, flags and open enums.

use amdvi_regs::command::{
    Command, CompletePprRequest, InvalidateIommuPages, InvalidateIotlbPages, InvalidationRange,
    PrefetchIommuPages,
};
use amdvi_regs::dte::{Dte, IntCtl, SysMgt};
use amdvi_regs::event::{Event, EventFlags, InvalidRequestType, IoPageFault};
use amdvi_regs::irte::Irte128;
use amdvi_regs::log::{GaLogEntry, PprLogEntry};
use amdvi_regs::mmio::{
    CounterAddress, CounterEvent, CounterFunction, ExclusionBase, ExclusionLimit, ExtendedFeature,
    ExtendedFeature2, XtInterruptControl,
};
use amdvi_regs::msi::{self, DeliveryMode, MsiAddress, MsiData};
use amdvi_regs::pci::{CapabilityBlock, CapabilityHeader, HtMsiMapping};
use amdvi_regs::{DeviceId, gcr3, guest_pte::GuestPte, pte, pte::HostPte, viommu};
use proptest::prelude::*;

/// The field list of an EFR that prints only what is set, for comparison with the known decoding.
fn efr(bits: u64) -> String {
    ExtendedFeature::from_bits(bits).to_string()
}

#[test]
fn efr_of_a_machine_with_guest_ppi_and_secure_ats_decodes_as_known() {
    assert_eq!(
        efr(0x2465_77ef_a225_4afa),
        "PPRSup NXSup GTSup GAPPISup IASup GASup PCSup HATS=2 GATS=0 GLXSup=1 SmiFSup=1 SmiFRC=1 \
         GAMSup=1 DualPprLogSup=2 DualEventLogSup=2 SATSup PASmax=15 USSup DevTblSegSup=3 \
         PprOvrflwEarlySup PPRAutoRspSup MarcSup=1 BlkStopMrkSup PerfOptSup MsiCapMmioSup GIoSup \
         EPHSup V2HDDisSup InvIotlbTypeSup VmTableSize=2 GAUpdateDisSup"
    );
    let efr2 = ExtendedFeature2::from_bits(0x10);
    assert_eq!(efr2.to_string(), "GAPPIDisSup");
}

#[test]
fn efr_of_a_machine_with_x2apic_and_without_marc_decodes_as_known() {
    assert_eq!(
        efr(0x206d_73ef_2225_4ade),
        "PPRSup XTSup NXSup GTSup IASup GASup PCSup HATS=2 GATS=0 GLXSup=1 SmiFSup=1 SmiFRC=1 \
         GAMSup=1 DualPprLogSup=2 DualEventLogSup=2 PASmax=15 USSup DevTblSegSup=3 \
         PprOvrflwEarlySup PPRAutoRspSup BlkStopMrkSup PerfOptSup MsiCapMmioSup GIoSup EPHSup \
         AttrFWSup V2HDDisSup InvIotlbTypeSup GAUpdateDisSup"
    );
}

#[test]
fn efr_of_a_machine_with_hardware_viommu_decodes_as_known() {
    let without = "PPRSup NXSup GTSup IASup GASup PCSup HATS=2 GATS=0 GLXSup=1 SmiFSup=1 SmiFRC=2 \
                   GAMSup=1 DualPprLogSup=2 DualEventLogSup=2 PASmax=15 USSup DevTblSegSup=3 \
                   PprOvrflwEarlySup PPRAutoRspSup MarcSup=1 BlkStopMrkSup PerfOptSup \
                   MsiCapMmioSup GIoSup HASup EPHSup AttrFWSup";
    assert_eq!(efr(0x000f_77ef_2229_4ada), without);
    assert_eq!(
        efr(0x058f_77ef_2229_4ada),
        format!("{without} vIommuSup VmGuardIoSup VmTableSize=2")
    );
}

#[test]
fn efr_of_a_default_emulated_unit_decodes_as_known() {
    assert_eq!(
        efr(0x29d3),
        "PreFSup PPRSup GTSup IASup GASup HESup HATS=2 GATS=2"
    );
}

/// (range, dw3, dw2) with S=1, PDE=0, GN=0; the first row has S=0.
const RANGES: [(InvalidationRange, u32, u32); 8] = [
    (block(0x1234_5000, 12), 0, 0x1234_5000),
    (block(0x1234_4000, 13), 0, 0x1234_4001),
    (block(0x1234_4000, 14), 0, 0x1234_5001),
    (block(0x1234_0000, 16), 0, 0x1234_7001),
    (block(0x1220_0000, 21), 0, 0x122f_f001),
    (block(0x4000_0000, 30), 0, 0x5fff_f001),
    (block(0x1_0000_0000, 32), 1, 0x7fff_f001),
    (block(0, 52), 0x0007_ffff, 0xffff_f001),
];

const fn block(start: u64, size_log2: u8) -> InvalidationRange {
    InvalidationRange::Block { start, size_log2 }
}

#[test]
fn invalidation_ranges_encode_to_the_literal_dwords() {
    for (range, dw3, dw2) in RANGES {
        let words = Command::from(InvalidateIommuPages::new().with_range(range)).words();
        assert_eq!(words[1], u64::from(dw3) << 32 | u64::from(dw2), "{range}");
        // The same place in the other two commands.
        let iotlb = Command::from(InvalidateIotlbPages::new().with_range(range)).words();
        let prefetch = Command::from(PrefetchIommuPages::new().with_range(range)).words();
        assert_eq!((iotlb[1], prefetch[1]), (words[1], words[1]), "{range}");
    }
}

#[test]
fn invalidation_ranges_decode_from_the_literal_dwords() {
    for (range, dw3, dw2) in RANGES {
        let command = Command::decode([0x3 << 60, u64::from(dw3) << 32 | u64::from(dw2)]);
        let Command::InvalidateIommuPages(command) = command else {
            panic!("decoded as {command}");
        };
        assert_eq!(command.range(), range);
        assert_eq!((command.pde(), command.gn()), (false, false), "{range}");
    }
}

#[test]
fn whole_space_invalidation_is_ones_up_to_bit_62() {
    let command = InvalidateIommuPages::new()
        .with_range(InvalidationRange::All)
        .with_pde(true);
    assert_eq!(Command::from(command).words()[1], 0x7fff_ffff_ffff_f003);
    assert_eq!(command.range(), InvalidationRange::All);
}

#[test]
fn invalidation_without_any_zero_bit_means_everything() {
    let range = InvalidationRange::decode(0xffff_ffff_ffff_f000, true);
    assert_eq!(range, InvalidationRange::All);
}

#[test]
fn invalidation_size_comes_from_the_lowest_zero_bit_not_the_highest() {
    // Bits above the lowest zero are address, however many of them are ones.
    let range = InvalidationRange::decode(0xffff_ffff_0000_0000, true);
    assert_eq!(range, block(0xffff_ffff_0000_0000, 13));
}

#[test]
fn invalidation_size_bit_clear_means_one_page_whatever_the_address() {
    let range = InvalidationRange::decode(0x7fff_ffff_ffff_ffff, false);
    assert_eq!(range, block(0x7fff_ffff_ffff_f000, 12));
}

#[test]
fn covering_range_spans_the_alignment_boundary_between_its_ends() {
    assert_eq!(
        InvalidationRange::covering(0x1000, 0x1fff),
        block(0x1000, 12)
    );
    assert_eq!(InvalidationRange::covering(0x1000, 0x2fff), block(0, 14));
    assert_eq!(InvalidationRange::covering(0x2fff, 0x1000), block(0, 14));
    assert_eq!(
        InvalidationRange::covering(0, u64::MAX),
        InvalidationRange::All
    );
    assert_eq!(InvalidationRange::covering(0, u64::MAX >> 1), block(0, 63));
}

proptest! {
    #[test]
    fn any_invalidation_word_decodes_to_an_aligned_range_that_holds_its_address(
        address: u64, s: bool,
    ) {
        let range = InvalidationRange::decode(address, s);
        prop_assert!(range.contains(address & !0xfff));
        if let InvalidationRange::Block { start, size_log2 } = range {
            prop_assert!((12..=63).contains(&size_log2));
            prop_assert_eq!(start & ((1 << size_log2) - 1), 0);
            prop_assert_eq!(range.last() - range.first(), (1 << size_log2) - 1);
        }
        let (word, size) = range.encode();
        prop_assert_eq!(word & 0xfff, 0);
        prop_assert_eq!(InvalidationRange::decode(word, size), range);
    }

    #[test]
    fn covering_range_holds_both_ends_and_no_smaller_one_does(a: u64, b: u64) {
        let range = InvalidationRange::covering(a, b);
        prop_assert!(range.contains(a) && range.contains(b));
        prop_assert!(range.overlaps(a.min(b), a.max(b)));
        if let InvalidationRange::Block { start, size_log2 } = range
            && size_log2 > 12
        {
            let half = 1 << (size_log2 - 1);
            prop_assert_ne!((a - start) < half, (b - start) < half);
        }
    }

    #[test]
    fn commands_and_events_keep_every_bit_and_print(words: [u64; 2]) {
        let command = Command::decode(words);
        prop_assert_eq!(command.words(), words);
        prop_assert!(command.to_string().starts_with(command.name()));
        let event = Event::decode(words);
        prop_assert_eq!(event.words(), words);
        prop_assert!(event.to_string().starts_with(event.name()));
        let irte = Irte128::decode(words);
        prop_assert_eq!(irte.words(), words);
        prop_assert!(!irte.to_string().is_empty());
        let ppr = PprLogEntry::from_words(words);
        prop_assert_eq!(ppr.words(), words);
        prop_assert!(!ppr.to_string().is_empty());
    }

    #[test]
    fn table_entries_of_any_bits_decode_and_print(words: [u64; 4], level: u8) {
        let dte = Dte::from_words(words);
        prop_assert_eq!(dte.words(), words);
        prop_assert!(dte.to_string().contains(" | "));
        let host = HostPte::from_bits(words[0]);
        if let (Some(shift), Some(page)) = (host.page_shift(level), host.page_address(level)) {
            prop_assert_eq!(page & ((1 << shift) - 1), 0);
        }
        prop_assert!(!host.to_string().is_empty());
        let guest = GuestPte::from_bits(words[1]);
        prop_assert_eq!(guest.page_shift(level).is_some(), guest.is_leaf(level));
        prop_assert_eq!(guest.address(level) & 0xfff, 0);
        prop_assert!(!guest.to_string().is_empty());
    }

    #[test]
    fn host_leaf_decodes_to_the_page_it_was_made_for(
        address: u64, level in 1..=6u8, above in 0..9u32,
    ) {
        let shift = pte::level_shift(level).unwrap() + above;
        match HostPte::leaf(address, level, shift) {
            Some(leaf) => {
                prop_assert!(leaf.pr() && leaf.is_leaf());
                prop_assert_eq!(leaf.page_shift(level), Some(shift));
                let want = address & HostPte::ADDRESS_MASK & !((1 << shift) - 1);
                prop_assert_eq!(leaf.page_address(level), Some(want));
                prop_assert_eq!(leaf.reserved_bits_set(), 0);
            }
            None => prop_assert!(shift > 52, "level {} has 2^{}", level, shift),
        }
    }
}

#[test]
fn host_table_levels_cover_the_literal_shifts() {
    let shifts = [12, 21, 30, 39, 48, 57];
    let bits = [21, 30, 39, 48, 57, 64];
    for (n, (shift, bits)) in shifts.into_iter().zip(bits).enumerate() {
        let level = n as u8 + 1;
        assert_eq!(pte::level_shift(level), Some(shift));
        assert_eq!(pte::iova_bits(level), Some(bits));
    }
    for level in [0, 7, 8, 255] {
        assert_eq!(pte::level_shift(level), None);
        assert_eq!(pte::iova_bits(level), None);
        assert_eq!(pte::table_index(u64::MAX, level), None);
    }
    assert_eq!(pte::table_index(u64::MAX, 5), Some(511));
    assert_eq!(pte::table_index(u64::MAX, 6), Some(127), "IOVA[63:57]");
}

#[test]
fn next_level_7_encodes_the_page_size_in_the_lowest_zero_bit() {
    let sized = |page: u64| HostPte::new().with_next_level(7).with_address_page(page);
    // Address bit 12 clear: 8 KiB; [14:12] ones, bit 15 clear: 64 KiB.
    assert_eq!(sized(0x40).page_shift(1), Some(13));
    assert_eq!(sized(0x47).page_shift(1), Some(16));
    assert_eq!(sized(0x47).page_address(1), Some(0x40_000));
    // [20:12] ones, bit 21 clear: 4 MiB at level 2.
    assert_eq!(sized(0x1ff).page_shift(2), Some(22));
    assert_eq!(
        HostPte::leaf(0x40_0000, 2, 22).unwrap().address(),
        0x5f_f000
    );
}

#[test]
fn next_level_7_size_must_lie_between_this_level_and_the_next() {
    let sized = |page: u64| HostPte::new().with_next_level(7).with_address_page(page);
    // 2 MiB is level 2's own size, so neither level 1 nor level 2 may encode it.
    assert_eq!(sized(0x0ff).encoded_page_shift(), 21);
    assert_eq!(sized(0x0ff).page_shift(1), None);
    assert_eq!(sized(0x0ff).page_shift(2), None);
    assert_eq!(sized(0).page_shift(2), None, "8 KiB at level 2");
    assert_eq!(sized((1 << 40) - 1).encoded_page_shift(), 53);
    assert_eq!(sized((1 << 40) - 1).page_shift(5), Some(53));
    assert_eq!(HostPte::leaf(0, 5, 53), None, "no room for the zero bit");
}

#[test]
fn next_level_0_is_a_page_of_the_levels_own_size() {
    let leaf = HostPte::new().with_address_page(0x12345);
    assert_eq!(leaf.page_shift(1), Some(12));
    assert_eq!(leaf.page_shift(3), Some(30));
    assert_eq!(leaf.page_address(1), Some(0x1234_5000));
    assert_eq!(leaf.page_address(2), Some(0x1220_0000));
    assert_eq!(HostPte::leaf(0x1220_0000, 2, 21).unwrap().next_level(), 0);
}

#[test]
fn next_level_1_to_6_is_a_table() {
    for next in 1..=6 {
        let pde = HostPte::table(0x1234_5000, next).unwrap();
        assert!(!pde.is_leaf());
        assert_eq!(pde.page_shift(next), None);
        assert_eq!((pde.address(), pde.next_level()), (0x1234_5000, next));
    }
    assert_eq!(HostPte::table(0, 0), None);
    assert_eq!(HostPte::table(0, 7), None);
}

#[test]
fn guest_page_sizes_are_4k_2m_and_1g() {
    let page = GuestPte::from_bits(0x0000_0000_7fff_f081);
    assert_eq!(page.page_shift(1), Some(12));
    assert_eq!(page.page_shift(2), Some(21));
    assert_eq!(page.page_shift(3), Some(30));
    assert_eq!(page.page_shift(4), None);
    assert_eq!(page.address(1), 0x7fff_f000);
    assert_eq!(page.address(2), 0x7fe0_0000);
    assert_eq!(page.address(3), 0x4000_0000);
    assert!(page.pat(1) && page.pat(2) && page.pat(3) && !page.pat(4));
    let table = GuestPte::from_bits(0x1001);
    assert!(table.is_leaf(1) && !table.is_leaf(2) && !table.is_leaf(3));
    assert!(!table.pat(1) && !table.pat(2));
}

#[test]
fn guest_large_page_reserves_the_address_bits_below_its_size() {
    let all = GuestPte::from_bits(u64::MAX);
    assert_eq!(all.reserved_bits_set(1), 0);
    assert_eq!(all.reserved_bits_set(2), 0x001f_e000);
    assert_eq!(all.reserved_bits_set(3), 0x3fff_e000);
    assert_eq!(all.reserved_bits_set(4), 0x80);
    assert_eq!(all.with_ps(false).reserved_bits_set(3), 0);
}

#[test]
fn gcr3_index_splits_the_pasid_9_9_2() {
    assert_eq!(gcr3::index(0xf_ffff, 1), Some(0x1ff));
    assert_eq!(gcr3::index(0xf_ffff, 2), Some(0x1ff));
    assert_eq!(gcr3::index(0xf_ffff, 3), Some(0x3));
    assert_eq!(gcr3::index(0b10_000000011_000000101, 1), Some(5));
    assert_eq!(gcr3::index(0b10_000000011_000000101, 2), Some(3));
    assert_eq!(gcr3::index(0b10_000000011_000000101, 3), Some(2));
    assert_eq!(gcr3::index(0, 0), None);
    assert_eq!(gcr3::index(0, 4), None);
    assert_eq!(
        [0, 1, 2, 3].map(gcr3::levels),
        [Some(1), Some(2), Some(3), None]
    );
    assert_eq!(
        [1, 2, 3, 4].map(gcr3::pasid_bits),
        [Some(9), Some(18), Some(20), None]
    );
}

#[test]
fn dte_gcr3_root_is_assembled_from_three_fields() {
    let dte = Dte::default().with_gcr3_address(0x000f_ffff_ffff_f000);
    assert_eq!(dte.gcr3_address(), 0x000f_ffff_ffff_f000);
    assert_eq!(dte.q0.into_bits(), 0b111 << 58);
    assert_eq!(dte.q1.into_bits(), 0xffff << 16 | 0x1f_ffff << 43);
    let dte = dte.with_host_pt_address(u64::MAX);
    assert_eq!(dte.host_pt_address(), 0x000f_ffff_ffff_f000);
}

#[test]
fn iotlb_pasid_is_split_low_byte_in_55_48_and_next_byte_in_23_16() {
    let command = InvalidateIotlbPages::from_bits(0).with_pasid(0xa_bcde);
    assert_eq!(command.pasid(), 0xa_bcde);
    assert_eq!(command.into_bits(), 0xa << 56 | 0xde << 48 | 0xbc << 16);
}

#[test]
fn completion_tag_holds_group_index_8_0_and_response_15_12() {
    let command = CompletePprRequest::new().with_completion_tag(0xf1a5);
    assert_eq!(command.group_index(), 0x1a5);
    assert_eq!(
        command.response_code(),
        CompletePprRequest::RESPONSE_FAILURE
    );
}

#[test]
fn new_entries_carry_their_code() {
    assert_eq!(
        Command::from(CompletePprRequest::new()).words()[0],
        0x7 << 60
    );
    assert_eq!(Event::from(IoPageFault::new()).words()[0], 0x2 << 60);
    assert_eq!(PprLogEntry::new().words(), [0x1 << 60, 0]);
    assert_eq!(PprLogEntry::new().with_pasid(0x5_4321).pasid(), 0x5_4321);
    assert_eq!(GaLogEntry::new().code(), 0, "not written yet");
}

#[test]
fn event_flags_are_only_those_that_the_event_defines() {
    let cases = [
        (1, "GN I RW RZ TR"),
        (2, "GN NX US I PR RW PE RZ TR"),
        (3, "I RW TR"),
        (4, "GN I RW TR"),
        (5, ""),
        (8, "GN US TR"),
        (9, ""),
    ];
    for (code, names) in cases {
        let event = Event::decode([code << 60 | 0x0fff << 48, 0]);
        assert_eq!(event.flags().to_string(), names, "{event}");
    }
    let bits = EventFlags::I | EventFlags::PR | EventFlags::RW;
    assert_eq!(u64::from(bits.bits()) << 48, 1 << 51 | 1 << 52 | 1 << 53);
}

#[test]
fn open_enums_keep_every_encoding() {
    for bits in 0..=255u8 {
        assert_eq!(CounterEvent::from_bits(bits).bits(), bits);
        assert_eq!(DeliveryMode::from_bits(bits).bits(), bits & 7);
        for tr in [false, true] {
            let kind = InvalidRequestType::from_bits(tr, bits);
            assert_eq!(kind.bits(), (tr, bits & 7), "{kind}");
        }
    }
    assert_eq!(IntCtl::from_bits(2), IntCtl::Remap);
    assert_eq!(IntCtl::from_bits(3), IntCtl::Reserved);
    assert_eq!(SysMgt::from_bits(3), SysMgt::Translate);
    assert_eq!(DeliveryMode::from_bits(3), DeliveryMode::Reserved(3));
    assert_eq!(DeliveryMode::from_bits(6), DeliveryMode::Reserved(6));
}

#[test]
fn counter_events_01_to_18_have_their_names() {
    let names = [
        "off",
        "mem_pass_untrans",
        "mem_pass_pretrans",
        "mem_pass_excl",
        "mem_target_abort",
        "mem_trans_total",
        "mem_iommu_tlb_pte_hit",
        "mem_iommu_tlb_pte_mis",
        "mem_iommu_tlb_pde_hit",
        "mem_iommu_tlb_pde_mis",
        "mem_dte_hit",
        "mem_dte_mis",
        "page_tbl_read_tot",
        "page_tbl_read_nst",
        "page_tbl_read_gst",
        "int_dte_hit",
        "int_dte_mis",
        "cmd_processed",
        "cmd_processed_inv",
        "tlb_inv",
        "ign_rd_wr_mmio_1ff8h",
        "vapic_int_non_guest",
        "vapic_int_guest",
        "smi_recv",
        "smi_blk",
    ];
    for (bits, name) in names.into_iter().enumerate() {
        assert_eq!(CounterEvent::from_bits(bits as u8).name(), name);
    }
    assert_eq!(CounterEvent::ALL.len(), names.len());
    assert_eq!(CounterEvent::from_bits(0x19), CounterEvent::Reserved(0x19));
}

#[test]
fn counter_registers_stand_at_bank_12_counter_8_function() {
    let address = CounterAddress {
        bank: 1,
        counter: 3,
        function: CounterFunction::DeviceIdMatch,
    };
    assert_eq!(address.offset(), 0x4_1320);
    let mut found = 0;
    for mmio in (0..0x9_0000).step_by(8) {
        if let Some(address) = CounterAddress::from_offset(mmio) {
            assert_eq!(address.offset(), mmio, "{address}");
            found += 1;
        }
    }
    assert_eq!(found, 64 * 16 * 6, "banks × counters × registers");
    assert_eq!(CounterAddress::from_offset(0x3_fff8), None);
    assert_eq!(CounterAddress::from_offset(0x4_0030), None);
    assert_eq!(CounterAddress::from_offset(0x8_0000), None);
}

#[test]
fn exclusion_limit_includes_its_last_page() {
    let base = ExclusionBase::from_bits(0x10_0003);
    let limit = ExclusionLimit::from_bits(0x10_0000);
    assert_eq!((base.address(), limit.last()), (0x10_0000, 0x10_0fff));
}

#[test]
fn xt_destination_is_split_in_low_24_and_high_8_bits() {
    let control = XtInterruptControl::new().with_destination(0x1234_5678);
    assert_eq!(control.into_bits(), 0x1200_0000_3456_7800);
    assert_eq!(control.destination(), 0x1234_5678);
}

#[test]
fn irte_destination_is_split_in_low_24_and_high_8_bits() {
    let remap = Irte128::decode([0x3456_7801, 0x1200_0000_0000_0000]);
    assert!(matches!(remap, Irte128::Remap(..)));
    assert_eq!(remap.destination(), 0x1234_5678);
    let guest = Irte128::decode([0x3456_7881, 0x1200_0000_0000_0000]);
    assert!(matches!(guest, Irte128::Guest(..)));
    assert_eq!(guest.destination(), 0x1234_5678);
}

#[test]
fn msi_index_is_data_10_0_and_the_window_is_one_mebibyte() {
    assert_eq!(MsiData::from_bits(0xffff_ffff).irte_index(), 0x7ff);
    assert_eq!(MsiData::from_bits(0xffff_f800).irte_index(), 0);
    assert_eq!(MsiAddress::new().into_bits(), 0xfee0_0000);
    for (address, inside) in [
        (0xfedf_ffff, false),
        (0xfee0_0000, true),
        (0xfeef_ffff, true),
        (0xfef0_0000, false),
        (0x1_fee0_0000, false),
    ] {
        assert_eq!(msi::is_msi_address(address), inside, "{address:#x}");
    }
}

#[test]
fn capability_header_of_an_iommu_is_id_0f_type_3_revision_1() {
    assert_eq!(CapabilityHeader::iommu(0x64).into_bits(), 0x000b_640f);
    assert_eq!(HtMsiMapping::fixed_mapping(0).into_bits(), 0xa803_0008);
}

#[test]
fn capability_block_base_has_the_literal_mask() {
    let block = CapabilityBlock::from_words([0; 6]).with_mmio_base(u64::MAX);
    let words = block.words();
    assert_eq!(words, [0, 0xffff_c000, 0xffff_ffff, 0, 0, 0]);
    assert_eq!(block.mmio_base(), 0xffff_ffff_ffff_c000);
    let all = CapabilityBlock::from_words([u32::MAX; 6]);
    assert_eq!(all.words(), [u32::MAX; 6]);
    assert_eq!(all.range.first(), DeviceId(0xffff));
}

#[test]
fn viommu_regions_are_indexed_by_guest() {
    assert_eq!(viommu::vf_offset(0xffff, 0x18), 0xfff_f018);
    assert_eq!(viommu::vf_offset(0xffff, 0xfff) + 1, viommu::VF_REGION_SIZE);
    assert_eq!(
        viommu::vf_control_offset(2, viommu::vf_control::PPR_LOG_B_BASE),
        0xb8
    );
    assert_eq!(
        viommu::vf_control_offset(0xffff, 0x3f) + 1,
        viommu::VF_CONTROL_REGION_SIZE
    );
    let offsets = [
        (viommu::vf_control::DEVICE_ID_MAP, 0x00),
        (viommu::vf_control::DOMAIN_ID_MAP, 0x08),
        (viommu::vf_control::MISC, 0x10),
        (viommu::vf_control::EVENT_LOG_B_BASE, 0x18),
        (viommu::vf_control::COMMAND_CONTROL, 0x20),
        (viommu::vf_control::EVENT_CONTROL, 0x28),
        (viommu::vf_control::PPR_CONTROL, 0x30),
        (viommu::vf_control::PPR_LOG_B_BASE, 0x38),
    ];
    for (got, want) in offsets {
        assert_eq!(got, want);
    }
    assert_eq!(viommu::private_space::device_id_map(1, 2), 0x10_0010_0020);
    assert_eq!(viommu::private_space::domain_id_map(1, 2), 0x20_0008_0010);
    let id = viommu::ExtendedInterruptId::from_bits(0x1_abcd);
    assert_eq!((id.level_1_index(), id.level_2_index()), (0x1ab, 0xcd));
}
