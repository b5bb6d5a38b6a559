//! The configuration as plain values: what a node is, how big its maps are, which services it has.
//!
//! The values mean what they say and hold no positions, defaults to fill in, or kernel numbers. Nothing here reads a
//! file or checks one value against another; that is `validate`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use super::health::{HealthCheck, HealthSettings};

/// Default destination port of GUE packets.
pub const DEFAULT_GUE_PORT: u16 = 6080;
/// Default weight of a backend.
pub const DEFAULT_WEIGHT: u16 = 100;

/// Everything an operator can ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This load balancer node.
    pub node: Node,
    /// Sizes of the maps.
    pub limits: Limits,
    /// Health check defaults of all services.
    pub health: HealthSettings,
    /// The services, in the order of the file.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
}

/// What concerns the node itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Interfaces that the forwarding program is attached to.
    pub interfaces: Vec<String>,
    /// How it is attached.
    pub xdp_mode: XdpMode,
    /// Key of the flow hash, the same on all nodes of a fleet. None: drawn once and kept beside the maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub flow_hash_key: Option<FlowHashKey>,
    /// Prefix of outer IPv4 source addresses; its host bits carry flow entropy. None: the node's own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub source_v4: Option<Ipv4Net>,
    /// Prefix of outer IPv6 source addresses; its host bits carry flow entropy. None: the node's own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub source_v6: Option<Ipv6Net>,
    /// Destination UDP port of GUE packets.
    pub gue_port: u16,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            xdp_mode: XdpMode::Native,
            flow_hash_key: None,
            source_v4: None,
            source_v6: None,
            gue_port: DEFAULT_GUE_PORT,
        }
    }
}

/// Sizes of the maps, fixed when the data plane is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Entries of the service table.
    pub services: u32,
    /// Entries of the backend array, shared by old and new regions.
    pub backends: u32,
    /// Slots of the ring array, shared by old and new regions; 8 bytes each.
    pub ring_slots: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { services: 4096, backends: 65_536, ring_slots: 1_048_576 }
    }
}

/// An address that clients connect to, and the backends behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique among services.
    pub name: String,
    /// The address clients connect to.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The port clients connect to.
    #[schema(value_type = Object)]
    pub port: Port,
    /// The protocol clients speak.
    pub protocol: Protocol,
    /// How packets get to the backends.
    #[serde(default)]
    pub mode: Mode,
    /// Slots of the ring, a prime. None: chosen from the number of backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_slots: Option<u32>,
    /// What happens when no backend is usable.
    #[serde(default)]
    pub all_down: AllDown,
    /// Health check settings that differ from the defaults.
    #[serde(default, skip_serializing_if = "HealthSettings::is_empty")]
    pub health: HealthSettings,
    /// The backends, in the order of the file.
    #[serde(default, rename = "backend", skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
}

/// A machine that answers for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Unique within its service; `SERVICE/BACKEND` is the full name.
    pub name: String,
    /// Where packets are sent.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Share of new connections relative to the other backends; 0 takes none.
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// What the operator says of it, whatever its health.
    #[serde(default)]
    pub admin: Admin,
    /// A label for the place it stands at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
}

const fn default_weight() -> u16 {
    DEFAULT_WEIGHT
}

impl Backend {
    /// A ready backend with the default weight.
    pub fn new(name: impl Into<String>, address: IpAddr) -> Self {
        Self { name: name.into(), address, weight: DEFAULT_WEIGHT, admin: Admin::Ready, site: None }
    }
}

impl Service {
    /// A service without backends and with defaults for everything else.
    pub fn new(name: impl Into<String>, address: IpAddr, port: Port, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            address,
            port,
            protocol,
            mode: Mode::default(),
            ring_slots: None,
            all_down: AllDown::default(),
            health: HealthSettings::default(),
            backends: Vec::new(),
        }
    }

    /// The backend of that name.
    pub fn backend(&self, name: &str) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.name == name)
    }

    /// The backend of that name, to change it; call [`Config::validate`] afterwards.
    pub fn backend_mut(&mut self, name: &str) -> Option<&mut Backend> {
        self.backends.iter_mut().find(|backend| backend.name == name)
    }

    /// The health check that applies: the service's own settings over `defaults` over the built-in ones.
    pub fn health(&self, defaults: &HealthSettings) -> HealthCheck {
        super::health::resolve(self, defaults)
    }
}

