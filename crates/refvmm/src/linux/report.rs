//! What the devices know when a guest has ended: the other side of what the guest saw.

use std::collections::BTreeMap;

use amdvi_hostcap::ram::RamLayout;
use amdvi_hostcap::{Conflict, Decision, Early, Fact, Gap, Note};
use amdvi_regs::mmio::offset;
use amdvi_vmm_glue::kvm::IrqfdCounters;
use serde::Serialize;
use serde_json::Value;

use super::Outcome;
use crate::board::{Board, EndpointCounts};
use crate::run::Interrupts;
use crate::run::machine::Machine;

/// The registers of an IOMMU that a report has, all of eight bytes.
const REGISTERS: [(&str, u64); 14] = [
    ("device_table_base", offset::DEVICE_TABLE_BASE),
    ("command_buffer_base", offset::COMMAND_BUFFER_BASE),
    ("event_log_base", offset::EVENT_LOG_BASE),
    ("ppr_log_base", offset::PPR_LOG_BASE),
    ("ga_log_base", offset::GA_LOG_BASE),
    ("exclusion_base", offset::EXCLUSION_BASE),
    ("exclusion_limit", offset::EXCLUSION_LIMIT),
    ("efr", offset::EXTENDED_FEATURE),
    ("efr2", offset::EXTENDED_FEATURE_2),
    ("command_head", offset::COMMAND_HEAD),
    ("command_tail", offset::COMMAND_TAIL),
    ("event_head", offset::EVENT_HEAD),
    ("event_tail", offset::EVENT_TAIL),
    ("status", offset::STATUS),
];

/// One IOMMU, registers as hexadecimal numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IommuState {
    /// Segment and DeviceID, as `0000:00:00.2`.
    pub at: String,
    /// Where its registers are.
    pub mmio_base: String,
    /// CONTROL as it was when the device was last seen enabled: a guest that ends well disables it
    /// in the end.
    pub control: String,
    /// CONTROL at the end.
    pub control_at_end: String,
    /// The other registers at the end.
    #[serde(flatten)]
    pub registers: BTreeMap<&'static str, String>,
}

/// The devices of a board.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Devices {
    /// The IOMMUs, in the order of `--device`.
    pub iommus: Vec<IommuState>,
    /// The test endpoints, in the order of `--endpoint`.
    pub endpoints: Vec<EndpointState>,
    /// What routes of vectors have cost since the last reset of the machine, with `--interrupts irqfd`.
    pub routes: Option<IrqfdCounters>,
}

/// One test endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointState {
    /// What it has counted.
    #[serde(flatten)]
    pub counts: EndpointCounts,
    /// The first words of its Device Table Entry, hexadecimal and without the addresses of tables:
    /// what the IOMMU was seen to be told of it in the course of time, each once.
    pub dtes: Vec<String>,
    /// The greatest IntTabLen that its Device Table Entry was seen with while IV was set: 9 is 512
    /// interrupts, 11 is 2048. None while there was no interrupt table.
    pub int_tab_len: Option<u8>,
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// DTE\[63:0\] without the addresses of the host's table and of the GCR3 table.
const DTE_FLAGS: u64 = !0x1c0f_ffff_ffff_f000;
/// More different entries of an endpoint than this are not kept.
const MOST_DTES: usize = 32;

/// What a guest that ends well takes away again, looked at in the course of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    /// CONTROL of each IOMMU, as it was when it was last seen enabled.
    controls: Vec<u64>,
    /// Of each test endpoint.
    dtes: Vec<Vec<u64>>,
    /// Of each test endpoint.
    int_tab_lens: Vec<Option<u8>>,
}

