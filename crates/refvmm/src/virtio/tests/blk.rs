//! virtio-blk.

use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;

use super::driver::*;
use super::rig::*;
use crate::board::FunctionBuilder;
use crate::virtio::blk::{self, Disk};
use crate::virtio::{DiskConfig, VirtioFunction, disk};

pub(super) const SECTOR: u64 = 512;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const FLUSH: u64 = 1 << 9;
const MULTIQUEUE: u64 = 1 << 12;

/// A file of `sectors` sectors with contents of which no two sectors are alike.
pub(super) fn image(sectors: u64) -> (NamedTempFile, Vec<u8>) {
    let file = NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..sectors * SECTOR)
        .map(|n| (n.wrapping_mul(31) ^ (n >> 9).wrapping_mul(0x9e)) as u8)
        .collect();
    file.as_file().write_all_at(&content, 0).unwrap();
    (file, content)
}

pub(super) fn config(file: &NamedTempFile) -> DiskConfig {
    DiskConfig {
        path: file.path().into(),
        queues: 1,
        readonly: false,
        serial: "a-serial".into(),
        fail_after: None,
    }
}

pub(super) fn build(file: &NamedTempFile) -> FunctionBuilder {
    disk(config(file))
}

/// Header and status of a request.
pub(super) struct Frame<'r> {
    pub(super) header: Buffer<'r>,
    pub(super) status: Buffer<'r>,
}

impl<'r> Frame<'r> {
    pub(super) fn new(rig: &'r Rig) -> Self {
        Self {
            header: rig.buffer(16, READ),
            status: rig.buffer(1, WRITE),
        }
    }

    pub(super) fn prepare(&self, kind: u32, sector: u64) {
        self.header.write(0, &kind.to_le_bytes());
        self.header.write(8, &sector.to_le_bytes());
        self.status.write(0, &[0xee]);
    }

    pub(super) fn parts(&self, data: &[Part]) -> Vec<Part> {
        let mut parts = vec![out(self.header.iova, 16)];
        parts.extend(data);
        parts.push(into(self.status.iova, 1));
        parts
    }

    /// Sends a request. Its status, and the length that was used.
    pub(super) fn request(
        &self,
        queue: &Queue<'_>,
        kind: u32,
        sector: u64,
        data: &[Part],
    ) -> (u8, u32) {
        self.prepare(kind, sector);
        let len = queue.request(&self.parts(data));
        (self.status.read(0, 1)[0], len)
    }
}

const IN: u32 = 0;
const OUT: u32 = 1;

#[test]
fn sectors_are_read_and_written_at_iovas() {
    let (file, content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    assert_eq!(driver.device_config(0, 8), 64, "capacity");
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    let data = rig.buffer(3 * PAGE, READ | WRITE);
    // In two descriptors, neither of which begins or ends with a page.
    let parts = [
        into(data.iova + 0x10, 5 * SECTOR),
        into(data.iova + 0x10 + 5 * SECTOR, 11 * SECTOR),
    ];
    assert_eq!(
        frame.request(&queues[0], IN, 3, &parts),
        (OK, 16 * SECTOR as u32 + 1)
    );
    assert_eq!(data.read(0x10, 16 * SECTOR), content[1536..1536 + 8192]);
    assert_eq!(data.read(0, 0x10), [0; 16]);

    let written: Vec<u8> = (0..8192u32).map(|n| (n % 251) as u8).collect();
    data.write(0x10, &written);
    let parts = [out(data.iova + 0x10, 16 * SECTOR)];
    assert_eq!(frame.request(&queues[0], OUT, 40, &parts), (OK, 1));
    assert_eq!(frame.request(&queues[0], 4, 0, &[]), (OK, 1), "flush");
    let mut expected = content.clone();
    expected[40 * 512..56 * 512].copy_from_slice(&written);
    assert!(std::fs::read(file.path()).unwrap() == expected);
    assert_eq!(rig.events(), []);
    eventually("an interrupt for each request", || {
        rig.cpus.count(FIRST_VECTOR) == 3
    });
}

#[test]
fn how_a_request_is_cut_into_descriptors_does_not_matter() {
    let (file, content) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, 0);
    let header = rig.buffer(16, READ);
    header.write(8, &2u64.to_le_bytes());
    let data = rig.buffer(PAGE, WRITE);
    // The header in three parts, and the status behind the data in the same one.
    queues[0].request(&[
        out(header.iova, 3),
        out(header.iova + 3, 12),
        out(header.iova + 15, 1),
        into(data.iova, 100),
        into(data.iova + 100, 413),
    ]);
    assert_eq!(data.read(0, 512), content[1024..1536]);
    assert_eq!(data.read(512, 1), [OK]);

    // A table of descriptors in the place of descriptors.
    let table = rig.buffer(PAGE, READ);
    for (n, (iova, len, flags)) in [(header.iova, 16u32, NEXT), (data.iova, 513, DEVICE_WRITES)]
        .into_iter()
        .enumerate()
    {
        let at = 16 * n as u64;
        table.write(at, &iova.to_le_bytes());
        table.write(at + 8, &len.to_le_bytes());
        table.write(at + 12, &flags.to_le_bytes());
        table.write(at + 14, &(n as u16 + 1).to_le_bytes());
    }
    header.write(8, &5u64.to_le_bytes());
    data.write(512, &[0xee]);
    queues[0].descriptor(9, table.iova, 32, INDIRECT, 0);
    queues[0].publish(9);
    queues[0].kick();
    assert_eq!(queues[0].wait(9), 513);
    assert_eq!(data.read(0, 512), content[2560..3072]);
    assert_eq!((data.read(512, 1), driver.status()), (vec![OK], LIVE));
}

