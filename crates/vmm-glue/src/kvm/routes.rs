//! The VM's GSI routing table, changed in batches.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use amdvi_irt::Delivery;
use kvm_bindings::{KVM_MAX_IRQ_ROUTES, kvm_irq_routing_entry};
use thiserror::Error;

use super::{KvmIrqs, KvmMessage, MessageError, MsiFormat};

/// Highest GSI that a [`RouteTable`] accepts: KVM takes no more routes than this plus one.
pub const MAX_GSI: u32 = KVM_MAX_IRQ_ROUTES as u32 - 1;

/// Why a route could not be set or committed.
#[derive(Debug, Error)]
pub enum RouteError {
    /// The GSI is outside of KVM's table.
    #[error("GSI {gsi} is out of range: KVM accepts 0 to {MAX_GSI}")]
    GsiOutOfRange {
        /// The GSI.
        gsi: u32,
    },
    /// The delivery has no KVM form; the GSI's route is removed instead, since the old target is
    /// no longer the right one.
    #[error("GSI {gsi} has no route any more: {source}")]
    Message {
        /// The GSI.
        gsi: u32,
        /// What is wrong with the delivery.
        source: MessageError,
    },
    /// The ioctl failed; the former table is in force and the next commit tries again.
    #[error("KVM_SET_GSI_ROUTING with {routes} routes failed: {source}")]
    Kvm {
        /// The number of routes in the refused table.
        routes: usize,
        /// The ioctl's error.
        source: io::Error,
    },
}

/// GSI → delivery, as KVM's irqfds and its EOI interception see it.
///
/// GSIs below `reserved_pins` belong to the userspace IOAPIC's pins (the count given to
/// `KVM_CAP_SPLIT_IRQCHIP`, 24): KVM reports the EOI of a vector as `KVM_EXIT_IOAPIC_EOI` exactly
/// when a *level-triggered* route of a reserved pin has that vector and reaches that CPU. The
/// others are free for irqfds.
///
/// `KVM_SET_GSI_ROUTING` replaces the whole table, at a cost that grows with it (267 µs at 2048
/// routes): [`set`](Self::set) only notes the change, [`commit`](Self::commit) calls KVM at most
/// once for all changes since the last commit, and not at all when they cancel out.
///
/// One table serves the whole VM; share it behind a mutex and keep the mutex over `commit`, so that
/// an older table can't overwrite a newer one. Don't hold it while calling into the IOMMU: an
/// interrupt in flight may wait for the table, and the IOMMU for the interrupt.
#[derive(Debug)]
pub struct RouteTable {
    format: MsiFormat,
    reserved_pins: u32,
    /// Indexed by GSI; only as long as the highest GSI that ever had a route.
    routes: Vec<Option<KvmMessage>>,
    /// GSIs that differ from what KVM holds → what KVM holds.
    changed: BTreeMap<u32, Option<KvmMessage>>,
    /// GSIs whose route nobody uses, to be removed with the next table that is given to KVM.
    retired: BTreeSet<u32>,
    /// GSIs that were handed out by `allocate`.
    allocated: Vec<bool>,
    commits: u64,
}

impl RouteTable {
    /// An empty table, which is what KVM starts a split-irqchip VM with.
    pub fn new(format: MsiFormat, reserved_pins: u32) -> Self {
        Self {
            format,
            reserved_pins: reserved_pins.min(MAX_GSI + 1),
            routes: Vec::new(),
            changed: BTreeMap::new(),
            retired: BTreeSet::new(),
            allocated: Vec::new(),
            commits: 0,
        }
    }

    /// How destinations are packed.
    pub fn format(&self) -> MsiFormat {
        self.format
    }

    /// The number of GSIs that belong to the IOAPIC's pins, from 0.
    pub fn reserved_pins(&self) -> u32 {
        self.reserved_pins
    }

    /// Hands out the lowest unused GSI above the reserved pins; `None` when all are in use.
    pub fn allocate(&mut self) -> Option<u32> {
        let first = self.reserved_pins as usize;
        let gsi = (first..=MAX_GSI as usize)
            .find(|&gsi| !self.allocated.get(gsi).copied().unwrap_or(false))?;
        if self.allocated.len() <= gsi {
            self.allocated.resize(gsi + 1, false);
        }
        self.allocated[gsi] = true;
        Some(gsi as u32)
    }

    /// Nothing signals `gsi` any more: its route goes with the next table that KVM is given for
    /// another reason, since to remove it is not worth a call. [`set`](Self::set) ends that.
    pub fn retire(&mut self, gsi: u32) {
        if self.get(gsi).is_some() {
            self.retired.insert(gsi);
        }
    }

    /// Takes back a GSI and removes its route.
    pub fn release(&mut self, gsi: u32) {
        if let Some(used) = self.allocated.get_mut(gsi as usize) {
            *used = false;
        }
        if gsi <= MAX_GSI {
            self.put(gsi, None);
        }
    }

