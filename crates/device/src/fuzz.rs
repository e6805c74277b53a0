//! Fuzz targets as plain functions: bytes in, no panic and bounded work out.
//!
//! Each target builds a small machine, lets the bytes be a hostile guest (or a hostile saved
//! state), and asserts after every step that the number of guest memory accesses stays within what
//! the step can need. They run on stable with seeded input in the tests; coverage-guided wrappers
//! call the same functions.

mod devices;
mod process;
mod translate;

use std::sync::Arc;

use amdvi_dma::{Access, MAX_LOADS};
use amdvi_regs::DeviceId;
use amdvi_regs::command::Command;
use amdvi_regs::mmio::{Control, offset};
use amdvi_regs::msi::Msi;

use crate::testing::{TestHost, TestMemory};
use crate::{Endpoint, Iommu, Options, SavedState};

pub use process::process;
pub use translate::translate;

/// RAM of the fuzzed machine: small, so that addresses often hit it.
const RAM: u64 = 0x2_0000;
const OPTIONS: &str = "amd-iommu,vapic=on,numint2k=on,segments=8,gtsup=on,gats=5,glxsup=2,\
                       gcr3trpmode=on,dirty-tracking=on,device-iotlb=on,pprsup=on,\
                       ppr-auto-rsp=on,ppr-early=on,dual-ppr-log=on,prefsup=on,perf-counters=2x3";

/// Accesses that one command can cause: two loads, once more if devices have to hear something
/// first; a store; an event, and another when a device does not answer.
const PER_COMMAND: u64 = 10;
/// Accesses of a batch that no command in it causes: for devices that owed answers before.
const BATCH: u64 = 2 * 64 + 2;
/// Accesses that one interrupt or DMA request can cause, its event or log entry included: DTE,
/// DomainID, an IRTE read again while it changes, or a walk with its marks; words of logs, a tail;
/// events of the counters that wrap.
const PER_REQUEST: u64 = 32 + MAX_LOADS as u64 + process::EXCHANGES + 2 * 6;

/// Bytes as a source of choices; 0 when they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct Machine {
    memory: Arc<TestMemory>,
    host: Arc<TestHost>,
    iommu: Arc<Iommu>,
    devices: Vec<Endpoint>,
    tlbs: Vec<Arc<devices::Device>>,
}

impl Machine {
    fn new() -> Self {
        let memory = Arc::new(TestMemory::new(RAM));
        let host = Arc::new(TestHost::default());
        let options: Options = OPTIONS.parse().expect("the target's options");
        let iommu = Iommu::new(&options, memory.clone(), host.clone());
        let devices = [0, 1, 0x81, 0xffff]
            .map(|id| iommu.endpoint(DeviceId(id)))
            .into();
        let mut machine = Self {
            memory,
            host,
            iommu,
            devices,
            tlbs: Vec::new(),
        };
        machine.add_tlbs();
        machine
    }

    fn write(&self, at: u64, value: u64) {
        self.iommu.mmio_write(at, &value.to_le_bytes());
    }

    /// Everything on, device table at 0, commands at 1000h, events at 2000h, GA log at 3000h, PPR logs
    /// at 4000h and 5000h.
    fn enable(&self, extra: u64) {
        self.write(offset::DEVICE_TABLE_BASE, 0);
        self.write(offset::COMMAND_BUFFER_BASE, 0x1000 | 8 << 56);
        self.write(offset::EVENT_LOG_BASE, 0x2000 | 8 << 56);
        self.write(offset::GA_LOG_BASE, 0x3000 | 8 << 56);
        self.write(offset::PPR_LOG_BASE, 0x4000 | 8 << 56);
        self.write(offset::PPR_LOG_B_BASE, 0x5000 | 8 << 56);
        let control = Control::RESET
            .with_iommu_en(true)
            .with_cmd_buf_en(true)
            .with_event_log_en(true)
            .with_event_int_en(true)
            .with_com_wait_int_en(true)
            .with_ga_log_en(true)
            .with_ga_int_en(true)
            .with_ppr_en(true)
            .with_ppr_log_en(true)
            .with_ppr_int_en(true)
            .with_gt_en(true);
        self.write(offset::CONTROL, control.into_bits() | extra);
    }

    fn fill(&self, gpa: u64, input: &mut Input<'_>, words: u64) {
        for n in 0..words {
            self.memory
                .write((gpa & !7).wrapping_add(8 * n) % RAM, input.word());
        }
    }

