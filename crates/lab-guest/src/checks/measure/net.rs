//! Small datagrams that a peer sends back.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amdvi_lab_guest::plan::MeasureNet;
use anyhow::{Context as _, Result, ensure};

use super::{note, phase, rates};
use crate::checks::net::{interfaces, up};
use crate::context::Context;

/// How long one waits for a datagram before those that are on their way count as lost.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the first answer may take, and how often one looks for it.
const FIRST: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

pub(in crate::checks) fn check(want: &MeasureNet, context: &Arc<Context>) -> Result<String> {
    ready(want.peer, want.port)?;
    let lost = AtomicU64::new(0);
    let lost = &lost;
    phase("net");
    let rates = rates(want.repeats, 1, |_| {
        let socket = socket(want.peer, want.port)?;
        let mut data = vec![0; want.bytes.clamp(1, 1472)];
        let flying = Cell::new(0);
        Ok(move || {
            while flying.get() < want.window.max(1) {
                socket.send(&data).context("send")?;
                flying.set(flying.get() + 1);
            }
            match socket.recv(&mut data) {
                Ok(_) => {
                    flying.set(flying.get() - 1);
                    // There and back.
                    Ok(2)
                }
                Err(error) if is_late(&error) => {
                    lost.fetch_add(flying.replace(0) as u64, Ordering::Relaxed);
                    Ok(0)
                }
                Err(error) => Err(error).context("receive"),
            }
        })
    })?;
    let said = note(context, "net-packets", "1/s", rates);
    Ok(format!("{said}; {} lost", lost.load(Ordering::Relaxed)))
}

/// Switches the first interface on and waits until the peer answers; its name.
pub(super) fn ready(peer: Ipv4Addr, port: u16) -> Result<String> {
    let interfaces = interfaces()?;
    let interface = interfaces.first().context("there is no interface")?;
    up(interface, Ipv4Addr::from(u32::from(peer).wrapping_add(1)))?;
    let socket = socket(peer, port)?;
    let start = Instant::now();
    loop {
        // Until the interface is up, sending is an error as well.
        if socket.send(&[0]).is_ok() && socket.recv(&mut [0]).is_ok() {
            return Ok(interface.clone());
        }
        ensure!(
            start.elapsed() < FIRST,
            "{peer} does not answer within {FIRST:?}"
        );
        thread::sleep(LOOK);
    }
}

/// A socket to the peer.
pub(super) fn socket(peer: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind a UDP socket")?;
    socket.connect((peer, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Whether nothing came in time.
pub(super) fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
