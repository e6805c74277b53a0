//! `amdvi-refvmm`: runs the test guest on the emulated IOMMU and reports.

use std::process::ExitCode;

fn main() -> ExitCode {
    amdvi_refvmm::cli::main()
}
