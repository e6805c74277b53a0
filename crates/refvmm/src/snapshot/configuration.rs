//! What a machine is made of, and whether a saved one fits.

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

/// Options and their values, in the order in which a difference is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration(Vec<(String, String)>);

/// Leaves that differ from CPU to CPU, or of which some bits follow what the guest does.
const OWN_LEAVES: [u32; 3] = [0xb, 0x1f, 0x8000_001e];
/// Leaf 1, EBX: the APIC ID; ECX: OSXSAVE.
const APIC_ID: u32 = 0xff00_0000;
const OSXSAVE: u32 = 1 << 27;

impl Configuration {
    /// Adds an option. One that is given again gets a number.
    pub fn push(&mut self, option: &str, value: impl ToString) {
        let same = |name: &str| name == option || name.starts_with(&format!("{option} ("));
        let before = self.0.iter().filter(|(name, _)| same(name)).count();
        let name = match before {
            0 => option.to_owned(),
            n => format!("{option} ({})", n + 1),
        };
        self.0.push((name, value.to_string()));
    }

    /// Adds what the CPUs show, which depends on the host.
    pub(crate) fn push_cpuid(&mut self, leaves: &CpuId) {
        for leaf in leaves.as_slice() {
            if OWN_LEAVES.contains(&leaf.function) {
                continue;
            }
            let (mut ebx, mut ecx) = (leaf.ebx, leaf.ecx);
            if leaf.function == 1 {
                (ebx, ecx) = (ebx & !APIC_ID, ecx & !OSXSAVE);
            }
            self.push(
                &format!("CPUID leaf {:#x}.{:#x}", leaf.function, leaf.index),
                format!("{:08x} {ebx:08x} {ecx:08x} {:08x}", leaf.eax, leaf.edx),
            );
        }
    }

    /// What keeps a machine of this configuration from taking one that was saved: the first option
    /// that differs, and what to do.
    pub fn refuses(&self, saved: &Self) -> Option<String> {
        let value = |of: &Self, option: &str| {
            let found = of.0.iter().find(|(name, _)| name == option);
            found.map(|(_, value)| value.clone())
        };
        let names = saved.0.iter().chain(&self.0).map(|(name, _)| name);
        for name in names {
            let (there, here) = (value(saved, name), value(self, name));
            if there == here {
                continue;
            }
            let said = |value: Option<String>| match value {
                Some(value) => format!("`{}`", printable(&value)),
                None => "none".to_owned(),
            };
            let what = if name.starts_with("CPUID") {
                "restore it on a host with the same kind of CPU and KVM"
            } else {
                "start this one with the same options"
            };
            return Some(format!(
                "{}: the saved machine has {}, this one {}; {what}",
                printable(name),
                said(there),
                said(here)
            ));
        }
        None
    }
}

/// What a saved machine says, for a terminal: somebody may have forged it.
fn printable(text: &str) -> String {
    /// More than any option of ours has.
    const MOST: usize = 1000;
    text.chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[(&str, &str)]) -> Configuration {
        let mut configuration = Configuration::default();
        for (option, value) in options {
            configuration.push(option, value);
        }
        configuration
    }

    #[test]
    fn the_option_that_differs_is_named_with_both_values() {
        let here = of(&[("--cpus", "2"), ("--memory", "1 GiB")]);
        assert_eq!(here.refuses(&here.clone()), None);
        for (saved, parts) in [
            (
                of(&[("--cpus", "4"), ("--memory", "1 GiB")]),
                ["--cpus", "`4`", "`2`"],
            ),
            (of(&[("--cpus", "2")]), ["--memory", "none", "`1 GiB`"]),
            (
                of(&[("--cpus", "2"), ("--memory", "1 GiB"), ("--rng", "on")]),
                ["--rng", "`on`", "none"],
            ),
        ] {
            let why = here.refuses(&saved).unwrap();
            assert!(parts.iter().all(|part| why.contains(part)), "{why}");
            assert!(why.contains("the same options"), "{why}");
        }
    }

    #[test]
    fn what_a_forged_machine_says_does_not_reach_the_terminal_as_it_is() {
        let forged = of(&[("--cpus", &format!("\x1b[2J{}", "9".repeat(1 << 20)))]);
        let why = of(&[("--cpus", "2")]).refuses(&forged).unwrap();
        assert!(why.len() < 2000 && why.contains("\\u{1b}[2J999"), "{why}");
    }

    #[test]
    fn another_kind_of_cpu_is_named_by_its_leaf() {
        let why = of(&[("CPUID leaf 0x7.0x0", "1")])
            .refuses(&of(&[("CPUID leaf 0x7.0x0", "2")]))
            .unwrap();
        assert!(
            why.contains("leaf 0x7") && why.contains("same kind of CPU"),
            "{why}"
        );
    }
}
