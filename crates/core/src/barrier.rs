//! The two halves of the barrier between using a translation and invalidating it.

use crate::sync::{Ordering, fence};

/// Which barrier orders the in-flight word against the generations.
///
/// One choice per [`Fabric`](crate::Fabric): both sides must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// A sequentially consistent fence on both sides. Works everywhere; some 5–10 ns on each use of
    /// a translation.
    Portable,
    /// Nothing but a compiler fence on the fast side, `membarrier(2)` (private expedited) on the
    /// invalidating side.
    #[cfg(all(feature = "membarrier", target_os = "linux", not(loom)))]
    Membarrier,
    /// [`Membarrier`](Self::Membarrier) as a model: see [`modelled`].
    #[cfg(loom)]
    Modelled,
    /// The same without the barrier that the kernel adds, to show that the model misses it.
    #[cfg(loom)]
    Forgotten,
}

impl Barrier {
    /// The cheapest barrier for the fast side that works on this host.
    ///
    /// Registers the process for `membarrier(2)` where the feature is built in and the kernel has
    /// it (Linux 4.14); otherwise [`Portable`](Self::Portable).
    pub fn best() -> Self {
        #[cfg(all(feature = "membarrier", target_os = "linux", not(loom)))]
        if membarrier::register() {
            return Self::Membarrier;
        }
        Self::Portable
    }

    /// The fast side: orders the in-flight store before the generation loads.
    #[inline(always)]
    pub(crate) fn light(self) {
        match self {
            Self::Portable => {
                // Where there is a choice, this one is not taken: the other's way has no jump.
                core::hint::cold_path();
                fence(Ordering::SeqCst);
            }
            #[cfg(all(feature = "membarrier", target_os = "linux", not(loom)))]
            Self::Membarrier => core::sync::atomic::compiler_fence(Ordering::SeqCst),
            #[cfg(loom)]
            Self::Modelled => modelled::point(),
            #[cfg(loom)]
            Self::Forgotten => {}
        }
    }

    /// A place on the fast side where the kernel may interrupt it.
    #[cfg(loom)]
    pub(crate) fn interruptible(self) {
        if self == Self::Modelled {
            modelled::point();
        }
    }

    /// The invalidating side: orders the generation stores before the in-flight loads.
    pub(crate) fn heavy(self) {
        match self {
            Self::Portable => fence(Ordering::SeqCst),
            #[cfg(all(feature = "membarrier", target_os = "linux", not(loom)))]
            Self::Membarrier => membarrier::private_expedited(),
            #[cfg(loom)]
            Self::Modelled => modelled::private_expedited(),
            #[cfg(loom)]
            Self::Forgotten => fence(Ordering::SeqCst),
        }
    }
}

#[cfg(all(feature = "membarrier", target_os = "linux", not(loom)))]
#[allow(unsafe_code)]
mod membarrier {
    use core::sync::atomic::{Ordering, fence};

    fn call(command: libc::c_int) -> bool {
        // SAFETY: membarrier(2) takes three integers and touches no memory of ours; an unknown
        // command or flag only makes it fail.
        let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
        result == 0
    }

    /// Registers the process; false when the kernel or a seccomp filter says no.
    pub(super) fn register() -> bool {
        call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
            && call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    }

    /// Makes every running thread of the process pass a full barrier.
    pub(super) fn private_expedited() {
        // The system call fails only for want of kernel memory, or when the process was forked
        // since it registered; both pass. The fast side has no barrier of its own, so going on
        // without this one would break the promise of COMPLETION_WAIT: stopping is right.
        for _ in 0..10_000 {
            fence(Ordering::SeqCst);
            if call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
                fence(Ordering::SeqCst);
                return;
            }
            call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
        }
        panic!(
            "membarrier(2) stopped working after it had been registered; check the process's \
             seccomp filter, or build amdvi-core without the `membarrier` feature"
        );
    }
}

/// `membarrier(2)` for loom, with one thread on the fast side.
///
/// What the kernel promises: during the system call every other thread of the process passes a full
/// barrier at some place in its program, wherever it is. Here the places are those between any two
/// accesses of the protocol, and the thread passes the barrier at the first where it notices the
/// request, or has ended.
#[cfg(loom)]
pub mod modelled {
    use crate::sync::{AtomicU64, Ordering, fence, spin};

    loom::lazy_static! {
        static ref REQUESTED: AtomicU64 = AtomicU64::new(0);
        static ref PASSED: AtomicU64 = AtomicU64::new(0);
    }

    pub(super) fn point() {
        let requested = REQUESTED.load(Ordering::Relaxed);
        if requested != PASSED.load(Ordering::Relaxed) {
            fence(Ordering::SeqCst);
            PASSED.store(requested, Ordering::Release);
        }
    }

    pub(super) fn private_expedited() {
        fence(Ordering::SeqCst);
        let number = REQUESTED.fetch_add(1, Ordering::Release) + 1;
        while PASSED.load(Ordering::Acquire) < number {
            spin();
        }
        fence(Ordering::SeqCst);
    }

    /// The thread on the fast side is done.
    pub fn thread_ends() {
        PASSED.store(u64::MAX, Ordering::Release);
    }
}
