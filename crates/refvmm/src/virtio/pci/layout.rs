//! Where a virtio function has its structures, and the capabilities that say so (4.1.4).

use super::super::Identity;
use super::common;
use crate::board::pci::express::Express;
use crate::board::pci::{Bar, ConfigSpace, Msix, Place};

/// The BAR that has everything.
pub(super) const BAR: usize = 0;
/// Its size. Each structure has a page of its own, so that a VMM below this one can pass some on.
pub(super) const BAR_SIZE: u32 = 0x8000;
/// Bytes between structures.
pub(super) const WINDOW: u64 = 0x1000;
pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const MSIX_TABLE: u64 = 0x4000;
pub(super) const MSIX_PENDING: u64 = 0x5000;
/// notify_off_multiplier: bytes between the notification addresses of two queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// VIRTIO_PCI_CAP_*: cfg_type.
mod kind {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

const VIRTIO_VENDOR: u16 = 0x1af4;
/// PCI Device IDs of virtio 1.x devices begin here.
const MODERN_DEVICES: u16 = 0x1040;
const VENDOR_SPECIFIC: u8 = 0x09;

/// Where things are in configuration space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offsets {
    /// MSI-X Message Control.
    pub(super) msix_control: u16,
    /// The PCI Express capability.
    pub(super) express: Express,
    /// The PCI configuration access capability.
    pub(super) window: u16,
}

/// The body of `struct virtio_pci_cap` from cap_len on.
fn virtio_capability(kind: u8, offset: u64, length: u32, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, BAR as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

/// The configuration space after reset, with BAR 0 at `address`.
pub(super) fn config_space(
    identity: &Identity,
    queues: u16,
    msix: &Msix,
    address: u32,
) -> (ConfigSpace, Offsets) {
    let device = MODERN_DEVICES + identity.virtio_id;
    let mut config = ConfigSpace::new(VIRTIO_VENDOR, device, identity.class).revision(1);
    let bar = Bar {
        index: BAR,
        size: BAR_SIZE,
    };
    config.add_bar(bar, address);
    let at = |offset: u64| Place {
        bar: BAR as u8,
        offset: offset as u32,
    };
    let msix_control = msix.add_capability(&mut config, at(MSIX_TABLE), at(MSIX_PENDING));
    let express = Express::add(&mut config, false);
    let mut add = |kind, offset, length: u64, more: &[u8], writable: &[u8]| {
        let body = virtio_capability(kind, offset, length as u32, more);
        config.add_capability(VENDOR_SPECIFIC, &body, writable)
    };
    add(kind::COMMON, COMMON, common::SIZE, &[], &[]);
    add(kind::ISR, ISR, 1, &[], &[]);
    add(kind::DEVICE, DEVICE, WINDOW, &[], &[]);
    let notify = u64::from(queues) * u64::from(NOTIFY_MULTIPLIER);
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    add(kind::NOTIFY, NOTIFY, notify, &multiplier, &[]);
    // BAR, offset and length of the window are the driver's; the data behind them is what the
    // function makes of them.
    let mut writable = [0; 14];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    let window = add(kind::PCI, 0, 0, &[0; 4], &writable);
    let offsets = Offsets {
        msix_control,
        express,
        window,
    };
    (config, offsets)
}
