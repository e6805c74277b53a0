//! The configuration space of a type-0 function: registers, BARs that size and move, capabilities.

use super::CONFIG_SIZE;
use crate::board::snapshot::{Hex, StateError, ensure};

/// Command register.
const COMMAND: u16 = 0x04;
/// Command\[1\]: Memory Space Enable.
const MEMORY_ENABLE: u8 = 1 << 1;
/// Command\[2\]: Bus Master Enable.
const BUS_MASTER: u16 = 1 << 2;
/// Command\[10\]: Interrupt Disable.
const INTERRUPT_DISABLE: u16 = 1 << 10;
/// Status register.
const STATUS: usize = 0x06;
/// Status\[3\]: Interrupt Status.
const INTERRUPT_STATUS: u8 = 1 << 3;
/// Status\[4\]: Capabilities List.
const CAPABILITIES_LIST: u8 = 1 << 4;
/// Revision ID.
const REVISION: usize = 0x08;
/// BAR 0.
const BARS: usize = 0x10;
/// Capabilities Pointer.
const CAPABILITIES: usize = 0x34;
/// Interrupt Line.
const INTERRUPT_LINE: usize = 0x3c;
/// Interrupt Pin.
const INTERRUPT_PIN: usize = 0x3d;
/// Where the first capability is put: behind the type-0 header.
const FIRST_CAPABILITY: usize = 0x40;
/// Where the first extended capability is put, by the specification.
const FIRST_EXTENDED: usize = 0x100;

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number, 0–5; of a 64-bit BAR, 0–4.
    pub index: usize,
    /// Its size in bytes: a power of two, 16 or more.
    pub size: u32,
}

#[derive(Clone, Copy, Debug)]
struct PlacedBar {
    index: usize,
    size: u64,
    /// It takes two registers.
    wide: bool,
}

/// Bytes, and which of their bits software can write.
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE as usize]>,
    /// What `bytes` is after a reset of the function.
    initial: Box<[u8; CONFIG_SIZE as usize]>,
    writable: Box<[u8; CONFIG_SIZE as usize]>,
    bars: Vec<PlacedBar>,
    next_capability: usize,
    /// Where the next capability's offset is to be written.
    link: usize,
    /// Where the next extended capability goes, and the header of the last one.
    next_extended: usize,
    last_extended: Option<usize>,
}

