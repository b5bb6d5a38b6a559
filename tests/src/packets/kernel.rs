//! The committed objects in the running kernel: loaded and pinned by the product's own code, run over single frames.
//!
//! Needs root and a host of the lab, whose network and bpffs it uses: call it inside [`crate::host::Host::enter`]. The
//! forwarding program is never attached, the decapsulating one only to that host's `lo`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::{
    TestRunOptions,
    maps::{Map, MapData, PerCpuArray},
    programs::{TestRun as _, Xdp, XdpMode},
};
use aya_obj::programs::XdpAttachType;
use ipnet::IpNet;
use lb_common::{
    abi,
    address::{self},
    counter::Counter,
    datapath::Verdict,
    decap::Outcome,
    host::{MemoryDecapTables, MemoryTables},
};
use lb_userspace::dataplane::{
    decap::{self, Settings},
    forward::{Forward, Sizes},
    maps::Maps,
    pins::Pins,
};

use super::{Observed, world::INGRESS};

/// Where every host has its bpffs.
const BPFFS: &str = "/sys/fs/bpf";

/// Bytes that a test run leaves in front of a frame for new headers: `XDP_PACKET_HEADROOM` of 256, less the kernel's
/// own `struct xdp_frame` of 40 (`include/net/xdp.h`, `bpf_xdp_adjust_head` in `net/core/filter.c`).
pub const ROOM: usize = 216;

/// A frame shorter than this cannot be given to a test run (`bpf_test_init` in `net/bpf/test_run.c`).
pub const SHORTEST: usize = 14;

/// The balancer with its maps.
pub struct Balancer {
    program: Xdp,
    maps: Maps,
    /// Holds the program and its reader of messages.
    _forward: Forward,
    ingress: u32,
    counters: Vec<Counter>,
    reasons: Vec<u64>,
}

impl Balancer {
    /// Loads the object and fills its maps with what `tables` hold.
    pub fn load(tables: &MemoryTables) -> Result<Self> {
        let pins = Pins::forward(Path::new(BPFFS));
        let services = tables.services.len() as u32;
        let sizes =
            Sizes { services, backends: tables.backends.len() as u32, ring_slots: tables.rings.len() as u32 };
        let forward = Forward::load(&pins, sizes)?;
        let mut maps = Maps::open(&pins)?;
        if let Some(node) = tables.node {
            maps.set_node(node)?;
        }
        maps.backends.write(0, &tables.backends);
        maps.rings.write(0, &tables.rings);
        for (key, service) in &tables.services {
            maps.set_service(*key, *service)?;
        }
        maps.set_devices(&tables.devices.iter().copied().collect())?;
        let program = Xdp::from_pin(pins.program(), XdpAttachType::Interface)?;
        let counters = vec![Counter::default(); maps.counters_capacity() as usize];
        let ingress = tables.ingress;
        Ok(Self { program, maps, _forward: forward, ingress, counters, reasons: Vec::new() })
    }

    /// Sends a frame through the program and tells what it did. `room` is how many bytes may be put in front; `None`:
    /// all of [`ROOM`]. Of the counters, which are many, it looks at those in `likely`; see [`Balancer::surprises`].
    pub fn run(
        &mut self,
        bytes: &[u8],
        room: Option<usize>,
        likely: impl IntoIterator<Item = u32>,
    ) -> Result<Observed> {
        let (verdict, frame) = run(&self.program, self.ingress, bytes, room)?;
        let counters = self.counters_moved(likely)?;
        let now: Vec<u64> = self.maps.reasons()?.into_iter().map(|(_, packets)| packets).collect();
        let reasons = differences(&self.reasons, &now);
        self.reasons = now;
        Ok(Observed { verdict, frame, counters, reasons })
    }

    /// Counters that moved without having been likely to, in any run since the last call.
    pub fn surprises(&mut self) -> Result<BTreeMap<u32, Counter>> {
        self.counters_moved(0..self.maps.counters_capacity())
    }

