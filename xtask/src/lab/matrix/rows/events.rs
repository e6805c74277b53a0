//! The event log, as Linux prints it.

use amdvi_lab_guest::plan::{Check, Events, Provoke, Request};

use super::{ALL, Row};

fn provoke(request: Request, expect: &[&str]) -> Provoke {
    Provoke {
        request,
        requester: None,
        passes: false,
        expect: expect.iter().map(|line| (*line).to_owned()).collect(),
        allow: Vec::new(),
    }
}

pub(super) const ROWS: &[Row] = &[Row {
    name: "M17-events",
    about: "each event that a function can provoke, in Linux's words",
    kernels: ALL,
    subset: &[],
    make: |case| {
        case.check_as(
            "events",
            120,
            Check::Events(Events {
                provoke: vec![
                    provoke(
                        Request::Write(0x10_0000),
                        &["*AMD-Vi: Event logged [IO_PAGE_FAULT * address=0x100000 flags=0x0020]"],
                    ),
                    provoke(
                        Request::Read(0x20_0000),
                        &["*AMD-Vi: Event logged [IO_PAGE_FAULT * address=0x200000 flags=0x0000]"],
                    ),
                ],
                ..Events::default()
            }),
        )
    },
}];
