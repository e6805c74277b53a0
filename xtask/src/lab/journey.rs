//! Where a machine goes while it runs: into files and out of them, or from one reference VMM to the
//! next.

/// The name of the result of the reference VMM in which the machine ends.
pub(super) const VMM: &str = "vmm";

/// The way of a machine. Times are milliseconds from the start of each reference VMM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Journey {
    /// It stays in one process.
    #[default]
    Stays,
    /// It is saved so often, and restored by another process each time.
    Saved(&'static [u64]),
    /// It moves so often, live.
    Moved(&'static [u64]),
}

/// A part of the way: one reference VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    /// The name of its result.
    pub(super) name: String,
    /// What it is told besides.
    pub(super) args: Vec<String>,
    /// It waits for the machine while others run.
    pub(super) background: bool,
}

impl Journey {
    /// Its parts, in the order in which they are to be started; files are in `folder`.
    pub(super) fn legs(&self, folder: &str) -> Vec<Leg> {
        let (times, saved) = match self {
            Self::Stays => (&[][..], true),
            Self::Saved(times) => (*times, true),
            Self::Moved(times) => (*times, false),
        };
        let last = times.len();
        let place = |n: usize| match saved {
            // One file: what replaces it is whole or not there.
            true => format!("{folder}/vm.state"),
            false => format!("{folder}/vm.{n}.socket"),
        };
        let (from, to) = match saved {
            true => ("--restore", "suspend"),
            false => ("--incoming", "migrate"),
        };
        let leg = |n: usize| {
            let mut args = Vec::new();
            if n > 0 {
                args.extend([from.to_owned(), place(n)]);
            }
            if let Some(time) = times.get(n) {
                args.extend(["--at".to_owned(), format!("{time}:{to} {}", place(n + 1))]);
            }
            Leg {
                name: match n {
                    n if n == last => VMM.to_owned(),
                    n => format!("{VMM}-{}", n + 1),
                },
                args,
                background: !saved && n > 0,
            }
        };
        let mut legs: Vec<_> = (0..=last).map(leg).collect();
        if !saved {
            // Who waits for the machine has to be there first.
            legs.reverse();
        }
        legs
    }

    /// How all but the last process end: `ended.how` of their reports.
    pub(super) const fn ending(&self) -> &'static str {
        match self {
            Self::Stays | Self::Saved(_) => "saved",
            Self::Moved(_) => "moved",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(journey: &Journey) -> Vec<String> {
        let line = |leg: Leg| {
            let background = if leg.background { " &" } else { "" };
            format!("{} {}{background}", leg.name, leg.args.join(" "))
        };
        journey.legs("/j").into_iter().map(line).collect()
    }

    #[test]
    fn a_machine_that_is_saved_is_restored_by_the_next_process() {
        assert_eq!(lines(&Journey::Stays), ["vmm "]);
        assert_eq!(
            lines(&Journey::Saved(&[5, 7])),
            [
                "vmm-1 --at 5:suspend /j/vm.state",
                "vmm-2 --restore /j/vm.state --at 7:suspend /j/vm.state",
                "vmm --restore /j/vm.state",
            ]
        );
    }

    #[test]
    fn a_machine_that_moves_is_waited_for() {
        assert_eq!(
            lines(&Journey::Moved(&[5, 7])),
            [
                "vmm --incoming /j/vm.2.socket &",
                "vmm-2 --incoming /j/vm.1.socket --at 7:migrate /j/vm.2.socket &",
                "vmm-1 --at 5:migrate /j/vm.1.socket",
            ]
        );
    }
}
