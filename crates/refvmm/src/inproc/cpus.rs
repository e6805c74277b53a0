//! CPUs that only count: the local APICs' rules of acceptance, without code behind them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use amdvi_irt::{Delivery, DestMode, Trigger};
use amdvi_regs::msi::DeliveryMode;

use crate::board::Injector;

/// Vectors below this are reserved for exceptions; a local APIC does not accept them.
const FIRST_VECTOR: u8 = 16;
/// The vector under which NMIs are counted.
const NMI: u8 = 2;
/// x2APIC broadcast, in both destination modes.
const BROADCAST: u32 = 0xffff_ffff;

struct Cpu {
    apic_id: u32,
    handled: Box<[AtomicU64; 256]>,
    beats: AtomicU64,
    stopped: AtomicBool,
}

/// The CPUs, all in x2APIC mode.
pub(crate) struct Cpus {
    cpus: Vec<Cpu>,
    ids: Vec<u32>,
    /// Vectors of level-triggered interrupts whose handlers have still to send their EOI.
    unfinished: Mutex<VecDeque<u8>>,
}

impl Cpus {
    /// CPUs with these APIC IDs.
    pub(crate) fn new(ids: &[u32]) -> Self {
        let cpu = |&apic_id: &u32| Cpu {
            apic_id,
            handled: Box::new([const { AtomicU64::new(0) }; 256]),
            beats: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        };
        Self {
            cpus: ids.iter().map(cpu).collect(),
            ids: ids.to_vec(),
            unfinished: Mutex::default(),
        }
    }

    /// Their APIC IDs.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How often `cpu` handled `vector`.
    pub(crate) fn handled(&self, cpu: usize, vector: u8) -> u64 {
        self.cpus.get(cpu).map_or(0, |cpu| {
            cpu.handled[usize::from(vector)].load(Ordering::Acquire)
        })
    }

    /// A number that is larger at each call, as long as the CPU is alive.
    pub(crate) fn heartbeat(&self, cpu: usize) -> u64 {
        let Some(cpu) = self.cpus.get(cpu) else {
            return 0;
        };
        let step = u64::from(!cpu.stopped.load(Ordering::Acquire));
        cpu.beats.fetch_add(step, Ordering::AcqRel) + step
    }

