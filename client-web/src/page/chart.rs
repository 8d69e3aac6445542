//! The loss curve: where its points, lines and numbers lie, and the SVG that shows them.
//!
//! Geometry is in the units of the SVG's view box, [`WIDTH`] x [`HEIGHT`]; how large that is on a screen is the
//! style's business. The host writes the curve into its first answer and the page draws it anew at each round,
//! both with [`Curve::svg`], so that nothing moves when the page takes over. Losses that are no numbers are left out.

use std::fmt::Write as _;

use shared::units::Round;
use shared::wire::report::RoundReport;

use super::format;

/// Width of the view box.
pub const WIDTH: f64 = 720.0;
/// Height of the view box.
pub const HEIGHT: f64 = 280.0;
/// Where the plot begins; left of it stand the losses.
pub const LEFT: f64 = 54.0;
/// Where the plot ends.
pub const RIGHT: f64 = WIDTH - 14.0;
/// Where the highest loss lies.
pub const TOP: f64 = 14.0;
/// Where the lowest loss lies; below it stand the tokens.
pub const BOTTOM: f64 = HEIGHT - 34.0;
/// About how many intervals an axis has.
const INTERVALS: f64 = 4.0;
/// Least range of the losses' axis, in nats: a flat curve is not made to look wild.
const SPAN_MIN: f64 = 0.1;
/// Lines drawn for an evaluation; with more, dots would touch and only the line is drawn.
const DOTS_MAX: usize = 60;

/// A round on the curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its number.
    pub round: Round,
    /// Tokens trained on after it.
    pub tokens: f64,
    /// Mean token loss over the round, in nats.
    pub loss: f64,
    /// On held-out text, in nats, where it was measured.
    pub validation: Option<f64>,
    /// From the left, in units of the view box.
    pub x: f64,
    /// The training loss, from the top.
    pub y: f64,
}

/// The rounds of a run with their places. There are at least two.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Oldest first.
    pub points: Vec<Point>,
    losses: Axis,
    tokens: Axis,
}

/// Numbers at even distances.
#[derive(Clone, Debug, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// An axis over `low` to `high`, with round numbers at its steps. `whole` ends it at a step, too.
    fn new(low: f64, high: f64, whole: bool) -> Self {
        let rough = (high - low) / INTERVALS;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough * 0.999)
            .unwrap_or(10.0 * power);
        if !whole {
            return Self { low, high, step };
        }
        Self {
            low: (low / step).floor() * step,
            high: (high / step).ceil() * step,
            step,
        }
    }

    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn steps(&self) -> impl Iterator<Item = f64> {
        let (low, step) = (self.low, self.step);
        let count = ((self.high - low) / step + 1e-6).floor();
        (0_u32..)
            .map(f64::from)
            .take_while(move |index| *index <= count)
            .map(move |index| low + index * step)
    }

    /// Digits after the point that tell two steps apart.
    fn digits(&self) -> usize {
        // 2.5, 0.25 and so on need one more than their power of ten.
        (0..6)
            .find(|digits| {
                let shifted = self.step * 10_f64.powi(*digits);
                (shifted - shifted.round()).abs() < 1e-6
            })
            .map_or(6, |digits| digits as usize)
    }
}

impl Curve {
    /// The curve of `rounds`, oldest first, each sample being `context` tokens; `None` before there are two.
    #[must_use]
    pub fn new(rounds: &[RoundReport], context: usize) -> Option<Self> {
        let finite = |round: &&RoundReport| round.loss.is_finite();
        let mut points: Vec<Point> = rounds
            .iter()
            .filter(finite)
            .map(|round| Point {
                round: round.round,
                tokens: round.samples as f64 * context as f64,
                loss: round.loss,
                validation: round.validation_loss.filter(|loss| loss.is_finite()),
                x: 0.0,
                y: 0.0,
            })
            .collect();
        if points.len() < 2 {
            return None;
        }
        let all = || {
            points
                .iter()
                .flat_map(|point| std::iter::once(point.loss).chain(point.validation))
        };
        let low = all().fold(f64::INFINITY, f64::min);
        let high = all().fold(f64::NEG_INFINITY, f64::max);
        let losses = Axis::new(low, high.max(low + SPAN_MIN), true);
        let last = points.last().map_or(0.0, |point| point.tokens);
        let tokens = Axis::new(0.0, last.max(1.0), false);
        for point in &mut points {
            point.x = LEFT + tokens.share(point.tokens) * (RIGHT - LEFT);
            point.y = height(&losses, point.loss);
        }
        Some(Self {
            points,
            losses,
            tokens,
        })
    }

    /// Which point lies nearest to `x`, in units of the view box.
    #[must_use]
    pub fn nearest(&self, x: f64) -> usize {
        let after = self.points.partition_point(|point| point.x < x);
        let before = after.saturating_sub(1);
        match self.points.get(after) {
            Some(next) if next.x - x < x - self.points[before].x || after == 0 => after,
            _ => before,
        }
    }

    /// Where `loss`, in nats, lies from the top, in units of the view box.
    #[must_use]
    pub fn height(&self, loss: f64) -> f64 {
        height(&self.losses, loss)
    }

    /// What the curve says, in a sentence: for those who do not see it.
    #[must_use]
    pub fn sentence(&self) -> String {
        let (first, last) = (self.points[0], self.points[self.points.len() - 1]);
        format!(
            "Training loss from {} nats a token in round {} to {} in round {}, over {} tokens.",
            format::nats(Some(first.loss)),
            first.round,
            format::nats(Some(last.loss)),
            last.round,
            format::count(last.tokens)
        )
    }

