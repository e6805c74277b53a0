//! The one rule by which a feature is granted or withheld.
//!
//! A feature that needs aspects is granted up to the lowest level that *every* needed aspect
//! proves for *every* passed-through function. Any statement about hardware or kernel caps the
//! level, needed or not, whichever IOMMU it speaks for: a no is never outvoted. Firmware proves
//! nothing and forbids nothing; it is only mentioned.
//!
//! A feature that needs nothing of the host is the device's own: what the registers of the host's
//! IOMMU hold says nothing about it, and does not cap it. That the host *kernel* can't have it
//! (which only a person or a test can state) does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::answer::{Gap, Served, Situation};
use crate::aspect::Aspect;
use crate::decision::Decision;
use crate::fact::{Statement, Subject};
use crate::feature::{Feature, FeatureKind, Setting};
use crate::scope::{PciFunction, Scope};

/// How many statements, gaps or functions a sentence lists before it says how many more.
const LISTED: usize = 3;

/// All that a decision may depend on, phases told apart by a flag.
pub(crate) struct View<'a> {
    pub(crate) situation: Situation,
    pub(crate) sources: BTreeMap<&'a str, Situation>,
    /// Statements, `true` when known late only.
    pub(crate) statements: Vec<(&'a Statement, bool)>,
    pub(crate) gaps: Vec<&'a Gap>,
    /// The passed-through functions.
    pub(crate) functions: Vec<PciFunction>,
    pub(crate) served: Vec<&'a Served>,
}

/// Decides one feature. Total: any request, any facts.
pub(crate) fn decide(view: &View<'_>, feature: Feature, requested: Setting) -> Decision {
    let requested = feature.normalize(requested);
    let (level, reason) = if !requested.is_on() {
        (0, not_requested(view, feature))
    } else {
        match view.situation {
            Situation::Emulated => (requested.level(), emulated(view, feature)),
            Situation::LegacyVfio if feature.needs_iommufd() => (0, legacy(view, feature)),
            _ => by_facts(view, feature, requested.level()),
        }
    };
    Decision {
        feature,
        requested,
        granted: feature.setting(level),
        reason,
    }
}

fn not_requested(view: &View<'_>, feature: Feature) -> String {
    let example = match feature.zero() {
        Setting::Switch(_) => "on",
        Setting::Level(_) => "N",
    };
    format!(
        "{feature} was not requested: give {feature}={example} to ask for it (host: {}).",
        view.asked()
    )
}

fn emulated(view: &View<'_>, feature: Feature) -> String {
    format!(
        "every device is emulated and no function is passed through ({}), so {feature} does not \
         depend on the host.",
        view.asked()
    )
}

fn legacy(view: &View<'_>, feature: Feature) -> String {
    let legacy = view
        .sources
        .iter()
        .filter(|(_, s)| **s == Situation::LegacyVfio);
    let names = list(legacy.map(|(name, _)| *name));
    let who = if names.is_empty() {
        "legacy-vfio".to_owned()
    } else {
        names
    };
    let so = match feature {
        Feature::NumInt2K => {
            format!("so {feature} stays off and a function always has 512 interrupts")
        }
        _ => format!("and can't carry {feature} to a function"),
    };
    format!(
        "functions are passed through by a legacy VFIO container ({who}), which says nothing about \
         the host's IOMMU, {so}; bind them through iommufd (/dev/iommu and a VFIO cdev) instead."
    )
}

/// What the facts say about one aspect of one feature.
struct Known<'a> {
    feature: Feature,
    aspect: Aspect,
    needed: bool,
    statements: Vec<&'a Statement>,
    /// What it is not known for, the whole host when that has no names; `None` when it is known
    /// for all that matters.
    missing: Option<Vec<String>>,
    /// There is something, but known too late to count.
    only_late: bool,
}

impl Known<'_> {
    /// The lowest value stated, if any is.
    fn cap(&self) -> Option<u8> {
        self.statements.iter().map(|s| s.value.level()).min()
    }

    fn sayers(&self, holds: impl Fn(u8) -> bool) -> String {
        list(self.statements.iter().filter(|s| holds(s.value.level())))
    }
}

