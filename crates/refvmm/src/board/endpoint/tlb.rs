//! The endpoint's own translations (PCIe ATS) and its page requests (PRI).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use amdvi_device::{
    Access, Answer, DeviceAts, DeviceInvalidation, Endpoint, InvalidationAnswer, PageRequest,
    PageRequested, PageResponse, Pasid, Permissions,
};

use serde::{Deserialize, Serialize};

use super::dma::Interruption;
use super::lock;
use crate::board::snapshot::{StateError, ensure};

/// Translations that it keeps.
const ENTRIES: usize = 256;
/// How long it waits for the answer to a page request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks, meanwhile, whether its operation was cancelled; and how long it waits before
/// it repeats a request for which there was no room.
const LOOK: Duration = Duration::from_millis(5);
/// Tags of page requests have 9 bits.
const TAGS: u32 = 0x200;

/// What software has enabled in the capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Enabled {
    pub(super) pasid: bool,
    pub(super) execute: bool,
    pub(super) privileged: bool,
    pub(super) ats: bool,
    pub(super) pri: bool,
}

/// A translation in the TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pasid: Option<u32>,
    privileged: bool,
    execute: bool,
    first: u64,
    last: u64,
    gpa: u64,
    read: bool,
    write: bool,
}

/// A page request that software has been made, and what is known of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    pasid: Option<u32>,
    iova: u64,
    write: bool,
    /// The response code.
    code: Option<u8>,
    /// Who waits for it was suspended, and takes it up again.
    suspended: bool,
}

/// The TLB as it is saved, with the page requests under way: software answers them some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TlbState {
    enabled: Enabled,
    entries: Vec<Entry>,
    requests: BTreeMap<u16, Waiting>,
    next_tag: u32,
    mute: bool,
    /// In the order of [`Counters::all`].
    counters: [u64; 6],
}

impl Entry {
    fn new(pasid: Option<Pasid>, answer: &Answer) -> Self {
        let size = 1u64.checked_shl(answer.shift.into()).unwrap_or(0);
        Self {
            pasid: pasid.map(Pasid::value),
            privileged: pasid.is_some_and(Pasid::privileged),
            execute: answer.execute,
            first: answer.iova,
            last: answer.iova.wrapping_add(size.wrapping_sub(1)),
            gpa: answer.gpa,
            read: answer.permissions.contains(Permissions::READ),
            write: answer.permissions.contains(Permissions::WRITE),
        }
    }

    fn permits(&self, pasid: Option<Pasid>, iova: u64, access: Access) -> bool {
        self.pasid == pasid.map(Pasid::value)
            && self.privileged == pasid.is_some_and(Pasid::privileged)
            && (self.execute || !pasid.is_some_and(Pasid::execute))
            && self.first <= iova
            && iova <= self.last
            && self.permissions().contains(access.needs())
    }

    fn permissions(&self) -> Permissions {
        let mut permissions = Permissions::empty();
        permissions.set(Permissions::READ, self.read);
        permissions.set(Permissions::WRITE, self.write);
        permissions
    }

    /// The GPA of `iova`, and how many bytes follow in the page.
    pub(super) fn gpa(&self, iova: u64) -> (u64, u64) {
        let offset = iova - self.first;
        let room = (self.last - iova).saturating_add(1);
        (self.gpa + offset, room)
    }
}

/// Counters, since the function was made.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) translation_requests: AtomicU64,
    pub(super) invalidations: AtomicU64,
    /// Of the invalidations, those of a PASID.
    pub(super) pasid_invalidations: AtomicU64,
    pub(super) page_requests: AtomicU64,
    pub(super) page_responses: AtomicU64,
}

/// What a TLB has counted since the function was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TlbCounts {
    /// Accesses whose translation was found.
    pub hits: u64,
    /// Translation requests.
    pub translation_requests: u64,
    /// Invalidations that the IOMMU has asked for.
    pub invalidations: u64,
    /// Those of them that had a PASID.
    pub pasid_invalidations: u64,
    /// Page requests, repeated ones included.
    pub page_requests: u64,
    /// Page requests that software has answered with COMPLETE_PPR_REQUEST.
    pub page_responses: u64,
}