    fn counters_moved(&mut self, among: impl IntoIterator<Item = u32>) -> Result<BTreeMap<u32, Counter>> {
        let mut moved = BTreeMap::new();
        for index in among {
            let now = self.maps.counter(index)?;
            let before = std::mem::replace(&mut self.counters[index as usize], now);
            if now != before {
                let by = Counter { packets: now.packets - before.packets, bytes: now.bytes - before.bytes };
                moved.insert(index, by);
            }
        }
        Ok(moved)
    }
}

/// The decapsulation with its maps.
pub struct Decapsulator {
    program: Xdp,
    outcomes: PerCpuArray<MapData, u64>,
    before: Vec<u64>,
}

impl Decapsulator {
    /// Attaches to `lo`, which loads the object and fills its maps with what `tables` hold.
    pub fn load(tables: &MemoryDecapTables) -> Result<Self> {
        let node = tables.node.context("a decapsulation that is attached is configured")?;
        let net = |(family, network, length): &(_, _, u32)| {
            IpNet::new(address::from_bytes(*family, *network), *length as u8).context("a prefix of the tests")
        };
        let allow = tables.sources.iter().map(net).collect::<Result<_>>()?;
        let settings = Settings { allow, gue_port: node.gue_port, mode: XdpMode::Skb };
        decap::attach(Path::new(BPFFS), "lo", &settings)?;
        let pins = Pins::decap(Path::new(BPFFS), "lo");
        let program = Xdp::from_pin(pins.program(), XdpAttachType::Interface)?;
        let outcomes = MapData::from_pin(pins.map(abi::decap::OUTCOMES))?;
        let outcomes = Map::PerCpuArray(outcomes).try_into()?;
        Ok(Self { program, outcomes, before: Vec::new() })
    }

    /// Sends a frame through the program and tells everything that it did.
    pub fn run(&mut self, bytes: &[u8]) -> Result<Observed> {
        let (verdict, frame) = run(&self.program, INGRESS, bytes, None)?;
        let count = |&outcome: &Outcome| -> Result<u64> {
            Ok(self.outcomes.get(&(outcome as u32), 0)?.iter().sum::<u64>())
        };
        let now = Outcome::ALL.iter().map(count).collect::<Result<Vec<_>>>()?;
        let reasons = differences(&self.before, &now);
        self.before = now;
        Ok(Observed { verdict, frame, counters: BTreeMap::new(), reasons })
    }
}

fn differences(before: &[u64], now: &[u64]) -> BTreeMap<u32, u64> {
    let before = before.iter().copied().chain(std::iter::repeat(0));
    let moved = (0..).zip(before.zip(now));
    moved.filter(|(_, (before, now))| before != *now).map(|(i, (before, now))| (i, now - before)).collect()
}

/// One run. Metadata in front of the frame takes the room away that the caller does not want it to have.
fn run(program: &Xdp, ingress: u32, bytes: &[u8], room: Option<usize>) -> Result<(Verdict, Vec<u8>)> {
    let metadata = ROOM.checked_sub(room.unwrap_or(ROOM)).context("no test run has that much room")?;
    ensure!(metadata.is_multiple_of(4), "metadata comes in multiples of 4 bytes");
    let input = [&vec![0; metadata][..], bytes].concat();
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: Vec<u8> = [metadata as u32, input.len() as u32, 0, ingress, 0, 0]
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect();
    let mut output = vec![0; input.len() + 256];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(&input),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        })
        .with_context(|| format!("running a frame of {} bytes with {metadata} of metadata", bytes.len()))?;
    output.truncate(result.data_size_out as usize);
    output.drain(..metadata);
    // `enum xdp_action`, `include/uapi/linux/bpf.h`.
    let verdict = match result.return_value {
        1 => Verdict::Drop,
        2 => Verdict::Pass,
        3 => Verdict::Transmit,
        4 => Verdict::Redirect,
        other => anyhow::bail!("the program returned {other}"),
    };
    Ok((verdict, output))
}