impl Config {
    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The service of that name, to change it; call [`Config::validate`] afterwards.
    pub fn service_mut(&mut self, name: &str) -> Option<&mut Service> {
        self.services.iter_mut().find(|service| service.name == name)
    }

    /// Backends of all services together.
    pub fn backend_count(&self) -> usize {
        self.services.iter().map(|service| service.backends.len()).sum()
    }

    /// The configuration as TOML; parsing it gives the same configuration again.
    pub fn to_toml(&self) -> String {
        // Every value of the model is a table, a list, a text or an integer, so there is nothing that TOML lacks.
        toml::to_string(self).expect("the configuration model has a TOML form")
    }
}

/// The port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// Every port that no other service of the same address and protocol names.
    Any,
    /// One port, 1 to 65535.
    Number(u16),
}

impl Port {
    /// The number, if it is one.
    pub const fn number(self) -> Option<u16> {
        match self {
            Self::Any => None,
            Self::Number(number) => Some(number),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("any"),
            Self::Number(number) => fmt::Display::fmt(number, f),
        }
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::Any);
        }
        match text.parse::<u16>() {
            Ok(number) if number > 0 => Ok(Self::Number(number)),
            _ => Err(format!("port {text:?} is neither a number from 1 to 65535 nor \"any\"")),
        }
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::Number(number) => serializer.serialize_u16(*number),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u16),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(0) => Err(serde::de::Error::custom("port 0 cannot be served")),
            Raw::Number(number) => Ok(Self::Number(number)),
            Raw::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// An enumeration whose values are written as lower-case words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $what:literal, $default:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every value as it is written.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The value as it is written.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Default for $name {
            fn default() -> Self { Self::$default }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.as_str()) }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("{} {text:?} is not one of {}", $what, Self::WORDS.join(", "))),
                }
            }
        }
    };
}

words! {
    /// How the forwarding program is attached to an interface.
    XdpMode, "xdp mode", Native {
        /// In the driver, before the kernel's network stack sees the packet.
        Native = "native",
        /// In the kernel's generic hook: works everywhere, and is slow.
        Generic = "generic",
    }
}

words! {
    /// Transport protocol of a service.
    Protocol, "protocol", Tcp {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

impl Protocol {
    /// The protocol number of the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

words! {
    /// How packets get from the load balancer to a backend.
    Mode, "mode", Ipip {
        /// Inside another IP header, in all four combinations of families.
        Ipip = "ipip",
        /// Inside UDP (Generic UDP Encapsulation), for networks that drop IP in IP.
        Gue = "gue",
        /// By a new destination MAC address; the backend is on the same link.
        L2 = "l2",
    }
}

words! {
    /// What happens when no backend of a service is usable.
    AllDown, "policy", Open {
        /// Send to all backends as if they were healthy: the checks may be what is broken.
        Open = "open",
        /// Drop, and count.
        Drop = "drop",
    }
}

words! {
    /// What the operator says of a backend, whatever its health.
    Admin, "state", Ready {
        /// Takes its share.
        Ready = "ready",
        /// Takes nothing new; it is to be emptied.
        Drain = "drain",
        /// Takes nothing and is not checked; somebody works on it.
        Maint = "maint",
    }
}

/// Key of the flow hash, written as 32 hexadecimal digits. Its `Debug` form hides it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FlowHashKey(pub [u8; 16]);

impl fmt::Debug for FlowHashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlowHashKey(..)")
    }
}

impl fmt::Display for FlowHashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for FlowHashKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text is not repeated in the message: it is meant to be a secret.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("the flow hash key is not 32 hexadecimal digits".to_owned());
        }
        u128::from_str_radix(text, 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|error| format!("the flow hash key cannot be read: {error}"))
    }
}

impl Serialize for FlowHashKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FlowHashKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
