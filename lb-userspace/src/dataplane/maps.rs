//! The balancer's maps, opened: typed access over aya's handles and over mappings.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::maps::{Array, DevMapHash, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::{
    abi::forward,
    backend::Backend,
    counter::Counter,
    node::Node,
    reason::Reason,
    ring::Slot,
    service::{Service, ServiceKey},
};
use zerocopy::{FromBytes as _, transmute};

use super::{mapped::Mapped, pins::Pins};

/// Open maps of the balancer. Values cross the system call as byte arrays, so no layout is trusted twice.
pub struct Maps {
    node: Array<MapData, [u8; size_of::<Node>()]>,
    services: HashMap<MapData, [u8; size_of::<ServiceKey>()], [u8; size_of::<Service>()]>,
    services_capacity: u32,
    counters: PerCpuArray<MapData, [u8; size_of::<Counter>()]>,
    reasons: PerCpuArray<MapData, u64>,
    devices: DevMapHash<MapData>,
    /// The array of backend regions.
    pub backends: Mapped<Backend>,
    /// The array of rings.
    pub rings: Mapped<Slot>,
}

fn open(pins: &Pins, name: &str) -> Result<MapData> {
    let path = pins.map(name);
    MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
}

impl Maps {
    /// Opens the pinned maps; their layout has been verified.
    pub fn open(pins: &Pins) -> Result<Self> {
        let mapped = |name: &str| -> Result<(MapData, u32)> {
            let map = open(pins, name)?;
            let entries =
                map.info().with_context(|| format!("asking the kernel about {name}"))?.max_entries();
            Ok((map, entries))
        };
        let (backends, backend_entries) = mapped(forward::BACKENDS)?;
        let (rings, ring_entries) = mapped(forward::RINGS)?;
        let (services, services_capacity) = mapped(forward::SERVICES)?;
        Ok(Self {
            node: Map::Array(open(pins, forward::NODE)?).try_into()?,
            services: Map::HashMap(services).try_into()?,
            services_capacity,
            counters: Map::PerCpuArray(open(pins, forward::COUNTERS)?).try_into()?,
            reasons: Map::PerCpuArray(open(pins, forward::REASONS)?).try_into()?,
            devices: Map::DevMapHash(open(pins, forward::DEVICES)?).try_into()?,
            backends: Mapped::new(backends.fd(), backend_entries)?,
            rings: Mapped::new(rings.fd(), ring_entries)?,
        })
    }

    /// The node's entry; `None` before it was filled in.
    pub fn node(&self) -> Result<Option<Node>> {
        let bytes = self.node.get(&0, 0).context("reading the NODE map")?;
        Ok(Node::read_from_bytes(&bytes).ok().filter(|node| node.ready == Node::READY))
    }

    /// Fills the node's entry in.
    pub fn set_node(&mut self, node: Node) -> Result<()> {
        let bytes: [u8; size_of::<Node>()] = transmute!(node);
        self.node.set(0, bytes, 0).context("writing the NODE map")
    }

    /// How many services fit.
    pub const fn services_capacity(&self) -> u32 {
        self.services_capacity
    }

    /// All services.
    pub fn services(&self) -> Result<Vec<(ServiceKey, Service)>> {
        self.services
            .iter()
            .map(|entry| {
                let (key, value) = entry.context("reading the SERVICES map")?;
                Ok((transmute!(key), transmute!(value)))
            })
            .collect()
    }

    /// Publishes a service: the one moment in which packets change from its old ring and backends to the new ones.
    pub fn set_service(&mut self, key: ServiceKey, service: Service) -> Result<()> {
        let key: [u8; size_of::<ServiceKey>()] = transmute!(key);
        let value: [u8; size_of::<Service>()] = transmute!(service);
        self.services.insert(key, value, 0).context("writing the SERVICES map")
    }

    /// Removes a service.
    pub fn remove_service(&mut self, key: ServiceKey) -> Result<()> {
        let key: [u8; size_of::<ServiceKey>()] = transmute!(key);
        self.services.remove(&key).context("removing from the SERVICES map")
    }

    /// How many counters there are.
    pub fn counters_capacity(&self) -> u32 {
        self.counters.len()
    }

    /// A counter, summed over the CPUs.
    pub fn counter(&self, index: u32) -> Result<Counter> {
        let values = self.counters.get(&index, 0).with_context(|| format!("reading counter {index}"))?;
        Ok(values.iter().map(|bytes| transmute!(*bytes)).sum::<Counter>())
    }

    /// Sets a counter that no packet moves at the moment: all of it on the first CPU.
    pub fn set_counter(&mut self, index: u32, counter: Counter) -> Result<()> {
        let cpus = self.counters.get(&index, 0).with_context(|| format!("reading counter {index}"))?.len();
        let mut values = vec![[0; size_of::<Counter>()]; cpus];
        values[0] = transmute!(counter);
        let values = PerCpuValues::try_from(values).context("shaping per-CPU values")?;
        self.counters.set(index, values, 0).with_context(|| format!("writing counter {index}"))
    }

    /// Packets that were not forwarded, by reason, summed over the CPUs.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>> {
        Reason::ALL
            .iter()
            .map(|&reason| {
                let values = self.reasons.get(&(reason as u32), 0).context("reading the REASONS map")?;
                Ok((reason, values.iter().sum()))
            })
            .collect()
    }

    fn held_devices(&self) -> Result<BTreeSet<u32>> {
        self.devices.keys().collect::<Result<_, _>>().context("reading the DEVICES map")
    }

    /// Makes the device map hold these interfaces, whatever else it holds.
    pub fn add_devices(&mut self, wanted: &BTreeSet<u32>) -> Result<()> {
        let mut failed = None;
        for &ifindex in wanted.difference(&self.held_devices()?) {
            // One interface that vanishes meanwhile must not keep the others out.
            if let Err(error) = self.devices.insert(ifindex, ifindex, None, 0) {
                failed = Some((ifindex, error));
            }
        }
        match failed {
            Some((ifindex, error)) => {
                Err(error).with_context(|| format!("adding interface {ifindex} to the DEVICES map"))
            }
            None => Ok(()),
        }
    }

    /// Makes the device map hold exactly these interfaces.
    pub fn set_devices(&mut self, wanted: &BTreeSet<u32>) -> Result<()> {
        let added = self.add_devices(wanted);
        for &ifindex in self.held_devices()?.difference(wanted) {
            // The kernel removes the entry itself when the interface goes; then it is not there any more.
            if let Err(error) = self.devices.remove(ifindex) {
                log::debug!("removing interface {ifindex} from the DEVICES map: {error}");
            }
        }
        added
    }
}
