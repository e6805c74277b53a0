//! What one machine is: the device that was requested, and what of it the guest is offered.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use amdvi_device::Options;
use amdvi_guest::boot::MAX_CPUS;
use amdvi_hostcap::{Feature, Offer, Request, Shown, negotiate};
use amdvi_regs::DeviceId;
use amdvi_regs::mmio::ExtendedFeature;
use serde_json::Value;

use super::host::HostIommu;
use crate::board::{DeviceError, IommuConfig};
use crate::layout;
use crate::ram::{Ram, RamError, RamWish};

/// EFR.HATS: no host page tables.
const HATS_NONE: u8 = 3;

/// A property string, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// As it was given.
    pub text: String,
    /// The device.
    pub options: Options,
    /// The DeviceIDs that it serves, if that was said.
    pub serves: Option<(DeviceId, DeviceId)>,
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let IommuConfig { options, serves } = text.parse()?;
        Ok(Self {
            text: text.to_owned(),
            options,
            serves,
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
    /// What the host's IOMMU can do.
    pub host: Arc<HostIommu>,
    /// Why.
    pub offer: Offer,
    /// Its RAM, which that host has a say in.
    pub ram: Ram,
}

impl Machine {
    /// Takes from the device what the host can't keep, and places RAM where the host lets it.
    ///
    /// # Errors
    /// There is no place for that RAM.
    pub fn new(
        requested: &Device,
        host: &Arc<HostIommu>,
        wish: &RamWish,
    ) -> Result<Self, RamError> {
        // First, as a VMM has to: no device can be bound yet.
        let ram = Ram::plan(wish, host.facts.early())?;
        let offer = negotiate(&request(&requested.options), &host.facts);
        let mut options = requested.options.clone();
        for decision in offer.withheld() {
            // Only what the device has can be requested of it, so it knows every name.
            let _ = options.limit(decision.feature.name(), decision.granted.level());
        }
        Ok(Self {
            requested: requested.clone(),
            options,
            host: Arc::clone(host),
            offer,
            ram,
        })
    }

    /// What the guest is offered, by name: the device's options and the features of its registers.
    /// Features as in the decisions: page tables (`hats`, `gats`) are counted by all their levels.
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
            let value = match feature.shown(features.get(feature)) {
                Shown::Switch(on) => on.into(),
                Shown::Number(number) => number.into(),
            };
            offered.insert(feature.name().to_owned(), value);
        }
        offered
    }

    /// The device for a board.
    pub fn iommu(&self) -> IommuConfig {
        IommuConfig {
            options: self.options.clone(),
            serves: self.requested.serves,
        }
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
    use amdvi_hostcap::ram::Placement;

    fn machine(device: &str, host_caps: &str) -> Machine {
        let host = HostIommu::ask(&host_caps.parse().unwrap());
        Machine::new(&device.parse().unwrap(), &host, &RamWish::default()).unwrap()
    }

    #[test]
    fn page_tables_are_offered_by_all_their_levels_as_the_decisions_have_it() {
        let machine = machine("amd-iommu,dma-remap=on,hats=6", "mock:numint2k=off");
        let offered = machine.offered();
        assert_eq!((&offered["hats"], &offered["gats"]), (&6.into(), &4.into()));
        for decision in serde_json::to_value(&machine.offer.decisions)
            .unwrap()
            .as_array()
            .unwrap()
        {
            let name = decision["feature"].as_str().unwrap();
            assert_eq!(offered[name], decision["granted"], "{name}");
        }
    }

    #[test]
    fn what_emulated_devices_can_have_is_offered_as_it_was_asked_for() {
        let device = "amd-iommu,gtsup=on,gats=5,gcr3trpmode=on,pprsup=on,device-iotlb=on,\
                      dirty-tracking=on,perf-counters=2x4";
        let machine = machine(device, "none");
        assert_eq!(machine.options, machine.requested.options);
        let offered = machine.offered();
        for (name, value) in [("gtsup", true), ("hdsup", true), ("ephsup", true)] {
            assert_eq!(offered[name], serde_json::Value::from(value), "{name}");
        }
        assert_eq!(offered["pasmax"], 15);
    }

    #[test]
    fn ram_lies_where_the_machine_s_host_lets_it() {
        let wish = RamWish {
            size: "10G".parse().unwrap(),
            ..RamWish::default()
        };
        let place = |spec: &str| {
            let host = HostIommu::ask(&spec.parse().unwrap());
            let machine = Machine::new(&"amd-iommu".parse().unwrap(), &host, &wish).unwrap();
            machine.ram.layout().placement
        };
        assert_eq!(place("none"), Placement::AboveFourGib);
        assert_eq!(place("mock:"), Placement::AboveOneTib);
        assert_eq!(place("mock:htrangeignore=on"), Placement::AboveFourGib);
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
