//! QEMU's amd-iommu, driven without a guest: the test writes registers, tables and commands, and
//! makes QEMU's test devices send requests.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::case::{Case, Message, Observation, Observed, Outcome, Step, event_code};
use crate::layout::{
    COMMANDS, DEVICE_TABLE, Device, EVENTS, MARKER, SCRATCH, STORE, STORE_WORDS, TABLES, is_ram,
};
use crate::qtest::{self, MAX_LINES, Qtest, Script};
use crate::setup::{self, invalidate_everything};
use amdvi_regs::mmio::{Control, offset};

/// QEMU's IOMMU is always here.
const MMIO: u64 = 0xfed8_0000;
const EDU_BAR: u64 = 0xe000_0000;
const TESTDEV_BAR: u64 = 0xe010_0000;
const IOAPIC: u64 = 0xfec0_0000;
/// The offset of edu's DMA buffer in its BAR.
const EDU_BUFFER: u64 = 0x4_0000;
/// What iommu-testdev writes.
const TESTDEV_DATA: u32 = 0x1234_5678;
/// What edu writes, and what it is to find.
const EDU_DATA: u32 = 0x5eed_cafe;
/// edu waits 100 ms of virtual time before it does DMA.
const EDU_DELAY_NS: u64 = 100_000_000;
/// Events of a case that are looked at.
const EVENT_WINDOW: usize = 32;

const MACHINE: &[&str] = &[
    "-M",
    "q35",
    "-m",
    "4G",
    "-display",
    "none",
    "-nodefaults",
    "-device",
    "amd-iommu,intremap=on,dma-remap=on,xtsup=on",
    "-device",
    "edu,addr=05.0,dma_mask=0xffffffffffffffff",
    "-device",
    "iommu-testdev,addr=10.0",
    "-trace",
    "amdvi_completion_wait",
    "-trace",
    "amdvi_ir_remap_msi_req",
    "-trace",
    "amdvi_ir_remap_msi",
];
/// More traces, for a person who looks at one case.
const VERBOSE: &[&str] = &[
    "-trace",
    "amdvi_translation_result",
    "-trace",
    "amdvi_page_fault",
    "-trace",
    "amdvi_iotlb_hit",
    "-trace",
    "amdvi_ir_err",
    "-trace",
    "amdvi_ir_target_abort",
    "-trace",
    "amdvi_invalid_dte",
];

/// The other side.
pub struct Theirs {
    qtest: Qtest,
    /// Counts cases, for the markers in the trace.
    marker: u64,
    /// Config space offset of edu's MSI capability.
    msi: u8,
}

/// Where the answers of a case's steps are.
struct Plan {
    script: Script,
    first_event: usize,
    steps: Vec<Probe>,
    events: usize,
    status: usize,
    stores: usize,
}

/// The answers that tell what became of a step.
struct Probe {
    kind: Kind,
    event_tail: usize,
}

enum Kind {
    Nothing,
    Head(usize),
    TestdevWrite {
        gpa: u64,
        result: usize,
    },
    /// The value found where the data was looked for.
    Edu {
        gpa: u64,
        found: usize,
    },
    Interrupt,
}

impl Theirs {
    /// Starts QEMU and sets its devices up.
    pub fn start(qemu: &Path, verbose: bool) -> Result<Self> {
        let mut args = MACHINE.to_vec();
        if verbose {
            args.extend_from_slice(VERBOSE);
        }
        let mut theirs = Self {
            qtest: Qtest::spawn(qemu, &args)?,
            marker: 0,
            msi: 0,
        };
        theirs.msi = theirs.set_up()?;
        Ok(theirs)
    }

