//! The configuration space of a type-0 function: registers, BARs that size and move, capabilities.

use super::CONFIG_SIZE;

/// Command register.
const COMMAND: usize = 0x04;
/// Command\[1\]: Memory Space Enable.
const MEMORY_ENABLE: u8 = 1 << 1;
/// Status register.
const STATUS: usize = 0x06;
/// Status\[4\]: Capabilities List.
const CAPABILITIES_LIST: u8 = 1 << 4;
/// BAR 0.
const BARS: usize = 0x10;
/// Capabilities Pointer.
const CAPABILITIES: usize = 0x34;
/// Where the first capability is put: behind the type-0 header.
const FIRST_CAPABILITY: usize = 0x40;

/// A 32-bit memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number, 0–5.
    pub index: usize,
    /// Its size in bytes: a power of two, 16 or more.
    pub size: u32,
}

/// Bytes, and which of their bits software can write. A clone of the untouched space is what a reset
/// restores.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE as usize]>,
    writable: Box<[u8; CONFIG_SIZE as usize]>,
    bars: Vec<Bar>,
    next_capability: usize,
    /// Where the next capability's offset is to be written.
    link: usize,
}

/// Revision ID.
const REVISION: usize = 0x08;
/// Header Type, and the bit in it that says that there are more functions.
const HEADER_TYPE: usize = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;

impl ConfigSpace {
    /// A type-0 header. `class` is class code, subclass and programming interface.
    pub fn new(vendor: u16, device: u16, class: [u8; 3]) -> Self {
        let mut space = Self {
            bytes: Box::new([0; CONFIG_SIZE as usize]),
            writable: Box::new([0; CONFIG_SIZE as usize]),
            bars: Vec::new(),
            next_capability: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        space.set(0x00, &vendor.to_le_bytes());
        space.set(0x02, &device.to_le_bytes());
        space.set(0x09, &[class[2], class[1], class[0]]);
        space.set(0x2c, &vendor.to_le_bytes());
        space.set(0x2e, &device.to_le_bytes());
        // Memory Space Enable, Bus Master Enable, Interrupt Disable.
        space.allow(COMMAND, &[0x06, 0x04]);
        // Interrupt Line belongs to software.
        space.allow(0x3c, &[0xff]);
        space
    }

    /// Says that the device has more functions than this one, function 0.
    ///
    /// A scan of the bus looks for functions 1–7 only then.
    #[must_use]
    pub fn multi_function(mut self) -> Self {
        self.bytes[HEADER_TYPE] |= MULTI_FUNCTION;
        self
    }

    /// Sets the Revision ID.
    #[must_use]
    pub fn revision(mut self, revision: u8) -> Self {
        self.bytes[REVISION] = revision;
        self
    }

    /// Adds a 32-bit, not prefetchable memory BAR at `address`.
    pub fn add_bar(&mut self, bar: Bar, address: u32) {
        debug_assert!(bar.index < 6 && bar.size >= 16 && bar.size.is_power_of_two());
        let at = BARS + 4 * bar.index;
        self.set(at, &address.to_le_bytes());
        // Writing all ones and reading back yields the size, because the address bits below it
        // cannot be written.
        self.allow(at, &(!(bar.size - 1)).to_le_bytes());
        self.bars.push(bar);
    }

    /// Appends a capability: its ID, the bytes behind the two-byte header and which bits of them
    /// software can write. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.next_capability;
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(self.link, &[at as u8]);
        self.bytes[STATUS] |= CAPABILITIES_LIST;
        self.link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at as u16
    }

    /// Switches memory decoding on, as firmware leaves it.
    pub fn enable_memory(&mut self) {
        self.bytes[COMMAND] |= MEMORY_ENABLE;
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
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

    /// The BAR that decodes `gpa` now, and the offset in it.
    pub fn decode(&self, gpa: u64) -> Option<(usize, u64)> {
        if self.bytes[COMMAND] & MEMORY_ENABLE == 0 {
            return None;
        }
        self.bars.iter().find_map(|bar| {
            let mut raw = [0; 4];
            self.read((BARS + 4 * bar.index) as u16, &mut raw);
            let base = u64::from(u32::from_le_bytes(raw) & !0xf);
            let offset = gpa.checked_sub(base)?;
            (offset < u64::from(bar.size)).then_some((bar.index, offset))
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
