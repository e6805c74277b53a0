//! The table.

use super::look::*;
use super::{Right, Rule};
use amdvi_device::Abort;
use amdvi_dma::{DteDefect, Reason};
use amdvi_irt::FaultReason;
use amdvi_regs::command::Command;
use amdvi_regs::dte::IntCtl;
use amdvi_regs::msi::DeliveryMode;

use crate::case::{Outcome, Refusal, Step};
use crate::compare::{Field, Place};
use crate::layout::{Device, is_ram};

/// All of them; the first that applies counts.
pub static RULES: &[Rule] = &[
    // ---- the device table ----
    Rule {
        name: "device-table-size-ignored",
        right: Right::Ours,
        why: "a DeviceID past the end of its table (section 3.4.1) is not translated; QEMU reads \
              whatever lies behind the table",
        test: "a_device_id_past_the_device_table_faults_without_domain",
        applies: |d| {
            matches!(
                d.refusal(),
                Some(
                    Refusal::Dma(Abort::DeviceIdOutOfRange(_))
                        | Refusal::Interrupt(FaultReason::DeviceIdOutOfRange)
                )
            )
        },
    },
    Rule {
        name: "whole-dte-checked",
        right: Right::Both,
        why: "QEMU refuses a DTE for a reserved bit anywhere in it; section 2.2.2.1 lets V validate \
              the lower half and IV the upper, so we check the half in use",
        test: "v_0_passes_everything_and_bits_127_1_mean_nothing",
        applies: |d| theirs_illegal_dte(d) && !ours_illegal_dte(d) && qemu_reserved(d),
    },
    Rule {
        name: "invalidation-looks-at-the-dte",
        right: Right::Ours,
        why: "INVALIDATE_DEVTAB_ENTRY (section 2.4.2) removes a cached entry; an event belongs to a \
              request. QEMU reads the entry at once and logs what it finds",
        test: "each_reserved_bit_of_the_dte_is_illegal_with_rz_1",
        applies: |d| {
            let Some((i, Step::Commands(list))) = d.step() else {
                return false;
            };
            d.events().is_some_and(|(ours, theirs)| {
                ours.is_empty() && theirs.iter().all(|&code| code == ILLEGAL_DEV_TABLE_ENTRY)
            }) && Device::ALL.into_iter().any(|device| {
                let invalidated = list.iter().any(|&words| {
                    matches!(Command::decode(words),
                        Command::InvalidateDevtabEntry(c) if c.device_id() == device.id().0)
                });
                invalidated && has_qemu_reserved(&d.case.dte(device, i))
            })
        },
    },
    Rule {
        name: "dte-reserved-bits-accepted",
        right: Right::Ours,
        why: "bits that are reserved, or belong to features that EFR doesn't offer, make a DTE \
              illegal (section 2.2.2.1, ILLEGAL_DEV_TABLE_ENTRY with RZ=1); QEMU offers guest \
              translation without having it, and checks few bits",
        test: "each_reserved_bit_of_the_dte_is_illegal_with_rz_1",
        applies: |d| {
            matches!(
                d.refusal(),
                Some(
                    Refusal::Dma(Abort::Translation(Reason::IllegalDte(
                        DteDefect::ReservedBits { .. }
                    ))) | Refusal::Interrupt(FaultReason::DteReservedBits)
                )
            ) && !theirs_illegal_dte(d)
                && !has_qemu_reserved_in_use(d)
        },
    },
    Rule {
        name: "mode-7-not-logged",
        right: Right::Ours,
        why: "an unsupported Mode is an illegal level encoding (section 2.5.2); QEMU aborts silently",
        test: "qemu_14_read_only_pages_mode_7_and_tv_0_are_logged",
        applies: |d| {
            matches!(
                d.refusal(),
                Some(Refusal::Dma(Abort::Translation(Reason::IllegalDte(
                    DteDefect::Mode { mode: 7, .. }
                ))))
            ) && events_are(d, &[ILLEGAL_DEV_TABLE_ENTRY], &[])
        },
    },
    Rule {
        name: "tv-0-not-logged",
        right: Right::Ours,
        why: "V=1 with TV=0 blocks with an IO_PAGE_FAULT, PR=0 (section 2.2.2.1); QEMU aborts \
              silently",
        test: "qemu_14_read_only_pages_mode_7_and_tv_0_are_logged",
        applies: |d| {
            dma_refused(d, |r| matches!(r, Reason::TranslationNotValid))
                && events_are(d, &[IO_PAGE_FAULT], &[])
        },
    },
    // ---- stale translations ----
    Rule {
        name: "translations-outlive-their-domain",
        right: Right::Ours,
        why: "cached translations belong to a DomainID (section 2.4.3): once the DTE names another \
              and is invalidated (section 2.4.2), the old ones don't apply. QEMU's belong to the \
              device",
        test: "qemu_6_a_device_that_moves_to_another_domain_leaves_its_translations_behind",
        applies: |d| {
            d.step().is_some_and(|(i, _)| moved_to_another_domain(d, i))
                && d.theirs()
                    .is_some_and(|theirs| as_before(d, theirs, &d.theirs.steps))
        },
    },
    Rule {
        name: "stale-until-invalidated",
        right: Right::Both,
        why: "a translation may be used until the page is invalidated (section 2.4); nothing has \
              done that in the case",
        test: "a_stale_entry_is_used_only_until_its_invalidation",
        applies: |d| {
            d.step().is_some_and(|(i, _)| may_be_stale(d, i))
                && [(d.ours(), d.ours), (d.theirs(), d.theirs)]
                    .into_iter()
                    .any(|(now, all)| now.is_some_and(|now| as_before(d, now, &all.steps)))
        },
    },
    // ---- the walk ----
    Rule {
        name: "permissions-of-one-level",
        right: Right::Ours,
        why: "permissions are ANDed from the DTE through all levels (section 2.2.3); QEMU looks at \
              the leaf's, and with Mode 0 at none",
        test: "qemu_5_a_write_needs_iw_in_the_dte_and_in_every_level",
        applies: |d| {
            dma_refused(d, |r| matches!(r, Reason::Permission { .. }))
                && !denied_by_leaf(d)
                && (theirs_went_on(d)
                    // What it goes on to may be unreadable.
                    || d.theirs().is_some_and(|theirs| {
                        theirs.events == [PAGE_TAB_HARDWARE_ERROR, IO_PAGE_FAULT]
                    }))
        },
    },
    Rule {
        name: "forbidden-access-not-logged",
        right: Right::Ours,
        why: "an access that the tables forbid is an IO_PAGE_FAULT (section 2.5.3); QEMU logs none \
              where its memory core refuses instead of its walk",
        test: "qemu_14_read_only_pages_mode_7_and_tv_0_are_logged",
        applies: |d| {
            dma_refused(d, |r| {
                matches!(r, Reason::Permission { .. } | Reason::NotPresent { .. })
            }) && events_are(d, &[IO_PAGE_FAULT], &[])
        },
    },
    Rule {
        name: "reserved-entry-bits-accepted",
        right: Right::Ours,
        why: "PDE[60:52] and PTE[58:52] are reserved (section 2.2.3, RZ=1); QEMU doesn't look",
        test: "openvmm_8_modes_skipped_bits_reserved_bits_and_page_sizes_are_checked",
        applies: |d| dma_refused(d, |r| matches!(r, Reason::ReservedEntryBits { .. })),
    },
    Rule {
        name: "skipped-bits-ignored",
        right: Right::Ours,
        why: "address bits of skipped levels must be zero (section 2.2.3); QEMU ignores them",
        test: "a_pde_may_skip_levels_whose_iova_bits_are_zero",
        applies: |d| dma_refused(d, |r| matches!(r, Reason::SkippedBits { .. })),
    },
    Rule {
        name: "page-size-of-any-level",
        right: Right::Ours,
        why: "NextLevel=7 encodes a size strictly between the level's default and the next one's \
              (section 2.2.3); QEMU takes any",
        test: "next_level_7_sizes_lie_strictly_between_the_defaults_of_the_level_and_the_next",
        applies: |d| dma_refused(d, |r| matches!(r, Reason::PageSize { .. })),
    },
    Rule {
        name: "hardware-error-and-page-fault",
        right: Right::Ours,
        why: "an unreadable table is one PAGE_TAB_HARDWARE_ERROR (section 2.5.5); QEMU logs a page \
              fault as well",
        test: "an_unreadable_entry_is_a_page_tab_hardware_error_with_its_address",
        applies: |d| {
            dma_refused(d, |r| matches!(r, Reason::TableUnreadable { .. }))
                && events_are(
                    d,
                    &[PAGE_TAB_HARDWARE_ERROR],
                    &[PAGE_TAB_HARDWARE_ERROR, IO_PAGE_FAULT],
                )
        },
    },
    // ---- special addresses ----
    Rule {
        name: "ht-ranges-are-memory",
        right: Right::Ours,
        why: "FD_0000_0000h–FF_FFFF_FFFFh have their own rules (section 2.1.2, table 3) unless EFR2 \
              says HTRangeIgnore; QEMU translates them as memory",
        test: "the_ht_ranges_are_not_memory_for_a_translated_device",
        applies: |d| hyper_transport(d).is_some(),
    },
    Rule {
        name: "msi-window-read",
        right: Right::Ours,
        why: "a read in FEEx_xxxxh is an INVALID_DEVICE_REQUEST (section 2.5.9); QEMU aborts or \
              answers without an event",
        test: "a_read_or_an_atomic_in_the_msi_window_is_an_invalid_device_request",
        applies: |d| in_msi_window(d) == Some(false),
    },
    Rule {
        name: "msi-window-write",
        right: Right::Ours,
        why: "a write to FEEx_xxxxh is the requester's interrupt (section 2.1.4.2); QEMU takes it \
              for one of another DeviceID",
        test: "a_write_to_the_msi_window_is_never_dma",
        applies: |d| in_msi_window(d) == Some(true),
    },
    // ---- events ----
    Rule {
        name: "sa-ignored",
        right: Right::Ours,
        why: "DTE.SA suppresses all IO_PAGE_FAULT events (section 2.2.2.1); QEMU has no such check",
        test: "sa_suppresses_every_io_page_fault",
        applies: |d| {
            d.requester()
                .is_some_and(|(_, dte)| dte.q0.v() && dte.q1.sa())
                && events_are(d, &[], &[IO_PAGE_FAULT])
        },
    },
    Rule {
        name: "se-ignored",
        right: Right::Ours,
        why: "DTE.SE logs the first IO_PAGE_FAULT only (section 2.2.2.1); QEMU logs each",
        test: "se_logs_the_first_page_fault_until_the_dte_is_invalidated",
        applies: |d| {
            d.requester()
                .is_some_and(|(_, dte)| dte.q0.v() && dte.q1.se())
                && events_are(d, &[], &[IO_PAGE_FAULT])
        },
    },
    Rule {
        name: "interrupt-faults-not-logged",
        right: Right::Ours,
        why: "blocked interrupts are logged (sections 2.2.5 and 2.5.2–2.5.5); QEMU logs none",
        test: "remap_en_0_faults_with_pr_0",
        applies: |d| {
            d.events()
                .is_some_and(|(ours, theirs)| !ours.is_empty() && theirs.is_empty())
                && matches!(d.refusal(), Some(Refusal::Interrupt(_)))
                && d.theirs().is_some_and(|t| t.outcome == Outcome::Blocked)
        },
    },
    Rule {
        name: "event-log-int-needs-event-int-en",
        right: Right::Ours,
        why: "EventLogInt is set when an event is written, EventIntEn only gates the interrupt \
              (section 3.4.14); QEMU sets it with EventIntEn only",
        test: "an_event_is_written_before_its_tail_and_sets_event_log_int",
        applies: |d| {
            const EVENT_LOG_INT: u32 = 1;
            d.place == Place::Status(EVENT_LOG_INT)
                && d.theirs.status >> EVENT_LOG_INT & 1 == 0
                && d.ours.steps.iter().any(|step| !step.events.is_empty())
        },
    },
    // ---- interrupts ----
    Rule {
        name: "remapped-while-off",
        right: Right::Ours,
        why: "with IommuEn=0 interrupts pass unmapped (section 3.4.4); QEMU goes on remapping them",
        test: "with_iommu_en_0_messages_pass_untouched",
        applies: |d| is_off(d) && d.case.message(d.step().map_or(0, |(i, _)| i)).is_some(),
    },
    Rule {
        name: "int-tab-len-ignored",
        right: Right::Ours,
        why: "the index must be below 2^IntTabLen, and IntTabLen at most 11 (section 2.2.5); QEMU \
              reads behind the table",
        test: "qemu_defect_19_int_tab_len_bounds_the_index",
        applies: |d| {
            matches!(
                d.refusal(),
                Some(Refusal::Interrupt(
                    FaultReason::IndexOutOfRange | FaultReason::IntTabLenReserved
                ))
            )
        },
    },
    Rule {
        name: "smi-blocked",
        right: Right::Ours,
        why: "SMIs are passed unless a filter is offered and enabled (section 2.2.5); QEMU blocks \
              them",
        test: "smi_passes_without_a_filter",
        applies: |d| {
            matches!(d.outcomes(), Some((Outcome::Delivered(ours), Outcome::Blocked))
                if ours.mode == DeliveryMode::Smi)
        },
    },
    Rule {
        name: "forwarded-without-its-message",
        right: Right::Ours,
        why: "IntCtl=1 forwards the message unmapped (section 2.2.5); QEMU delivers vector 0 to \
              destination 0",
        test: "qemu_defect_18_int_ctl_1_forwards_the_message_with_its_own_vector",
        applies: |d| {
            delivery(d).is_some()
                && d.requester().is_some_and(|(_, dte)| {
                    dte.q2.iv() && IntCtl::from_bits(dte.q2.int_ctl()) == IntCtl::Forward
                })
                && matches!(d.theirs().map(|t| t.outcome),
                    Some(Outcome::Delivered(t)) if t.vector == 0 && t.dest == 0)
        },
    },
    Rule {
        name: "trigger-mode-lost",
        right: Right::Ours,
        why: "the trigger mode of the request is kept (section 2.2.5); QEMU's remapped messages are \
              edge-triggered",
        test: "qemu_defect_20_the_trigger_mode_of_the_request_is_kept",
        applies: |d| {
            delivery(d) == Some(Field::Level)
                && matches!(d.theirs().map(|t| t.outcome), Some(Outcome::Delivered(t)) if !t.level)
                && message_of(d).is_some_and(|(_, data)| data.level())
        },
    },
    // ---- commands ----
    Rule {
        name: "command-not-offered",
        right: Right::Both,
        why: "QEMU offers PREFETCH_IOMMU_PAGES, INVALIDATE_IOTLB_PAGES and COMPLETE_PPR_REQUEST \
              (EFR.PreF and PPR, IotlbSup) and guest translation (GN), ours does not: for us they \
              are illegal (section 2.4)",
        test: "commands_that_are_not_offered_are_illegal",
        applies: |d| {
            halted(d).is_some_and(|words| match Command::decode(words) {
                Command::InvalidateIommuPages(c) => c.gn(),
                _ => matches!(words[0] >> 60, 4 | 6 | 7),
            })
        },
    },
    Rule {
        name: "failed-completion-store-ignored",
        right: Right::Ours,
        why: "a COMPLETION_WAIT that can't store is a COMMAND_HARDWARE_ERROR and stops the command \
              processor (sections 2.4.1 and 2.5.7); QEMU goes on",
        test: "openvmm_defect_06_unadvertised_commands_and_reserved_bits_are_illegal_and_a_lost_store_is_told",
        applies: |d| {
            halted(d).is_some_and(|words| {
                matches!(Command::decode(words), Command::CompletionWait(c)
                    if c.s() && !is_ram(c.store_address_8() << 3))
            })
        },
    },
    Rule {
        name: "illegal-command-does-not-halt",
        right: Right::Ours,
        why: "an illegal command stops the command processor with the head at it (section 2.4); \
              QEMU logs the event and goes on",
        test: "an_illegal_command_halts_until_cmd_buf_en_goes_from_0_to_1",
        applies: |d| {
            halted(d).is_some_and(|words| {
                let command = Command::decode(words);
                command.reserved_bits_set() != 0 || !matches!(words[0] >> 60, 1..=8)
            })
        },
    },
];