fn by_facts(view: &View<'_>, feature: Feature, wanted: u8) -> (u8, String) {
    let chain: Vec<_> = std::iter::successors(Some(feature), |f| f.on_top_of()).collect();
    let known: Vec<_> = chain
        .iter()
        .flat_map(|link| [Aspect::Hardware, Aspect::Kernel].map(|a| view.known(*link, a)))
        .filter(|k| k.aspect == Aspect::Kernel || !k.feature.needs().is_empty())
        .collect();
    // What the features underneath must have is "on", whatever level is wanted of this one.
    let target = |k: &Known<'_>| if k.feature == feature { wanted } else { 1 };

    let forbids = known
        .iter()
        .filter(|k| k.cap().is_some_and(|cap| cap < target(k)))
        .min_by_key(|k| k.cap());
    let missing = known.iter().find(|k| k.needed && k.missing.is_some());
    match (forbids, missing) {
        // A "no" is the stronger reason. A lower level, though, still has to be proven.
        (Some(no), None) => (no.cap().unwrap_or(0), forbidden(feature, wanted, no)),
        (Some(no), Some(_)) if no.cap() == Some(0) => (0, forbidden(feature, wanted, no)),
        (_, Some(missing)) => (0, unknown(view, feature, missing)),
        (None, None) => (wanted, granted(view, feature, &known)),
    }
}

fn granted(view: &View<'_>, feature: Feature, known: &[Known<'_>]) -> String {
    if feature.needs().is_empty() {
        return format!(
            "the device emulates {feature} for passed-through functions too, whatever the host's \
             IOMMU has, and the host does not forbid it ({}).",
            view.asked()
        );
    }
    let own = known.iter().filter(|k| k.feature == feature && k.needed);
    let proofs: Vec<_> = own
        .map(|k| {
            let by = k.sayers(|_| true);
            match k.aspect {
                Aspect::Kernel => format!("the host kernel can use it, says {by}"),
                _ => format!("the hardware supports it, says {by}"),
            }
        })
        .collect();
    format!("{feature} is proven: {}.", proofs.join("; "))
}

fn forbidden(feature: Feature, wanted: u8, no: &Known<'_>) -> String {
    let cap = no.cap().unwrap_or(0);
    let target = if no.feature == feature { wanted } else { 1 };
    let mut text = built_on(feature, no.feature);
    let (who, what, way_out) = match no.aspect {
        Aspect::Kernel => (
            "the host kernel",
            "has not enabled",
            no.feature.evidence(no.aspect),
        ),
        _ => ("the host's hardware", "does not support", ""),
    };
    let sayers = no.sayers(|level| level == cap);
    // Without anything above its base level a page table still has that one.
    let lowered = cap > 0 || (no.feature == feature && feature.base() > 0);
    if !lowered {
        let _ = write!(text, "{who} {what} {}, says {sayers}", no.feature);
    } else {
        let _ = write!(
            text,
            "{feature} is lowered from {} to {}: {who} goes no further, says {sayers}",
            feature.spell(Setting::Level(wanted)),
            feature.spell(Setting::Level(cap))
        );
    }
    let others = no.sayers(|level| level >= target);
    if !others.is_empty() {
        let _ = write!(
            text,
            ", and {others} disagrees, in which case the safe side counts"
        );
    }
    let option = feature.name();
    match (lowered, way_out) {
        (false, "") => {
            let _ = write!(text, "; drop {option} or use a host that has it.");
        }
        (false, way_out) => {
            let _ = write!(text, "; it would take {way_out}.");
        }
        _ => text.push('.'),
    }
    text
}

