//! Where the processors are: samples of all of them, of this kernel, of a program and of the guest that
//! it runs, and what KVM counts, by the phase that the guest says it is in.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZero;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use amdvi_lab_init::names::Names;
use amdvi_lab_init::{Level, NAMES, Phase, Place, Profile};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Samples of a processor per second of its time. No divisor of what else is periodic.
const FREQUENCY: u64 = 1987;
/// Pages of a processor's ring, besides the page that describes it.
const PAGES: usize = 256;
const PAGE: usize = 4096;
const BYTES: NonZero<usize> = NonZero::new(PAGE * (1 + PAGES)).unwrap();
/// How often rings are emptied: long before they are full.
const PERIOD: Duration = Duration::from_millis(50);

/// Where KVM has a file for each of its counters: the sums over all machines.
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// Numbers of `linux/perf_event.h`.
mod abi {
    /// `PERF_RECORD_MISC_…`, the processor's mode.
    pub(super) const KERNEL: u16 = 1;
    pub(super) const USER: u16 = 2;
    pub(super) const GUEST_KERNEL: u16 = 4;
    pub(super) const GUEST_USER: u16 = 5;
    pub(super) const MODE: u16 = 7;
    pub(super) const TYPE_SOFTWARE: u32 = 1;
    pub(super) const COUNT_SW_CPU_CLOCK: u64 = 0;
    /// The instruction pointer, then process and thread.
    pub(super) const SAMPLE: u64 = 1 << 0 | 1 << 1;
    /// `freq`: the period is a frequency.
    pub(super) const FREQ: u64 = 1 << 10;
    pub(super) const SIZE: u32 = 64;
    pub(super) const RECORD_SAMPLE: u32 = 9;
    /// Where `data_head` and `data_tail` are in the page that describes a ring.
    pub(super) const HEAD: usize = 1024;
    pub(super) const TAIL: usize = 1032;
}

/// `struct perf_event_attr` of its first version.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    frequency: u64,
    sample: u64,
    read: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    config1: u64,
}

/// The ring of a processor.
struct Ring {
    _event: OwnedFd,
    base: NonNull<AtomicU64>,
}

// SAFETY: the mapping belongs to the ring alone, and has no thread.
unsafe impl Send for Ring {}

impl Ring {
    fn open(cpu: usize) -> io::Result<Self> {
        let attr = Attr {
            kind: abi::TYPE_SOFTWARE,
            size: abi::SIZE,
            config: abi::COUNT_SW_CPU_CLOCK,
            frequency: FREQUENCY,
            sample: abi::SAMPLE,
            flags: abi::FREQ,
            ..Attr::default()
        };
        // SAFETY: the structure is as large as it says and lives during the call; all processes of a
        // processor, no group, no flags.
        let fd =
            unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, cpu, -1, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call made it, and nobody else has it.
        let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which nothing else refers to.
        let base = unsafe { mmap(None, BYTES, both, MapFlags::MAP_SHARED, event.as_fd(), 0) }?;
        Ok(Self {
            _event: event,
            base: base.cast(),
        })
    }

    /// The mapping's words.
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long as this for as long as the ring lives, and shared with the kernel,
        // which writes to it at any time: hence the atomic words.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), BYTES.get() / 8) }
    }

    /// Takes all records out: mode, instruction pointer, process.
    fn drain(&mut self, mut each: impl FnMut(u16, u64, u32)) {
        let (control, records) = self.words().split_at(PAGE / 8);
        let head = control[abi::HEAD / 8].load(Ordering::Acquire);
        let mut tail = control[abi::TAIL / 8].load(Ordering::Relaxed);
        // Records are multiples of 8 bytes, and begin at such; what is before the head stays as it is.
        let read = |at: u64| records[at as usize / 8 % records.len()].load(Ordering::Relaxed);
        while tail < head {
            let header = read(tail);
            let (kind, mode, size) = (header as u32, (header >> 32) as u16, header >> 48);
            if kind == abi::RECORD_SAMPLE {
                each(mode & abi::MODE, read(tail + 8), read(tail + 16) as u32);
            }
            tail += size.max(8);
        }
        control[abi::TAIL / 8].store(tail, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference to it is left.
        let _ = unsafe { munmap(self.base.cast(), BYTES.get()) };
    }
}

/// Counters of KVM, by their names.
type Counters = BTreeMap<String, u64>;

