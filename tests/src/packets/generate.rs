//! Any number of packets from a seed: by grammar, and by damaging what the grammar made.

use lb_userspace::config::{Port, Protocol};

use super::{
    build::{self, ETHERNET, to},
    memory,
    world::World,
};

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is small: the bias of the remainder does not matter here.
    ///
    /// # Panics
    ///
    /// Where `bound` is 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in so many times.
    pub const fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of some values.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Some bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// A frame for the balancer of `world`.
pub fn frame(random: &mut Random, world: &World) -> Vec<u8> {
    if random.once_in(20) {
        return noise(random);
    }
    let mut frame = sound(random, world);
    if random.once_in(3) {
        for _ in 0..=random.below(3) {
            damage(random, &mut frame);
        }
    }
    frame
}

/// A frame for the decapsulation on a backend of `world`.
pub fn tunnelled(random: &mut Random, world: &World) -> Vec<u8> {
    let mut frame = memory::forward(&world.tables, &sound(random, world), None).frame;
    if random.once_in(2) {
        for _ in 0..=random.below(3) {
            damage(random, &mut frame);
        }
    }
    frame
}

/// Bytes under a type that somebody will look behind.
fn noise(random: &mut Random) -> Vec<u8> {
    let length = random.below(120);
    let mut frame = random.bytes(length);
    let ether_type = random.pick(&[[0x08, 0], [0x86, 0xdd]]);
    let version = if ether_type[0] == 8 { 0x45 } else { 0x60 };
    if let Some(place) = frame.get_mut(12..14) {
        place.copy_from_slice(&ether_type);
    }
    if let Some(place) = frame.get_mut(14)
        && !random.once_in(4)
    {
        *place = version;
    }
    frame
}

/// A packet that is as it should be; often one of a service.
fn sound(random: &mut Random, world: &World) -> Vec<u8> {
    let service = &world.config.services[random.below(world.config.services.len())];
    let port = match service.port {
        Port::Number(port) => port,
        Port::Any => random.next() as u16,
    };
    let port = if random.once_in(10) { random.next() as u16 } else { port };
    let protocol =
        if random.once_in(10) { random.pick(&[Protocol::Tcp, Protocol::Udp]) } else { service.protocol };
    let payload = match random.below(20) {
        0 => 1380 + random.below(200),
        1 => 480 + random.below(120),
        _ => random.below(64),
    };
    let mut wanted = to(service.address, port, protocol)
        .from_port(random.next() as u16)
        .payload(payload)
        .traffic_class(random.next() as u8)
        .hops(random.next() as u8);
    let source: [u8; 16] = std::array::from_fn(|_| random.next() as u8);
    wanted.source.set_ip(match service.address {
        std::net::IpAddr::V4(_) => [source[0], source[1], source[2], source[3]].into(),
        std::net::IpAddr::V6(_) => source.into(),
    });
    wanted.frame()
}

/// Makes something wrong, or at least unusual.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    let length = frame.len();
    match random.below(10) {
        // A byte among the headers.
        0..3 if length > 0 => {
            let at = random.below(length.min(100));
            frame[at] = random.next() as u8;
        }
        // One bit among the headers.
        3 if length > 0 => {
            let at = random.below(length.min(100));
            frame[at] ^= 1 << random.below(8);
        }
        // Shorter.
        4 => frame.truncate(random.below(length.max(1))),
        // Longer.
        5 => {
            let more = random.below(60);
            frame.extend(random.bytes(more));
        }
        // A 16-bit field with a value at the edge of something.
        6 if length > 60 => {
            let at = ETHERNET + 2 * random.below(20);
            let edge =
                random.pick(&[0, 1, 4, 7, 8, 11, 12, 19, 20, 28, 39, 40, 0x1fff, 0x2000, 0x7fff, 0xffff]);
            frame[at..at + 2].copy_from_slice(&u16::to_be_bytes(edge));
        }
        // Another protocol, or next header.
        7 if length > 24 => {
            let at = random.pick(&[ETHERNET + 6, ETHERNET + 9]);
            frame[at] = random.pick(&[0, 1, 4, 6, 17, 41, 43, 44, 50, 51, 58, 59, 60, 135]);
        }
        // Another first byte of the IP header.
        8 if length > ETHERNET => frame[ETHERNET] = random.next() as u8,
        // Bytes in between: a tag, options, an extension header.
        _ if length > 60 => {
            let at = random.pick(&[12, ETHERNET + 20, ETHERNET + 40]);
            let what = random.pick(&[[0x81, 0, 0, 7], [0x88, 0xa8, 0, 7], [1, 1, 1, 0], [6, 0, 1, 4]]);
            *frame = build::insert(frame, at, &what);
        }
        _ => {}
    }
}
