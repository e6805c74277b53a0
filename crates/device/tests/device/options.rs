//! The property string.

use amdvi_device::options::{DEVICE_NAME, OPTIONS, OptionError, Options, Withdrawn, help};
use amdvi_regs::{DeviceId, Segment};

fn error(text: &str) -> OptionError {
    Options::parse(text).expect_err(text)
}

#[test]
fn defaults_offer_what_is_built_and_nothing_else() {
    let options = Options::parse("amd-iommu").unwrap();
    assert_eq!(options, Options::default());
    let efr = options.efr();
    assert!(efr.ia_sup() && efr.ga_sup() && efr.xt_sup() && efr.msi_cap_mmio_sup());
    assert_eq!(
        (efr.hats(), efr.gam_sup(), efr.dev_tbl_seg_sup()),
        (2, 0, 0)
    );
    assert_eq!(
        efr.into_bits(),
        1 << 46 | 2 << 10 | 1 << 7 | 1 << 6 | 1 << 2
    );
    assert_eq!(options.efr2().into_bits(), 0);
    assert_eq!(options.mmio_base(), 0xfeb8_0000);
    assert_eq!(options.device_id(), DeviceId::new(0, 0, 2));
    assert_eq!(options.segment(), Segment(0));
}

#[test]
fn numint2k_is_opt_in() {
    assert_eq!(
        Options::parse("amd-iommu,numint2k=off")
            .unwrap()
            .efr2()
            .num_int_remap_sup(),
        0
    );
    let on = Options::parse("amd-iommu,numint2k=on").unwrap();
    assert_eq!(on.efr2().into_bits(), 1 << 8);
}

#[test]
fn every_option_changes_what_it_says() {
    let efr = |text: &str| {
        Options::parse(&format!("{DEVICE_NAME},{text}"))
            .unwrap()
            .efr()
    };
    assert!(!efr("xtsup=off").xt_sup());
    assert!(!efr("ga=off").ga_sup());
    assert!(
        !efr("ga=off").xt_sup(),
        "xtsup follows ga when it is not given"
    );
    assert_eq!(efr("vapic=on").gam_sup(), 1);
    assert!(!efr("ia=off").ia_sup());
    assert_eq!(efr("hats=4").hats(), 0);
    assert_eq!(efr("hats=5").hats(), 1);
    assert_eq!(efr("dma-remap=off").hats(), 3);
    for (n, log2) in [(1, 0), (2, 1), (4, 2), (8, 3)] {
        assert_eq!(efr(&format!("segments={n}")).dev_tbl_seg_sup(), log2);
    }
    assert!(!efr("msi-cap-mmio=off").msi_cap_mmio_sup());
    let off = efr("intremap=off");
    assert!(!off.ga_sup() && !off.xt_sup());
    let placed =
        Options::parse("amd-iommu,mmio-base=0x80000000,addr=1a:02.1,segment=3,np-cache=on")
            .unwrap();
    assert_eq!(placed.mmio_base(), 0x8000_0000);
    assert_eq!(placed.device_id(), DeviceId::new(0x1a, 2, 1));
    assert_eq!(placed.segment(), Segment(3));
    assert!(placed.np_cache());
}

#[test]
fn cache_sizes_are_powers_of_two_within_bounds_and_no_feature() {
    let options = Options::default();
    assert_eq!(options.iotlb_entries(), amdvi_dma::Iotlb::DEFAULT_ENTRIES);
    assert_eq!(
        options.dma_cache_entries(),
        amdvi_dma::Mapper::DEFAULT_ENTRIES
    );
    let small: Options = "amd-iommu,iotlb-entries=64,dma-cache-entries=0x10"
        .parse()
        .unwrap();
    assert_eq!((small.iotlb_entries(), small.dma_cache_entries()), (64, 16));
    assert_eq!(small.efr(), options.efr());
    for (text, why) in [
        ("iotlb-entries=1000", "not a power of two"),
        ("iotlb-entries=32", "out of range"),
        ("iotlb-entries=8388608", "out of range"),
        ("iotlb-entries=0", "not a power of two"),
        ("dma-cache-entries=8", "out of range"),
        ("dma-cache-entries=2097152", "out of range"),
    ] {
        let message = error(&format!("amd-iommu,{text}")).to_string();
        assert!(message.contains(why), "{message}");
        assert!(message.contains("a power of two from"), "{message}");
    }
    // A state of a device with other caches fits: they are not part of it.
    let rig = crate::rig::Rig::enabled("amd-iommu,iotlb-entries=64");
    let other = crate::rig::Rig::new("amd-iommu,dma-cache-entries=16");
    other.iommu.restore(&rig.iommu.save()).unwrap();
}

