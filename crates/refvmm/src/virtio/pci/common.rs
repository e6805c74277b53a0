//! The common configuration structure, virtio 1.2 section 4.1.4.3, as registers.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

use serde::{Deserialize, Serialize};

use super::super::interrupts::Interrupts;
use super::super::{REQUIRED_FEATURES, feature};
use crate::board::snapshot::{StateError, ensure};

pub(super) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
pub(super) const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
pub(super) const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// Bytes of the structure, queue_notify_data and queue_reset of virtio 1.2 included.
pub(super) const SIZE: u64 = 0x40;

mod reg {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const DEVICE_STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
}

/// What the driver said about a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueRegisters {
    /// The most entries; 0: there is no such queue.
    pub(crate) max_size: u16,
    pub(crate) size: u16,
    pub(crate) enabled: bool,
    /// Addresses as the device uses them: IOVAs.
    pub(crate) desc: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        }
    }
}

/// What the write of a register asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// All of the device is to be reset.
    Reset,
    /// DRIVER_OK was set: the device is live.
    Live,
    /// This queue was enabled, with these registers.
    Enable(u16, QueueRegisters),
    /// This queue is to be reset.
    ResetQueue(u16),
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Common {
    offered: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

/// Where an access lies in a register: its start and a mask of its bytes.
fn half(offset: u64, register: u64, len: usize) -> Option<(u32, u64)> {
    match (offset.checked_sub(register)?, len) {
        (0, 4) => Some((0, 0xffff_ffff)),
        (4, 4) => Some((32, 0xffff_ffff)),
        (0, 8) => Some((0, u64::MAX)),
        _ => None,
    }
}

impl Common {
    pub(crate) fn new(offered: u64, queue_sizes: impl IntoIterator<Item = u16>) -> Self {
        Self {
            offered,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.into_iter().map(QueueRegisters::new).collect(),
        }
    }

    /// The state after reset.
    pub(crate) fn reset(&mut self) {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, sizes);
    }

    /// Says that the device is beyond help until it is reset. Whether the driver is to be told.
    pub(crate) fn set_needs_reset(&mut self) -> bool {
        self.status |= NEEDS_RESET;
        self.status & DRIVER_OK != 0
    }

    /// The device is no longer live, and the driver sees so.
    pub(crate) fn clear_driver_ok(&mut self) {
        self.status &= !DRIVER_OK;
    }

    /// Takes over registers that a driver could have left so.
    pub(crate) fn restore(&mut self, saved: &Self) -> Result<(), StateError> {
        ensure(
            saved.offered == self.offered,
            "a device that offers other features",
        )?;
        let sizes = |common: &Self| -> Vec<u16> {
            common.queues.iter().map(|queue| queue.max_size).collect()
        };
        ensure(sizes(saved) == sizes(self), "a device with other queues")?;
        let possible = saved.queues.iter().all(|queue| {
            queue.size <= queue.max_size && (queue.size.is_power_of_two() || queue.size == 0)
        });
        ensure(possible, "a queue of an impossible size")?;
        let agreed = saved.status & FEATURES_OK == 0 || saved.features_are_acceptable();
        ensure(agreed, "features that can't have been agreed on")?;
        let live = saved.status & DRIVER_OK == 0 || saved.status & FEATURES_OK != 0;
        ensure(live, "a live device without features")?;
        self.clone_from(saved);
        Ok(())
    }

    /// What the driver said of the device as a whole.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    /// The features that both sides agreed on.
    pub(crate) fn features(&self) -> u64 {
        self.driver_features
    }

    /// The queue that `queue_select` names, if there is one.
    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Reads a register. Accesses that are not as wide as the register read as zero: the driver must
    /// not make them (4.1.3.1).
    pub(super) fn read(&self, offset: u64, data: &mut [u8], interrupts: &Interrupts) {
        let value = self.value(offset, data.len(), interrupts).to_le_bytes();
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = value.get(n).copied().unwrap_or(0);
        }
    }

    fn value(&self, offset: u64, len: usize, interrupts: &Interrupts) -> u64 {
        let features = |select: u32, features: u64| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let queue = self.selected();
        let of_queue =
            |get: fn(&QueueRegisters) -> u16| queue.map_or(0, |queue| u64::from(get(queue)));
        let address = |get: fn(&QueueRegisters) -> u64, register| {
            half(offset, register, len)
                .zip(queue)
                .map_or(0, |((shift, mask), queue)| get(queue) >> shift & mask)
        };
        match (offset, len) {
            (reg::DEVICE_FEATURE_SELECT, 4) => u64::from(self.device_feature_select),
            (reg::DEVICE_FEATURE, 4) => features(self.device_feature_select, self.offered),
            (reg::DRIVER_FEATURE_SELECT, 4) => u64::from(self.driver_feature_select),
            (reg::DRIVER_FEATURE, 4) => features(self.driver_feature_select, self.driver_features),
            (reg::CONFIG_MSIX_VECTOR, 2) => u64::from(interrupts.assigned(None)),
            (reg::NUM_QUEUES, 2) => self.queues.len() as u64,
            (reg::DEVICE_STATUS, 1) => u64::from(self.status),
            // The configuration of no device here changes in more than one step.
            (reg::CONFIG_GENERATION, 1) => 0,
            (reg::QUEUE_SELECT, 2) => u64::from(self.queue_select),
            (reg::QUEUE_SIZE, 2) => of_queue(|queue| queue.size),
            (reg::QUEUE_MSIX_VECTOR, 2) => u64::from(interrupts.assigned(Some(self.queue_select))),
            (reg::QUEUE_ENABLE, 2) => of_queue(|queue| u16::from(queue.enabled)),
            (reg::QUEUE_NOTIFY_OFF, 2) => queue.map_or(0, |_| u64::from(self.queue_select)),
            (reg::QUEUE_DESC..reg::QUEUE_DRIVER, _) => address(|queue| queue.desc, reg::QUEUE_DESC),
            (reg::QUEUE_DRIVER..reg::QUEUE_DEVICE, _) => {
                address(|queue| queue.driver, reg::QUEUE_DRIVER)
            }
            (reg::QUEUE_DEVICE..0x38, _) => address(|queue| queue.device, reg::QUEUE_DEVICE),
            _ => 0,
        }
    }

    /// Writes a register, and says what is to be done for that.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], interrupts: &Interrupts) -> Effect {
        let mut bytes = [0; 8];
        let Some(start) = bytes.get_mut(..data.len()) else {
            return Effect::None;
        };
        start.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let word = value as u16;
        match (offset, data.len()) {
            (reg::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (reg::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            (reg::DRIVER_FEATURE, 4) => self.set_driver_features(value),
            (reg::CONFIG_MSIX_VECTOR, 2) => interrupts.assign(None, word),
            (reg::DEVICE_STATUS, 1) => return self.set_status(value as u8),
            (reg::QUEUE_SELECT, 2) => self.queue_select = word,
            (reg::QUEUE_MSIX_VECTOR, 2) => interrupts.assign(Some(self.queue_select), word),
            (reg::QUEUE_RESET, 2) => return self.reset_queue(word),
            (reg::QUEUE_SIZE..0x38, len) => return self.write_queue(offset, len, value),
            _ => {}
        }
        Effect::None
    }

    fn set_driver_features(&mut self, value: u64) {
        // Once FEATURES_OK is set the driver must not change them.
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let mask = 0xffff_ffff << shift;
        self.driver_features = self.driver_features & !mask | value << shift & mask;
    }

    fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // Bits are only ever added, and one of them is the device's.
        let mut added = value & !self.status & !NEEDS_RESET;
        if added & FEATURES_OK != 0 && !self.features_are_acceptable() {
            added &= !FEATURES_OK;
        }
        if (self.status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        self.status |= added;
        if added & DRIVER_OK != 0 {
            Effect::Live
        } else {
            Effect::None
        }
    }

    /// A driver that would use physical addresses in the place of what the IOMMU translates, or the
    /// layouts from before virtio 1.0, can't drive the device.
    fn features_are_acceptable(&self) -> bool {
        self.driver_features & !self.offered == 0
            && self.driver_features & REQUIRED_FEATURES == REQUIRED_FEATURES
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u64) -> Effect {
        let selected = self.queue_select;
        let ready = self.status & FEATURES_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(selected)) else {
            return Effect::None;
        };
        // An enabled queue is not to be changed.
        if queue.enabled {
            return Effect::None;
        }
        let set = |register: &mut u64, at| {
            if let Some((shift, mask)) = half(offset, at, len) {
                let mask = mask << shift;
                *register = *register & !mask | value << shift & mask;
            }
        };
        match (offset, len) {
            (reg::QUEUE_SIZE, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            (reg::QUEUE_ENABLE, 2) if value == 1 && ready => {
                queue.enabled = true;
                return Effect::Enable(selected, *queue);
            }
            (reg::QUEUE_DESC..reg::QUEUE_DRIVER, _) => set(&mut queue.desc, reg::QUEUE_DESC),
            (reg::QUEUE_DRIVER..reg::QUEUE_DEVICE, _) => set(&mut queue.driver, reg::QUEUE_DRIVER),
            (reg::QUEUE_DEVICE..0x38, _) => set(&mut queue.device, reg::QUEUE_DEVICE),
            _ => {}
        }
        Effect::None
    }

    /// Resets one queue's registers. It is done when the write of queue_reset ends, which therefore
    /// always reads as 0.
    fn reset_queue(&mut self, value: u16) -> Effect {
        let negotiated = self.driver_features & feature::RING_RESET != 0;
        match self.queues.get_mut(usize::from(self.queue_select)) {
            Some(queue) if value == 1 && negotiated => {
                *queue = QueueRegisters::new(queue.max_size);
                Effect::ResetQueue(self.queue_select)
            }
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: u64 = REQUIRED_FEATURES | feature::RING_RESET | 1 << 9;

    struct Registers(Common, Interrupts);

    impl Registers {
        fn new() -> Self {
            Self(
                Common::new(OFFERED, [256, 64]),
                Interrupts::new(2, crate::board::Vectors::default()),
            )
        }

        fn read(&self, offset: u64, len: usize) -> u64 {
            let mut data = [0xee; 8];
            self.0.read(offset, &mut data[..len], &self.1);
            data[len..].fill(0);
            u64::from_le_bytes(data)
        }

        fn write(&mut self, offset: u64, len: usize, value: u64) -> Effect {
            self.0.write(offset, &value.to_le_bytes()[..len], &self.1)
        }

        fn offer_back(&mut self, features: u64) {
            for select in 0..2 {
                self.write(reg::DRIVER_FEATURE_SELECT, 4, select);
                self.write(reg::DRIVER_FEATURE, 4, features >> (32 * select));
            }
        }

        fn status(&self) -> u8 {
            self.read(reg::DEVICE_STATUS, 1) as u8
        }
    }

    #[test]
    fn features_are_read_in_halves_and_there_are_no_more_than_64() {
        let mut registers = Registers::new();
        let mut halves = Vec::new();
        for select in 0..3 {
            registers.write(reg::DEVICE_FEATURE_SELECT, 4, select);
            halves.push(registers.read(reg::DEVICE_FEATURE, 4));
        }
        assert_eq!(halves, [OFFERED & 0xffff_ffff, OFFERED >> 32, 0]);
    }

    #[test]
    fn features_ok_does_not_stick_without_access_platform_or_version_1_or_with_what_was_not_offered()
     {
        for (features, accepted) in [
            (REQUIRED_FEATURES, true),
            (OFFERED, true),
            (feature::VERSION_1, false),
            (feature::ACCESS_PLATFORM, false),
            (0, false),
            (REQUIRED_FEATURES | 1 << 10, false),
        ] {
            let mut registers = Registers::new();
            registers.write(reg::DEVICE_STATUS, 1, 3);
            registers.offer_back(features);
            registers.write(reg::DEVICE_STATUS, 1, 0xb);
            assert_eq!(
                registers.status(),
                if accepted { 0xb } else { 3 },
                "{features:#x}"
            );
            let effect = registers.write(reg::DEVICE_STATUS, 1, 0xf);
            // The second attempt to set FEATURES_OK fails like the first.
            assert_eq!(effect == Effect::Live, accepted, "{features:#x}");
            assert_eq!(registers.status(), if accepted { 0xf } else { 3 });
        }
    }

    #[test]
    fn the_driver_can_t_take_status_bits_back_or_set_the_device_s() {
        let mut registers = Registers::new();
        registers.write(reg::DEVICE_STATUS, 1, 3);
        registers.write(reg::DEVICE_STATUS, 1, 0x40 | 1);
        assert_eq!(registers.status(), 3);
        assert!(!registers.0.set_needs_reset(), "the driver is not live");
        assert_eq!(registers.status(), 0x43);
        assert_eq!(
            registers.write(reg::DEVICE_STATUS, 1, 0),
            Effect::Reset,
            "and carried out by the function"
        );
    }

    #[test]
    fn features_can_t_be_changed_after_features_ok() {
        let mut registers = Registers::new();
        registers.offer_back(REQUIRED_FEATURES);
        registers.write(reg::DEVICE_STATUS, 1, 0xb);
        registers.offer_back(OFFERED);
        assert_eq!(registers.0.features(), REQUIRED_FEATURES);
    }

    #[test]
    fn a_queue_is_enabled_with_what_was_written_and_can_t_be_changed_then() {
        let mut registers = Registers::new();
        registers.offer_back(REQUIRED_FEATURES);
        registers.write(reg::QUEUE_SELECT, 2, 1);
        assert_eq!(registers.read(reg::QUEUE_SIZE, 2), 64);
        for (size, read) in [(65, 64), (128, 64), (0, 64), (16, 16)] {
            registers.write(reg::QUEUE_SIZE, 2, size);
            assert_eq!(registers.read(reg::QUEUE_SIZE, 2), read, "{size}");
        }
        registers.write(reg::QUEUE_DESC, 4, 0x1000);
        registers.write(reg::QUEUE_DESC + 4, 4, 0xff);
        registers.write(reg::QUEUE_DRIVER, 8, 0x2_0000_2000);
        registers.write(reg::QUEUE_DEVICE, 4, 0x3000);
        assert_eq!(registers.write(reg::QUEUE_ENABLE, 2, 1), Effect::None);
        assert_eq!(registers.read(reg::QUEUE_ENABLE, 2), 0, "too early");
        registers.write(reg::DEVICE_STATUS, 1, 0xb);
        let expected = QueueRegisters {
            max_size: 64,
            size: 16,
            enabled: true,
            desc: 0xff_0000_1000,
            driver: 0x2_0000_2000,
            device: 0x3000,
        };
        let effect = registers.write(reg::QUEUE_ENABLE, 2, 1);
        assert_eq!(effect, Effect::Enable(1, expected));
        assert_eq!(registers.write(reg::QUEUE_ENABLE, 2, 1), Effect::None);
        registers.write(reg::QUEUE_DESC, 4, 0);
        assert_eq!(registers.read(reg::QUEUE_DESC, 8), expected.desc);
        assert_eq!(registers.read(reg::QUEUE_NOTIFY_OFF, 2), 1);
    }

    #[test]
    fn a_queue_that_does_not_exist_has_no_size_and_takes_nothing() {
        let mut registers = Registers::new();
        registers.write(reg::QUEUE_SELECT, 2, 2);
        registers.write(reg::QUEUE_SIZE, 2, 4);
        registers.write(reg::QUEUE_MSIX_VECTOR, 2, 0);
        assert_eq!(registers.read(reg::QUEUE_SIZE, 2), 0);
        assert_eq!(registers.read(reg::QUEUE_MSIX_VECTOR, 2), 0xffff);
        assert_eq!(registers.read(reg::NUM_QUEUES, 2), 2);
    }

    #[test]
    fn a_vector_that_does_not_exist_reads_back_as_none() {
        let mut registers = Registers::new();
        for (vector, read) in [(2, 2), (3, 0xffff), (0xfffe, 0xffff), (0, 0)] {
            registers.write(reg::CONFIG_MSIX_VECTOR, 2, vector);
            assert_eq!(registers.read(reg::CONFIG_MSIX_VECTOR, 2), read);
        }
    }

    #[test]
    fn one_queue_is_reset_if_that_was_negotiated() {
        let mut registers = Registers::new();
        registers.offer_back(REQUIRED_FEATURES);
        assert_eq!(registers.write(reg::QUEUE_RESET, 2, 1), Effect::None);
        registers.offer_back(OFFERED);
        registers.write(reg::DEVICE_STATUS, 1, 0xb);
        registers.write(reg::QUEUE_SIZE, 2, 8);
        registers.write(reg::QUEUE_ENABLE, 2, 1);
        let effect = registers.write(reg::QUEUE_RESET, 2, 1);
        assert_eq!(effect, Effect::ResetQueue(0));
        assert_eq!(registers.read(reg::QUEUE_RESET, 2), 0);
        assert_eq!(registers.read(reg::QUEUE_ENABLE, 2), 0);
        assert_eq!(registers.read(reg::QUEUE_SIZE, 2), 256);
    }

    #[test]
    fn accesses_of_a_wrong_width_change_nothing_and_read_as_zero() {
        let mut registers = Registers::new();
        for offset in 0..SIZE + 8 {
            for len in [1, 2, 3, 4, 5, 6, 7, 8] {
                registers.read(offset, len);
                if offset != reg::DEVICE_STATUS && len == 1 {
                    assert_eq!(registers.read(offset, 1), 0, "{offset:#x}");
                }
            }
        }
        let before = registers.0.clone();
        registers.write(reg::DRIVER_FEATURE, 2, 0xffff);
        registers.write(reg::QUEUE_SELECT, 4, 1);
        registers.write(reg::QUEUE_DESC, 2, 0x10);
        registers.write(reg::QUEUE_DESC + 2, 4, 0x10);
        registers.0.write(0, &[1; 16], &registers.1);
        assert_eq!(registers.0, before);
    }
}
