//! The list of allowed lines on recorded logs: each fixture is the log of a boot on the reference
//! VMM, with interrupts and DMA of the test endpoint, as the kernel of its name wrote it.

use amdvi_lab_guest::allow::Allowed;

/// Releases, and what their kernels said.
const LOGS: [(&str, &str); 3] = [
    (
        "6.12.107+deb13-amd64",
        include_str!("fixtures/debian-6.12.log"),
    ),
    ("7.3.4+deb13-amd64", include_str!("fixtures/debian-7.log")),
    ("7.3.4-amdvi-lab", include_str!("fixtures/built.log")),
];

#[test]
fn a_good_boot_has_no_line_that_is_not_allowed_and_each_event_is_one() {
    for (release, log) in LOGS {
        assert!(log.starts_with(&format!("Linux version {release} ")));
        assert!(log.lines().count() > 300);
        let unexpected = Allowed::of(release).unexpected(log.lines());
        let provoked = |line: &&str| {
            line.contains("AMD-Vi: Event logged [")
                || line.ends_with("Event log restarting")
                || line.ends_with("callbacks suppressed")
        };
        let provoked: Vec<_> = log.lines().filter(provoked).collect();
        assert_eq!(unexpected, provoked, "{release}");
    }
}

/// What only the lab's kernel says is no good sign in one of Debian's.
#[test]
fn a_section_is_for_its_kernels_alone() {
    let (_, log) = LOGS[2];
    let unexpected = Allowed::of("7.3.4+deb13-amd64").unexpected(log.lines());
    assert!(
        unexpected
            .iter()
            .any(|line| line.starts_with("x86/PAT: PAT support disabled"))
    );
}
