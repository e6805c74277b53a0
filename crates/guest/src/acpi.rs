//! ACPI tables: RSDP → XSDT → the tables that an IOMMU driver needs.
//!
//! Table contents are not trusted: lengths are bounded and checksums verified before use.

use crate::failure::{Result, bail, ensure};
use crate::platform::Platform;

/// Longest table that is read.
const MAX_TABLE: u32 = 64 * 1024;
/// Tables must lie below this address: a payload maps no more.
const ADDRESS_LIMIT: u64 = 1 << 32;
/// Bytes of the header that every table starts with.
pub const HEADER_BYTES: u32 = 36;

/// A table whose checksum was found right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where it stands.
    pub gpa: u64,
    /// Its length in bytes, header included.
    pub length: u32,
}

impl Table {
    /// The byte at `offset`, `None` behind the end.
    pub fn u8<P: Platform + ?Sized>(&self, p: &P, offset: u32) -> Option<u8> {
        (offset < self.length).then(|| p.read_u8(self.gpa + u64::from(offset)))
    }

    /// The little-endian 32-bit word at `offset`.
    pub fn u32<P: Platform + ?Sized>(&self, p: &P, offset: u32) -> Option<u32> {
        let mut value = 0;
        for n in 0..4 {
            value |= u32::from(self.u8(p, offset.checked_add(n)?)?) << (8 * n);
        }
        Some(value)
    }

    /// The little-endian 64-bit word at `offset`.
    pub fn u64<P: Platform + ?Sized>(&self, p: &P, offset: u32) -> Option<u64> {
        let low = self.u32(p, offset)?;
        let high = self.u32(p, offset.checked_add(4)?)?;
        Some(u64::from(low) | u64::from(high) << 32)
    }

    /// Copies the table to the start of `bytes` and returns that part.
    pub fn copy<'b, P: Platform + ?Sized>(&self, p: &P, bytes: &'b mut [u8]) -> Result<&'b [u8]> {
        let length = self.length as usize;
        let room = bytes.len();
        let Some(part) = bytes.get_mut(..length) else {
            bail!("a table of {length} bytes is longer than the {room} bytes that are kept");
        };
        for (n, byte) in part.iter_mut().enumerate() {
            *byte = p.read_u8(self.gpa + n as u64);
        }
        Ok(part)
    }
}

fn text(signature: &[u8; 4]) -> &str {
    core::str::from_utf8(signature).unwrap_or("????")
}

fn sum<P: Platform + ?Sized>(p: &P, gpa: u64, bytes: u32) -> u8 {
    (0..u64::from(bytes)).fold(0, |sum, n| sum.wrapping_add(p.read_u8(gpa + n)))
}

/// Checks header, length and checksum of the table at `gpa`.
fn table<P: Platform + ?Sized>(p: &P, gpa: u64, signature: &[u8; 4]) -> Result<Table> {
    let name = text(signature);
    ensure!(
        gpa != 0 && gpa < ADDRESS_LIMIT - u64::from(MAX_TABLE),
        "{name} at {gpa:#x} lies outside the first 4 GiB"
    );
    for (n, &expected) in signature.iter().enumerate() {
        let seen = p.read_u8(gpa + n as u64);
        ensure!(
            seen == expected,
            "no {name} at {gpa:#x}: byte {n} of the signature is {seen:#04x}"
        );
    }
    let header = Table {
        gpa,
        length: HEADER_BYTES,
    };
    let length = header.u32(p, 4).unwrap_or(0);
    ensure!(
        (HEADER_BYTES..=MAX_TABLE).contains(&length),
        "{name} says that it has {length} bytes; {HEADER_BYTES} to {MAX_TABLE} are accepted"
    );
    let sum = sum(p, gpa, length);
    ensure!(
        sum == 0,
        "the bytes of {name} at {gpa:#x} add up to {sum:#04x}, not to 0"
    );
    Ok(Table { gpa, length })
}

/// The XSDT, found through the RSDP.
#[derive(Clone, Copy, Debug)]
pub struct Xsdt(Table);

