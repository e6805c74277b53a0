//! How values print: a list of set flags and non-zero fields under their specification names.
//!
//! A register dump in a log is read by eye, so a zero field says nothing and a list without
//! anything to say is `-`. One-byte fields print in decimal, wider ones in hexadecimal.

use core::fmt;

/// A field value that knows whether it is worth printing, and how.
pub(crate) trait Show {
    /// Writes ` name` or ` name=value` (without the space), or nothing and returns `false`.
    fn show(&self, f: &mut fmt::Formatter<'_>, sep: &str, name: &str) -> Result<bool, fmt::Error>;
}

impl Show for bool {
    fn show(&self, f: &mut fmt::Formatter<'_>, sep: &str, name: &str) -> Result<bool, fmt::Error> {
        if *self {
            write!(f, "{sep}{name}")?;
        }
        Ok(*self)
    }
}

impl Show for u8 {
    fn show(&self, f: &mut fmt::Formatter<'_>, sep: &str, name: &str) -> Result<bool, fmt::Error> {
        if *self != 0 {
            write!(f, "{sep}{name}={self}")?;
        }
        Ok(*self != 0)
    }
}

impl Show for u128 {
    fn show(&self, f: &mut fmt::Formatter<'_>, sep: &str, name: &str) -> Result<bool, fmt::Error> {
        if *self != 0 {
            write!(f, "{sep}{name}={self:#x}")?;
        }
        Ok(*self != 0)
    }
}

macro_rules! show_hex {
    ($($int:ty),*) => {
        $(
            impl Show for $int {
                fn show(
                    &self,
                    f: &mut fmt::Formatter<'_>,
                    sep: &str,
                    name: &str,
                ) -> Result<bool, fmt::Error> {
                    u128::from(*self).show(f, sep, name)
                }
            }
        )*
    };
}

show_hex!(u16, u32, u64);

/// A value that prints even when it is zero, in its own format.
pub(crate) struct Always<T>(pub(crate) T);

impl<T: fmt::Display> Show for Always<T> {
    fn show(&self, f: &mut fmt::Formatter<'_>, sep: &str, name: &str) -> Result<bool, fmt::Error> {
        write!(f, "{sep}{name}={}", self.0)?;
        Ok(true)
    }
}

/// An address or other number that prints in hexadecimal even when it is zero.
pub(crate) struct Hex(pub(crate) u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Show for Hex {
    fn show(&self, f: &mut fmt::Formatter<'_>, sep: &str, name: &str) -> Result<bool, fmt::Error> {
        write!(f, "{sep}{name}={self}")?;
        Ok(true)
    }
}

/// A space-separated list under construction; the first error sticks.
pub(crate) struct List<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    state: Result<bool, fmt::Error>,
}

impl<'a, 'f> List<'a, 'f> {
    /// An empty list.
    pub(crate) fn new(f: &'a mut fmt::Formatter<'f>) -> Self {
        Self {
            f,
            state: Ok(false),
        }
    }

    /// Adds a field if it has something to say.
    pub(crate) fn field(&mut self, name: &str, value: impl Show) -> &mut Self {
        self.state = self.state.and_then(|any| {
            let sep = if any { " " } else { "" };
            Ok(value.show(self.f, sep, name)? || any)
        });
        self
    }

    /// Adds a field if `condition` holds.
    pub(crate) fn field_if(&mut self, condition: bool, name: &str, value: impl Show) -> &mut Self {
        if condition {
            self.field(name, value)
        } else {
            self
        }
    }

    /// Adds a bare word.
    pub(crate) fn word(&mut self, word: &str) -> &mut Self {
        self.field(word, true)
    }

    /// Ends the list: `-` if nothing was added.
    pub(crate) fn finish(&mut self) -> fmt::Result {
        match self.state {
            Ok(true) => Ok(()),
            Ok(false) => self.f.write_str("-"),
            Err(error) => Err(error),
        }
    }
}

/// Implements `Display` for a bit field as the list of its fields, in the order given, then any
/// reserved bit that is set. `as Always` or `as Hex` prints a field even when it is zero.
macro_rules! display_fields {
    ($type:ty, reserved $reserved:expr, { $($name:literal: $getter:ident $(as $wrap:ident)?),* $(,)? }) => {
        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                $crate::fmt::List::new(f)
                    $(.field($name, $($wrap)?(self.$getter())))*
                    .field("reserved", self.into_bits() & $reserved)
                    .finish()
            }
        }
    };
}

/// Implements `Display` for a flag set: the names of the set flags, then any unknown bit.
macro_rules! display_flags {
    ($type:ty, { $($flag:ident: $name:literal),* $(,)? }) => {
        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                $crate::fmt::List::new(f)
                    $(.field($name, self.contains(Self::$flag)))*
                    .field("reserved", u64::from(self.bits() & !Self::all().bits()))
                    .finish()
            }
        }
    };
}

pub(crate) use display_fields;
pub(crate) use display_flags;
