//! Linux in a virtual machine: an unmodified kernel on the board.
//!
//! - `image` loads kernel, initial ramdisk and command line;
//! - `cpuid` and `start` make the CPUs;
//! - `console` is the serial port's other end;
//! - [`Guest::run`] puts it all together, again after each reset, until the guest is done.

mod console;
mod cpuid;
mod image;
mod place;
mod report;
mod start;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::CpuId;
use kvm_ioctls::Cap;
use serde::Serialize;

use crate::board::legacy::{Console, Legacy, Power};
use crate::board::{self, Board, BoardError};
use crate::kvm::{self, Crew, End, Ending, KvmError, Vm, cpu};
use crate::ram::Ram;
use crate::run::Interrupts;
use crate::run::vm::{Problems, VmInjector};
use crate::snapshot::{Configuration, Live, Orders, Origin, SnapshotError, Waiting};
use console::Terminal;
use report::Samples;

pub use cpuid::Choice;
pub use image::{Files, LoadError};
pub use report::{Devices, IommuState, json};

/// Resets in a row, each so soon after the boot, are a guest that never comes up.
const RESETS_IN_A_ROW: u32 = 5;
const SOON: Duration = Duration::from_secs(60);
/// How often the IOMMUs are looked at, for the report.
const SAMPLE: Duration = Duration::from_millis(200);
/// The same where somebody waits for an answer.
const CARE: Duration = Duration::from_millis(10);

/// Why a guest can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// KVM, RAM or the CPUs.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A device.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// A file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The machine that was to be restored.
    #[error(transparent)]
    Restore(#[from] SnapshotError),
    /// The console.
    #[error("standard input and output can't be the guest's console: {0}")]
    Console(std::io::Error),
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "how", content = "why")]
pub enum Ended {
    /// It switched the machine off.
    PowerOff,
    /// It reset the machine, which was not to be started again, or too often.
    Reset(String),
    /// A CPU had a triple fault.
    TripleFault(String),
    /// KVM could not go on with a CPU, or a device of the VMM failed.
    Stopped(String),
    /// Time was up.
    Timeout(String),
    /// The user ended it.
    Quit,
    /// It was saved, and goes on when it is restored.
    Saved,
    /// It goes on in another process.
    Moved,
}

impl Ended {
    /// Whether the guest ended as a guest should.
    pub fn is_good(&self) -> bool {
        matches!(
            self,
            Self::PowerOff | Self::Quit | Self::Saved | Self::Moved
        )
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched the machine off"),
            Self::Quit => f.write_str("ended from the console"),
            Self::Saved => f.write_str("the machine was saved"),
            Self::Moved => f.write_str("the machine goes on in another process"),
            Self::Reset(why) | Self::TripleFault(why) | Self::Stopped(why) | Self::Timeout(why) => {
                f.write_str(why)
            }
        }
    }
}

/// A guest that is to run.
pub struct Guest {
    /// Its kernel, initial ramdisk and command line.
    pub files: Files,
    /// x2APIC IDs of its CPUs.
    pub apic_ids: Vec<u32>,
    /// What its CPUs show of KVM.
    pub hide_kvm: bool,
    /// Its RAM.
    pub ram: Ram,
    /// How the vectors of its devices reach the CPUs.
    pub interrupts: Interrupts,
    /// Its devices; what a PC has at fixed ports is added.
    pub board: board::Config,
    /// How long it may take, all resets included.
    pub timeout: Option<Duration>,
    /// A reset of the machine ends the run.
    pub no_reboot: bool,
    /// What a saved machine must have, too; the CPUs are added.
    pub configuration: Configuration,
    /// It is not booted, but goes on where it was.
    pub origin: Option<Origin>,
    /// What is wanted of it while it runs.
    pub orders: Orders,
    /// When it ran first in this process; none yet.
    pub started: Option<Instant>,
}

