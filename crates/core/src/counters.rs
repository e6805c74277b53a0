//! Performance counters (48882 §3.4, MMIO 4000h and 40000h–7FFFFh): their registers, and counting.
//!
//! The registers are atomics, for they are written by those who count. Engines count on their long
//! ways only: while somebody wants to know of their events, they don't take the short ones (see
//! [`Counters::memory`] and [`Counters::interrupts`]). A hit costs the same with counters and without,
//! as long as none of them counts.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use amdvi_regs::DeviceId;
use amdvi_regs::mmio::{
    CounterAddress, CounterConfig, CounterEvent, CounterFunction, CounterReport, CounterSource,
    CounterValue, DeviceIdMatch, DomainMatch, PasidMatch, offset,
};

/// Bits of [`Counters::sources`] for events of DMA requests.
const MEMORY: u32 = 0x7ffe;
/// Bits of [`Counters::sources`] for events of interrupt requests.
const INTERRUPTS: u32 = 0x1f << 0x15 | 3 << 0x0f;

/// Whose event it is, as far as it is known: counters can be limited to some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The function.
    pub device_id: Option<DeviceId>,
    /// The domain.
    pub domain: Option<u16>,
    /// The process address space.
    pub pasid: Option<u32>,
}

/// One counter's registers.
#[derive(Debug, Default)]
struct Counter {
    /// Bits \[47:0\] are the value; carries pile up above.
    value: AtomicU64,
    source: AtomicU64,
    pasid: AtomicU64,
    domain: AtomicU64,
    device: AtomicU64,
    report: AtomicU64,
    wrapped: AtomicBool,
}

impl Counter {
    fn register(&self, function: CounterFunction) -> &AtomicU64 {
        match function {
            CounterFunction::Value => &self.value,
            CounterFunction::Source => &self.source,
            CounterFunction::PasidMatch => &self.pasid,
            CounterFunction::DomainMatch => &self.domain,
            CounterFunction::DeviceIdMatch => &self.device,
            CounterFunction::Report => &self.report,
        }
    }

    /// The event that is counted; `None` for one that no public source describes (CAC, CUnits).
    fn event(&self) -> Option<CounterEvent> {
        let source = CounterSource::from_bits(self.source.load(Ordering::Relaxed));
        (!source.cac() && !source.c_units()).then(|| source.event())
    }

    /// A match register that is enabled wants the bits in its mask to be those of its value. What
    /// has no such ID matches nothing.
    fn matches(&self, subject: &Subject) -> bool {
        let wanted = |enabled: bool, value: u32, mask: u32, id: Option<u32>| {
            !enabled || id.is_some_and(|id| (id ^ value) & mask == 0)
        };
        let device = DeviceIdMatch::from_bits(self.device.load(Ordering::Relaxed));
        let domain = DomainMatch::from_bits(self.domain.load(Ordering::Relaxed));
        let pasid = PasidMatch::from_bits(self.pasid.load(Ordering::Relaxed));
        wanted(
            device.enable(),
            device.value().into(),
            device.mask().into(),
            subject.device_id.map(|id| id.0.into()),
        ) && wanted(
            domain.enable(),
            domain.value().into(),
            domain.mask().into(),
            subject.domain.map(u32::from),
        ) && wanted(pasid.enable(), pasid.value(), pasid.mask(), subject.pasid)
    }

    /// Whether the counter has wrapped and wants that reported.
    fn add(&self, n: u64) -> bool {
        let old = self.value.fetch_add(n, Ordering::Relaxed) & VALUE;
        let wraps = old + (n & VALUE) > VALUE;
        let reports = wraps && CounterReport::from_bits(self.report.load(Ordering::Relaxed)).cere();
        if reports {
            self.wrapped.store(true, Ordering::Release);
        }
        reports
    }
}

const VALUE: u64 = !CounterValue::RESERVED;

/// Called when a counter that wants it reported has wrapped. It may run inside an operation in flight.
type Notify = Box<dyn Fn() + Send + Sync>;