    /// BARs, bus mastering and MSI; no firmware does that here.
    fn set_up(&mut self) -> Result<u8> {
        let mut script = Script::default();
        for (device, bar) in [(Device::Edu, EDU_BAR), (Device::Testdev, TESTDEV_BAR)] {
            config_write(&mut script, device, 0x10, bar as u32);
            config_write(&mut script, device, 0x04, 6);
        }
        let pointer = config_read(&mut script, Device::Edu, 0x34);
        let answers = self.qtest.run(&script)?;
        let mut at = qtest::number(&answers[pointer])? as u8;
        // A capability list of a device that we know is short; still, don't follow a loop.
        for _ in 0..16 {
            let mut script = Script::default();
            let header = config_read(&mut script, Device::Edu, at);
            let header = qtest::number(&self.qtest.run(&script)?[header])? as u32;
            if header & 0xff == 5 {
                let mut script = Script::default();
                config_write(&mut script, Device::Edu, at, header | 1 << 16);
                self.qtest.run(&script)?;
                return Ok(at);
            }
            at = (header >> 8) as u8;
        }
        bail!("edu has no MSI capability")
    }

    /// Runs cases. `expected` has, for each step, where our side's DMA landed.
    pub fn run(&mut self, cases: &[(Case, Vec<Option<u64>>)]) -> Result<Vec<Observed>> {
        let mut results = Vec::with_capacity(cases.len());
        let mut batch = Script::default();
        let mut plans: Vec<(usize, Plan)> = Vec::new();
        let mut first = 0;
        for (i, (case, expected)) in cases.iter().enumerate() {
            let plan = self.plan(case, expected);
            if !plans.is_empty() && batch.len() + plan.script.len() + 16 > MAX_LINES {
                self.finish(
                    &cases[first..i],
                    std::mem::take(&mut batch),
                    &plans,
                    &mut results,
                )?;
                plans.clear();
                first = i;
            }
            let start = batch.len();
            batch.append(&plan.script);
            plans.push((start, plan));
        }
        self.finish(&cases[first..], batch, &plans, &mut results)?;
        Ok(results)
    }

    fn finish(
        &mut self,
        cases: &[(Case, Vec<Option<u64>>)],
        mut batch: Script,
        plans: &[(usize, Plan)],
        results: &mut Vec<Observed>,
    ) -> Result<()> {
        let end = self.end_marker(&mut batch);
        let answers = self.qtest.run(&batch)?;
        // The lines before the first marker are of nobody.
        let mut traces: Vec<Vec<String>> = vec![Vec::new()];
        loop {
            let line = self.qtest.trace()?;
            match marker(&line) {
                Some(number) if number == end => break,
                Some(_) => traces.push(Vec::new()),
                None => {
                    if let Some(last) = traces.last_mut() {
                        last.push(line);
                    }
                }
            }
        }
        if traces.len() != cases.len() + 1 {
            bail!(
                "QEMU completed {} of {} cases",
                traces.len() - 1,
                cases.len()
            );
        }
        for (((case, _), (start, plan)), trace) in cases.iter().zip(plans).zip(traces.drain(1..)) {
            let answers = answers
                .get(*start..*start + plan.script.len())
                .context("answers are missing")?;
            let observed = plan
                .observe(answers, trace)
                .with_context(|| format!("case {}", case.number))?;
            results.push(observed);
        }
        Ok(())
    }

    fn next_marker(&mut self) -> [u64; 2] {
        self.marker += 1;
        setup::marker(self.marker)
    }

    /// A last marker: when it is traced, everything before it is.
    fn end_marker(&mut self, script: &mut Script) -> u64 {
        let command = self.next_marker();
        script.write64(MMIO + offset::CONTROL, 0);
        script.write64(MMIO + offset::COMMAND_BUFFER_BASE, COMMANDS | 8 << 56);
        script.write64(MMIO + offset::COMMAND_HEAD, 0);
        script.write64(MMIO + offset::COMMAND_TAIL, 0);
        script.write64(MMIO + offset::CONTROL, setup::control().into_bits());
        script.write_words(COMMANDS, &command);
        script.write64(MMIO + offset::COMMAND_TAIL, 16);
        script.write64(MMIO + offset::CONTROL, 0);
        // DMA that went astray may have hit a table.
        for (start, bytes) in [(DEVICE_TABLE, 0x2000), (TABLES, 0x2_0000)] {
            script.push(format_args!("memset {start:#x} {bytes:#x} 0x0"));
        }
        self.marker
    }