impl Xsdt {
    /// Follows the RSDP; both its checksums must be right.
    pub fn find<P: Platform + ?Sized>(p: &P) -> Result<Self> {
        let rsdp = p.rsdp();
        ensure!(
            rsdp != 0 && rsdp < ADDRESS_LIMIT - 36,
            "RSDP at {rsdp:#x} lies outside the first 4 GiB"
        );
        for (n, &expected) in b"RSD PTR ".iter().enumerate() {
            let seen = p.read_u8(rsdp + n as u64);
            ensure!(
                seen == expected,
                "no RSDP at {rsdp:#x}: byte {n} of the signature is {seen:#04x}"
            );
        }
        let old = sum(p, rsdp, 20);
        ensure!(
            old == 0,
            "the first 20 bytes of the RSDP add up to {old:#04x}"
        );
        let revision = p.read_u8(rsdp + 15);
        ensure!(
            revision >= 2,
            "RSDP revision {revision} has no XSDT; 2 is needed"
        );
        let new = sum(p, rsdp, 36);
        ensure!(new == 0, "the 36 bytes of the RSDP add up to {new:#04x}");
        let whole = Table {
            gpa: rsdp,
            length: 36,
        };
        let xsdt = whole.u64(p, 24).unwrap_or(0);
        Ok(Self(table(p, xsdt, b"XSDT")?))
    }

    /// The first table with this signature; `None` when there is none, an error when it is broken.
    pub fn table<P: Platform + ?Sized>(&self, p: &P, signature: &[u8; 4]) -> Result<Option<Table>> {
        let mut offset = HEADER_BYTES;
        while let Some(gpa) = self.0.u64(p, offset) {
            offset += 8;
            if gpa == 0 || gpa >= ADDRESS_LIMIT - 4 {
                continue;
            }
            if (0..4).all(|n| p.read_u8(gpa + n) == signature[n as usize]) {
                return table(p, gpa, signature).map(Some);
            }
        }
        Ok(None)
    }
}

/// The MCFG's ECAM window of segment 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Address of bus 0 (even if the window starts with another bus).
    pub base: u64,
    /// First bus of the window.
    pub first_bus: u8,
    /// Last bus of the window.
    pub last_bus: u8,
}

impl Ecam {
    /// The first allocation of segment 0 in an MCFG.
    pub fn from_mcfg<P: Platform + ?Sized>(p: &P, mcfg: &Table) -> Result<Self> {
        let mut offset = HEADER_BYTES + 8;
        loop {
            let (Some(base), Some(info)) = (mcfg.u64(p, offset), mcfg.u32(p, offset + 8)) else {
                bail!("the MCFG has no allocation for PCI segment 0");
            };
            offset += 16;
            if info & 0xffff != 0 {
                continue;
            }
            let ecam = Self {
                base,
                first_bus: (info >> 16) as u8,
                last_bus: (info >> 24) as u8,
            };
            ensure!(
                ecam.first_bus <= ecam.last_bus
                    && base % (1 << 20) == 0
                    && base < ADDRESS_LIMIT - (256 << 20),
                "MCFG allocation {base:#x}, buses {}–{}, is not usable",
                ecam.first_bus,
                ecam.last_bus
            );
            return Ok(ecam);
        }
    }
}

/// The IOAPIC whose first pin is GSI 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its ID.
    pub id: u8,
    /// Address of its registers.
    pub address: u64,
}

