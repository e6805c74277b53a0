//! A machine brought to a halt, its state taken out, or put into one that has not run.
//!
//! The order of a halt: the CPUs first, each with the access completed that it left the guest for,
//! so that nobody asks anything of a device any more; then the devices, each at the end of a request
//! and with what it has to say said to the local APICs; then the IOMMUs' commands; and only then the
//! CPUs' state is read, in which every interrupt is that was sent. Nothing is in flight anywhere.

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use super::configuration::Configuration;
use super::vcpu::{Model, TIME, VcpuState};
use crate::board::Board;
use crate::board::snapshot::BoardState;
use crate::kvm::{self, Crew, End, Ending, KvmError, Paused};
use crate::ram::Memory;

/// Everything but RAM.
#[derive(Serialize, Deserialize)]
pub(crate) struct MachineState {
    clock: kvm_clock_data,
    vcpus: Vec<VcpuState>,
    board: BoardState,
}

/// A machine that runs.
#[derive(Clone, Copy)]
pub(crate) struct Live<'a> {
    pub(crate) vm: &'a VmFd,
    pub(crate) memory: &'a Memory,
    pub(crate) board: &'a Board,
    pub(crate) crew: &'a Crew,
    pub(crate) configuration: &'a Configuration,
    pub(crate) end: &'a End,
}

/// A machine that stands still. It goes on when this is dropped.
pub(crate) struct Still<'a> {
    live: Live<'a>,
    // Dropped, and the CPUs go on, after the devices do.
    paused: Option<Paused<'a>>,
}

impl<'a> Live<'a> {
    /// Brings the machine to a halt.
    pub(crate) fn halt(self) -> Result<Still<'a>, SnapshotError> {
        let paused = self.crew.pause()?;
        self.board.freeze();
        Ok(Still {
            live: self,
            paused: Some(paused),
        })
    }
}

impl Still<'_> {
    /// The state of CPUs and devices.
    pub(crate) fn state(&self) -> Result<MachineState, SnapshotError> {
        let model = Model::ask(&kvm::open()?)?;
        let board = self.live.board.save()?;
        let cpus = || self.paused.iter().flat_map(Paused::vcpus);
        let vcpus = cpus().map(|vcpu| model.save(&vcpu));
        let mut vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
        let clock = self
            .live
            .vm
            .get_clock()
            .map_err(KvmError::call("KVM_GET_CLOCK"))?;
        for (state, vcpu) in vcpus.iter_mut().zip(cpus()) {
            Model::save_tsc(state, &vcpu)?;
        }
        Ok(MachineState {
            clock,
            vcpus,
            board,
        })
    }

    pub(crate) fn configuration(&self) -> &Configuration {
        self.live.configuration
    }

    pub(crate) fn memory(&self) -> &Memory {
        self.live.memory
    }

    /// Ends the machine without letting it run again.
    pub(crate) fn end(mut self, ending: Ending) {
        self.live.end.reach(ending);
        // The CPUs' threads find the end; the devices stay as they are.
        self.paused = None;
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if self.paused.is_some() {
            self.live.board.thaw();
        }
    }
}

impl MachineState {
    /// Puts the state into a machine that has not run, whose RAM has its contents and whose CPUs have
    /// their CPUID leaves. The machine stands still until the board is [thawed](Board::thaw).
    pub(crate) fn restore(
        &self,
        vm: &VmFd,
        vcpus: &[VcpuFd],
        board: &Board,
    ) -> Result<(), SnapshotError> {
        if vcpus.len() != self.vcpus.len() {
            return Err(SnapshotError::Device(crate::board::StateError(
                "another number of CPUs".into(),
            )));
        }
        board.restore(&self.board)?;
        let scales = kvm::open()?.check_extension(Cap::TscControl);
        for (vcpu, state) in vcpus.iter().zip(&self.vcpus) {
            state.restore(vcpu, scales)?;
        }
        // An EOI that a CPU made in its last moment, and that KVM had not told of: the interrupt is
        // in no local APIC any more, but the IOAPIC waits. (Its request is not part of KVM's state.)
        for vector in board.in_service() {
            if !self.vcpus.iter().any(|vcpu| vcpu.has_interrupt(vector)) {
                board.eoi(vector);
            }
        }
        for which in TIME {
            for (vcpu, state) in vcpus.iter().zip(&self.vcpus) {
                state.restore_time(vcpu, which)?;
            }
        }
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock)
            .map_err(KvmError::call("KVM_SET_CLOCK"))?;
        Ok(())
    }
}
