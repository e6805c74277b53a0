//! The property strings of the devices that only a Linux guest has.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use amdvi_regs::{DeviceId, Segment};

use crate::board::properties::{Property, PropertyError, function_of_segment, properties};
use crate::board::{FunctionBuilder, FunctionConfig};
use crate::virtio::{self, ConsoleConfig, DiskConfig, NetBackend, NetConfig};

/// Each property of `--disk`, `--net` and `--console`: its option, its name, and what it accepts
/// and is for.
const PROPERTIES: &[(&str, &str, &str)] = &[
    ("--disk", "path", "a file or block device; needed"),
    (
        "--disk",
        "queues",
        "1 to 64: request queues; 1 without it, one for each CPU is best",
    ),
    ("--disk", "readonly", "on or off; off without it"),
    (
        "--disk",
        "serial",
        "up to 20 bytes that the guest reads as its serial number",
    ),
    (
        "--disk",
        "fail-after",
        "a number of requests after which each further one fails, to see what a guest makes of it",
    ),
    ("--disk", "addr", ADDR),
    (
        "--net",
        "loopback",
        "a peer in the VMM that answers ARP and pings, and echoes UDP and TCP",
    ),
    ("--net", "tap", "the name of a tap interface"),
    (
        "--net",
        "mac",
        "six bytes in hexadecimal, as 52:54:00:12:34:56",
    ),
    ("--net", "addr", ADDR),
    (
        "--console",
        "stdout",
        "output only; what --console alone means",
    ),
    ("--console", "file", "the path of a file for the output"),
    ("--console", "pty", "a new pseudo terminal"),
    ("--console", "addr", ADDR),
];

const ADDR: &str = "[[segment:]bus:]device.function; the next free device from 05.0 on without it";

/// Where a function is to be, if that matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    segment: Segment,
    addr: Option<DeviceId>,
}

impl Place {
    fn parse(property: &Property<'_>) -> Result<Self, PropertyError> {
        let (segment, addr) = function_of_segment(property.value)
            .ok_or_else(|| property.refused("[[segment:]bus:]device.function, such as 06.0"))?;
        Ok(Self {
            segment,
            addr: Some(addr),
        })
    }

    fn function(self, name: &str, build: FunctionBuilder) -> FunctionConfig {
        FunctionConfig {
            name: name.to_owned(),
            segment: self.segment,
            addr: self.addr,
            build,
        }
    }
}

/// With a comma before it, or nothing.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            Some(addr) => write!(f, ",addr={}:{addr}", self.segment),
            None => Ok(()),
        }
    }
}

/// The help on an option: what it is for, and its properties.
pub(super) fn help(option: &str, about: &str) -> String {
    let mut text = format!("{about} Properties, separated by commas:\n");
    for (of, name, about) in PROPERTIES {
        if *of == option {
            text.push_str(&format!("  {name}  {about}\n"));
        }
    }
    text
}

fn known(option: &str) -> Vec<&'static str> {
    PROPERTIES
        .iter()
        .filter(|(of, ..)| *of == option)
        .map(|(_, name, _)| *name)
        .collect()
}

/// `--disk`.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    config: DiskConfig,
    place: Place,
}

impl FromStr for Disk {
    type Err = PropertyError;

    fn from_str(text: &str) -> Result<Self, PropertyError> {
        let mut config = DiskConfig {
            path: PathBuf::new(),
            queues: 1,
            readonly: false,
            serial: String::new(),
            fail_after: None,
        };
        let mut place = Place::default();
        for property in properties(text, &known("--disk"), &[])? {
            match property.name {
                "path" => config.path = property.value.into(),
                "queues" => {
                    let queues = property.value.parse().ok();
                    config.queues = queues
                        .filter(|n| (1..=64).contains(n))
                        .ok_or_else(|| property.refused("1 to 64"))?;
                }
                "readonly" => config.readonly = property.switch()?,
                "serial" => config.serial = property.value.to_owned(),
                "fail-after" => {
                    let requests = property.value.parse().ok();
                    config.fail_after =
                        Some(requests.ok_or_else(|| property.refused("a number of requests"))?);
                }
                // `properties` lets no others through.
                _ => place = Place::parse(&property)?,
            }
        }
        if config.path.as_os_str().is_empty() {
            let missing = Property {
                name: "path",
                value: "",
            };
            return Err(missing.refused("a file or block device"));
        }
        Ok(Self { config, place })
    }
}

impl Disk {
    /// What a saved machine must have, too: not which file, since it may lie elsewhere by now.
    pub(super) fn describe(&self) -> String {
        let DiskConfig {
            queues,
            readonly,
            serial,
            ..
        } = &self.config;
        format!(
            "queues={queues},readonly={readonly},serial={serial}{}",
            self.place
        )
    }

    /// The function.
    pub(super) fn function(&self) -> FunctionConfig {
        self.place
            .function("--disk", virtio::disk(self.config.clone()))
    }
}

/// `--net`.
#[derive(Clone, Debug)]
pub(super) struct Net {
    config: NetConfig,
    place: Place,
}

