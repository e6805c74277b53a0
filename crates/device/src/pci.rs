//! The PCI function (48882 §3.1–3.3): identity, the IOMMU capability block, the MSI capability that
//! the device really uses, and the HyperTransport MSI mapping that follows it on real parts.

use crate::state::{MsiState, Offer, PCI_COMMAND_MASK, Registers};

/// Offset of the IOMMU capability block; IVHD names it.
pub const CAPABILITY_OFFSET: u16 = 0x40;
/// Offset of the MSI capability.
pub const MSI_OFFSET: u16 = 0x64;
/// Offset of the HyperTransport MSI mapping capability.
pub const HT_MSI_MAPPING_OFFSET: u16 = 0x74;

/// Vendor and device identity of the function.
pub const VENDOR_ID: u16 = 0x1022;
/// The device ID of a Family 17h IOMMU.
pub const PCI_DEVICE_ID: u16 = 0x1451;

/// Physical address width in bits that the capability states (IVinfo.PASize says the same).
pub const PHYSICAL_ADDRESS_BITS: u8 = 52;
/// Virtual address width in bits (IVinfo.VASize says the same).
pub const VIRTUAL_ADDRESS_BITS: u8 = 64;
/// GVASize encoding: 48 bits.
const GVA_SIZE_48: u32 = 2;

/// Miscellaneous Information 0: MsiNum 0, GVASize, PASize, VASize, MsiNumPPR 0.
pub(crate) const MISC_INFO_0: u32 =
    GVA_SIZE_48 << 5 | (PHYSICAL_ADDRESS_BITS as u32) << 8 | (VIRTUAL_ADDRESS_BITS as u32) << 15;
/// Miscellaneous Information 1: MsiNumGA 0.
pub(crate) const MISC_INFO_1: u32 = 0;
/// HyperTransport MSI mapping: enabled, fixed window, type 10101b, last in the list.
pub(crate) const HT_MSI_MAPPING: u32 = 0xa803_0008;

/// The header of the capability block: type 3, revision 1, MMIO 0030h and Misc-Info 1 present.
fn capability_header(offer: &Offer) -> u32 {
    const IOTLB_SUP: u32 = 1 << 24;
    const NP_CACHE: u32 = 1 << 26;
    0x0f | u32::from(MSI_OFFSET) << 8
        | 3 << 16
        | 1 << 19
        | 1 << 27
        | 1 << 28
        | if offer.np_cache { NP_CACHE } else { 0 }
        | if offer.device_iotlb { IOTLB_SUP } else { 0 }
}

const MSI_ENABLE: u32 = 1 << 16;

/// MSI capability header: one message, 64-bit address.
pub(crate) fn msi_header(msi: &MsiState) -> u32 {
    0x05 | u32::from(HT_MSI_MAPPING_OFFSET) << 8
        | if msi.enabled { MSI_ENABLE } else { 0 }
        | 1 << 23
}

fn over(old: u32, value: u32, mask: u32) -> u32 {
    (old & !mask) | (value & mask)
}

pub(crate) fn write_msi_header(msi: &mut MsiState, value: u32, mask: u32) {
    if mask & MSI_ENABLE != 0 {
        msi.enabled = value & MSI_ENABLE != 0;
    }
}

pub(crate) fn write_msi_address_low(msi: &mut MsiState, value: u32, mask: u32) {
    msi.address_low = over(msi.address_low, value, mask & MsiState::ADDRESS_LOW_MASK);
}

pub(crate) fn write_msi_address_high(msi: &mut MsiState, value: u32, mask: u32) {
    msi.address_high = over(msi.address_high, value, mask);
}

pub(crate) fn write_msi_data(msi: &mut MsiState, value: u32, mask: u32) {
    msi.data = over(msi.data.into(), value, mask & 0xffff) as u16;
}

/// Reads bytes of configuration space; beyond what exists they are 0.
pub(crate) fn read(registers: &Registers, offer: &Offer, at: u16, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        let at = usize::from(at) + i;
        let dword = read_dword(registers, offer, at & !3);
        *byte = (dword >> (8 * (at & 3))) as u8;
    }
}

/// Writes bytes of configuration space, dword by dword.
pub(crate) fn write(registers: &mut Registers, at: u16, data: &[u8]) {
    let mut i = 0;
    while i < data.len() {
        let base = (usize::from(at) + i) & !3;
        let (mut value, mut mask) = (0, 0);
        while let Some(&byte) = data.get(i) {
            let at = usize::from(at) + i;
            if at & !3 != base {
                break;
            }
            value |= u32::from(byte) << (8 * (at & 3));
            mask |= 0xff << (8 * (at & 3));
            i += 1;
        }
        write_dword(registers, base, value, mask);
    }
}

fn read_dword(r: &Registers, offer: &Offer, at: usize) -> u32 {
    const STATUS_CAP_LIST: u32 = 0x0010 << 16;
    let id = u32::from(PCI_DEVICE_ID) << 16 | u32::from(VENDOR_ID);
    match at {
        0x00 | 0x2c => id,
        0x04 => STATUS_CAP_LIST | u32::from(r.pci_command),
        // Class 08h, subclass 06h, interface 00h: IOMMU.
        0x08 => 0x0806_0000,
        0x34 => CAPABILITY_OFFSET.into(),
        0x3c => r.pci_interrupt_line.into(),
        0x40 => capability_header(offer),
        // Enable is set, as firmware leaves it, so the block is locked.
        0x44 => offer.mmio_base as u32 | 1,
        0x48 => (offer.mmio_base >> 32) as u32,
        0x50 => MISC_INFO_0,
        0x54 => MISC_INFO_1,
        0x64 => msi_header(&r.msi),
        0x68 => r.msi.address_low,
        0x6c => r.msi.address_high,
        0x70 => r.msi.data.into(),
        0x74 => HT_MSI_MAPPING,
        _ => 0,
    }
}

fn write_dword(r: &mut Registers, at: usize, value: u32, mask: u32) {
    match at {
        0x04 => {
            let writable = mask & u32::from(PCI_COMMAND_MASK);
            r.pci_command = over(r.pci_command.into(), value, writable) as u16;
        }
        0x3c => {
            r.pci_interrupt_line = over(r.pci_interrupt_line.into(), value, mask & 0xff) as u8;
        }
        0x64 => write_msi_header(&mut r.msi, value, mask),
        0x68 => write_msi_address_low(&mut r.msi, value, mask),
        0x6c => write_msi_address_high(&mut r.msi, value, mask),
        0x70 => write_msi_data(&mut r.msi, value, mask),
        _ => {}
    }
}