impl ConfigSpace {
    /// A type-0 header. `class` is class code, subclass and programming interface.
    pub fn new(vendor: u16, device: u16, class: [u8; 3]) -> Self {
        let mut space = Self {
            bytes: Box::new([0; CONFIG_SIZE as usize]),
            initial: Box::new([0; CONFIG_SIZE as usize]),
            writable: Box::new([0; CONFIG_SIZE as usize]),
            bars: Vec::new(),
            next_capability: FIRST_CAPABILITY,
            link: CAPABILITIES,
            next_extended: FIRST_EXTENDED,
            last_extended: None,
        };
        space.set(0x00, &vendor.to_le_bytes());
        space.set(0x02, &device.to_le_bytes());
        space.set(0x09, &[class[2], class[1], class[0]]);
        space.set(0x2c, &vendor.to_le_bytes());
        space.set(0x2e, &device.to_le_bytes());
        // Memory Space Enable, Bus Master Enable, Interrupt Disable.
        space.allow(COMMAND.into(), &[0x06, 0x04]);
        // Interrupt Line belongs to software.
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets the Revision ID.
    #[must_use]
    pub fn revision(mut self, revision: u8) -> Self {
        self.set(REVISION, &[revision]);
        self
    }

    /// Adds a 32-bit, not prefetchable memory BAR, which firmware has put at `address`.
    pub fn add_bar(&mut self, bar: Bar, address: u32) {
        debug_assert!(bar.index < 6 && bar.size >= 16 && bar.size.is_power_of_two());
        let at = BARS + 4 * bar.index;
        self.put(at, &address.to_le_bytes());
        // Writing all ones and reading back yields the size, because the address bits below it
        // cannot be written.
        self.allow(at, &(!(bar.size - 1)).to_le_bytes());
        self.bars.push(PlacedBar {
            index: bar.index,
            size: bar.size.into(),
            wide: false,
        });
    }

    /// Adds a 64-bit, prefetchable memory BAR of `size` bytes, a power of two, which firmware has
    /// put at `address`. It takes the registers of BAR `index` and of the next one.
    pub fn add_bar_64(&mut self, index: usize, size: u64, address: u64) {
        debug_assert!(index < 5 && size >= 16 && size.is_power_of_two());
        /// Type 64-bit, prefetchable.
        const KIND: u8 = 0b1100;
        let at = BARS + 4 * index;
        self.set(at, &[KIND]);
        self.put(at, &(address | u64::from(KIND)).to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
        self.bars.push(PlacedBar {
            index,
            size,
            wide: true,
        });
    }

    /// Gives the function INTA# (1) to INTD# (4), which firmware has routed to `line`.
    pub fn set_interrupt_pin(&mut self, pin: u8, line: u8) {
        self.set(INTERRUPT_PIN, &[pin]);
        self.put(INTERRUPT_LINE, &[line]);
    }

    /// Appends a capability: its ID, the bytes behind the two-byte header and which bits of them
    /// software can write. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.next_capability;
        debug_assert!(at + 2 + body.len() <= FIRST_EXTENDED);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(self.link, &[at as u8]);
        let status = self.bytes[STATUS] | CAPABILITIES_LIST;
        self.set(STATUS, &[status]);
        self.link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at as u16
    }

    /// Appends an extended capability: its ID and version, the bytes behind the four-byte header
    /// and which bits of them software can write. Returns its offset. Software finds it only if the
    /// function has a PCI Express capability.
    pub fn add_extended(&mut self, id: u16, version: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.next_extended;
        debug_assert!(at + 4 + body.len() <= self.bytes.len() && version < 16);
        let header = u32::from(id) | u32::from(version) << 16;
        self.set(at, &header.to_le_bytes());
        self.set(at + 4, body);
        self.allow(at + 4, writable);
        if let Some(last) = self.last_extended {
            // Next Capability Offset is [31:20] of the header.
            let link = self.dword(last as u16) | (at as u32) << 20;
            self.set(last, &link.to_le_bytes());
        }
        self.last_extended = Some(at);
        self.next_extended = (at + 4 + body.len()).next_multiple_of(4);
        at as u16
    }

    /// Switches memory decoding on, as firmware leaves it.
    pub fn enable_memory(&mut self) {
        self.bytes[usize::from(COMMAND)] |= MEMORY_ENABLE;
    }

    /// Undoes everything that software and firmware did, as a reset of the function does.
    pub fn reset(&mut self) {
        *self.bytes = *self.initial;
    }

    /// Sets bytes, now and after each reset.
    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.put(at, bytes);
        self.initial[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets bytes until the next reset.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// What software can change, as it is.
    pub(crate) fn save(&self) -> Hex {
        Hex(self.bytes.to_vec())
    }

    /// Takes what software can change from a saved space. The rest is this function's own, or follows.
    pub(crate) fn restore(&mut self, saved: &Hex) -> Result<(), StateError> {
        ensure(
            saved.0.len() == self.bytes.len(),
            "a configuration space has 4096 bytes",
        )?;
        let masks = self.writable.iter();
        for ((byte, value), mask) in self.bytes.iter_mut().zip(&saved.0).zip(masks) {
            *byte = *byte & !mask | value & mask;
        }
        Ok(())
    }

    /// Reads registers; what lies behind the space reads as all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = self
                .bytes
                .get(usize::from(offset) + n)
                .copied()
                .unwrap_or(0xff);
        }
    }