#[test]
fn an_unknown_option_is_named_with_its_nearest_and_all_others() {
    let OptionError::Unknown {
        name,
        nearest,
        known,
    } = error("amd-iommu,numint2=on")
    else {
        panic!()
    };
    assert_eq!((name.as_str(), nearest), ("numint2", Some("numint2k")));
    assert!(OPTIONS.iter().all(|spec| known.contains(spec.name)));
    let OptionError::Unknown { nearest, .. } = error("amd-iommu,xylophone=on") else {
        panic!()
    };
    assert_eq!(nearest, None);
    assert!(
        error("amd-iommu,intremp=on")
            .to_string()
            .contains("did you mean `intremap`?")
    );
}

#[test]
fn a_bad_value_is_named_with_what_the_option_accepts() {
    for (text, name, accepts) in [
        ("numint2k=yes", "numint2k", "on or off"),
        ("hats=7", "hats", "4, 5 or 6"),
        ("hats=six", "hats", "4, 5 or 6"),
        ("segments=3", "segments", "1, 2, 4 or 8"),
        ("pasid=17", "pasid", "1 to 16"),
        ("pasid=0", "pasid", "1 to 16"),
        ("gats=6", "gats", "4 or 5"),
        ("glxsup=3", "glxsup", "0, 1 or 2"),
        (
            "dirty-tracking=yes",
            "dirty-tracking",
            "off, accessed or on",
        ),
        ("perf-counters=2", "perf-counters", "such as 2x4"),
        ("perf-counters=64x1", "perf-counters", "63x15"),
        ("perf-counters=0x1", "perf-counters", "1x1"),
        ("segment=0x10000", "segment", "0 to 0xffff"),
        ("addr=20.0", "addr", "[bus:]device.function"),
        ("addr=1.8", "addr", "[bus:]device.function"),
        ("addr=2", "addr", "[bus:]device.function"),
        ("mmio-base=0", "mmio-base", "0x4000"),
        ("mmio-base=0x80001000", "mmio-base", "0x4000"),
        ("mmio-base=0x10000000000000", "mmio-base", "2^52"),
        ("mmio-base=banana", "mmio-base", "address"),
    ] {
        let error = error(&format!("amd-iommu,{text}"));
        let message = error.to_string();
        assert!(
            matches!(error, OptionError::Value { name: n, .. } if n == name),
            "{message}"
        );
        assert!(message.contains(accepts), "{message}");
    }
}

#[test]
fn the_window_must_not_cover_registers_that_linux_reads_at_fed803c0() {
    for base in ["0xfec00000", "0xfed80000", "0xfee00000", "0xfeefc000"] {
        assert!(
            error(&format!("amd-iommu,mmio-base={base}"))
                .to_string()
                .contains("southbridge")
        );
    }
    Options::parse("amd-iommu,mmio-base=0xfebfc000").unwrap();
    Options::parse("amd-iommu,mmio-base=0xfef00000").unwrap();
}

