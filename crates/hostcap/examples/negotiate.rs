//! What a guest can be offered on a given host, and why:
//! `cargo run -p amdvi-hostcap --example negotiate -- numint2k=on,xtsup=on mock:numint2k=off`.

use std::error::Error;

use amdvi_hostcap::{Facts, HostCapSpec, Request, negotiate};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let request: Request = args
        .next()
        .as_deref()
        .unwrap_or("numint2k=on,xtsup=on")
        .parse()?;
    let host: HostCapSpec = args
        .next()
        .as_deref()
        .unwrap_or("mock:numint2k=off")
        .parse()?;
    let source = host.build();
    let facts = Facts::collect([source.as_ref()], &[]);
    for decision in negotiate(&request, &facts).decisions {
        println!("{decision}");
    }
    Ok(())
}
