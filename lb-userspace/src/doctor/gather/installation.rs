//! Seeing the agent through its socket, and the pins and programs through the kernel.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use aya::programs::{links::LinkType, loaded_links, loaded_programs};
use lb_common::{abi, address::Family, backend::Mode as Encapsulation, datapath::encap::overhead};

use crate::api::client::{Client, ClientError};
use crate::api::types::{ConfigView, Status};
use crate::config::{Config, Mode, XdpMode};
use crate::dataplane::{decap, inspect, pins};
use crate::doctor::Request;
use crate::doctor::agent::{Agent, Installation, LinkState, Pinned, Running};

/// The agent's own word.
pub(super) struct Answer {
    status: Result<Status, ClientError>,
    config: Option<Config>,
}

/// Asks the agent.
pub(super) async fn ask_agent(request: &Request<'_>) -> Answer {
    let client = Client::new(&request.socket, request.timeout);
    let status = client.get::<Status>("/v1/status").await;
    let config = match status {
        Ok(_) => client.get::<ConfigView>("/v1/config").await.ok().map(|view| view.config),
        Err(_) => None,
    };
    Answer { status, config }
}

impl Answer {
    /// Interfaces that are configured or attached, and the mode they are to have.
    pub(super) fn interfaces(&self) -> BTreeMap<String, XdpMode> {
        let attached = self.status.iter().flat_map(|status| &status.interfaces);
        let mut modes: BTreeMap<_, _> =
            attached.map(|interface| (interface.name.clone(), interface.mode)).collect();
        if let Some(Config { node, .. }) = &self.config {
            modes.extend(node.interfaces.iter().map(|name| (name.clone(), node.xdp_mode)));
        }
        modes
    }

    /// Most bytes that encapsulation adds to a packet of any configured service; none without any.
    pub(super) fn overhead(&self) -> Option<u32> {
        let services = &self.config.as_ref()?.services;
        let each = services.iter().flat_map(|service| {
            let mode = match service.mode {
                Mode::Ipip => Encapsulation::Ipip,
                Mode::Gue => Encapsulation::Gue,
                Mode::L2 => Encapsulation::L2,
            };
            let families = service.backends.iter().map(|backend| backend.address.is_ipv4());
            families.map(move |v4| overhead(mode, if v4 { Family::V4 } else { Family::V6 }) as u32)
        });
        each.max()
    }
}

/// What is pinned, and which programs that is.
pub(super) struct Pins {
    links: Result<Vec<PinnedLink>, String>,
    decap: Result<Vec<PinnedLink>, String>,
}

struct PinnedLink {
    interface: String,
    program: u32,
    state: LinkState,
}

impl Pins {
    pub(super) fn look(bpffs: &Path) -> Self {
        let say = |error: anyhow::Error| format!("{error:#}");
        let links = inspect::forward_pins(bpffs).map(|found| {
            let links = found.attachments.into_iter().map(|attachment| PinnedLink {
                state: match attachment.problem() {
                    None => LinkState::Alive,
                    Some(_) if attachment.now.is_none() => LinkState::NotHere,
                    Some(why) => LinkState::Dead(why),
                },
                program: attachment.program_id,
                interface: attachment.interface,
            });
            links.collect()
        });
        let decap = decap::status(bpffs, None).map(|found| {
            let links = found.into_iter().map(|status| PinnedLink {
                state: decap_state(&status),
                program: status.program_id,
                interface: status.interface,
            });
            links.collect()
        });
        Self { links: links.map_err(say), decap: decap.map_err(say) }
    }

    /// Interfaces with a pinned link of the balancer.
    pub(super) fn balancing(&self) -> impl Iterator<Item = &str> {
        self.links.iter().flatten().map(|link| link.interface.as_str())
    }

    /// Interfaces with a pinned link of the decapsulation.
    pub(super) fn decapsulating(&self) -> impl Iterator<Item = &str> {
        self.decap.iter().flatten().map(|link| link.interface.as_str())
    }

