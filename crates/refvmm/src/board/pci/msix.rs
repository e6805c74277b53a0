//! The MSI-X capability, table and pending bits of a function, by PCI Express 6.1.4.

use amdvi_regs::msi::Msi;

use serde::{Deserialize, Serialize};

use super::ConfigSpace;
use crate::board::snapshot::{Hex, StateError, ensure};

/// Capability ID.
const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
const ENTRY: usize = 16;
/// The most vectors that a table has.
const MAX_VECTORS: u16 = 2048;
/// Vector Control\[0\]: Mask Bit, the only defined bit there.
const MASK: u32 = 1;

/// Where the table or the pending bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the BAR.
    pub bar: u8,
    /// The offset in it, a multiple of 8.
    pub offset: u32,
}

impl Place {
    /// The dword of the capability that says so: offset\[31:3\] and BAR\[2:0\].
    fn bytes(self) -> [u8; 4] {
        (self.offset & !7 | u32::from(self.bar & 7)).to_le_bytes()
    }
}

/// What becomes of a request to send a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// This message is to be sent.
    Send(Msi),
    /// Not sent: MSI-X is disabled, or the function or the vector is masked.
    Masked,
}

/// The table and the pending bits; the control bits are configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MsixState {
    table: Hex,
    pending: Vec<u64>,
}

/// The table, the pending bits and the two control bits that gate them.
#[derive(Clone, Debug)]
pub struct Msix {
    vectors: u16,
    table: Box<[u8]>,
    pending: Box<[u64]>,
    enabled: bool,
    function_masked: bool,
}

impl Msix {
    /// The state after reset of a table with `vectors` entries, 1–2048: disabled, every vector
    /// masked.
    pub fn new(vectors: u16) -> Self {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        let mut table = vec![0; usize::from(vectors) * ENTRY].into_boxed_slice();
        for entry in table.chunks_exact_mut(ENTRY) {
            entry[12] = MASK as u8;
        }
        Self {
            vectors,
            table,
            pending: vec![0; usize::from(vectors).div_ceil(64)].into_boxed_slice(),
            enabled: false,
            function_masked: false,
        }
    }

    /// Appends the capability to `config`. Returns the offset of Message Control, which is to be
    /// given to [`set_control`](Self::set_control) whenever it may have been written.
    pub fn add_capability(&self, config: &mut ConfigSpace, table: Place, pending: Place) -> u16 {
        let mut body = [0; 10];
        // Message Control\[10:0\]: Table Size, less one.
        body[..2].copy_from_slice(&(self.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.bytes());
        body[6..].copy_from_slice(&pending.bytes());
        config.add_capability(CAPABILITY, &body, &[0, 0xc0]) + 2
    }

    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        self.table.len() as u64
    }

    /// Bytes of the pending bits: whole qwords.
    pub fn pending_size(&self) -> u64 {
        self.pending.len() as u64 * 8
    }

    /// Whether MSI-X is enabled, masked or not.
    pub fn enabled(&self) -> bool {
        self.enabled
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
    pub fn request(&mut self, vector: u32) -> Request {
        let Ok(vector) = u16::try_from(vector) else {
            return Request::Masked;
        };
        if vector >= self.vectors || !self.enabled {
            return Request::Masked;
        }
        if self.masked(vector) {
            self.pending[usize::from(vector / 64)] |= 1 << (vector % 64);
            return Request::Masked;
        }
        Request::Send(self.message(vector))
    }

    /// Takes the pending messages that are no longer masked, in order of their vectors.
    pub fn take_ready(&mut self) -> Vec<Msi> {
        self.take_ready_vectors()
            .into_iter()
            .map(|(_, msi)| msi)
            .collect()
    }

    /// As [`take_ready`](Self::take_ready), with the vectors.
    pub fn take_ready_vectors(&mut self) -> Vec<(u16, Msi)> {
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
                    ready.push((vector, self.message(vector)));
                }
            }
        }
        ready
    }

    /// Follows Message Control: enable\[15\] and function mask\[14\].
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & 1 << 15 != 0;
        self.function_masked = control & 1 << 14 != 0;
        if !self.enabled {
            self.pending.fill(0);
        }
    }

    pub(crate) fn save(&self) -> MsixState {
        MsixState {
            table: Hex(self.table.to_vec()),
            pending: self.pending.to_vec(),
        }
    }

    /// Takes over a saved table, and Message Control as it is in configuration space.
    pub(crate) fn restore(&mut self, state: &MsixState, control: u16) -> Result<(), StateError> {
        ensure(
            state.table.0.len() == self.table.len() && state.pending.len() == self.pending.len(),
            "an MSI-X table with another number of vectors",
        )?;
        self.set_control(control);
        self.table_write(0, &state.table.0);
        if self.enabled {
            for (n, (word, saved)) in self.pending.iter_mut().zip(&state.pending).enumerate() {
                let vectors = usize::from(self.vectors).saturating_sub(n * 64);
                let exist = u64::MAX
                    .checked_shr(64 - vectors.min(64) as u32)
                    .unwrap_or(0);
                *word = saved & exist;
            }
        }
        Ok(())
    }

    /// Reads the table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = self.table.get(offset as usize + n).copied().unwrap_or(0xff);
        }
    }

    /// Writes the table; reserved bits of Vector Control stay zero.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
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
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
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
        let mut msix = Msix::new(2048);
        msix.set_control(ENABLE);
        assert_eq!(msix.request(2047), Request::Masked);
        assert!(pending(&msix, 2047));
    }

    #[test]
    fn an_unmasked_vector_sends_its_entry() {
        let mut msix = Msix::new(2048);
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
        let mut msix = Msix::new(2048);
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
        let mut msix = Msix::new(2048);
        program(&mut msix, 0, 0x30, false);
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(msix.request(0), Request::Masked);
        assert!(msix.take_ready().is_empty());
        msix.set_control(ENABLE);
        assert_eq!(msix.take_ready().len(), 1);
    }

    #[test]
    fn a_vector_behind_the_table_is_not_sent() {
        let mut msix = Msix::new(2048);
        msix.set_control(ENABLE);
        assert_eq!(msix.request(2048), Request::Masked);
        assert_eq!(msix.request(u32::MAX), Request::Masked);
        let mut small = Msix::new(3);
        small.set_control(ENABLE);
        assert_eq!(small.request(3), Request::Masked);
        assert!(!pending(&small, 3));
        assert_eq!((small.table_size(), small.pending_size()), (48, 8));
    }

    #[test]
    fn the_capability_says_how_many_vectors_there_are_and_where() {
        let mut config = ConfigSpace::new(1, 2, [0; 3]);
        let table = Place {
            bar: 2,
            offset: 0x8000,
        };
        let pending = Place {
            bar: 4,
            offset: 0x10,
        };
        let control = Msix::new(2048).add_capability(&mut config, table, pending);
        assert_eq!((control, config.word(control)), (0x42, 2047));
        assert_eq!((config.word(0x44), config.word(0x46)), (0x8002, 0));
        assert_eq!((config.word(0x48), config.word(0x4a)), (0x14, 0));
        config.write(control, &[0xff; 10]);
        assert_eq!(config.word(control), 0xc000 | 2047);
        assert_eq!(config.word(0x44), 0x8002);
    }

    #[test]
    fn reserved_bits_of_vector_control_do_not_stick() {
        let mut msix = Msix::new(2048);
        msix.table_write(12, &[0xff; 4]);
        let mut control = [0; 4];
        msix.table_read(12, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
    }
}
