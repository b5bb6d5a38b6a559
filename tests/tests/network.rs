//! The network around the balancer changes: neighbours, routes, links, interfaces. The agent follows.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use std::net::IpAddr;

use balanced::{
    NODE, Steady, WEB, backend, flows, json, ok, ring, running, service, until, usable, wait_usable, web,
    with_maps,
};
use lb_common::service::ServiceKey;
use serde_json::Value;
use tests::link::{Mac, veth};
use tests::peer::{Action, FixedProgram};
use tests::server::ServerSpec;
use tests::topology::{Lab, VIP4};
use tests::traffic::Flows;
use tests::wattline::Agent;

/// Where the map of a service says that frames for a backend go: interface and MAC address.
fn way(lab: &Lab, port: u16, address: IpAddr) -> (u32, Mac) {
    with_maps(lab, |plane| {
        let held = plane.held(&ServiceKey::new(VIP4, Some(port), 6)).unwrap();
        let entry = held.backends.iter().find(|entry| entry.ip() == Some(address)).unwrap();
        let mut mac = [0; 6];
        mac.copy_from_slice(&entry.ethernet[..6]);
        (entry.ifindex, Mac(mac))
    })
}

fn wait_way(lab: &Lab, address: IpAddr, wanted: (u32, Mac)) {
    until("the way in the maps", || {
        let found = way(lab, 80, address);
        if found == wanted { Ok(()) } else { Err((found, wanted)) }
    });
}

/// Dropped packets by all reasons.
fn dropped(lab: &Lab) -> u64 {
    json(lab, &["stats"])["totals"]["dropped_packets"].as_u64().unwrap()
}

#[test]
fn a_backend_with_another_mac_address_is_found_again() {
    let (lab, _agent) = running(3);
    let before = flows(&lab, 200);
    let a2 = lab.backend("a2");
    let index = lab.lb().link("eth0").index().unwrap();
    let old = a2.host.link("eth0").mac().unwrap();
    assert_eq!(way(&lab, 80, a2.v4.into()), (index, old));
    // As after an exchange of the machine. The kernel notices when its own packets (here: the checks) go unanswered.
    let new: Mac = "02:00:00:00:0a:02".parse().unwrap();
    a2.host.link("eth0").set_mac(new).unwrap();
    wait_way(&lab, a2.v4.into(), (index, new));
    wait_usable(&lab, &["a1", "a2", "a3"]);
    assert_eq!(before.moved(&flows(&lab, 200)), [0u32; 0]);
    assert_eq!(backend(&lab, "a2")["next_hop"]["mac"], new.to_string());
}

#[test]
fn a_neighbour_that_an_operator_sets_is_followed_even_in_the_middle_of_changes() {
    let servers = ServerSpec { tcp: vec![80, 81], ..ServerSpec::default() };
    let lab = balanced::lab(Lab::builder().site_a(2).servers(servers));
    let config = NODE.to_owned() + &web(&lab, &["a1"]) + &service(&lab, "other", "port = 81", &["a1", "a2"]);
    let _agent = Agent::start(lab.lb(), &config).unwrap();
    until("all to be healthy", || if usable(&lab).len() == 3 { Ok(()) } else { Err(usable(&lab)) });
    let eth0 = lab.lb().link("eth0");
    let (a1, index) = (IpAddr::from(lab.backend("a1").v4), eth0.index().unwrap());
    let truth = lab.backend("a1").host.link("eth0").mac().unwrap();
    for round in 0..20u8 {
        let mac = Mac([2, 0, 0, 0, 1, round]);
        eth0.neighbour(a1, mac).unwrap();
        // This change asks about ways as well, and it is about another service.
        ok(&lab, &["backend", "set", "other/a2", "--weight", &(100 + u32::from(round)).to_string()]);
        wait_way(&lab, a1, (index, mac));
        until("the other service", || {
            let found = way(&lab, 81, a1);
            if found == (index, mac) { Ok(()) } else { Err(found) }
        });
    }
    eth0.neighbour(a1, truth).unwrap();
    wait_way(&lab, a1, (index, truth));
    until("all to be healthy", || if usable(&lab).len() == 3 { Ok(()) } else { Err(usable(&lab)) });
    flows(&lab, 20);
    assert_eq!(Flows::tcp((VIP4, 81).into(), 50).run(&lab.client).unwrap().failed.len(), 0);
}

