//! The MSI capability of a function: 64-bit addresses, per-vector masks.

use amdvi_regs::msi::Msi;

use super::{ConfigSpace, Request};

/// Capability ID.
const CAPABILITY: u8 = 0x05;
/// Message Control\[0\]: MSI Enable.
const ENABLE: u16 = 1;
/// Message Control\[7\]: 64-bit addresses; \[8\]: per-vector masks.
const FORM: u16 = 1 << 7 | 1 << 8;
/// Registers, from the start of the capability.
const CONTROL: u16 = 2;
const ADDRESS: u16 = 4;
const DATA: u16 = 12;
const MASK: u16 = 16;
const PENDING: u16 = 20;

/// The MSI capability in a [`ConfigSpace`], which holds all of its state.
#[derive(Clone, Copy, Debug)]
pub struct MsiCapability {
    at: u16,
}

impl MsiCapability {
    /// Appends a capability that can have 32 vectors.
    pub fn add(config: &mut ConfigSpace) -> Self {
        let mut body = [0; 22];
        // Multiple Message Capable [3:1]: 2^5.
        body[..2].copy_from_slice(&(FORM | 5 << 1).to_le_bytes());
        let mut writable = [0; 22];
        // Enable, and Multiple Message Enable [6:4].
        writable[0] = 0x71;
        writable[2] = 0xfc;
        writable[3..12].fill(0xff);
        // The upper half of the data is not the message's.
        writable[12..14].fill(0);
        writable[14..18].fill(0xff);
        Self {
            at: config.add_capability(CAPABILITY, &body, &writable),
        }
    }

    /// Whether MSI is enabled.
    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        config.word(self.at + CONTROL) & ENABLE != 0
    }

    /// Vectors that software lets the function use.
    pub fn vectors(&self, config: &ConfigSpace) -> u32 {
        // 6 and 7 are reserved.
        1 << (config.word(self.at + CONTROL) >> 4 & 7).min(5)
    }

    /// The pending bits, of which software can't write any.
    pub(crate) fn pending(&self, config: &ConfigSpace) -> u32 {
        config.dword(self.at + PENDING)
    }

    /// Sets them as they were saved.
    pub(crate) fn set_pending(&self, config: &mut ConfigSpace, pending: u32) {
        config.set_dword(self.at + PENDING, pending);
    }

    fn message(&self, config: &ConfigSpace, vector: u32) -> Msi {
        let low = u64::from(config.dword(self.at + ADDRESS));
        let high = u64::from(config.dword(self.at + ADDRESS + 4));
        let data = u32::from(config.word(self.at + DATA));
        Msi {
            address: high << 32 | low,
            // The function may change as many low bits of the data as it has vectors.
            data: data & !(self.vectors(config) - 1) | vector,
        }
    }

    /// The function wants to send `vector`. A masked vector becomes pending; with MSI disabled, or
    /// without such a vector, the request is lost.
    pub fn request(&self, config: &mut ConfigSpace, vector: u32) -> Request {
        if !self.enabled(config) || vector >= self.vectors(config) {
            return Request::Masked;
        }
        if config.dword(self.at + MASK) >> vector & 1 == 1 {
            let pending = config.dword(self.at + PENDING);
            config.set_dword(self.at + PENDING, pending | 1 << vector);
            return Request::Masked;
        }
        Request::Send(self.message(config, vector))
    }

    /// Takes the pending messages that are no longer masked, in order of their vectors.
    pub fn take_ready(&self, config: &mut ConfigSpace) -> Vec<(u16, Msi)> {
        let pending = config.dword(self.at + PENDING);
        if pending == 0 {
            return Vec::new();
        }
        if !self.enabled(config) {
            config.set_dword(self.at + PENDING, 0);
            return Vec::new();
        }
        let ready = pending & !config.dword(self.at + MASK);
        config.set_dword(self.at + PENDING, pending & !ready);
        (0..self.vectors(config))
            .filter(|vector| ready >> vector & 1 == 1)
            .map(|vector| (vector as u16, self.message(config, vector)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rig(control: u16) -> (ConfigSpace, MsiCapability) {
        let mut config = ConfigSpace::new(0x1af5, 0x2048, [0xff, 0, 0]);
        let msi = MsiCapability::add(&mut config);
        config.write(msi.at + ADDRESS, &0xfee0_0007u64.to_le_bytes());
        config.write(msi.at + DATA, &0x1234_007fu32.to_le_bytes());
        config.write(msi.at + CONTROL, &control.to_le_bytes());
        (config, msi)
    }

    fn sent(data: u32) -> Request {
        Request::Send(Msi {
            address: 0xfee0_0004,
            data,
        })
    }

    #[test]
    fn each_vector_has_its_number_in_the_low_bits_of_the_data() {
        let (mut config, msi) = rig(1 | 5 << 4);
        assert_eq!(msi.request(&mut config, 0), sent(0x60));
        assert_eq!(msi.request(&mut config, 31), sent(0x7f));
        assert_eq!(msi.request(&mut config, 32), Request::Masked);
        let (mut config, msi) = rig(1);
        assert_eq!(msi.request(&mut config, 0), sent(0x7f), "no bit to change");
        assert_eq!(msi.request(&mut config, 1), Request::Masked, "not allowed");
    }

    #[test]
    fn nothing_is_sent_or_pends_while_disabled() {
        let (mut config, msi) = rig(5 << 4);
        assert_eq!(msi.request(&mut config, 0), Request::Masked);
        config.write(msi.at + CONTROL, &[1 | 5 << 4]);
        assert!(msi.take_ready(&mut config).is_empty());
    }

    #[test]
    fn a_masked_vector_pends_and_is_sent_once_when_unmasked() {
        let (mut config, msi) = rig(1 | 5 << 4);
        config.write(msi.at + MASK, &0b1010u32.to_le_bytes());
        assert_eq!(msi.request(&mut config, 1), Request::Masked);
        assert_eq!(msi.request(&mut config, 3), Request::Masked);
        assert_eq!(config.dword(msi.at + PENDING), 0b1010);
        config.write(msi.at + PENDING, &[0; 4]);
        assert_eq!(config.dword(msi.at + PENDING), 0b1010, "read-only");
        config.write(msi.at + MASK, &0b10u32.to_le_bytes());
        let vectors: Vec<u16> = msi.take_ready(&mut config).iter().map(|v| v.0).collect();
        assert_eq!(vectors, [3]);
        assert!(msi.take_ready(&mut config).is_empty());
    }

    #[test]
    fn more_messages_than_there_are_are_32() {
        for enable in 5..8 {
            let (config, msi) = rig(1 | enable << 4);
            assert_eq!(msi.vectors(&config), 32);
        }
    }
}
