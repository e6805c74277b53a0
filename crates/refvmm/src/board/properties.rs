//! Property strings: `name=value,name=value…`, and errors that say what would be accepted.

use amdvi_regs::{DeviceId, Segment};

/// A property string that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// No property has this name.
    #[error("there is no property `{name}`; known: {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// A property has a value that it does not accept, or none.
    #[error("`{name}={value}`: {name} accepts {accepts}")]
    Value {
        /// The property.
        name: String,
        /// The value given; empty if there is none.
        value: String,
        /// What it accepts.
        accepts: &'static str,
    },
    /// A property that can be given once is given again.
    #[error("`{name}` is given twice; keep one of them")]
    Duplicate {
        /// The property.
        name: String,
    },
}

/// A property and its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Property<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
}

/// The properties of a string, in order. Each must be one of `known`; all but `lists` are given
/// once at most. What has no `=` has an empty value.
pub(crate) fn properties<'a>(
    text: &'a str,
    known: &[&str],
    lists: &[&str],
) -> Result<Vec<Property<'a>>, PropertyError> {
    let mut found: Vec<Property<'a>> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        let (name, value) = item.split_once('=').unwrap_or((item, ""));
        let property = Property {
            name: name.trim(),
            value: value.trim(),
        };
        let name = property.name;
        if !known.contains(&name) {
            return Err(PropertyError::Unknown {
                name: name.to_owned(),
                known: known.join(", "),
            });
        }
        if !lists.contains(&name) && found.iter().any(|before| before.name == name) {
            return Err(PropertyError::Duplicate {
                name: name.to_owned(),
            });
        }
        found.push(property);
    }
    Ok(found)
}

impl Property<'_> {
    /// The error about the value.
    pub(crate) fn refused(&self, accepts: &'static str) -> PropertyError {
        PropertyError::Value {
            name: self.name.to_owned(),
            value: self.value.to_owned(),
            accepts,
        }
    }

    /// `on` or `off`.
    pub(crate) fn switch(&self) -> Result<bool, PropertyError> {
        match self.value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(self.refused("on or off")),
        }
    }

    /// A PCI function of segment 0 or of one that the context gives.
    pub(crate) fn function(&self) -> Result<DeviceId, PropertyError> {
        function(self.value)
            .ok_or_else(|| self.refused("[bus:]device.function in hexadecimal, such as 05.0"))
    }
}

/// `[bus:]device.function`, hexadecimal.
pub(crate) fn function(text: &str) -> Option<DeviceId> {
    let (bus, rest) = text.split_once(':').unwrap_or(("0", text));
    let (device, function) = rest.split_once('.')?;
    let bus = hex(bus).and_then(|n| u8::try_from(n).ok())?;
    let device = hex(device).filter(|&n| n < 32)? as u8;
    let function = hex(function).filter(|&n| n < 8)? as u8;
    Some(DeviceId::new(bus, device, function))
}

/// `[[segment:]bus:]device.function`, hexadecimal.
pub(crate) fn function_of_segment(text: &str) -> Option<(Segment, DeviceId)> {
    match text.rsplit_once(':').and_then(|(head, _)| head.find(':')) {
        Some(colon) => {
            let segment = hex(&text[..colon]).and_then(|n| u16::try_from(n).ok())?;
            Some((Segment(segment), function(&text[colon + 1..])?))
        }
        None => Some((Segment(0), function(text)?)),
    }
}

/// `function` or `first-last`.
pub(crate) fn functions(text: &str) -> Option<(DeviceId, DeviceId)> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (function(first)?, function(last)?),
        None => {
            let only = function(text)?;
            (only, only)
        }
    };
    (first <= last).then_some((first, last))
}

/// As [`functions`], with the segment of the first before it.
pub(crate) fn functions_of_segment(text: &str) -> Option<(Segment, DeviceId, DeviceId)> {
    let (first, last) = text.split_once('-').unwrap_or((text, ""));
    let (segment, first) = function_of_segment(first)?;
    let last = match last {
        "" => first,
        last => function(last)?,
    };
    (first <= last).then_some((segment, first, last))
}

/// A number: decimal, or hexadecimal behind 0x.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => hex(digits),
        None => text.parse().ok(),
    }
}

/// Hexadecimal digits and nothing else.
fn hex(digits: &str) -> Option<u64> {
    let good = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    good.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_read_with_and_without_segment_bus_and_end() {
        assert_eq!(function("1f.7"), Some(DeviceId::new(0, 0x1f, 7)));
        assert_eq!(function("ff:00.1"), Some(DeviceId::new(255, 0, 1)));
        assert_eq!(
            function_of_segment("0001:00:05.0"),
            Some((Segment(1), DeviceId::new(0, 5, 0)))
        );
        assert_eq!(
            functions_of_segment("0001:00:05.0-06.1"),
            Some((Segment(1), DeviceId::new(0, 5, 0), DeviceId::new(0, 6, 1)))
        );
        assert_eq!(
            functions("05.0"),
            Some((DeviceId::new(0, 5, 0), DeviceId::new(0, 5, 0)))
        );
        for text in [
            "",
            "5",
            "20.0",
            "05.8",
            "100:00.0",
            "-05.0",
            "05.+1",
            "05.0-04.0",
        ] {
            assert_eq!(functions(text), None, "{text}");
        }
        assert_eq!(function_of_segment("10000:00:05.0"), None);
        assert_eq!(function_of_segment(":00:05.0"), None);
    }

    #[test]
    fn unknown_and_repeated_properties_are_errors_that_name_them() {
        let parse = |text| properties(text, &["a", "b"], &["b"]);
        assert_eq!(parse("a=1,b=2, b=3").unwrap().len(), 3);
        assert!(parse("").unwrap().is_empty());
        let error = parse("c=1").unwrap_err().to_string();
        assert!(error.contains("`c`") && error.contains("a, b"), "{error}");
        assert!(parse("a=1,a=1").unwrap_err().to_string().contains("`a`"));
    }
}
