//! Differences in what events hold. They are compared where both sides log the same kinds of events,
//! so who is told, and of what, was the same. The DeviceID has no rule: there the sides agree.

use super::look::{ILLEGAL_COMMAND_ERROR, ILLEGAL_DEV_TABLE_ENTRY, IO_PAGE_FAULT};
use super::{Right, Rule};
use crate::case::Step;
use crate::compare::{Difference, RecordField};

/// QEMU's bits of the field, if it is that field of such an event that differs.
fn theirs(d: &Difference<'_>, code: u8, field: RecordField) -> Option<u64> {
    let (its_code, its_field, _, theirs) = d.records()?;
    (its_code == code && its_field == field).then(|| field.of(theirs))
}

/// All of them; the first that applies counts.
pub static RECORD_RULES: &[Rule] = &[
    Rule {
        name: "event-without-address",
        right: Right::Ours,
        why: "the second word is the address of the access or of the command (sections 2.5.2, 2.5.3 \
              and 2.5.6); QEMU writes 0",
        test: "qemu_defect_11_events_carry_the_address",
        applies: |d| {
            [
                ILLEGAL_DEV_TABLE_ENTRY,
                IO_PAGE_FAULT,
                ILLEGAL_COMMAND_ERROR,
            ]
            .into_iter()
            .any(|code| theirs(d, code, RecordField::Address) == Some(0))
        },
    },
    Rule {
        name: "page-fault-without-domain",
        right: Right::Ours,
        why: "an IO_PAGE_FAULT names the DomainID of the DTE (section 2.5.3); QEMU writes 0",
        test: "qemu_defect_12_event_flags_say_what_happened",
        applies: |d| theirs(d, IO_PAGE_FAULT, RecordField::Domain) == Some(0),
    },
    Rule {
        name: "page-fault-flags-of-its-own",
        right: Right::Ours,
        why: "RW, PR, PE and RZ of an IO_PAGE_FAULT say what happened, and I is for interrupts \
              (section 2.5.3); QEMU sets I always, and the direction in the bits below it",
        test: "qemu_defect_12_event_flags_say_what_happened",
        applies: |d| {
            let direction = match d.step() {
                Some((_, Step::Dma { write, .. })) => 1 << u8::from(*write),
                _ => return false,
            };
            theirs(d, IO_PAGE_FAULT, RecordField::Flags) == Some((8 | direction) << 48)
        },
    },
    Rule {
        name: "illegal-dte-without-flags",
        right: Right::Ours,
        why: "ILLEGAL_DEV_TABLE_ENTRY has RW and RZ (section 2.5.2); QEMU sets none",
        test: "each_reserved_bit_of_the_dte_is_illegal_with_rz_1",
        applies: |d| theirs(d, ILLEGAL_DEV_TABLE_ENTRY, RecordField::Flags) == Some(0),
    },
    Rule {
        name: "illegal-command-with-its-opcode",
        right: Right::Ours,
        why: "the rest of ILLEGAL_COMMAND_ERROR's first word is reserved (section 2.5.6); QEMU writes \
              the command's opcode there",
        test: "an_illegal_command_halts_until_cmd_buf_en_goes_from_0_to_1",
        applies: |d| {
            // It went on where we halt, so the command may be a later one.
            let until = d.step().map_or(0, |(i, _)| i + 1);
            let mut opcodes = d.case.steps[..until]
                .iter()
                .filter_map(|step| match step {
                    Step::Commands(list) => Some(list),
                    _ => None,
                })
                .flatten()
                .map(|words| words[0] >> 60);
            theirs(d, ILLEGAL_COMMAND_ERROR, RecordField::Flags)
                .is_some_and(|flags| opcodes.any(|opcode| opcode << 48 == flags))
        },
    },
];
