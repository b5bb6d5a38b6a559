//! The packet path on the host: every named packet against what is expected of it and against the reference, every
//! packet cut at every length, and any bytes at all. Needs no root.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::{BTreeMap, BTreeSet};

use etherparse::{NetSlice, SlicedPacket};
use lb_common::{
    datapath::Verdict,
    decap::Outcome,
    host::{HEADROOM, MemoryDecapTables},
    reason::Reason,
};
use lb_userspace::config::Protocol;
use proptest::prelude::*;
use tests::packets::{
    Observed,
    build::{self, ETHERNET, to},
    corpus::{self, Case, Expected},
    decapsulation,
    generate::{self, Random},
    memory, verify,
    world::{Kind, Setting, World},
};

/// The interface that frames are redirected to; on the host any number will do.
const OTHER: u32 = 7;

fn worlds() -> BTreeMap<Setting, World> {
    Setting::ALL.into_iter().map(|setting| (setting, World::new(setting, OTHER))).collect()
}

fn check(world: &World, frame: &[u8], room: Option<usize>) -> Observed {
    let seen = memory::forward(&world.tables, frame, room);
    verify::invariants(world, frame, &seen);
    verify::reference(world, frame, room.unwrap_or(HEADROOM), &seen);
    seen
}

fn decapsulate(tables: &MemoryDecapTables, frame: &[u8]) {
    verify::decapsulation(frame, &memory::decapsulate(tables, frame));
}

fn check_case(world: &World, case: &Case) {
    let seen = check(world, &case.frame, case.room);
    match &case.expected {
        Expected::Sent(service) => {
            assert!(
                seen.reasons.is_empty(),
                "refused: {:?}",
                Reason::ALL[*seen.reasons.keys().next().unwrap() as usize]
            );
            let name = &world.names[seen.counters.keys().next().unwrap()];
            assert_eq!(name.split_once('/').unwrap().0, service);
        }
        Expected::Refused(reason) => {
            let numbers: Vec<u32> = seen.reasons.keys().copied().collect();
            assert_eq!(numbers, [*reason as u32], "expected {}", reason.name());
        }
    }
}

#[test]
fn named_packets_meet_their_expectations() {
    let worlds = worlds();
    let cases = corpus::all();
    for case in &cases {
        verify::about(&case.name, &case.frame, || check_case(&worlds[&case.setting], case));
    }
    println!("{} named packets", cases.len());
    assert!(cases.len() > 500);
}

#[test]
fn named_packets_have_names_of_their_own_and_reach_every_reason() {
    let cases = corpus::all();
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len());
    for &reason in Reason::ALL {
        let some = cases.iter().any(|case| case.expected == Expected::Refused(reason));
        assert!(some, "no named packet is refused as {}", reason.name());
    }
}

#[test]
fn every_packet_cut_at_every_length_is_judged_right() {
    let worlds = worlds();
    let mut cuts = 0;
    for case in corpus::all() {
        for length in 0..case.frame.len() {
            let cut = &case.frame[..length];
            verify::about(&case.name, cut, || check(&worlds[&case.setting], cut, case.room));
            cuts += 1;
        }
    }
    println!("{cuts} cut packets");
}

#[test]
fn every_room_in_front_is_enough_or_is_not() {
    let world = World::new(Setting::Prefixes, OTHER);
    for kind in Kind::all() {
        let frame = to(kind.vip(), kind.port, Protocol::Tcp).frame();
        for room in 0..=64 {
            let seen = verify::about(&kind.name(), &frame, || check(&world, &frame, Some(room)));
            assert_eq!(
                seen.reasons.is_empty(),
                room >= usize::from(kind.overhead()),
                "{}, {room}",
                kind.name()
            );
        }
    }
}

/// Somebody else's parser finds what we send sound: lengths, IPv4 header checksum, and the inner packet untouched.
#[test]
fn what_is_sent_is_sound_to_another_parser() {
    let worlds = worlds();
    for case in corpus::all().iter().filter(|case| matches!(case.expected, Expected::Sent(_))) {
        let world = &worlds[&case.setting];
        let seen = memory::forward(&world.tables, &case.frame, case.room);
        verify::about(&case.name, &seen.frame, || {
            assert!(seen.frame.ends_with(&case.frame[ETHERNET..]), "the inner packet is not touched");
            if seen.frame.len() == case.frame.len() {
                return;
            }
            let outer = SlicedPacket::from_ethernet(&seen.frame).expect("an outer packet that can be read");
            match outer.net.expect("IP") {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    assert_eq!((header.dont_fragment, header.time_to_live), (true, 64));
                }
                NetSlice::Ipv6(ip) => assert_eq!(ip.header().hop_limit(), 64),
                NetSlice::Arp(_) => panic!("ARP"),
            }
        });
    }
}