/// The performance counters of one IOMMU.
#[derive(Default)]
pub struct Counters {
    /// Bit n: some counter counts event n. Only what is set here costs anybody anything.
    sources: AtomicU32,
    banks: u8,
    per_bank: u8,
    counters: Box<[Counter]>,
    /// Bank locks: PASID, domain, DeviceID.
    locks: [AtomicU64; 3],
    wrapped: AtomicBool,
    notify: Option<Notify>,
}

impl Counters {
    /// `banks` (up to 63) of `per_bank` counters (up to 15) each, all off. `notify` is called when a
    /// counter has wrapped whose CERE bit is set; it may run while an operation is in flight.
    pub fn new(banks: u8, per_bank: u8, notify: impl Fn() + Send + Sync + 'static) -> Self {
        let (banks, per_bank) = (banks.min(63), per_bank.min(15));
        let count = usize::from(banks) * usize::from(per_bank);
        Self {
            banks,
            per_bank,
            counters: (0..count).map(|_| Counter::default()).collect(),
            notify: Some(Box::new(notify)),
            ..Self::default()
        }
    }

    /// Whether anything is counted.
    #[inline]
    pub fn any(&self) -> bool {
        self.sources.load(Ordering::Relaxed) != 0
    }

    /// Whether an event of DMA requests is counted.
    #[inline]
    pub fn memory(&self) -> bool {
        self.sources.load(Ordering::Relaxed) & MEMORY != 0
    }

    /// Whether an event of interrupt requests is counted.
    #[inline]
    pub fn interrupts(&self) -> bool {
        self.sources.load(Ordering::Relaxed) & INTERRUPTS != 0
    }

    /// Counts `n` events.
    pub fn count(&self, event: CounterEvent, n: u64, subject: &Subject) {
        if self.count_quietly(event, n, subject)
            && let Some(notify) = &self.notify
        {
            notify();
        }
    }

    /// [`count`](Self::count), by the device itself: it asks for [`wrapped`](Self::wrapped) counters,
    /// nobody is notified. Returns whether there are some.
    pub fn count_quietly(&self, event: CounterEvent, n: u64, subject: &Subject) -> bool {
        let bit = 1 << (event.bits() & 31);
        if n == 0 || self.sources.load(Ordering::Relaxed) & bit == 0 {
            return false;
        }
        let mut wrapped = false;
        for counter in &self.counters {
            if counter.event() == Some(event) && counter.matches(subject) {
                wrapped |= counter.add(n);
            }
        }
        if wrapped {
            self.wrapped.store(true, Ordering::Release);
        }
        wrapped
    }

    /// Takes the notes of the counters that have wrapped and want it reported: CounterNote, in 52
    /// bits.
    pub fn wrapped(&self) -> impl Iterator<Item = u64> {
        let some =
            self.wrapped.load(Ordering::Relaxed) && self.wrapped.swap(false, Ordering::AcqRel);
        self.counters
            .iter()
            .filter(move |counter| some && counter.wrapped.swap(false, Ordering::AcqRel))
            .map(|counter| {
                CounterReport::from_bits(counter.report.load(Ordering::Relaxed)).counter_note()
            })
    }

    fn at(&self, address: CounterAddress) -> Option<&Counter> {
        let CounterAddress { bank, counter, .. } = address;
        if bank >= self.banks || counter >= self.per_bank {
            return None;
        }
        let index = usize::from(bank) * usize::from(self.per_bank) + usize::from(counter);
        self.counters.get(index)
    }

    fn lock_at(&self, at: u64) -> Option<&AtomicU64> {
        const LOCKS: [u64; 3] = [
            offset::COUNTER_PASID_LOCK,
            offset::COUNTER_DOMAIN_LOCK,
            offset::COUNTER_DEVICE_LOCK,
        ];
        let n = LOCKS.iter().position(|&lock| lock == at)?;
        (self.banks > 0).then(|| &self.locks[n])
    }

