//! What one machine is: the device that was requested, and what of it the guest is offered.

use std::collections::BTreeMap;
use std::str::FromStr;

use amdvi_device::Options;
use amdvi_device::options::OptionError;
use amdvi_guest::boot::MAX_CPUS;
use amdvi_hostcap::{Facts, Feature, HostCapSpec, Offer, Request, negotiate};
use amdvi_regs::mmio::ExtendedFeature;
use serde_json::Value;

use crate::layout;

/// EFR.HATS: no host page tables.
const HATS_NONE: u8 = 3;

/// A property string, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// As it was given.
    pub text: String,
    /// The device.
    pub options: Options,
}

impl FromStr for Device {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        Ok(Self {
            text: text.to_owned(),
            options: text.parse()?,
        })
    }
}

/// A requested device and what became of it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What was asked for.
    pub requested: Device,
    /// What is built: the request, less what the host can't keep.
    pub options: Options,
    /// What was asked of the host.
    pub host_caps: HostCapSpec,
    /// Why.
    pub offer: Offer,
}

impl Machine {
    /// Asks the host, and takes from the device what it can't keep.
    pub fn new(requested: &Device, host_caps: &HostCapSpec) -> Self {
        let source = host_caps.build();
        // No function is passed through here, so that only early facts can exist.
        let facts = Facts::collect([source.as_ref()], &[]);
        let offer = negotiate(&request(&requested.options), &facts);
        let mut options = requested.options.clone();
        for decision in offer.withheld() {
            // Only what the device has can be requested of it, so it knows every name.
            let _ = options.limit(decision.feature.name(), decision.granted.level());
        }
        Self {
            requested: requested.clone(),
            options,
            host_caps: host_caps.clone(),
            offer,
        }
    }

    /// What the guest is offered, by name: the device's options and the features of its registers.
    pub fn offered(&self) -> BTreeMap<String, Value> {
        let mut offered = BTreeMap::new();
        for item in self.options.to_string().split(',').skip(1) {
            if let Some((name, text)) = item.split_once('=')
                && let Some(value) = option_value(text)
            {
                offered.insert(name.to_owned(), value);
            }
        }
        let features = request(&self.options);
        for feature in Feature::ALL {
            if let Some(value) = option_value(&feature.spell(features.get(feature))) {
                offered.insert(feature.name().to_owned(), value);
            }
        }
        offered
    }

    /// Interrupts that a function can have.
    pub fn interrupts_per_function(&self) -> u32 {
        match (
            self.options.intremap(),
            self.options.efr2().num_int_remap_sup(),
        ) {
            (false, _) => 0,
            (true, 1) => 2048,
            (true, _) => 512,
        }
    }
}

fn option_value(text: &str) -> Option<Value> {
    match text {
        "on" => Some(true.into()),
        "off" => Some(false.into()),
        _ => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok().map(Value::from),
            None => text.parse::<u64>().ok().map(Value::from),
        },
    }
}

/// The features that a device's registers show.
fn request(options: &Options) -> Request {
    let (efr, efr2): (ExtendedFeature, _) = (options.efr(), options.efr2());
    let hats = if efr.hats() == HATS_NONE {
        0
    } else {
        efr.hats()
    };
    Request::new()
        .with(Feature::NumInt2K, efr2.num_int_remap_sup() == 1)
        .with(Feature::Xt, efr.xt_sup())
        .with(Feature::Ga, efr.ga_sup())
        .with(Feature::GuestApic, efr.gam_sup() == 1)
        .with(Feature::Gt, efr.gt_sup())
        .with(Feature::Gio, efr.gio_sup())
        .with(Feature::Gats, efr.gats())
        .with(Feature::Glx, efr.glx_sup())
        .with(Feature::PasidMax, efr.pas_max())
        .with(Feature::Ppr, efr.ppr_sup())
        .with(Feature::Eph, efr.eph_sup())
        .with(Feature::Hats, hats)
        .with(Feature::HtRangeIgnore, efr2.ht_range_ignore())
        .with(Feature::Gcr3TrpMode, efr2.gcr3_trp_mode())
        .with(Feature::HostAccess, efr.ha_sup())
        .with(Feature::HostDirty, efr.hd_sup())
}

/// The x2APIC IDs of `cpus` CPUs (1 to [`MAX_CPUS`]); with `high`, the last one is above 255.
pub fn apic_ids(cpus: usize, high: bool) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..cpus.clamp(1, MAX_CPUS) as u32).collect();
    if high && let Some(last) = ids.last_mut() {
        *last = layout::HIGH_APIC_ID;
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(device: &str, host_caps: &str) -> Machine {
        Machine::new(&device.parse().unwrap(), &host_caps.parse().unwrap())
    }

    #[test]
    fn nothing_is_taken_away_when_no_function_is_passed_through() {
        let machine = machine("amd-iommu,numint2k=on", "none");
        assert_eq!(machine.offered()["numint2k"], true);
        assert_eq!(machine.interrupts_per_function(), 2048);
        assert_eq!(machine.options, machine.requested.options);
    }

    #[test]
    fn a_host_without_2k_takes_it_from_the_guest_and_says_why() {
        let machine = machine("amd-iommu,numint2k=on", "mock:numint2k=off");
        assert_eq!(machine.offered()["numint2k"], false);
        assert_eq!(machine.interrupts_per_function(), 512);
        let decision = machine.offer.decision(Feature::NumInt2K);
        assert!(decision.is_withheld() && !decision.reason.is_empty());
    }

    #[test]
    fn legacy_vfio_is_always_512() {
        let machine = machine("amd-iommu,numint2k=on", "legacy-vfio");
        assert_eq!(machine.interrupts_per_function(), 512);
    }

    #[test]
    fn numint2k_is_off_by_default() {
        assert_eq!(machine("amd-iommu", "none").offered()["numint2k"], false);
    }

    #[test]
    fn what_is_offered_is_named_as_the_option_and_is_a_boolean_or_a_number() {
        let offered = machine("amd-iommu,dma-remap=on,hats=5", "none").offered();
        assert_eq!(offered["dma-remap"], true);
        assert_eq!(offered["intremap"], true);
        assert_eq!(offered["xtsup"], true);
        assert!(
            offered
                .values()
                .all(|value| value.is_boolean() || value.is_u64())
        );
    }

    #[test]
    fn the_last_cpu_gets_the_high_apic_id() {
        assert_eq!(apic_ids(3, false), [0, 1, 2]);
        assert_eq!(apic_ids(3, true), [0, 1, 300]);
        assert_eq!(apic_ids(0, false), [0]);
        assert_eq!(apic_ids(1000, false).len(), MAX_CPUS);
    }
}
