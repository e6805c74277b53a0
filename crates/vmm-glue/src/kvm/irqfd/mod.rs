//! Vectors of functions on irqfds, with routes that follow the guest's interrupt remapping tables.
//!
//! A route is a copy of what the IOMMU says of a message, and KVM delivers by it without asking. So it
//! has to be right whenever the guest may rely on it: after each COMPLETION_WAIT, and after each
//! register write that changes what the tables mean. [`Irqfds`] keep it so, with these rules:
//!
//! - *A vector starts without a route.* Its eventfd is the VMM's, every interrupt is requested from the
//!   IOMMU, faults are logged. After a number of interrupts it gets a route, together with every other
//!   vector that was used since: one new table for all of them.
//! - *After an invalidation*, the routes of the functions that it names are derived again; nothing happens
//!   to those that stay. A vector that is now blocked, posted to a virtual APIC or of a kind that a
//!   route can't carry is taken back from KVM: its eventfd is the VMM's again, and the IOMMU logs what it
//!   blocks. A few vectors with a new target are taken back, too, since that costs a tenth of a table; of
//!   many all get their new routes with one table.
//! - *KVM is given a table* (`KVM_SET_GSI_ROUTING`, which costs hundreds of microseconds) at most once for
//!   each time that the tables changed: [`IrqfdCounters`] say how often.
//!
//! Taking back waits until what was signalled before is delivered (`KVM_IRQFD` does), and a new table is
//! in force when the call returns. Both happen before the COMPLETION_WAIT's store is visible.

mod counters;
mod function;
#[cfg(feature = "device")]
mod observer;
mod vector;

use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use amdvi_regs::DeviceId;

use super::{KvmIrqfds, MsiFormat, RouteTable};
use crate::remap::RemapSource;
use counters::Tally;
use function::{Planned, Rederived};

pub use counters::{IrqfdCounters, IrqfdErrors};
pub use function::FunctionIrqfds;
#[cfg(feature = "device")]
pub use observer::IrqfdObserver;

/// Up to so many vectors with a new target are taken back from KVM instead of giving it a new table:
/// `KVM_IRQFD` costs some 5 µs for each of them, `KVM_SET_GSI_ROUTING` 250 µs and more.
const TAKE_BACK_AT_MOST: usize = 32;

/// The irqfds of a VM's functions.
///
/// `KVM_IRQFD` takes the writes out of an eventfd since Linux 5.11; with an older kernel a vector that is
/// taken back may send one interrupt too many.
///
/// Locks are taken in this order: the list of functions, a vector, the route table.
pub struct Irqfds<K: KvmIrqfds> {
    kvm: K,
    table: Arc<Mutex<RouteTable>>,
    format: MsiFormat,
    /// Held by whoever derives routes.
    functions: Mutex<Vec<Weak<FunctionIrqfds<K>>>>,
    tally: Tally,
}

impl<K: KvmIrqfds> Irqfds<K> {
    /// `table` is the VM's one table of routes.
    pub fn new(kvm: K, table: Arc<Mutex<RouteTable>>) -> Arc<Self> {
        let format = table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .format();
        Arc::new(Self {
            kvm,
            table,
            format,
            functions: Mutex::default(),
            tally: Tally::default(),
        })
    }

    /// A function with so many vectors, which is `device_id` to the IOMMU that the VMM gave the number
    /// `iommu`. `source` is its way through that IOMMU, for deriving routes and for
    /// [`FunctionIrqfds::service`].
    ///
    /// GSIs and eventfds are taken when a vector first needs them. Where they run out (KVM has 4096
    /// GSIs), vectors stay without a route.
    pub fn function(
        self: &Arc<Self>,
        iommu: u32,
        device_id: DeviceId,
        source: impl RemapSource + Send + Sync + 'static,
        vectors: u16,
    ) -> Arc<FunctionIrqfds<K>> {
        let vm = Arc::clone(self);
        let function = FunctionIrqfds::new(vm, iommu, device_id, Box::new(source), vectors);
        let function = Arc::new(function);
        let mut functions = self.functions();
        functions.retain(|other| other.strong_count() > 0);
        functions.push(Arc::downgrade(&function));
        function
    }

