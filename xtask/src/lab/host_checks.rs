//! What `amdvi-hostcap` must say on each kernel.

use amdvi_lab_init::Report;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::host::ran;

/// What a guest reported, and what QEMU's amd-iommu has in its registers.
pub(super) struct Seen {
    pub(super) report: Report,
    pub(super) efr: u64,
    pub(super) efr2: u64,
}

/// A test: says what it saw.
pub(super) type Check = fn(&Seen) -> Result<String>;

/// Debian's kernels under amd-iommu.
pub(super) const DEBIAN: &[(&str, Check)] = &[
    ("sysfs-registers-are-the-devices", sysfs_registers),
    ("sysfs-tells-who-serves-a-function", sysfs_serves),
    ("sysfs-needs-no-privileges", sysfs_unprivileged),
    ("debugfs-that-is-not-there-says-what-it-takes", no_debugfs),
    ("iommufd-that-is-not-there-says-what-it-takes", no_iommufd),
    ("2k-is-refused-with-the-reason", two_k_refused),
    ("ram-moves-above-the-hole", ram_above),
    ("legacy-container-knows-nothing", legacy_container),
    ("kvm-unassigned-capability-is-no", kvm_unassigned),
];

/// The kernel with iommufd under amd-iommu.
pub(super) const BUILT_AMD: &[(&str, Check)] = &[
    ("hw-info-is-amds", hw_info_amd),
    ("bound-without-attaching-and-let-go", bound_and_let_go),
    ("hw-info-agrees-with-sysfs", hw_info_agrees),
    ("iommufd-without-privileges-says-so", iommufd_unprivileged),
    ("sysfs-registers-are-the-devices", sysfs_registers),
    ("debugfs-shows-control", debugfs_control),
    ("2k-is-refused-with-the-reason", two_k_refused),
    ("ram-moves-above-the-hole", ram_above),
    ("legacy-container-knows-nothing", legacy_container),
    ("kvm-unassigned-capability-is-no", kvm_unassigned),
];

/// The kernel with iommufd under intel-iommu.
pub(super) const BUILT_INTEL: &[(&str, Check)] = &[
    ("hw-info-is-intels", hw_info_intel),
    ("sysfs-says-that-it-is-intels", sysfs_intel),
    ("2k-is-refused-with-the-reason", two_k_refused),
    ("ram-stays-for-there-is-no-hole", ram_stays),
    ("legacy-container-knows-nothing", legacy_container),
];

/// As [`BUILT_AMD`], but nothing allows what the IOMMU does not protect.
pub(super) const BUILT_UNSAFE: &[(&str, Check)] =
    &[("bind-that-is-refused-says-why", bind_refused)];

/// The kernel with iommufd and no IOMMU.
pub(super) const BUILT_NONE: &[(&str, Check)] = &[
    ("a-host-without-iommu-says-so", no_iommu),
    ("a-function-without-vfio-says-so", no_vfio_device),
    ("kvm-unassigned-capability-is-no", kvm_unassigned),
];

/// What a command printed as JSON.
fn json(seen: &Seen, name: &str) -> Result<Value> {
    let ran = ran(&seen.report, name)?;
    serde_json::from_str(&ran.stdout).with_context(|| {
        format!(
            "`{name}` printed no JSON (exit code {:?}): {}{}",
            ran.code, ran.stdout, ran.stderr
        )
    })
}

/// The part of a recording that a source has.
fn source<'a>(recording: &'a Value, name: &str) -> Result<&'a Value> {
    let sources = recording["sources"].as_array();
    sources
        .into_iter()
        .flatten()
        .find(|asked| {
            asked["source"]
                .as_str()
                .is_some_and(|s| s.starts_with(name))
        })
        .with_context(|| format!("source {name} is not in {recording}"))
}

/// What a source answered before any device was bound.
fn answer<'a>(recording: &'a Value, name: &str) -> Result<&'a Value> {
    let asked = source(recording, name)?;
    let answer = &asked["early"]["answer"];
    ensure!(answer.is_object(), "{name} did not answer: {asked}");
    Ok(answer)
}

/// Why a source did not answer.
fn error(recording: &Value, name: &str) -> Result<String> {
    let asked = source(recording, name)?;
    let error = asked["early"]["error"].as_str();
    Ok(error
        .with_context(|| format!("{name} did not fail: {asked}"))?
        .to_owned())
}

