//! Random guests against a model of what they may expect of their interrupts.

use amdvi_irt::Delivery;
use proptest::prelude::*;

use crate::rig::{Dte, Machine, OTHER_TARGET, Outcome, SHORT, message, target};

/// What an entry of the guest's table says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Target(u16),
    Disabled,
    /// For a guest virtual APIC.
    Guest,
}

#[derive(Clone, Debug)]
enum Step {
    /// An entry is rewritten.
    Write(u16, Entry),
    /// Several entries are.
    WriteMany(u16, u16, u16),
    Dte(Dte),
    Invalidate,
    Wait,
    /// A vector fires so often.
    Fire(u16, u32),
    /// A vector gets the message of an entry.
    Program(u16, u16),
    Enable(bool),
    Count(bool),
    RefuseTables(bool),
}

const VECTORS: u16 = 64;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vector = 0..VECTORS;
    let entry = prop_oneof![
        8 => (0..2048u16).prop_map(Entry::Target),
        1 => Just(Entry::Disabled),
        1 => Just(Entry::Guest),
    ];
    let dte = prop_oneof![
        4 => Just(Dte::Remap),
        2 => Just(Dte::OtherTable),
        1 => Just(Dte::ShortTable),
        1 => Just(Dte::Forward),
        1 => Just(Dte::Abort),
        1 => Just(Dte::NotValid),
    ];
    let step = prop_oneof![
        4 => (vector.clone(), entry).prop_map(|(v, e)| Step::Write(v, e)),
        2 => (vector.clone(), vector.clone(), 0..2048u16).prop_map(|(a, b, t)| Step::WriteMany(a, b, t)),
        2 => dte.prop_map(Step::Dte),
        4 => Just(Step::Invalidate),
        4 => Just(Step::Wait),
        6 => (vector.clone(), prop::sample::select(vec![1, 1, 1, 70])).prop_map(|(v, n)| Step::Fire(v, n)),
        1 => (vector.clone(), vector).prop_map(|(v, i)| Step::Program(v, i)),
        1 => any::<bool>().prop_map(Step::Enable),
        1 => any::<bool>().prop_map(Step::Count),
        1 => prop::bool::weighted(0.2).prop_map(Step::RefuseTables),
    ];
    prop::collection::vec(step, 1..80)
}

/// What becomes of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Delivered(Delivery),
    /// With an event.
    Logged,
    /// Blocked without an event, or posted to a virtual APIC: nobody hears of it.
    Quiet,
}

/// What is in the guest's memory, and what it means.
struct Tables {
    dte: Dte,
    entries: Vec<Entry>,
    /// By entry: what its interrupts may come to, the oldest first. What it means now, and what it meant
    /// since the last invalidation that a COMPLETION_WAIT has completed.
    allowed: Vec<Vec<Fate>>,
}

impl Tables {
    /// Each entry has its own target.
    fn new() -> Self {
        Self {
            dte: Dte::Remap,
            entries: (0..VECTORS).map(Entry::Target).collect(),
            allowed: (0..VECTORS)
                .map(|n| vec![Fate::Delivered(target(n))])
                .collect(),
        }
    }

    fn fate(&self, n: u16) -> Fate {
        match (self.dte, self.entries[usize::from(n)]) {
            (Dte::Forward | Dte::NotValid, _) => Fate::Delivered(Delivery::from_msi(message(n))),
            (Dte::Abort, _) => Fate::Quiet,
            (Dte::OtherTable, _) => Fate::Delivered(target(n + OTHER_TARGET)),
            (Dte::ShortTable, _) if n >= SHORT => Fate::Logged,
            (Dte::Remap | Dte::ShortTable, Entry::Target(to)) => Fate::Delivered(target(to)),
            (Dte::Remap | Dte::ShortTable, Entry::Disabled) => Fate::Logged,
            (Dte::Remap | Dte::ShortTable, Entry::Guest) => Fate::Quiet,
        }
    }

    fn note(&mut self, n: u16) {
        let fate = self.fate(n);
        self.allowed[usize::from(n)].push(fate);
    }

