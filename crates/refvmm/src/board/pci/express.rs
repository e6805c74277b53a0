//! The PCI Express capability of a root complex integrated endpoint, and the extended capabilities of
//! shared virtual addressing: PASID, ATS and PRI.

use super::ConfigSpace;

/// Capability ID: PCI Express.
const CAPABILITY: u8 = 0x10;
/// Capability version 2, root complex integrated endpoint.
const FLAGS: u16 = 2 | 9 << 4;
/// Device Capabilities: extended tags, role-based error reporting, Function Level Reset.
const DEVICE_CAPABILITIES: u32 = 1 << 5 | 1 << 15 | 1 << 28;
/// Device Control, from the start of the capability.
const DEVICE_CONTROL: u16 = 8;
/// Device Control\[15\]: Initiate Function Level Reset, as a bit of its upper byte.
const INITIATE_RESET: u8 = 1 << 7;
/// Device Control 2\[6\]: AtomicOp Requester Enable.
const ATOMIC_REQUESTER: u8 = 1 << 6;
/// Device Capabilities 2\[21\]: End-End TLP Prefix Supported, which a PASID takes.
const END_END_PREFIX: u32 = 1 << 21;

/// Extended capability ID: PASID.
const PASID: u16 = 0x1b;
/// Extended capability ID: Address Translation Services.
const ATS: u16 = 0x0f;
/// Extended capability ID: Page Request Interface.
const PRI: u16 = 0x13;
/// PASIDs have 16 bits, as many as the least of the known IOMMUs.
const PASID_BITS: u8 = 16;
/// Page requests that can be outstanding.
const PAGE_REQUESTS: u32 = 32;

/// The PCI Express capability in a [`ConfigSpace`].
#[derive(Clone, Copy, Debug)]
pub struct Express {
    at: u16,
}

impl Express {
    /// Appends the capability; `prefixes` if requests can carry a PASID.
    pub fn add(config: &mut ConfigSpace, prefixes: bool) -> Self {
        let mut body = [0; 58];
        body[..2].copy_from_slice(&FLAGS.to_le_bytes());
        body[2..6].copy_from_slice(&DEVICE_CAPABILITIES.to_le_bytes());
        // Integrated endpoints have no link: its registers are 0. Those of slot and root are, too.
        let capabilities_2 = if prefixes { END_END_PREFIX } else { 0 };
        body[34..38].copy_from_slice(&capabilities_2.to_le_bytes());
        let mut writable = [0; 58];
        // Error reporting, relaxed ordering, payload and read request sizes, tags, no snoop; not the
        // reset bit, which always reads as 0.
        writable[6..8].copy_from_slice(&0x79ffu16.to_le_bytes());
        writable[38] = ATOMIC_REQUESTER;
        Self {
            at: config.add_capability(CAPABILITY, &body, &writable),
        }
    }

    /// Whether a write to configuration space asks for a Function Level Reset.
    pub fn is_reset(&self, offset: u16, data: &[u8]) -> bool {
        let byte = (self.at + DEVICE_CONTROL + 1).checked_sub(offset);
        byte.and_then(|at| data.get(usize::from(at)))
            .is_some_and(|value| value & INITIATE_RESET != 0)
    }
}

/// The capabilities of shared virtual addressing that a function has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sharing {
    pasid: Option<u16>,
    ats: Option<u16>,
    pri: Option<u16>,
}

impl Sharing {
    /// Appends those that are wanted.
    pub fn add(config: &mut ConfigSpace, pasid: bool, ats: bool, pri: bool) -> Self {
        Self {
            pasid: pasid.then(|| add_pasid(config)),
            ats: ats.then(|| add_ats(config)),
            pri: pri.then(|| add_pri(config)),
        }
    }

    /// A 16-bit control register; 0 if the function does not have it.
    fn control(config: &ConfigSpace, at: Option<u16>, register: u16) -> u16 {
        at.map_or(0, |at| config.word(at + register))
    }

    /// Whether requests may carry a PASID, its Execute Requested bit, and its Privileged Mode
    /// Requested bit.
    pub fn pasid(&self, config: &ConfigSpace) -> (bool, bool, bool) {
        let control = Self::control(config, self.pasid, 6);
        let enable = control & 1 != 0;
        (
            enable,
            enable && control & 2 != 0,
            enable && control & 4 != 0,
        )
    }

    /// Whether the function may ask for translations.
    pub fn ats(&self, config: &ConfigSpace) -> bool {
        Self::control(config, self.ats, 6) & 1 << 15 != 0
    }

    /// Whether the function may ask for pages.
    pub fn pri(&self, config: &ConfigSpace) -> bool {
        Self::control(config, self.pri, 4) & 1 != 0
    }
}

/// Appends a PASID capability, with execute permission and privileged mode.
fn add_pasid(config: &mut ConfigSpace) -> u16 {
    // Capability: execute 1, privileged 2, width in [12:8]. Control: enable 0, execute 1,
    // privileged 2.
    config.add_extended(PASID, 1, &[0b110, PASID_BITS, 0, 0], &[0, 0, 0b111, 0])
}

/// Appends an ATS capability: any number of invalidations, page-aligned requests.
fn add_ats(config: &mut ConfigSpace) -> u16 {
    // Capability: Invalidate Queue Depth [4:0] 0 for 32, Page Aligned Request 5. Control: STU [4:0],
    // enable 15.
    config.add_extended(ATS, 1, &[1 << 5, 0, 0, 0], &[0, 0, 0x1f, 0x80])
}

/// Appends a Page Request Interface capability.
fn add_pri(config: &mut ConfigSpace) -> u16 {
    let mut body = [0; 12];
    // Status: Stopped 8, PRG Response PASID Required 15.
    body[2..4].copy_from_slice(&(1u16 << 8 | 1 << 15).to_le_bytes());
    body[4..8].copy_from_slice(&PAGE_REQUESTS.to_le_bytes());
    let mut writable = [0; 12];
    // Control: enable 0. Reset 1 takes effect at once and reads as 0. Then the allocation.
    writable[0] = 1;
    writable[8..].fill(0xff);
    config.add_extended(PRI, 1, &body, &writable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_the_reset_bit_is_seen_at_every_width_and_never_sticks() {
        let mut config = ConfigSpace::new(0x1af5, 0x2048, [0xff, 0, 0]);
        let express = Express::add(&mut config, false);
        let control = express.at + DEVICE_CONTROL;
        for (offset, data) in [
            (control, &[0, 0x80][..]),
            (control + 1, &[0x80]),
            (control, &[0, 0x80, 0, 0]),
            (control - 4, &[0, 0, 0, 0, 0, 0x80, 0, 0]),
        ] {
            assert!(express.is_reset(offset, data), "{offset:#x} {data:x?}");
            config.write(offset, data);
            assert_eq!(config.word(control) & 0x8000, 0);
        }
        for (offset, data) in [
            (control, &[0x80, 0][..]),
            (control, &[0x80]),
            (control + 2, &[0x80, 0x80]),
            (control - 4, &[0x80; 4]),
        ] {
            assert!(!express.is_reset(offset, data), "{offset:#x} {data:x?}");
        }
    }

    #[test]
    fn it_is_an_integrated_endpoint_that_can_be_reset() {
        let mut config = ConfigSpace::new(0x1af5, 0x2048, [0xff, 0, 0]);
        let express = Express::add(&mut config, true);
        assert_eq!(config.word(express.at + 2) >> 4 & 0xf, 9);
        assert_eq!(config.dword(express.at + 4) >> 28 & 1, 1);
        assert_eq!(config.dword(express.at + 0x24) >> 21 & 1, 1);
    }
}