#[test]
fn entropy_stays_inside_the_prefix_and_differs_between_flows() {
    let world = World::new(Setting::Prefixes, OTHER);
    let own = World::new(Setting::OwnAddress, OTHER);
    for kind in Kind::all().iter().filter(|kind| kind.overhead() > 0) {
        let sources = |world: &World| -> BTreeSet<Vec<u8>> {
            (0..500)
                .map(|port| {
                    let wanted = to(kind.vip(), kind.port, Protocol::Tcp).from_port(port);
                    let frame = memory::forward(&world.tables, &wanted.frame(), None).frame;
                    let at = ETHERNET + if kind.outer_v6 { 8 } else { 12 };
                    frame[at..at + if kind.outer_v6 { 16 } else { 4 }].to_vec()
                })
                .collect()
        };
        let (with, without) = (sources(&world), sources(&own));
        let prefix: &[u8] = if kind.outer_v6 { &[0xfd, 0, 2, 0, 0, 0, 0, 0] } else { &[10, 200] };
        assert!(with.iter().all(|source| source.starts_with(prefix)), "{}", kind.name());
        assert!(with.len() > 490, "{}: {} sources of 500 flows", kind.name(), with.len());
        assert_eq!(without.len(), 1, "{}", kind.name());
    }
}

/// Repeats of a flow go the same way, whatever else differs between its packets.
#[test]
fn packets_of_a_flow_stay_together() {
    let world = World::new(Setting::Prefixes, OTHER);
    for kind in Kind::all() {
        for port in 0..200 {
            let wanted = to(kind.vip(), kind.port, Protocol::Tcp).from_port(port);
            let ways: BTreeSet<_> = [wanted, wanted.payload(900), wanted.traffic_class(0xb9), wanted.hops(3)]
                .iter()
                .map(|wanted| {
                    let frame = memory::forward(&world.tables, &wanted.frame(), None).frame;
                    frame[..ETHERNET].to_vec()
                })
                .collect();
            assert_eq!(ways.len(), 1, "{}, source port {port}", kind.name());
        }
    }
}

#[test]
fn named_tunnel_packets_meet_their_expectations() {
    let tables = decapsulation::tables();
    let cases = decapsulation::all();
    for case in &cases {
        verify::about(&case.name, &case.frame, || {
            let seen = memory::decapsulate(&tables, &case.frame);
            let outcomes: Vec<_> = seen.reasons.keys().map(|&n| Outcome::ALL[n as usize]).collect();
            assert_eq!(outcomes, [case.outcome]);
            assert_eq!(seen.verdict, case.outcome.fate().into());
            assert_eq!(seen.frame, *case.inside.as_ref().unwrap_or(&case.frame));
        });
    }
    println!("{} named tunnel packets", cases.len());
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len());
    for outcome in Outcome::ALL {
        // Not configured: below. No room: what is inside is always longer than an Ethernet header.
        let elsewhere = matches!(outcome, Outcome::NotConfigured | Outcome::NoRoom);
        assert!(elsewhere || cases.iter().any(|case| case.outcome == *outcome), "{}", outcome.name());
    }
}

#[test]
fn decapsulation_touches_nothing_before_it_is_configured() {
    let mut tables = decapsulation::tables();
    for ready in [false, true] {
        // Not there at all, and there without the sign that it was filled in.
        tables.node =
            tables.node.filter(|_| !ready).map(|node| lb_common::decap::DecapNode { ready: 0, ..node });
        for case in decapsulation::all() {
            let seen = memory::decapsulate(&tables, &case.frame);
            assert_eq!((seen.verdict, &seen.frame), (Verdict::Pass, &case.frame), "{}", case.name);
            assert_eq!(seen.reasons, [(Outcome::NotConfigured as u32, 1)].into(), "{}", case.name);
        }
    }
}

#[test]
fn every_tunnel_packet_cut_at_every_length_is_judged_once() {
    let tables = decapsulation::tables();
    for case in decapsulation::all() {
        for length in 0..case.frame.len() {
            let cut = &case.frame[..length];
            verify::about(&case.name, cut, || decapsulate(&tables, cut));
        }
    }
}

