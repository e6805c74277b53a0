//! The options for what is on the board of a Linux guest.

use clap::Args;

use crate::board::{
    AcpiHardware, Config, ENDPOINT_PROPERTIES, EndpointConfig, IVRS_PROPERTIES, IvrsVariant,
};
use crate::snapshot::Configuration;

/// Test endpoints, and what the firmware says.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Linux: the board")]
pub(super) struct BoardArgs {
    /// Adds a test endpoint, a PCI function that sends interrupts and does DMA as it is told; can be
    /// given several times
    #[arg(
        long,
        value_name = "STRING",
        num_args = 0..=1,
        default_missing_value = "",
        requires = "kernel",
        value_parser = str::parse::<EndpointConfig>,
        long_help = endpoint_help()
    )]
    endpoint: Vec<EndpointConfig>,

    /// What the ACPI IVRS says besides which IOMMUs there are, right or wrong; can be given several
    /// times
    #[arg(long, value_name = "STRING", requires = "kernel", long_help = ivrs_help())]
    ivrs: Vec<String>,

    /// Which hardware of its own the ACPI tables describe: `reduced`, or `fixed` as on a PC (an SCI
    /// and PM1 registers); Linux uses an HPET (--ivrs hpet=…) only with the latter
    #[arg(
        long,
        value_name = "KIND",
        requires = "kernel",
        default_value = "reduced"
    )]
    acpi: Acpi,
}

/// As [`AcpiHardware`].
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Acpi {
    #[default]
    Reduced,
    Fixed,
}

impl BoardArgs {
    /// What a saved machine must have, too.
    pub(super) fn describe(&self, configuration: &mut Configuration) {
        for endpoint in &self.endpoint {
            configuration.push("--endpoint", format!("{endpoint:?}"));
        }
        configuration.push("--ivrs", self.ivrs.join(","));
        configuration.push("--acpi", format!("{:?}", self.acpi));
    }

    /// Adds what was asked for to the board.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), String> {
        config.endpoints.extend(self.endpoint.iter().cloned());
        // One string, so that what may be said once is not said in two of them.
        let ivrs = self.ivrs.join(",").parse::<IvrsVariant>();
        config.ivrs = ivrs.map_err(|error| format!("--ivrs: {error}"))?;
        config.acpi = match self.acpi {
            Acpi::Reduced => AcpiHardware::Reduced,
            Acpi::Fixed => AcpiHardware::Fixed,
        };
        Ok(())
    }
}

fn endpoint_help() -> String {
    let mut text = String::from(
        "Adds a test endpoint, a PCI function that sends interrupts and does DMA as it is told; can be \
         given several times. Properties, separated by commas:\n",
    );
    for (name, about) in ENDPOINT_PROPERTIES {
        text.push_str(&format!("  {name}=…  {about}\n"));
    }
    text
}

fn ivrs_help() -> String {
    let mut text = String::from(
        "What the ACPI IVRS says besides which IOMMUs there are, right or wrong; can be given several \
         times. Properties, separated by commas:\n",
    );
    for (name, accepts, about) in IVRS_PROPERTIES {
        text.push_str(&format!("  {name}=…  {about}: {accepts}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Southbridge;

    fn config(endpoint: &[&str], ivrs: &[&str]) -> Result<Config, String> {
        let args = BoardArgs {
            endpoint: endpoint.iter().map(|text| text.parse().unwrap()).collect(),
            ivrs: ivrs.iter().map(|text| (*text).to_owned()).collect(),
            acpi: Acpi::default(),
        };
        let mut config = Config::default();
        args.apply(&mut config)?;
        Ok(config)
    }

    #[test]
    fn what_several_options_say_is_on_one_board() {
        let config = config(
            &["", "vectors=8"],
            &["southbridge=isa", "alias=07.0@05.0", "alias=08.0@05.0"],
        )
        .unwrap();
        assert_eq!(config.endpoints.len(), 2);
        assert_eq!(config.endpoints[1].vectors, 8);
        assert_eq!(config.ivrs.southbridge, Southbridge::Isa);
        assert_eq!(config.ivrs.aliases.len(), 2);
    }

    #[test]
    fn a_contradiction_between_two_options_is_an_error_that_names_them() {
        let error = config(&[], &["types=10", "types=11"]).err().unwrap();
        assert!(
            error.contains("--ivrs") && error.contains("types"),
            "{error}"
        );
    }

    #[test]
    fn the_help_lists_every_property() {
        for (name, _) in ENDPOINT_PROPERTIES {
            assert!(endpoint_help().contains(&format!("  {name}=")));
        }
        for (name, ..) in IVRS_PROPERTIES {
            assert!(ivrs_help().contains(&format!("  {name}=")));
        }
    }
}
