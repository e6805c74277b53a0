//! Taking the state out of devices that stand still, and putting it into others.
//!
//! A device's state names its fields. What follows from others (a line from a condition, a route from
//! a table) is not saved but made again, and so is what belongs to the host: threads, files, clocks.

use std::collections::BTreeMap;

use amdvi_device::SavedState;
use amdvi_vmm_glue::ioapic::IoapicState;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::Board;
use super::recorder::RecorderState;

/// A state that a device does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StateError(pub String);

impl StateError {
    /// The error of a part, named.
    pub(crate) fn of(part: impl std::fmt::Display) -> impl FnOnce(Self) -> Self {
        move |error| Self(format!("{part}: {}", error.0))
    }
}

impl From<serde_json::Error> for StateError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// Refuses a state unless something holds of it.
pub(crate) fn ensure(holds: bool, otherwise: &str) -> Result<(), StateError> {
    if holds {
        Ok(())
    } else {
        Err(StateError(otherwise.to_owned()))
    }
}

/// The typed form of a state.
pub(crate) fn typed<T: DeserializeOwned>(state: &Value) -> Result<T, StateError> {
    Ok(T::deserialize(state)?)
}

/// A device that can stand still, and whose state can be taken out and put in.
///
/// While a device is frozen no CPU runs, and no register is accessed: a device without a thread of its
/// own has nothing to do for that.
pub trait Snapshot {
    /// Ends what the device does by itself. When this returns, nothing of it is in flight: no access
    /// to memory, and every interrupt that it sent has left it.
    fn freeze(&self) {}

    /// Goes on with what was ended, or with what the state says that was put in.
    fn thaw(&self) {}

    /// The state of a frozen device.
    ///
    /// # Errors
    /// What it depends on on the host can't be asked.
    fn save(&self) -> Result<Value, StateError> {
        Ok(Value::Null)
    }

    /// Puts a state into a device that is as it was built, and frozen. Nothing is sent.
    ///
    /// # Errors
    /// The state is of another device or impossible.
    fn restore(&self, state: &Value) -> Result<(), StateError> {
        ensure(state.is_null(), "this device has no state")
    }
}

/// Bytes as hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digit = |n: u8| char::from(if n < 10 { b'0' + n } else { b'a' + n - 10 });
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        serializer.collect_str(&digits.map(digit).collect::<String>())
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|n| n as u8);
        let byte = |pair: &[u8]| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        let bytes: Option<_> = text.as_bytes().chunks(2).map(byte).collect();
        bytes
            .map(Self)
            .ok_or_else(|| D::Error::custom("bytes in hexadecimal digits are expected"))
    }
}

/// All of a board.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BoardState {
    iommus: Vec<SavedState>,
    ioapic: IoapicState,
    config_address: u32,
    recorder: RecorderState,
    /// By segment and DeviceID.
    functions: BTreeMap<String, Value>,
    /// In the board's order.
    fixed: Vec<Value>,
}

impl Board {
    /// Brings everything to a halt that does not wait for a CPU. To be called with all CPUs stopped.
    pub(crate) fn freeze(&self) {
        for device in self.devices() {
            device.freeze();
        }
        // After the devices, of which a command may wait for one.
        self.worker.freeze();
        self.with_iommus(|iommu| iommu.quiesce());
        // IOMMUs send interrupts, too.
        self.injector.settle();
    }

    /// Lets everything go on. To be called before the CPUs run.
    pub(crate) fn thaw(&self) {
        // Routes follow from the tables of the guest, which may be new to this board.
        self.ioapic.tables_changed();
        self.worker.thaw();
        for device in self.devices() {
            device.thaw();
        }
    }

    fn devices(&self) -> impl Iterator<Item = &dyn Snapshot> {
        let functions = self
            .bus
            .functions()
            .map(|(_, function)| function as &dyn Snapshot);
        functions.chain(self.fixed.iter().map(|device| &**device as &dyn Snapshot))
    }

    /// The state of a frozen board.
    pub(crate) fn save(&self) -> Result<BoardState, StateError> {
        let mut iommus = Vec::new();
        self.with_iommus(|iommu| iommus.push(iommu.save()));
        let functions = self.bus.functions().map(|(place, function)| {
            let saved = function.save().map_err(StateError::of(&place))?;
            Ok((place, saved))
        });
        let fixed = self.fixed.iter().map(|device| device.save());
        Ok(BoardState {
            iommus,
            ioapic: self.ioapic.save(),
            config_address: self.bus.config_address(),
            recorder: self.recorder.save(),
            functions: functions.collect::<Result<_, StateError>>()?,
            fixed: fixed.collect::<Result<_, _>>()?,
        })
    }

    /// Puts a state into a board that is as it was built, and frozen; guest RAM must have its
    /// contents. No interrupt is sent before the [`thaw`](Self::thaw).
    pub(crate) fn restore(&self, state: &BoardState) -> Result<(), StateError> {
        let mut iommus = Vec::new();
        self.with_iommus(|iommu| iommus.push(iommu.clone()));
        ensure(
            iommus.len() == state.iommus.len(),
            "another number of IOMMUs",
        )?;
        ensure(
            self.fixed.len() == state.fixed.len(),
            "other devices at fixed places",
        )?;
        let here: Vec<String> = self.bus.functions().map(|(place, _)| place).collect();
        ensure(
            here.iter().collect::<std::collections::BTreeSet<_>>()
                == state.functions.keys().collect(),
            "other PCI functions",
        )?;
        // A port that had something to say pulses its line again: while every pin is masked yet, that
        // is nothing.
        for (device, state) in self.fixed.iter().zip(&state.fixed) {
            device
                .restore(state)
                .map_err(StateError::of("a device at fixed ports or addresses"))?;
        }
        for (iommu, state) in iommus.iter().zip(&state.iommus) {
            let name = format!("IOMMU {}:{}", iommu.segment(), iommu.device_id());
            iommu
                .restore(state)
                .map_err(|error| StateError(format!("{name}: {error}")))?;
        }
        // Before the functions: a pin that is asserted does not rise when its line is set again.
        self.ioapic.restore(&state.ioapic)?;
        for (place, function) in self.bus.functions() {
            let state = state.functions.get(&place).unwrap_or(&Value::Null);
            function.restore(state).map_err(StateError::of(place))?;
        }
        self.bus.set_config_address(state.config_address);
        self.recorder.restore(&state.recorder);
        Ok(())
    }

    /// The level-triggered interrupts for which the IOAPIC waits for an EOI: their vectors.
    pub(crate) fn in_service(&self) -> Vec<u8> {
        let pins = self.ioapic.save().pins;
        let served = pins.iter().filter_map(|pin| pin.in_service);
        served.map(|served| served.vector).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_digits_and_nothing_else() {
        let bytes = Hex(vec![0, 0x9f, 0xff]);
        let text = serde_json::to_string(&bytes).unwrap();
        assert_eq!(text, "\"009fff\"");
        assert_eq!(serde_json::from_str::<Hex>(&text).unwrap(), bytes);
        for wrong in ["\"0\"", "\"0g\"", "\"+1\"", "[1]", "\"é\""] {
            assert!(serde_json::from_str::<Hex>(wrong).is_err(), "{wrong}");
        }
    }
}
