//! The event log, as Linux prints it.

use amdvi_lab_guest::plan::{Check, Events, Provoke, Request, UnmapFault};

use super::{ALL, Row};

const PAGE_FAULT: &str = "*AMD-Vi: Event logged [IO_PAGE_FAULT *";

fn provoke(request: Request, expect: &str) -> Provoke {
    Provoke {
        request,
        requester: None,
        passes: false,
        expect: vec![expect.to_owned()],
        allow: Vec::new(),
    }
}

/// What a DMA access to an address that is not mapped comes to.
fn page_fault(request: Request, address: u64, flags: u16) -> Provoke {
    provoke(
        request,
        &format!("{PAGE_FAULT}address=0x{address:x} flags=0x{flags:04x}]"),
    )
}

fn events(provoke: Vec<Provoke>) -> Check {
    Check::Events(Events {
        provoke,
        ..Events::default()
    })
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "M17-events",
        about: "each event that a function can provoke, in Linux's words",
        kernels: ALL,
        subset: &[],
        make: |case| {
            let requests = vec![
                page_fault(Request::Write(0x10_0000), 0x10_0000, 0x20),
                page_fault(Request::Read(0x20_0000), 0x20_0000, 0),
                // No interrupt of the function has this index.
                provoke(Request::Message(0xfee0_0000, 0x1ff), PAGE_FAULT),
                // A read where messages go.
                provoke(
                    Request::Read(0xfee0_0000),
                    "*AMD-Vi: Event logged [INVALID_DEVICE_REQUEST device={function} *",
                ),
                // A function that does not exist may do nothing.
                Provoke {
                    requester: Some(0x00f8),
                    ..provoke(
                        Request::Write(0x30_0000),
                        "*AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:1f.0 *",
                    )
                },
            ];
            case.check_as("events", 120, events(requests))
        },
    },
    Row {
        name: "M17-dev-table",
        about: "a requester beyond the device table: a page fault in no domain",
        kernels: ALL,
        subset: &[],
        make: |case| {
            case.iommu("dma-remap=on,intremap=on,xtsup=on,serves=00.0-1f.7")
                .check(events(vec![Provoke {
                    requester: Some(0x2000),
                    ..provoke(
                        Request::Write(0x10_0000),
                        "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:20:00.0 domain=0x0000 address=0x100000 flags=0x0020]",
                    )
                }]))
        },
    },
    Row {
        name: "M17-overflow",
        about: "more events than the log has room for: it is restarted and goes on",
        kernels: ALL,
        subset: &[],
        make: |case| {
            let flood = Provoke {
                allow: vec![PAGE_FAULT.to_owned(), "*callbacks suppressed".to_owned()],
                ..provoke(
                    Request::Flood(0x10_0000, 500),
                    "*AMD-Vi: IOMMU Event log restarting",
                )
            };
            case.check_as("overflow", 120, events(vec![flood]))
                // Whoever floods is heard again afterwards.
                .check(Check::UnmapFault(UnmapFault::default()))
        },
    },
];
