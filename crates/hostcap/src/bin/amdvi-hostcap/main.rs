//! What this host's IOMMU can do, where that is known from, and what a guest can be offered.

mod args;
mod table;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use amdvi_hostcap::source::{Debugfs, Iommufd, RecordedFile, Several, Sysfs};
use amdvi_hostcap::{
    Facts, HostCapSource, HostCapSpec, NotAsked, Outcome, PciFunction, Recording, Request,
    SourceError, baseline, negotiate, ram,
};
use clap::Parser as _;
use serde::Serialize;

use args::{Args, Baseline, Command, Explain, Host, Plan, Probe};

/// What a command prints, and whether every source that the user named failed.
struct Outcomes {
    text: String,
    failed: bool,
}

impl From<String> for Outcomes {
    fn from(text: String) -> Self {
        Self {
            text,
            failed: false,
        }
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let run = match Args::parse().command {
        Command::Probe(probe) => self::probe(&probe),
        Command::Explain(explain) => self::explain(&explain),
        Command::Plan(plan) => self::plan(&plan),
        Command::Baseline(baseline) => self::baseline_of(&baseline),
    };
    let printed = run.and_then(|outcomes| {
        match io::stdout().write_all(outcomes.text.as_bytes()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(outcomes.failed),
            other => Ok(other.map(|()| outcomes.failed)?),
        }
    });
    match printed {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("amdvi-hostcap: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The sources to ask, and the functions to ask about.
struct Sources {
    sources: Vec<Box<dyn HostCapSource>>,
    functions: Vec<PciFunction>,
    named: bool,
}

impl Sources {
    fn new(host: &Host) -> Result<Self> {
        let mut functions = host.functions.clone();
        let sources = if host.host_caps.is_empty() {
            automatic(&functions)
        } else {
            host.host_caps.iter().map(HostCapSpec::build).collect()
        };
        // A recording is asked about the functions that it knows.
        for spec in &host.host_caps {
            if let HostCapSpec::File(path) = spec {
                functions.extend(RecordedFile::read(path)?.functions());
            }
        }
        functions.sort();
        functions.dedup();
        Ok(Self {
            sources,
            functions,
            named: !host.host_caps.is_empty(),
        })
    }

    fn iter(&self) -> impl Iterator<Item = &dyn HostCapSource> {
        self.sources.iter().map(AsRef::as_ref)
    }

    /// The facts; tells on standard error what a source that was named could not answer.
    fn facts(&self) -> (Facts, bool) {
        let failures = self.failures(self.iter().map(|source| source.early_facts().err()));
        (Facts::collect(self.iter(), &self.functions), failures)
    }

    fn failures(&self, errors: impl Iterator<Item = Option<SourceError>>) -> bool {
        if !self.named {
            return false;
        }
        let errors: Vec<_> = errors.collect();
        for (source, error) in self.iter().zip(&errors) {
            if let Some(error) = error {
                eprintln!("amdvi-hostcap: {}: {error}", source.name());
            }
        }
        errors.iter().all(Option::is_some)
    }
}

/// What `auto` asks, source by source. Functions are asked early: here there is no RAM yet.
fn automatic(functions: &[PciFunction]) -> Vec<Box<dyn HostCapSource>> {
    if functions.is_empty() {
        let sources: [Box<dyn HostCapSource>; 2] =
            [Box::new(Sysfs::default()), Box::new(Debugfs::default())];
        return sources.into();
    }
    let mut sources = Several::auto_sources();
    sources.pop();
    let iommufd = Iommufd::default();
    sources.push(Box::new(
        functions.iter().fold(iommufd, |source, function| {
            source.with_function(*function, None)
        }),
    ));
    sources
}

fn json(value: &impl Serialize) -> Result<Outcomes> {
    Ok(Outcomes::from(serde_json::to_string_pretty(value)? + "\n"))
}

fn probe(args: &Probe) -> Result<Outcomes> {
    let sources = Sources::new(&args.host)?;
    let mut recording = Recording::of(sources.iter(), &sources.functions);
    if !sources.named {
        recording.not_asked = not_asked(sources.functions.is_empty());
    }
    let failed = |asked: &amdvi_hostcap::Asked| matches!(asked.early, Outcome::Error(_));
    let failed = sources.named && recording.sources.iter().all(failed);
    let text = match args.json {
        true => json(&recording)?.text,
        false => table::recording(&recording),
    };
    Ok(Outcomes { text, failed })
}

fn not_asked(iommufd: bool) -> Vec<NotAsked> {
    let all = [
        (
            "iommufd:FUNCTION",
            "it asks about a PCI function that is bound to vfio-pci and used by no VMM: name one \
             with --function (needs access to /dev/iommu and the VFIO device file)",
        ),
        (
            "kvm:NUMBER",
            "no capability number is assigned upstream: give your kernel's with --host-caps \
             kvm:NUMBER (needs access to /dev/kvm)",
        ),
        (
            "kernel-inference",
            "a conclusion from the kernel's version and no observation: ask for it with \
             --host-caps kernel-inference",
        ),
        (
            "legacy-vfio",
            "a legacy VFIO container has no call that tells anything about the IOMMU: guests with \
             functions passed through by it have 512 interrupts per function",
        ),
    ];
    all.into_iter()
        .filter(|(source, _)| iommufd || !source.starts_with("iommufd"))
        .map(|(source, why)| NotAsked {
            source: source.to_owned(),
            why: why.to_owned(),
        })
        .collect()
}

fn explain(args: &Explain) -> Result<Outcomes> {
    let (facts, failed) = Sources::new(&args.host)?.facts();
    let offer = negotiate(&args.request, &facts);
    let text = match args.json {
        true => json(&offer)?.text,
        false => table::offer(&offer),
    };
    Ok(Outcomes { text, failed })
}

fn plan(args: &Plan) -> Result<Outcomes> {
    let (facts, failed) = Sources::new(&args.host)?.facts();
    let request = ram::RamRequest {
        size: args.ram,
        low_end: args.low_end,
        phys_bits: args.phys_bits,
        moves: args.moves.into(),
    };
    let layout = ram::plan(&request, facts.early())?;
    let text = match args.json {
        true => json(&layout)?.text,
        false => {
            let mut text = String::new();
            for region in &layout.regions {
                writeln!(text, "{region}")?;
            }
            text + &layout.reason + "\n"
        }
    };
    Ok(Outcomes { text, failed })
}

fn baseline_of(args: &Baseline) -> Result<Outcomes> {
    let mut hosts = Vec::new();
    for path in &args.files {
        let facts = RecordedFile::read(path)?.facts();
        hosts.push((path.display().to_string(), facts));
    }
    let everything = Request::everything();
    let request = args.request.as_ref().unwrap_or(&everything);
    let pool = baseline(
        request,
        hosts.iter().map(|(host, facts)| (host.as_str(), facts)),
    );
    match args.json {
        true => json(&pool),
        false => Ok(table::baseline(&pool).into()),
    }
}