#[test]
fn a_router_with_another_mac_address_is_found_again() {
    let lab = balanced::lab(Lab::builder().site_a(0).site_b(2));
    let _agent = Agent::start(lab.lb(), &(NODE.to_owned() + &web(&lab, &["b1", "b2"]))).unwrap();
    wait_usable(&lab, &["b1", "b2"]);
    let before = flows(&lab, 100);
    let index = lab.lb().link("eth0").index().unwrap();
    let new: Mac = "02:00:00:00:0b:01".parse().unwrap();
    lab.router.link("br0").set_mac(new).unwrap();
    for name in ["b1", "b2"] {
        wait_way(&lab, lab.backend(name).v4.into(), (index, new));
    }
    wait_usable(&lab, &["b1", "b2"]);
    assert_eq!(before.moved(&flows(&lab, 100)), [0u32; 0]);
}

#[test]
fn routes_are_followed_without_a_lost_packet() {
    let lab = balanced::lab(Lab::builder().site_a(1).site_b(2).two_arm());
    // The second arm is in site B itself; at first a route leads around it.
    let around = |on: bool| {
        for name in ["b1", "b2"] {
            let host = format!("{}/32", lab.backend(name).v4).parse().unwrap();
            if on {
                lab.lb().route(host, &["10.2.0.1".parse().unwrap()]).unwrap();
            } else {
                lab.lb().route_delete(host).unwrap();
            }
        }
    };
    around(true);
    let _agent = Agent::start(lab.lb(), &(NODE.to_owned() + &web(&lab, &["a1", "b1", "b2"]))).unwrap();
    wait_usable(&lab, &["a1", "b1", "b2"]);
    let (eth0, eth1) = (lab.lb().link("eth0").index().unwrap(), lab.lb().link("eth1").index().unwrap());
    let router = lab.router.link("br0").mac().unwrap();
    let b1 = lab.backend("b1");
    let direct = b1.host.link("eth0").mac().unwrap();
    assert_eq!(way(&lab, 80, b1.v4.into()), (eth0, router));
    let ring_before = ring(&lab, WEB);
    let steady = Steady::start(&lab.client, WEB, 100);
    let drops = dropped(&lab);
    for _ in 0..3 {
        around(false);
        wait_way(&lab, b1.v4.into(), (eth1, direct));
        steady.more(1);
        around(true);
        wait_way(&lab, b1.v4.into(), (eth0, router));
        steady.more(1);
    }
    steady.stop_undisturbed();
    assert_eq!(dropped(&lab) - drops, 0, "{}", json(&lab, &["stats"]));
    assert_eq!(ring(&lab, WEB), ring_before);
    assert_eq!(usable(&lab).len(), 3);
}

#[test]
fn a_link_that_goes_down_and_up_is_no_reason_to_start_anew() {
    let (lab, _agent) = running(2);
    let before = flows(&lab, 100);
    let attached = json(&lab, &["dataplane", "status"])["interfaces"][0].clone();
    let eth0 = lab.lb().link("eth0");
    eth0.down().unwrap();
    eth0.up().unwrap();
    eth0.wait_ready().unwrap();
    lab.router.link(&lab.lbs[0].port).wait_ready().unwrap();
    // Down takes routes along; the lab's operator puts them back.
    lab.lb().route("0.0.0.0/0".parse().unwrap(), &["10.2.0.1".parse().unwrap()]).unwrap();
    wait_usable(&lab, &["a1", "a2"]);
    assert_eq!(before.moved(&flows(&lab, 100)), [0u32; 0]);
    assert_eq!(json(&lab, &["dataplane", "status"])["interfaces"][0], attached);
}

#[test]
fn an_interface_that_is_deleted_and_made_again_is_attached_again() {
    let (lab, agent) = running(2);
    let before = flows(&lab, 100);
    let old = json(&lab, &["status"])["interfaces"][0].clone();
    let port = lab.lbs[0].port.clone();
    lab.lb().link("eth0").delete().unwrap();
    let error = until("the loss to be told", || {
        let interface = json(&lab, &["status"])["interfaces"][0].clone();
        interface["error"].as_str().map(str::to_owned).ok_or(interface)
    });
    assert!(error.contains("there is no interface eth0"), "{error}");
    let told = json(&lab, &["dataplane", "status"])["interfaces"][0]["error"].clone();
    assert!(told.as_str().unwrap().contains("no such interface"), "{told}");
    balanced::wait_logged(&agent, "eth0 is not attached");

    // The same cable laid again.
    let (inside, outside) = veth((lab.lb(), "eth0"), (&lab.router, &port), 1600).unwrap();
    for end in [&inside, &outside] {
        end.tx_checksum_offload(false).unwrap();
    }
    outside.join("br0").unwrap();
    let _pass = FixedProgram::attach(&lab.router, &port, Action::Pass).unwrap();
    outside.up().unwrap();
    inside.up().unwrap();
    inside.address("10.2.0.2/24".parse().unwrap()).unwrap();
    inside.wait_ready().unwrap();
    outside.wait_ready().unwrap();
    lab.lb().route("0.0.0.0/0".parse().unwrap(), &["10.2.0.1".parse().unwrap()]).unwrap();

    let new = until("the program to be attached again", || {
        let interface = json(&lab, &["status"])["interfaces"][0].clone();
        if interface["error"] == Value::Null { Ok(interface) } else { Err(interface) }
    });
    assert_ne!(new["ifindex"], old["ifindex"]);
    wait_usable(&lab, &["a1", "a2"]);
    let index = u32::try_from(new["ifindex"].as_u64().unwrap()).unwrap();
    let a1 = lab.backend("a1");
    wait_way(&lab, a1.v4.into(), (index, a1.host.link("eth0").mac().unwrap()));
    until("flows to get through", || {
        let report = Flows::tcp(WEB, 100).run(&lab.client).unwrap();
        if report.failed.is_empty() { Ok(()) } else { Err(report.failed.len()) }
    });
    assert_eq!(before.moved(&flows(&lab, 100)), [0u32; 0], "the ring is what it was");
    // The agent was right before, too: it can be started again.
    agent.terminate().unwrap();
    let _agent = balanced::restart(&lab);
    assert_eq!(json(&lab, &["status"])["interfaces"][0]["program_id"], new["program_id"]);
    flows(&lab, 100);
}

