//! The command ring: COMPLETION_WAIT in all its forms, and commands that stop the ring.

use amdvi_regs::command::{CompletionWait, InvalidateDevtabEntry, InvalidateIommuPages};
use amdvi_regs::event::{CommandHardwareError, Event, IllegalCommandError};
use amdvi_regs::mmio::{Status, offset};

use super::done;
use super::own::Own;
use crate::failure::{During, Result, bail, ensure};
use crate::iommu::Config;
use crate::machine::Machine;
use crate::platform::Platform;
use crate::report::Report;
use crate::wait;

/// No RAM stands here: below 2^52, and above what a machine may have.
const NOWHERE: u64 = 1 << 50;

fn store(gpa: u64, data: u64) -> CompletionWait {
    CompletionWait::new()
        .with_s(true)
        .with_store_address_8(gpa >> 3)
        .with_store_data(data)
}

fn page<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<u64> {
    let Some(gpa) = m.p.alloc(4096, 4096) else {
        bail!("no RAM left for a page");
    };
    Ok(gpa)
}

/// Waits until the IOMMU has fetched all commands.
fn drained<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    let iommu = m.iommu;
    let empty = wait::until(m.p, |p| {
        iommu.read32(p, offset::COMMAND_HEAD) == iommu.commands.at
    });
    ensure!(
        empty,
        "the command head stays at {:#x}, the tail is {:#x}",
        m.iommu.read32(m.p, offset::COMMAND_HEAD),
        m.iommu.commands.at
    );
    Ok(())
}

/// `completion-wait`.
pub(super) fn completion_wait<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    // The shortest ring, so that it wraps often.
    let mut m = Machine::start(p, |iommu| Config {
        command_len: 8,
        ..Config::offered(iommu)
    })?;
    let at = page(&mut m)?;
    stores(&mut m, at)?;
    order_and_wrap(&mut m, at)?;
    interrupt(&mut m)?;
    m.expect_no_event()?;
    done(
        &m,
        report,
        format_args!(
            "s stores all 64 bits and only then; i sets ComWaitInt, and interrupts exactly when \
             ComWaitIntEn is 1 and the bit was 0; f completes; 1000 waits through a ring of 256 \
             stored in order"
        ),
    )
}

fn stores<P: Platform + ?Sized>(m: &mut Machine<'_, P>, at: u64) -> Result<()> {
    const DATA: u64 = 0x0123_4567_89ab_cdef;
    m.iommu.command(m.p, store(at + 8, DATA))?;
    for (offset, expected) in [(0, 0), (8, DATA), (16, 0)] {
        let seen = m.p.read_u64(at + offset);
        ensure!(
            seen == expected,
            "after a store of {DATA:#x} at offset 8, offset {offset} holds {seen:#x}"
        );
    }
    let silent = store(at + 8, !0).with_s(false);
    for command in [silent, silent.with_f(true)] {
        m.iommu.command(m.p, command)?;
        let seen = m.p.read_u64(at + 8);
        ensure!(seen == DATA, "COMPLETION_WAIT with s=0 stored {seen:#x}");
    }
    m.iommu.command(m.p, store(at + 8, 7).with_f(true))?;
    let seen = m.p.read_u64(at + 8);
    ensure!(seen == 7, "COMPLETION_WAIT with s=1, f=1 stored {seen:#x}");
    Ok(())
}

fn order_and_wrap<P: Platform + ?Sized>(m: &mut Machine<'_, P>, at: u64) -> Result<()> {
    const BATCH: u64 = 50;
    for batch in 0..20 {
        for n in 0..BATCH {
            // Two stores to one word: the later one must win.
            let word = at + 64 + 8 * n;
            m.iommu.submit(m.p, store(word, !0).into())?;
            m.iommu.submit(m.p, store(word, batch * BATCH + n).into())?;
        }
        m.iommu.wait(m.p)?;
        // The wait was the last command: all others have stored before it.
        for n in 0..BATCH {
            let seen = m.p.read_u64(at + 64 + 8 * n);
            ensure!(
                seen == batch * BATCH + n,
                "batch {batch}: word {n} is {seen:#x} when the wait behind it has completed"
            );
        }
    }
    // More commands than the ring holds.
    for n in 0..400 {
        m.iommu.submit(m.p, store(at + 8, n).into())?;
    }
    m.iommu.wait(m.p)?;
    let seen = m.p.read_u64(at + 8);
    ensure!(seen == 399, "the last of 400 stores was {seen:#x}");
    Ok(())
}

fn interrupt<P: Platform + ?Sized>(m: &mut Machine<'_, P>) -> Result<()> {
    const VECTOR: u8 = 0x91;
    let cpu = m.low_cpu()?;
    let own = Own::by_msi(m, cpu, VECTOR)?;
    let bit = Status::new().with_com_wait_int(true);
    m.iommu.clear_status(m.p, bit);
    let interrupting = CompletionWait::new().with_i(true);

    m.iommu.command(m.p, interrupting)?;
    ensure!(
        m.iommu.status(m.p).com_wait_int(),
        "ComWaitInt stays 0 after COMPLETION_WAIT with i=1, ComWaitIntEn=0"
    );
    own.none(m).during("ComWaitIntEn=0")?;
    m.iommu.clear_status(m.p, bit);
    ensure!(
        !m.iommu.status(m.p).com_wait_int(),
        "ComWaitInt is not cleared by writing 1"
    );

    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_com_wait_int_en(true));
    own.none(m).during("ComWaitIntEn set")?;
    m.iommu.command(m.p, CompletionWait::new())?;
    own.none(m).during("COMPLETION_WAIT with i=0")?;
    for _ in 0..2 {
        m.iommu.command(m.p, interrupting)?;
        own.one(m).during("COMPLETION_WAIT with i=1")?;
        // The bit is still 1, so there is nothing new to tell.
        m.iommu.command(m.p, interrupting)?;
        own.none(m).during("ComWaitInt still 1")?;
        m.iommu.clear_status(m.p, bit);
    }
    m.iommu.set_control(m.p, control);
    own.off(m);
    Ok(())
}

