//! The engine against a literal model of 48882 §2.2.5, on random registers, tables and messages.
//!
//! The model is written from the text, one sentence after the other, over decoded integers: no
//! shared helper, no cache, no cleverness.
#![allow(missing_docs)]

mod common;

use amdvi_irt::{Delivery, DestMode, FaultReason, Outcome, Trigger};
use amdvi_regs::mmio::Control;
use amdvi_regs::msi::{DeliveryMode, Msi};
use common::*;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// dest, logical, mode, vector, level, assert, hint, eoi
    Deliver(u32, bool, u8, u8, bool, bool, bool, bool),
    /// IRR address and bit, GA log entry, doorbell
    Posted(u64, u32, Option<u64>, Option<u32>),
    /// Event words, if one is logged.
    Blocked(Option<[u64; 2]>),
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    (word >> low) & (u64::MAX >> (63 - (high - low)))
}

fn bit(word: u64, n: u32) -> bool {
    bits(word, n, n) == 1
}

const I: u64 = 1 << 51;
const PR: u64 = 1 << 52;
const RZ: u64 = 1 << 55;

/// What the specification says becomes of `msi`.
fn model(rig: &Rig, control: u64, offers_2k: bool, msi: Msi) -> Expected {
    let device = u64::from(DEVICE.0);
    let as_it_is = Expected::Deliver(
        bits(msi.address, 19, 12) as u32,
        bit(msi.address, 2),
        bits(msi.data.into(), 10, 8) as u8,
        msi.data as u8,
        bit(msi.data.into(), 15),
        bit(msi.data.into(), 14),
        bit(msi.address, 3),
        false,
    );
    // "The IOMMU treats a write to FEEx_xxxxh as an interrupt."
    if bits(msi.address, 63, 20) != 0xfee {
        return Expected::Blocked(None);
    }
    if !bit(control, 0) {
        return as_it_is;
    }
    let dte = [0, 8, 16, 24].map(|offset| rig.memory.load_u64(DEVICE_TABLE + device * 32 + offset));
    let [_, q1, q2, q3] = dte.map(Result::unwrap);
    if !bit(q2, 0) {
        return as_it_is;
    }
    let illegal = |rz: u64| Expected::Blocked(Some([1 << 60 | I | rz | device, msi.address & !3]));
    let reserved = bits(q2, 55, 52) != 0 || bit(q2, 59) || bits(q3, 53, 0) != 0;
    if reserved {
        return illegal(RZ);
    }
    // Which messages are remapped, and how the others fare.
    let logical = bit(msi.address, 2);
    let kind = bits(msi.data.into(), 10, 8);
    let two_k = offers_2k && bits(control, 44, 43) == 1;
    if !(two_k && logical) && kind > 1 {
        let pass = match kind {
            2 => true,
            4 => bit(q2, 58),
            5 => bit(q2, 56),
            7 => bit(q2, 57),
            _ => return Expected::Blocked(None),
        };
        return if pass && !logical {
            as_it_is
        } else {
            Expected::Blocked(None)
        };
    }
    match bits(q2, 61, 60) {
        0 => return Expected::Blocked(None),
        1 => return as_it_is,
        3 => return illegal(RZ),
        _ => {}
    }
    let length = bits(q2, 4, 1);
    if length > 11 {
        return illegal(0);
    }
    let domain = bits(q1, 15, 0);
    let page_fault = |suppressed: bool, flags: u64| {
        let event = [2 << 60 | I | flags | domain << 32 | device, msi.address];
        Expected::Blocked((!suppressed && !bit(q2, 5)).then_some(event))
    };
    let hardware_error = |gpa: u64| {
        Expected::Blocked(Some([
            4 << 60 | 1 << 57 | I | domain << 32 | device,
            gpa & !7,
        ]))
    };
    let index = bits(msi.data.into(), 10, 0);
    if index >= 1 << length {
        return page_fault(false, 0);
    }
    let table = bits(q2, 51, 6) << 6;
    let (level, assert) = (bit(msi.data.into(), 15), bit(msi.data.into(), 14));
    if !bit(control, 17) {
        let gpa = table + index * 4;
        let Ok(irte) = rig.memory.load_u32(gpa).map(u64::from) else {
            return hardware_error(gpa);
        };
        let quiet = bit(irte, 1);
        if !bit(irte, 0) {
            return page_fault(quiet, 0);
        }
        if bit(irte, 7) || bits(irte, 4, 2) > 1 {
            return page_fault(quiet, PR | RZ);
        }
        let (dest, vector) = (bits(irte, 15, 8) as u32, bits(irte, 23, 16) as u8);
        let kind = bits(irte, 4, 2) as u8;
        return Expected::Deliver(
            dest,
            bit(irte, 6),
            kind,
            vector,
            level,
            assert,
            false,
            bit(irte, 5),
        );
    }
    let gpa = table + index * 16;
    let words = (rig.memory.load_u64(gpa), rig.memory.load_u64(gpa + 8));
    let (Ok(low), Ok(high)) = words else {
        return hardware_error(gpa);
    };
    let quiet = bit(low, 1);
    if !bit(low, 0) {
        return page_fault(quiet, 0);
    }
    let dest = if bit(control, 50) {
        bits(low, 31, 8) | bits(high, 63, 56) << 24
    } else {
        bits(low, 15, 8)
    } as u32;
    let vector = bits(high, 7, 0);
    if bit(low, 7) {
        if bits(control, 27, 25) != 1 || bits(low, 4, 3) != 0 {
            return page_fault(quiet, PR | RZ);
        }
        let irr = (bits(high, 51, 12) << 12) + 0x200 + (vector / 32) * 0x10;
        if rig.memory.load_u32(irr).is_err() {
            return hardware_error(irr);
        }
        let running = bit(low, 6);
        let log = (!running && bit(low, 2)).then(|| 1 << 60 | device << 32 | bits(low, 63, 32));
        return Expected::Posted(irr, 1 << (vector % 32), log, running.then_some(dest));
    }
    if bits(low, 4, 2) > 1 {
        return page_fault(quiet, PR | RZ);
    }
    let kind = bits(low, 4, 2) as u8;
    Expected::Deliver(
        dest,
        bit(low, 6),
        kind,
        vector as u8,
        level,
        assert,
        false,
        bit(low, 5),
    )
}