impl FromStr for Net {
    type Err = PropertyError;

    fn from_str(text: &str) -> Result<Self, PropertyError> {
        let mut backend = None;
        let mut mac = None;
        let mut place = Place::default();
        for property in properties(text, &known("--net"), &[])? {
            match property.name {
                "loopback" if property.value.is_empty() => backend = Some(NetBackend::Loopback),
                "loopback" => return Err(property.refused("no value")),
                "tap" if property.value.is_empty() => {
                    return Err(property.refused("the name of an interface"));
                }
                "tap" => backend = Some(NetBackend::Tap(property.value.to_owned())),
                "mac" => {
                    let bytes = self::mac(property.value);
                    mac = Some(bytes.ok_or_else(|| {
                        property.refused("six bytes in hexadecimal, as 52:54:00:12:34:56")
                    })?);
                }
                _ => place = Place::parse(&property)?,
            }
        }
        let config = NetConfig {
            backend: backend.unwrap_or(NetBackend::Loopback),
            mac,
        };
        Ok(Self { config, place })
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| {
            (byte.len() == 2)
                .then(|| u8::from_str_radix(byte, 16).ok())
                .flatten()
        })
        .collect();
    // A group address is nobody's own.
    bytes?
        .try_into()
        .ok()
        .filter(|mac: &[u8; 6]| mac[0] & 1 == 0)
}

impl Net {
    /// What a saved machine must have, too: not the backend.
    pub(super) fn describe(&self) -> String {
        let mac = self
            .config
            .mac
            .map(|mac| mac.map(|byte| format!("{byte:02x}")));
        let mac = mac.map_or("of its place".to_owned(), |mac| mac.join(":"));
        format!("mac={mac}{}", self.place)
    }

    /// The function.
    pub(super) fn function(&self) -> FunctionConfig {
        self.place
            .function("--net", virtio::net(self.config.clone()))
    }
}

/// `--console`.
#[derive(Clone, Debug)]
pub(super) struct Console {
    config: ConsoleConfig,
    place: Place,
}

impl FromStr for Console {
    type Err = PropertyError;

    fn from_str(text: &str) -> Result<Self, PropertyError> {
        let mut config = ConsoleConfig::Stdout;
        let mut place = Place::default();
        for property in properties(text, &known("--console"), &[])? {
            match property.name {
                "stdout" => config = ConsoleConfig::Stdout,
                "pty" => config = ConsoleConfig::Pty,
                "file" if property.value.is_empty() => {
                    return Err(property.refused("the path of a file"));
                }
                "file" => config = ConsoleConfig::File(property.value.into()),
                _ => place = Place::parse(&property)?,
            }
        }
        Ok(Self { config, place })
    }
}

impl Console {
    /// What a saved machine must have, too: not where it goes.
    pub(super) fn describe(&self) -> String {
        format!("a console{}", self.place)
    }

    /// The function.
    pub(super) fn function(&self) -> FunctionConfig {
        self.place
            .function("--console", virtio::console(self.config.clone()))
    }
}

/// `--rng`: the function.
pub(super) fn rng() -> FunctionConfig {
    Place::default().function("--rng", virtio::rng())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_file_with_properties() {
        let disk: Disk = "path=/a b.img,queues=4,readonly=on,addr=1:0:06.1"
            .parse()
            .unwrap();
        assert_eq!(disk.config.path, PathBuf::from("/a b.img"));
        assert_eq!((disk.config.queues, disk.config.readonly), (4, true));
        assert_eq!(disk.place.segment, Segment(1));
        assert_eq!(disk.place.addr, Some(DeviceId::new(0, 6, 1)));
        for (text, accepts) in [
            ("queues=1", "path accepts a file"),
            ("path=x,queues=65", "1 to 64"),
            ("path=x,readonly=yes", "on or off"),
            ("path=x,cache=none", "known: path"),
            ("path=x,addr=06", "06.0"),
        ] {
            let error = text.parse::<Disk>().unwrap_err().to_string();
            assert!(error.contains(accepts), "{text}: {error}");
        }
    }

    #[test]
    fn a_network_card_has_a_backend_and_maybe_an_address() {
        let net: Net = "tap=tap0,mac=52:54:00:12:34:56".parse().unwrap();
        assert_eq!(net.config.backend, NetBackend::Tap("tap0".into()));
        assert_eq!(net.config.mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        let net: Net = "loopback".parse().unwrap();
        assert_eq!(net.config.backend, NetBackend::Loopback);
        for text in ["tap", "mac=52:54:00:12:34", "mac=01:00:00:00:00:00", "user"] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_console_goes_to_one_place() {
        let config = |text: &str| text.parse::<Console>().map(|console| console.config);
        assert!(matches!(config("stdout"), Ok(ConsoleConfig::Stdout)));
        assert!(matches!(config("pty"), Ok(ConsoleConfig::Pty)));
        let file = config("file=/a/b");
        assert!(matches!(file, Ok(ConsoleConfig::File(path)) if path.to_str() == Some("/a/b")));
        assert!(config("file").is_err() && config("null").is_err());
    }
}
