//! What must hold for a packet, however it was run.
//!
//! Everything here panics where it does not hold: these are assertions that several tests share.

use lb_common::{
    counter::Counter,
    datapath::Verdict,
    decap::Outcome,
    reason::{Fate, Reason},
};

use super::{Observed, build::ETHERNET, reference::Judgement, world::World};

/// Runs what may panic, and says for which packet it did.
pub fn about<R>(name: &str, frame: &[u8], work: impl FnOnce() -> R) -> R {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        eprintln!("packet: {name}\n{frame:02x?}");
        std::panic::resume_unwind(panic)
    })
}

/// Which reasons are a service's: it counts them besides.
fn is_a_services(reason: Reason) -> bool {
    use Reason::{BadState, NoBackend, NoDevice, NoHeadroom, NoNextHop, TooBig};
    matches!(reason, NoBackend | NoNextHop | TooBig | NoHeadroom | NoDevice | BadState)
}

/// What holds for every packet: one counter moved by one packet and all of its bytes, the verdict is that of the reason,
/// and what is passed up is as it came.
pub fn invariants(world: &World, frame: &[u8], seen: &Observed) {
    let once = Counter { packets: 1, bytes: frame.len() as u64 };
    for (counter, moved) in &seen.counters {
        assert_eq!(*moved, once, "{}", world.names[counter]);
    }
    let names: Vec<&str> = seen.counters.keys().map(|counter| &*world.names[counter]).collect();
    let Some((&number, &packets)) = seen.reasons.iter().next() else {
        assert!(
            matches!(seen.verdict, Verdict::Transmit | Verdict::Redirect),
            "{:?} for no reason",
            seen.verdict
        );
        assert_eq!(names.len(), 1, "a packet that is sent is counted once: {names:?}");
        assert!(names[0].contains('/'), "a packet that is sent is its backend's: {names:?}");
        return;
    };
    assert_eq!((seen.reasons.len(), packets), (1, 1), "one reason: {:?}", seen.reasons);
    let reason = Reason::ALL[number as usize];
    let fate = if seen.verdict == Verdict::Pass { Fate::Pass } else { Fate::Drop };
    assert_eq!(fate, reason.fate(), "{}", reason.name());
    assert_eq!(names.len(), usize::from(is_a_services(reason)), "{}: {names:?}", reason.name());
    assert!(names.iter().all(|name| !name.contains('/')), "no backend had {names:?}");
    if fate == Fate::Pass {
        assert_eq!(seen.frame, frame, "a packet that is passed up is not touched");
    }
}

/// The reference has the last word on every byte, reason and counter.
pub fn reference(world: &World, frame: &[u8], room: usize, seen: &Observed) {
    let names: Vec<&str> = seen.counters.keys().map(|counter| &*world.names[counter]).collect();
    match super::reference::judge(world, frame, room) {
        Judgement::Sent { ifindex, frame: expected, to } => {
            let verdict = if ifindex == world.tables.ingress { Verdict::Transmit } else { Verdict::Redirect };
            assert_eq!((seen.verdict, names.as_slice()), (verdict, [&*to].as_slice()), "{:?}", seen.reasons);
            assert_eq!(seen.frame, expected, "the frame that is sent");
        }
        Judgement::Refused { reason, service } => {
            let reasons: Vec<_> = seen.reasons.keys().map(|&n| Reason::ALL[n as usize].name()).collect();
            assert_eq!(reasons, [reason], "{names:?}");
            assert_eq!(names, service.as_deref().into_iter().collect::<Vec<_>>());
        }
    }
}

/// What holds for every packet on a backend: one outcome, its verdict, and nothing changed but what was cut away.
pub fn decapsulation(frame: &[u8], seen: &Observed) {
    let moved: Vec<_> =
        seen.reasons.iter().map(|(&n, &packets)| (Outcome::ALL[n as usize], packets)).collect();
    let &[(outcome, 1)] = moved.as_slice() else { panic!("one outcome moves by one: {moved:?}") };
    assert_eq!(seen.verdict, outcome.fate().into());
    if matches!(outcome, Outcome::Ipip | Outcome::Gue) {
        // Only the front is cut away, and the addresses of the frame stay.
        assert!(frame.ends_with(&seen.frame[ETHERNET..]) && seen.frame.len() < frame.len());
        assert_eq!(seen.frame[..12], frame[..12]);
        let version = if seen.frame[12..14] == [0x08, 0] { 4 } else { 6 };
        assert_eq!(seen.frame[ETHERNET] >> 4, version);
    } else {
        assert_eq!(seen.frame, frame, "what is not decapsulated is not touched");
    }
}
