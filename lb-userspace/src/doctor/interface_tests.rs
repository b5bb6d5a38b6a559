//! Tables of interfaces with something wrong, and what is said about them.

use super::super::finding::tests::find;
use super::super::veth::{Peer, PeerEnd};
use super::*;
use crate::dataplane::nexthop::XdpAttachment;

const NATIVE_XDP: Option<XdpAttachment> =
    Some(XdpAttachment { mode: XdpAttachMode::Native, program_id: Some(7) });
const GENERIC_XDP: Option<XdpAttachment> =
    Some(XdpAttachment { mode: XdpAttachMode::Generic, program_id: Some(7) });

/// A network card that balances.
fn card() -> Interface {
    Interface {
        role: Role::Balancer(XdpMode::Native),
        link: Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1600,
            up: true,
            carrier: true,
            xdp: NATIVE_XDP,
            kind: None,
            peer_ifindex: None,
            peer_elsewhere: false,
        },
        driver: Some("ice".to_owned()),
        features: Some(XdpFeatures(0x7f)),
        program: Some(Program { id: 7, ours: true, name: Some("forward".to_owned()), link_id: Some(3) }),
        lro: Some(false),
        gro: Some(true),
        queues: Some(ReceiveQueues { count: 8, most: 64, combined: true }),
        cpus: 8,
        overhead: Some(20),
        rp_filter: Some(1),
        ip_forward: Some(false),
        peer: None,
    }
}

fn end() -> PeerEnd {
    PeerEnd {
        name: "to-lb".to_owned(),
        namespace: Some("/run/netns/r".to_owned()),
        program: true,
        mtu: 1600,
        tx_checksum: Some(false),
    }
}

/// A veth that balances.
fn veth(peer: PeerEnd) -> Interface {
    Interface { driver: Some("veth".to_owned()), peer: Some(Peer::Seen(peer)), ..card() }
}

#[test]
fn good_interfaces_have_nothing_but_ok() {
    for interface in [card(), veth(end())] {
        let findings = judge(&interface);
        assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
    }
}

#[test]
fn what_is_wrong_with_a_card_is_said_with_its_cure() {
    type Spoil = fn(&mut Interface);
    let cases: [(&str, Severity, &str, &str, Spoil); 24] = [
        ("link", Severity::Problem, "set down", "`ip link set dev eth0 up`", |i| i.link.up = false),
        ("link", Severity::Problem, "no carrier", "ip link show dev eth0", |i| i.link.carrier = false),
        ("link", Severity::Problem, "no Ethernet", "ip -br link", |i| i.link.mac = None),
        ("driver", Severity::Problem, "no native XDP here", "generic", |i| {
            (i.link.xdp, i.program, i.features) = (None, None, Some(XdpFeatures(0)));
        }),
        ("driver", Severity::Note, "not known", "generic", |i| {
            (i.link.xdp, i.program, i.features, i.driver) = (None, None, None, Some("r8169".to_owned()));
        }),
        ("driver", Severity::Ok, "ice has", "", |i| (i.link.xdp, i.program, i.features) = (None, None, None)),
        ("driver", Severity::Ok, "odd has", "", |i| (i.features, i.driver) = (None, Some("odd".to_owned()))),
        ("mode", Severity::Warning, "GENERIC", "xdp_mode = \"native\"", |i| i.link.xdp = GENERIC_XDP),
        ("mode", Severity::Warning, "GENERIC", "--mode native", |i| {
            (i.link.xdp, i.role) = (GENERIC_XDP, Role::Decap);
        }),
        ("program", Severity::Problem, "`tool` (id 9)", "bpftool link detach id 5", |i| {
            i.program = Some(Program { id: 9, ours: false, name: Some("tool".to_owned()), link_id: Some(5) });
        }),
        ("program", Severity::Problem, "(id 9)", "`ip link set dev eth0 xdp off`", |i| {
            i.program = Some(Program { id: 9, ours: false, name: None, link_id: None });
        }),
        ("program", Severity::Problem, "(id 9)", "xdpgeneric off", |i| {
            i.link.xdp = GENERIC_XDP;
            i.program = Some(Program { id: 9, ours: false, name: None, link_id: None });
        }),
        ("program", Severity::Problem, "xdp_dispatcher", "xdp-loader unload eth0 --all", |i| {
            let name = Some("xdp_dispatcher".to_owned());
            i.program = Some(Program { id: 9, ours: false, name, link_id: None });
        }),
        ("mtu", Severity::Warning, "more than 1480 bytes", "mtu 1520", |i| i.link.mtu = 1500),
        ("mtu", Severity::Warning, "more than 1448 bytes", "advmss 1388", |i| {
            (i.link.mtu, i.overhead) = (1500, None);
        }),
        ("mtu", Severity::Ok, "", "", |i| (i.link.mtu, i.overhead) = (1500, Some(0))),
        ("mtu", Severity::Note, "1500", "mtu", |i| (i.link.mtu, i.role) = (1500, Role::Decap)),
        ("jumbo", Severity::Warning, "9000", "mtu 3498", |i| {
            (i.link.mtu, i.link.xdp, i.program) = (9000, None, None);
        }),
        ("lro", Severity::Warning, "merges", "`ethtool -K eth0 lro off`", |i| i.lro = Some(true)),
        ("gro", Severity::Warning, "too_big", "`ethtool -K eth0 gro off`", |i| i.link.xdp = GENERIC_XDP),
        ("queues", Severity::Note, "2 of 8", "`ethtool -L eth0 combined 8`", |i| {
            i.queues = Some(ReceiveQueues { count: 2, most: 64, combined: true });
        }),
        ("queues", Severity::Note, "1 of 8", "ethtool -l eth0", |i| {
            i.queues = Some(ReceiveQueues { count: 1, most: 1, combined: false });
        }),
        ("rp-filter", Severity::Note, "strict", "rp_filter=2", |i| i.role = Role::Decap),
        ("ip-forward", Severity::Note, "circle", "ip_forward=0", |i| i.ip_forward = Some(true)),
    ];
    for (id, severity, text, cure, spoil) in cases {
        let mut interface = card();
        spoil(&mut interface);
        check(&interface, id, severity, text, cure);
    }
}