/// What became of a guest.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its kernel.
    pub kernel: PathBuf,
    /// x2APIC IDs of its CPUs.
    pub apic_ids: Vec<u32>,
    /// How it ended.
    pub ended: Ended,
    /// How often the machine was reset and started again.
    pub resets: u32,
    /// How long all of it took.
    pub elapsed: Duration,
    /// How the vectors of its devices reached the CPUs.
    pub interrupts: Interrupts,
    /// Its devices in the end.
    pub devices: Devices,
    /// What came of the commands that were due at a time.
    pub orders: Vec<serde_json::Value>,
    /// What went wrong on the host's side, such as interrupts that could not be delivered.
    pub problems: Vec<String>,
}

/// Leads from the board's power registers to whatever machine runs now.
#[derive(Default)]
struct Switch {
    end: Mutex<Option<Arc<End>>>,
}

impl Switch {
    fn connect(&self, end: Option<Arc<End>>) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    fn reach(&self, ending: Ending) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = &*end {
            end.reach(ending);
        }
    }
}

impl Power for Switch {
    fn off(&self) {
        self.reach(Ending::PowerOff);
    }

    fn reset(&self) {
        self.reach(Ending::Reset);
    }
}

impl Guest {
    /// Runs the guest to its end.
    ///
    /// # Errors
    /// It can't be started; the error says which option is at fault.
    pub fn run(mut self) -> Result<Outcome, StartError> {
        let began = Instant::now();
        let switch = Arc::new(Switch::default());
        let quit = Arc::clone(&switch);
        let mut terminal =
            Terminal::open(move || quit.reach(Ending::Quit)).map_err(StartError::Console)?;
        self.board.legacy = Some(Legacy {
            console: self.console(terminal.sink()),
            power: switch.clone(),
        });
        let problems = Problems::default();
        let (mut resets, mut in_a_row) = (0, 0);
        let (ended, devices) = loop {
            let booted = Instant::now();
            let (ended, devices) = self.boot(&terminal, &switch, began, &problems)?;
            in_a_row = if booted.elapsed() < SOON {
                in_a_row + 1
            } else {
                1
            };
            let ended = match ended {
                Some(ended) => ended,
                None if self.no_reboot => {
                    Ended::Reset("the guest reset the machine (--no-reboot)".to_owned())
                }
                None if in_a_row == RESETS_IN_A_ROW => {
                    let soon = SOON.as_secs();
                    Ended::Reset(format!(
                        "the guest reset the machine {in_a_row} times in a row, each less than \
                         {soon} s after its start"
                    ))
                }
                None => {
                    resets += 1;
                    continue;
                }
            };
            break (ended, devices);
        };
        terminal.close();
        Ok(Outcome {
            kernel: self.files.kernel,
            apic_ids: self.apic_ids,
            ended,
            resets,
            elapsed: began.elapsed(),
            interrupts: self.interrupts,
            devices,
            orders: std::mem::take(&mut self.orders.done),
            problems: problems.take(),
        })
    }

    /// What takes the guest's output: `sink`, and commands that wait for some of it.
    fn console(&self, sink: Console) -> Console {
        match self.orders.listener() {
            None => sink,
            Some(listener) => Arc::new(move |bytes| {
                listener.hear(bytes);
                sink(bytes);
            }),
        }
    }