    /// Reads the aligned quadword at an MMIO offset; 0 where there is no register of a counter.
    pub fn read(&self, at: u64) -> u64 {
        if at == offset::COUNTER_CONFIG {
            return CounterConfig::new()
                .with_n_counter(self.per_bank)
                .with_n_counter_banks(self.banks)
                .into_bits();
        }
        if let Some(lock) = self.lock_at(at) {
            return lock.load(Ordering::Relaxed);
        }
        let Some(address) = CounterAddress::from_offset(at) else {
            return 0;
        };
        self.at(address).map_or(0, |counter| {
            let value = counter.register(address.function).load(Ordering::Relaxed);
            value & !reserved(address.function)
        })
    }

    /// Writes the aligned quadword at an MMIO offset, where `mask` has ones. Two writers must not
    /// meet. Returns whether [`memory`](Self::memory) or [`interrupts`](Self::interrupts) has changed:
    /// engines have to be woken from their short ways.
    pub fn write(&self, at: u64, value: u64, mask: u64) -> bool {
        if let Some(lock) = self.lock_at(at) {
            // One bit for each bank.
            let banks = (1 << self.banks) - 1;
            let mask = mask & banks;
            lock.store(
                lock.load(Ordering::Relaxed) & !mask | value & mask,
                Ordering::Relaxed,
            );
            return false;
        }
        let Some(address) = CounterAddress::from_offset(at) else {
            return false;
        };
        let lock = match address.function {
            CounterFunction::PasidMatch => Some(0),
            CounterFunction::DomainMatch => Some(1),
            CounterFunction::DeviceIdMatch => Some(2),
            _ => None,
        };
        let locked = lock
            .is_some_and(|n: usize| self.locks[n].load(Ordering::Relaxed) >> address.bank & 1 == 1);
        let Some(counter) = self.at(address).filter(|_| !locked) else {
            return false;
        };
        let register = counter.register(address.function);
        let mask = mask & !reserved(address.function);
        let change = |old: u64| Some(old & !reserved(address.function) & !mask | value & mask);
        // A counter may count meanwhile.
        let _ = register.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        self.settle()
    }

    /// Finds out which events are counted.
    fn settle(&self) -> bool {
        let events = self.counters.iter().filter_map(Counter::event);
        let sources = events
            .filter(|event| !matches!(event, CounterEvent::Off | CounterEvent::Reserved(_)))
            .fold(0, |sources, event| sources | 1 << event.bits());
        let before = self.sources.swap(sources, Ordering::AcqRel);
        let differ = |class: u32| (before & class == 0) != (sources & class == 0);
        differ(MEMORY) || differ(INTERRUPTS)
    }

    /// Every register, for saving: the three locks, then six of each counter.
    pub fn save(&self) -> impl Iterator<Item = u64> {
        let locks = self.locks.iter().map(|lock| lock.load(Ordering::Relaxed));
        let counters = self.counters.iter().flat_map(|counter| {
            FUNCTIONS.map(|function| {
                counter.register(function).load(Ordering::Relaxed) & !reserved(function)
            })
        });
        // Without counters there are no locks either.
        let none = self.banks == 0;
        locks.filter(move |_| !none).chain(counters)
    }

    /// Whether `saved` is what [`save`](Self::save) of an equal set of counters can have given.
    pub fn accepts(&self, saved: &[u64]) -> bool {
        if self.banks == 0 {
            return saved.is_empty();
        }
        let Some((locks, counters)) = saved.split_at_checked(self.locks.len()) else {
            return false;
        };
        locks.iter().all(|lock| lock >> self.banks == 0)
            && counters.len() == FUNCTIONS.len() * self.counters.len()
            && counters
                .chunks_exact(FUNCTIONS.len())
                .all(|one| one.iter().zip(FUNCTIONS).all(|(v, f)| v & reserved(f) == 0))
    }

    /// Restores what [`accepts`](Self::accepts) has found good; without anything, resets.
    pub fn restore(&self, saved: &[u64]) {
        let mut values = saved.iter().copied();
        let mut next = || values.next().unwrap_or(0);
        for lock in &self.locks {
            lock.store(next(), Ordering::Relaxed);
        }
        for counter in &self.counters {
            for function in FUNCTIONS {
                counter.register(function).store(next(), Ordering::Relaxed);
            }
            counter.wrapped.store(false, Ordering::Relaxed);
        }
        self.settle();
    }
}