/// The note or gap that contains a text, of `notes` with `text` or `gaps` with `problem`.
fn line(answer: &Value, list: &str, part: &str) -> Result<String> {
    let field = if list == "notes" { "text" } else { "problem" };
    let texts = answer[list].as_array();
    texts
        .into_iter()
        .flatten()
        .filter_map(|entry| entry[field].as_str())
        .find(|text| text.contains(part))
        .map(str::to_owned)
        .with_context(|| format!("nothing in `{list}` has `{part}`: {answer}"))
}

/// The value of the fact about a feature, and what it is evidence of.
fn fact<'a>(answer: &'a Value, subject: &str, aspect: &str) -> Result<&'a Value> {
    let facts = answer["facts"].as_array();
    facts
        .into_iter()
        .flatten()
        .find(|fact| fact["subject"] == subject && fact["aspect"] == aspect)
        .with_context(|| format!("no fact on {subject} ({aspect}) in {answer}"))
}

fn says(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "no `{part}` in: {text}");
    }
    Ok(())
}

fn file<'a>(seen: &'a Seen, path: &str) -> Result<&'a str> {
    match seen.report.files.get(path) {
        Some(Ok(text)) => Ok(text),
        Some(Err(error)) => bail!("{path}: {error}"),
        None => bail!("{path} was not read"),
    }
}

fn function(seen: &Seen) -> Result<&str> {
    let bound = seen.report.vfio.first();
    let bound = bound.context("no function was looked for")?;
    ensure!(!bound.function.is_empty(), "{:?}", bound.error);
    Ok(&bound.function)
}

/// The function, bound to vfio-pci by the kernel under test.
fn bound_function(seen: &Seen) -> Result<&str> {
    if let Some(error) = seen
        .report
        .vfio
        .first()
        .and_then(|bound| bound.error.as_ref())
    {
        bail!("the function is not bound to vfio-pci: {error}");
    }
    function(seen)
}

fn decision(seen: &Seen, command: &str, feature: &str) -> Result<(bool, String)> {
    let offer = json(seen, command)?;
    let decisions = offer["decisions"].as_array();
    let decision = decisions
        .into_iter()
        .flatten()
        .find(|decision| decision["feature"] == feature)
        .with_context(|| format!("no decision on {feature} in {offer}"))?;
    ensure!(decision["requested"] == true, "{decision}");
    let granted = decision["granted"].as_bool();
    let granted = granted.with_context(|| decision.to_string())?;
    let reason = decision["reason"].as_str().unwrap_or_default();
    Ok((granted, reason.to_owned()))
}

fn sysfs_registers(seen: &Seen) -> Result<String> {
    let raw = file(seen, "/sys/class/iommu/ivhd0/amd-iommu/features")?;
    let expected = format!("{:x}:{:x}", seen.efr, seen.efr2);
    ensure!(
        raw == expected,
        "the kernel shows {raw}, and the device has {expected}"
    );
    let recording = json(seen, "probe")?;
    let sysfs = answer(&recording, "sysfs:/sys")?;
    let note = line(sysfs, "notes", "EFR=")?;
    let (efr, efr2) = (seen.efr, seen.efr2);
    says(
        &note,
        &[
            &format!("EFR={efr:#018x}, EFR2={efr2:#x}"),
            "EFR:EFR2, as Linux 6.7 and later",
        ],
    )?;
    let xt = fact(sysfs, "xtsup", "hardware")?;
    ensure!(
        xt["value"] == (efr & 1 << 2 != 0) && xt["scope"]["iommu"] == "ivhd0",
        "{xt}"
    );
    ensure!(fact(sysfs, "numint2k", "hardware")?["value"] == false);
    Ok(note)
}

fn sysfs_serves(seen: &Seen) -> Result<String> {
    let function = function(seen)?;
    let recording = json(seen, "probe")?;
    let served = &answer(&recording, "sysfs:/sys")?["served"];
    let mut all = served.as_array().into_iter().flatten();
    let one = all
        .find(|one| one["function"] == function)
        .with_context(|| format!("{function} is not in {served}"))?;
    ensure!(one["iommu"] == "ivhd0", "{one}");
    Ok(format!("{function} by ivhd0"))
}

