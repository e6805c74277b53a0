//! Patterns of lines that a person writes down.
//!
//! A pattern stands for itself, but for these:
//!
//! | in a pattern | matches |
//! | --- | --- |
//! | `*` | any text, or none |
//! | `<n>` | a decimal number, with a fraction or not |
//! | `<x>` | a hexadecimal number, after `0x` or not |
//! | `<w>` | one or more characters that are no spaces |
//! | `<star>` | an asterisk |
//! | `<pci>` | the address of a PCI function, `0000:00:05.0` |

/// One piece of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a [u8]),
    Any,
    Number,
    Hex,
    Word,
    Function,
}

const TOKENS: [(&str, Piece<'static>); 6] = [
    ("*", Piece::Any),
    ("<star>", Piece::Text(b"*")),
    ("<n>", Piece::Number),
    ("<x>", Piece::Hex),
    ("<w>", Piece::Word),
    ("<pci>", Piece::Function),
];

/// Whether `pattern` matches the whole of `line`.
pub fn matches(pattern: &str, line: &str) -> bool {
    rest_matches(pattern, line.as_bytes())
}

/// The piece that a pattern begins with, and what follows it.
fn piece(pattern: &str) -> Option<(Piece<'_>, &str)> {
    for (token, piece) in TOKENS {
        if let Some(rest) = pattern.strip_prefix(token) {
            return Some((piece, rest));
        }
    }
    let starts = |at: usize| {
        TOKENS
            .iter()
            .any(|(token, _)| pattern[at..].starts_with(token))
    };
    let end = pattern
        .char_indices()
        .map(|(at, _)| at)
        .find(|&at| starts(at))
        .unwrap_or(pattern.len());
    let (text, rest) = pattern.split_at(end);
    (!text.is_empty()).then_some((Piece::Text(text.as_bytes()), rest))
}

fn rest_matches(pattern: &str, line: &[u8]) -> bool {
    let Some((piece, rest)) = piece(pattern) else {
        return line.is_empty();
    };
    let run = |accept: fn(&u8) -> bool, line: &[u8]| line.iter().take_while(|b| accept(b)).count();
    match piece {
        Piece::Text(text) => line
            .strip_prefix(text)
            .is_some_and(|line| rest_matches(rest, line)),
        Piece::Any => {
            if rest.is_empty() {
                return true;
            }
            (0..=line.len()).any(|at| rest_matches(rest, &line[at..]))
        }
        Piece::Word => {
            let length = run(|b| !b.is_ascii_whitespace(), line);
            (1..=length).any(|at| rest_matches(rest, &line[at..]))
        }
        // Numbers are taken whole: a shorter one is another number.
        Piece::Number => {
            let mut length = run(u8::is_ascii_digit, line);
            if length == 0 {
                return false;
            }
            if let Some(fraction) = line[length..].strip_prefix(b".") {
                let digits = run(u8::is_ascii_digit, fraction);
                if digits > 0 && rest_matches(rest, &line[length + 1 + digits..]) {
                    return true;
                }
            }
            // "7." may end a sentence.
            length = length.min(line.len());
            rest_matches(rest, &line[length..])
        }
        Piece::Hex => {
            let line = line.strip_prefix(b"0x").unwrap_or(line);
            let length = run(u8::is_ascii_hexdigit, line);
            length > 0 && rest_matches(rest, &line[length..])
        }
        Piece::Function => function(line).is_some_and(|length| rest_matches(rest, &line[length..])),
    }
}

/// The length of the address of a PCI function at the start of a line.
fn function(line: &[u8]) -> Option<usize> {
    let shape = b"xxxx:xx:xx.x";
    let line = line.get(..shape.len())?;
    let fits = shape.iter().zip(line).all(|(shape, byte)| match shape {
        b'x' => byte.is_ascii_hexdigit(),
        other => other == byte,
    });
    fits.then_some(shape.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_a_whole_line_and_no_part_of_it() {
        assert!(matches("a b", "a b"));
        assert!(!matches("a b", "a b "));
        assert!(!matches("a b", "xa b"));
        assert!(!matches("", "x"));
        assert!(matches("", ""));
        assert!(matches("* b*", "a b c"));
        assert!(matches("*", ""));
        assert!(matches("a*b*c", "abbxbc"));
        assert!(!matches("a*b*c", "abbxb"));
        assert!(matches("ü*", "üx"));
    }

    #[test]
    fn what_is_special_to_others_stands_for_itself() {
        assert!(matches(
            "[Firmware Bug]: a? (b) {c} <d>",
            "[Firmware Bug]: a? (b) {c} <d>"
        ));
        assert!(!matches("a?", "ab"));
        assert!(matches("<star> a", "* a"));
        assert!(!matches("<star>", "ab"));
    }

    #[test]
    fn numbers_are_taken_whole() {
        assert!(matches("took <n> ms", "took 12.5 ms"));
        assert!(matches("took <n> ms", "took 12 ms"));
        assert!(matches("took <n>.", "took 12."));
        assert!(!matches("took <n> ms", "took  ms"));
        assert!(!matches("<n>2", "12"));
        assert!(matches("at <x>-<x>", "at 0xfee00000-fee00fff"));
        assert!(!matches("at <x>", "at 0x"));
        assert!(matches("<w> is <w>", "pci_bus is 0000:00"));
        assert!(!matches("<w>", "a b"));
        assert!(matches("pci <pci>: x", "pci 0000:00:1f.7: x"));
        assert!(!matches("pci <pci>: x", "pci 00:1f.7: x"));
    }
}
