//! The rings between driver and IOMMU: commands, events, page requests, GA log (48882 §2.4–2.7).

use amdvi_regs::command::{COMMAND_SIZE, Command, CompletionWait};
use amdvi_regs::event::{EVENT_SIZE, Event};
use amdvi_regs::log::{GA_LOG_ENTRY_SIZE, GaLogEntry, PPR_LOG_ENTRY_SIZE, PprLogEntry};
use amdvi_regs::mmio::{RingBase, Status, offset};

use super::Iommu;
use crate::failure::{Result, bail, ensure};
use crate::platform::Platform;
use crate::wait;

/// A ring in memory and the driver's own pointer into it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ring {
    /// Where it stands; 0 when there is none.
    pub gpa: u64,
    /// Its size in bytes, a power of two.
    pub bytes: u64,
    /// The driver's pointer, a byte offset: tail of the command ring, head of a log.
    pub at: u64,
}

impl Ring {
    /// Takes memory for 2^`len` entries of `entry` bytes.
    pub(super) fn alloc<P: Platform + ?Sized>(p: &mut P, bytes: u64) -> Result<Self> {
        let Some(gpa) = p.alloc(bytes, 4096) else {
            bail!("no RAM left for a ring of {bytes:#x} bytes");
        };
        Ok(Self { gpa, bytes, at: 0 })
    }

    /// The base register's value.
    pub(super) const fn base(&self, len: u8) -> u64 {
        RingBase::new()
            .with_base_page(self.gpa >> 12)
            .with_length(len)
            .into_bits()
    }

    const fn next(&self, entry: u64) -> u64 {
        (self.at + entry) & (self.bytes - 1)
    }
}

impl Iommu {
    /// Puts a command into the ring; the IOMMU does not see it before [`kick`](Self::kick), except
    /// when the ring is full.
    pub fn submit<P: Platform + ?Sized>(&mut self, p: &mut P, command: Command) -> Result<()> {
        self.submit_words(p, command.words())
    }

    /// Puts any two words into the ring.
    pub fn submit_words<P: Platform + ?Sized>(&mut self, p: &mut P, words: [u64; 2]) -> Result<()> {
        let next = self.commands.next(COMMAND_SIZE);
        if next == self.command_head {
            self.kick(p);
            let room = wait::until(p, |p| {
                self.command_head = self.read32(p, offset::COMMAND_HEAD);
                next != self.command_head
            });
            ensure!(
                room,
                "the command ring stays full: head {:#x}, tail {:#x}, status {:#x}",
                self.command_head,
                self.commands.at,
                self.status(p).into_bits()
            );
        }
        let entry = self.commands.gpa + self.commands.at;
        p.write_u64(entry + 8, words[1]);
        p.write_u64(entry, words[0]);
        self.commands.at = next;
        Ok(())
    }

    /// Tells the IOMMU about all commands so far.
    pub fn kick<P: Platform + ?Sized>(&mut self, p: &mut P) {
        self.write32(p, offset::COMMAND_TAIL, self.commands.at as u32);
    }