    fn plan(&mut self, case: &Case, expected: &[Option<u64>]) -> Plan {
        let mut script = Script::default();
        let mut dirty: Vec<u64> = Vec::new();
        for run in consecutive(case) {
            let words: Vec<u64> = run
                .clone()
                .step_by(8)
                .map(|gpa| case.memory[&gpa])
                .collect();
            script.write_words(run.start, &words);
        }
        for (at, value) in setup::registers(case) {
            script.write64(MMIO + at, value);
        }
        let mut tail = case.ring_start;
        let mut prologue = invalidate_everything();
        prologue.push(self.next_marker());
        submit(&mut script, case, &mut tail, &prologue);
        // QEMU logs events for what it finds in an entry that is invalidated.
        let first_event = script.read64(MMIO + offset::EVENT_TAIL);
        let mut steps = Vec::new();
        for (i, expected) in expected.iter().enumerate() {
            let kind = self.step(&mut script, case, i, *expected, &mut tail, &mut dirty);
            let event_tail = script.read64(MMIO + offset::EVENT_TAIL);
            steps.push(Probe { kind, event_tail });
        }
        let status = script.read64(MMIO + offset::STATUS);
        let stores = script.read_words(STORE, STORE_WORDS as usize);
        let events = script.read_words(EVENTS, EVENT_WINDOW * 2);
        // Leave the memory as it was found.
        script.push(format_args!("memset {STORE:#x} {:#x} 0x0", STORE_WORDS * 8));
        for run in consecutive(case) {
            script.push(format_args!(
                "memset {:#x} {:#x} 0x0",
                run.start,
                run.end - run.start
            ));
        }
        for gpa in dirty {
            script.write64(gpa & !7, 0);
        }
        Plan {
            script,
            first_event,
            steps,
            events,
            status,
            stores,
        }
    }

    fn step(
        &self,
        script: &mut Script,
        case: &Case,
        i: usize,
        expected: Option<u64>,
        tail: &mut u64,
        dirty: &mut Vec<u64>,
    ) -> Kind {
        match case.steps[i] {
            Step::Store { gpa, value } => {
                script.write64(gpa, value);
                dirty.push(gpa);
                Kind::Nothing
            }
            Step::Commands(ref list) => {
                submit(script, case, tail, list);
                Kind::Head(script.read64(MMIO + offset::COMMAND_HEAD))
            }
            Step::Control(control) => {
                script.write64(MMIO + offset::CONTROL, control.into_bits());
                Kind::Head(script.read64(MMIO + offset::COMMAND_HEAD))
            }
            Step::Dma {
                device,
                iova,
                write,
                target,
            } => {
                let control = case.control(i);
                let gpa = expected.unwrap_or(target);
                if is_ram(gpa) {
                    dirty.push(gpa);
                }
                if device == Device::Testdev {
                    testdev_write(script, iova, gpa)
                } else {
                    edu_dma(script, control, iova, write, gpa)
                }
            }
            Step::Msi { address, data } => {
                let capability = self.msi;
                config_write(script, Device::Edu, capability + 4, address);
                config_write(script, Device::Edu, capability + 8, 0);
                config_write(script, Device::Edu, capability + 12, data.into());
                script.write32(EDU_BAR + 0x60, 1);
                script.write32(EDU_BAR + 0x64, 1);
                Kind::Interrupt
            }
            Step::Pin { pin, rte } => {
                let select = |script: &mut Script, index: u8, value: u32| {
                    script.write32(IOAPIC, index.into());
                    script.write32(IOAPIC + 0x10, value);
                };
                let index = 0x10 + 2 * pin;
                select(script, index + 1, (rte >> 32) as u32);
                select(script, index, rte as u32);
                for level in [1, 0] {
                    script.push(format_args!(
                        "set_irq_in /machine/q35/ioapic unnamed-gpio-in {pin} {level}"
                    ));
                }
                // Masked again.
                select(script, index, 1 << 16);
                Kind::Interrupt
            }
        }
    }
}

