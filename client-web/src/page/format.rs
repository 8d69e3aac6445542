//! Numbers as people read them: short, with a unit, in the width of a word.
//!
//! It knows no run and no page. A number and its unit are never parted at a line's end: a no-break space stands
//! between them. Begin with [`count`] and [`bytes`].

/// Keeps a number and its unit on one line.
const SPACE: char = '\u{a0}';
/// What stands where a number is not known yet.
pub const UNKNOWN: &str = "–";

/// A number of things, with at most three digits: `999`, `1.3 M`.
#[must_use]
pub fn count(number: f64) -> String {
    scaled(number, &["", "k", "M", "G", "T"])
}

/// A number of bytes, in decimal units: `999 B`, `1.3 MB`.
#[must_use]
pub fn bytes(number: f64) -> String {
    scaled(number, &["B", "kB", "MB", "GB", "TB"])
}

/// At most three digits and the unit that makes them so; each unit is a thousand of the one before.
fn scaled(number: f64, units: &[&str]) -> String {
    let mut value = number.max(0.0);
    let mut unit = 0;
    // 999.5 would be written as 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1_000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 9.95);
    let text = format!("{value:.digits$}");
    match units[unit] {
        "" => text,
        unit => format!("{text}{SPACE}{unit}"),
    }
}

/// A loss in nats, to the third digit; [`UNKNOWN`] where there is none or where it is no number.
#[must_use]
pub fn nats(loss: Option<f64>) -> String {
    loss.filter(|loss| loss.is_finite())
        .map_or_else(|| UNKNOWN.to_owned(), |loss| format!("{loss:.3}"))
}

/// `part` of `whole` in percent. It never says 100 before all is done.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole.max(1) as f64;
    let shown = if part < whole { share.min(99.9) } else { share };
    format!("{shown:.1}{SPACE}%")
}

/// A length of time in seconds, with its two largest units: `3.4 s`, `2 min 5 s`, `3 h 20 min`.
#[must_use]
pub fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 9.95 {
        return format!("{seconds:.1}{SPACE}s");
    }
    let whole = seconds.round();
    let (hours, minutes) = ((whole / 3_600.0).floor(), (whole / 60.0).floor());
    if minutes < 1.0 {
        format!("{whole}{SPACE}s")
    } else if hours < 1.0 {
        format!("{minutes}{SPACE}min {}{SPACE}s", whole % 60.0)
    } else {
        format!("{hours}{SPACE}h {}{SPACE}min", minutes % 60.0)
    }
}

/// `one` thing or `many` of them: `1 volunteer`, `2 volunteers`.
#[must_use]
pub fn plural(number: u64, one: &str, many: &str) -> String {
    let word = if number == 1 { one } else { many };
    format!("{}{SPACE}{word}", count(number as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: Copy>(write: impl Fn(T) -> String, numbers: &[T], expected: &[&str]) {
        let written: Vec<String> = numbers
            .iter()
            .map(|number| write(*number).replace(SPACE, " "))
            .collect();
        assert_eq!(written, expected);
    }

    #[test]
    fn counts_have_at_most_three_digits() {
        check(
            count,
            &[
                0.0,
                9.4,
                999.0,
                1_000.0,
                9_949.0,
                9_950.0,
                706_688.0,
                999_600.0,
                1_310_720.0,
                4e15,
            ],
            &[
                "0", "9", "999", "1.0 k", "9.9 k", "10 k", "707 k", "1.0 M", "1.3 M", "4000 T",
            ],
        );
    }

    #[test]
    fn bytes_have_their_unit_from_the_first_one_on() {
        check(
            bytes,
            &[0.0, 512.0, 999.7, 52_428_800.0, -3.0],
            &["0 B", "512 B", "1.0 kB", "52 MB", "0 B"],
        );
    }

    #[test]
    fn a_loss_that_is_no_number_is_not_shown() {
        check(
            nats,
            &[Some(2.34567), None, Some(f64::NAN)],
            &["2.346", UNKNOWN, UNKNOWN],
        );
    }

    #[test]
    fn only_what_is_done_is_100_percent() {
        check(
            |(part, whole)| percent(part, whole),
            &[(0, 0), (1, 3), (9_999, 10_000), (10_000, 10_000)],
            &["0.0 %", "33.3 %", "99.9 %", "100.0 %"],
        );
    }

    #[test]
    fn spans_have_their_two_largest_units() {
        check(
            span,
            &[0.04, 9.94, 9.96, 59.4, 59.6, 125.0, 3_599.0, 12_000.0],
            &[
                "0.0 s",
                "9.9 s",
                "10 s",
                "59 s",
                "1 min 0 s",
                "2 min 5 s",
                "59 min 59 s",
                "3 h 20 min",
            ],
        );
    }

    #[test]
    fn one_is_singular() {
        check(
            |number| plural(number, "volunteer", "volunteers"),
            &[0, 1, 2, 1_200],
            &[
                "0 volunteers",
                "1 volunteer",
                "2 volunteers",
                "1.2 k volunteers",
            ],
        );
    }
}
