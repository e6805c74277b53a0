//! Looks for instructions that KVM's instruction emulator can't run.
//!
//! A KVM without hardware virtualization runs a guest's kernel code through the emulator that is
//! otherwise there for device accesses. It knows the integer instructions of the original x86-64
//! and little more; what it doesn't know ends the guest, or (LZCNT) runs as something else. An
//! instruction that slips into the payload is found here, at build time and by name.

use std::fmt;

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter,
};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SymbolKind};

/// What the emulator knows. Everything else is refused: what is missing here is noticed when it is
/// first needed, what is wrong here would be noticed by a guest that ends.
const KNOWN: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CPUID,
    CpuidFeature::CX8,
    CpuidFeature::MSR,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::TSC,
];

/// Of the old instructions, those that the emulator lacks in 64-bit mode. INT3 is not among them:
/// linkers fill gaps with it, and nobody comes by.
const UNKNOWN: &[Mnemonic] = &[Mnemonic::Int, Mnemonic::Int1, Mnemonic::Into];

/// An instruction that would not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Its function, demangled; or its section where no symbol says more.
    pub(crate) function: String,
    /// Its address.
    pub(crate) address: u64,
    /// The instruction, as text.
    pub(crate) instruction: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x}: {} in {}",
            self.address, self.instruction, self.function
        )
    }
}

/// Why an image is not fit to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Not an ELF file that can be read.
    #[error("not a readable ELF image: {0}")]
    Format(#[from] object::Error),
    /// Nothing to look at.
    #[error("no code in it")]
    Empty,
    /// There are such instructions.
    #[error("{}", list(.0))]
    Found(Vec<Finding>),
}

/// Findings that an error shows.
const SHOWN: usize = 20;

fn list(findings: &[Finding]) -> String {
    let mut text = format!(
        "{} instructions that KVM's instruction emulator can't run:",
        findings.len()
    );
    for finding in findings.iter().take(SHOWN) {
        text += &format!("\n  {finding}");
    }
    if findings.len() > SHOWN {
        text += &format!("\n  and {} more", findings.len() - SHOWN);
    }
    text
}

/// Looks through every code section of an ELF image.
///
/// # Errors
///
/// There are findings, or the image can't be read.
pub(crate) fn check(image: &[u8]) -> Result<(), Error> {
    let file = ElfFile64::<LittleEndian>::parse(image)?;
    let mut functions: Vec<(u64, &str)> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
        .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?)))
        .collect();
    functions.sort_unstable();
    let mut findings = Vec::new();
    let mut code_bytes = 0;
    for section in file
        .sections()
        .filter(|s| s.kind() == object::SectionKind::Text)
    {
        let code = section.data()?;
        code_bytes += code.len();
        for (address, instruction) in unfit(code, section.address()) {
            let at = functions.partition_point(|f| f.0 <= address);
            let function = match at.checked_sub(1) {
                Some(at) => format!("{:#}", rustc_demangle::demangle(functions[at].1)),
                None => section.name()?.to_owned(),
            };
            findings.push(Finding {
                function,
                address,
                instruction,
            });
        }
    }
    if code_bytes == 0 {
        Err(Error::Empty)
    } else if findings.is_empty() {
        Ok(())
    } else {
        Err(Error::Found(findings))
    }
}

/// Address and text of each instruction that the emulator can't run.
fn unfit(code: &[u8], address: u64) -> Vec<(u64, String)> {
    // `rep bsf` is also TZCNT. Where BMI is not enabled, compilers use that encoding only where both
    // meanings give the same result, so it is read as the older one.
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NO_MPFX_0FBC);
    let mut formatter = NasmFormatter::new();
    let mut found = Vec::new();
    for instruction in decoder {
        if runs(&instruction) {
            continue;
        }
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        found.push((instruction.ip(), text));
    }
    found
}

fn runs(instruction: &Instruction) -> bool {
    !instruction.is_invalid()
        && !UNKNOWN.contains(&instruction.mnemonic())
        && instruction
            .cpuid_features()
            .iter()
            .all(|feature| KNOWN.contains(feature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_that_the_emulator_lacks_are_found_by_address() {
        for (code, name) in [
            (&[0x0f, 0x58, 0xc1][..], "addps"),
            (&[0x66, 0x0f, 0x6f, 0x00], "movdqa"),
            (&[0x0f, 0xae, 0xf0], "mfence"),
            (&[0xd9, 0xe8], "fld1"),
            (&[0xc5, 0xf8, 0x77], "vzeroupper"),
            (&[0xf3, 0x48, 0x0f, 0xb8, 0xc1], "popcnt"),
            (&[0xf3, 0x48, 0x0f, 0xbd, 0xc1], "lzcnt"),
            (&[0xc4, 0xe2, 0x78, 0xf2, 0xc1], "andn"),
            (&[0xc4, 0xe2, 0xf9, 0xf7, 0xc1], "shlx"),
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], "cmpxchg16b"),
            (&[0x0f, 0x01, 0xd0], "xgetbv"),
            (&[0x0f, 0x01, 0xf9], "rdtscp"),
            (&[0xcd, 0x80], "int"),
            (&[0x06], "(bad)"),
        ] {
            // Behind a NOP, so that the address counts.
            let code = [&[0x90], code].concat();
            let found = unfit(&code, 0x1000);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert_eq!(found[0].0, 0x1001, "{name}");
            assert!(found[0].1.contains(name), "{name}: {}", found[0].1);
        }
    }

    #[test]
    fn what_compilers_emit_for_the_bare_machine_passes() {
        for code in [
            &[0xf3, 0x48, 0x0f, 0xbc, 0xc1][..], // rep bsf
            &[0x48, 0x0f, 0xbd, 0xc1],           // bsr
            &[0xf0, 0x83, 0x0c, 0x24, 0x00],     // lock or: a fence without SSE2
            &[0xf0, 0x0f, 0xc7, 0x0f],           // lock cmpxchg8b
            &[0xf3, 0x48, 0xa5],                 // rep movsq
            &[0x0f, 0x44, 0xc1],                 // cmove
            &[0x0f, 0x30],                       // wrmsr
            &[0x0f, 0x31],                       // rdtsc
            &[0x48, 0xcf],                       // iretq
            &[0xf3, 0x90],                       // pause
            &[0x0f, 0x1f, 0x40, 0x00],           // nop
            &[0x0f, 0x0b],                       // ud2
            &[0xcc],                             // int3 between functions
        ] {
            assert_eq!(unfit(code, 0), vec![], "{code:x?}");
        }
    }

    #[test]
    fn an_error_names_function_and_instruction_and_stays_short() {
        let finding = Finding {
            function: "payload::main".to_owned(),
            address: 0x10_0000,
            instruction: "popcnt rax,rcx".to_owned(),
        };
        let text = Error::Found(vec![finding; 30]).to_string();
        assert!(
            text.contains("0x100000: popcnt rax,rcx in payload::main"),
            "{text}"
        );
        assert!(text.ends_with("and 10 more"), "{text}");
    }

    #[test]
    fn something_else_than_an_image_is_refused() {
        assert!(matches!(check(b"no image"), Err(Error::Format(_))));
    }
}
