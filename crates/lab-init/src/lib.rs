//! What the lab and the init of its guests say to each other: a plan goes in with the initramfs,
//! a report comes out on the console. With what any first process of a guest needs.

#![deny(unsafe_code)]

pub mod cpio;
pub mod kmsg;
pub mod machine;
pub mod names;
pub mod net;
pub mod pci;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where the plan is in the initramfs.
pub const PLAN: &str = "/lab/plan.json";
/// Stands alone on a line of the console before the report.
pub const BEGIN: &str = "----- lab report begins -----";
/// Stands alone on a line of the console after the report.
pub const END: &str = "----- lab report ends -----";
/// The report is cut into lines of this many bytes at most, to stay clear of what a terminal
/// does with long ones.
pub const LINE: usize = 512;

/// What init is to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Kernel modules to load, each after those it depends on.
    pub modules: Vec<Module>,
    /// PCI functions to bind to vfio-pci.
    pub vfio: Vec<PciId>,
    /// Tap interfaces to make.
    #[serde(default)]
    pub taps: Vec<Tap>,
    /// Programs to run.
    pub commands: Vec<Command>,
    /// Ask the legacy VFIO container what it knows, with the first function of `vfio`.
    pub container: bool,
    /// Files to put into the report.
    pub files: Vec<String>,
}

/// A kernel module to load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// The file in the initramfs, not compressed.
    pub path: String,
    /// Its parameters, `name=value` separated by spaces.
    pub parameters: String,
}

/// A tap interface, for a virtual machine that init starts. Init is its peer: it answers pings and
/// ARP as any Linux does, and sends back every UDP datagram that comes to a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// The interface's name.
    pub name: String,
    /// Its address, in a /24 network.
    pub address: Ipv4Addr,
    /// The port.
    pub echo: u16,
}

/// A PCI function by what it is: the lab does not know the address that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciId {
    /// PCI vendor ID.
    pub vendor: u16,
    /// PCI device ID.
    pub device: u16,
}

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The name of its result.
    pub name: String,
    /// The program and its arguments. `{function}` stands for the address of the first function
    /// of [`Plan::vfio`], such as `0000:00:03.0`.
    pub argv: Vec<String>,
    /// Run it without privileges, as this user and group.
    pub user: Option<u32>,
    /// Where its output goes.
    #[serde(default)]
    pub output: Output,
    /// Texts to look for in the lines of its standard output, by a name, with [`Output::Console`]:
    /// when each came first, and what memory the program had then, is part of the result.
    #[serde(default)]
    pub marks: BTreeMap<String, String>,
    /// The next one starts at once; this one is waited for in the end.
    #[serde(default)]
    pub background: bool,
    /// With [`Output::Console`]: look where the processors are while it runs.
    #[serde(default)]
    pub profile: Option<Profiling>,
    /// It is left out unless another one ended so.
    #[serde(default)]
    pub only_after: Option<Said>,
}

/// A program that has ended, by its last words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The name of its result.
    pub name: String,
    /// What is in its standard output.
    pub text: String,
}

impl Said {
    /// Whether it is so.
    pub fn holds(&self, commands: &BTreeMap<String, Ran>) -> bool {
        let ran = commands.get(&self.name);
        ran.is_some_and(|ran| ran.stdout.contains(&self.text))
    }
}

/// How a program that runs a virtual machine is profiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profiling {
    /// The last word of a line of the program that begins with this text is the name of the phase that
    /// begins then.
    pub phase: String,
    /// A file in which the guest leaves the names of its kernel, see [`NAMES`]: its disk.
    pub names: String,
}

/// Where in that file the names are, as `/proc/kallsyms` has them, with a zero at the end.
pub const NAMES: u64 = 40 << 20;

/// Where the output of a program goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Into the report.
    #[default]
    Report,
    /// To the console, line by line as it comes. Of standard output, the last line that is a JSON
    /// object goes into the report, and of standard error nothing. The kernel prints nothing to the
    /// console from then on.
    Console,
    /// The console is the program's terminal.
    Terminal,
}

/// What came of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// The functions that were bound to vfio-pci: address, and the error where it failed.
    pub vfio: Vec<Bound>,
    /// What init itself could not do.
    pub problems: Vec<String>,
    /// The results of the commands, by name.
    pub commands: BTreeMap<String, Ran>,
    /// What the legacy container said.
    pub container: Option<Container>,
    /// The files, by path; an error where one can't be read.
    pub files: BTreeMap<String, Result<String, String>>,
    /// The kernel's log, one record per line, without time stamps.
    pub log: Vec<String>,
}