    /// Builds the machine and runs it; `None` when the guest reset it.
    fn boot(
        &mut self,
        terminal: &Terminal,
        switch: &Switch,
        began: Instant,
        problems: &Problems,
    ) -> Result<(Option<Ended>, Devices), StartError> {
        let vm = Vm::new(&self.ram, &self.apic_ids)?;
        self.board.high_bars = self.ram.high_bars(cpu::phys_bits(&vm.cpuid));
        let memory = Arc::new(vm.memory().clone());
        let injector = Arc::new(VmInjector::new(&vm, self.interrupts, problems));
        let board = Arc::new(Board::new(&self.board, &memory, &self.apic_ids, injector)?);
        let leaves = self.set_up_cpus(&vm)?;
        let mut configuration = self.configuration.clone();
        configuration.push_cpuid(&leaves);
        // After a reset it is booted like any other.
        let restored = match self.origin.take() {
            Some(origin) => {
                let waiting = Waiting::open(&origin)?;
                let restored =
                    waiting.restore(vm.fd(), &vm.vcpus, &memory, &board, &configuration)?;
                board.thaw();
                Some(restored)
            }
            None => {
                let entry = image::load(&self.files, &self.ram, &memory)?;
                start::boot_cpu(&vm.vcpus[0], entry, vm.memory())?;
                None
            }
        };
        let fd = Arc::clone(vm.fd());

        let end = Arc::new(End::default());
        switch.connect(Some(Arc::clone(&end)));
        terminal.connect(board.serial().cloned());
        let crew = Crew::start(
            vm.vcpus,
            Arc::clone(&board),
            memory.as_ref().clone(),
            Arc::clone(&end),
        )?;
        if let Some(restored) = restored {
            restored.running();
        }
        // A machine that came from elsewhere may have been waited for.
        let started = *self.started.get_or_insert_with(Instant::now);
        let live = Live {
            vm: &fd,
            memory: &memory,
            board: &board,
            crew: &crew,
            configuration: &configuration,
            end: &end,
        };
        let pause = if self.orders.are_expected() {
            CARE
        } else {
            SAMPLE
        };
        let mut samples = Samples::default();
        let ending = loop {
            let left = self
                .timeout
                .map(|limit| limit.saturating_sub(began.elapsed()));
            let ending = end.wait(Some(left.map_or(pause, |left| left.min(pause))));
            samples.take(&board);
            self.orders.obey(live, started.elapsed());
            if ending.is_some() || left == Some(Duration::ZERO) {
                break ending;
            }
        };
        switch.connect(None);
        terminal.connect(None);
        let places = crew.join();
        let ended = match ending {
            Some(Ending::Reset) => None,
            Some(Ending::PowerOff) => Some(Ended::PowerOff),
            Some(Ending::Quit) => Some(Ended::Quit),
            Some(Ending::Saved) => Some(Ended::Saved),
            Some(Ending::Moved) => Some(Ended::Moved),
            Some(Ending::TripleFault { cpu, place }) => Some(Ended::TripleFault(format!(
                "CPU {cpu} had a triple fault at {place}"
            ))),
            Some(Ending::Stopped { cpu, why }) => {
                Some(Ended::Stopped(format!("CPU {cpu} stopped: {why}")))
            }
            Some(Ending::Exit(code)) => Some(Ended::Stopped(format!("exit code {code:#x}"))),
            None => Some(Ended::Timeout(format!(
                "the guest did not end within {} s, as --timeout asks ({})",
                self.timeout.unwrap_or_default().as_secs(),
                places.join("; ")
            ))),
        };
        Ok((ended, Devices::look(&board, &samples)))
    }

    /// Makes the CPUs what they are, the leaves of the first included, which are returned.
    fn set_up_cpus(&self, vm: &Vm) -> Result<CpuId, KvmError> {
        let choice = Choice {
            hide_kvm: self.hide_kvm,
            tsc_deadline: kvm::open()?.check_extension(Cap::TscDeadlineTimer),
        };
        let cpus = cpuid::Cpus::new(&vm.cpuid, &self.apic_ids, choice)?;
        for (vcpu, apic_id) in vm.vcpus.iter().zip(&self.apic_ids) {
            vcpu.set_cpuid2(&cpus.of(*apic_id)?)
                .map_err(KvmError::call("KVM_SET_CPUID2"))?;
            start::model_registers(vcpu, &self.apic_ids)?;
        }
        cpus.of(self.apic_ids[0])
    }
}