    /// Routes `gsi` to `target`, from the next commit on. `None` removes the route: KVM then drops
    /// what an irqfd on that GSI signals, which is what an interrupt that the IOMMU blocks needs.
    ///
    /// Returns whether the next commit has something to do for this GSI.
    ///
    /// # Errors
    /// A GSI above [`MAX_GSI`] changes nothing. A delivery that KVM can't carry removes the route.
    pub fn set(&mut self, gsi: u32, target: Option<&Delivery>) -> Result<bool, RouteError> {
        if gsi > MAX_GSI {
            return Err(RouteError::GsiOutOfRange { gsi });
        }
        match target
            .map(|delivery| KvmMessage::encode(delivery, self.format))
            .transpose()
        {
            Ok(message) => Ok(self.put(gsi, message)),
            Err(source) => {
                self.put(gsi, None);
                Err(RouteError::Message { gsi, source })
            }
        }
    }

    /// `gsi` is at most `MAX_GSI`, which bounds the vector.
    fn put(&mut self, gsi: u32, message: Option<KvmMessage>) -> bool {
        self.retired.remove(&gsi);
        let index = gsi as usize;
        let former = self.routes.get(index).copied().flatten();
        if former != message {
            if self.routes.len() <= index {
                self.routes.resize(index + 1, None);
            }
            self.routes[index] = message;
            let committed = *self.changed.entry(gsi).or_insert(former);
            if committed == message {
                self.changed.remove(&gsi);
            }
        }
        self.changed.contains_key(&gsi)
    }

    /// The message that `gsi` is routed to, changes not yet committed included.
    pub fn get(&self, gsi: u32) -> Option<KvmMessage> {
        self.routes.get(gsi as usize).copied().flatten()
    }

    /// Whether a commit would call KVM.
    pub fn is_dirty(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The number of times KVM was given a new table.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// The whole table in KVM's form, in the order of GSIs.
    pub fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        (0..)
            .zip(&self.routes)
            .filter_map(|(gsi, route)| route.map(|message| message.to_route(gsi)))
            .collect()
    }

    /// Makes all changes effective with at most one `KVM_SET_GSI_ROUTING`; `false` when there was
    /// nothing to do.
    ///
    /// # Errors
    /// KVM's; the changes stay pending.
    pub fn commit<K: KvmIrqs + ?Sized>(&mut self, kvm: &K) -> Result<bool, RouteError> {
        if !self.is_dirty() {
            return Ok(false);
        }
        self.commit_always(kvm).map(|()| true)
    }

    /// Gives KVM the table even if nothing changed, for a VM that was created anew (restore).
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_always<K: KvmIrqs + ?Sized>(&mut self, kvm: &K) -> Result<(), RouteError> {
        for gsi in std::mem::take(&mut self.retired) {
            self.put(gsi, None);
        }
        let entries = self.entries();
        kvm.set_gsi_routing(&entries)
            .map_err(|source| RouteError::Kvm {
                routes: entries.len(),
                source,
            })?;
        self.changed.clear();
        self.commits += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_irt::{DestMode, Trigger};
    use amdvi_regs::msi::DeliveryMode;
    use kvm_bindings::kvm_msi;
    use std::cell::{Cell, RefCell};

    /// Records the GSIs of each table it is given.
    #[derive(Default)]
    struct Recorder {
        tables: RefCell<Vec<Vec<u32>>>,
        fail: Cell<bool>,
    }

    impl KvmIrqs for Recorder {
        fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
            if self.fail.get() {
                return Err(io::Error::from_raw_os_error(22));
            }
            self.tables
                .borrow_mut()
                .push(entries.iter().map(|entry| entry.gsi).collect());
            Ok(())
        }

        fn signal_msi(&self, _: kvm_msi) -> io::Result<bool> {
            unreachable!("a route table sends no MSI")
        }
    }

    fn target(dest: u32, vector: u8) -> Delivery {
        Delivery {
            dest,
            dest_mode: DestMode::Physical,
            delivery_mode: DeliveryMode::Fixed,
            vector,
            trigger: Trigger::Edge,
            assert: false,
            redirection_hint: false,
            rq_eoi: false,
        }
    }

    fn table() -> RouteTable {
        RouteTable::new(MsiFormat::X2ApicApi, 24)
    }

    #[test]
    fn a_batch_of_2048_changes_is_one_call() {
        let (mut table, kvm) = (table(), Recorder::default());
        for gsi in 24..24 + 2048 {
            assert!(table.set(gsi, Some(&target(gsi, 0x40))).unwrap());
        }
        assert!(table.commit(&kvm).unwrap());
        assert_eq!(kvm.tables.borrow().len(), 1);
        assert_eq!(kvm.tables.borrow()[0], (24..24 + 2048).collect::<Vec<_>>());
        assert_eq!(table.commits(), 1);
    }

