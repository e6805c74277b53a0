//! What both sides do the same way: registers and the commands that make a case's tables known.

use amdvi_regs::command::{CompletionWait, InvalidateDevtabEntry, InvalidateIommuAll};
use amdvi_regs::mmio::{Control, offset};

use crate::case::Case;
use crate::layout::{COMMANDS, DEVICE_TABLE, Device, EVENTS, MARKER};

/// Bytes of the event log: Len = 8.
pub const EVENT_RING: u64 = 0x1000;

/// Bytes of a case's command ring.
pub fn ring_bytes(case: &Case) -> u64 {
    16 << case.ring_length
}

/// Register writes, in order, that take a device from any state to the beginning of a case.
pub fn registers(case: &Case) -> Vec<(u64, u64)> {
    vec![
        (offset::CONTROL, 0),
        (
            offset::DEVICE_TABLE_BASE,
            DEVICE_TABLE | case.device_table_size,
        ),
        (
            offset::COMMAND_BUFFER_BASE,
            COMMANDS | case.ring_length << 56,
        ),
        (offset::EVENT_LOG_BASE, EVENTS | 8 << 56),
        (offset::COMMAND_HEAD, case.ring_start),
        (offset::COMMAND_TAIL, case.ring_start),
        (offset::EVENT_HEAD, 0),
        // All the bits that are cleared by writing 1.
        (offset::STATUS, 0x67),
        (offset::CONTROL, case.control.into_bits()),
    ]
}

/// Control of every case: on, with commands and events, without interrupts of its own.
pub fn control() -> Control {
    Control::new()
        .with_iommu_en(true)
        .with_event_log_en(true)
        .with_cmd_buf_en(true)
}

/// The commands that precede the steps of a case. The entries are invalidated one by one because
/// QEMU takes note of a DTE only then.
pub fn invalidate_everything() -> Vec<[u64; 2]> {
    let entry = |device: Device| InvalidateDevtabEntry::new().with_device_id(device.id().0);
    Device::ALL
        .map(entry)
        .map(|command| words(command.into_bits()))
        .into_iter()
        .chain([words(InvalidateIommuAll::new().into_bits())])
        .collect()
}

/// The COMPLETION_WAIT that ends the prologue: it stores `number`, and QEMU traces that.
pub fn marker(number: u64) -> [u64; 2] {
    words(
        CompletionWait::new()
            .with_s(true)
            .with_store_address_8(MARKER >> 3)
            .with_store_data(number)
            .into_bits(),
    )
}

/// A command as it stands in the ring.
pub fn words(command: u128) -> [u64; 2] {
    [command as u64, (command >> 64) as u64]
}
