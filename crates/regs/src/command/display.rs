//! How commands print: `COMPLETION_WAIT s i store=0x1000 data=0x1`.

use core::fmt;

use super::*;
use crate::fmt::{Always, Hex, List};
use crate::id::{DeviceId, DomainId};

fn device(id: u16) -> Always<DeviceId> {
    Always(DeviceId(id))
}

fn range(s: bool, page: u64) -> Always<InvalidationRange> {
    Always(InvalidationRange::decode(page << 12, s))
}

impl Command {
    /// The name of the command in the specification; `UNKNOWN` for an opcode it does not define.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CompletionWait(_) => "COMPLETION_WAIT",
            Self::InvalidateDevtabEntry(_) => "INVALIDATE_DEVTAB_ENTRY",
            Self::InvalidateIommuPages(_) => "INVALIDATE_IOMMU_PAGES",
            Self::InvalidateIotlbPages(_) => "INVALIDATE_IOTLB_PAGES",
            Self::InvalidateInterruptTable(_) => "INVALIDATE_INTERRUPT_TABLE",
            Self::PrefetchIommuPages(_) => "PREFETCH_IOMMU_PAGES",
            Self::CompletePprRequest(_) => "COMPLETE_PPR_REQUEST",
            Self::InvalidateIommuAll(_) => "INVALIDATE_IOMMU_ALL",
            Self::InsertGuestEvent(_) => "INSERT_GUEST_EVENT",
            Self::ResetVmmio(_) => "RESET_VMMIO",
            Self::Unknown(_) => "UNKNOWN",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = List::new(f);
        list.word(self.name());
        match self {
            Self::CompletionWait(c) => list
                .field("s", c.s())
                .field("i", c.i())
                .field("f", c.f())
                .field_if(c.s(), "store", Hex(c.store_address_8() << 3))
                .field_if(c.s(), "data", Hex(c.store_data())),
            Self::InvalidateDevtabEntry(c) => list.field("device", device(c.device_id())),
            Self::InvalidateIommuPages(c) => list
                .field("domain", Always(DomainId(c.domain_id())))
                .field_if(c.gn(), "pasid", Hex(c.pasid().into()))
                .field("range", range(c.s(), c.address_page()))
                .field("PDE", c.pde())
                .field("GN", c.gn()),
            Self::InvalidateIotlbPages(c) => list
                .field("device", device(c.device_id()))
                .field_if(c.gn(), "pasid", Hex(c.pasid().into()))
                .field("range", range(c.s(), c.address_page()))
                .field("queue", Hex(c.queue_id().into()))
                .field("MaxPend", c.max_pend())
                .field("type", c.kind())
                .field("GN", c.gn()),
            Self::InvalidateInterruptTable(c) => list.field("device", device(c.device_id())),
            Self::PrefetchIommuPages(c) => list
                .field("device", device(c.device_id()))
                .field_if(c.gn(), "pasid", Hex(c.pasid().into()))
                .field("range", range(c.s(), c.address_page()))
                .field("PFCount", c.pf_count())
                .field("Inval", c.inval())
                .field("GN", c.gn()),
            Self::CompletePprRequest(c) => list
                .field("device", device(c.device_id()))
                .field_if(c.gn(), "pasid", Hex(c.pasid().into()))
                .field("tag", Hex(c.group_index().into()))
                .field("response", Always(c.response_code()))
                .field("GN", c.gn()),
            Self::InvalidateIommuAll(_) => &mut list,
            Self::InsertGuestEvent(c) => list.field("guest", Hex(c.guest_id().into())),
            Self::ResetVmmio(c) => list
                .field("guest", Hex(c.guest_id().into()))
                .field("All", c.all())
                .field("vCmd", c.v_cmd()),
            Self::Unknown(bits) => list
                .field("opcode", Always((*bits >> 60) as u8 & 0xf))
                .field("bits", *bits),
        };
        list.field("reserved", self.reserved_bits_set()).finish()
    }
}

macro_rules! display_as_command {
    ($($name:ident),* $(,)?) => {
        $(
            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    Command::from(*self).fmt(f)
                }
            }
        )*
    };
}

display_as_command!(
    CompletionWait,
    InvalidateDevtabEntry,
    InvalidateIommuPages,
    InvalidateIotlbPages,
    InvalidateInterruptTable,
    PrefetchIommuPages,
    CompletePprRequest,
    InvalidateIommuAll,
    InsertGuestEvent,
    ResetVmmio,
);
