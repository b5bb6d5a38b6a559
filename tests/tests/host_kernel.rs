//! The packet path on the host and the committed objects in the kernel, given the same tables and the same frames, do the
//! same: verdict, every byte, every counter. Both are held against the reference besides.
//!
//! `WATTLINE_SEED` and `WATTLINE_PACKETS` choose other generated packets, and more of them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::BTreeMap;

use lb_common::{datapath::Verdict, decap::Outcome, reason::Reason};
use lb_userspace::config::Protocol;
use tests::{
    host::Host,
    packets::{
        build::{padded, to},
        corpus, decapsulation,
        generate::{self, Random},
        kernel::{Balancer, Decapsulator, ROOM, SHORTEST},
        memory, verify,
        world::{INGRESS, Kind, Setting, World},
    },
};

/// Generated packets of a test, if nobody asks for another number.
const PACKETS: u64 = 20_000;

/// Works on a host, given the number of an interface that frames can be redirected to.
fn on_host<R: Send>(work: impl FnOnce(u32) -> R + Send) -> R {
    let host = Host::new("balancer").unwrap();
    let other = host.bridge("eth1", 1500).unwrap().index().unwrap();
    host.enter(|| work(other))
}

/// A number from the environment.
fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
        Err(_) => otherwise,
    }
}

/// A world, in memory and in the kernel.
struct Pair {
    world: World,
    balancer: Balancer,
}

impl Pair {
    fn load(setting: Setting, other: u32) -> Self {
        let world = World::new(setting, other);
        let balancer = Balancer::load(&world.tables).unwrap();
        Self { world, balancer }
    }

    /// The same frame both ways. Returns what it is counted as.
    fn compare(&mut self, name: &str, frame: &[u8], room: Option<usize>) -> String {
        verify::about(name, frame, || {
            let host = memory::forward(&self.world.tables, frame, room);
            let kernel = self.balancer.run(frame, room, host.counters.keys().copied()).unwrap();
            assert_eq!(kernel, host, "kernel (left) and host (right)");
            verify::invariants(&self.world, frame, &kernel);
            verify::reference(&self.world, frame, room.unwrap_or(ROOM), &kernel);
            let reason = kernel.reasons.keys().next().map(|&n| Reason::ALL[n as usize].name());
            reason.map_or_else(|| format!("{:?}", kernel.verdict), str::to_owned)
        })
    }

    /// No packet moved a counter that it did not move on the host.
    fn finish(mut self) {
        assert_eq!(self.balancer.surprises().unwrap(), BTreeMap::new());
    }
}

#[test]
fn named_packets_meet_the_same_fate_in_the_kernel() {
    let cases = corpus::all();
    let mut compared = 0;
    for setting in Setting::ALL {
        compared += on_host(|other| {
            let mut pair = Pair::load(setting, other);
            let mut compared = 0;
            for case in cases.iter().filter(|case| case.setting == setting && case.frame.len() >= SHORTEST) {
                pair.compare(&case.name, &case.frame, case.room);
                compared += 1;
            }
            pair.finish();
            compared
        });
    }
    println!("{compared} named packets of {}", cases.len());
    // All but those that are too short to be given to the kernel.
    assert!(compared + 15 >= cases.len() && compared > 500);
}

#[test]
fn packets_cut_at_every_length_meet_the_same_fate_in_the_kernel() {
    let compared = on_host(|other| {
        let mut pair = Pair::load(Setting::Prefixes, other);
        let mut compared = 0;
        for case in corpus::all().iter().filter(|case| case.setting == Setting::Prefixes) {
            // What the long ones hold behind their headers is nothing but payload.
            for length in SHORTEST..case.frame.len().min(120) {
                pair.compare(&case.name, &case.frame[..length], case.room);
                compared += 1;
            }
        }
        pair.finish();
        compared
    });
    println!("{compared} cut packets");
}

#[test]
fn generated_packets_meet_the_same_fate_in_the_kernel() {
    let (seed, packets) = (setting("WATTLINE_SEED", 1), setting("WATTLINE_PACKETS", PACKETS));
    println!("WATTLINE_SEED={seed} WATTLINE_PACKETS={packets}");
    let fates = on_host(|other| {
        let mut pair = Pair::load(Setting::Prefixes, other);
        let mut fates: BTreeMap<String, u64> = BTreeMap::new();
        let mut random = Random::new(seed);
        for number in 0..packets {
            let frame = generate::frame(&mut random, &pair.world);
            let room = random.once_in(8).then(|| 4 * random.below(16));
            if frame.len() >= SHORTEST {
                let fate = pair.compare(&format!("seed {seed}, packet {number}"), &frame, room);
                *fates.entry(fate).or_default() += 1;
            }
        }
        pair.finish();
        fates
    });
    println!("{fates:#?}");
    // A generator that makes only bad packets, or only good ones, proves little.
    for fate in ["Transmit", "Redirect", "not_a_service", "bad_length", "fragment", "too_big", "no_headroom"]
    {
        assert!(fates.get(fate).is_some_and(|&n| n * 1000 > packets), "too few {fate}: {fates:?}");
    }
}

