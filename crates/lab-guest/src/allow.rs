//! Lines that the kernel's log may have. A list of what is allowed, and not of what is not: a
//! line that nobody has thought of is looked at by a person once.

use std::collections::BTreeMap;

use crate::pattern::matches;

/// The list, with its own description.
const LIST: &str = include_str!("allow.txt");

/// What the log may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    patterns: Vec<String>,
    counted: BTreeMap<String, usize>,
}

impl Allowed {
    /// The list for a kernel with this release, such as `6.12.107+deb13-amd64`.
    pub fn of(release: &str) -> Self {
        Self {
            patterns: parse(LIST, release),
            counted: BTreeMap::new(),
        }
    }

    /// Allows the lines that match, too.
    pub fn allow(&mut self, patterns: impl IntoIterator<Item = String>) {
        self.patterns.extend(patterns);
    }

    /// Allows exactly this line, once more than it has been allowed before.
    pub fn once(&mut self, line: String) {
        *self.counted.entry(line).or_default() += 1;
    }

    /// The lines that are not allowed.
    pub fn unexpected<'a>(&self, lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut counted = self.counted.clone();
        let mut unexpected = Vec::new();
        for line in lines {
            // An empty line says nothing.
            let allowed = |pattern: &String| matches(pattern, line);
            if line.is_empty() || self.patterns.iter().any(allowed) {
                continue;
            }
            match counted.get_mut(line) {
                Some(left @ 1..) => *left -= 1,
                _ => unexpected.push(line.to_owned()),
            }
        }
        unexpected
    }
}

/// Reads a list: see the head of `allow.txt`.
fn parse(list: &str, release: &str) -> Vec<String> {
    let mut applies = true;
    let mut patterns = Vec::new();
    for line in list.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match line.strip_prefix("@kernel ") {
            Some(which) => applies = which.split(' ').any(|which| matches(which, release)),
            None if applies => patterns.push(line.to_owned()),
            None => {}
        }
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_holds_for_the_kernels_that_it_names() {
        let list = "# why\nall\n\n@kernel 6.12.* 7.*+deb*\nsome\n@kernel *\nagain\n";
        assert_eq!(
            parse(list, "6.12.107+deb13-amd64"),
            ["all", "some", "again"]
        );
        assert_eq!(parse(list, "7.3.4+deb13-amd64"), ["all", "some", "again"]);
        assert_eq!(parse(list, "7.3.4-amdvi-lab"), ["all", "again"]);
    }

    #[test]
    fn a_line_that_is_allowed_once_is_unexpected_the_second_time() {
        let mut allowed = Allowed::default();
        allowed.allow(["boot*".to_owned()]);
        allowed.once("fault *".into());
        let lines = ["boot 1", "fault *", "fault *", "fault 1", "boot 2"];
        assert_eq!(allowed.unexpected(lines), ["fault *", "fault 1"]);
        allowed.once("fault *".into());
        assert_eq!(allowed.unexpected(lines), ["fault 1"]);
    }

    /// A pattern for everything would make the list worthless.
    #[test]
    fn the_list_does_not_allow_what_must_never_be() {
        for release in [
            "6.12.107+deb13-amd64",
            "7.3.4+deb13-amd64",
            "7.3.4-amdvi-lab",
        ] {
            let allowed = Allowed::of(release);
            for line in [
                "AMD-Vi: Completion-Wait loop timed out",
                "AMD-Vi: Command buffer timeout",
                "AMD-Vi: Event logged [ILLEGAL_COMMAND_ERROR address=0x1234]",
                "vfio-pci 0000:00:05.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0001 address=0x1000 flags=0x0020]",
                "AMD-Vi: Failed to allocate IRTE",
                "AMD-Vi: Disabling interrupt remapping",
                "AMD-Vi: [Firmware Bug]: : No southbridge IOAPIC found",
                "AMD-Vi: IOMMU Event log restarting",
                "AMD-Vi: Virtual APIC enabled",
                "BUG: kernel NULL pointer dereference, address: 0000000000000000",
                "WARNING: CPU: 0 PID: 1 at drivers/iommu/amd/iommu.c:1000 x+0x1/0x2",
                "Oops: 0000 [#1] SMP",
                "------------[ cut here ]------------",
                "do_IRQ: 1.55 No irq handler for vector",
                "__common_interrupt: 1.55 No irq handler for vector",
                "irq 9: nobody cared (try booting with the \"irqpoll\" option)",
                "INFO: task a:1 blocked for more than 120 seconds.",
                "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [init:1]",
                "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                "virtio_blk virtio0: [vda] I/O error",
            ] {
                assert_eq!(allowed.unexpected([line]), [line], "{release}");
            }
        }
    }
}
