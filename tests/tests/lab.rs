//! The lab's own tests: that it carries traffic, verifies it, and leaves nothing behind.

use std::net::{IpAddr, SocketAddr};

use tests::topology::Lab;
use tests::traffic::{self, Flow, Flows};

/// The addresses of a backend, with a port.
fn addresses(backend: &tests::topology::Backend, port: u16) -> [SocketAddr; 2] {
    [IpAddr::from(backend.v4), IpAddr::from(backend.v6)].map(|address| SocketAddr::new(address, port))
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
fn many_flows_succeed_and_can_be_repeated() {
    let lab = Lab::builder().site_a(1).load_balancers(0).build().unwrap();
    let [target, _] = addresses(&lab.backends[0], 80);
    for _ in 0..2 {
        let report = Flows::tcp(target, 2000).run(&lab.client).unwrap().expect_all();
        assert_eq!(report.per_backend()["a1"], 2000);
    }
}
