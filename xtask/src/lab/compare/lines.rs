//! What is compared: the lines of the table.

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    More,
    Less,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Its name among the samples: the guest's own for what the guest measures.
    pub(super) name: &'static str,
    /// What it is, for people.
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    /// Only guests that use an IOMMU have it.
    pub(super) translated: bool,
    /// Part of what is judged; what only explains another line is not.
    pub(super) judged: bool,
}

/// Milliseconds from the start of the VMM until the guest's first process speaks.
pub(super) const BOOT: &str = "boot";
/// Of these, those of the guest's kernel.
pub(super) const KERNEL: &str = "boot-kernel";
/// MiB of memory of the VMM besides the guest's RAM.
pub(super) const MEMORY: &str = "memory";

const fn more(name: &'static str, title: &'static str, unit: &'static str) -> Line {
    Line {
        name,
        title,
        unit,
        better: Better::More,
        translated: false,
        judged: true,
    }
}

const fn less(name: &'static str, title: &'static str, unit: &'static str) -> Line {
    Line {
        better: Better::Less,
        ..more(name, title, unit)
    }
}

/// A line that only guests that use an IOMMU have.
const fn translated(line: Line) -> Line {
    Line {
        translated: true,
        ..line
    }
}

/// All lines, in the order of the table.
pub(super) static ALL: [Line; 15] = [
    less(BOOT, "boot to userspace, from the start of the VMM", "ms"),
    Line {
        judged: false,
        ..less(KERNEL, "of this, in the guest's kernel", "ms")
    },
    more(
        "disk-read",
        "disk, reading 128 KiB into scattered pages",
        "MiB/s",
    ),
    more(
        "disk-write",
        "disk, writing 128 KiB from scattered pages",
        "MiB/s",
    ),
    more(
        "disk-read-whole",
        "disk, reading 128 KiB into one piece",
        "MiB/s",
    ),
    more(
        "disk-write-whole",
        "disk, writing 128 KiB from one piece",
        "MiB/s",
    ),
    more("disk-iops", "disk, random reads of 4 KiB", "1/s"),
    more(
        "net-packets",
        "network packets of 64 bytes, both ways",
        "1/s",
    ),
    more("disk-interrupts", "interrupts (MSI) of the disk", "1/s"),
    translated(more(
        "msi",
        "MSIs of a function that is told to send one",
        "1/s",
    )),
    less("retarget-write", "moving an interrupt: the write", "µs"),
    translated(less(
        "retarget-arrival",
        "moving an interrupt: until one came",
        "µs",
    )),
    translated(more("map-4k", "map and unmap 4 KiB", "1/s")),
    translated(more("map-2m", "map and unmap 2 MiB", "1/s")),
    less(MEMORY, "memory of the VMM without the guest's RAM", "MiB"),
];

/// Lines of which a goal says what part of that without an IOMMU is left.
pub(super) const THROUGHPUT: [&str; 4] = [
    "disk-read",
    "disk-write",
    "disk-read-whole",
    "disk-write-whole",
];

/// What profiles (`--profile`) gave as the main reason where a line misses its goal (no rival) or is
/// behind a rival.
const REASONS: [(&[&str], Option<&str>, &str); 3] = [
    (
        &["disk-read", "disk-write"],
        None,
        "more than half is the guest's own kernel, whose driver maps each of the 32 pages of a request by \
         itself, looks it up and takes it away again: that alone is more than 5 %. About a fifth is the VMM, which \
         translates each of them",
    ),
    (
        &["disk-read-whole", "disk-write-whole"],
        None,
        "most of it is the guest's own kernel, and after it the one below, which serves its exits; of four profiles the \
         VMM had a quarter of it in one, a tenth in another, and nothing in two",
    ),
    (
        &["map-4k", "map-2m"],
        Some("qemu-intel"),
        "exits: for an unmap Linux's driver of this IOMMU rings twice, for the invalidation and for the wait, \
         that of Intel's once; most of what an exit costs is spent in KVM and in entering the guest anew",
    ),
];

/// The reason why `line` misses its goal, or is behind `rival`.
pub(super) fn reason(line: &Line, rival: Option<&str>) -> Option<&'static str> {
    let found = REASONS
        .iter()
        .find(|(lines, whom, _)| lines.contains(&line.name) && *whom == rival);
    found.map(|(_, _, why)| *why)
}

impl Line {
    /// How many times as good a value is as another: above 1, it is ahead.
    pub(super) fn advantage(&self, value: f64, of: f64) -> f64 {
        match self.better {
            Better::More => value / of,
            Better::Less => of / value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_of_what_should_be_little_is_an_advantage() {
        let line = |name: &str| ALL.iter().find(|line| line.name == name).unwrap();
        assert!(line(BOOT).advantage(1.0, 2.0) > 1.0);
        assert!(line("disk-iops").advantage(1.0, 2.0) < 1.0);
    }
}
