//! What a scenario reports, in a form that crosses from the payload to the VMM.

use core::fmt::{self, Write};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest text of [`Report::detail`], in bytes.
pub const DETAIL_BYTES: usize = 512;

/// The outcome of one scenario. Plain data, the same on both sides of the VM's border.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Report {
    /// [`Report::MAGIC`] once the scenario has ended.
    pub magic: u64,
    /// 1 when every check held.
    pub passed: u64,
    /// Interrupts that arrived where they should.
    pub delivered: u64,
    /// Interrupt requests that were blocked, as the scenario expected.
    pub blocked: u64,
    /// Event log entries read back.
    pub events: u64,
    /// Time from request to handler, summed over `delivered`; 0 when not measured.
    pub total_ns: u64,
    /// Bytes of `detail` in use.
    pub detail_len: u64,
    /// Text, UTF-8: what was checked, or why it failed.
    pub detail: [u8; DETAIL_BYTES],
}

impl Report {
    /// Says that the report is complete.
    pub const MAGIC: u64 = 0x7472_6f70_6572_7661;

    /// An empty report.
    pub const fn new() -> Self {
        Self {
            magic: 0,
            passed: 0,
            delivered: 0,
            blocked: 0,
            events: 0,
            total_ns: 0,
            detail_len: 0,
            detail: [0; DETAIL_BYTES],
        }
    }

    /// The text.
    pub fn detail(&self) -> &str {
        let len = (self.detail_len as usize).min(DETAIL_BYTES);
        core::str::from_utf8(&self.detail[..len]).unwrap_or("(detail is not UTF-8)")
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Report {
    /// Appends to `detail`; what does not fit is cut at a character border.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let used = (self.detail_len as usize).min(DETAIL_BYTES);
        let mut take = text.len().min(DETAIL_BYTES - used);
        while !text.is_char_boundary(take) {
            take -= 1;
        }
        self.detail[used..used + take].copy_from_slice(&text.as_bytes()[..take]);
        self.detail_len = (used + take) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_is_cut_at_a_character_border() {
        let mut report = Report::new();
        for _ in 0..DETAIL_BYTES {
            report.write_str("é").unwrap();
        }
        assert_eq!(report.detail_len as usize, DETAIL_BYTES);
        let mut odd = Report::new();
        odd.write_str("x").unwrap();
        for _ in 0..DETAIL_BYTES {
            odd.write_str("é").unwrap();
        }
        assert_eq!(odd.detail_len as usize, DETAIL_BYTES - 1);
        assert!(odd.detail().ends_with('é'));
    }
}
