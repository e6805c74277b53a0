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

/// Lines of busy emulated machines, as they were seen.
#[test]
fn an_emulated_clock_that_stands_still_is_no_fault_of_the_device() {
    let lines = [
        "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc-early' as unstable \
         because the skew is too large:",
        "clocksource:                       'kvm-clock' wd_nsec: 643958926 wd_now: f7e282092 \
         wd_last: f57c61804 mask: ffffffffffffffff",
        "clocksource:                       'tsc-early' cs_nsec: 0 cs_now: d7ffce894 cs_last: \
         1da9570b21 mask: ffffffffffffffff",
        "clocksource:                       Clocksource 'tsc-early' skewed -643958926 ns (-643 ms) \
         over watchdog 'kvm-clock' interval of 643958926 ns (643 ms)",
        "clocksource:                       'kvm-clock' (not 'tsc-early') is current clocksource.",
        "tsc: Marking TSC unstable due to clocksource watchdog",
        "Unstable clock detected, switching default tracing clock to \"global\"\nIf you want to keep \
         using the local clock, then add:\n  \"trace_clock=local\"\non the kernel command line",
        "clocksource: Long readout interval, skipping watchdog check: cs_nsec: 1181784520 wd_nsec: \
         1181784161",
    ];
    assert_eq!(Allowed::of(LOGS[0].0).unexpected(lines), [""; 0]);
}
