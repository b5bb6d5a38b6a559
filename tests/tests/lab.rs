//! The lab's own tests: that it carries traffic, and that it notices when something is wrong.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use tests::capture::{Capture, RawSender};
use tests::host::Host;
use tests::link::{Mac, veth};
use tests::long_lived::{LongLived, LongLivedSpec};
use tests::peer::{Action, FixedProgram};
use tests::server::Health;
use tests::topology::{Backend, CLIENTS_V4, Lab, VIP4, VIP6};
use tests::traffic::{self, Flow, Flows};
use tests::wait;

/// The backend's own addresses, with a port.
fn addresses(backend: &Backend, port: u16) -> [SocketAddr; 2] {
    [IpAddr::from(backend.v4), IpAddr::from(backend.v6)].map(|address| SocketAddr::new(address, port))
}

/// A lab without load balancers and one backend, the least that carries traffic.
fn small() -> Lab {
    Lab::builder().site_a(1).load_balancers(0).build().unwrap()
}

#[test]
fn the_client_reaches_backends_in_both_sites() {
    let lab = Lab::builder().site_a(2).site_b(1).two_arm().build().unwrap();
    for backend in &lab.backends {
        for target in addresses(backend, 80) {
            // More than the initial window and a full-sized packet.
            let reply = traffic::get(&lab.client, Flow::to(target).bytes(300_000)).unwrap();
            assert_eq!(reply.backend, backend.name);
            let reply = traffic::get(&lab.client, Flow::numbered(target, 70_000)).unwrap();
            assert_eq!(reply.source, Lab::flow_source(target.ip(), 70_000));
        }
        for target in addresses(backend, 53) {
            let reply = traffic::udp(&lab.client, Flow::to(target).bytes(1200)).unwrap();
            assert_eq!(reply.backend, backend.name);
        }
    }
}

#[test]
fn service_addresses_are_on_every_backend_and_answer_from_themselves() {
    let lab = Lab::builder().site_a(2).load_balancers(0).build().unwrap();
    // A router that sends everything to one backend stands in for a load balancer: the answer goes back directly.
    for backend in &lab.backends {
        for vip in [VIP4, VIP6] {
            lab.router.route(vip.into(), &[backend.address(vip)]).unwrap();
            let reply = traffic::get(&lab.client, Flow::to(SocketAddr::new(vip, 80))).unwrap();
            assert_eq!(reply.backend, backend.name);
            let reply = traffic::udp(&lab.client, Flow::to(SocketAddr::new(vip, 53))).unwrap();
            assert_eq!(reply.backend, backend.name);
        }
    }
}

#[test]
fn many_flows_succeed_and_can_be_repeated() {
    let lab = small();
    let [v4, v6] = addresses(&lab.backends[0], 80);
    for target in [v4, v4, v6] {
        let report = Flows::tcp(target, 2000).run(&lab.client).unwrap().expect_all();
        assert_eq!(report.per_backend()["a1"], 2000);
    }
    let [_, v6] = addresses(&lab.backends[0], 53);
    Flows::udp(v6, 2000).run(&lab.client).unwrap().expect_all();
    let stats = lab.backends[0].server.stats();
    assert_eq!((stats.connections, stats.requests, stats.datagrams), (6000, 6000, 2000));
}

#[test]
fn flow_numbers_name_different_sources() {
    let numbers = (0..100).chain(29_990..30_010).chain([1_000_000, Lab::FLOWS - 1]);
    let sources: Vec<_> = numbers.map(|number| Lab::flow_source(VIP4, number)).collect();
    assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), sources.len());
    assert!(sources.iter().all(|source| matches!(source.ip(), IpAddr::V4(v4) if CLIENTS_V4.contains(&v4))));
    assert!(sources.iter().all(|source| (1025..31_025).contains(&source.port())));
}

#[test]
fn failures_are_reported_not_hidden() {
    let lab = small();
    let backend = &lab.backends[0];
    let [target, _] = addresses(backend, 80);
    backend.server.stop();
    let report = Flows::tcp(target, 10).run(&lab.client).unwrap();
    assert_eq!((report.answered.len(), report.failed.len()), (0, 10), "{report:?}");
    backend.server.restart().unwrap();
    Flows::tcp(target, 10).run(&lab.client).unwrap().expect_all();

    let nobody = SocketAddr::new("10.2.0.99".parse().unwrap(), 53);
    let flow = Flow::to(nobody).timeout(Duration::from_millis(300));
    traffic::udp(&lab.client, flow).unwrap_err();
}

