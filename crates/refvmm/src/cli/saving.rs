//! The options for saving a machine, restoring it and moving it.

use std::path::PathBuf;

use clap::Args;

use crate::snapshot::orders::{Marked, ORDERS, Timed};
use crate::snapshot::{Orders, Origin};

/// For a Linux guest, or for one scenario under KVM.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Saving, restoring and moving the machine")]
pub(super) struct SavingArgs {
    /// Goes on with the machine in this file in the place of starting one
    ///
    /// The options must be those of the machine that was saved; the first that differs is named. The
    /// file is read to its end and checked before anything is done, and stays as it is. A kernel
    /// that is given is what a reset of the machine boots.
    #[arg(long, value_name = "FILE", conflicts_with = "incoming")]
    restore: Option<PathBuf>,

    /// Waits on this socket for a machine that another amdvi-refvmm moves here
    ///
    /// The options must be the same there and here.
    #[arg(long, value_name = "SOCKET")]
    incoming: Option<PathBuf>,

    /// Listens on this socket for commands, one a line; each is answered by a line of JSON
    #[arg(long, value_name = "SOCKET", long_help = control_help())]
    control: Option<PathBuf>,

    /// Carries a command of --control out so many milliseconds after the start, as in
    /// `5000:save vm.state`; can be given several times
    #[arg(long, value_name = "MS:COMMAND", value_parser = str::parse::<Timed>)]
    at: Vec<Timed>,

    /// Carries a command of --control out so many milliseconds after the guest has first printed a
    /// text on its serial console, as in `login:500:save vm.state`; can be given several times
    #[arg(long, value_name = "TEXT:MS:COMMAND", value_parser = str::parse::<Marked>,
          requires = "kernel")]
    after: Vec<Marked>,
}

impl SavingArgs {
    /// Whether there is anything to do.
    pub(super) fn is_used(&self) -> bool {
        let orders = self.control.is_some() || !self.at.is_empty() || !self.after.is_empty();
        self.origin().is_some() || orders
    }

    /// Where the machine comes from, if it is not started anew.
    pub(super) fn origin(&self) -> Option<Origin> {
        let file = self.restore.clone().map(Origin::File);
        file.or_else(|| self.incoming.clone().map(Origin::Socket))
    }

    /// Where commands come from.
    pub(super) fn orders(&self) -> Result<Orders, String> {
        Orders::new(self.at.clone(), self.after.clone(), self.control.as_deref())
    }
}

fn control_help() -> String {
    let mut text = String::from(
        "Listens on this socket for commands, one a line; each is answered by a line of JSON, with \
         `ok` and, if that is false, `error`:\n",
    );
    for (order, about) in ORDERS {
        text.push_str(&format!("  {order:<16} {about}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_command() {
        for (order, _) in ORDERS {
            assert!(control_help().contains(order));
        }
    }
}
