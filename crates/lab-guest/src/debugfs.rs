//! What the driver's debugfs files say: `mmio` and `capability`, `devtbl`, `irqtbl`, `cmdbuf`.

/// The value in `Offset:0x18 Value:0x000c28003203f48d`.
pub fn register(text: &str) -> Option<u64> {
    let (_, value) = text.split_once("Value:0x")?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// A device table entry, in quadwords from the lowest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dte(pub [u64; 4]);

impl Dte {
    /// Reads the entry in `devtbl`: a line of headings, and `<address> <q3> <q2> <q1> <q0> iommu0`.
    pub fn parse(text: &str) -> Option<Self> {
        let line = text
            .lines()
            .find(|line| line.contains(" iommu") && !line.contains("QWORD"))?;
        let mut words = line.split_whitespace().skip(1);
        let mut entry = [0; 4];
        for quadword in entry.iter_mut().rev() {
            *quadword = u64::from_str_radix(words.next()?, 16).ok()?;
        }
        Some(Self(entry))
    }

    /// V: the entry is valid.
    pub const fn valid(&self) -> bool {
        self.0[0] & 1 != 0
    }

    /// TV: so is what it says of translation.
    pub const fn translation_valid(&self) -> bool {
        self.0[0] & 2 != 0
    }

    /// The paging mode: levels of the host's table, 0 for none.
    pub const fn mode(&self) -> u8 {
        (self.0[0] >> 9) as u8 & 7
    }

    /// GV: there is a guest table.
    pub const fn guest(&self) -> bool {
        self.0[0] >> 55 & 1 != 0
    }

    /// GIoV: it translates requests without PASID, too.
    pub const fn guest_io(&self) -> bool {
        self.0[0] >> 54 & 1 != 0
    }

    /// HAD: accessed and dirty bits are set in the host's table; 3 for both.
    pub const fn had(&self) -> u8 {
        (self.0[0] >> 7) as u8 & 3
    }

    /// DomainID.
    pub const fn domain(&self) -> u16 {
        self.0[1] as u16
    }

    /// IV: the interrupt table is valid.
    pub const fn interrupts_valid(&self) -> bool {
        self.0[2] & 1 != 0
    }

    /// IntTabLen.
    pub const fn int_tab_len(&self) -> u8 {
        (self.0[2] >> 1) as u8 & 0xf
    }
}

/// The valid entries in `irqtbl`, `IRT[0005] <high> <low>` or, of 32 bits, `IRT[0005] <entry>`:
/// index, and the entry with its high half first.
pub fn irtes(text: &str) -> Vec<(u16, u64, u64)> {
    let entry = |line: &str| {
        let (index, entry) = line.strip_prefix("IRT[")?.split_once("] ")?;
        let mut words = entry
            .split_whitespace()
            .map(|word| u64::from_str_radix(word, 16));
        let first = words.next()?.ok()?;
        let (high, low) = match words.next() {
            Some(low) => (first, low.ok()?),
            None => (0, first),
        };
        Some((index.parse().ok()?, high, low))
    };
    text.lines().filter_map(entry).collect()
}

/// Head and tail in `CMD Buffer Head Offset:12 Tail Offset:12`.
pub fn command_buffer(text: &str) -> Option<(u32, u32)> {
    let line = text
        .lines()
        .next()?
        .strip_prefix("CMD Buffer Head Offset:")?;
    let (head, tail) = line.split_once(" Tail Offset:")?;
    Some((head.parse().ok()?, tail.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_hexadecimal_after_their_offset() {
        let text = "Offset:0x18 Value:0x000c28003203f48d\n";
        assert_eq!(register(text), Some(0x000c_2800_3203_f48d));
        assert_eq!(register("Please provide mmio register's offset\n"), None);
    }

    #[test]
    fn a_device_table_entry_is_printed_from_its_top() {
        let text = "DeviceId             QWORD[3]         QWORD[2]         QWORD[1]         QWORD[0] iommu\n\
                    0000:00:05.0 0000000000000000 1000000101234017 0000000000000005 6000000101235603 iommu0\n";
        let entry = Dte::parse(text).unwrap();
        assert!(entry.valid() && entry.translation_valid() && !entry.guest());
        assert_eq!((entry.mode(), entry.had()), (3, 0));
        let guest = Dte([0xc0_0000_0000_0183, 0, 0, 0]);
        assert!(guest.guest() && guest.guest_io());
        assert_eq!((guest.mode(), guest.had()), (0, 3));
        assert_eq!(entry.domain(), 5);
        assert!(entry.interrupts_valid());
        assert_eq!(entry.int_tab_len(), 11);
        assert_eq!(
            Dte::parse("Enter a valid device ID to 'devid' file\n"),
            None
        );
    }

    #[test]
    fn interrupt_table_entries_have_32_or_128_bits() {
        let text = "DeviceId 0000:00:05.0\nIRT[0005] 0000000000000022 0000000000000141\n\
                    IRT[2047] 0000000000000023 0000000000000041\n\n";
        assert_eq!(irtes(text), [(5, 0x22, 0x141), (2047, 0x23, 0x41)]);
        assert_eq!(irtes("IRT[0001] 00220141\n"), [(1, 0, 0x22_0141)]);
        assert_eq!(irtes("Interrupt remapping is disabled\n"), []);
    }

    #[test]
    fn the_command_buffers_pointers_are_entries() {
        let text = "CMD Buffer Head Offset:12 Tail Offset:511\n  0: 1 2 3 4\n";
        assert_eq!(command_buffer(text), Some((12, 511)));
        assert_eq!(command_buffer(""), None);
    }
}
