//! What a vCPU reaches when it leaves the guest.

/// The machine's devices, as the vCPU threads see them.
///
/// Calls come from all vCPU threads at once. Nothing here may wait for a vCPU: the caller is one.
pub trait Bus: Send + Sync {
    /// A port read. `data` has the width of the access (1, 2 or 4 bytes), or a multiple of it for a
    /// string instruction; a port that nobody decodes reads as all ones.
    fn port_in(&self, port: u16, data: &mut [u8]);
    /// A port write by CPU `cpu`, an index.
    fn port_out(&self, cpu: usize, port: u16, data: &[u8]);
    /// A read of memory that is not RAM; 1 to 8 bytes, of any alignment.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// A write to memory that is not RAM; 1 to 8 bytes, of any alignment.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// A CPU ended the handling of an interrupt whose vector a level-triggered pin route has.
    fn ioapic_eoi(&self, vector: u8);
    /// Name of the guest's function at an address, for error messages.
    fn function(&self, rip: u64) -> Option<String> {
        let _ = rip;
        None
    }
}

/// A machine without devices.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDevices;

impl Bus for NoDevices {
    fn port_in(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_out(&self, _: usize, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn ioapic_eoi(&self, _: u8) {}
}