#[test]
fn the_health_page_does_as_told() {
    let lab = small();
    let backend = &lab.backends[0];
    let [target, _] = addresses(backend, 80);
    let probe = || {
        lab.client.enter(|| {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect(target).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        })
    };
    assert!(probe().unwrap().starts_with("HTTP/1.1 200 OK"));
    backend.server.set_health(Health::Status(503));
    assert!(probe().unwrap().starts_with("HTTP/1.1 503"));
    backend.server.set_health(Health::Close);
    assert_eq!(probe().unwrap(), "");
    backend.server.set_health(Health::Hang);
    assert_eq!(probe().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(backend.server.stats().health_checks, 4);
}

#[test]
fn long_lived_connections_notice_a_broken_path() {
    let lab = small();
    let backend = &lab.backends[0];
    let [target, _] = addresses(backend, 80);
    let spec = LongLivedSpec { timeout: Duration::from_secs(1), ..LongLivedSpec::to(target, 20) };
    let mut connections = LongLived::start(&lab.client, spec).unwrap();
    connections.wait_more(3, Duration::from_secs(30)).unwrap();
    assert!(connections.failures().is_empty());
    lab.router.link(&backend.port).down().unwrap();
    wait::until("all connections to fail", Duration::from_secs(30), || {
        let failed = connections.failures().len();
        if failed == 20 { Ok(()) } else { Err(failed) }
    })
    .unwrap();
    let stories = connections.stop();
    assert!(stories.iter().all(|story| story.backend.as_deref() == Some("a1") && story.exchanges >= 4));
}

#[test]
fn a_capture_sees_frames_and_raw_frames_arrive() {
    let lab = small();
    let backend = &lab.backends[0];
    let capture = Capture::start(&lab.router, &backend.port).unwrap();
    let inside = Capture::start(&backend.host, "eth0").unwrap();
    let [target, _] = addresses(backend, 53);
    let reply = traffic::udp(&lab.client, Flow::to(target)).unwrap();
    // A frame of our own making, from an address that does not exist.
    let to = backend.host.link("eth0").mac().unwrap();
    let frame = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], to.0)
        .ipv4([10, 2, 0, 200], backend.v4.octets(), 64)
        .udp(7777, 7778);
    let mut bytes = Vec::new();
    frame.write(&mut bytes, b"made by hand").unwrap();
    RawSender::open(&lab.router, &backend.port).unwrap().send(&bytes).unwrap();
    wait::until("the raw frame", Duration::from_secs(10), || {
        let frames = inside.frames();
        if frames.iter().any(|frame| !frame.sent && frame.bytes == bytes) {
            Ok(())
        } else {
            Err(frames.len())
        }
    })
    .unwrap();

    let mut ways = BTreeSet::new();
    for frame in capture.stop().unwrap() {
        let packet = SlicedPacket::from_ethernet(&frame.bytes).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport)
        else {
            continue;
        };
        if udp.destination_port() == 7778 {
            continue;
        }
        // Checksums are computed by the sender, not left to a device that is not there.
        let expected = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
        assert_eq!(udp.checksum(), expected);
        let source = SocketAddr::new(ip.header().source_addr().into(), udp.source_port());
        assert_eq!(source, if frame.sent { reply.source } else { target });
        ways.insert(frame.sent);
    }
    assert_eq!(ways, BTreeSet::from([false, true]));
}

#[test]
fn frames_that_xdp_sends_come_out_of_the_cable() {
    let lab = Lab::builder().two_arm().site_a(1).site_b(1).build().unwrap();
    let frame = [[2; 6].as_slice(), &[4; 6], &[0x88, 0xb5], &[7; 50]].concat();
    let ends = [
        (lab.lb(), "eth0", "lb1"),
        (lab.lb(), "eth1", "lb1-b"),
        (&lab.backend("a1").host, "eth0", "a1"),
        (&lab.backend("b1").host, "eth0", "b1"),
    ];
    for (host, interface, port) in ends {
        let _mirror = FixedProgram::attach(host, interface, Action::Tx).unwrap();
        let capture = Capture::start(&lab.router, port).unwrap();
        RawSender::open(&lab.router, port).unwrap().send(&frame).unwrap();
        wait::until("the frame to come back", Duration::from_secs(10), || {
            let frames = capture.frames();
            let mut back = frames.iter().filter(|seen| seen.bytes == frame && !seen.sent);
            back.next().map(drop).ok_or(format!("{port}: {} frames", frames.len()))
        })
        .unwrap();
    }
}