fn unknown(view: &View<'_>, feature: Feature, missing: &Known<'_>) -> String {
    let Known {
        feature: link,
        aspect,
        ..
    } = missing;
    let mut text = built_on(feature, *link);
    let what = match aspect {
        Aspect::Kernel => "the host kernel can use",
        _ => "the host's hardware supports",
    };
    let whom = match missing.missing.as_deref() {
        None | Some([]) => String::new(),
        Some(whom) => format!(" for {}", list(whom.iter())),
    };
    let _ = write!(
        text,
        "nothing shows{whom} that {what} {link} (asked: {}), and unknown is not yes",
        view.asked()
    );
    if missing.only_late {
        text.push_str("; what a bound device told came after RAM was laid out, too late");
    }
    let hardware = view.known(*link, Aspect::Hardware);
    if *aspect == Aspect::Kernel && hardware.cap().is_some_and(|cap| cap > 0) {
        let by = hardware.sayers(|level| level > 0);
        let _ = write!(text, "; that the hardware supports it ({by}) is not enough");
    }
    let firmware = view
        .known(*link, Aspect::Firmware)
        .sayers(|level| level > 0);
    if !firmware.is_empty() {
        let _ = write!(
            text,
            "; that firmware set it ({firmware}) proves nothing about the kernel"
        );
    }
    let gaps = list(view.gaps.iter());
    if !gaps.is_empty() {
        let _ = write!(text, "; {gaps}");
    }
    let at_least = match (aspect, link.kind()) {
        (Aspect::Hardware, FeatureKind::Level { .. }) => " of 1 or more",
        _ => "",
    };
    let _ = write!(
        text,
        "; it would take {}{at_least}.",
        link.evidence(*aspect)
    );
    text
}

fn built_on(feature: Feature, link: Feature) -> String {
    if link == feature {
        String::new()
    } else {
        format!("{feature} is built on {link}, and ")
    }
}

impl<'a> View<'a> {
    /// The sources asked, for a sentence.
    fn asked(&self) -> String {
        let names = list(self.sources.keys());
        if names.is_empty() {
            "no source".to_owned()
        } else {
            names
        }
    }

    fn known(&self, feature: Feature, aspect: Aspect) -> Known<'a> {
        let about = self
            .statements
            .iter()
            .filter(|(s, _)| s.subject == Subject::Feature(feature) && s.aspect == aspect);
        let statements: Vec<_> = about.clone().map(|(s, _)| *s).collect();
        let counts: BTreeSet<_> = about
            .filter(|(_, late)| !(*late && feature.is_early_only()))
            .map(|(s, _)| &s.scope)
            .collect();
        Known {
            feature,
            aspect,
            needed: feature.needs().contains(&aspect),
            missing: self.uncovered(&counts, feature.is_early_only()),
            only_late: counts.is_empty() && !statements.is_empty(),
            statements,
        }
    }

    /// What of the host the given scopes leave out; see [`Known::missing`].
    fn uncovered(&self, scopes: &BTreeSet<&Scope>, early_only: bool) -> Option<Vec<String>> {
        if scopes.contains(&Scope::Host) {
            return None;
        }
        let iommu = |name: &str| {
            scopes
                .iter()
                .any(|s| matches!(s, Scope::Iommu(n) if n == name))
        };
        let iommus = self.iommus();
        let all_iommus = !iommus.is_empty() && iommus.iter().all(|name| iommu(name));
        // RAM is shared by all functions, also by those that are yet to come.
        if self.functions.is_empty() || early_only {
            let left_out = iommus
                .into_iter()
                .filter(|name| !iommu(name))
                .map(str::to_owned);
            return (!all_iommus).then(|| left_out.collect());
        }
        let covered = |function: &PciFunction| {
            let mut serving = self
                .served
                .iter()
                .filter(|s| s.function == *function)
                .peekable();
            let by_iommu = match serving.peek() {
                Some(_) => serving.all(|s| iommu(&s.iommu)),
                None => all_iommus,
            };
            by_iommu || scopes.contains(&Scope::Function(*function))
        };
        let left_out: Vec<_> = self
            .functions
            .iter()
            .filter(|f| !covered(f))
            .map(PciFunction::to_string)
            .collect();
        (!left_out.is_empty()).then_some(left_out)
    }

    /// Every IOMMU that anyone mentioned.
    fn iommus(&self) -> BTreeSet<&'a str> {
        let stated = self.statements.iter().map(|(s, _)| &s.scope);
        let scopes = stated.chain(self.gaps.iter().map(|gap| &gap.scope));
        scopes
            .filter_map(|scope| match scope {
                Scope::Iommu(name) => Some(name.as_str()),
                _ => None,
            })
            .chain(self.served.iter().map(|s| s.iommu.as_str()))
            .collect()
    }
}

/// `a, b, c and 4 more`.
fn list(items: impl Iterator<Item = impl ToString>) -> String {
    let mut items: Vec<_> = items.map(|item| item.to_string()).collect();
    items.dedup();
    let more = items.len().saturating_sub(LISTED);
    items.truncate(LISTED);
    let mut text = items.join(", ");
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}