/// All of them, as they are now.
fn counters() -> Counters {
    let files = fs::read_dir(COUNTERS).into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let text = fs::read_to_string(file.path()).ok()?;
            Some((
                file.file_name().into_string().ok()?,
                text.trim().parse().ok()?,
            ))
        })
        .collect()
}

/// The phase that the guest is in.
struct Current {
    since: Instant,
    before: Counters,
    /// What is known of it from when the guest was in it before, and of the others.
    phases: Profile,
}

impl Current {
    /// It ends.
    fn end(&mut self, name: &str) {
        let now = counters();
        let phase = self.phases.entry(name.to_owned()).or_default();
        phase.micros += self.since.elapsed().as_micros() as u64;
        for (counter, value) in &now {
            let rose = value.saturating_sub(self.before.get(counter).copied().unwrap_or(0));
            if rose > 0 {
                *phase.counters.entry(counter.clone()).or_default() += rose;
            }
        }
        (self.since, self.before) = (Instant::now(), now);
    }
}

/// A running profile.
pub(crate) struct Sampler {
    current: Mutex<Current>,
    phase: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Counts>,
    /// Where the program is in memory.
    base: u64,
}

/// What samples have in common: phase, mode, whether they are of the program's process, address.
type Counts = HashMap<(String, u16, bool, u64), u64>;

impl Sampler {
    /// Begins, for the program with this process ID. It must have come to its own code.
    pub(crate) fn start(id: u32) -> io::Result<Self> {
        let cpus = thread::available_parallelism()?.get();
        let mut rings = (0..cpus).map(Ring::open).collect::<io::Result<Vec<_>>>()?;
        let phase = Arc::new(Mutex::new("boot".to_owned()));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, now) = (Arc::clone(&stop), Arc::clone(&phase));
        let thread = thread::spawn(move || {
            let mut counts = Counts::new();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(PERIOD);
                let phase = now.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for ring in &mut rings {
                    ring.drain(|mode, at, process| {
                        *counts
                            .entry((phase.clone(), mode, process == id, at))
                            .or_default() += 1;
                    });
                }
            }
            counts
        });
        // Where a program of static position-independent code is: the first mapping of its file.
        let maps = fs::read_to_string(format!("/proc/{id}/maps")).unwrap_or_default();
        let file = fs::read_link(format!("/proc/{id}/exe"))?;
        let file = file.to_string_lossy();
        let own = maps.lines().find(|line| line.ends_with(&*file));
        let first = own
            .and_then(|line| line.split('-').next())
            .unwrap_or_default();
        Ok(Self {
            current: Mutex::new(Current {
                since: Instant::now(),
                before: counters(),
                phases: Profile::new(),
            }),
            phase,
            stop,
            thread,
            base: u64::from_str_radix(first, 16).unwrap_or(0),
        })
    }

    /// The guest says that it is in another phase.
    pub(crate) fn phase(&self, name: &str) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.end(&phase);
        name.clone_into(&mut phase);
    }

    /// Ends, and names the places in both kernels.
    pub(crate) fn end(self, names: &str) -> Profile {
        self.stop.store(true, Ordering::Relaxed);
        let counts = self.thread.join().unwrap_or_default();
        let mut current = self
            .current
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        current.end(&self.phase.lock().unwrap_or_else(PoisonError::into_inner));
        let host = Names::of_kernel(&fs::read_to_string("/proc/kallsyms").unwrap_or_default());
        // Without names there are addresses.
        let guest = Names::of_kernel(&guest_names(names).unwrap_or_default());
        let mut places = BTreeMap::<_, u64>::new();
        for ((phase, mode, own, at), count) in counts {
            let place = match mode {
                abi::KERNEL if own => (Level::HostKernel, name(&host, at)),
                abi::USER if own => (Level::Program, format!("{:#x}", at.wrapping_sub(self.base))),
                abi::GUEST_KERNEL => (Level::GuestKernel, name(&guest, at)),
                abi::GUEST_USER => (Level::GuestUser, "all".to_owned()),
                _ => (Level::Others, name(&host, at)),
            };
            *places.entry((phase, place)).or_default() += count;
        }
        let mut profile = current.phases;
        for ((phase, (level, name)), count) in places {
            let phase: &mut Phase = profile.entry(phase).or_default();
            phase.places.push(Place { level, name, count });
        }
        profile
    }
}

fn name(names: &Names, at: u64) -> String {
    names
        .at(at)
        .map_or_else(|| format!("{at:#x}"), str::to_owned)
}

fn guest_names(path: &str) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(NAMES))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let end = text
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}