    #[test]
    fn a_commit_without_a_change_calls_nothing() {
        let (mut table, kvm) = (table(), Recorder::default());
        assert!(!table.commit(&kvm).unwrap());
        table.set(30, Some(&target(1, 0x41))).unwrap();
        table.commit(&kvm).unwrap();
        assert!(
            !table.set(30, Some(&target(1, 0x41))).unwrap(),
            "the same target again"
        );
        assert!(!table.set(31, None).unwrap(), "no route before, none now");
        assert!(!table.commit(&kvm).unwrap());
        assert_eq!((kvm.tables.borrow().len(), table.commits()), (1, 1));
    }

    #[test]
    fn changes_that_cancel_out_call_nothing() {
        let (mut table, kvm) = (table(), Recorder::default());
        table.set(30, Some(&target(1, 0x41))).unwrap();
        table.commit(&kvm).unwrap();
        assert!(table.set(30, Some(&target(2, 0x42))).unwrap());
        assert!(table.set(30, None).unwrap());
        assert!(!table.set(30, Some(&target(1, 0x41))).unwrap());
        assert!(!table.is_dirty());
        assert!(!table.commit(&kvm).unwrap());
    }

    #[test]
    fn a_blocked_interrupt_has_no_route() {
        let (mut table, kvm) = (table(), Recorder::default());
        table.set(30, Some(&target(1, 0x41))).unwrap();
        table.set(31, Some(&target(1, 0x42))).unwrap();
        table.commit(&kvm).unwrap();
        table.set(30, None).unwrap();
        assert!(table.commit(&kvm).unwrap());
        assert_eq!(*kvm.tables.borrow(), vec![vec![30, 31], vec![31]]);
        assert_eq!(table.get(30), None);
    }

    #[test]
    fn a_retired_route_goes_with_the_next_table_and_causes_none() {
        let (mut table, kvm) = (table(), Recorder::default());
        for gsi in 30..33 {
            table.set(gsi, Some(&target(1, 0x41))).unwrap();
        }
        table.commit(&kvm).unwrap();
        table.retire(30);
        table.retire(31);
        table.retire(99);
        assert!(!table.is_dirty() && !table.commit(&kvm).unwrap());
        assert!(
            !table.set(31, Some(&target(1, 0x41))).unwrap(),
            "in use again, and KVM has it"
        );
        table.set(33, Some(&target(1, 0x42))).unwrap();
        assert!(table.commit(&kvm).unwrap());
        assert_eq!(
            *kvm.tables.borrow(),
            vec![vec![30, 31, 32], vec![31, 32, 33]]
        );
        assert_eq!(table.get(30), None);
    }

    #[test]
    fn a_failed_commit_stays_pending() {
        let (mut table, kvm) = (table(), Recorder::default());
        table.set(30, Some(&target(1, 0x41))).unwrap();
        kvm.fail.set(true);
        let error = table.commit(&kvm).unwrap_err().to_string();
        assert!(
            error.contains("KVM_SET_GSI_ROUTING with 1 routes"),
            "{error}"
        );
        assert!(table.is_dirty());
        assert_eq!(table.commits(), 0);
        kvm.fail.set(false);
        assert!(table.commit(&kvm).unwrap());
        assert_eq!(*kvm.tables.borrow(), vec![vec![30]]);
    }

    #[test]
    fn a_target_that_kvm_cannot_carry_removes_the_old_route() {
        let mut table = RouteTable::new(MsiFormat::XApic, 24);
        table.set(30, Some(&target(1, 0x41))).unwrap();
        let error = table
            .set(30, Some(&target(300, 0x41)))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("GSI 30") && error.contains("KVM_CAP_X2APIC_API"),
            "{error}"
        );
        assert_eq!(table.get(30), None, "the old CPU must not be hit");
    }

    #[test]
    fn wide_destinations_are_kept_in_the_route() {
        let mut table = table();
        table.set(30, Some(&target(0x0001_2345, 0x41))).unwrap();
        let message = table.get(30).unwrap();
        assert_eq!(
            message.decode(MsiFormat::X2ApicApi),
            target(0x0001_2345, 0x41)
        );
    }

    #[test]
    fn gsis_beyond_kvms_table_are_refused() {
        let mut table = table();
        assert!(table.set(MAX_GSI, Some(&target(0, 0x40))).is_ok());
        let error = table
            .set(MAX_GSI + 1, Some(&target(0, 0x40)))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "GSI 4096 is out of range: KVM accepts 0 to 4095");
        assert!(table.set(u32::MAX, None).is_err());
        table.release(u32::MAX);
    }

    #[test]
    fn allocation_starts_above_the_pins_reuses_and_ends() {
        let mut table = table();
        assert_eq!((table.allocate(), table.allocate()), (Some(24), Some(25)));
        table.set(24, Some(&target(0, 0x40))).unwrap();
        table.release(24);
        assert_eq!(table.get(24), None);
        assert_eq!((table.allocate(), table.allocate()), (Some(24), Some(26)));
        let rest = std::iter::from_fn(|| table.allocate()).count();
        assert_eq!(rest, KVM_MAX_IRQ_ROUTES - 27);
        assert_eq!(table.allocate(), None);
    }
}