/// A function that was to be bound to vfio-pci.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its address; empty when there is no such function.
    pub function: String,
    /// Why it is not bound.
    pub error: Option<String>,
}

/// How a program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Its exit code; none when it could not be started or was ended by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error, or why it could not be started.
    pub stderr: String,
    /// Those of [`Command::marks`] that came, by their names.
    #[serde(default)]
    pub marks: BTreeMap<String, Mark>,
    /// What went on while it ran.
    #[serde(default)]
    pub profile: Profile,
}

/// What went on, by phase.
pub type Profile = BTreeMap<String, Phase>;

/// What went on in a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// How long it took.
    pub micros: u64,
    /// Where processors were.
    pub places: Vec<Place>,
    /// How much each counter of KVM rose that did, by its name.
    pub counters: BTreeMap<String, u64>,
}

/// A place, and how often a processor was there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What was running.
    pub level: Level,
    /// A function, or of a program an address.
    pub name: String,
    /// Samples.
    pub count: u64,
}

/// What was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// The program.
    Program,
    /// The kernel, for the program.
    HostKernel,
    /// The kernel of the program's guest.
    GuestKernel,
    /// Programs of its guest.
    GuestUser,
    /// Something else.
    Others,
}

/// When a program printed something for the first time, and how large it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Microseconds since the program was started.
    pub micros: u64,
    /// KiB of memory that it had: its resident set.
    pub resident_kib: u64,
    /// Of these, those in its largest mapping. Of a virtual machine it is the guest's RAM.
    pub largest_kib: u64,
}

/// What a legacy VFIO container with one group in it said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `VFIO_GET_API_VERSION`.
    pub api_version: Option<i32>,
    /// `VFIO_CHECK_EXTENSION(VFIO_TYPE1v2_IOMMU)`.
    pub type1v2: Option<i32>,
    /// The group was put into the container and the container given an IOMMU.
    pub ready: bool,
    /// The step that failed, with the system's error.
    pub error: Option<String>,
    /// IDs of the capabilities that `VFIO_IOMMU_GET_INFO` returned.
    pub capabilities: Vec<u16>,
}

/// Finds the report in what came over the console.
///
/// # Errors
/// A marker is missing, or what is between them is no report.
pub fn report_in(console: &str) -> Result<Report, String> {
    let (_, rest) = console
        .split_once(BEGIN)
        .ok_or("the guest printed no report")?;
    let (body, _) = rest
        .split_once(END)
        .ok_or("the guest's report has no end")?;
    let json: String = body.split(['\r', '\n']).collect();
    serde_json::from_str(&json).map_err(|error| format!("the guest's report is damaged: {error}"))
}

/// The report as the guest prints it: between markers, in lines that a terminal leaves alone.
pub fn print(report: &Report) -> String {
    // ASCII only, so that any place is a good one to cut.
    let json = match serde_json::to_string(report) {
        Ok(json) => ascii(&json),
        Err(error) => format!("\"{error}\""),
    };
    let mut text = format!("\n{BEGIN}\n");
    for line in json.as_bytes().chunks(LINE) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + END + "\n"
}

/// JSON with every character outside ASCII escaped.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_a_console_that_adds_carriage_returns() {
        let mut report = Report {
            kernel: "6.12".into(),
            ..Report::default()
        };
        let said = "ü, 𝄞, \"quoted\"\nand \\ over lines ".repeat(100);
        report.files.insert("/sys/x".into(), Ok(said));
        report.files.insert("/sys/y".into(), Err("none".into()));
        let console = format!("[ 0.1] boot\n{}powered off\n", print(&report));
        assert!(console.lines().all(|line| line.len() <= LINE));
        let seen = console.replace('\n', "\r\n");
        assert_eq!(report_in(&seen), Ok(report));
    }

    #[test]
    fn what_a_program_said_is_known_once_it_has_ended() {
        let said = Said {
            name: "a".into(),
            text: "\"how\":\"saved\"".into(),
        };
        let ran = |stdout: &str| Ran {
            stdout: stdout.into(),
            ..Ran::default()
        };
        let mut commands = BTreeMap::new();
        assert!(!said.holds(&commands));
        commands.insert("a".to_owned(), ran("{\"how\":\"power-off\"}"));
        assert!(!said.holds(&commands));
        commands.insert("a".to_owned(), ran("{\"how\":\"saved\"}"));
        assert!(said.holds(&commands));
    }

    #[test]
    fn a_report_that_was_cut_off_is_an_error() {
        let whole = print(&Report::default());
        assert!(report_in(&whole[..whole.len() / 2]).is_err());
        assert!(report_in("").is_err());
        assert!(report_in(&format!("{BEGIN}\n{{\n{END}\n")).is_err());
    }
}
