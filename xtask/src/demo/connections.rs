//! What the client saw of each connection: plain records, and the numbers that follow from them alone.
//!
//! Why a connection failed is not decided here but in `verdict`.

use std::time::Instant;

/// One connection that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// The service it went to.
    pub service: usize,
    /// The slot of the service's ring that its packets fall into.
    pub slot: u32,
    /// When the client began to connect.
    pub opened: Instant,
    /// Its first right answer: from whom and when.
    pub answer: Option<(usize, Instant)>,
    /// When it ended.
    pub ended: Option<Instant>,
    /// What ended it, if not the client itself.
    pub failure: Option<String>,
}

/// Answered connections by backend, of those for which `counts` holds.
pub(super) fn answered_by(
    connections: &[Connection],
    members: usize,
    counts: impl Fn(&Connection) -> bool,
) -> Vec<u64> {
    let mut answered = vec![0; members];
    for connection in connections {
        if let Some((member, _)) = connection.answer
            && counts(connection)
            && let Some(count) = answered.get_mut(member)
        {
            *count += 1;
        }
    }
    answered
}

/// Counts as parts of their sum; zeros where there is nothing.
pub(super) fn parts(counts: &[u64]) -> Vec<f64> {
    let sum = counts.iter().sum::<u64>().max(1) as f64;
    counts.iter().map(|&count| count as f64 / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(service: usize, member: usize) -> Connection {
        let now = Instant::now();
        Connection { service, slot: 0, opened: now, answer: Some((member, now)), ended: None, failure: None }
    }

    #[test]
    fn answers_are_counted_by_backend() {
        let mut connections = vec![answered(0, 1), answered(0, 1), answered(1, 2), answered(0, 9)];
        connections.push(Connection { answer: None, ..answered(0, 0) });
        assert_eq!(answered_by(&connections, 3, |_| true), [0, 2, 1]);
        assert_eq!(answered_by(&connections, 3, |connection| connection.service == 0), [0, 2, 0]);
    }

    #[test]
    fn parts_of_nothing_are_nothing() {
        assert_eq!(parts(&[1, 3]), [0.25, 0.75]);
        assert_eq!(parts(&[0, 0]), [0.0, 0.0]);
    }
}
