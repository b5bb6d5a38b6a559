//! What goes over the API's socket, as plain values.
//!
//! Every object that is an answer of its own carries `schema_version`. Fields are only added, never renamed or given
//! another meaning, without raising that number. Units are in the names or the documentation of the fields.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

pub use crate::config::diff::{ConfigDiff, Difference, FieldChange};
pub use crate::config::{Admin, AllDown, Config, HealthKind, Mode, Port, Problem, Protocol, XdpMode};

/// Version of the JSON that the API and `-o json` speak.
pub const SCHEMA_VERSION: u32 = 1;

/// The field `schema_version`: written as [`SCHEMA_VERSION`], and refused when it is another number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchemaVersion;

impl Serialize for SchemaVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(SCHEMA_VERSION)
    }
}

impl<'de> Deserialize<'de> for SchemaVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            SCHEMA_VERSION => Ok(Self),
            other => Err(serde::de::Error::custom(format!(
                "schema version {other} instead of {SCHEMA_VERSION}: agent and command line are of different releases"
            ))),
        }
    }
}

/// The agent and the data plane at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// Host name of the node.
    pub node: String,
    /// Release of the agent.
    pub version: String,
    /// Version of the map layouts.
    pub abi: u32,
    /// Process number of the agent.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Counts the changes of the running configuration; writes may demand one.
    pub generation: u64,
    /// The configuration file.
    pub config: ConfigFileStatus,
    /// Interfaces that the forwarding program is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// Configured services.
    pub services: u64,
    /// Configured backends of all services.
    pub backends: u64,
    /// Backends that take new connections now.
    pub backends_usable: u64,
    /// How full the maps are.
    pub maps: MapUsages,
}

/// The configuration file and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConfigFileStatus {
    /// Path of the file.
    pub path: String,
    /// When it was last read, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_at: Option<u64>,
    /// Why it was last refused; absent when it was taken. The last good configuration goes on running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// True when the running configuration holds changes that `config save` would write.
    pub unsaved: bool,
}

/// One interface of the data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    /// Name of the interface.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// How the program is attached.
    pub mode: XdpMode,
    /// Number of the BPF link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_id: Option<u32>,
    /// Number of the BPF program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_id: Option<u32>,
    /// Tag of the BPF program, 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_tag: Option<String>,
    /// Why it is not attached; absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How full the maps are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapUsages {
    /// Entries of the service table.
    pub services: MapUsage,
    /// Entries of the backend array.
    pub backends: MapUsage,
    /// Slots of the ring array.
    pub ring_slots: MapUsage,
}

/// How full one map is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapUsage {
    /// Entries in use.
    pub used: u64,
    /// Entries there are.
    pub capacity: u64,
}

/// A service as it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// The address clients connect to.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The port clients connect to: a number, or "any".
    #[schema(value_type = Object)]
    pub port: Port,
    /// The protocol clients speak.
    pub protocol: Protocol,
    /// How packets get to the backends.
    pub mode: Mode,
    /// Slots of its ring; 0 while it has none.
    pub ring_slots: u32,
    /// What happens when no backend is usable.
    pub all_down: AllDown,
    /// True while every backend is down and packets go to all of them nevertheless.
    pub fail_open: bool,
    /// Configured backends.
    pub backends_total: u32,
    /// Backends that take new connections now.
    pub backends_usable: u32,
    /// Packets forwarded since the maps were made.
    pub packets: u64,
    /// Their bytes, without encapsulation.
    pub bytes: u64,
    /// Packets that belonged to the service and were dropped.
    pub dropped_packets: u64,
}

/// What the health checks say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Not checked often enough yet; it takes nothing.
    Unknown,
    /// It answers.
    Healthy,
    /// It does not answer as it should.
    Unhealthy,
    /// It is not checked.
    Disabled,
}

impl HealthState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Disabled => "disabled",
        }
    }
}

/// A backend as it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendView {
    /// Its service.
    pub service: String,
    /// Its name within the service.
    pub name: String,
    /// Where packets are sent.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Configured weight.
    pub weight: u16,
    /// What the operator says of it.
    pub admin: Admin,
    /// What the checks say of it.
    pub health: HealthState,
    /// Its site label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The weight that its ring was made with: 0 when it is not usable.
    pub effective_weight: u32,
    /// Slots of the ring that name it.
    pub slots: u32,
    /// Its part of the ring, 0 to 1.
    pub share: f64,
    /// Where its packets go next.
    pub next_hop: NextHop,
    /// Packets forwarded to it since the maps were made.
    pub packets: u64,
    /// Their bytes, without encapsulation.
    pub bytes: u64,
}

/// The way to a backend, as resolved from routes and neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum NextHop {
    /// Known.
    Resolved {
        /// Outgoing interface.
        interface: String,
        /// Destination MAC address.
        mac: String,
        /// MTU towards the backend in bytes.
        mtu: u32,
    },
    /// Not known; packets to the backend are dropped and counted.
    Unresolved {
        /// Why.
        reason: String,
    },
}

