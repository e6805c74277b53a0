//! The MSI-X table and its pending bits, by PCI Express 6.1.4.

use amdvi_guest::endpoint::VECTORS;
use amdvi_regs::msi::Msi;

/// Bytes of a table entry.
const ENTRY: usize = 16;
/// Bytes of the table.
const TABLE: usize = VECTORS as usize * ENTRY;
/// Bytes of the pending bits.
const PENDING: usize = VECTORS as usize / 8;
/// Vector Control\[0\]: Mask Bit, the only defined bit there.
const MASK: u32 = 1;

/// What becomes of a request to send a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// This message is to be sent.
    Send(Msi),
    /// Not sent: MSI-X is disabled, or the function or the vector is masked.
    Masked,
}

/// The table, the pending bits and the two control bits that gate them.
pub(super) struct Msix {
    table: Box<[u8]>,
    pending: [u64; PENDING / 8],
    enabled: bool,
    function_masked: bool,
}

impl Msix {
    /// The state after reset: disabled, every vector masked.
    pub(super) fn new() -> Self {
        let mut table = vec![0; TABLE].into_boxed_slice();
        for entry in table.chunks_exact_mut(ENTRY) {
            entry[12] = MASK as u8;
        }
        Self {
            table,
            pending: [0; PENDING / 8],
            enabled: false,
            function_masked: false,
        }
    }

    fn dword(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.table[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn masked(&self, vector: u16) -> bool {
        self.function_masked || self.dword(usize::from(vector) * ENTRY + 12) & MASK != 0
    }

    fn message(&self, vector: u16) -> Msi {
        let at = usize::from(vector) * ENTRY;
        Msi {
            address: u64::from(self.dword(at) & !3) | u64::from(self.dword(at + 4)) << 32,
            data: self.dword(at + 8),
        }
    }

    /// The device wants to send `vector`. A masked vector becomes pending; with MSI-X disabled, or
    /// without such a vector, the request is lost.
    pub(super) fn request(&mut self, vector: u32) -> Request {
        let Ok(vector) = u16::try_from(vector) else {
            return Request::Masked;
        };
        if vector >= VECTORS || !self.enabled {
            return Request::Masked;
        }
        if self.masked(vector) {
            self.pending[usize::from(vector / 64)] |= 1 << (vector % 64);
            return Request::Masked;
        }
        Request::Send(self.message(vector))
    }

    /// Takes the pending messages that are no longer masked, in order of their vectors.
    pub(super) fn take_ready(&mut self) -> Vec<Msi> {
        let mut ready = Vec::new();
        if !self.enabled || self.function_masked {
            return ready;
        }
        for word in 0..self.pending.len() {
            let mut bits = self.pending[word];
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                let vector = (word * 64) as u16 + bit as u16;
                if !self.masked(vector) {
                    self.pending[word] &= !(1 << bit);
                    ready.push(self.message(vector));
                }
            }
        }
        ready
    }

    /// Follows Message Control: enable\[15\] and function mask\[14\].
    pub(super) fn set_control(&mut self, control: u16) {
        self.enabled = control & 1 << 15 != 0;
        self.function_masked = control & 1 << 14 != 0;
        if !self.enabled {
            self.pending.fill(0);
        }
    }

    /// Reads the table.
    pub(super) fn table_read(&self, offset: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = self.table.get(offset as usize + n).copied().unwrap_or(0xff);
        }
    }

    /// Writes the table; reserved bits of Vector Control stay zero.
    pub(super) fn table_write(&mut self, offset: u64, data: &[u8]) {
        for (n, &value) in data.iter().enumerate() {
            let at = offset as usize + n;
            if let Some(byte) = self.table.get_mut(at) {
                *byte = match at % ENTRY {
                    12 => value & MASK as u8,
                    13..=15 => 0,
                    _ => value,
                };
            }
        }
    }

    /// Reads the pending bits.
    pub(super) fn pending_read(&self, offset: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            let at = offset as usize + n;
            *byte = self
                .pending
                .get(at / 8)
                .map_or(0, |word| word.to_le_bytes()[at % 8]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENABLE: u16 = 1 << 15;
    const FUNCTION_MASK: u16 = 1 << 14;

    fn program(msix: &mut Msix, vector: u16, data: u32, masked: bool) {
        let at = u64::from(vector) * 16;
        msix.table_write(at, &0xfee0_0004u64.to_le_bytes());
        msix.table_write(at + 8, &data.to_le_bytes());
        msix.table_write(at + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(msix: &Msix, vector: u16) -> bool {
        let mut byte = [0];
        msix.pending_read(u64::from(vector / 8), &mut byte);
        byte[0] >> (vector % 8) & 1 == 1
    }

    #[test]
    fn every_vector_is_masked_after_reset() {
        let mut msix = Msix::new();
        msix.set_control(ENABLE);
        assert_eq!(msix.request(2047), Request::Masked);
        assert!(pending(&msix, 2047));
    }

    #[test]
    fn an_unmasked_vector_sends_its_entry() {
        let mut msix = Msix::new();
        program(&mut msix, 2047, 0x7ff, false);
        assert_eq!(msix.request(2047), Request::Masked, "MSI-X is disabled");
        msix.set_control(ENABLE);
        assert!(!pending(&msix, 2047), "nothing pends while disabled");
        let expected = Msi {
            address: 0xfee0_0004,
            data: 0x7ff,
        };
        assert_eq!(msix.request(2047), Request::Send(expected));
    }

    #[test]
    fn a_pending_vector_is_sent_once_when_unmasked() {
        let mut msix = Msix::new();
        msix.set_control(ENABLE);
        program(&mut msix, 3, 0x33, true);
        program(&mut msix, 64, 0x40, true);
        msix.request(3);
        msix.request(3);
        msix.request(64);
        assert!(msix.take_ready().is_empty());
        program(&mut msix, 3, 0x33, false);
        assert_eq!(
            msix.take_ready(),
            [Msi {
                address: 0xfee0_0004,
                data: 0x33
            }]
        );
        assert!(!pending(&msix, 3) && pending(&msix, 64));
        assert!(msix.take_ready().is_empty());
    }

    #[test]
    fn the_function_mask_holds_every_vector_back() {
        let mut msix = Msix::new();
        program(&mut msix, 0, 0x30, false);
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(msix.request(0), Request::Masked);
        assert!(msix.take_ready().is_empty());
        msix.set_control(ENABLE);
        assert_eq!(msix.take_ready().len(), 1);
    }

    #[test]
    fn a_vector_behind_the_table_is_not_sent() {
        let mut msix = Msix::new();
        msix.set_control(ENABLE);
        assert_eq!(msix.request(2048), Request::Masked);
        assert_eq!(msix.request(u32::MAX), Request::Masked);
    }

    #[test]
    fn reserved_bits_of_vector_control_do_not_stick() {
        let mut msix = Msix::new();
        msix.table_write(12, &[0xff; 4]);
        let mut control = [0; 4];
        msix.table_read(12, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
    }
}