#[test]
fn another_mtu_is_seen_and_packets_that_became_too_big_are_counted() {
    let lab = balanced::lab(Lab::builder().site_a(2));
    let names = ["a1", "a2"];
    let dns = service(&lab, "dns", "port = 53\nprotocol = \"udp\"", &names);
    let _agent = Agent::start(lab.lb(), &(NODE.to_owned() + &web(&lab, &names) + &dns)).unwrap();
    until("all to be usable", || if usable(&lab).len() == 4 { Ok(()) } else { Err(usable(&lab)) });
    let mtu = |wanted: u64| {
        until("the MTU", || {
            let found = backend(&lab, "a1")["next_hop"]["mtu"].clone();
            if found == wanted { Ok(()) } else { Err(found) }
        });
    };
    mtu(1600);
    let set = |mtu: u32| lab.lb().link("eth0").set_mtu(mtu).unwrap();
    set(1400);
    mtu(1400);
    let entry = with_maps(&lab, |plane| {
        let held = plane.held(&ServiceKey::new(VIP4, Some(80), 6)).unwrap();
        held.backends.iter().map(|entry| entry.mtu).collect::<Vec<_>>()
    });
    assert_eq!(entry, [1400, 1400]);
    // Small packets pass; what does not fit with its outer header is dropped and counted.
    flows(&lab, 20);
    let big = Flows::udp((VIP4, 53).into(), 5).bytes(1360).timeout(std::time::Duration::from_secs(1));
    assert_eq!(big.run(&lab.client).unwrap().answered.len(), 0);
    let stats = json(&lab, &["stats"]);
    let too_big = stats["reasons"].as_array().unwrap().iter().find(|reason| reason["reason"] == "too_big");
    assert_eq!(too_big.unwrap()["packets"], 5);
    set(1600);
    mtu(1600);
    big.timeout(std::time::Duration::from_secs(10)).run(&lab.client).unwrap().expect_all();
}

#[test]
fn an_l2_backend_behind_a_router_takes_nothing_and_says_why() {
    let lab = balanced::lab(Lab::builder().site_a(1).site_b(1));
    let config = NODE.to_owned() + &service(&lab, "web", "mode = \"l2\"", &["a1", "b1"]);
    let _agent = Agent::start(lab.lb(), &config).unwrap();
    wait_usable(&lab, &["a1"]);
    until("b1 to be checked", || {
        let found = backend(&lab, "b1");
        if found["health"] == "healthy" { Ok(()) } else { Err(found) }
    });
    let found = backend(&lab, "b1");
    assert_eq!((&found["slots"], &found["next_hop"]["state"]), (&0.into(), &"unresolved".into()), "{found}");
    assert!(found["next_hop"]["reason"].as_str().unwrap().contains("behind 10.2.0.1"), "{found}");
    assert_eq!(flows(&lab, 30).per_backend().len(), 1);
}

#[test]
fn a_restart_without_a_route_moves_no_slot() {
    let lab = balanced::lab(Lab::builder().site_a(1).site_b(1));
    let config = NODE.to_owned() + &service(&lab, "web", "health = { type = \"none\" }", &["a1", "b1"]);
    let agent = Agent::start(lab.lb(), &config).unwrap();
    wait_usable(&lab, &["a1", "b1"]);
    let before = ring(&lab, WEB);
    // Not even a default route is left.
    lab.lb().route_delete("0.0.0.0/0".parse().unwrap()).unwrap();
    agent.kill().unwrap();
    let _agent = balanced::restart(&lab);
    assert_eq!(ring(&lab, WEB), before);
    assert_eq!(usable(&lab).len(), 2);
}