    /// The guest's tables changed for those functions behind `iommu` that `touches` says yes to. When
    /// this returns, no interrupt goes by an old route.
    ///
    /// `others` may change routes of its own in the same table (those of an IOAPIC's pins) and commit
    /// them; new routes of vectors are in the table then, so that there is one commit for all.
    pub fn tables_changed(
        &self,
        iommu: u32,
        touches: impl Fn(DeviceId) -> bool,
        others: impl FnOnce(),
    ) {
        let functions = self.functions();
        let touched: Vec<_> = functions
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|function| function.iommu == iommu && touches(function.device_id))
            .collect();
        if touched.is_empty() {
            return others();
        }
        let commits = self.table().commits();
        let mut plan = Vec::new();
        let mut total = Rederived::default();
        for function in &touched {
            let rederived = function.rederive(&mut plan);
            total.vectors += rederived.vectors;
            total.taken_back += rederived.taken_back;
        }
        let changed = total.taken_back + plan.len() as u64;
        if plan.len() <= TAKE_BACK_AT_MOST {
            total.taken_back += plan.len() as u64;
            plan.drain(..).for_each(|planned| planned.take_back());
        } else {
            // There is a new table anyhow: it has room for those that wait for one.
            let waiting = functions.iter().filter_map(Weak::upgrade);
            waiting.for_each(|function| function.warm(&mut plan));
        }
        let staged = self.stage(plan);
        others();
        self.commit(staged);
        let table = self.table().commits() != commits;
        self.tally
            .notification(total.vectors, changed, total.taken_back, table);
    }

    /// Waits until every interrupt that an eventfd was written for is at its local APIC. For who is about to
    /// save the local APICs, once nobody writes eventfds any more: an interrupt that KVM can't deliver on
    /// the spot, such as one to the CPU with the lowest priority, goes on a work queue of the host, and is
    /// neither in the eventfd nor in a local APIC meanwhile.
    ///
    /// `KVM_IRQFD` waits for that queue when it takes an eventfd back, and nothing else does, so each vector
    /// that was written since the last time is taken from KVM and given again. What is written after that is
    /// delivered as before.
    pub fn settle(&self) {
        let functions = self.functions();
        let functions = functions.iter().filter_map(Weak::upgrade);
        functions.for_each(|function| function.settle());
    }

    /// Gives a route to every vector that waits for one, if KVM may be given a table.
    fn promote(&self) {
        let functions = self.functions();
        let notifications = self.tally.notifications();
        // So that tables are never more than the guest's changes. A guest that makes none has no IOMMU in
        // use; each table is paid for by interrupts then.
        if notifications > 0 && self.table().commits() >= notifications {
            return;
        }
        let mut plan = Vec::new();
        for function in functions.iter().filter_map(Weak::upgrade) {
            function.warm(&mut plan);
        }
        let staged = self.stage(plan);
        if !staged.is_empty() && self.commit(staged) {
            self.tally.promotion();
        }
    }

    /// Puts routes into the table; those that are there now.
    fn stage(&self, mut plan: Vec<Planned<K>>) -> Vec<Planned<K>> {
        plan.retain(|planned| {
            let staged = planned.stage();
            if !staged {
                planned.take_back();
            }
            staged
        });
        plan
    }

    /// Gives KVM the table if it is a new one, and the eventfds of `staged`. Whether it was new.
    fn commit(&self, staged: Vec<Planned<K>>) -> bool {
        let committed = self.table().commit(&self.kvm);
        match committed {
            Ok(new) => {
                staged.iter().for_each(Planned::activate);
                new
            }
            Err(error) => {
                // KVM has the old table: nothing may go by what has changed.
                staged.iter().for_each(Planned::take_back);
                self.tally.error("irqfds go through the VMM", &error);
                false
            }
        }
    }

    /// The counters.
    pub fn counters(&self) -> IrqfdCounters {
        let commits = self.table().commits();
        self.tally.counters(commits)
    }

    /// Failures on the host's side since the last call.
    pub fn take_errors(&self) -> IrqfdErrors {
        self.tally.take_errors()
    }

    fn functions(&self) -> MutexGuard<'_, Vec<Weak<FunctionIrqfds<K>>>> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic elsewhere doesn't make the table inconsistent: each change is a single assignment.
    fn table(&self) -> MutexGuard<'_, RouteTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<E: Display>(&self, what: &str, result: Result<(), E>) {
        if let Err(error) = result {
            self.tally.error(what, &error);
        }
    }
}

impl<K: KvmIrqfds> fmt::Debug for Irqfds<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Irqfds")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
