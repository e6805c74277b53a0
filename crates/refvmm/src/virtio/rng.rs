//! virtio-rng, virtio 1.2 section 5.4: entropy of the host.

use std::fs::File;
use std::io::{self, Read};

use super::chain::Chain;
use super::lane::{Handler, Lane};
use super::{Identity, Model, QueueModel};

/// Where it comes from. It never waits once the host has booted.
const SOURCE: &str = "/dev/urandom";
/// The most bytes of one request. A driver that wants more asks again.
const MOST: u64 = 4096;

struct Entropy {
    source: File,
}

impl Handler for Entropy {
    fn turn(&mut self, lane: &Lane) -> bool {
        let source = &mut self.source;
        lane.serve(|session, mut chain: Chain| {
            let buffers = chain.writable.take(MOST);
            let mut bytes = vec![0; buffers.len() as usize];
            // Without entropy the driver gets none, rather than zeroes. So it does where the IOMMU
            // refuses its buffer.
            let count = source.read(&mut bytes).unwrap_or(0);
            let written = session.memory(|memory| buffers.write(memory, &bytes[..count]));
            Ok(written.unwrap_or(0) as u32)
        });
        false
    }
}

/// Opens the source.
pub(super) fn model() -> Result<Model, io::Error> {
    let source = File::open(SOURCE)
        .map_err(|error| io::Error::new(error.kind(), format!("--rng: {SOURCE}: {error}")))?;
    Ok(Model {
        identity: Identity {
            name: "virtio-rng",
            virtio_id: 4,
            class: [0xff, 0x00, 0x00],
        },
        features: 0,
        registers: Box::new(Vec::new()),
        queues: vec![QueueModel {
            max_size: 64,
            handler: Box::new(Entropy { source }),
        }],
        backend: None,
    })
}