    /// Writes the writable bits of registers.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (n, &value) in data.iter().enumerate() {
            let at = usize::from(offset) + n;
            if let (Some(byte), Some(&mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// A 16-bit register; `offset` + 1 must lie in the space.
    pub fn word(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// A 32-bit register; `offset` + 3 must lie in the space.
    pub fn dword(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Sets a 32-bit register as the function itself does, whatever software can write there.
    pub fn set_dword(&mut self, offset: u16, value: u32) {
        self.put(offset.into(), &value.to_le_bytes());
    }

    /// Whether the function may send requests: Bus Master Enable.
    pub fn bus_master(&self) -> bool {
        self.word(COMMAND) & BUS_MASTER != 0
    }

    /// Sets Interrupt Status. Returns whether the interrupt pin is to be asserted: it is unless
    /// Interrupt Disable is set.
    pub fn set_interrupt_status(&mut self, pending: bool) -> bool {
        let status = &mut self.bytes[STATUS];
        *status = *status & !INTERRUPT_STATUS | if pending { INTERRUPT_STATUS } else { 0 };
        pending && self.word(COMMAND) & INTERRUPT_DISABLE == 0
    }

    /// The BAR that decodes `gpa` now, and the offset in it.
    pub fn decode(&self, gpa: u64) -> Option<(usize, u64)> {
        self.decoding_bars().find_map(|(bar, base)| {
            let offset = gpa.checked_sub(base)?;
            (offset < bar.size).then_some((bar.index, offset))
        })
    }

    /// Where memory BAR `index` begins, if it decodes addresses now.
    pub fn base(&self, index: usize) -> Option<u64> {
        let mut bars = self.decoding_bars();
        bars.find_map(|(bar, base)| (bar.index == index).then_some(base))
    }

    fn decoding_bars(&self) -> impl Iterator<Item = (&PlacedBar, u64)> {
        let enabled = self.bytes[usize::from(COMMAND)] & MEMORY_ENABLE != 0;
        let bars = if enabled { &self.bars[..] } else { &[] };
        bars.iter().map(|bar| {
            let register = (BARS + 4 * bar.index) as u16;
            let low = u64::from(self.dword(register) & !0xf);
            let high = if bar.wide {
                u64::from(self.dword(register + 4)) << 32
            } else {
                0
            };
            (bar, high | low)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(0x1af5, 0x2048, [0xff, 0, 0]);
        space.add_bar(
            Bar {
                index: 0,
                size: 0x1000,
            },
            0xc000_0000,
        );
        space.add_bar(
            Bar {
                index: 2,
                size: 0x8000,
            },
            0xc001_0000,
        );
        space
    }

    fn dword(space: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_bar_reads_its_size_after_all_ones() {
        let mut space = space();
        space.write(0x10, &[0xff; 4]);
        assert_eq!(dword(&space, 0x10), 0xffff_f000);
        space.write(0x18, &[0xff; 4]);
        assert_eq!(dword(&space, 0x18), 0xffff_8000);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(dword(&space, 0x14), 0, "no BAR 1");
    }

    #[test]
    fn a_bar_decodes_where_it_was_moved_to() {
        let mut space = space();
        space.enable_memory();
        assert_eq!(space.decode(0xc000_0ffc), Some((0, 0xffc)));
        assert_eq!(space.decode(0xc000_1000), None);
        space.write(0x10, &0xd000_0000u32.to_le_bytes());
        assert_eq!(space.decode(0xc000_0000), None);
        assert_eq!(space.decode(0xd000_0010), Some((0, 0x10)));
        assert_eq!(space.decode(0xc001_7fff), Some((2, 0x7fff)));
    }

    #[test]
    fn a_64_bit_bar_sizes_and_moves_above_4_gib() {
        let mut space = ConfigSpace::new(0x1af5, 0x2048, [0xff, 0, 0]);
        space.add_bar_64(2, 0x2_0000, 0xc010_0000);
        space.enable_memory();
        assert_eq!(dword(&space, 0x18), 0xc010_000c);
        assert_eq!(space.decode(0xc011_ffff), Some((2, 0x1_ffff)));
        space.write(0x18, &[0xff; 8]);
        let size = u64::from(dword(&space, 0x1c)) << 32 | u64::from(dword(&space, 0x18) & !0xf);
        assert_eq!(size.wrapping_neg(), 0x2_0000);
        space.write(0x18, &0x0000_0012_3456_0000u64.to_le_bytes());
        assert_eq!(space.decode(0x12_3456_0004), Some((2, 4)));
        assert_eq!(space.decode(0x3456_0004), None);
        assert_eq!(dword(&space, 0x18) & 0xf, 0xc, "its kind is read-only");
    }

    #[test]
    fn a_bar_at_the_end_of_the_address_space_decodes_to_its_last_byte() {
        let mut space = ConfigSpace::new(0x1af5, 0x2048, [0xff, 0, 0]);
        space.add_bar_64(0, 0x1000, 0);
        space.enable_memory();
        space.write(0x10, &[0xff; 8]);
        assert_eq!(space.decode(u64::MAX), Some((0, 0xfff)));
        assert_eq!(space.decode(0), None);
    }

    #[test]
    fn a_reset_takes_back_what_software_and_firmware_wrote() {
        let mut space = space();
        let capability = space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        space.set_interrupt_pin(1, 21);
        space.enable_memory();
        space.write(0x04, &[0xff; 2]);
        space.write(capability + 2, &[0xff; 2]);
        space.write(0x3c, &[9]);
        space.reset();
        assert_eq!((space.word(0x04), space.word(capability + 2)), (0, 0));
        assert_eq!((dword(&space, 0x10), dword(&space, 0x18)), (0, 0));
        assert_eq!(space.word(0x3c), 1 << 8, "the pin stays, the line is gone");
        assert_eq!(dword(&space, 0), 0x2048_1af5);
        assert_eq!(space.word(0x06) & 0x10, 0x10);
    }

    #[test]
    fn extended_capabilities_are_linked_from_100h_on() {
        let mut space = space();
        assert_eq!(dword(&space, 0x100), 0, "an empty list");
        let first = space.add_extended(0x1b, 1, &[4, 0x14, 0, 0], &[0, 0, 7, 0]);
        let second = space.add_extended(0x0f, 1, &[0; 4], &[0, 0, 0x1f, 0x80]);
        assert_eq!((first, second), (0x100, 0x108));
        assert_eq!(dword(&space, 0x100), 0x1081_001b);
        assert_eq!(dword(&space, 0x108), 0x0001_000f);
        space.write(0x104, &[0xff; 4]);
        assert_eq!(dword(&space, 0x104), 0x0007_1404);
    }

    #[test]
    fn interrupt_disable_keeps_the_pin_down_but_not_the_status() {
        let mut space = space();
        assert!(space.set_interrupt_status(true));
        assert_eq!(space.word(0x06) & 8, 8);
        space.write(0x04, &INTERRUPT_DISABLE.to_le_bytes());
        assert!(!space.set_interrupt_status(true));
        assert_eq!(space.word(0x06) & 8, 8);
        assert!(!space.set_interrupt_status(false));
        assert_eq!(space.word(0x06) & 8, 0);
    }

    #[test]
    fn no_bar_decodes_without_memory_space_enable() {
        let mut space = space();
        assert_eq!(space.decode(0xc000_0000), None);
        space.write(0x04, &[2]);
        assert_eq!(space.decode(0xc000_0000), Some((0, 0)));
    }

    #[test]
    fn identity_is_read_only_and_capabilities_are_linked() {
        let mut space = space();
        assert_eq!(space.word(0x06) & 0x10, 0);
        let first = space.add_capability(0x05, &[0; 8], &[0; 8]);
        let second = space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        assert_eq!((first, second), (0x40, 0x4c));
        assert_eq!(space.word(0x06) & 0x10, 0x10);
        assert_eq!(space.word(0x34) & 0xff, 0x40);
        assert_eq!(space.word(0x40), 0x4c05);
        assert_eq!(space.word(0x4c), 0x0011);
        space.write(0x00, &[0; 4]);
        assert_eq!(dword(&space, 0), 0x2048_1af5);
        space.write(0x4c, &[0xff; 4]);
        assert_eq!(dword(&space, 0x4c), 0xc000_0011);
    }

    #[test]
    fn accesses_across_the_end_of_the_space_are_harmless() {
        let mut space = space();
        space.write(0xffe, &[0xff; 8]);
        let mut data = [0; 8];
        space.read(0xffe, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }
}