    /// The vectors whose EOI is due. Each is returned once.
    pub(crate) fn take_unfinished(&self) -> VecDeque<u8> {
        std::mem::take(
            &mut *self
                .unfinished
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn accepts(cpu: &Cpu, delivery: &Delivery) -> bool {
        if delivery.dest == BROADCAST {
            return true;
        }
        match delivery.dest_mode {
            DestMode::Physical => cpu.apic_id == delivery.dest,
            // x2APIC logical ID: cluster in [31:16], one bit for each of its CPUs below.
            DestMode::Logical => {
                cpu.apic_id >> 4 == delivery.dest >> 16
                    && delivery.dest & 1 << (cpu.apic_id & 0xf) != 0
            }
        }
    }

    fn handle(&self, cpu: &Cpu, delivery: &Delivery) {
        // In wait-for-SIPI a CPU accepts nothing but INIT and SIPI.
        if cpu.stopped.load(Ordering::Acquire) {
            return;
        }
        let count = |vector: u8| {
            cpu.handled[usize::from(vector)].fetch_add(1, Ordering::AcqRel);
        };
        match delivery.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority
                if delivery.vector >= FIRST_VECTOR =>
            {
                count(delivery.vector);
                if delivery.trigger == Trigger::Level {
                    self.unfinished
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push_back(delivery.vector);
                }
            }
            DeliveryMode::Nmi => count(NMI),
            DeliveryMode::Init => cpu.stopped.store(true, Ordering::Release),
            // Nothing here has a PIC or an SMM handler; the recorder shows what was sent.
            _ => {}
        }
    }
}

impl Injector for Cpus {
    fn inject(&self, delivery: &Delivery) {
        let mut targets = self.cpus.iter().filter(|cpu| Self::accepts(cpu, delivery));
        if delivery.delivery_mode == DeliveryMode::LowestPriority {
            // All have the same priority: the arbitration may choose any.
            if let Some(cpu) = targets.next() {
                self.handle(cpu, delivery);
            }
            return;
        }
        for cpu in targets {
            self.handle(cpu, delivery);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(dest: u32, dest_mode: DestMode, delivery_mode: DeliveryMode) -> Delivery {
        Delivery {
            dest,
            dest_mode,
            delivery_mode,
            vector: 0x41,
            trigger: Trigger::Edge,
            assert: true,
            redirection_hint: false,
            rq_eoi: false,
        }
    }

    fn counts(cpus: &Cpus, vector: u8) -> Vec<u64> {
        (0..cpus.ids().len())
            .map(|cpu| cpus.handled(cpu, vector))
            .collect()
    }

    #[test]
    fn a_physical_destination_is_an_apic_id_of_32_bits() {
        let cpus = Cpus::new(&[0, 1, 300]);
        cpus.inject(&delivery(300, DestMode::Physical, DeliveryMode::Fixed));
        cpus.inject(&delivery(
            300 & 0xff,
            DestMode::Physical,
            DeliveryMode::Fixed,
        ));
        assert_eq!(counts(&cpus, 0x41), [0, 0, 1]);
    }

    #[test]
    fn a_logical_destination_is_a_cluster_and_a_mask() {
        let cpus = Cpus::new(&[0, 1, 2, 0x11]);
        cpus.inject(&delivery(0b110, DestMode::Logical, DeliveryMode::Fixed));
        assert_eq!(counts(&cpus, 0x41), [0, 1, 1, 0]);
        cpus.inject(&delivery(0x1_0002, DestMode::Logical, DeliveryMode::Fixed));
        assert_eq!(counts(&cpus, 0x41), [0, 1, 1, 1]);
    }

    #[test]
    fn lowest_priority_reaches_exactly_one_cpu() {
        let cpus = Cpus::new(&[0, 1, 2]);
        cpus.inject(&delivery(
            0b111,
            DestMode::Logical,
            DeliveryMode::LowestPriority,
        ));
        assert_eq!(counts(&cpus, 0x41).iter().sum::<u64>(), 1);
    }

    #[test]
    fn broadcast_reaches_all() {
        let cpus = Cpus::new(&[0, 1, 300]);
        cpus.inject(&delivery(
            BROADCAST,
            DestMode::Physical,
            DeliveryMode::Fixed,
        ));
        cpus.inject(&delivery(BROADCAST, DestMode::Logical, DeliveryMode::Fixed));
        assert_eq!(counts(&cpus, 0x41), [2, 2, 2]);
    }

    #[test]
    fn nmi_counts_as_vector_2_whatever_its_vector() {
        let cpus = Cpus::new(&[0, 1]);
        cpus.inject(&delivery(1, DestMode::Physical, DeliveryMode::Nmi));
        assert_eq!(counts(&cpus, 2), [0, 1]);
        assert_eq!(counts(&cpus, 0x41), [0, 0]);
    }

    #[test]
    fn init_stops_the_heartbeat_and_all_handling() {
        let cpus = Cpus::new(&[0, 1]);
        let before = cpus.heartbeat(1);
        assert!(cpus.heartbeat(1) > before);
        cpus.inject(&delivery(1, DestMode::Physical, DeliveryMode::Init));
        assert_eq!(cpus.heartbeat(1), cpus.heartbeat(1));
        cpus.inject(&delivery(1, DestMode::Physical, DeliveryMode::Fixed));
        assert_eq!(counts(&cpus, 0x41), [0, 0]);
        assert!(cpus.heartbeat(0) < cpus.heartbeat(0));
    }

    #[test]
    fn vectors_of_exceptions_are_not_accepted() {
        let cpus = Cpus::new(&[0]);
        cpus.inject(&Delivery {
            vector: 15,
            ..delivery(0, DestMode::Physical, DeliveryMode::Fixed)
        });
        assert_eq!(cpus.handled(0, 15), 0);
    }

    #[test]
    fn a_level_interrupt_owes_one_eoi() {
        let cpus = Cpus::new(&[0]);
        cpus.inject(&Delivery {
            trigger: Trigger::Level,
            ..delivery(0, DestMode::Physical, DeliveryMode::Fixed)
        });
        assert_eq!(cpus.take_unfinished(), [0x41]);
        assert!(cpus.take_unfinished().is_empty());
    }
}