    fn write(&mut self, m: &Machine, n: u16, entry: Entry) {
        match entry {
            Entry::Target(to) => m.write(n, Some(to)),
            Entry::Disabled => m.write(n, None),
            Entry::Guest => m.write_guest(n),
        }
        self.entries[usize::from(n)] = entry;
        self.note(n);
    }

    fn set_dte(&mut self, m: &Machine, dte: Dte) {
        m.set_dte(dte);
        self.dte = dte;
        (0..VECTORS).for_each(|n| self.note(n));
    }

    /// How many older meanings each entry has: what an invalidation ends once it is completed.
    fn old(&self) -> Vec<usize> {
        self.allowed.iter().map(|fates| fates.len() - 1).collect()
    }

    fn forget(&mut self, old: &[usize]) {
        for (fates, old) in self.allowed.iter_mut().zip(old) {
            fates.drain(..old);
        }
    }

    fn check_fire(&self, m: &Machine, enabled: bool, vector: u16) {
        let msi = m.programmed(vector);
        let events = m.events();
        let outcome = m.fire(vector);
        let fate = match (outcome, m.events() - events) {
            (Outcome::Delivered(delivery), 0) => Fate::Delivered(delivery),
            (Outcome::Blocked, 0) => Fate::Quiet,
            (Outcome::Blocked, 1) => Fate::Logged,
            (outcome, events) => panic!("{outcome:?} with {events} events"),
        };
        let raw = [Fate::Delivered(Delivery::from_msi(msi))];
        let allowed = if enabled {
            &self.allowed[msi.data as usize][..]
        } else {
            &raw
        };
        assert!(allowed.contains(&fate), "{fate:?}, not one of {allowed:?}");
    }
}

fn run(steps: Vec<Step>) {
    let m = Machine::hot(VECTORS);
    let mut guest = Tables::new();
    let (mut enabled, mut told) = (true, m.told());
    // What the next COMPLETION_WAIT does: ends the use of old entries, tells the observer.
    let (mut invalidated, mut pending) = (None, false);
    for step in steps {
        let tables = m.kvm.tables();
        let (mut is_told, mut is_new): (_, Option<Vec<usize>>) = (false, None);
        match step {
            Step::Write(n, entry) => guest.write(&m, n, entry),
            Step::WriteMany(first, last, to) => {
                for n in first..=last {
                    guest.write(&m, n, Entry::Target((to + n) % 2048));
                }
            }
            Step::Dte(dte) => guest.set_dte(&m, dte),
            // Nobody takes commands then.
            Step::Invalidate | Step::Wait if !enabled => {}
            Step::Invalidate => {
                m.invalidate_dte();
                // What is looked up from here on may be kept, whatever is written later.
                (invalidated, pending) = (Some(guest.old()), true);
            }
            Step::Wait => {
                m.wait();
                is_told = std::mem::take(&mut pending);
                is_new = invalidated.take();
            }
            Step::Fire(vector, times) => {
                for _ in 0..times {
                    guest.check_fire(&m, enabled, vector);
                }
            }
            Step::Program(vector, entry) => m.program(vector, entry),
            Step::Enable(on) => {
                m.enable(on);
                is_told = on != enabled;
                if is_told {
                    is_new = Some(guest.old());
                    invalidated = None;
                }
                pending |= is_told;
                enabled = on;
            }
            Step::Count(on) => {
                is_told = m.count_interrupts(on);
                pending |= is_told;
            }
            Step::RefuseTables(refuse) => m.kvm.refuse_tables(refuse),
        }
        guest.forget(is_new.as_deref().unwrap_or_default());
        if is_told {
            told += 1;
            m.assert_routes_are_fresh();
            assert!(m.kvm.tables() - tables <= 1);
        }
        assert!(
            m.kvm.tables() <= told,
            "{} tables, told {told} times",
            m.kvm.tables()
        );
        assert_eq!(m.kvm.lost(), 0, "written to an irqfd without a route");
    }
    let counters = m.irqfds.counters();
    assert_eq!(counters.commits, m.kvm.tables());
    assert_eq!(counters.notifications, told);
}

proptest! {
    #[test]
    fn every_interrupt_goes_where_the_guest_may_expect_it_and_tables_are_few(steps in steps()) {
        run(steps);
    }
}