impl Samples {
    /// Looks at it.
    pub(super) fn take(&mut self, board: &Board) {
        let mut n = 0;
        board.with_iommus(|iommu| {
            self.controls.resize(self.controls.len().max(n + 1), 0);
            let control = iommu.control();
            if control.iommu_en() {
                self.controls[n] = control.into_bits();
            }
            n += 1;
        });
        let entries = board.endpoint_entries();
        self.dtes.resize(entries.len(), Vec::new());
        self.int_tab_lens.resize(entries.len(), None);
        for (seen, entry) in self.int_tab_lens.iter_mut().zip(&entries) {
            let table = entry.map(|entry| entry.q2).filter(|table| table.iv());
            *seen = (*seen).max(table.map(|table| table.int_tab_len()));
        }
        for (seen, entry) in self.dtes.iter_mut().zip(entries) {
            let flags = entry.map(|entry| entry.q0.into_bits() & DTE_FLAGS);
            if let Some(flags) = flags.filter(|flags| !seen.contains(flags))
                && seen.len() < MOST_DTES
            {
                seen.push(flags);
            }
        }
    }
}

impl Devices {
    /// Looks at the board of a guest that has ended.
    pub(super) fn look(board: &Board, samples: &Samples) -> Self {
        let mut iommus = Vec::new();
        board.with_iommus(|iommu| {
            let read = |(name, at): (&'static str, u64)| {
                let mut data = [0; 8];
                iommu.mmio_read(at, &mut data);
                (name, hex(u64::from_le_bytes(data)))
            };
            let enabled = samples.controls.get(iommus.len()).copied().unwrap_or(0);
            iommus.push(IommuState {
                at: format!("{}:{}", iommu.segment(), iommu.device_id()),
                mmio_base: hex(iommu.mmio_base()),
                control: hex(enabled),
                control_at_end: hex(iommu.control().into_bits()),
                registers: REGISTERS.into_iter().map(read).collect(),
            });
        });
        let counts = board.endpoint_counts().into_iter();
        let state = |(n, counts)| EndpointState {
            counts,
            dtes: samples
                .dtes
                .get(n)
                .into_iter()
                .flatten()
                .copied()
                .map(hex)
                .collect(),
            int_tab_len: samples.int_tab_lens.get(n).copied().flatten(),
        };
        Self {
            iommus,
            endpoints: counts.enumerate().map(state).collect(),
            routes: board.route_counters(),
        }
    }
}

#[derive(Serialize)]
struct Object<'a> {
    accel: &'static str,
    kernel: String,
    cpus: usize,
    apic_ids: &'a [u32],
    host_caps: String,
    /// Of the first IOMMU; those of all are in `machines`.
    requested: &'a str,
    offered: BTreeMap<String, Value>,
    decisions: &'a [Decision],
    machines: Vec<MachineObject<'a>>,
    host_facts: Vec<&'a Fact<Early>>,
    host_gaps: Vec<&'a Gap>,
    host_notes: Vec<&'a Note>,
    host_conflicts: Vec<Conflict>,
    ram: &'a RamLayout,
    interrupts: Interrupts,
    #[serde(flatten)]
    devices: &'a Devices,
    ended: &'a super::Ended,
    resets: u32,
    ms: u64,
    orders: &'a [Value],
    problems: &'a [String],
    passed: bool,
}

#[derive(Serialize)]
struct MachineObject<'a> {
    requested: &'a str,
    offered: BTreeMap<String, Value>,
    decisions: &'a [Decision],
}