const FUNCTIONS: [CounterFunction; 6] = [
    CounterFunction::Value,
    CounterFunction::Source,
    CounterFunction::PasidMatch,
    CounterFunction::DomainMatch,
    CounterFunction::DeviceIdMatch,
    CounterFunction::Report,
];

const fn reserved(function: CounterFunction) -> u64 {
    match function {
        CounterFunction::Value => CounterValue::RESERVED,
        CounterFunction::Source => CounterSource::RESERVED,
        CounterFunction::PasidMatch => PasidMatch::RESERVED,
        CounterFunction::DomainMatch => DomainMatch::RESERVED,
        CounterFunction::DeviceIdMatch => DeviceIdMatch::RESERVED,
        CounterFunction::Report => CounterReport::RESERVED,
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters")
            .field("banks", &self.banks)
            .field("per_bank", &self.per_bank)
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(counter: u8, function: CounterFunction) -> u64 {
        CounterAddress {
            bank: 1,
            counter,
            function,
        }
        .offset()
    }

    fn counters() -> Counters {
        Counters::new(2, 4, || {})
    }

    const DTE_HIT: CounterEvent = CounterEvent::MemDteHit;

    #[test]
    fn each_class_of_events_has_its_bits() {
        for &event in CounterEvent::ALL {
            let bit = 1u32 << event.bits();
            let (memory, interrupts) = match event.bits() {
                0x01..=0x0e => (true, false),
                0x0f | 0x10 | 0x15.. => (false, true),
                _ => (false, false),
            };
            assert_eq!(MEMORY & bit != 0, memory, "{event}");
            assert_eq!(INTERRUPTS & bit != 0, interrupts, "{event}");
        }
    }

    #[test]
    fn a_counter_counts_its_event_and_wraps_at_48_bits() {
        let counters = counters();
        assert!(counters.write(at(2, CounterFunction::Source), 0x0a, u64::MAX));
        assert!(counters.memory() && !counters.interrupts());
        counters.write(at(2, CounterFunction::Value), u64::MAX, u64::MAX);
        assert_eq!(counters.read(at(2, CounterFunction::Value)), (1 << 48) - 1);
        counters.count(DTE_HIT, 3, &Subject::default());
        counters.count(CounterEvent::MemDteMis, 3, &Subject::default());
        assert_eq!(counters.read(at(2, CounterFunction::Value)), 2);
        assert_eq!(counters.wrapped().count(), 0, "CERE is 0");
        assert!(counters.write(at(2, CounterFunction::Source), 0, u64::MAX));
        counters.count(DTE_HIT, 3, &Subject::default());
        assert_eq!(counters.read(at(2, CounterFunction::Value)), 2);
    }

    #[test]
    fn a_wrap_is_reported_once_with_its_note_if_cere_is_set() {
        let notified = alloc::sync::Arc::new(AtomicU32::new(0));
        let count = notified.clone();
        let counters = Counters::new(2, 4, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let cere = 1 << 63 | 0xa_bcde_1234_5678;
        counters.write(at(0, CounterFunction::Report), cere, u64::MAX);
        counters.write(at(0, CounterFunction::Source), 0x0a, u64::MAX);
        counters.write(at(0, CounterFunction::Value), (1 << 48) - 2, u64::MAX);
        counters.count(DTE_HIT, 1, &Subject::default());
        assert_eq!(notified.load(Ordering::Relaxed), 0);
        counters.count(DTE_HIT, 1, &Subject::default());
        assert_eq!(notified.load(Ordering::Relaxed), 1);
        assert!(counters.wrapped().eq([0xa_bcde_1234_5678]));
        assert_eq!(counters.wrapped().count(), 0);
    }

    #[test]
    fn match_registers_compare_the_bits_of_their_mask_and_want_an_id() {
        let counters = counters();
        counters.write(at(0, CounterFunction::Source), 0x0a, u64::MAX);
        let device = 0x1200 | 1 << 31 | 0xff00 << 32;
        let domain = 0x0007 | 1 << 31 | 0xffff << 32;
        let pasid = 0x5_0000 | 1 << 31 | 0xf_0000 << 32;
        counters.write(at(0, CounterFunction::DeviceIdMatch), device, u64::MAX);
        counters.write(at(0, CounterFunction::DomainMatch), domain, u64::MAX);
        counters.write(at(0, CounterFunction::PasidMatch), pasid, u64::MAX);
        let good = Subject {
            device_id: Some(DeviceId(0x12ab)),
            domain: Some(7),
            pasid: Some(0x5_4321),
        };
        counters.count(DTE_HIT, 1, &good);
        for other in [
            Subject {
                device_id: Some(DeviceId(0x13ab)),
                ..good
            },
            Subject {
                domain: Some(8),
                ..good
            },
            Subject {
                pasid: None,
                ..good
            },
            Subject::default(),
        ] {
            counters.count(DTE_HIT, 100, &other);
        }
        assert_eq!(counters.read(at(0, CounterFunction::Value)), 1);
    }

    #[test]
    fn sources_without_a_public_meaning_count_nothing() {
        let counters = counters();
        for source in [0x0a | 1 << 31, 0x0a | 1 << 30, 0x19, 0xff] {
            assert!(!counters.write(at(0, CounterFunction::Source), source, u64::MAX));
            counters.count(DTE_HIT, 1, &Subject::default());
            counters.count(CounterEvent::Reserved(0x19), 1, &Subject::default());
            assert_eq!(counters.read(at(0, CounterFunction::Value)), 0);
            assert_eq!(counters.read(at(0, CounterFunction::Source)), source);
        }
    }

    #[test]
    fn a_bank_lock_protects_the_match_registers_of_its_bank() {
        let counters = counters();
        for (lock, function) in [
            (offset::COUNTER_PASID_LOCK, CounterFunction::PasidMatch),
            (offset::COUNTER_DOMAIN_LOCK, CounterFunction::DomainMatch),
            (offset::COUNTER_DEVICE_LOCK, CounterFunction::DeviceIdMatch),
        ] {
            counters.write(lock, u64::MAX, u64::MAX);
            assert_eq!(counters.read(lock), 3, "two banks");
            counters.write(at(0, function), 1, u64::MAX);
            assert_eq!(counters.read(at(0, function)), 0);
            counters.write(lock, 0, 2);
            assert_eq!(counters.read(lock), 1);
            counters.write(at(0, function), 1, u64::MAX);
            assert_eq!(counters.read(at(0, function)), 1);
        }
    }

    #[test]
    fn what_is_saved_is_restored_and_reserved_bits_are_refused() {
        let counters = counters();
        counters.write(offset::COUNTER_PASID_LOCK, 1, u64::MAX);
        for n in 0..4 {
            counters.write(at(n, CounterFunction::Source), 0x11, u64::MAX);
            counters.write(at(n, CounterFunction::Value), n.into(), u64::MAX);
        }
        let saved: alloc::vec::Vec<u64> = counters.save().collect();
        let other = self::counters();
        assert!(other.accepts(&saved));
        other.restore(&saved);
        assert!(other.save().eq(saved.iter().copied()));
        let mut bad = saved.clone();
        bad[3] = 1 << 48;
        assert!(!other.accepts(&bad) && !other.accepts(&saved[1..]) && !other.accepts(&[]));
        other.restore(&[]);
        assert!(other.save().all(|value| value == 0));
        assert!(Counters::default().accepts(&[]) && !Counters::default().accepts(&saved));
        assert_eq!(Counters::default().save().count(), 0);
    }

    #[test]
    fn counters_that_do_not_exist_read_0() {
        let counters = counters();
        assert_eq!(counters.read(offset::COUNTER_CONFIG), 4 << 7 | 2 << 12);
        for at in [0x4020, 0x4_2000, 0x4_0400, 0x4_0030, 0x7_fff8] {
            counters.write(at, u64::MAX, u64::MAX);
            assert_eq!(counters.read(at), 0, "{at:#x}");
        }
        let none = Counters::default();
        for at in [offset::COUNTER_CONFIG, offset::COUNTER_PASID_LOCK, 0x4_0000] {
            none.write(at, u64::MAX, u64::MAX);
            assert_eq!(none.read(at), 0, "{at:#x}");
        }
    }
}