    /// Runs a step and asserts that it stayed within its budget of accesses.
    fn bounded<R>(&mut self, budget: u64, step: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.memory.accesses();
        let result = step(self);
        let used = self.memory.accesses() - before;
        assert!(
            used <= budget,
            "{used} guest memory accesses in one step; {budget} allowed"
        );
        // What the host records is not the device's memory.
        self.host.take_deliveries();
        self.host.take_doorbells();
        result
    }

    fn mmio_step(&mut self, input: &mut Input<'_>) {
        const COMMANDS: u64 = Iommu::COMMANDS_PER_CALL as u64;
        let choice = input.byte();
        let size = 1 + usize::from(choice >> 4 & 7);
        // Mostly registers, sometimes anywhere.
        let at = match choice & 3 {
            0 => u64::from(input.byte()) * 2,
            1 => 0x2000 + u64::from(input.byte()),
            2 => match input.word() {
                // A counter of a bank.
                word if word & 1 == 1 => 0x4_0000 | word >> 8 & 0x3_3ff8,
                word => word % 0x4100,
            },
            _ => input.word(),
        };
        let mut data = input.word().to_le_bytes();
        self.bounded(COMMANDS * PER_COMMAND + BATCH, |machine| {
            match choice >> 2 & 3 {
                0 => machine.iommu.mmio_read(at, &mut data[..size]),
                1 => machine.iommu.config_write(at as u16, &data[..size]),
                2 => machine.iommu.config_read(at as u16, &mut data[..size]),
                _ => machine.iommu.mmio_write(at, &data[..size]),
            }
        });
    }

    fn request(&mut self, input: &mut Input<'_>) {
        let choice = usize::from(input.byte());
        let address = input.word();
        let data = input.word();
        self.bounded(PER_REQUEST, |machine| {
            let count = machine.devices.len();
            let device = &mut machine.devices[choice % count];
            let msi = Msi {
                address: 0xfee0_0000 | address & 0xf_ffff,
                data: data as u32,
            };
            match choice >> 6 {
                0 => drop(device.signal(msi)),
                1 if choice & 0x20 == 0 => drop(device.resolve(msi)),
                1 => device.routes(&[msi, msi], |_| ()),
                2 => drop(device.translate(address & 0xff_ffff, data & 0xffff, Access::Write)),
                _ => drop(device.translate(address, data, Access::Read)),
            }
        });
    }

    /// What a guest must always find, whatever it did before.
    fn check(&self) {
        let read = |at| {
            let mut data = [0; 8];
            self.iommu.mmio_read(at, &mut data);
            u64::from_le_bytes(data)
        };
        for (base, pointers) in [
            (
                offset::COMMAND_BUFFER_BASE,
                [offset::COMMAND_HEAD, offset::COMMAND_TAIL],
            ),
            (
                offset::EVENT_LOG_BASE,
                [offset::EVENT_HEAD, offset::EVENT_TAIL],
            ),
        ] {
            let len = read(base) >> 56;
            assert!((8..=15).contains(&len), "Len {len}");
            for at in pointers {
                assert!(read(at) < 1 << (len + 4), "pointer {at:#x}");
            }
        }
        assert_eq!(read(offset::EXTENDED_FEATURE), self.iommu.efr().into_bits());
        // Any state that a guest can produce can be restored.
        let state = self.iommu.save();
        let options = OPTIONS.parse().expect("the target's options");
        let other = Iommu::new(&options, self.memory.clone(), self.host.clone());
        other.restore(&state).expect("a saved state restores");
        assert_eq!(other.save(), state);
    }
}

/// Register and configuration accesses of any kind, with requests between them.
pub fn mmio(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = Machine::new();
    machine.fill(0x1000, &mut input, 8);
    while !input.is_empty() {
        match input.byte() & 7 {
            0 => machine.request(&mut input),
            1 => machine.sva_request(&mut input),
            2 => machine.answer(&mut input),
            _ => machine.mmio_step(&mut input),
        }
    }
    machine.check();
}

