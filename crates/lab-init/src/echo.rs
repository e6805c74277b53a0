//! A tap interface with a peer that sends back what it gets.

use std::io;
use std::net::UdpSocket;
use std::thread;

use amdvi_lab_init::{Tap, net};

/// Makes the interface and answers datagrams until the machine is switched off.
pub(crate) fn start(tap: &Tap) -> io::Result<()> {
    net::make_tap(&tap.name)?;
    net::set_address(&tap.name, tap.address)?;
    net::set_up(&tap.name)?;
    let socket = UdpSocket::bind((tap.address, tap.echo))?;
    thread::Builder::new()
        .name("echo".into())
        .spawn(move || answer(&socket))?;
    Ok(())
}

fn answer(socket: &UdpSocket) {
    let mut datagram = [0; 65_536];
    loop {
        // What can't be received or sent is lost, as on any network: the sender notices.
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    }
}