#[test]
fn a_buffer_that_is_not_mapped_is_one_event_and_an_error_and_the_disk_goes_on() {
    let (file, content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    let data = rig.buffer(4 * PAGE, READ | WRITE);
    // The third page goes away.
    let hole = data.iova + 2 * PAGE;
    rig.map(hole, 0, 0);
    let all = 4 * PAGE;
    let request = |kind| {
        let part = if kind == IN { into } else { out };
        frame.request(&queues[0], kind, 0, &[part(data.iova, all)])
    };
    assert_eq!(request(IN), (IOERR, 0));
    // IO_PAGE_FAULT, of this function, at the first byte that is missing.
    let fault = (2, driver.id.0, hole);
    assert_eq!(rig.events(), [fault]);
    assert_eq!(request(OUT), (IOERR, 1));
    assert_eq!(rig.events(), [fault, fault]);
    assert!(
        std::fs::read(file.path()).unwrap() == content,
        "nothing was written"
    );

    // What may only be read is not written to.
    rig.map(hole, data.pages[2], READ);
    assert_eq!(request(IN), (IOERR, 0));
    assert_eq!(rig.events().len(), 3);
    rig.map(hole, data.pages[2], READ | WRITE);
    assert_eq!(request(IN), (OK, 4 * PAGE as u32 + 1));
    assert!(data.read(0, all) == content[..4 * PAGE as usize]);
    assert_eq!((rig.events().len(), driver.status()), (3, LIVE));
}

#[test]
fn a_header_that_can_t_be_read_is_an_error_and_a_status_that_can_t_be_written_the_end() {
    let (file, _) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    rig.map(frame.header.iova, 0, 0);
    assert_eq!(frame.request(&queues[0], 4, 0, &[]), (IOERR, 1));
    assert_eq!(rig.events(), [(2, driver.id.0, frame.header.iova)]);
    rig.map(frame.header.iova, frame.header.pages[0], READ);
    rig.map(frame.status.iova, frame.status.pages[0], READ);
    queues[0].add(&frame.parts(&[]));
    queues[0].kick();
    eventually("DEVICE_NEEDS_RESET", || driver.status() & NEEDS_RESET != 0);
    eventually("the driver's being told", || {
        rig.cpus.count(Driver::config_vector(1)) == 1
    });
    assert_eq!(rig.events().len(), 2);
    // It does nothing more, and starts anew.
    queues[0].kick();
    rig.map(frame.status.iova, frame.status.pages[0], WRITE);
    let queues = driver.start(1, FLUSH);
    assert_eq!(frame.request(&queues[0], 4, 0, &[]), (OK, 1));
    assert_eq!(rig.events().len(), 2);
}

#[test]
fn what_the_disk_does_not_have_or_know_is_an_error() {
    let (file, content) = image(8);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    let data = rig.buffer(2 * PAGE, READ | WRITE);
    let request = |kind, sector, len| {
        let part = if kind == OUT { out } else { into };
        frame
            .request(&queues[0], kind, sector, &[part(data.iova, len)])
            .0
    };
    for kind in [IN, OUT] {
        assert_eq!(request(kind, 7, SECTOR), OK);
        assert_eq!(request(kind, 8, SECTOR), IOERR);
        assert_eq!(request(kind, 7, 2 * SECTOR), IOERR);
        assert_eq!(request(kind, u64::MAX, SECTOR), IOERR);
        assert_eq!(request(kind, 0, SECTOR + 1), IOERR, "not whole sectors");
        // 4 GiB, of which hardly anything is mapped.
        assert_eq!(request(kind, 0, 0xffff_fe00 - 16), IOERR);
    }
    assert_eq!(request(77, 0, SECTOR), UNSUPPORTED);
    assert_eq!(request(8, 0, 20), OK, "get ID");
    assert_eq!(data.read(0, 20), *b"a-serial\0\0\0\0\0\0\0\0\0\0\0\0");
    // The header is cut off.
    let len = queues[0].request(&[out(frame.header.iova, 15), into(frame.status.iova, 1)]);
    assert_eq!((frame.status.read(0, 1), len), (vec![IOERR], 1));
    assert_eq!((rig.events(), driver.status()), (vec![], LIVE));
    // Sector 7 was read and written back.
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn a_disk_that_is_read_only_is_not_written_to() {
    let (file, content) = image(8);
    let readonly = DiskConfig {
        readonly: true,
        ..config(&file)
    };
    let rig = Rig::new([disk(readonly)]);
    let driver = Driver::new(&rig, 0);
    assert_eq!(driver.offered() >> 5 & 1, 1, "RO");
    assert_eq!(driver.offered() >> 13 & 3, 0, "no discard, no write zeroes");
    let queues = driver.start(1, 1 << 5);
    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, READ);
    let parts = [out(data.iova, SECTOR)];
    for kind in [OUT, 11, 13] {
        assert_eq!(frame.request(&queues[0], kind, 0, &parts).0, IOERR);
    }
    assert!(std::fs::read(file.path()).unwrap() == content);
}

#[test]
fn a_disk_that_fails_says_so_for_each_request_and_the_queues_go_on() {
    let (file, content) = image(64);
    let failing = DiskConfig {
        fail_after: Some(3),
        queues: 2,
        ..config(&file)
    };
    let rig = Rig::new([disk(failing)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(2, FLUSH | MULTIQUEUE);
    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, READ | WRITE);
    let read = |queue: usize| frame.request(&queues[queue], IN, 0, &[into(data.iova, SECTOR)]);
    assert_eq!(read(0), (OK, 513));
    assert_eq!(read(1), (OK, 513));
    assert_eq!(frame.request(&queues[0], 4, 0, &[]), (OK, 1), "flush");
    // More than a queue has entries.
    data.write(0, &[0x77; SECTOR as usize]);
    for n in 0..600 {
        assert_eq!(read(n % 2), (IOERR, 0));
    }
    let write = [out(data.iova, SECTOR)];
    assert_eq!(frame.request(&queues[1], OUT, 3, &write), (IOERR, 1));
    assert_eq!(frame.request(&queues[0], 4, 0, &[]), (IOERR, 1), "flush");
    let id = rig.buffer(20, WRITE);
    let (status, _) = frame.request(&queues[0], 8, 0, &[into(id.iova, 20)]);
    assert_eq!((status, &id.read(0, 8)[..]), (OK, &b"a-serial"[..]));
    assert_eq!(data.read(0, SECTOR), [0x77; SECTOR as usize]);
    assert!(std::fs::read(file.path()).unwrap() == content);
    assert_eq!((rig.events(), driver.status()), (vec![], LIVE));
    eventually("an interrupt for each request", || {
        rig.cpus.count(FIRST_VECTOR) + rig.cpus.count(FIRST_VECTOR + 1) == 606
    });
}

#[test]
fn a_file_that_gets_shorter_under_the_disk_is_an_error_and_the_rest_can_be_read() {
    for build in [build, build_waiting] {
        let (file, content) = image(64);
        let rig = Rig::new([build(&file)]);
        let driver = Driver::new(&rig, 0);
        let queues = driver.start(1, FLUSH);
        let frame = Frame::new(&rig);
        let data = rig.buffer(4 * PAGE, WRITE);
        file.as_file().set_len(10 * SECTOR).unwrap();
        let read = |sector, sectors: u64| {
            let part = into(data.iova, sectors * SECTOR);
            frame.request(&queues[0], IN, sector, &[part]).0
        };
        assert_eq!(read(4, 32), IOERR);
        assert_eq!(read(40, 1), IOERR);
        assert_eq!(read(4, 6), OK);
        assert_eq!(data.read(0, 6 * SECTOR), content[2048..5120]);
        assert_eq!((rig.events(), driver.status()), (vec![], LIVE));
    }
}

#[test]
fn sectors_are_discarded_and_made_zero_and_a_bad_segment_changes_nothing() {
    let (file, mut content) = image(64);
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH | 3 << 13);
    let frame = Frame::new(&rig);
    let data = rig.buffer(PAGE, READ);
    let clear = |kind, segments: &[(u64, u32, u32)]| {
        for (n, (sector, count, flags)) in segments.iter().enumerate() {
            let at = 16 * n as u64;
            data.write(at, &sector.to_le_bytes());
            data.write(at + 8, &count.to_le_bytes());
            data.write(at + 12, &flags.to_le_bytes());
        }
        let part = out(data.iova, 16 * segments.len() as u64);
        frame.request(&queues[0], kind, 0, &[part]).0
    };
    const DISCARD: u32 = 11;
    const ZEROES: u32 = 13;
    for (kind, segments, status) in [
        (ZEROES, &[(0, 1, 0), (64, 1, 0)][..], IOERR),
        (ZEROES, &[(0, 1, 0), (63, 2, 0)], IOERR),
        (ZEROES, &[(0, 1, 0), (u64::MAX, u32::MAX, 0)], IOERR),
        (ZEROES, &[(0, 1, 0), (1, 1, 2)], UNSUPPORTED),
        (DISCARD, &[(0, 1, 1)], UNSUPPORTED),
        (DISCARD, &[], UNSUPPORTED),
        (ZEROES, &[(0, 1, 0); 33], UNSUPPORTED),
    ] {
        assert_eq!(clear(kind, segments), status, "{segments:?}");
    }
    assert!(std::fs::read(file.path()).unwrap() == content);
    assert_eq!(clear(ZEROES, &[(1, 2, 0), (9, 8, 1)]), OK);
    content[512..3 * 512].fill(0);
    content[9 * 512..17 * 512].fill(0);
    assert!(std::fs::read(file.path()).unwrap() == content);
    assert_eq!(clear(DISCARD, &[(32, 16, 0)]), OK);
    let after = std::fs::read(file.path()).unwrap();
    assert!(after[..32 * 512] == content[..32 * 512] && after[48 * 512..] == content[48 * 512..]);
}

#[test]
fn queues_work_in_parallel_and_each_has_its_interrupt() {
    const QUEUES: u16 = 4;
    const ROUNDS: u64 = 40;
    let (file, content) = image(4 * 256);
    let config = DiskConfig {
        queues: QUEUES,
        ..config(&file)
    };
    let rig = Rig::new([disk(config)]);
    let driver = Driver::new(&rig, 0);
    assert_eq!(driver.device_config(34, 2), u64::from(QUEUES));
    let queues = driver.start(QUEUES, FLUSH | MULTIQUEUE);
    // One driver keeps all queues busy: each has two requests in flight, in a quarter of the disk.
    let buffers: Vec<_> = (0..2 * QUEUES)
        .map(|_| (Frame::new(&rig), rig.buffer(2 * PAGE, READ | WRITE)))
        .collect();
    let of = |queue: u16, n: u64| &buffers[usize::from(queue) + (n as usize % 2) * 4];
    let place = |queue: u16, n: u64| 256 * u64::from(queue) + (n * 37) % 240;
    let len = 2 * PAGE;
    let inverted = |sector: u64| -> Vec<u8> {
        let at = (sector * SECTOR) as usize;
        content[at..at + len as usize].iter().map(|b| !b).collect()
    };
    let mut flying: Vec<Vec<u16>> = vec![Vec::new(); QUEUES.into()];
    for n in 0..ROUNDS {
        for queue in 0..QUEUES {
            let q = &queues[usize::from(queue)];
            let flying = &mut flying[usize::from(queue)];
            if flying.len() == 2 {
                q.wait(flying.remove(0));
                let (frame, data) = of(queue, n);
                assert_eq!(frame.status.read(0, 1), [OK]);
                let at = (place(queue, n - 2) * SECTOR) as usize;
                assert!(data.read(0, len) == content[at..at + len as usize]);
            }
            let (frame, data) = of(queue, n);
            frame.prepare(IN, place(queue, n));
            data.write(0, &[0; 64]);
            flying.push(q.add(&frame.parts(&[into(data.iova, len)])));
            q.kick();
        }
    }
    for queue in 0..QUEUES {
        for head in &flying[usize::from(queue)] {
            queues[usize::from(queue)].wait(*head);
        }
        let (frame, data) = of(queue, 0);
        let sector = 256 * u64::from(queue);
        data.write(0, &inverted(sector));
        let part = out(data.iova, len);
        let q = &queues[usize::from(queue)];
        assert_eq!(frame.request(q, OUT, sector, &[part]), (OK, 1));
        let vector = FIRST_VECTOR + queue as u8;
        eventually("all interrupts", || {
            rig.cpus.count(vector) as u64 == ROUNDS + 1
        });
    }
    let after = std::fs::read(file.path()).unwrap();
    for queue in 0..u64::from(QUEUES) {
        let at = (256 * queue * SECTOR) as usize;
        assert!(after[at..at + len as usize] == inverted(256 * queue));
    }
    assert_eq!(rig.events(), []);
}

/// A disk whose contents all take the way around.
fn build_waiting(file: &NamedTempFile) -> FunctionBuilder {
    let config = config(file);
    Box::new(move |slot| {
        let disk = Disk::open(&config, false)?;
        Ok(VirtioFunction::new(slot, blk::model_of(disk, 1))?)
    })
}

#[test]
fn what_the_host_would_wait_for_arrives_all_the_same_and_faults_the_same() {
    let (file, mut content) = image(512);
    let rig = Rig::new([build_waiting(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    let data = rig.buffer(65 * PAGE, READ | WRITE);
    let len = 500 * SECTOR;
    let request = |kind, sector| {
        let part = if kind == IN { into } else { out };
        frame.request(&queues[0], kind, sector, &[part(data.iova + 3, len)])
    };
    assert_eq!(request(IN, 7), (OK, len as u32 + 1));
    assert!(data.read(3, len) == content[7 * 512..507 * 512]);
    assert_eq!(request(OUT, 12), (OK, 1));
    content.copy_within(7 * 512..507 * 512, 12 * 512);
    assert!(std::fs::read(file.path()).unwrap() == content);
    let hole = data.iova + 40 * PAGE;
    rig.map(hole, 0, 0);
    assert_eq!((request(IN, 0), request(OUT, 0)), ((IOERR, 0), (IOERR, 1)));
    assert_eq!(rig.events(), [(2, driver.id.0, hole); 2]);
}

#[test]
fn what_the_host_has_to_read_from_its_disk_first_arrives_too() {
    use std::os::fd::AsRawFd;
    let (file, content) = image(4096);
    file.as_file().sync_all().unwrap();
    let rig = Rig::new([build(&file)]);
    let driver = Driver::new(&rig, 0);
    let queues = driver.start(1, FLUSH);
    let frame = Frame::new(&rig);
    let data = rig.buffer(65 * PAGE, WRITE);
    // SAFETY: advice on an open descriptor.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let part = into(data.iova + 1, 512 * SECTOR);
    let (status, _) = frame.request(&queues[0], IN, 1000, &[part]);
    assert_eq!(status, OK);
    assert!(data.read(1, 512 * SECTOR) == content[1000 * 512..1512 * 512]);
}

#[test]
fn a_file_that_can_t_be_a_disk_is_refused_with_what_to_do() {
    let empty = NamedTempFile::new().unwrap();
    let refused = |config| match blk::model(&config) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    assert!(refused(config(&empty)).contains("shorter than a sector"));
    let (file, _) = image(1);
    let queues = DiskConfig {
        queues: 65,
        ..config(&file)
    };
    assert!(refused(queues).contains("1 to 64"));
    let absent = DiskConfig {
        path: "no-such-directory/disk".into(),
        ..config(&file)
    };
    assert!(refused(absent).starts_with("--disk path=no-such-directory/disk: "));
}