fn sysfs_unprivileged(seen: &Seen) -> Result<String> {
    let (root, nobody) = (json(seen, "probe")?, json(seen, "probe-nobody")?);
    ensure!(
        answer(&root, "sysfs:/sys")? == answer(&nobody, "sysfs:/sys")?,
        "root and nobody are told different things: {nobody}"
    );
    let refused = error(&nobody, "debugfs:")?;
    says(
        &refused,
        &["/sys/kernel/debug/iommu/amd: Permission denied", "root"],
    )?;
    Ok(refused)
}

fn no_debugfs(seen: &Seen) -> Result<String> {
    let error = error(&json(seen, "probe")?, "debugfs:")?;
    says(
        &error,
        &[
            "/sys/kernel/debug/iommu/amd: No such file",
            "CONFIG_AMD_IOMMU_DEBUGFS",
        ],
    )?;
    Ok(error)
}

fn no_iommufd(seen: &Seen) -> Result<String> {
    bound_function(seen)?;
    let mut said = String::new();
    for command in ["iommufd", "iommufd-device"] {
        said = error(&json(seen, command)?, "iommufd:")?;
        says(
            &said,
            &[
                "/dev/iommu: No such file",
                "modprobe iommufd",
                "CONFIG_IOMMUFD",
            ],
        )?;
        let code = ran(&seen.report, command)?.code;
        ensure!(code == Some(1), "`{command}` ended with {code:?}");
    }
    Ok(said)
}

fn two_k_refused(seen: &Seen) -> Result<String> {
    let (granted, reason) = decision(seen, "explain", "numint2k")?;
    ensure!(!granted && !reason.is_empty(), "granted: {reason}");
    Ok(reason)
}

fn ram_above(seen: &Seen) -> Result<String> {
    let plan = json(seen, "plan")?;
    ensure!(plan["placement"] == "above-1-tib", "{plan}");
    let reason = plan["reason"].as_str().unwrap_or_default();
    says(reason, &["htrangeignore"])?;
    Ok("10G move above 1 TiB".to_owned())
}

fn ram_stays(seen: &Seen) -> Result<String> {
    let plan = json(seen, "plan")?;
    ensure!(plan["placement"] == "above-4-gib", "{plan}");
    Ok(plan["reason"].as_str().unwrap_or_default().to_owned())
}

fn legacy_container(seen: &Seen) -> Result<String> {
    bound_function(seen)?;
    let container = seen.report.container.as_ref();
    let container = container.context("the guest asked no container")?;
    ensure!(
        container.api_version == Some(0) && container.type1v2 == Some(1) && container.ready,
        "the legacy container is of no use: {container:?}"
    );
    // IOVA ranges, migration, DMA entries left: nothing of them is about the IOMMU's features.
    ensure!(
        !container.capabilities.is_empty()
            && container.capabilities.iter().all(|id| (1..=3).contains(id)),
        "a legacy container tells more than it is known to: {container:?}"
    );
    let (granted, reason) = decision(seen, "explain-legacy", "numint2k")?;
    ensure!(!granted, "{reason}");
    says(&reason, &["512 interrupts"])?;
    Ok(format!(
        "a real container has capabilities {:?}; {reason}",
        container.capabilities
    ))
}

fn kvm_unassigned(seen: &Seen) -> Result<String> {
    let recording = json(seen, "kvm")?;
    let kvm = answer(&recording, "kvm:100000")?;
    let two_k = fact(kvm, "numint2k", "kernel")?;
    ensure!(two_k["value"] == false, "{two_k}");
    let detail = two_k["detail"].as_str().unwrap_or_default();
    says(detail, &["KVM_CHECK_EXTENSION(100000)=0"])?;
    Ok(detail.to_owned())
}

fn hw_info_amd(seen: &Seen) -> Result<String> {
    bound_function(seen)?;
    let recording = json(seen, "probe-function")?;
    let iommufd = answer(&recording, "iommufd:")?;
    let note = line(iommufd, "notes", "IOMMU_GET_HW_INFO")?;
    says(
        &note,
        &[
            "IOMMU_GET_HW_INFO type 4, 16 bytes",
            &format!("EFR={:#018x}, EFR2={:#x}, no CONTROL", seen.efr, seen.efr2),
        ],
    )?;
    let served = &iommufd["served"][0];
    ensure!(
        served["function"] == function(seen)? && served["iommu"] == "ivhd0",
        "{served}"
    );
    let two_k = fact(iommufd, "numint2k", "hardware")?;
    ensure!(
        two_k["value"] == false && two_k["phase"] == "early",
        "{two_k}"
    );
    Ok(note)
}