    fn programs(&self) -> impl Iterator<Item = u32> {
        self.links.iter().chain(&self.decap).flatten().map(|link| link.program)
    }
}

fn decap_state(status: &decap::Status) -> LinkState {
    let running = crate::dataplane::xdp_of(&status.interface).ok().flatten();
    match running.and_then(|xdp| xdp.program_id) {
        Some(id) if id == status.program_id => LinkState::Alive,
        Some(id) => LinkState::Dead(format!("another XDP program runs there (id {id})")),
        None if nix::net::if_::if_nametoindex(status.interface.as_str()).is_err() => LinkState::NotHere,
        None => LinkState::Dead("the interface was deleted and made again since".to_owned()),
    }
}

/// Programs in the kernel: which are ours, what the others are called.
pub(super) struct Programs {
    ours: Vec<u32>,
    names: HashMap<u32, String>,
    links: HashMap<u32, u32>,
}

impl Programs {
    /// Without `CAP_SYS_ADMIN` the kernel names only what is pinned.
    pub(super) fn look(bpffs: &Path, pins: &Pins) -> Self {
        let mut ours: Vec<u32> = pins.programs().collect();
        let pinned = aya::programs::ProgramInfo::from_pin(pins::Pins::forward(bpffs).program());
        ours.extend(pinned.ok().map(|program| program.id()));
        let names = loaded_programs().map_while(Result::ok).filter_map(|program| {
            let name = program.name_as_str().filter(|name| !name.is_empty())?.to_owned();
            Some((program.id(), name))
        });
        let links = loaded_links().map_while(Result::ok);
        let links = links.filter(|link| link.link_type().is_ok_and(|kind| kind == LinkType::Xdp));
        Self {
            ours,
            names: names.collect(),
            links: links.map(|link| (link.program_id(), link.id())).collect(),
        }
    }

    pub(super) fn describe(&self, id: u32) -> crate::doctor::interface::Program {
        crate::doctor::interface::Program {
            id,
            ours: self.ours.contains(&id),
            name: self.names.get(&id).cloned(),
            link_id: self.links.get(&id).copied(),
        }
    }
}

/// Puts together what was seen.
pub(super) fn describe(request: &Request<'_>, answer: Answer, pins: Pins) -> Installation {
    let root = pins::Pins::forward(request.bpffs);
    let reduce =
        |links: Vec<PinnedLink>| links.into_iter().map(|link| (link.interface, link.state)).collect();
    let pinned = pins.links.and_then(|links| {
        let decap = pins.decap?;
        let layout = inspect::layout_problems(request.bpffs);
        Ok(Pinned { exists: root.exists(), layout, links: reduce(links), decap: reduce(decap) })
    });
    Installation {
        agent: describe_agent(answer),
        version: env!("CARGO_PKG_VERSION"),
        pins: root.root().display().to_string(),
        pinned,
        other_layouts: other_layouts(request.bpffs),
    }
}

fn describe_agent(answer: Answer) -> Agent {
    match answer.status {
        Ok(status) => {
            let errors = status.interfaces.into_iter();
            let errors = errors.filter_map(|interface| Some((interface.name, interface.error?)));
            Agent::Running(Running {
                version: status.version,
                pid: status.pid,
                services: status.services,
                config_path: status.config.path,
                config_error: status.config.error,
                interface_errors: errors.collect(),
            })
        }
        Err(ClientError::Unreachable { error, .. })
            if error.kind() != std::io::ErrorKind::PermissionDenied =>
        {
            Agent::Absent
        }
        Err(error) => Agent::Failed(error.to_string()),
    }
}

/// Directories beside ours that other releases pinned.
fn other_layouts(bpffs: &Path) -> Vec<String> {
    let known = [format!("v{}", abi::LAYOUT_VERSION), format!("decap-v{}", abi::LAYOUT_VERSION)];
    let directory = bpffs.join("wattline");
    let names = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let others = names.filter(|name| known.iter().all(|known| name != known.as_str()));
    let mut others: Vec<_> = others.map(|name| directory.join(name).display().to_string()).collect();
    others.sort();
    others
}