#[test]
fn what_is_wrong_behind_a_veth_is_said_with_its_cure() {
    type Spoil = fn(&mut PeerEnd);
    let cases: [(&str, Severity, &str, &str, Spoil); 5] = [
        (
            "peer-program",
            Severity::Problem,
            "vanishes",
            "`nsenter --net=/run/netns/r wattline decap attach to-lb --allow 0.0.0.0/32`",
            |p| p.program = false,
        ),
        (
            "peer-checksum",
            Severity::Problem,
            "unfinished",
            "`nsenter --net=/run/netns/r ethtool -K to-lb tx off`",
            |p| {
                p.tx_checksum = Some(true);
            },
        ),
        ("peer-checksum", Severity::Problem, "unfinished", "`ethtool -K to-lb tx off`", |p| {
            (p.tx_checksum, p.namespace) = (Some(true), None);
        }),
        ("peer-checksum", Severity::Note, "cannot be seen", "tx off", |p| p.tx_checksum = None),
        ("peer-mtu", Severity::Warning, "2000", "ip link set dev to-lb mtu 1600", |p| p.mtu = 2000),
    ];
    for (id, severity, text, cure, spoil) in cases {
        let mut peer = end();
        spoil(&mut peer);
        check(&veth(peer), id, severity, text, cure);
    }
    let fresh = |mtu| {
        let mut interface = veth(PeerEnd { mtu, ..end() });
        (interface.link.xdp, interface.program, interface.link.mtu) = (None, None, 9000);
        interface
    };
    check(&fresh(3507), "peer-mtu", Severity::Problem, "refused above 3506", "mtu 3506");
    check(&fresh(3506), "peer-mtu", Severity::Ok, "3506", "");
    let hidden = Interface { peer: Some(Peer::Hidden), ..veth(end()) };
    check(&hidden, "peer-program", Severity::Note, "cannot be seen", "sudo wattline doctor eth0");
    let few_queues = Interface { features: Some(XdpFeatures(0)), role: Role::Asked, ..fresh(1500) };
    check(&few_queues, "driver", Severity::Problem, "transmit queues", "ethtool -L eth0 rx N");
}

fn check(interface: &Interface, id: &str, severity: Severity, text: &str, cure: &str) {
    let findings = judge(interface);
    let finding = find(&findings, id);
    assert_eq!(finding.severity, severity, "{finding:?}");
    assert!(finding.finding.contains(text), "{text} in {finding:?}");
    assert!(finding.cure.as_deref().unwrap_or_default().contains(cure), "{cure} in {finding:?}");
}

#[test]
fn a_peer_does_not_matter_where_nothing_is_sent_natively() {
    let bad = PeerEnd { program: false, tx_checksum: Some(true), ..end() };
    let decap = Interface { role: Role::Decap, ..veth(bad.clone()) };
    let generic = Interface { link: Link { xdp: GENERIC_XDP, ..card().link }, ..veth(bad) };
    for interface in [decap, generic] {
        let findings = judge(&interface);
        assert!(findings.iter().all(|finding| !finding.id.starts_with("peer-")), "{findings:#?}");
    }
}

#[test]
fn an_interface_nobody_chose_gives_notes_at_most() {
    let mut interface = veth(PeerEnd { program: false, ..end() });
    (interface.role, interface.link.xdp, interface.program, interface.link.mtu) =
        (Role::Candidate, None, None, 1500);
    let findings = judge(&interface);
    assert!(findings.iter().all(|finding| finding.severity <= Severity::Note), "{findings:#?}");
    assert_eq!(find(&findings, "peer-program").severity, Severity::Note);
}