/// The JSON object, in one line. `machines` has one entry for each IOMMU, and one at least.
pub fn json(machines: &[Machine], outcome: &Outcome) -> String {
    let first = &machines[0];
    let facts = &first.host.facts;
    let object = Object {
        accel: "kvm",
        kernel: outcome.kernel.display().to_string(),
        cpus: outcome.apic_ids.len(),
        apic_ids: &outcome.apic_ids,
        host_caps: first.host.spec.to_string(),
        requested: &first.requested.text,
        offered: first.offered(),
        decisions: &first.offer.decisions,
        machines: machines
            .iter()
            .map(|machine| MachineObject {
                requested: &machine.requested.text,
                offered: machine.offered(),
                decisions: &machine.offer.decisions,
            })
            .collect(),
        host_facts: facts.early().iter().collect(),
        host_gaps: facts.gaps().collect(),
        host_notes: facts.notes().collect(),
        host_conflicts: facts.conflicts(),
        ram: first.ram.layout(),
        interrupts: outcome.interrupts,
        devices: &outcome.devices,
        ended: &outcome.ended,
        resets: outcome.resets,
        ms: outcome.elapsed.as_millis() as u64,
        orders: &outcome.orders,
        problems: &outcome.problems,
        passed: outcome.ended.is_good(),
    };
    // Strings, numbers and maps with string keys: there is nothing that JSON can't say.
    serde_json::to_string(&object).expect("the report is plain data")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use amdvi_irt::Delivery;
    use amdvi_regs::dte::DteQ2;
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::board::{Config, Injector};
    use crate::linux::Ended;
    use crate::ram::{Ram, RamWish};
    use crate::run::host::HostIommu;

    struct Nobody;

    impl Injector for Nobody {
        fn inject(&self, _: &Delivery) {}
    }

    #[test]
    fn the_report_has_both_sides_of_the_machine_in_one_line() {
        let device = "amd-iommu,numint2k=on".parse().unwrap();
        let host = HostIommu::ask(&"mock:numint2k=off".parse().unwrap());
        let machine = Machine::new(&device, &host, &RamWish::default()).unwrap();
        let memory = Arc::new(Ram::default().map().unwrap());
        let config = Config::scenario(machine.options.clone());
        let board = Board::new(&config, &memory, &[0], Arc::new(Nobody)).unwrap();
        let control = machine.options.mmio_base() + offset::CONTROL;
        let mut samples = Samples::default();
        // IommuEn, and CONTROL[17] (GAEn) while it is set.
        board.mmio_write(control, &0x2_0001u64.to_le_bytes());
        samples.take(&board);
        // A table of 2048 interrupts, later one of 2, for each entry of the page at 0.
        for table in [11, 1] {
            for entry in 0..128 {
                let q2 = DteQ2::new().with_iv(true).with_int_tab_len(table);
                let at = GuestAddress(entry * 32 + 16);
                memory.write_obj(q2.into_bits(), at).unwrap();
            }
            samples.take(&board);
        }
        board.mmio_write(control, &0x2_0000u64.to_le_bytes());
        samples.take(&board);
        let outcome = Outcome {
            kernel: "/vmlinuz".into(),
            apic_ids: vec![0, 300],
            ended: Ended::TripleFault("CPU 0 …".into()),
            resets: 1,
            elapsed: Duration::from_millis(1500),
            interrupts: Interrupts::Irqfd,
            devices: Devices::look(&board, &samples),
            orders: Vec::new(),
            problems: vec!["not delivered".into()],
        };
        let text = json(&[machine], &outcome);
        assert!(!text.contains('\n'));
        let object: Value = serde_json::from_str(&text).unwrap();
        let at = |pointer: &str| object.pointer(pointer).unwrap();
        assert_eq!(at("/offered/numint2k"), false);
        assert_eq!(at("/decisions/0/feature"), "numint2k");
        assert_eq!(at("/iommus/0/at"), "0000:00:00.2");
        assert_eq!(at("/iommus/0/control"), "0x20001");
        assert_eq!(at("/iommus/0/control_at_end"), "0x20000");
        assert_eq!(at("/iommus/0/command_head"), "0x0");
        assert_eq!(at("/endpoints/0/sent"), 0);
        assert_eq!(at("/endpoints/0/tlb/page_requests"), 0);
        // There is no device table; entry 0 of memory is all zeroes.
        assert_eq!(at("/endpoints/0/dtes"), &serde_json::json!(["0x0"]));
        assert_eq!(at("/endpoints/0/int_tab_len"), 11);
        assert_eq!(
            (at("/interrupts"), at("/routes")),
            (&"irqfd".into(), &Value::Null)
        );
        assert_eq!(at("/ended/how"), "triple-fault");
        assert_eq!((at("/passed"), at("/cpus")), (&false.into(), &2.into()));
        assert_eq!(at("/ram/placement").as_str(), Some("below-4-gib"));
    }
}
