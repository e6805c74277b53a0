//! Where the time of a run went, by phase: the guest, its VMM, and the kernel below; and what its KVM
//! counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use amdvi_lab_init::names::Names;
use amdvi_lab_init::{Level, Profile};
use anyhow::{Context, Result};
use object::{Object as _, ObjectSymbol as _, SymbolKind};

/// Functions of a phase that are printed.
pub(super) const SHOWN: usize = 25;

/// The names of the functions of a program with a symbol table.
pub(super) fn names(program: &Path) -> Result<Names> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let file = object::File::parse(&*bytes)?;
    let functions = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.address() != 0)
        .filter_map(|symbol| {
            let name = rustc_demangle::demangle(symbol.name().ok()?);
            Some((symbol.address(), format!("{name:#}")))
        });
    Ok(functions.collect())
}

/// The function at a place of the program, or the place.
fn function(names: &Names, place: &str) -> String {
    let digits = place.strip_prefix("0x");
    let at = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let known = at.and_then(|at| names.at(at));
    known.unwrap_or(place).to_owned()
}

const fn title(level: Level) -> &'static str {
    match level {
        Level::Program => "VMM",
        Level::HostKernel => "its kernel",
        Level::GuestKernel => "guest's kernel",
        Level::GuestUser => "guest's programs",
        Level::Others => "others",
    }
}

/// The profile as text: shares of each phase's samples, `shown` functions of it at most, and counters
/// per second.
pub(super) fn text(profile: &Profile, names: &Names, shown: usize) -> String {
    let mut text = String::new();
    for (name, phase) in profile {
        let (mut levels, mut functions) = (BTreeMap::new(), BTreeMap::new());
        let mut all = 0;
        for place in &phase.places {
            all += place.count;
            *levels.entry(place.level).or_insert(0u64) += place.count;
            // A program without names is one place.
            let name = match place.level {
                Level::Program if names.is_empty() => String::new(),
                Level::Program => function(names, &place.name),
                _ => place.name.clone(),
            };
            *functions.entry((place.level, name)).or_insert(0u64) += place.count;
        }
        let share = |count: u64| 100.0 * count as f64 / all.max(1) as f64;
        let mut levels: Vec<_> = levels.into_iter().collect();
        levels.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let parts: Vec<_> = levels
            .iter()
            .map(|(level, count)| format!("{} {:.1} %", title(*level), share(*count)))
            .collect();
        let _ = writeln!(text, "{name}, {all} samples: {}", parts.join(", "));
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for ((level, name), count) in functions.iter().take(shown) {
            let _ = writeln!(
                text,
                "  {:5.1} %  {:<16} {name}",
                share(*count),
                title(*level)
            );
        }
        let seconds = phase.micros.max(1) as f64 / 1e6;
        let counters: Vec<_> = phase
            .counters
            .iter()
            .map(|(counter, rose)| format!("{counter} {:.0}", *rose as f64 / seconds))
            .collect();
        if !counters.is_empty() {
            let _ = writeln!(text, "  KVM, per second: {}", counters.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use amdvi_lab_init::{Phase, Place};

    #[test]
    fn a_profile_is_told_by_phase_and_by_function_the_most_first() {
        let place = |level, name: &str, count| Place {
            level,
            name: name.to_owned(),
            count,
        };
        let phase = Phase {
            micros: 500_000,
            places: vec![
                place(Level::Program, "0x15", 1),
                place(Level::Program, "0x11", 2),
                place(Level::GuestKernel, "memcpy", 1),
            ],
            counters: [("exits".to_owned(), 21)].into(),
        };
        let profile = Profile::from([("disk".to_owned(), phase)]);
        let names = [(0x10, "walk".to_owned()), (0x20, "other".to_owned())];
        let names = names.into_iter().collect();
        let whole = text(&profile, &names, 1);
        assert_eq!(whole.lines().count(), 3);
        let text = text(&profile, &names, SHOWN);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "disk, 4 samples: VMM 75.0 %, guest's kernel 25.0 %"
        );
        assert_eq!(lines[1].split_whitespace().last(), Some("walk"));
        assert_eq!(lines[2].split_whitespace().last(), Some("memcpy"));
        assert_eq!(lines[3], "  KVM, per second: exits 42");
    }

    #[test]
    fn a_program_of_ours_has_names() {
        let own = std::env::current_exe().unwrap();
        let (found, bytes) = (names(&own).unwrap(), fs::read(&own).unwrap());
        let file = object::File::parse(&*bytes).unwrap();
        let mut symbols = file.symbols();
        let known = "a_program_of_ours_has_names";
        let here = symbols.find(|symbol| symbol.name().is_ok_and(|name| name.contains(known)));
        let at = here.expect("a test has a symbol").address();
        assert!(function(&found, &format!("{at:#x}")).contains(known));
        assert_eq!(function(&found, "0x0"), "0x0");
    }
}