impl Plan {
    fn observe(&self, answers: &[String], trace: Vec<String>) -> Result<Observed> {
        let log = qtest::words(&answers[self.events])?;
        let mut interrupts = interrupts(&trace).into_iter();
        let mut logged = qtest::number(&answers[self.first_event])? as usize / 8;
        let mut steps = Vec::with_capacity(self.steps.len());
        for probe in &self.steps {
            let end = qtest::number(&answers[probe.event_tail])? as usize / 8;
            let records: Vec<[u64; 2]> = log
                .get(logged..end)
                .with_context(|| format!("{} events in one case", end / 2))?
                .as_chunks()
                .0
                .to_vec();
            logged = end;
            let outcome = match probe.kind {
                Kind::Nothing => Outcome::Nothing,
                Kind::Head(at) => Outcome::Head(qtest::number(&answers[at])?),
                Kind::TestdevWrite { gpa, result } => match qtest::number(&answers[result])? {
                    0 => Outcome::Landed(gpa),
                    0xdead_0002 => Outcome::Aborted,
                    // It landed, but nothing can be read back from there, or something else.
                    0xdead_0003 | 0xdead_0004 => Outcome::Elsewhere,
                    other => bail!("iommu-testdev says {other:#x}"),
                },
                Kind::Edu { gpa, found } => {
                    if qtest::number(&answers[found])? == u64::from(EDU_DATA) {
                        Outcome::Landed(gpa)
                    } else {
                        Outcome::Aborted
                    }
                }
                Kind::Interrupt => interrupts
                    .next()
                    .with_context(|| format!("no interrupt was traced: {trace:?}"))?,
            };
            steps.push(Observation {
                outcome,
                events: records.iter().map(|words| event_code(words[0])).collect(),
                records,
                refusal: None,
            });
        }
        Ok(Observed {
            steps,
            status: qtest::number(&answers[self.status])?,
            stores: qtest::words(&answers[self.stores])?,
            trace,
        })
    }
}

/// The marker that a trace line is.
fn marker(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("amdvi_completion_wait ")?;
    let (address, data) = rest
        .split_once("store address ")?
        .1
        .split_once(" and store data ")?;
    (qtest::number(address).ok()? == MARKER).then(|| qtest::number(data).ok())?
}

/// The outcome of each interrupt request in a trace.
fn interrupts(trace: &[String]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for line in trace {
        if line.starts_with("amdvi_ir_remap_msi_req ") {
            outcomes.push(Outcome::Blocked);
        } else if let Some(message) = delivered(line)
            && let Some(last) = outcomes.last_mut()
        {
            *last = Outcome::Delivered(message);
        }
    }
    outcomes
}

fn delivered(line: &str) -> Option<Message> {
    let rest = line.strip_prefix("amdvi_ir_remap_msi ")?;
    let (_, to) = rest.split_once("-> (addr ")?;
    let (address, data) = to.trim_end_matches(')').split_once(", data ")?;
    let data = qtest::number(data).ok()? as u32;
    Some(Message::from_msi(qtest::number(address).ok()?, data))
}

/// The GPA ranges of a case's memory without gaps.
fn consecutive(case: &Case) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &gpa in case.memory.keys() {
        match runs.last_mut() {
            Some(last) if last.end == gpa && gpa != DEVICE_TABLE => last.end += 8,
            _ => runs.push(gpa..gpa + 8),
        }
    }
    runs
}

fn submit(script: &mut Script, case: &Case, tail: &mut u64, commands: &[[u64; 2]]) {
    let size = setup::ring_bytes(case);
    let mut rest = commands;
    while !rest.is_empty() {
        let room = ((size - *tail) / 16) as usize;
        let (now, later) = rest.split_at(rest.len().min(room));
        script.write_words(COMMANDS + *tail, now.as_flattened());
        *tail = (*tail + 16 * now.len() as u64) % size;
        rest = later;
    }
    script.write64(MMIO + offset::COMMAND_TAIL, *tail);
}