fn bound_and_let_go(seen: &Seen) -> Result<String> {
    let [first, again] = ["probe-function", "probe-again"].map(|name| json(seen, name));
    ensure!(
        answer(&first?, "iommufd:")? == answer(&again?, "iommufd:")?,
        "the second time the device answers differently"
    );
    // A legacy container takes the group afterwards, which an attached or bound device forbids.
    legacy_container(seen)?;
    Ok("asked twice, and a legacy container could take the group after that".to_owned())
}

fn hw_info_agrees(seen: &Seen) -> Result<String> {
    let recording = json(seen, "probe-function")?;
    let conflicts = recording["conflicts"].as_array().map_or(1, Vec::len);
    ensure!(conflicts == 0, "{}", recording["conflicts"]);
    Ok("sysfs, debugfs and iommufd do not contradict each other".to_owned())
}

fn iommufd_unprivileged(seen: &Seen) -> Result<String> {
    let error = error(&json(seen, "iommufd-nobody")?, "iommufd:")?;
    says(&error, &["Permission denied", "give this user access"])?;
    Ok(error)
}

fn debugfs_control(seen: &Seen) -> Result<String> {
    let recording = json(seen, "probe")?;
    let debugfs = answer(&recording, "debugfs:")?;
    let note = line(debugfs, "notes", "CONTROL=0x")?;
    let digits = note.split("0x").nth(1).unwrap_or_default();
    let control = u64::from_str_radix(digits.trim(), 16)?;
    ensure!(
        control & 1 == 1,
        "the IOMMU that this kernel uses is off: {note}"
    );
    // Someone who reads the file now sees the register that was asked for.
    let shown = file(seen, "/sys/kernel/debug/iommu/amd/iommu00/mmio")?;
    says(shown, &["Offset:0x18", &format!("{control:016x}")])?;
    ensure!(fact(debugfs, "numint2k", "kernel")?["value"] == false);
    Ok(note)
}

fn hw_info_intel(seen: &Seen) -> Result<String> {
    bound_function(seen)?;
    let recording = json(seen, "probe-function")?;
    let iommufd = answer(&recording, "iommufd:")?;
    let gap = line(iommufd, "gaps", "IOMMU_GET_HW_INFO")?;
    says(&gap, &["type 1, 24 bytes", "Intel VT-d"])?;
    let (granted, reason) = decision(seen, "explain-function", "numint2k")?;
    ensure!(!granted, "{reason}");
    Ok(gap)
}

fn sysfs_intel(seen: &Seen) -> Result<String> {
    let recording = json(seen, "probe")?;
    let sysfs = answer(&recording, "sysfs:/sys")?;
    let gap = line(sysfs, "gaps", "Intel VT-d")?;
    ensure!(
        sysfs["gaps"][0]["scope"]["iommu"] == "dmar0",
        "{}",
        sysfs["gaps"]
    );
    Ok(gap)
}

fn bind_refused(seen: &Seen) -> Result<String> {
    bound_function(seen)?;
    let error = error(&json(seen, "iommufd")?, "iommufd:")?;
    says(
        &error,
        &[
            "VFIO_DEVICE_BIND_IOMMUFD on /dev/vfio/devices/vfio0",
            "interrupt remapping",
        ],
    )?;
    Ok(error)
}

fn no_iommu(seen: &Seen) -> Result<String> {
    let recording = json(seen, "probe")?;
    let error = error(&recording, "sysfs:/sys")?;
    says(&error, &["/sys/class/iommu: the kernel drives no IOMMU"])?;
    let (granted, reason) = decision(seen, "explain", "numint2k")?;
    ensure!(!granted, "{reason}");
    Ok(error)
}

fn no_vfio_device(seen: &Seen) -> Result<String> {
    let function = function(seen)?;
    let error = error(&json(seen, "iommufd")?, "iommufd:")?;
    says(&error, &[function, "vfio-dev", "vfio-pci"])?;
    Ok(error)
}
