//! Which packets belong to a service: its port before "any port", TCP apart from UDP, and nothing else.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::capture::{Capture, RawSender};
use tests::config::{Config, Family, Service};
use tests::counters::{self, Stats};
use tests::frames::{Ip, Maker, transport_checksum};
use tests::server::{Server, ServerSpec};
use tests::topology::{Lab, VIP4, VIP6};
use tests::traffic::{self, Flow, Flows};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(30);
/// Addresses with a service over TCP and none over UDP.
const TCP_ONLY: [&str; 2] = ["192.0.2.11", "2001:db8:1::11"];

fn only(lab: &Lab, service: Service, backend: &str, vip: IpAddr) -> Service {
    service.backends(Family::of(vip), [lab.backend(backend)])
}

/// Every service has one backend, so that the backend names the service.
fn config(lab: &Lab) -> Config {
    let mut config = Config::new();
    for (vip, other) in [VIP4, VIP6].into_iter().zip(TCP_ONLY) {
        let other: IpAddr = other.parse().unwrap();
        let name = |name: &str| format!("{name}{}", Family::of(vip));
        for (service, backend) in [
            (Service::tcp(&name("web"), SocketAddr::new(vip, 80)), "a1"),
            (Service::any_port(&name("tcp"), vip, "tcp").set("health", "{ port = 80 }"), "a2"),
            (Service::udp(&name("dns"), SocketAddr::new(vip, 53)), "a1"),
            (Service::any_port(&name("udp"), vip, "udp"), "a3"),
            (Service::any_port(&name("only"), other, "tcp").set("health", "{ port = 80 }"), "a4"),
        ] {
            config = config.service(only(lab, service, backend, vip));
        }
    }
    config
}

#[test]
fn the_port_wins_over_any_port_and_protocols_are_apart() {
    let servers = ServerSpec { tcp: vec![80, 8080, 9000], udp: vec![53, 80, 5353] };
    let builder = Lab::builder().site_a(4).servers(servers);
    let lab = TCP_ONLY.iter().fold(builder, |lab, vip| lab.vip(vip.parse().unwrap())).build().unwrap();
    let _agent = counters::balance(&lab, &config(&lab)).unwrap();
    for (vip, tcp_only) in [VIP4, VIP6].into_iter().zip(TCP_ONLY) {
        for (port, backend) in [(80, "a1"), (8080, "a2"), (9000, "a2")] {
            let report = Flows::tcp(SocketAddr::new(vip, port), 20).run(&lab.client).unwrap().expect_all();
            assert_eq!(report.per_backend().into_iter().collect::<Vec<_>>(), [(backend, 20)], "TCP {port}");
        }
        for (port, backend) in [(53, "a1"), (80, "a3"), (5353, "a3")] {
            let report = Flows::udp(SocketAddr::new(vip, port), 20).run(&lab.client).unwrap().expect_all();
            assert_eq!(report.per_backend().into_iter().collect::<Vec<_>>(), [(backend, 20)], "UDP {port}");
        }
        // A port that nobody serves is the backend's to refuse.
        traffic::get(&lab.client, Flow::to(SocketAddr::new(vip, 81))).unwrap_err();
        let stats = Stats::read(lab.lb()).unwrap();
        let name = |name: &str| format!("{name}{}", Family::of(vip));
        assert_eq!(stats.services[&name("dns")], 20);
        assert_eq!(stats.services[&name("udp")], 40);
        assert!(stats.services[&name("tcp")] > 40 * 4);

        traffic::get(&lab.client, Flow::to(SocketAddr::new(tcp_only.parse().unwrap(), 8080))).unwrap();
        assert_eq!(Stats::read(lab.lb()).unwrap().dropped, 0);
    }
}