    /// Waits until all commands so far have completed: COMPLETION_WAIT with a store.
    pub fn wait<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        self.begin_wait(p)?;
        self.end_wait(p)
    }

    /// Sends the COMPLETION_WAIT of [`wait`](Self::wait).
    pub fn begin_wait<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        self.sequence += 1;
        let (gpa, value) = (self.semaphore, self.sequence);
        self.submit(
            p,
            CompletionWait::new()
                .with_s(true)
                .with_store_address_8(gpa >> 3)
                .with_store_data(value)
                .into(),
        )?;
        self.kick(p);
        Ok(())
    }

    /// Waits for the store of the last [`begin_wait`](Self::begin_wait).
    pub fn end_wait<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        let (gpa, value) = (self.semaphore, self.sequence);
        let mut rounds = 0u32;
        wait::until(p, |p| {
            rounds = rounds.wrapping_add(1);
            // A ring that has stopped stores nothing; asking costs more than looking at memory.
            p.read_u64(gpa) == value || rounds.is_multiple_of(256) && !self.status(p).cmd_buf_run()
        });
        if p.read_u64(gpa) != value {
            bail!(
                "COMPLETION_WAIT does not store: head {:#x}, tail {:#x}, status {:#x}, memory {:#x}",
                self.read32(p, offset::COMMAND_HEAD),
                self.read32(p, offset::COMMAND_TAIL),
                self.status(p).into_bits(),
                p.read_u64(gpa)
            );
        }
        Ok(())
    }

    /// One command and its completion.
    pub fn command<P: Platform + ?Sized>(
        &mut self,
        p: &mut P,
        command: impl Into<Command>,
    ) -> Result<()> {
        self.submit(p, command.into())?;
        self.wait(p)
    }

    /// Starts the command ring again after an error: empty, CmdBufEn 0 → 1.
    pub fn restart_commands<P: Platform + ?Sized>(&mut self, p: &mut P) {
        let control = self.control;
        self.set_control(p, control.with_cmd_buf_en(false));
        self.write32(p, offset::COMMAND_HEAD, 0);
        self.write32(p, offset::COMMAND_TAIL, 0);
        self.commands.at = 0;
        self.command_head = 0;
        self.set_control(p, control.with_cmd_buf_en(true));
    }

    /// Takes the oldest event out of the log; `None` when it is empty.
    ///
    /// The tail may be visible before the entry: a driver waits until the code is not 0.
    pub fn next_event<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<Option<Event>> {
        let tail = self.read32(p, offset::EVENT_TAIL);
        if tail == self.events.at {
            return Ok(None);
        }
        ensure!(
            tail < self.events.bytes && tail.is_multiple_of(EVENT_SIZE),
            "event log tail {tail:#x} is no entry of a log of {:#x} bytes",
            self.events.bytes
        );
        let entry = self.events.gpa + self.events.at;
        if !wait::until(p, |p| p.read_u64(entry) >> 60 != 0) {
            bail!("event log tail is {tail:#x}, but the entry at {entry:#x} stays empty");
        }
        let words = [p.read_u64(entry), p.read_u64(entry + 8)];
        p.write_u64(entry, 0);
        p.write_u64(entry + 8, 0);
        self.events.at = self.events.next(EVENT_SIZE);
        self.write32(p, offset::EVENT_HEAD, self.events.at as u32);
        Ok(Some(Event::decode(words)))
    }

    /// Entries in the event log that were not taken out.
    pub fn pending_events<P: Platform + ?Sized>(&self, p: &mut P) -> u64 {
        let tail = self.read32(p, offset::EVENT_TAIL);
        (tail.wrapping_sub(self.events.at) & (self.events.bytes - 1)) / EVENT_SIZE
    }

    /// Takes the oldest entry out of the GA log; `None` when it is empty.
    pub fn next_ga_entry<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<Option<GaLogEntry>> {
        let tail = self.read32(p, offset::GA_TAIL);
        if tail == self.ga_log.at {
            return Ok(None);
        }
        let entry = self.ga_log.gpa + self.ga_log.at;
        if !wait::until(p, |p| p.read_u64(entry) >> 60 != 0) {
            bail!("GA log tail is {tail:#x}, but the entry at {entry:#x} stays empty");
        }
        let word = p.read_u64(entry);
        p.write_u64(entry, 0);
        self.ga_log.at = self.ga_log.next(GA_LOG_ENTRY_SIZE);
        self.write32(p, offset::GA_HEAD, self.ga_log.at as u32);
        Ok(Some(GaLogEntry::from_bits(word)))
    }

    /// Takes the oldest page request out of the PPR log; `None` when it is empty.
    pub fn next_page_request<P: Platform + ?Sized>(
        &mut self,
        p: &mut P,
    ) -> Result<Option<PprLogEntry>> {
        let tail = self.read32(p, offset::PPR_TAIL);
        if tail == self.ppr_log.at {
            return Ok(None);
        }
        ensure!(
            tail < self.ppr_log.bytes && tail.is_multiple_of(PPR_LOG_ENTRY_SIZE),
            "PPR log tail {tail:#x} is no entry of a log of {:#x} bytes",
            self.ppr_log.bytes
        );
        let entry = self.ppr_log.gpa + self.ppr_log.at;
        if !wait::until(p, |p| p.read_u64(entry) >> 60 != 0) {
            bail!("PPR log tail is {tail:#x}, but the entry at {entry:#x} stays empty");
        }
        let words = [p.read_u64(entry), p.read_u64(entry + 8)];
        p.write_u64(entry, 0);
        p.write_u64(entry + 8, 0);
        self.ppr_log.at = self.ppr_log.next(PPR_LOG_ENTRY_SIZE);
        self.write32(p, offset::PPR_HEAD, self.ppr_log.at as u32);
        Ok(Some(PprLogEntry::from_words(words)))
    }

    /// Starts the PPR log again after an overflow, as Linux does.
    pub fn restart_ppr_log<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        let stopped = wait::until(p, |p| !self.status(p).ppr_log_run());
        ensure!(stopped, "PPRLogRun stays 1 after an overflow");
        let control = self.control;
        self.set_control(p, control.with_ppr_log_en(false).with_ppr_int_en(false));
        self.clear_status(p, Status::new().with_ppr_overflow(true));
        self.set_control(p, control);
        Ok(())
    }

    /// Starts the event log again after an overflow, as Linux does.
    pub fn restart_events<P: Platform + ?Sized>(&mut self, p: &mut P) -> Result<()> {
        let stopped = wait::until(p, |p| !self.status(p).event_log_run());
        ensure!(stopped, "EventLogRun stays 1 after an overflow");
        let control = self.control;
        self.set_control(p, control.with_event_log_en(false).with_event_int_en(false));
        self.clear_status(p, Status::new().with_event_overflow(true));
        self.set_control(p, control);
        Ok(())
    }
}