/// decap(encap(x)) == x, for every named packet that is sent in a tunnel.
#[test]
fn what_is_wrapped_comes_out_as_it_was() {
    let worlds = worlds();
    let tables = decapsulation::tables();
    let mut combinations = BTreeSet::new();
    for case in corpus::all() {
        let world = &worlds[&case.setting];
        let sent = memory::forward(&world.tables, &case.frame, case.room);
        // The own addresses of the world are those in the allow list, in two of its nets.
        if sent.reasons.is_empty() && sent.frame.len() > case.frame.len() && case.setting == Setting::Prefixes
        {
            verify::about(&case.name, &sent.frame, || {
                let inside = memory::decapsulate(&tables, &sent.frame);
                assert_eq!(inside.frame[ETHERNET..], case.frame[ETHERNET..]);
                assert_eq!(inside.frame[12..14], case.frame[12..14]);
                assert_eq!(inside.frame[..12], sent.frame[..12]);
            });
            combinations.insert((case.frame[12], sent.frame[12], sent.frame.len() - case.frame.len()));
        }
    }
    assert_eq!(combinations.len(), 8, "IPIP and GUE, each in four combinations: {combinations:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_packets_are_judged_as_by_the_reference(seed in any::<u64>(), room in 0usize..=64) {
        thread_local!(static WORLD: World = World::new(Setting::Prefixes, OTHER));
        WORLD.with(|world| {
            let frame = generate::frame(&mut Random::new(seed), world);
            verify::about("generated", &frame, || {
                check(world, &frame, None);
                check(world, &frame, Some(room));
            });
        });
    }

    #[test]
    fn any_bytes_are_judged_as_by_the_reference(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        ether_type in prop::option::of(prop::sample::select(vec![[0x08u8, 0x00], [0x86, 0xdd]])),
    ) {
        thread_local!(static WORLD: World = World::new(Setting::Prefixes, OTHER));
        if let (Some(ether_type), Some(place)) = (ether_type, frame.get_mut(12..14)) {
            place.copy_from_slice(&ether_type);
        }
        WORLD.with(|world| verify::about("any bytes", &frame, || check(world, &frame, None)));
        verify::about("any bytes", &frame, || decapsulate(&decapsulation::tables(), &frame));
    }

    #[test]
    fn generated_tunnel_packets_are_judged_once(seed in any::<u64>()) {
        thread_local!(static WORLD: World = World::new(Setting::Prefixes, OTHER));
        WORLD.with(|world| {
            let frame = generate::tunnelled(&mut Random::new(seed), world);
            verify::about("generated", &frame, || decapsulate(&decapsulation::tables(), &frame));
        });
    }

    /// decap(encap(x)) == x, for whatever is sent.
    #[test]
    fn whatever_is_wrapped_comes_out_as_it_was(seed in any::<u64>()) {
        thread_local!(static WORLD: World = World::new(Setting::Prefixes, OTHER));
        WORLD.with(|world| {
            let frame = generate::frame(&mut Random::new(seed), world);
            let sent = memory::forward(&world.tables, &frame, None);
            if sent.reasons.is_empty() && sent.frame.len() > frame.len() {
                let inside = memory::decapsulate(&decapsulation::tables(), &sent.frame);
                assert_eq!(inside.frame[12..], frame[12..]);
            }
        });
    }
}

/// Ethernet padding is no part of any length, and stays behind the packet.
#[test]
fn padding_travels_along_uncounted_by_lengths() {
    let world = World::new(Setting::Prefixes, OTHER);
    for kind in Kind::all() {
        let wanted = to(kind.vip(), kind.port, Protocol::Udp).payload(0);
        let bare = memory::forward(&world.tables, &wanted.frame(), None).frame;
        let padded = memory::forward(&world.tables, &build::padded(wanted.frame(), 18), None).frame;
        assert_eq!(padded, build::padded(bare, 18), "{}", kind.name());
    }
}

/// What stands in front of the packet 198.51.100.7:40000 (or `2001:db8:c::7`) to the service's address, 28 bytes from its
/// TCP header on, under the key 000102…0f. Worked out by a script that knows nothing of this repository, but for which of
/// the service's three backends it is.
const HEADERS: [(&str, &str); 10] = [
    ("ipip-4in4-tx", "02000000000d0200000000020800450000440000400040047f1f0ac8a6c20a00000d"),
    (
        "ipip-4in6-tx",
        "02000001000c02000000000286dd60054ca400300440fd0002000000000000000000e1b54ca4fd00000000000000000000000000000c",
    ),
    (
        "gue-4in4-tx",
        "02000000000c02000000000208004500005000004000401156440ac8cf850a00000ccf8517c0003c000000040000",
    ),
    (
        "gue-4in6-tx",
        "02000001000c02000000000286dd600d5561003c1140fd0002000000000000000000cd4d5561fd00000000000000000000000000000cd56117c0003c000000040000",
    ),
    ("l2-4in4-tx", "02000000000d0200000000020800"),
    ("ipip-6in4-tx", "02000000000b020000000002080045000058000040004029f0fe0ac834ac0a00000b"),
    (
        "ipip-6in6-tx",
        "02000001000d02000000000286dd60019ed900442940fd000200000000000000000040519ed9fd00000000000000000000000000000d",
    ),
    (
        "gue-6in4-tx",
        "02000000000d02000000000208004500006400004000401114b80ac810fd0a00000dd0fd17c00050000000290000",
    ),
    (
        "gue-6in6-tx",
        "02000001000c02000000000286dd600252a500501140fd0002000000000000000000dd9252a5fd00000000000000000000000000000cd2a517c00050000000290000",
    ),
    ("l2-6in6-tx", "02000001000c02000000000286dd"),
];

#[test]
fn headers_are_those_that_were_written_down() {
    let world = World::new(Setting::Prefixes, OTHER);
    for (name, expected) in HEADERS {
        let kind = Kind::all().into_iter().find(|kind| kind.name() == name).unwrap();
        let frame = to(kind.vip(), kind.port, Protocol::Tcp).frame();
        let sent = memory::forward(&world.tables, &frame, None).frame;
        let headers = &sent[..ETHERNET + usize::from(kind.overhead())];
        let bytes = |at| u8::from_str_radix(&expected[at..at + 2], 16).unwrap();
        let expected: Vec<u8> = (0..expected.len()).step_by(2).map(bytes).collect();
        assert_eq!(headers, expected, "{name}: {headers:02x?}");
    }
}
