//! Decodes register values and table entries from the command line:
//! `cargo run -p amdvi-regs --example decode -- efr 0x246577efa2254afa`.

use std::process::ExitCode;

use amdvi_regs::command::Command;
use amdvi_regs::dte::Dte;
use amdvi_regs::event::Event;
use amdvi_regs::mmio::{Control, ExtendedFeature, ExtendedFeature2, Status};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let parse = |text: String| {
        let digits = text.trim_start_matches("0x").replace('_', "");
        u64::from_str_radix(&digits, 16).map_err(|error| format!("{text}: {error}"))
    };
    let words = match args.map(parse).collect::<Result<Vec<_>, _>>() {
        Ok(words) => words,
        Err(error) => {
            eprintln!("not a hexadecimal word: {error}");
            return ExitCode::from(2);
        }
    };
    match (what.as_str(), words[..].as_ref()) {
        ("efr", &[word]) => println!("{}", ExtendedFeature::from_bits(word)),
        ("efr2", &[word]) => println!("{}", ExtendedFeature2::from_bits(word)),
        ("control", &[word]) => println!("{}", Control::from_bits(word)),
        ("status", &[word]) => println!("{}", Status::from_bits(word)),
        ("command", &[low, high]) => println!("{}", Command::decode([low, high])),
        ("event", &[low, high]) => println!("{}", Event::decode([low, high])),
        ("dte", &[a, b, c, d]) => println!("{}", Dte::from_words([a, b, c, d])),
        _ => {
            eprintln!(
                "usage: decode efr|efr2|control|status WORD | command|event LOW HIGH | dte W0 W1 W2 W3"
            );
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