/// What the checks of one backend did last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// Its service.
    pub service: String,
    /// Its name within the service.
    pub backend: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Kind of check.
    pub kind: HealthKind,
    /// Port that is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What follows from the checks so far.
    pub state: HealthState,
    /// Since when, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// When it was last checked, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check: Option<u64>,
    /// Result of the last check: "ok" or what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
    /// Milliseconds the last check took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Equal results in a row: above 0 successes, below 0 failures.
    pub consecutive: i64,
}

/// Counters since the maps were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatsView {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// When they were read, in milliseconds since 1970.
    pub time_ms: u64,
    /// Sums; received is forwarded plus every reason.
    pub totals: Totals,
    /// Packets not forwarded, by reason.
    pub reasons: Vec<ReasonCount>,
    /// Forwarded packets by service.
    pub services: Vec<ServiceCount>,
    /// Forwarded packets by backend.
    pub backends: Vec<BackendCount>,
}

/// Sums of the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Packets that the program saw.
    pub received_packets: u64,
    /// Packets sent to a backend.
    pub forwarded_packets: u64,
    /// Their bytes, without encapsulation.
    pub forwarded_bytes: u64,
    /// Packets given to the kernel.
    pub passed_packets: u64,
    /// Packets that ended here.
    pub dropped_packets: u64,
}

/// What becomes of packets of a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They go to a backend.
    Forward,
    /// They go to the kernel as they came.
    Pass,
    /// They end here.
    Drop,
}

impl Verdict {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

/// Packets not forwarded for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonCount {
    /// Name of the reason.
    pub reason: String,
    /// What becomes of the packets.
    pub verdict: Verdict,
    /// How many there were.
    pub packets: u64,
    /// What the reason means.
    pub description: String,
}

/// Packets of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceCount {
    /// Name of the service.
    pub service: String,
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, without encapsulation.
    pub bytes: u64,
    /// Packets dropped.
    pub dropped_packets: u64,
}

/// Packets of one backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendCount {
    /// Name of the service.
    pub service: String,
    /// Name of the backend within it.
    pub backend: String,
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, without encapsulation.
    pub bytes: u64,
}

/// A flow to ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct RouteQuery {
    /// Source address.
    #[param(value_type = String)]
    pub source: IpAddr,
    /// Source port.
    #[serde(default)]
    pub source_port: u16,
    /// Destination address.
    #[param(value_type = String)]
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Where a flow would go; nothing is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteView {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// What would become of a packet of the flow.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// The service that the flow belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The flow's hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<u64>,
    /// Slot of the service's ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The backend that the slot names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// How the packet would be carried, such as `ipip 10.200.0.7 -> 10.0.0.11`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<String>,
    /// Where it would go next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHop>,
}

/// The running configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigView {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// Its generation.
    pub generation: u64,
    /// The configuration.
    pub config: Config,
}

/// What a write did, or with `dry_run` would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApplyResult {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// Generation after the write; the present one for a dry run.
    pub generation: u64,
    /// False when the write asked for what is already so.
    pub changed: bool,
    /// True when nothing was done.
    pub dry_run: bool,
    /// What differs.
    pub diff: ConfigDiff,
    /// Slots that name another backend than before, by service; services without any are left out.
    pub moved_slots: Vec<MovedSlots>,
}

/// Slots of one service that changed hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MovedSlots {
    /// Name of the service.
    pub service: String,
    /// Slots that name another backend than before.
    pub moved: u32,
    /// Slots of the ring.
    pub total: u32,
}

/// Where the running configuration was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SaveResult {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// Path of the file.
    pub path: String,
    /// Generation that was written.
    pub generation: u64,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// A word for programs: `not_found`, `invalid`, `conflict`, `kernel`, `timeout`, `internal`.
    pub code: super::ErrorKind,
    /// What went wrong.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub help: String,
    /// All problems of a refused configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// An object that is an answer of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Versioned<T> {
    /// Version of this JSON.
    #[schema(value_type = u32, example = 1)]
    pub schema_version: SchemaVersion,
    /// Its fields.
    #[serde(flatten)]
    pub item: T,
}

impl<T> From<T> for Versioned<T> {
    fn from(item: T) -> Self {
        Self { schema_version: SchemaVersion, item }
    }
}

/// An interface to detach from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// Name of the interface.
    pub interface: String,
}

/// An interface to attach to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Name of the interface.
    pub interface: String,
    /// How to attach; absent: as the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<XdpMode>,
}

/// An administrative state to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminRequest {
    /// The state.
    pub admin: Admin,
}

/// Makes an answer that is a list.
macro_rules! lists {
    ($($name:ident, $field:ident: $item:ident, $doc:literal;)*) => { $(
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name {
            /// Version of this JSON.
            #[schema(value_type = u32, example = 1)]
            pub schema_version: SchemaVersion,
            /// The items.
            pub $field: Vec<$item>,
        }

        impl From<Vec<$item>> for $name {
            fn from($field: Vec<$item>) -> Self { Self { schema_version: SchemaVersion, $field } }
        }
    )* };
}

lists! {
    ServiceList, services: ServiceView, "All services.";
    BackendList, backends: BackendView, "Backends of one service or of all.";
    HealthList, health: HealthView, "The checks of all backends.";
    InterfaceList, interfaces: InterfaceStatus, "Interfaces of the data plane.";
}