/// The words of the backing page, the only ones that a request may change.
fn backing_page(rig: &Rig) -> Vec<(u64, u32)> {
    let words = (0..0x400).map(|i| BACKING_PAGE + 4 * i);
    words
        .map(|gpa| (gpa, rig.memory.load_u32(gpa).unwrap()))
        .collect()
}

fn observed(rig: &Rig, before: &[(u64, u32)], outcome: Outcome) -> Expected {
    match outcome {
        Outcome::Deliver(Delivery {
            dest,
            dest_mode,
            delivery_mode,
            vector,
            trigger,
            assert,
            redirection_hint,
            rq_eoi,
        }) => Expected::Deliver(
            dest,
            dest_mode == DestMode::Logical,
            delivery_mode.bits(),
            vector,
            trigger == Trigger::Level,
            assert,
            redirection_hint,
            rq_eoi,
        ),
        Outcome::Posted(posted) => {
            let changed: Vec<_> = backing_page(rig)
                .into_iter()
                .zip(before)
                .filter(|(new, old)| new != *old)
                .map(|((gpa, new), (_, old))| (gpa, new ^ old))
                .collect();
            assert_eq!(changed.len(), 1, "exactly one word of guest memory changes");
            let log = posted.ga_log.map(|entry| entry.into_bits());
            Expected::Posted(changed[0].0, changed[0].1, log, posted.doorbell)
        }
        Outcome::Blocked(fault) => {
            if fault.reason == FaultReason::NotAnInterrupt {
                assert_eq!(fault.event(), None);
            }
            Expected::Blocked(fault.event().map(|event| event.words()))
        }
    }
}

/// Mostly sensible words with now and then a wild one.
fn dte() -> impl Strategy<Value = [u64; 4]> {
    let q2 = (
        any::<bool>(),
        0u64..16,
        0u64..4,
        any::<u8>(),
        0u32..64,
        0u32..10,
        0u32..8,
    );
    (q2, any::<u16>(), any::<u64>()).prop_map(
        |((iv, len, ctl, pass, wild, spice, hole), domain, q0)| {
            let iv = u64::from(iv || spice > 1);
            let len = if spice > 2 { len % 12 } else { len };
            let ctl = if spice > 3 { 2 } else { ctl };
            let table = if hole == 0 { HOLE } else { IRT };
            let ig = u64::from(spice % 5 == 0) << 5;
            let q2 = iv
                | len << 1
                | ig
                | table
                | ctl << 60
                | u64::from(pass & 7) << 56
                | u64::from(pass >> 6) << 62;
            let q2 = if spice == 0 { q2 ^ 1 << wild } else { q2 };
            let q3 = if spice == 1 { 1 << wild } else { 0 };
            [q0, domain.into(), q2, q3]
        },
    )
}

fn irte() -> impl Strategy<Value = [u64; 2]> {
    let flags = prop_oneof![3 => Just(1u64), 2 => 0u64..256, 1 => Just(0x81u64), 1 => Just(0x85u64), 1 => Just(0xc1)];
    (flags, any::<u64>(), any::<u64>(), 0u32..8).prop_map(|(flags, low, high, page)| {
        let root = if page == 0 { HOLE } else { BACKING_PAGE };
        [low & !0xff | flags, high & !0x000f_ffff_ffff_ff00 | root]
    })
}

