//! The differences that are explained, each with who is right and why.
//!
//! "Section" is one of AMD publication 48882. A rule describes one behaviour and no more: it looks
//! at the case and at both sides, so that another difference in the same place stays unexplained.

mod look;
mod records;
mod table;

use crate::compare::{Difference, Place};

pub use records::RECORD_RULES;
pub use table::RULES;

/// Whose behaviour the specification asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Ours.
    Ours,
    /// QEMU's.
    Theirs,
    /// Both: the specification leaves it open, or the sides offer different features.
    Both,
}

/// An explained difference.
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// Who is right.
    pub right: Right,
    /// Why, with the section of AMD publication 48882.
    pub why: &'static str,
    /// The test that pins our behaviour; none where QEMU is right.
    pub test: &'static str,
    /// Whether it explains a difference.
    pub applies: fn(&Difference<'_>) -> bool,
}

/// The rule that explains a difference. What events hold has rules of its own: why a request fails
/// explains nothing about it.
pub fn explain(difference: &Difference<'_>) -> Option<&'static Rule> {
    let table = match difference.place {
        Place::Record(..) => RECORD_RULES,
        _ => RULES,
    };
    table.iter().find(|rule| (rule.applies)(difference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_rule_has_its_own_name_a_section_and_a_test() {
        let rules = || RULES.iter().chain(RECORD_RULES);
        let names: BTreeSet<_> = rules().map(|rule| rule.name).collect();
        assert_eq!(names.len(), rules().count());
        let mut sources = String::new();
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        read_all(&crates, &mut sources).expect("the workspace is readable");
        for rule in rules() {
            assert!(rule.why.contains("section"), "{}", rule.name);
            // What we get wrong has no test that pins it.
            assert_eq!(
                rule.test.is_empty(),
                rule.right == Right::Theirs,
                "{}",
                rule.name
            );
            let test = format!("fn {}(", rule.test);
            assert!(
                rule.test.is_empty() || sources.contains(&test),
                "no test {} for {}",
                rule.test,
                rule.name
            );
        }
    }

    fn read_all(folder: &Path, text: &mut String) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                read_all(&path, text)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(path)?);
            }
        }
        Ok(())
    }
}
