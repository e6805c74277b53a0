//! From the text of a value to the value.

use amdvi_regs::DeviceId;
use amdvi_regs::mmio::offset;

use super::error::OptionError;
use super::table::{MAX_BANKS, MAX_COUNTERS, OptionKind, OptionSpec, Value};

pub(super) fn parse_value(spec: &'static OptionSpec, text: &str) -> Result<Value, OptionError> {
    let bad = |why: &str| OptionError::Value {
        name: spec.name,
        value: text.into(),
        why: why.into(),
        accepts: spec.kind.accepts(),
    };
    let number = || {
        let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.map_err(|_| bad("it is not a number"))
    };
    match spec.kind {
        OptionKind::Switch => match text {
            "on" => Ok(Value::Switch(true)),
            "off" => Ok(Value::Switch(false)),
            _ => Err(bad("it is a switch")),
        },
        OptionKind::OneOf(list) => {
            let n = number()?;
            list.contains(&n)
                .then_some(Value::Number(n))
                .ok_or_else(|| bad("no such choice"))
        }
        OptionKind::Word(list) => list
            .iter()
            .position(|word| *word == text)
            .map(Value::Word)
            .ok_or_else(|| bad("no such choice")),
        OptionKind::UpTo(max) => {
            let n = number()?;
            (n <= max)
                .then_some(Value::Number(n))
                .ok_or_else(|| bad("it is too large"))
        }
        OptionKind::Between(min, max) => {
            let n = number()?;
            (min..=max)
                .contains(&n)
                .then_some(Value::Number(n))
                .ok_or_else(|| bad("it is out of range"))
        }
        OptionKind::PowerOfTwo(min, max) => {
            let n = number()?;
            if !n.is_power_of_two() {
                return Err(bad("it is not a power of two"));
            }
            (min..=max)
                .contains(&n)
                .then_some(Value::Number(n))
                .ok_or_else(|| bad("it is out of range"))
        }
        OptionKind::Counters if text == "off" => Ok(Value::Counters(0, 0)),
        OptionKind::Counters => parse_counters(text)
            .map(|(banks, counters)| Value::Counters(banks, counters))
            .ok_or_else(|| bad("it does not say how many banks of how many counters")),
        OptionKind::Address => {
            let n = number()?;
            check_mmio_base(n, offset::REGION_SIZE).map_err(bad)?;
            Ok(Value::Number(n))
        }
        OptionKind::Function => parse_function(text)
            .map(Value::Function)
            .ok_or_else(|| bad("it is not a PCI function")),
    }
}

/// The window is naturally aligned. IOAPIC, HPET, the southbridge registers that Linux
/// reads at 0xfed803c0 on AMD CPUs, local APIC and MSI window all lie in 0xfec00000–0xfeefffff.
pub(super) fn check_mmio_base(base: u64, size: u64) -> Result<(), &'static str> {
    const RESERVED: std::ops::Range<u64> = 0xfec0_0000..0xfef0_0000;
    if base == 0 {
        return Err("at address 0 no driver accepts it");
    }
    if !base.is_multiple_of(size) {
        return Err(if size == offset::REGION_SIZE {
            "it is not a multiple of 0x4000"
        } else {
            "with performance counters it must be a multiple of 0x80000"
        });
    }
    if base >= 1 << 52 {
        return Err("it is beyond 2^52");
    }
    if base < RESERVED.end && base + size > RESERVED.start {
        return Err("it lies among the IOAPIC, HPET, southbridge and APIC registers");
    }
    Ok(())
}

fn parse_function(text: &str) -> Option<DeviceId> {
    let (bus, rest) = text.split_once(':').unwrap_or(("0", text));
    let (device, function) = rest.split_once('.')?;
    let bus = u8::from_str_radix(bus, 16).ok()?;
    let device = u8::from_str_radix(device, 16).ok().filter(|&d| d < 32)?;
    let function = u8::from_str_radix(function, 16).ok().filter(|&f| f < 8)?;
    Some(DeviceId::new(bus, device, function))
}

fn parse_counters(text: &str) -> Option<(u8, u8)> {
    let (banks, counters) = text.split_once('x')?;
    let banks = banks.parse().ok()?;
    let counters = counters.parse().ok()?;
    ((1..=MAX_BANKS).contains(&banks) && (1..=MAX_COUNTERS).contains(&counters))
        .then_some((banks, counters))
}
