//! Who takes part: six backends in two sites, two services, and the configuration that says so.
//!
//! Names and weights live here and nowhere else; nothing is started here.

use std::fmt::Write as _;
use std::net::SocketAddr;

use ::tests::topology::{Backend, VIP4, VIP6};

/// A backend of the demo.
pub(super) struct Member {
    /// What it is called in the configuration and on the screen.
    pub name: &'static str,
    /// Its site label.
    pub site: &'static str,
    /// What the lab calls it.
    pub lab: &'static str,
    /// Its weight; they add up to 1000.
    pub weight: u16,
}

/// All backends; elsewhere a backend is its index in here.
pub(super) const MEMBERS: [Member; 6] = [
    Member { name: "berlin-1", site: "berlin", lab: "a1", weight: 300 },
    Member { name: "berlin-2", site: "berlin", lab: "a2", weight: 200 },
    Member { name: "berlin-3", site: "berlin", lab: "a3", weight: 100 },
    Member { name: "oslo-1", site: "oslo", lab: "b1", weight: 200 },
    Member { name: "oslo-2", site: "oslo", lab: "b2", weight: 150 },
    Member { name: "oslo-3", site: "oslo", lab: "b3", weight: 50 },
];

/// The backend that fails and returns.
pub(super) const VICTIM: usize = 3;

/// The part of the fleet that a backend is, 0 to 1.
pub(super) fn weight_share(member: usize) -> f64 {
    let sum: u32 = MEMBERS.iter().map(|member| u32::from(member.weight)).sum();
    f64::from(MEMBERS[member].weight) / f64::from(sum)
}

/// A backend's index by the lab's name for it.
pub(super) fn by_lab_name(lab: &str) -> Option<usize> {
    MEMBERS.iter().position(|member| member.lab == lab)
}

/// A service of the demo.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    /// Its name.
    pub name: &'static str,
    /// What clients connect to.
    pub target: SocketAddr,
    /// How packets get to the backends.
    pub mode: &'static str,
}

/// All services; elsewhere a service is its index in here. Both have all backends.
pub(super) const SERVICES: [Service; 2] = [
    Service { name: "web", target: SocketAddr::new(VIP4, 80), mode: "ipip" },
    Service { name: "web6", target: SocketAddr::new(VIP6, 80), mode: "gue" },
];

/// Where outer packets come from, in the configuration and on the backends' lists of what they accept.
pub(super) const OUTER_SOURCES: [&str; 2] = ["10.200.0.0/16", "fd00:200::/64"];

/// The configuration of the load balancer.
pub(super) fn config(backends: &[Backend]) -> String {
    let [source_v4, source_v6] = OUTER_SOURCES;
    let mut text = format!(
        "[node]\ninterfaces = [\"eth0\"]\nflow_hash_key = \"576174746c696e65206f6e2073746167\"\n\
         source_v4 = \"{source_v4}\"\nsource_v6 = \"{source_v6}\"\n\n\
         [health]\ntype = \"http\"\npath = \"/healthz\"\nbody = \"ok\"\n\
         interval_ms = 700\ntimeout_ms = 700\nrise = 2\nfall = 3\n"
    );
    for Service { name, target, mode } in SERVICES {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "\n[[service]]\nname = \"{name}\"\naddress = \"{}\"\nport = {}\nprotocol = \"tcp\"\nmode = \"{mode}\"\n",
            target.ip(),
            target.port()
        );
        for Member { name, site, lab, weight } in MEMBERS {
            let Some(backend) = backends.iter().find(|backend| backend.name == lab) else { continue };
            let _ = write!(
                text,
                "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{}\"\nsite = \"{site}\"\nweight = {weight}\n",
                backend.address(target.ip())
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_parts_of_a_whole() {
        let sum: f64 = (0..MEMBERS.len()).map(weight_share).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        assert!((weight_share(VICTIM) - 0.2).abs() < 1e-9);
        assert_eq!(by_lab_name(MEMBERS[VICTIM].lab), Some(VICTIM));
    }
}