    /// The inside of the SVG: grid, numbers, lines, dots.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        self.axes(&mut svg);
        let training = self.points.iter().map(|point| (point.x, point.y));
        line(&mut svg, "training", training);
        let held_out: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter_map(|point| Some((point.x, height(&self.losses, point.validation?))))
            .collect();
        line(&mut svg, "held-out", held_out.iter().copied());
        if held_out.len() <= DOTS_MAX {
            for (x, y) in held_out {
                let _ = write!(
                    svg,
                    r#"<circle class="held-out" cx="{x:.1}" cy="{y:.1}" r="3"/>"#
                );
            }
        }
        svg
    }

    /// What the lines are, with a piece of each: HTML, for below the SVG.
    #[must_use]
    pub fn legend(&self) -> String {
        let is_measured = self.points.iter().any(|point| point.validation.is_some());
        let held_out = if is_measured {
            " <span class=\"key held-out\"></span>on held-out text"
        } else {
            ""
        };
        format!(
            "<span class=\"key\"></span>training loss{held_out}, in nats a token, over tokens trained on"
        )
    }

    fn axes(&self, svg: &mut String) {
        let digits = self.losses.digits();
        for loss in self.losses.steps() {
            let y = height(&self.losses, loss);
            let _ = write!(
                svg,
                r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{loss:.digits$}</text>"#,
                LEFT - 8.0,
                y + 4.0
            );
        }
        for tokens in self.tokens.steps() {
            let x = LEFT + self.tokens.share(tokens) * (RIGHT - LEFT);
            // A number in the middle of its mark would leave the picture at its end.
            let anchor = if tokens == 0.0 {
                "start"
            } else if x > RIGHT - 20.0 {
                "end"
            } else {
                "middle"
            };
            let _ = write!(
                svg,
                r#"<path class="mark" d="M{x:.1} {BOTTOM}v5"/><text x="{x:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
                BOTTOM + 22.0,
                format::count(tokens)
            );
        }
    }
}

fn height(losses: &Axis, loss: f64) -> f64 {
    BOTTOM - losses.share(loss) * (BOTTOM - TOP)
}

fn line(svg: &mut String, class: &str, points: impl Iterator<Item = (f64, f64)>) {
    let mut path = String::new();
    for (x, y) in points {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{x:.1} {y:.1}");
    }
    if !path.is_empty() {
        let _ = write!(svg, r#"<path class="line {class}" d="{path}"/>"#);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(losses: &[f64]) -> Vec<RoundReport> {
        (1_u32..)
            .zip(losses)
            .map(|(round, loss)| RoundReport {
                round: Round(round),
                loss: *loss,
                validation_loss: round.is_multiple_of(4).then_some(loss + 0.1),
                samples: u64::from(round) * 256,
                seconds: 12.5,
                pipelines: 1,
            })
            .collect()
    }

    #[test]
    fn the_curve_stays_inside_its_frame_whatever_the_losses() {
        for (first, last) in [(5.5, 2.0), (3.0, 3.0), (0.001, 0.0), (250.0, 1.0)] {
            let mut losses: Vec<f64> = (0..40)
                .map(|index| first + (last - first) * f64::from(index) / 39.0)
                .collect();
            losses[7] = f64::NAN;
            let curve = Curve::new(&rounds(&losses), 128).unwrap();
            assert_eq!(curve.points.len(), 39, "what is no number is left out");
            for point in &curve.points {
                assert!((LEFT..=RIGHT).contains(&point.x), "{point:?}");
                assert!(
                    (TOP - 0.1..=BOTTOM + 0.1).contains(&point.y),
                    "{first} to {last}: {point:?}"
                );
            }
            let svg = curve.svg();
            let lines = svg.matches("class=\"grid\"").count();
            assert!((3..=8).contains(&lines), "{lines}, {first} to {last}");
        }
    }

    #[test]
    fn one_round_is_no_curve() {
        assert_eq!(Curve::new(&rounds(&[2.0]), 128), None);
        assert_eq!(Curve::new(&rounds(&[2.0, f64::INFINITY]), 128), None);
    }

    #[test]
    fn numbers_on_an_axis_are_round_and_all_different() {
        for (low, high) in [(1.9, 5.6), (2.0, 2.1), (2.31, 2.47), (0.0, 900.0)] {
            let axis = Axis::new(low, high, true);
            let digits = axis.digits();
            let mut labels: Vec<String> = axis
                .steps()
                .map(|value| format!("{value:.digits$}"))
                .collect();
            let count = labels.len();
            labels.dedup();
            assert_eq!(labels.len(), count, "{labels:?}");
            assert!(labels[0].len() <= 5, "{labels:?}");
            assert!(axis.low <= low && axis.high >= high, "{axis:?}");
        }
    }

    #[test]
    fn the_nearest_round_is_found_from_both_sides_and_from_outside() {
        let curve = Curve::new(&rounds(&[4.0, 3.0, 2.5, 2.2]), 128).unwrap();
        for (index, point) in curve.points.iter().enumerate() {
            assert_eq!(curve.nearest(point.x - 1.0), index);
            assert_eq!(curve.nearest(point.x + 1.0), index);
        }
        assert_eq!(curve.nearest(-50.0), 0);
        assert_eq!(curve.nearest(5_000.0), 3);
    }

    #[test]
    fn the_curve_is_told_in_a_sentence() {
        let curve = Curve::new(&rounds(&[4.0, 3.0, 2.5, 2.2]), 128).unwrap();
        assert_eq!(
            curve.sentence().replace('\u{a0}', " "),
            "Training loss from 4.000 nats a token in round 1 to 2.200 in round 4, over 131 k tokens."
        );
    }
}
