//! How a DTE prints: `V TV mode=3 root=0x1234000 IR IW domain=0x0007 | IV len=2^11 root=0x… …`.
//!
//! The host half, then the interrupt half after `|`, then, if it says anything, the vIOMMU and
//! attribute word after another `|`. Each word of a DTE prints alone as well.

use core::fmt;

use super::{Dte, DteQ0, DteQ1, DteQ2, DteQ3, IntCtl, SysMgt};
use crate::fmt::{Always, Hex, List};
use crate::id::{DeviceId, DomainId};

impl fmt::Display for IntCtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Abort => "abort",
            Self::Forward => "forward",
            Self::Remap => "remap",
            Self::Reserved => "reserved",
        })
    }
}

impl fmt::Display for SysMgt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Abort => "abort",
            Self::ForwardAll => "forward-all",
            Self::ForwardIntx => "forward-INTx",
            Self::Translate => "translate",
        })
    }
}

fn translation(list: &mut List<'_, '_>, q0: DteQ0) {
    let root = q0.host_pt_root() << 12;
    list.field("V", q0.v())
        .field("TV", q0.tv())
        .field_if(q0.v() || q0.mode() != 0, "mode", Always(q0.mode()))
        .field_if(q0.mode() != 0 || root != 0, "root", Hex(root))
        .field("IR", q0.ir())
        .field("IW", q0.iw())
        .field("HAD", q0.had())
        .field("CXL", q0.cxl_attr())
        .field("PPR", q0.ppr())
        .field("GPRP", q0.gprp())
        .field("GIoV", q0.giov())
        .field("GV", q0.gv())
        .field_if(q0.gv(), "GLX", Always(q0.glx()));
}

fn domain(list: &mut List<'_, '_>, q1: DteQ1) {
    list.field("I", q1.i())
        .field("SE", q1.se())
        .field("SA", q1.sa())
        .field("IoCtl", q1.io_ctl())
        .field("Cache", q1.cache())
        .field("SD", q1.sd())
        .field("EX", q1.ex())
        .field_if(
            q1.sys_mgt() != 0,
            "SysMgt",
            Always(SysMgt::from_bits(q1.sys_mgt())),
        )
        .field("SATS", q1.sats());
}

impl fmt::Display for DteQ0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = List::new(f);
        translation(&mut list, *self);
        list.field("gcr3[14:12]", self.gcr3_lo())
            .field("reserved", self.into_bits() & Dte::Q0_RESERVED)
            .finish()
    }
}

impl fmt::Display for DteQ1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = List::new(f);
        list.field("domain", Always(DomainId(self.domain_id())));
        domain(&mut list, *self);
        list.field("gcr3[30:15]", self.gcr3_mid())
            .field("gcr3[51:31]", self.gcr3_hi())
            .finish()
    }
}

impl fmt::Display for DteQ2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.int_tab_len();
        let used = self.iv() || len != 0 || self.int_tab_root() != 0 || self.int_ctl() != 0;
        List::new(f)
            .field("IV", self.iv())
            .field_if(used, "len", Always(format_args!("2^{len}")))
            .field_if(used, "root", Hex(self.int_tab_address()))
            .field_if(used, "IntCtl", Always(IntCtl::from_bits(self.int_ctl())))
            .field("INIT", self.init_pass())
            .field("ExtINT", self.eint_pass())
            .field("NMI", self.nmi_pass())
            .field("LINT0", self.lint0_pass())
            .field("LINT1", self.lint1_pass())
            .field("IG", self.ig())
            .field("GuestPagingMode", self.guest_paging_mode())
            .field("HPTMode", self.hpt_mode())
            .field("reserved", self.into_bits() & Dte::Q2_RESERVED)
            .finish()
    }
}

impl fmt::Display for DteQ3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guest = self.vimu_en() || self.g_device_id() != 0 || self.guest_id() != 0;
        List::new(f)
            .field("vImuEn", self.vimu_en())
            .field_if(guest, "guest", Hex(self.guest_id().into()))
            .field_if(guest, "gdevice", Always(DeviceId(self.g_device_id())))
            .field("AttrV", self.attr_v())
            .field("Mode0FC", self.mode0_fc())
            .field("SnoopAttribute", self.snoop_attribute())
            .field("reserved", self.into_bits() & Dte::Q3_RESERVED)
            .finish()
    }
}

impl fmt::Display for Dte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low_used = self.q0.into_bits() != 0 || self.q1.into_bits() != 0;
        let mut list = List::new(f);
        translation(&mut list, self.q0);
        list.field_if(self.q0.gv(), "gcr3", Hex(self.gcr3_address()))
            .field_if(low_used, "domain", Always(self.domain_id()));
        domain(&mut list, self.q1);
        list.field("reserved", self.q0.into_bits() & Dte::Q0_RESERVED)
            .finish()?;
        write!(f, " | {}", self.q2)?;
        if self.q3.into_bits() != 0 {
            write!(f, " | {}", self.q3)?;
        }
        Ok(())
    }
}
