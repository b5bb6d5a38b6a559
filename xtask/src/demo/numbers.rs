//! Numbers as people read them.

/// With a comma between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A part of one as per cent, with one decimal.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// A rate, rounded.
pub(super) fn rate(per_second: f64) -> String {
    grouped(rounded(per_second))
}

/// Cells of a bar of so many that `part`, 0 to 1, fills.
pub(super) fn filled(part: f64, cells: usize) -> usize {
    rounded(part.clamp(0.0, 1.0) * cells as f64) as usize
}

#[expect(clippy::cast_sign_loss, reason = "what is below 0 becomes 0, which is right for rates and bars")]
fn rounded(number: f64) -> u64 {
    number.round() as u64
}

/// "1 connection", "2 connections".
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let all = [0, 12, 999, 1000, 65_537, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "12", "999", "1,000", "65,537", "1,234,567"]);
    }

    #[test]
    fn parts_and_counts_read_well() {
        assert_eq!(percent(0.2), "20.0 %");
        assert_eq!([rate(1499.6), rate(-1.0)], ["1,500", "0"]);
        assert_eq!([filled(0.5, 10), filled(7.0, 10), filled(-7.0, 10)], [5, 10, 0]);
        assert_eq!([count(1, "connection"), count(0, "connection")], ["1 connection", "0 connections"]);
    }
}
