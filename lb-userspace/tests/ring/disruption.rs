//! How many slots a change of the backends moves, measured, printed and bounded. The table in `docs/maglev.md` is this
//! module's output: `cargo test -p lb-userspace --test ring disruption -- --nocapture`.

use lb_userspace::ring::{Candidate, build, ring_slots_for};

const WEIGHT: u32 = 100;

/// One kind of change, over several backends to which it was done in turn.
#[derive(Default)]
struct Figures {
    changes: usize,
    /// Slots whose owner differs.
    moved: usize,
    /// Slots that had to move: those by which the numbers of slots of shrinking backends shrank.
    ideal: usize,
    /// The most slots moved by one change beyond its ideal.
    worst_excess: usize,
}

fn names(backends: usize) -> Vec<String> {
    (1..=backends).map(|i| format!("web-{i}")).collect()
}

/// The ring in which `weight_of(i)` is the weight of backend `i`.
fn ring(names: &[String], slots: u32, weight_of: impl Fn(usize) -> u32) -> Vec<u16> {
    let candidates: Vec<Candidate<'_>> = names
        .iter()
        .enumerate()
        .map(|(i, name)| Candidate { name, index: u16::try_from(i).unwrap(), weight: weight_of(i) })
        .collect();
    build(&candidates, slots).unwrap()
}

fn counts(ring: &[u16], backends: usize) -> Vec<usize> {
    let mut counts = vec![0; backends];
    for &owner in ring {
        counts[usize::from(owner)] += 1;
    }
    counts
}

fn measure(backends: usize, weight_of: impl Fn(usize) -> u32, new_weight: impl Fn(u32) -> u32) -> Figures {
    let slots = ring_slots_for(backends);
    let names = names(backends);
    let before = ring(&names, slots, &weight_of);
    let mut figures = Figures::default();
    // Some twenty backends, spread over all.
    for changed in (0..backends).step_by(backends.div_ceil(20)) {
        let after =
            ring(&names, slots, |i| if i == changed { new_weight(weight_of(i)) } else { weight_of(i) });
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        let ideal = counts(&before, backends)
            .into_iter()
            .zip(counts(&after, backends))
            .map(|(before, after)| before.saturating_sub(after))
            .sum();
        assert!(moved >= ideal);
        figures.changes += 1;
        figures.moved += moved;
        figures.ideal += ideal;
        figures.worst_excess = figures.worst_excess.max(moved - ideal);
    }
    figures
}

/// Prints a row of the table and fails where moved slots exceed `most_excess_percent` of the ring beyond the ideal.
fn row(what: &str, backends: usize, figures: &Figures, most_excess_percent: f64) {
    let slots = ring_slots_for(backends) as usize;
    let percent = |total: usize, count: usize| 100.0 * total as f64 / count as f64 / slots as f64;
    let (moved, ideal) = (percent(figures.moved, figures.changes), percent(figures.ideal, figures.changes));
    let worst = percent(figures.worst_excess, 1);
    println!(
        "| {what} | {backends} | {slots} | {ideal:.3} % | {moved:.3} % | {:.3} % | {worst:.3} % |",
        moved - ideal
    );
    assert!(worst <= most_excess_percent, "{what}, {backends} backends: {worst} % moved beyond the ideal");
}

#[test]
fn disruption() {
    let equal = |_| WEIGHT;
    // Weights 50 to 150.
    let mixed = |i: usize| 50 + u32::try_from(i * 37 % 101).unwrap();
    let (removed, up, down) = (|_| 0, |weight| weight * 11 / 10, |weight| weight * 9 / 10);
    println!("| change | backends | slots | ideal | moved | excess, mean | excess, worst |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    // The bounds lie close above what was measured: rings are pure functions, so the figures never vary.
    for (backends, most) in [(10, 2.9), (100, 1.5), (1_000, 0.6)] {
        row("one of equals removed", backends, &measure(backends, equal, removed), most);
    }
    for (backends, most) in [(10, 3.2), (100, 1.8), (1_000, 0.8)] {
        row("one of mixed weights removed", backends, &measure(backends, mixed, removed), most);
    }
    for (backends, most) in [(10, 1.6), (100, 0.7), (1_000, 0.1)] {
        row("one of equals, weight +10 %", backends, &measure(backends, equal, up), most);
    }
    for (backends, most) in [(10, 1.6), (100, 0.7), (1_000, 0.1)] {
        row("one of equals, weight -10 %", backends, &measure(backends, equal, down), most);
    }
    for (backends, most) in [(10, 2.3), (100, 0.8), (1_000, 0.2)] {
        row("one of mixed weights +10 %", backends, &measure(backends, mixed, up), most);
    }
    for (backends, most) in [(10, 2.1), (100, 0.8), (1_000, 0.2)] {
        row("one of mixed weights -10 %", backends, &measure(backends, mixed, down), most);
    }
}