#[test]
fn contradictions_are_errors_that_name_both_sides() {
    for (text, this, that) in [
        ("xtsup=on,ga=off", "xtsup=on", "ga=off"),
        ("vapic=on,ga=off", "vapic=on", "ga=off"),
        ("numint2k=on,intremap=off", "numint2k=on", "intremap=off"),
        ("intremap=off,xtsup=on", "xtsup=on", "intremap=off"),
        ("ga=on,intremap=off", "ga=on", "intremap=off"),
        ("hats=5,dma-remap=off", "hats=5", "dma-remap=off"),
        (
            "dirty-tracking=on,dma-remap=off",
            "dirty-tracking=on",
            "dma-remap=off",
        ),
        ("pasid=12", "pasid=12", "gtsup=off"),
        ("glxsup=1,gtsup=off", "glxsup=1", "gtsup=off"),
        ("gats=5", "gats=5", "gtsup=off"),
        ("giosup=on", "giosup=on", "gtsup=off"),
        ("nxsup=on,gtsup=off", "nxsup=on", "gtsup=off"),
        ("gcr3trpmode=on", "gcr3trpmode=on", "gtsup=off"),
        ("gtsup=on,glxsup=0,pasid=10", "pasid=10", "glxsup=0"),
        ("ephsup=on", "ephsup=on", "pprsup=off"),
        ("ppr-auto-rsp=on", "ppr-auto-rsp=on", "pprsup=off"),
        ("ppr-early=on", "ppr-early=on", "pprsup=off"),
        ("dual-ppr-log=on", "dual-ppr-log=on", "pprsup=off"),
        (
            "mmio-base=0xfebfc000,perf-counters=2x4",
            "mmio-base=0xfebfc000",
            "perf-counters=2x4",
        ),
    ] {
        match error(&format!("amd-iommu,{text}")) {
            OptionError::Contradiction {
                this: a, that: b, ..
            } => {
                assert_eq!((a.as_str(), b.as_str()), (this, that));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn guest_translation_is_opt_in_and_offers_what_belongs_to_it() {
    let options = Options::parse("amd-iommu,gtsup=on,pprsup=on").unwrap();
    let efr = options.efr();
    assert!(efr.gt_sup() && efr.gio_sup() && efr.nx_sup() && efr.ppr_sup() && efr.eph_sup());
    assert_eq!((efr.gats(), efr.glx_sup(), efr.pas_max()), (0, 1, 15));
    let efr = Options::default().efr();
    assert!(!efr.gt_sup() && !efr.gio_sup() && !efr.nx_sup() && !efr.ppr_sup() && !efr.eph_sup());
    assert_eq!((efr.gats(), efr.glx_sup(), efr.pas_max()), (0, 0, 0));
    let wide = Options::parse("amd-iommu,gtsup=on,gats=5,gcr3trpmode=on,snpsup=on").unwrap();
    assert_eq!(wide.efr().gats(), 1);
    assert!(wide.efr().snp_sup() && wide.efr2().gcr3_trp_mode());
}

#[test]
fn no_pasid_is_wider_than_the_gcr3_table_that_holds_it() {
    for (text, glx, pas_max) in [
        ("pasid=9", 1, 8),
        ("pasid=16", 1, 15),
        ("glxsup=0", 0, 8),
        ("glxsup=0,pasid=9", 0, 8),
        ("glxsup=2", 2, 15),
    ] {
        let efr = Options::parse(&format!("amd-iommu,gtsup=on,{text}"))
            .unwrap()
            .efr();
        assert_eq!((efr.glx_sup(), efr.pas_max()), (glx, pas_max), "{text}");
        assert!(efr.pas_max() <= 15, "Linux stops at boot");
    }
    let mut options = Options::parse("amd-iommu,gtsup=on").unwrap();
    let gone = options.limit("glxsup", 0).unwrap();
    assert_eq!(
        gone,
        [
            Withdrawn {
                option: "glxsup",
                because_of: None
            },
            Withdrawn {
                option: "pasid",
                because_of: Some("glxsup")
            },
        ]
    );
    assert_eq!(options.efr().pas_max(), 8);
}

#[test]
fn guest_tables_without_host_tables_are_offered_as_linux_wants_them() {
    let options = Options::parse("amd-iommu,dma-remap=off,gtsup=on").unwrap();
    assert_eq!(options.efr().hats(), 3);
    assert!(options.efr().gt_sup() && !options.dma_remap());
}

#[test]
fn dirty_tracking_offers_accessed_bits_too() {
    for (text, ha, hd) in [
        ("off", false, false),
        ("accessed", true, false),
        ("on", true, true),
    ] {
        let mut options = Options::parse(&format!("amd-iommu,dirty-tracking={text}")).unwrap();
        assert_eq!((options.efr().ha_sup(), options.efr().hd_sup()), (ha, hd));
        options.limit("hdsup", 0).unwrap();
        assert_eq!(
            (options.efr().ha_sup(), options.efr().hd_sup()),
            (ha, false)
        );
        options.limit("hasup", 0).unwrap();
        assert!(!options.efr().ha_sup());
    }
}

#[test]
fn counters_are_offered_with_the_window_that_they_need() {
    let options = Options::parse("amd-iommu,perf-counters=2x4").unwrap();
    assert!(options.efr().pc_sup());
    assert_eq!(options.perf_counters(), (2, 4));
    assert_eq!(options.mmio_size(), 0x8_0000);
    let none = Options::default();
    assert!(!none.efr().pc_sup());
    assert_eq!((none.perf_counters(), none.mmio_size()), ((0, 0), 0x4000));
}

#[test]
fn malformed_strings_are_errors() {
    assert_eq!(
        error(""),
        OptionError::WrongDevice {
            found: String::new()
        }
    );
    assert_eq!(
        error("intel-iommu"),
        OptionError::WrongDevice {
            found: "intel-iommu".into()
        }
    );
    assert_eq!(
        error("amd-iommu,ga=on,ga=on"),
        OptionError::Duplicate { name: "ga" }
    );
    assert!(matches!(
        error("amd-iommu,ga"),
        OptionError::NoValue { name: "ga", .. }
    ));
    assert!(matches!(
        error("amd-iommu,ga="),
        OptionError::NoValue { name: "ga", .. }
    ));
    assert!(matches!(error("amd-iommu,"), OptionError::Unknown { .. }));
}

#[test]
fn printed_options_parse_to_the_same_options() {
    for text in [
        "amd-iommu",
        "amd-iommu,dma-remap=off",
        "amd-iommu,intremap=off",
        "amd-iommu,gtsup=on,gats=5,pasid=9,glxsup=0,nxsup=off,perf-counters=63x15,snpsup=on",
        "amd-iommu,pprsup=on,dual-ppr-log=on,dirty-tracking=accessed,device-iotlb=on,prefsup=on",
        "amd-iommu,numint2k=on,vapic=on,segments=8,addr=40:01.7,mmio-base=0x1000000000,hats=4",
    ] {
        let options = Options::parse(text).unwrap();
        assert_eq!(
            Options::parse(&options.to_string()).unwrap(),
            options,
            "{options}"
        );
    }
}

#[test]
fn help_lists_every_option_with_default_and_accepted_values() {
    let help = help();
    for spec in OPTIONS {
        assert!(help.contains(spec.name) && help.contains(spec.help));
        assert!(help.contains(&spec.kind.accepts()));
        assert!(help.contains(&format!("default {}", spec.default)));
    }
}

#[test]
fn a_limit_takes_away_what_depends_on_it_and_adds_nothing() {
    let mut options = Options::parse("amd-iommu,vapic=on,numint2k=on").unwrap();
    assert_eq!(
        options.limit("numint2k", 0).unwrap(),
        [Withdrawn {
            option: "numint2k",
            because_of: None
        }]
    );
    assert_eq!(options.efr2().num_int_remap_sup(), 0);
    assert_eq!(
        options.limit("numint2k", 1).unwrap(),
        [],
        "a limit never adds"
    );
    assert_eq!(options.efr2().num_int_remap_sup(), 0);

    let gone = options.limit("gasup", 0).unwrap();
    let why = Some("ga");
    assert_eq!(
        gone,
        [
            Withdrawn {
                option: "xtsup",
                because_of: why
            },
            Withdrawn {
                option: "ga",
                because_of: None
            },
            Withdrawn {
                option: "vapic",
                because_of: why
            },
        ]
    );
    let efr = options.efr();
    assert!(!efr.ga_sup() && !efr.xt_sup() && efr.gam_sup() == 0);
}

#[test]
fn hats_is_limited_by_levels_above_four() {
    let mut options = Options::default();
    assert_eq!(options.limit("hats", 1).unwrap().len(), 1);
    assert_eq!(options.efr().hats(), 1);
    assert_eq!(options.limit("hats", 2).unwrap(), []);
    assert_eq!(options.efr().hats(), 1);
    let mut off = Options::parse("amd-iommu,dma-remap=off").unwrap();
    assert_eq!(off.limit("hats", 0).unwrap(), []);
    assert_eq!(off.efr().hats(), 3);
}

#[test]
fn every_feature_can_be_limited_to_nothing() {
    let mut options = Options::parse(
        "amd-iommu,vapic=on,numint2k=on,gtsup=on,gcr3trpmode=on,pprsup=on,dirty-tracking=on,gats=5",
    )
    .unwrap();
    let features = options.features();
    let names: Vec<_> = features.iter().map(|&(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "numint2k",
            "xtsup",
            "gasup",
            "gamsup",
            "gtsup",
            "giosup",
            "gcr3trpmode",
            "pprsup",
            "ephsup",
            "hasup",
            "hdsup",
            "gats",
            "glxsup",
            "pasmax",
            "hats"
        ]
    );
    for (name, level) in features {
        assert_eq!(
            options.limit(name, level).unwrap(),
            [],
            "{name}: granted as asked"
        );
    }
    for name in names {
        options.limit(name, 0).unwrap();
    }
    assert_eq!(options.features(), [("hats", 0)]);
    assert_eq!(options.efr().into_bits(), 1 << 46 | 1 << 6);
    assert_eq!(options.efr2().into_bits(), 0);
}

#[test]
fn only_features_can_be_limited() {
    let mut options = Options::default();
    assert!(matches!(
        options.limit("mmio-base", 0),
        Err(OptionError::Value { .. })
    ));
    assert!(matches!(
        options.limit("ussup", 0),
        Err(OptionError::Unknown { .. })
    ));
}
