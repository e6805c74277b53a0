//! Where a machine goes while it runs: into files and out of them, or from one reference VMM to the
//! next. When it goes follows what the guest prints, so that a fast machine and a slow one go as often.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The name of the result of the reference VMM, or what those of several begin with.
pub(super) const VMM: &str = "vmm";

/// What a check's name begins with, by the guest's words, during which the machine is to go.
pub(super) const BUSY: &str = "busy-";
/// What the guest says when such a check begins.
const CHECK_BEGINS: &str = "amdvi-lab-guest: busy-";
/// What its kernel says first of the IOMMU: it is about to set it up, and the other processors after it.
const BOOT: &str = "AMD-Vi: ";

/// The machine goes at most so many milliseconds after the guest said something, one after the other:
/// while the check is in its first requests, then somewhere in one, or a few checks later.
const DELAYS: [u64; 4] = [40, 300, 40, LONGEST];
/// The same during boot.
const BOOT_DELAY: u64 = 600;
/// The longest delay, in milliseconds.
pub(super) const LONGEST: u64 = 1500;
/// The same of a machine that moves: there is no going on without the last move, since another process
/// waits.
const LONGEST_MOVED: u64 = 300;

/// The way of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Journey {
    /// It stays in one process.
    #[default]
    Stays,
    /// It is saved, and restored by another process each time, until the guest is done.
    Saved {
        /// At least so often; a guest that is done earlier was not tested.
        least: usize,
        /// At most.
        most: usize,
    },
    /// It moves so often, live.
    Moved(usize),
}

/// A part of the way: one reference VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    /// The name of its result. In the order of names machines travel.
    pub(super) name: String,
    /// What it is told besides.
    pub(super) args: Vec<String>,
    /// It waits for the machine while others run.
    pub(super) background: bool,
    /// It is left out unless the one of this name has saved the machine.
    pub(super) after: Option<String>,
    /// Where it listens.
    pub(super) socket: Option<String>,
}

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

impl Journey {
    /// Its parts at other moments than the last time, in the order in which they are to be started.
    pub(super) fn legs(self, folder: &Path) -> Vec<Leg> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.legs_at(now.map_or(1, |now| now.as_nanos() as u64), folder)
    }

    /// The same at the moments that a seed says; files are in `folder`.
    fn legs_at(self, seed: u64, folder: &Path) -> Vec<Leg> {
        let (last, saved) = match self {
            Self::Stays => (0, true),
            Self::Saved { most, .. } => (most, true),
            Self::Moved(times) => (times, false),
        };
        let name = |n: usize| match self {
            Self::Stays => VMM.to_owned(),
            Self::Saved { .. } | Self::Moved(_) => format!("{VMM}-{:02}", n + 1),
        };
        let place = |n: usize| match saved {
            // One file: what replaces it is whole or not there.
            true => folder.join("vm.state").display().to_string(),
            false => folder.join(format!("{n}.socket")).display().to_string(),
        };
        let (from, to) = match saved {
            true => ("--restore", "suspend"),
            false => ("--incoming", "migrate"),
        };
        let mut random = Random(seed);
        let mut order = |n: usize| {
            let (text, delay) = match n {
                0 => (BOOT, BOOT_DELAY),
                n => (CHECK_BEGINS, DELAYS[(n - 1) % DELAYS.len()]),
            };
            let delay = if saved {
                delay
            } else {
                delay.min(LONGEST_MOVED)
            };
            format!("{text}:{}:{to} {}", random.below(delay), place(n + 1))
        };
        let mut leg = |n: usize| {
            let mut args = Vec::new();
            if n > 0 {
                args.extend([from.to_owned(), place(n)]);
            }
            if n < last {
                args.extend(["--after".to_owned(), order(n)]);
            }
            let waits = !saved && n > 0;
            Leg {
                name: name(n),
                args,
                background: waits,
                after: (saved && n > 0).then(|| name(n - 1)),
                socket: waits.then(|| place(n)),
            }
        };
        let mut legs: Vec<_> = (0..=last).map(&mut leg).collect();
        if !saved {
            // Who waits for the machine has to be there first.
            legs.reverse();
        }
        legs
    }

    /// How all but the last process end: `ended.how` of their reports.
    pub(super) const fn ending(self) -> &'static str {
        match self {
            Self::Stays | Self::Saved { .. } => "saved",
            Self::Moved(_) => "moved",
        }
    }

    /// How often the machine must have gone elsewhere.
    pub(super) const fn least(self) -> usize {
        match self {
            Self::Stays => 0,
            Self::Saved { least, .. } => least,
            Self::Moved(times) => times,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `T` for the moments.
    fn lines(journey: Journey) -> Vec<String> {
        let moment = |arg: String| {
            let millis = |at: usize| arg[at + 1..].split_once(':')?.0.parse::<u64>().ok();
            let colons = || arg.match_indices(':').map(|(at, _)| at);
            let Some((at, millis)) = colons().find_map(|at| Some((at, millis(at)?))) else {
                return arg;
            };
            assert!(millis < LONGEST);
            arg.replacen(&arg[at..=at + millis.to_string().len()], " T ", 1)
                .replace("T :", "T ")
        };
        let line = |leg: Leg| {
            let args: Vec<_> = leg.args.into_iter().map(moment).collect();
            let background = if leg.background { " &" } else { "" };
            let after = leg
                .after
                .map_or(String::new(), |after| format!(" after {after}"));
            format!("{} {}{background}{after}", leg.name, args.join(" "))
        };
        let legs = journey.legs(Path::new("/j"));
        legs.into_iter().map(line).collect()
    }

    #[test]
    fn a_machine_that_is_saved_is_restored_by_the_next_process() {
        assert_eq!(lines(Journey::Stays), ["vmm "]);
        assert_eq!(
            lines(Journey::Saved { least: 1, most: 2 }),
            [
                "vmm-01 --after AMD-Vi:  T suspend /j/vm.state",
                "vmm-02 --restore /j/vm.state --after amdvi-lab-guest: busy- T suspend /j/vm.state \
                 after vmm-01",
                "vmm-03 --restore /j/vm.state after vmm-02",
            ]
        );
    }

    #[test]
    fn a_machine_that_moves_is_waited_for() {
        assert_eq!(
            lines(Journey::Moved(2)),
            [
                "vmm-03 --incoming /j/2.socket &",
                "vmm-02 --incoming /j/1.socket --after amdvi-lab-guest: busy- T migrate /j/2.socket &",
                "vmm-01 --after AMD-Vi:  T migrate /j/1.socket",
            ]
        );
    }

    #[test]
    fn moments_follow_from_the_seed_and_are_others_each_time() {
        let journey = Journey::Saved { least: 1, most: 20 };
        let legs = |seed| journey.legs_at(seed, Path::new("/j"));
        assert_eq!(legs(1), legs(1));
        assert_ne!(legs(1), legs(2));
        // By name they are in the order of the journey.
        assert!(legs(1).is_sorted_by_key(|leg| leg.name.clone()));
    }
}