impl Counters {
    pub(super) fn read(&self) -> TlbCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        TlbCounts {
            hits: read(&self.hits),
            translation_requests: read(&self.translation_requests),
            invalidations: read(&self.invalidations),
            pasid_invalidations: read(&self.pasid_invalidations),
            page_requests: read(&self.page_requests),
            page_responses: read(&self.page_responses),
        }
    }

    /// Those that are saved.
    fn all(&self) -> [&AtomicU64; 6] {
        [
            &self.hits,
            &self.translation_requests,
            &self.invalidations,
            &self.pasid_invalidations,
            &self.page_requests,
            &self.page_responses,
        ]
    }
}

/// The TLB and the page requests under way, of one function.
#[derive(Default)]
pub(super) struct Tlb {
    enabled: Mutex<Enabled>,
    entries: Mutex<VecDeque<Entry>>,
    /// By tag.
    requests: Mutex<BTreeMap<u16, Waiting>>,
    answered: Condvar,
    next_tag: AtomicU32,
    /// Invalidations are neither carried out nor answered.
    pub(super) mute: AtomicBool,
    pub(super) counters: Counters,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::AcqRel);
}

impl Tlb {
    pub(super) fn enabled(&self) -> Enabled {
        *lock(&self.enabled)
    }

    /// Follows the capabilities' control registers. A TLB that is switched off is empty.
    pub(super) fn set_enabled(&self, enabled: Enabled) {
        *lock(&self.enabled) = enabled;
        if !enabled.ats {
            lock(&self.entries).clear();
        }
    }

    pub(super) fn save(&self) -> TlbState {
        TlbState {
            enabled: self.enabled(),
            entries: lock(&self.entries).iter().copied().collect(),
            requests: lock(&self.requests).clone(),
            next_tag: self.next_tag.load(Ordering::Acquire),
            mute: self.mute.load(Ordering::Acquire),
            counters: self
                .counters
                .all()
                .map(|counter| counter.load(Ordering::Acquire)),
        }
    }