#[test]
fn what_no_service_is_for_goes_up_as_it_came() {
    let builder = Lab::builder().site_a(4);
    let lab = TCP_ONLY.iter().fold(builder, |lab, vip| lab.vip(vip.parse().unwrap())).build().unwrap();
    let _agent = counters::balance(&lab, &config(&lab)).unwrap();
    let lb = lab.lb().link("eth0").mac().unwrap();
    let maker = Maker::new(lab.router.link("lb1").mac().unwrap(), lb);
    let sender = RawSender::open(&lab.router, "lb1").unwrap();
    let inside = Capture::start(lab.lb(), "eth0").unwrap();
    for (vip, tcp_only, stranger) in
        [(VIP4, TCP_ONLY[0], "192.0.2.99"), (VIP6, TCP_ONLY[1], "2001:db8:1::99")]
    {
        let source = Lab::flow_source(vip, 1);
        let [tcp_only, stranger]: [IpAddr; 2] = [tcp_only, stranger].map(|address| address.parse().unwrap());
        for frame in [
            // No service has port 0, not even one on any port.
            maker.udp(source, SocketAddr::new(vip, 0), b"zero"),
            maker.tcp(source, SocketAddr::new(vip, 0), b"zero"),
            maker.udp(source, SocketAddr::new(tcp_only, 53), b"the wrong protocol"),
            maker.tcp(source, SocketAddr::new(stranger, 80), b"the wrong address"),
        ] {
            sender.send(&frame).unwrap();
            wait::until("the frame to pass", LIMIT, || {
                let frames = inside.frames();
                let passed = frames.iter().any(|seen| !seen.sent && seen.bytes == frame);
                if passed { Ok(()) } else { Err(frames.len()) }
            })
            .unwrap();
        }
    }
    let stats = Stats::read(lab.lb()).unwrap();
    assert_eq!((stats.forwarded, stats.dropped), (0, 0), "{:?}", stats.reasons);
    assert!(stats.reason("not_a_service") >= 8, "{:?}", stats.reasons);
}

/// An echo request to the load balancer itself, and the type and content of the answer.
fn ping(lab: &Lab, to: IpAddr) {
    let (from, protocol, request, reply): (IpAddr, u8, u8, u8) = match to {
        IpAddr::V4(_) => ("10.2.0.1".parse().unwrap(), 1, 8, 0),
        IpAddr::V6(_) => ("fd02::1".parse().unwrap(), 58, 128, 129),
    };
    let mut message = [&[request, 0, 0, 0, 0x12, 0x34, 0, 1], b"are you there?".as_slice()].concat();
    let sum = match to {
        IpAddr::V4(_) => tests::frames::checksum(&message),
        IpAddr::V6(_) => transport_checksum(from, to, protocol, &message),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let (router, lb) = (lab.router.link("br0").mac().unwrap(), lab.lb().link("eth0").mac().unwrap());
    let capture = Capture::start(&lab.router, "lb1").unwrap();
    let frame = Maker::new(router, lb).ip(from, to, protocol, &message);
    RawSender::open(&lab.router, "lb1").unwrap().send(&frame).unwrap();
    wait::until("an answer to the ping", LIMIT, || {
        let frames = capture.frames();
        let answers = frames.iter().filter(|frame| !frame.sent);
        let mut packets = answers.filter_map(|frame| Ip::parse(frame.bytes.get(14..)?).ok());
        let found = packets.any(|ip| {
            (ip.source, ip.destination, ip.protocol) == (to, from, protocol)
                && ip.payload.first() == Some(&reply)
                && ip.payload.get(4..) == Some(&message[4..])
        });
        if found { Ok(()) } else { Err(frames.len()) }
    })
    .unwrap();
}

#[test]
fn the_load_balancer_itself_stays_reachable() {
    let lab = Lab::builder().site_a(4).vip(TCP_ONLY[0].parse().unwrap()).build().unwrap();
    let _agent = counters::balance(&lab, &config(&lab)).unwrap();
    let own = [IpAddr::from(lab.lbs[0].v4), lab.lbs[0].v6.into()];
    let _server = Server::start(lab.lb(), "lb", &ServerSpec::default(), &own).unwrap();
    for address in own {
        ping(&lab, address);
        let web = Flows::tcp(SocketAddr::new(address, 80), 30).bytes(20_000);
        let report = web.run(&lab.client).unwrap().expect_all();
        assert_eq!(report.per_backend()["lb"], 30);
        let echo = Flow::to(SocketAddr::new(address, 53)).bytes(1200);
        assert_eq!(traffic::udp(&lab.client, echo).unwrap().backend, "lb");
    }
    let stats = Stats::read(lab.lb()).unwrap();
    assert_eq!((stats.forwarded, stats.dropped), (0, 0), "{:?}", stats.reasons);
    assert!(stats.reason("not_a_service") > 60 * 4 && stats.reason("icmp") >= 2, "{:?}", stats.reasons);
}