fn control() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..10).prop_map(|(wild, spice)| {
        let on = Control::RESET.with_iommu_en(true).into_bits();
        let modes = 0x0004_1800_0002_0000 | 1 << 25;
        match spice {
            0 => wild & !(7 << 34),
            _ => on | wild & modes,
        }
    })
}

fn msi() -> impl Strategy<Value = Msi> {
    let address = prop_oneof![
        4 => Just(0xfee0_0004u64), 3 => Just(0xfee0_0000u64),
        2 => (0u64..0x10_0000).prop_map(|low| 0xfee0_0000 | low), 1 => any::<u64>()
    ];
    let data = prop_oneof![4 => 0u32..2048, 2 => 0u32..16, 1 => any::<u32>()];
    (address, data).prop_map(|(address, data)| Msi { address, data })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_specification_says(
        control in control(),
        offers_2k: bool,
        dte in dte(),
        entries in proptest::collection::vec(irte(), 16),
        messages in proptest::collection::vec(msi(), 1..12),
    ) {
        let efr2 = if offers_2k { EFR2_2K } else { Default::default() };
        let mut rig = Rig::new(efr2, Control::from_bits(control), 9);
        rig.set_dte(amdvi_regs::dte::Dte::from_words(dte));
        // The same 16 entries over and over: every index hits something interesting.
        for index in 0..2048u64 {
            let words = entries[index as usize % entries.len()];
            rig.set_irte128(index, words);
        }
        // All at once, which posts nothing.
        let page = backing_page(&rig);
        let mut deliveries = Vec::new();
        rig.device.resolve_all(&rig.memory, &messages, |delivery| deliveries.push(delivery));
        prop_assert_eq!(deliveries.len(), messages.len());
        for (msi, delivery) in messages.iter().zip(deliveries) {
            let expected = model(&rig, control, offers_2k, *msi);
            match delivery {
                Some(delivery) => {
                    let outcome = Outcome::Deliver(delivery);
                    prop_assert_eq!(observed(&rig, &page, outcome), expected, "{:x?}", msi);
                }
                None => prop_assert!(!matches!(expected, Expected::Deliver(..)), "{:x?}", msi),
            }
            prop_assert_eq!(delivery, rig.device.resolve(&rig.memory, *msi).delivery());
        }
        prop_assert_eq!(&page, &backing_page(&rig));
        for msi in messages {
            let expected = model(&rig, control, offers_2k, msi);
            // A fetch-or of a bit that is set already changes nothing: clear it first.
            if let Expected::Posted(irr, ..) = expected {
                rig.memory.store_u32(irr, 0).unwrap();
            }
            let before = backing_page(&rig);
            let outcome = rig.device.remap(&rig.memory, msi).outcome;
            prop_assert_eq!(observed(&rig, &before, outcome), expected, "{:x?}", msi);
            // And once more: a hit says the same.
            if let Outcome::Deliver(_) = outcome {
                let again = rig.device.remap(&rig.memory, msi).outcome;
                prop_assert_eq!(outcome, again);
            }
        }
    }

    /// Tables are rewritten and invalidated in any order; the engine may be stale only between a
    /// rewrite and the invalidation that follows it.
    #[test]
    fn a_stale_entry_is_used_only_until_its_invalidation(
        steps in proptest::collection::vec((0u64..8, 0u8..5, 0u32..4), 1..200),
    ) {
        let mut rig = Rig::new(EFR2_2K, ENABLED, 9);
        let mut current = [0u8; 8];
        let mut allowed: [Vec<u8>; 8] = Default::default();
        let irte = |vector: u8| 1 | u32::from(vector) << 16;
        for (index, (_, allowed)) in (0..).zip(current.iter().zip(&mut allowed)) {
            rig.set_irte32(index, irte(0));
            allowed.push(0);
        }
        for (step, (index, action, kind)) in (1u8..).zip(steps) {
            let slot = index as usize;
            match action {
                0 => {
                    current[slot] = step;
                    allowed[slot].push(step);
                    rig.set_irte32(index, irte(step));
                }
                1 => {
                    match kind {
                        0 => rig.fabric.invalidate_all(),
                        _ => rig.device.slot().invalidate(),
                    }
                    for (allowed, current) in allowed.iter_mut().zip(current) {
                        *allowed = vec![current];
                    }
                }
                _ => match rig.remap(0xfee0_0000, index as u32) {
                    Outcome::Deliver(Delivery { vector, delivery_mode: DeliveryMode::Fixed, .. }) => {
                        prop_assert!(allowed[slot].contains(&vector));
                    }
                    other => prop_assert!(false, "{:?}", other),
                },
            }
        }
    }
}