    pub(super) fn restore(&self, state: &TlbState) -> Result<(), StateError> {
        let possible = |entry: &Entry| entry.first <= entry.last;
        ensure(
            state.entries.len() <= ENTRIES && state.entries.iter().all(possible),
            "a TLB with impossible entries",
        )?;
        *lock(&self.enabled) = state.enabled;
        *lock(&self.entries) = state.entries.iter().copied().collect();
        let tags = state.requests.range(..TAGS as u16);
        *lock(&self.requests) = tags.map(|(tag, waiting)| (*tag, *waiting)).collect();
        self.next_tag.store(state.next_tag, Ordering::Release);
        self.mute.store(state.mute, Ordering::Release);
        for (counter, saved) in self.counters.all().into_iter().zip(state.counters) {
            counter.store(saved, Ordering::Release);
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    /// The translation for an access. The caller's operation must have begun: then an invalidation
    /// that comes later waits for it.
    pub(super) fn find(&self, pasid: Option<Pasid>, iova: u64, access: Access) -> Option<Entry> {
        let entries = lock(&self.entries);
        let found = entries
            .iter()
            .find(|entry| entry.permits(pasid, iova, access))
            .copied();
        if found.is_some() {
            count(&self.counters.hits);
        }
        found
    }

    /// Keeps an answer, while the operation that asked for it lives. The oldest goes when there are
    /// too many.
    pub(super) fn insert(&self, pasid: Option<Pasid>, answer: &Answer) -> Entry {
        let entry = Entry::new(pasid, answer);
        let mut entries = lock(&self.entries);
        if entries.len() >= ENTRIES {
            entries.pop_front();
        }
        entries.push_back(entry);
        entry
    }

    /// Asks software for a page and waits for its answer: whether it is there now. `wait` ends that
    /// early; a wait that was suspended is taken up by who asks for the same again.
    pub(super) fn request_page(
        &self,
        mut endpoint: impl FnMut(&mut dyn FnMut(&mut Endpoint)),
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
        wait: Interruption<'_>,
    ) -> bool {
        let asked = Waiting {
            pasid: pasid.map(Pasid::value),
            iova,
            write: access.writes(),
            code: None,
            suspended: false,
        };
        let again = self.take_up(&asked);
        let tag = again.unwrap_or_else(|| {
            let tag = (self.next_tag.fetch_add(1, Ordering::AcqRel) % TAGS) as u16;
            lock(&self.requests).insert(tag, asked);
            tag
        });
        let request = PageRequest {
            pasid,
            address: iova,
            read: access.needs().contains(Permissions::READ),
            write: access.writes(),
            tag,
            last: true,
        };
        let end = Instant::now() + PATIENCE;
        let waits = || Instant::now() < end && !wait.cancel.load(Ordering::Acquire);
        let mut code = None;
        let mut logged = again.is_some();
        while waits() {
            if logged {
                code = self.wait(tag, waits);
                break;
            }
            count(&self.counters.page_requests);
            let mut requested = PageRequested::Lost;
            endpoint(&mut |endpoint| requested = endpoint.page_request(&request));
            match requested {
                PageRequested::Logged => logged = true,
                PageRequested::Answered(response) | PageRequested::Refused(_, response) => {
                    code = response.map(|response| response.code);
                    break;
                }
                PageRequested::Lost => std::thread::sleep(LOOK),
            }
        }
        let mut requests = lock(&self.requests);
        match requests.get_mut(&tag) {
            Some(waiting) if logged && code.is_none() && wait.suspend.load(Ordering::Acquire) => {
                waiting.suspended = true;
            }
            _ => {
                requests.remove(&tag);
            }
        }
        drop(requests);
        if code == Some(PageResponse::FAILURE) {
            // Page requests don't work: no more of them until software enables them again.
            lock(&self.enabled).pri = false;
        }
        code == Some(PageResponse::SUCCESS)
    }

    /// The tag of a request whose wait was suspended.
    fn take_up(&self, asked: &Waiting) -> Option<u16> {
        let mut requests = lock(&self.requests);
        let same = |waiting: &Waiting| {
            waiting.suspended
                && Waiting {
                    code: None,
                    suspended: false,
                    ..*waiting
                } == *asked
        };
        let (tag, waiting) = requests.iter_mut().find(|(_, waiting)| same(waiting))?;
        waiting.suspended = false;
        Some(*tag)
    }

    /// Waits for the answer to `tag`.
    fn wait(&self, tag: u16, mut waits: impl FnMut() -> bool) -> Option<u8> {
        let mut requests = lock(&self.requests);
        loop {
            if let Some(code) = requests.get(&tag).and_then(|waiting| waiting.code) {
                return Some(code);
            }
            if !waits() {
                return None;
            }
            requests = self
                .answered
                .wait_timeout(requests, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl DeviceAts for Tlb {
    fn invalidate(&self, invalidation: &DeviceInvalidation) -> InvalidationAnswer {
        count(&self.counters.invalidations);
        if invalidation.pasid.is_some() {
            count(&self.counters.pasid_invalidations);
        }
        if self.mute.load(Ordering::Acquire) {
            // It never will be.
            return InvalidationAnswer::Later;
        }
        lock(&self.entries).retain(|entry| {
            entry.pasid != invalidation.pasid
                || !invalidation.range.overlaps(entry.first, entry.last)
        });
        InvalidationAnswer::Done
    }

    fn page_response(&self, response: &PageResponse) {
        if let Some(waiting) = lock(&self.requests).get_mut(&response.tag) {
            waiting.code = Some(response.code);
            count(&self.counters.page_responses);
            self.answered.notify_all();
        }
    }
}
