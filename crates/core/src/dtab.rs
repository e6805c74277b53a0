//! From a DeviceID to its Device Table Entry (48882 §2.2.2, §2.2.2.3 for segments).

use core::fmt;

use amdvi_regs::DeviceId;
use amdvi_regs::dte::DTE_SIZE;

use crate::View;

/// The DeviceID lies behind the end of its device table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The DeviceID.
    pub device_id: DeviceId,
    /// Entries of the table (segment) that it belongs to.
    pub entries: u32,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "DeviceID {} is outside a device table of {} entries",
            self.device_id, self.entries
        )
    }
}

impl core::error::Error for OutOfRange {}

/// The guest physical address of the DTE of `device_id`.
///
/// CONTROL.DevTblSegEn = n splits the table into 2^n segments, chosen by the top n bits of the
/// DeviceID; the remaining bits index the segment, whose own size is the limit.
pub fn locate(view: &View, device_id: DeviceId) -> Result<u64, OutOfRange> {
    let segment_bits = u32::from(view.control().dev_tbl_seg_en()).min(3);
    let index_bits = 16 - segment_bits;
    let segment = usize::from(device_id.0) >> index_bits;
    let index = u32::from(device_id.0) & ((1 << index_bits) - 1);
    let table = view.device_table(segment);
    if index >= table.entries() {
        return Err(OutOfRange {
            device_id,
            entries: table.entries(),
        });
    }
    Ok(table.address() + u64::from(index) * DTE_SIZE)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use amdvi_regs::mmio::{Control, DeviceTableBase, ExtendedFeature, ExtendedFeature2};

    fn view(segments_log2: u8) -> View {
        let view = View::new(ExtendedFeature::new(), ExtendedFeature2::new());
        view.set_control(Control::RESET.with_dev_tbl_seg_en(segments_log2));
        view
    }

    fn table(page: u64, size: u16) -> DeviceTableBase {
        DeviceTableBase::new().with_base_page(page).with_size(size)
    }

    #[test]
    fn one_table_is_indexed_by_the_whole_device_id() {
        let view = view(0);
        view.set_device_table(0, table(0x100, 0x1ff));
        assert_eq!(locate(&view, DeviceId(0)), Ok(0x10_0000));
        assert_eq!(locate(&view, DeviceId(0xffff)), Ok(0x10_0000 + 0xffff * 32));
    }

    #[test]
    fn a_device_id_past_the_table_is_refused() {
        let view = view(0);
        view.set_device_table(0, table(0x100, 0));
        assert_eq!(locate(&view, DeviceId(127)), Ok(0x10_0000 + 127 * 32));
        let error = locate(&view, DeviceId(128)).unwrap_err();
        assert_eq!(
            error,
            OutOfRange {
                device_id: DeviceId(128),
                entries: 128
            }
        );
    }

    #[test]
    fn segments_are_chosen_by_the_top_bits_and_have_their_own_size() {
        for log2 in 1..=3u8 {
            let view = view(log2);
            for segment in 0..1usize << log2 {
                view.set_device_table(segment, table(0x1000 * (segment as u64 + 1), 0));
            }
            let shift = 16 - u32::from(log2);
            for segment in 0..1u16 << log2 {
                let first = segment << shift;
                let base = 0x100_0000 * (u64::from(segment) + 1);
                assert_eq!(locate(&view, DeviceId(first)), Ok(base));
                assert_eq!(locate(&view, DeviceId(first | 5)), Ok(base + 160));
                assert!(locate(&view, DeviceId(first | 128)).is_err());
            }
        }
    }

    #[test]
    fn a_reserved_segment_count_is_taken_as_eight() {
        let view = view(7);
        view.set_device_table(7, table(0x4000, 0));
        assert_eq!(locate(&view, DeviceId(0xe001)), Ok(0x400_0000 + 32));
    }
}