/// `command-errors`.
pub(super) fn errors<P: Platform + ?Sized>(p: &mut P, report: &mut Report) -> Result<()> {
    let mut m = Machine::start(p, Config::offered)?;
    let at = page(&mut m)?;
    let reserved_word = |words: [u64; 2], bit: u32| {
        let mut words = words;
        words[bit as usize / 64] |= 1 << (bit % 64);
        words
    };
    let devtab = amdvi_regs::command::Command::from(InvalidateDevtabEntry::new()).words();
    let pages = amdvi_regs::command::Command::from(InvalidateIommuPages::new()).words();
    let wait = amdvi_regs::command::Command::from(store(at, 1)).words();
    let illegal = [
        ("opcode 0", [0, 0]),
        ("opcode Fh", [0xf << 60, 0]),
        ("COMPLETE_PPR_REQUEST without PPRSup", [7 << 60, 0]),
        ("INVALIDATE_IOTLB_PAGES without IotlbSup", [4 << 60, 0]),
        ("COMPLETION_WAIT, bit 52", reserved_word(wait, 52)),
        ("INVALIDATE_DEVTAB_ENTRY, bit 16", reserved_word(devtab, 16)),
        (
            "INVALIDATE_DEVTAB_ENTRY, bit 127",
            reserved_word(devtab, 127),
        ),
        ("INVALIDATE_IOMMU_PAGES, bit 20", reserved_word(pages, 20)),
    ];
    for (what, words) in illegal {
        halts(&mut m, at, words, |gpa| {
            IllegalCommandError::new().with_address_16(gpa >> 4).into()
        })
        .during(what)?;
    }
    let unreachable = amdvi_regs::command::Command::from(store(NOWHERE, 1)).words();
    halts(&mut m, at, unreachable, |gpa| {
        CommandHardwareError::new()
            .with_kind(1)
            .with_address_16(gpa >> 4)
            .into()
    })
    .during("COMPLETION_WAIT that stores outside of RAM")?;
    let count = illegal.len() + 1;
    done(
        &m,
        report,
        format_args!(
            "{count} bad commands: each stops the ring with the head at it, is logged with its \
             address, nothing behind it runs until CmdBufEn 0 → 1, and then the ring works"
        ),
    )
}

/// Runs a bad command between two good ones.
fn halts<P: Platform + ?Sized>(
    m: &mut Machine<'_, P>,
    at: u64,
    words: [u64; 2],
    event: impl FnOnce(u64) -> Event,
) -> Result<()> {
    m.p.write_u64(at, 0);
    m.p.write_u64(at + 8, 0);
    m.iommu.submit(m.p, store(at, 1).into())?;
    let bad = m.iommu.commands.at;
    let gpa = m.iommu.commands.gpa + bad;
    m.iommu.submit_words(m.p, words)?;
    m.iommu.submit(m.p, store(at + 8, 2).into())?;
    m.iommu.kick(m.p);
    let iommu = m.iommu;
    let stopped = wait::until(m.p, |p| !iommu.status(p).cmd_buf_run());
    ensure!(stopped, "CmdBufRun stays 1");
    let head = m.iommu.read32(m.p, offset::COMMAND_HEAD);
    ensure!(
        head == bad,
        "the head is {head:#x}, the bad command stands at {bad:#x}"
    );
    m.expect_event(event(gpa))?;
    // A tail write does not start it again.
    m.iommu.kick(m.p);
    let (before, after) = (m.p.read_u64(at), m.p.read_u64(at + 8));
    ensure!(
        before == 1 && after == 0,
        "the store before the command left {before:#x}, the one behind it {after:#x}"
    );
    m.expect_no_event()?;
    m.blocked += 1;

    // The same commands with the bad one mended run to the end.
    let nothing = amdvi_regs::command::Command::from(CompletionWait::new()).words();
    m.p.write_u64(gpa + 8, nothing[1]);
    m.p.write_u64(gpa, nothing[0]);
    let control = m.iommu.control;
    m.iommu.set_control(m.p, control.with_cmd_buf_en(false));
    m.iommu.set_control(m.p, control);
    ensure!(
        m.iommu.status(m.p).cmd_buf_run(),
        "CmdBufRun stays 0 after CmdBufEn 0 → 1"
    );
    m.iommu.kick(m.p);
    drained(m)?;
    let after = m.p.read_u64(at + 8);
    ensure!(
        after == 2,
        "after the restart the store behind left {after:#x}"
    );
    // And so does an emptied ring, as Linux restarts it.
    m.iommu.restart_commands(m.p);
    m.iommu.wait(m.p)
}