fn testdev_write(script: &mut Script, iova: u64, gpa: u64) -> Kind {
    if is_ram(gpa) {
        script.write32(gpa, 0);
    }
    for (register, value) in [
        (0x04, iova as u32),
        (0x08, (iova >> 32) as u32),
        (0x0c, 4),
        (0x1c, gpa as u32),
        (0x20, (gpa >> 32) as u32),
        // Arm, then trigger by a read.
        (0x14, 1),
    ] {
        script.write32(TESTDEV_BAR + register, value);
    }
    script.read32(TESTDEV_BAR);
    let result = script.read32(TESTDEV_BAR + 0x10);
    const { assert!(TESTDEV_DATA != 0 && TESTDEV_DATA != EDU_DATA) };
    Kind::TestdevWrite { gpa, result }
}

/// One of edu's transfers of 4 bytes; the buffer is at the device's end.
fn edu_transfer(script: &mut Script, iova: u64, write: bool) {
    let (source, destination) = if write {
        (EDU_BUFFER, iova)
    } else {
        (iova, EDU_BUFFER)
    };
    script.write64(EDU_BAR + 0x80, source);
    script.write64(EDU_BAR + 0x88, destination);
    script.write64(EDU_BAR + 0x90, 4);
    script.write64(EDU_BAR + 0x98, if write { 3 } else { 1 });
    script.push(format_args!("clock_step {EDU_DELAY_NS}"));
}

/// Does `transfer` with the IOMMU off; `control` is what it is otherwise.
fn untranslated(script: &mut Script, control: Control, transfer: impl FnOnce(&mut Script)) {
    script.write64(MMIO + offset::CONTROL, 0);
    transfer(script);
    script.write64(MMIO + offset::CONTROL, control.into_bits());
}

fn edu_dma(script: &mut Script, control: Control, iova: u64, write: bool, gpa: u64) -> Kind {
    if write {
        script.write32(SCRATCH, EDU_DATA);
        untranslated(script, control, |script| {
            edu_transfer(script, SCRATCH, false)
        });
        if is_ram(gpa) {
            script.write32(gpa, 0);
        }
        edu_transfer(script, iova, true);
        let found = script.read32(gpa);
        Kind::Edu { gpa, found }
    } else {
        if is_ram(gpa) {
            script.write32(gpa, EDU_DATA);
        }
        edu_transfer(script, iova, false);
        untranslated(script, control, |script| {
            edu_transfer(script, SCRATCH, true)
        });
        let found = script.read32(SCRATCH);
        if is_ram(gpa) {
            script.write32(gpa, 0);
        }
        Kind::Edu { gpa, found }
    }
}

fn config_address(script: &mut Script, device: Device, register: u8) {
    let address = 1 << 31 | u32::from(device.id().0) << 8 | u32::from(register);
    script.push(format_args!("outl 0xcf8 {address:#x}"));
}

fn config_write(script: &mut Script, device: Device, register: u8, value: u32) {
    config_address(script, device, register);
    script.push(format_args!("outl 0xcfc {value:#x}"));
}

fn config_read(script: &mut Script, device: Device, register: u8) -> usize {
    config_address(script, device, register);
    script.push("inl 0xcfc")
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_regs::msi::DeliveryMode;

    #[test]
    fn traces_are_read() {
        let line = "amdvi_completion_wait completion wait requested with store address 0x203f000 \
                    and store data 0x7";
        assert_eq!(marker(line), Some(7));
        assert_eq!(marker(&line.replace("203f000", "2030000")), None);
        let trace = [
            "amdvi_ir_remap_msi_req addr 0xfee00000 data 0x1 devid 0x28",
            "amdvi_ir_remap_msi_req addr 0xfee00000 data 0x2 devid 0x28",
            "amdvi_ir_remap_msi (addr 0xfee00000, data 0x2) -> (addr 0x1230000fee45008, data 0xc131)",
        ]
        .map(String::from);
        let message = Message {
            dest: 0x0123_0045,
            logical: false,
            mode: DeliveryMode::LowestPriority,
            vector: 0x31,
            level: true,
            hint: true,
        };
        assert_eq!(
            interrupts(&trace),
            [Outcome::Blocked, Outcome::Delivered(message)]
        );
    }
}
