//! Waiting for the machine, bounded.

use crate::platform::Platform;

/// How long the driver waits for a device or a CPU before it gives up, in nanoseconds.
///
/// Generous on purpose: it is no performance limit, only the end of a hang.
pub(crate) const PATIENCE_NS: u64 = 10_000_000_000;

/// Rounds after which a clock that stands still counts as broken.
const CLOCK_CHECK: u32 = 1 << 22;

/// Waits until `done` or [`PATIENCE_NS`] have passed; says whether `done`.
pub(crate) fn until<P: Platform + ?Sized>(p: &mut P, mut done: impl FnMut(&mut P) -> bool) -> bool {
    if done(p) {
        return true;
    }
    let start = p.now_ns();
    let mut rounds = 0u32;
    loop {
        p.pause();
        if done(p) {
            return true;
        }
        let passed = p.now_ns().wrapping_sub(start);
        rounds += 1;
        if passed > PATIENCE_NS || (passed == 0 && rounds >= CLOCK_CHECK) {
            return done(p);
        }
    }
}