impl IoApic {
    /// Looks it up in a MADT.
    pub fn from_madt<P: Platform + ?Sized>(p: &P, madt: &Table) -> Result<Option<Self>> {
        let mut offset = HEADER_BYTES + 8;
        while let (Some(kind), Some(length)) = (madt.u8(p, offset), madt.u8(p, offset + 1)) {
            ensure!(
                length >= 2,
                "MADT entry at offset {offset:#x} has length {length}"
            );
            if kind == 1 {
                let (Some(id), Some(address), Some(gsi)) = (
                    madt.u8(p, offset + 2),
                    madt.u32(p, offset + 4),
                    madt.u32(p, offset + 8),
                ) else {
                    bail!("the MADT ends within an IOAPIC entry");
                };
                if gsi == 0 {
                    return Ok(Some(Self {
                        id,
                        address: u64::from(address),
                    }));
                }
            }
            offset += u32::from(length);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    /// A table with the right checksum.
    fn put(p: &mut Fake, gpa: u64, signature: &[u8; 4], body: &[u8]) {
        let length = HEADER_BYTES + body.len() as u32;
        let mut header = [0; HEADER_BYTES as usize];
        header[..4].copy_from_slice(signature);
        header[4..8].copy_from_slice(&length.to_le_bytes());
        p.put(gpa, &header);
        p.put(gpa + u64::from(HEADER_BYTES), body);
        let wrong = sum(p, gpa, length);
        p.put(gpa + 9, &[wrong.wrapping_neg()]);
    }

    fn machine() -> Fake {
        let mut p = Fake::new();
        let mut rsdp = [0; 36];
        rsdp[..8].copy_from_slice(b"RSD PTR ");
        rsdp[15] = 2;
        rsdp[20] = 36;
        rsdp[24..32].copy_from_slice(&0x2000u64.to_le_bytes());
        p.put(0x1000, &rsdp);
        let wrong = sum(&p, 0x1000, 20);
        p.put(0x1008, &[wrong.wrapping_neg()]);
        let wrong = sum(&p, 0x1000, 36);
        p.put(0x1020, &[wrong.wrapping_neg()]);
        let mut list = [0; 24];
        list[..8].copy_from_slice(&0xffff_ffff_ffff_0000u64.to_le_bytes());
        list[8..16].copy_from_slice(&0x3000u64.to_le_bytes());
        list[16..].copy_from_slice(&0x4000u64.to_le_bytes());
        put(&mut p, 0x2000, b"XSDT", &list);
        put(&mut p, 0x3000, b"APIC", &[0; 8]);
        let mut mcfg = [0; 24];
        mcfg[8..16].copy_from_slice(&0xe000_0000u64.to_le_bytes());
        mcfg[19] = 0xff;
        put(&mut p, 0x4000, b"MCFG", &mcfg);
        p
    }

    #[test]
    fn tables_are_found_through_the_rsdp() {
        let p = machine();
        let xsdt = Xsdt::find(&p).unwrap();
        let mcfg = xsdt.table(&p, b"MCFG").unwrap().unwrap();
        assert_eq!(mcfg.gpa, 0x4000);
        let ecam = Ecam::from_mcfg(&p, &mcfg).unwrap();
        assert_eq!(
            (ecam.base, ecam.first_bus, ecam.last_bus),
            (0xe000_0000, 0, 255)
        );
        assert_eq!(xsdt.table(&p, b"IVRS").unwrap(), None);
    }

    #[test]
    fn a_wrong_checksum_is_an_error_wherever_it_is() {
        for gpa in [0x1012, 0x1021, 0x2023] {
            let mut p = machine();
            let byte = p.read_u8(gpa);
            p.put(gpa, &[byte ^ 1]);
            let failure = Xsdt::find(&p).unwrap_err();
            assert!(failure.text().contains("add up"), "{gpa:#x}: {failure}");
        }
        let mut p = machine();
        p.put(0x4020, &[1]);
        let xsdt = Xsdt::find(&p).unwrap();
        assert!(xsdt.table(&p, b"MCFG").is_err());
        assert!(xsdt.table(&p, b"APIC").is_ok());
    }

    #[test]
    fn lengths_that_make_no_sense_are_errors() {
        for length in [0u32, 35, MAX_TABLE + 1, u32::MAX] {
            let mut p = machine();
            p.put(0x2004, &length.to_le_bytes());
            assert!(Xsdt::find(&p).is_err(), "{length}");
        }
    }

    #[test]
    fn a_madt_entry_of_length_zero_ends_with_an_error() {
        let mut p = machine();
        put(
            &mut p,
            0x3000,
            b"APIC",
            &[0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0],
        );
        let xsdt = Xsdt::find(&p).unwrap();
        let madt = xsdt.table(&p, b"APIC").unwrap().unwrap();
        assert!(IoApic::from_madt(&p, &madt).is_err());
    }

    #[test]
    fn the_ioapic_of_gsi_0_is_taken_from_the_madt() {
        let mut p = machine();
        let mut body = [0; 8 + 24];
        body[8..10].copy_from_slice(&[1, 12]);
        body[16..20].copy_from_slice(&24u32.to_le_bytes());
        body[20..24].copy_from_slice(&[1, 12, 7, 0]);
        body[24..28].copy_from_slice(&0xfec0_0000u32.to_le_bytes());
        put(&mut p, 0x3000, b"APIC", &body);
        let xsdt = Xsdt::find(&p).unwrap();
        let madt = xsdt.table(&p, b"APIC").unwrap().unwrap();
        let ioapic = IoApic::from_madt(&p, &madt).unwrap().unwrap();
        assert_eq!((ioapic.id, ioapic.address), (7, 0xfec0_0000));
    }
}
