//! Functions that are only a configuration space, and the IOMMU's own function.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::{ConfigSpace, Function};
use crate::board::snapshot::{Snapshot, StateError, typed};
use crate::board::socket::Socket;

/// A function without BARs.
pub struct Fixed {
    config: Mutex<ConfigSpace>,
}

impl Fixed {
    /// A host bridge: 00:00.0, and function 0 of every device that has no other. The IOMMU is a
    /// function of such a device.
    pub fn host_bridge() -> Self {
        Self::with(ConfigSpace::new(0x1022, 0x1450, [0x06, 0x00, 0x00]))
    }

    /// The SMBus function, 00:14.0: Linux takes interrupt remapping of the IOAPIC for broken
    /// unless the IOAPIC's DeviceID is a real SMBus or ISA function.
    pub fn smbus() -> Self {
        Self::with(ConfigSpace::new(0x1022, 0x790b, [0x0c, 0x05, 0x00]))
    }

    /// An ISA bridge in the same place, which newer kernels take as well.
    pub fn isa_bridge() -> Self {
        Self::with(ConfigSpace::new(0x1022, 0x790e, [0x06, 0x01, 0x00]))
    }

    fn with(config: ConfigSpace) -> Self {
        Self {
            config: Mutex::new(config),
        }
    }
}

impl Snapshot for Fixed {
    fn save(&self) -> Result<Value, StateError> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(serde_json::to_value(config.save())?)
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        config.restore(&typed(state)?)
    }
}

impl Function for Fixed {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }
}

/// The IOMMU's PCI function: its configuration space is the device's.
pub struct IommuFunction {
    socket: Arc<Socket>,
}

impl IommuFunction {
    /// The function of the IOMMU in `socket`.
    pub(crate) fn new(socket: Arc<Socket>) -> Self {
        Self { socket }
    }
}

/// Its configuration space is part of the IOMMU's state.
impl Snapshot for IommuFunction {}

impl Function for IommuFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.socket.with(|iommu| iommu.config_read(offset, data));
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.socket.with(|iommu| iommu.config_write(offset, data));
    }
}
