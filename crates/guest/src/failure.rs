//! Why something did not work, as text that says what was expected and what was seen.

use core::fmt::{self, Write};

/// Longest text, in bytes; what is longer is cut.
const TEXT_BYTES: usize = 400;

/// What went wrong, ready to be shown to a person.
#[derive(Clone, Copy)]
pub struct Failure {
    used: usize,
    text: [u8; TEXT_BYTES],
}

impl Failure {
    /// A failure with the given text.
    #[cold]
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut failure = Self {
            used: 0,
            text: [0; TEXT_BYTES],
        };
        let _ = failure.write_fmt(text);
        failure
    }

    /// The same failure, with what was being done in front of it.
    #[cold]
    #[must_use]
    pub fn during(&self, what: &str) -> Self {
        Self::new(format_args!("{what}: {self}"))
    }

    /// The text.
    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.text[..self.used]).unwrap_or("(not UTF-8)")
    }
}

impl Write for Failure {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut take = text.len().min(TEXT_BYTES - self.used);
        while !text.is_char_boundary(take) {
            take -= 1;
        }
        self.text[self.used..self.used + take].copy_from_slice(&text.as_bytes()[..take]);
        self.used += take;
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({})", self.text())
    }
}

/// What driver functions return.
pub type Result<T> = core::result::Result<T, Failure>;

/// Returns a [`Failure`] with the formatted text.
macro_rules! bail {
    ($($text:tt)*) => {
        return Err($crate::failure::Failure::new(format_args!($($text)*)))
    };
}

/// Returns a [`Failure`] unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            $crate::failure::bail!($($text)*);
        }
    };
}

pub(crate) use {bail, ensure};

/// Names what was being done when something failed.
pub trait During<T> {
    /// Puts `what` in front of the failure's text.
    fn during(self, what: &str) -> Result<T>;
}

impl<T> During<T> for Result<T> {
    fn during(self, what: &str) -> Result<T> {
        self.map_err(|failure| failure.during(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(value: u32) -> Result<()> {
        ensure!(value == 1, "expected 1, saw {value}");
        Ok(())
    }

    #[test]
    fn a_failure_says_what_was_done_and_seen() {
        assert!(refuse(1).is_ok());
        let failure = refuse(7).during("case seven").unwrap_err();
        assert_eq!(failure.text(), "case seven: expected 1, saw 7");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character_border() {
        let long = "é".repeat(TEXT_BYTES);
        let failure = Failure::new(format_args!("x{long}"));
        assert!(failure.text().ends_with('é'));
        assert_eq!(failure.text().len(), TEXT_BYTES - 1);
    }

    extern crate alloc;
}