fn compare_tunnelled(program: &mut Decapsulator, frame: &[u8]) {
    let kernel = program.run(frame).unwrap();
    let host = memory::decapsulate(&decapsulation::tables(), frame);
    assert_eq!(kernel, host, "kernel (left) and host (right)");
    verify::decapsulation(frame, &kernel);
}

#[test]
fn named_tunnel_packets_meet_the_same_fate_in_the_kernel() {
    let host = Host::new("backend").unwrap();
    let mut compared = 0;
    host.enter(|| {
        let mut program = Decapsulator::load(&decapsulation::tables()).unwrap();
        for case in decapsulation::all().iter().filter(|case| case.frame.len() >= SHORTEST) {
            for length in SHORTEST..=case.frame.len() {
                let cut = &case.frame[..length];
                verify::about(&case.name, cut, || compare_tunnelled(&mut program, cut));
                compared += 1;
            }
        }
    });
    println!("{compared} tunnel packets, cut ones included");
}

#[test]
fn generated_tunnel_packets_meet_the_same_fate_in_the_kernel() {
    let (seed, packets) = (setting("WATTLINE_SEED", 2), setting("WATTLINE_PACKETS", PACKETS));
    println!("WATTLINE_SEED={seed} WATTLINE_PACKETS={packets}");
    let host = Host::new("backend").unwrap();
    let fates = host.enter(|| {
        let world = World::new(Setting::Prefixes, 7);
        let mut fates: BTreeMap<&str, u64> = BTreeMap::new();
        let mut program = Decapsulator::load(&decapsulation::tables()).unwrap();
        let mut random = Random::new(seed);
        for number in 0..packets {
            let frame = generate::tunnelled(&mut random, &world);
            if frame.len() < SHORTEST {
                continue;
            }
            let name = format!("seed {seed}, packet {number}");
            verify::about(&name, &frame, || compare_tunnelled(&mut program, &frame));
            let host = memory::decapsulate(&decapsulation::tables(), &frame);
            for &number in host.reasons.keys() {
                *fates.entry(Outcome::ALL[number as usize].name()).or_default() += 1;
            }
        }
        fates
    });
    println!("{fates:#?}");
    for fate in
        ["ipip", "gue", "not_tunnel", "bad_outer", "bad_inner", "gue_not_handled", "outer_not_handled"]
    {
        assert!(fates.get(fate).is_some_and(|&n| n * 1000 > packets), "too few {fate}: {fates:?}");
    }
}

/// Up to the largest frames that fit one page with everything that the kernel puts around them.
#[test]
fn large_frames_meet_the_same_fate_in_the_kernel() {
    on_host(|other| {
        let mut pair = Pair::load(Setting::Prefixes, other);
        for kind in Kind::all() {
            let wanted = to(kind.vip(), kind.port, Protocol::Udp);
            for length in [1400, 1448, 1460, 1500, 1501, 2000, 3000, 3500] {
                pair.compare(&kind.name(), &wanted.ip_length(length).frame(), None);
            }
            // Small packets in large frames are still small packets.
            let fate = pair.compare(&kind.name(), &padded(wanted.frame(), 3000), None);
            assert_eq!(fate, format!("{:?}", kind.verdict));
        }
        pair.finish();
    });
}

/// Where a frame came in decides between sending it back and sending it on, not which interface has which number.
#[test]
fn the_arriving_interface_decides_the_way_out() {
    on_host(|other| {
        let mut world = World::new(Setting::Prefixes, other);
        world.tables.ingress = other;
        world.tables.devices = [INGRESS].into();
        let balancer = Balancer::load(&world.tables).unwrap();
        let mut pair = Pair { world, balancer };
        for kind in Kind::all() {
            let frame = to(kind.vip(), kind.port, Protocol::Tcp).frame();
            let fate = pair.compare(&kind.name(), &frame, None);
            let expected = if kind.verdict == Verdict::Transmit { "Redirect" } else { "Transmit" };
            assert_eq!(fate, expected, "{}", kind.name());
        }
        pair.finish();
    });
}
