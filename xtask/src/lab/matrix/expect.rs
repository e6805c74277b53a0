//! What must hold of the reference VMM's own report: the device's side of what the guest sees.

use serde_json::Value;

/// One thing that must hold.
#[derive(Clone, Debug)]
pub(in crate::lab) struct Expect {
    /// Where in the report: a JSON pointer.
    pub(super) pointer: &'static str,
    pub(super) is: Is,
}

/// How a value must be.
#[derive(Clone, Debug)]
pub(super) enum Is {
    /// These bits of a number are so.
    Bits { mask: u64, value: u64 },
    /// It is this.
    Equal(Value),
    /// It is a number, and not 0.
    NotZero,
    /// It is a list, and these bits of one of its numbers are so.
    SomeBits { mask: u64, value: u64 },
    /// It is a number, and not above the one at this pointer.
    AtMost(&'static str),
}

/// These bits of a register are so.
pub(super) fn bits(pointer: &'static str, mask: u64, value: u64) -> Expect {
    Expect {
        pointer,
        is: Is::Bits { mask, value },
    }
}

/// It is this.
pub(super) fn equal(pointer: &'static str, value: impl Into<Value>) -> Expect {
    Expect {
        pointer,
        is: Is::Equal(value.into()),
    }
}

/// It is a number other than 0.
pub(super) fn not_zero(pointer: &'static str) -> Expect {
    Expect {
        pointer,
        is: Is::NotZero,
    }
}

/// It is a list, and these bits of one of its numbers are so.
pub(super) fn some_bits(pointer: &'static str, mask: u64, value: u64) -> Expect {
    Expect {
        pointer,
        is: Is::SomeBits { mask, value },
    }
}

/// It is a number, and not above the one at `limit`.
pub(super) fn at_most(pointer: &'static str, limit: &'static str) -> Expect {
    Expect {
        pointer,
        is: Is::AtMost(limit),
    }
}

impl Expect {
    /// What is there, and whether it is as it must be.
    pub(super) fn holds(&self, report: &Value) -> (bool, String) {
        let Some(found) = report.pointer(self.pointer) else {
            return (false, "the reference VMM's report does not have it".into());
        };
        match &self.is {
            Is::Bits { mask, value } => match number(found) {
                Some(register) => (
                    register & mask == *value,
                    format!("{register:#x}, of which {mask:#x} must be {value:#x}"),
                ),
                None => (false, format!("{found} is no number")),
            },
            Is::NotZero => {
                let number = number(found);
                (
                    number.is_some_and(|n| n != 0),
                    format!("{found}, must not be 0"),
                )
            }
            Is::SomeBits { mask, value } => {
                let numbers = found.as_array().into_iter().flatten().filter_map(number);
                (
                    numbers.into_iter().any(|number| number & mask == *value),
                    format!("{found}, of one of which {mask:#x} must be {value:#x}"),
                )
            }
            Is::AtMost(limit) => {
                let limit = report.pointer(limit).and_then(number);
                let holds = number(found)
                    .zip(limit)
                    .is_some_and(|(n, limit)| n <= limit);
                let limit = limit.map_or("a number that is missing".into(), |n| n.to_string());
                (holds, format!("{found}, at most {limit}"))
            }
            Is::Equal(value) => (found == value, format!("{found}, must be {value}")),
        }
    }
}

/// A number, or a string with one in hexadecimal.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let digits = value.as_str()?.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_does_not_hold() {
        let report =
            serde_json::json!({"iommus":[{"control":"0x180000000001","sent":5,"none":"0x0"}]});
        let control = "/iommus/0/control";
        assert!(bits(control, 3 << 43, 3 << 43).holds(&report).0);
        assert!(!bits(control, 3 << 43, 1 << 43).holds(&report).0);
        assert!(!bits("/iommus/1/control", 0, 0).holds(&report).0);
        assert!(not_zero(control).holds(&report).0);
        assert!(!not_zero("/iommus/0/none").holds(&report).0);
        let list = serde_json::json!({"dtes":["0x3", "0x80000000000003"]});
        assert!(some_bits("/dtes", 1 << 55, 1 << 55).holds(&list).0);
        assert!(!some_bits("/dtes", 1 << 54, 1 << 54).holds(&list).0);
        assert!(!some_bits("/dtes/0", 0, 0).holds(&list).0);
        let least = |limit| at_most("/iommus/0/sent", limit).holds(&report).0;
        assert!(least("/iommus/0/sent") && least(control));
        assert!(!least("/iommus/0/none") && !least("/iommus/1"));
        assert!(equal("/iommus/0/sent", 5).holds(&report).0);
        assert!(!equal("/iommus/0/sent", "5").holds(&report).0);
    }
}