/// A command buffer with any content, run to its end or to its halt.
pub fn command_ring(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = Machine::new();
    machine.enable(0);
    let tail = u64::from(input.byte()) * 16;
    let mut n = 0;
    while !input.is_empty() && n < 256 {
        // Opcodes that exist, most of the time; the rest as it comes.
        let choice = input.byte();
        let mut words = [input.word(), input.word()];
        if choice & 7 != 0 {
            words[0] = words[0] & !(0xf << 60) | u64::from(1 + (choice >> 4) % 8) << 60;
        }
        if choice & 8 != 0 {
            words = [
                words[0] & (0xf << 60 | 0x1_fff7),
                words[1] & 0x7fff_ffff_ffff_f000,
            ];
        } else if choice & 1 == 0 {
            // No reserved bit.
            let command = Command::decode(words);
            let bits = command.bits() & !command.reserved_bits_set();
            words = [bits as u64, (bits >> 64) as u64];
        }
        machine.memory.write_all(0x1000 + 16 * n, &words);
        n += 1;
    }
    let budget = u64::from(Iommu::COMMANDS_PER_CALL) * PER_COMMAND + BATCH;
    machine.bounded(budget, |machine| machine.write(offset::COMMAND_TAIL, tail));
    // A ring of 256 entries ends within one call, whatever is in it; a store into the ring itself
    // can't make it longer.
    assert!(!machine.bounded(budget, |machine| machine.iommu.run_commands()));
    while !input.is_empty() {
        machine.answer(&mut input);
    }
    machine.check();
}

/// Device table, interrupt table and page tables with any content, and requests against them.
pub fn remap(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = Machine::new();
    let extra = Control::from_bits(input.word());
    let extra = Control::new()
        .with_ga_en(extra.ga_en())
        .with_xt_en(extra.xt_en())
        .with_gam_en(extra.gam_en() & 1)
        .with_num_int_remap_mode(extra.num_int_remap_mode() & 1)
        .with_irt_cache_dis(extra.irt_cache_dis())
        .with_had_update(extra.had_update())
        .with_gcr3_trp_mode(extra.gcr3_trp_mode())
        .with_dual_ppr_log_en(extra.dual_ppr_log_en())
        .with_ppr_auto_rsp_en(extra.ppr_auto_rsp_en())
        .with_dev_tbl_seg_en(extra.dev_tbl_seg_en() & 3);
    machine.enable(extra.into_bits());
    for dte in [0, 1] {
        let gpa = 32 * dte;
        let mut words: [u64; 4] = std::array::from_fn(|_| input.word());
        if input.byte() & 3 != 0 {
            // Plausible: tables inside RAM, no reserved bits, everything valid.
            words[0] = words[0] & (0x7ff << 52 | 7 << 9 | 0x1_f180) | 3;
            words[1] &= 0xffff | 7 << 32 | 3 << 16;
            words[2] = words[2] & (0xdf_u64 << 56 & !(1 << 59) | 0x1_ffc0 | 0x3f) | 1;
            words[3] = 0;
        }
        machine.memory.write_all(gpa, &words);
    }
    while !input.is_empty() {
        match input.byte() & 7 {
            0 => {
                let gpa = input.word();
                machine.fill(gpa, &mut input, 2);
            }
            1 => machine.mmio_step(&mut input),
            2 | 3 => machine.sva_request(&mut input),
            4 if input.byte() & 7 == 0 => machine.answer(&mut input),
            _ => machine.request(&mut input),
        }
    }
    machine.check();
}

/// A saved state from bytes: refused with an error, or taken and then as good as any.
///
/// The bytes are XORed over a valid state, which gets further than bytes alone.
pub fn restore(data: &[u8]) {
    let (flips, steps) = data.split_at(data.len() / 2);
    let mut machine = Machine::new();
    machine.enable(0);
    let mut bytes = postcard::to_allocvec(&machine.iommu.save()).expect("a state serializes");
    let mut input = Input(flips);
    while !input.is_empty() {
        let at = (usize::from(input.byte()) | usize::from(input.byte()) << 8) % bytes.len();
        bytes[at] ^= input.byte();
    }
    for bytes in [&bytes[..], flips] {
        let Ok(state) = postcard::from_bytes::<SavedState>(bytes) else {
            continue;
        };
        let before = machine.iommu.save();
        match machine.iommu.restore(&state) {
            Ok(()) => assert_eq!(machine.iommu.save(), state),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(
                    machine.iommu.save(),
                    before,
                    "a refused state changes nothing"
                );
            }
        }
    }
    let mut input = Input(steps);
    while !input.is_empty() {
        if input.byte() & 1 == 0 {
            machine.request(&mut input);
        } else {
            machine.mmio_step(&mut input);
        }
    }
    machine.check();
}
