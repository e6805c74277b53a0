//! What the options come to: the feature registers, and what a host may take away.

use amdvi_regs::mmio::{ExtendedFeature, ExtendedFeature2};

use super::table::{OPTIONS, OptionKind, Value};
use super::{OptionError, Options, find};

/// EFR.DualPprLogSup: two logs, and automatic change between them.
const DUAL_PPR_LOG: u8 = 2;

/// A feature that [`Options::limit`] has taken away or lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// The option's name.
    pub option: &'static str,
    /// The option that it depends on, if it went only because that one did.
    pub because_of: Option<&'static str>,
}

impl Options {
    /// Takes a feature away, or lowers it, before the device is built: what a negotiation with the
    /// host has granted.
    ///
    /// `name` is an option's name. Understood too are the EFR fields `gasup` and `gamsup`, and with a
    /// level: `hats` and `gats` (levels above four), `glxsup`, `pasmax` (PASID bits less one), and
    /// `hasup` and `hdsup`. `level` 0 means off, or the architecture's base level. What is already at or
    /// below `level` stays, and nothing is ever added. Features that need the one taken away go
    /// with it, so EFR and EFR2 stay consistent. Returns what has changed.
    ///
    /// # Errors
    ///
    /// [`OptionError::Unknown`] if no option has that name; [`OptionError::Value`] if the option
    /// is not a feature.
    pub fn limit(&mut self, name: &str, level: u8) -> Result<Vec<Withdrawn>, OptionError> {
        let before = self.clone();
        let option = match name {
            "hats" => {
                self.hats = self.hats.min(4 + level.min(2));
                "hats"
            }
            "gats" => {
                self.gats = self.gats.min(4 + level.min(1));
                "gats"
            }
            "glxsup" => {
                self.glxsup = self.glxsup.min(level);
                "glxsup"
            }
            "pasmax" | "pasid" => {
                self.pasid = self.pasid.min(level.saturating_add(1));
                "pasid"
            }
            "hasup" | "hdsup" => {
                let most = if name == "hasup" { 0 } else { 1 };
                if level == 0 {
                    self.dirty_tracking = self.dirty_tracking.min(most);
                }
                "dirty-tracking"
            }
            _ => {
                let spec = find(match name {
                    "gasup" => "ga",
                    "gamsup" => "vapic",
                    name => name,
                })?;
                if spec.kind != OptionKind::Switch {
                    return Err(OptionError::Value {
                        name: spec.name,
                        value: level.to_string(),
                        why: "it is not a feature that can be limited".into(),
                        accepts: spec.kind.accepts(),
                    });
                }
                if level == 0 {
                    self.set(spec.name, Value::Switch(false));
                }
                spec.name
            }
        };
        self.settle(&[])
            .expect("nothing was given, so nothing can contradict");
        // What means nothing, since what it belongs to is off, is not offered and can't be lowered.
        let printed = |options: &Self, name: &str| {
            let text = options.to_string();
            let found = text
                .split(',')
                .find_map(|item| item.strip_prefix(name)?.strip_prefix('='));
            found.map(str::to_owned)
        };
        Ok(OPTIONS
            .iter()
            .filter(|other| {
                let was = printed(&before, other.name);
                was.is_some() && was != printed(self, other.name)
            })
            .map(|other| Withdrawn {
                option: other.name,
                because_of: (other.name != option).then_some(option),
            })
            .collect())
    }

    /// The features that depend on the host, under the names that [`limit`](Self::limit) takes,
    /// with the level asked for: 1 for a switch that is on; levels above four for `hats` and `gats`;
    /// PASID bits less one for `pasmax`.
    pub fn features(&self) -> Vec<(&'static str, u8)> {
        let mut list: Vec<_> = [
            ("numint2k", self.numint2k),
            ("xtsup", self.xtsup),
            ("gasup", self.ga),
            ("gamsup", self.vapic),
            ("gtsup", self.gtsup),
            ("giosup", self.giosup),
            ("gcr3trpmode", self.gcr3trpmode),
            ("pprsup", self.pprsup),
            ("ephsup", self.ephsup),
            ("hasup", self.dirty_tracking >= 1),
            ("hdsup", self.dirty_tracking >= 2),
        ]
        .into_iter()
        .filter_map(|(name, on)| on.then_some((name, 1)))
        .collect();
        if self.gtsup {
            list.extend([
                ("gats", self.gats - 4),
                ("glxsup", self.glxsup),
                ("pasmax", self.pasid - 1),
            ]);
        }
        if self.dma_remap {
            list.push(("hats", self.hats - 4));
        }
        list
    }

    /// The Extended Feature Register that the guest reads (48882 §3.4.2).
    pub fn efr(&self) -> ExtendedFeature {
        let mut efr = ExtendedFeature::new()
            .with_pre_f_sup(self.prefsup)
            .with_ppr_sup(self.pprsup)
            .with_eph_sup(self.ephsup)
            .with_ppr_auto_rsp_sup(self.ppr_auto_rsp)
            .with_ppr_ovrflw_early_sup(self.ppr_early)
            .with_ia_sup(self.ia)
            .with_ga_sup(self.ga)
            .with_xt_sup(self.xtsup)
            .with_gam_sup(u8::from(self.vapic))
            .with_pc_sup(self.counters != (0, 0))
            .with_snp_sup(self.snpsup)
            .with_ha_sup(self.dirty_tracking >= 1)
            .with_hd_sup(self.dirty_tracking >= 2)
            .with_hats(if self.dma_remap {
                self.hats - 4
            } else {
                ExtendedFeature::HATS_NONE
            })
            .with_dev_tbl_seg_sup(self.segments.trailing_zeros() as u8)
            .with_msi_cap_mmio_sup(self.msi_cap_mmio);
        if self.dual_ppr_log {
            efr = efr.with_dual_ppr_log_sup(DUAL_PPR_LOG);
        }
        if self.gtsup {
            efr = efr
                .with_gt_sup(true)
                .with_gio_sup(self.giosup)
                .with_nx_sup(self.nxsup)
                .with_gats(self.gats - 4)
                .with_glx_sup(self.glxsup)
                .with_pas_max(self.pasid - 1);
        }
        efr
    }

    /// The second Extended Feature Register that the guest reads (48882 §3.4.16).
    pub fn efr2(&self) -> ExtendedFeature2 {
        ExtendedFeature2::new()
            .with_gcr3_trp_mode(self.gcr3trpmode)
            .with_num_int_remap_sup(if self.numint2k {
                ExtendedFeature2::NUM_INT_REMAP_2K
            } else {
                0
            })
    }
}