#[test]
fn links_can_be_inspected_and_changed() {
    let (one, other) = (Host::new("one").unwrap(), Host::new("other").unwrap());
    let (left, right) = veth((&one, "eth0"), (&other, "eth0"), 1500).unwrap();
    let mac: Mac = "02:00:00:00:00:2a".parse().unwrap();
    right.set_mac(mac).unwrap();
    assert_eq!(right.mac().unwrap(), mac);
    assert_eq!(mac.to_string(), "02:00:00:00:00:2a");
    left.set_mtu(1400).unwrap();
    assert_eq!((left.mtu().unwrap(), right.mtu().unwrap()), (1400, 1500));
    for (link, host) in [(&left, 1), (&right, 2)] {
        link.up().unwrap();
        link.address(format!("10.9.0.{host}/24").parse().unwrap()).unwrap();
        link.gro(false).unwrap();
        link.gro(true).unwrap();
        link.tx_checksum_offload(false).unwrap();
    }
    left.wait_ready().unwrap();
    right.wait_ready().unwrap();
    // A wrong neighbour eats packets; deleting it heals.
    let there: IpAddr = "10.9.0.2".parse().unwrap();
    let echo = std::thread::spawn(other.enter(|| {
        let socket = std::net::UdpSocket::bind("10.9.0.2:7").unwrap();
        move || {
            let mut buffer = [0; 64];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..len], from).unwrap();
        }
    }));
    let ask = || {
        one.enter(|| {
            let socket = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.send_to(b"hello", (there, 7)).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        })
    };
    left.neighbour(there, "02:00:00:00:00:99".parse().unwrap()).unwrap();
    assert!(!ask());
    left.neighbour(there, mac).unwrap();
    left.neighbour_delete(there).unwrap();
    assert!(ask());
    echo.join().unwrap();
    assert!(right.stats().unwrap().rx_packets >= 2);

    let program = FixedProgram::attach(&one, "eth0", Action::Pass).unwrap();
    FixedProgram::attach(&one, "eth0", Action::Pass).unwrap_err();
    drop(program);
    FixedProgram::attach(&one, "eth0", Action::Drop).unwrap();
    left.delete().unwrap();
    right.mac().unwrap_err();
    one.route("10.8.0.0/16".parse().unwrap(), &[there]).unwrap_err();
}

#[test]
fn routes_can_be_replaced_and_shared() {
    let lab = Lab::builder().site_a(3).load_balancers(0).build().unwrap();
    let target = SocketAddr::new(VIP4, 80);
    let gateways: Vec<_> = lab.backends.iter().map(|backend| backend.address(VIP4)).collect();
    lab.router.route(VIP4.into(), &gateways).unwrap();
    let report = Flows::tcp(target, 200).run(&lab.client).unwrap().expect_all();
    assert_eq!(report.per_backend().len(), 3, "{:?}", report.per_backend());
    lab.router.route(VIP4.into(), &gateways[1..2]).unwrap();
    let after = Flows::tcp(target, 200).run(&lab.client).unwrap().expect_all();
    assert_eq!(after.per_backend().keys().collect::<Vec<_>>(), [&"a2"]);
    assert_eq!(report.moved(&after).len(), 200 - report.per_backend()["a2"]);
    lab.router.route_delete(VIP4.into()).unwrap();
    traffic::get(&lab.client, Flow::to(target)).unwrap_err();
}

#[test]
fn labs_do_not_see_each_other() {
    let labs = [small(), small()];
    labs[0].backends[0].server.stop();
    std::thread::scope(|scope| {
        for (lab, works) in [(&labs[0], false), (&labs[1], true)] {
            scope.spawn(move || {
                let [target, _] = addresses(&lab.backends[0], 80);
                let report = Flows::tcp(target, 200).run(&lab.client).unwrap();
                assert_eq!(report.failed.is_empty(), works);
            });
        }
    });
}
