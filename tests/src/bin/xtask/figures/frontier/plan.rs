//! Which points of the frontier are measured, as far as those before say it.
//!
//! Pure: rows in, points out. Each codec gets the learning rate that was best for it in short runs, which go on to higher ones
//! until a lower one is best; the best rank of a codec is
//! the narrowest whose loss in f32 is within [`TOLERANCE`] of dense's, or else the one with the least loss; points decide that
//! are within [`CLOSE`] of dense f32 and not dearer than one with less loss. More seeds and more borders are for those.

use std::fmt;

use super::point::{Codec, D_MODEL, Format, Point};
use super::{EVALUATIONS, Row};

/// How much more than dense f32's loss a default may cost.
pub(super) const TOLERANCE: f64 = 0.01;
/// How much more a point may cost that is measured again.
const CLOSE: f64 = 0.03;
/// Points that decide, at most, besides dense f32.
const DECIDING_MAX: usize = 5;

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The learning rate of each codec, in short runs.
    Sweep,
    /// Ranks of a quarter of the width and more, in f32.
    Ranks,
    /// All formats at each codec's best rank.
    Formats,
    /// All ranks in f32.
    Narrow,
    /// The shared subspace as it turns, beside itself as it stays.
    Adapted,
    /// More seeds of the points that decide.
    Seeds,
    /// More borders.
    Borders,
}

impl Phase {
    /// What is likely to decide comes first.
    pub(super) const ALL: [Self; 7] = [
        Self::Sweep,
        Self::Ranks,
        Self::Formats,
        Self::Narrow,
        Self::Adapted,
        Self::Seeds,
        Self::Borders,
    ];
}

/// How long runs are, and what is varied.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    sweep_steps: u64,
    steps: u64,
    learning_rates: Vec<f64>,
    /// Rates of a codec, at most.
    rates_max: usize,
    /// In the order in which they are measured.
    ranks: Vec<u64>,
    seeds: Vec<u64>,
    stages: u64,
    stages_deep: u64,
}

impl Plan {
    pub(super) fn whole() -> Self {
        Self {
            sweep_steps: 300,
            steps: 1_500,
            learning_rates: vec![1e-3, 2e-3, 4e-3],
            rates_max: 6,
            ranks: vec![32, 64, 16, 8],
            seeds: vec![1, 2, 3],
            stages: 4,
            stages_deep: 8,
        }
    }

    /// A few steps each: whether it works, and nothing to read from.
    pub(super) fn quick() -> Self {
        Self {
            // Different ones, so that no run counts as the other kind.
            sweep_steps: EVALUATIONS,
            steps: 2 * EVALUATIONS,
            learning_rates: vec![2e-3],
            rates_max: 1,
            ranks: vec![32],
            seeds: vec![1],
            stages: 2,
            stages_deep: 3,
        }
    }

    /// What to measure next: what is missing of the first phase that lacks something. What was measured since may ask for
    /// more of an earlier one.
    pub(super) fn next(&self, rows: &[Row]) -> Vec<Point> {
        let mut missing = Phase::ALL.into_iter().map(|phase| {
            let mut points = self.points(phase, rows);
            points.retain(|point| self.row(point, rows).is_none());
            points
        });
        missing
            .find(|points| !points.is_empty())
            .unwrap_or_default()
    }

    /// Points of a phase, as far as earlier ones are measured.
    pub(super) fn points(&self, phase: Phase, rows: &[Row]) -> Vec<Point> {
        match phase {
            Phase::Sweep => {
                let codecs = Codec::ALL.into_iter();
                codecs.flat_map(|codec| self.sweep(codec, rows)).collect()
            }
            Phase::Ranks => {
                let dense = self.point(Codec::Dense, None, Format::F32, rows);
                let wide = self.ranks.iter().filter(|rank| 4 * **rank >= D_MODEL);
                let wide = self.in_f32(wide, rows);
                std::iter::once(dense).chain(wide).collect()
            }
            Phase::Narrow => self.in_f32(self.ranks.iter(), rows).collect(),
            Phase::Adapted => {
                let rank = self.best_rank(Codec::Subspace, rows);
                let still = self.point(Codec::Subspace, rank, Format::F32, rows);
                vec![Point {
                    codec: Codec::Adapted,
                    ..still
                }]
            }
            Phase::Formats => {
                let all = Format::PACKED.into_iter().rev();
                all.flat_map(|format| {
                    let codecs = Codec::ALL.into_iter();
                    codecs.map(move |codec| {
                        self.point(codec, self.best_rank(codec, rows), format, rows)
                    })
                })
                .collect()
            }
            Phase::Seeds => self.again(rows, &self.seeds[1..], self.stages),
            Phase::Borders => self.again(rows, &self.seeds[..1], self.stages_deep),
        }
    }

    /// One codec's rates, each twice the one before; one more where the highest of those measured was best.
    fn sweep(&self, codec: Codec, rows: &[Row]) -> Vec<Point> {
        let at = |learning_rate: f64| Point {
            codec,
            rank: (codec != Codec::Dense).then(|| self.ranks[0]),
            format: Format::F32,
            learning_rate,
            seed: self.seeds[0],
            stages: self.stages,
            steps: self.sweep_steps,
        };
        let mut sweep: Vec<Point> = self.learning_rates.iter().map(|rate| at(*rate)).collect();
        while sweep.len() < self.rates_max {
            let losses: Option<Vec<f64>> = sweep
                .iter()
                .map(|point| Some(self.row(point, rows)?.loss()))
                .collect();
            match losses.as_deref() {
                Some([lower @ .., last]) if lower.iter().all(|loss| last < loss) => {
                    let highest = sweep[lower.len()].learning_rate;
                    sweep.push(at(2.0 * highest));
                }
                _ => break,
            }
        }
        sweep
    }

    fn in_f32<'a>(
        &'a self,
        ranks: impl Iterator<Item = &'a u64>,
        rows: &'a [Row],
    ) -> impl Iterator<Item = Point> {
        ranks.flat_map(move |rank| {
            let codecs = Codec::NARROW.into_iter();
            codecs.map(move |codec| self.point(codec, Some(*rank), Format::F32, rows))
        })
    }

    fn point(&self, codec: Codec, rank: Option<u64>, format: Format, rows: &[Row]) -> Point {
        Point {
            codec,
            rank,
            format,
            learning_rate: self.learning_rate(codec, rows),
            seed: self.seeds[0],
            stages: self.stages,
            steps: self.steps,
        }
    }

    /// The rate with the least loss in the sweep.
    fn learning_rate(&self, codec: Codec, rows: &[Row]) -> f64 {
        let sweep = self.sweep(codec, rows);
        let swept = sweep.iter().filter_map(|point| self.row(point, rows));
        let best = swept.min_by(|a, b| a.loss().total_cmp(&b.loss()));
        best.map_or(self.learning_rates[0], |row| row.point.learning_rate)
    }

    fn row<'a>(&self, point: &Point, rows: &'a [Row]) -> Option<&'a Row> {
        rows.iter().find(|row| row.point == *point)
    }

    fn dense(&self, rows: &[Row]) -> Option<f64> {
        let point = self.point(Codec::Dense, None, Format::F32, rows);
        self.row(&point, rows)?.validation_loss
    }

    fn best_rank(&self, codec: Codec, rows: &[Row]) -> Option<u64> {
        if codec == Codec::Dense {
            return None;
        }
        let loss = |rank: u64| {
            let point = self.point(codec, Some(rank), Format::F32, rows);
            Some((rank, self.row(&point, rows)?.loss()))
        };
        let losses: Vec<(u64, f64)> = self.ranks.iter().filter_map(|rank| loss(*rank)).collect();
        let enough = self.dense(rows).map(|dense| dense * (1.0 + TOLERANCE));
        let fits = losses
            .iter()
            .filter(|(_, loss)| enough.is_some_and(|enough| *loss <= enough));
        let narrowest = fits.map(|(rank, _)| *rank).min();
        let least = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        narrowest.or(least.map(|(rank, _)| *rank))
    }

    /// Long runs of the first seed, at the plan's own depth.
    fn long<'a>(&'a self, rows: &'a [Row]) -> impl Iterator<Item = &'a Row> {
        rows.iter().filter(|row| {
            let Point {
                seed,
                stages,
                steps,
                ..
            } = row.point;
            (seed, stages, steps) == (self.seeds[0], self.stages, self.steps)
        })
    }

    /// Points that no other one beats in both loss and bytes, close to dense f32; and that one.
    pub(super) fn deciding(&self, rows: &[Row]) -> Vec<Point> {
        let dense = self.point(Codec::Dense, None, Format::F32, rows);
        let Some(loss) = self.dense(rows) else {
            return vec![];
        };
        let close = |row: &&Row| row.loss() <= loss * (1.0 + CLOSE) && row.point != dense;
        let mut close: Vec<&Row> = self.long(rows).filter(close).collect();
        close.sort_by(|a, b| {
            let bytes = a.bytes_a_token.total_cmp(&b.bytes_a_token);
            bytes.then(a.loss().total_cmp(&b.loss()))
        });
        let mut least = f64::INFINITY;
        close.retain(|row| {
            let is_better = row.loss() < least;
            least = least.min(row.loss());
            is_better
        });
        close.truncate(DECIDING_MAX);
        let close = close.into_iter().map(|row| row.point.clone());
        std::iter::once(dense).chain(close).collect()
    }

    fn again(&self, rows: &[Row], seeds: &[u64], stages: u64) -> Vec<Point> {
        let deciding = self.deciding(rows);
        let all = seeds.iter().flat_map(|seed| {
            deciding.iter().map(|point| Point {
                seed: *seed,
                stages,
                ..point.clone()
            })
        });
        all.collect()
    }

    /// The long run of a codec at its rate and best rank, in that format.
    pub(super) fn in_format<'a>(
        &self,
        codec: Codec,
        format: Format,
        rows: &'a [Row],
    ) -> Option<&'a Row> {
        self.row(
            &self.point(codec, self.best_rank(codec, rows), format, rows),
            rows,
        )
    }

    /// Of the long runs of those codecs the one with the fewest bytes that is within [`TOLERANCE`] of dense f32, or else the
    /// one with the least loss.
    pub(super) fn cheapest<'a>(
        &'a self,
        is_it: impl Fn(Codec) -> bool,
        rows: &'a [Row],
    ) -> Option<&'a Row> {
        let is_close = |row: &&Row| {
            let beside = self.beside_dense(&row.point, self.stages, rows);
            beside.is_some_and(|beside| beside.mean <= TOLERANCE)
        };
        let of_it = || self.long(rows).filter(|row| is_it(row.point.codec));
        let close = of_it().filter(is_close);
        let cheapest = close.min_by(|a, b| a.bytes_a_token.total_cmp(&b.bytes_a_token));
        cheapest.or_else(|| of_it().min_by(|a, b| a.loss().total_cmp(&b.loss())))
    }

    /// Mean and half the range of a point's losses over its seeds, at one depth, relative to dense f32 of the same seed.
    pub(super) fn beside_dense(&self, point: &Point, stages: u64, rows: &[Row]) -> Option<Beside> {
        let dense = self.point(Codec::Dense, None, Format::F32, rows);
        let seeds = self.seeds.iter().filter_map(|seed| {
            let at = |point: &Point| {
                let like = rows.iter().find(|row| {
                    let same = (row.point.seed, row.point.stages) == (*seed, stages);
                    same && row.point.is_like(point)
                });
                like?.validation_loss
            };
            Some(at(point)? / at(&dense)? - 1.0)
        });
        let ratios: Vec<f64> = seeds.collect();
        let count = ratios.len();
        (count > 0).then(|| Beside {
            seeds: count,
            mean: ratios.iter().sum::<f64>() / count as f64,
            least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            most: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// Bytes, loss beside dense f32's and what to call it, of a codec's long runs.
    pub(super) fn shares(&self, codec: Codec, rows: &[Row]) -> Vec<(f64, Beside, String)> {
        let of_codec = self.long(rows).filter(|row| row.point.codec == codec);
        let shares = of_codec.filter_map(|row| {
            let beside = self.beside_dense(&row.point, self.stages, rows)?;
            let rank = row
                .point
                .rank
                .map_or(String::new(), |rank| format!("{rank} "));
            Some((
                row.bytes_a_token,
                beside,
                format!("{rank}{}", row.point.format.name()),
            ))
        });
        shares.collect()
    }

    /// A line a point, the cheapest first.
    pub(super) fn verdict(&self, rows: &[Row]) -> Vec<String> {
        let mut long: Vec<&Row> = self.long(rows).collect();
        long.sort_by(|a, b| a.bytes_a_token.total_cmp(&b.bytes_a_token));
        let lines = long.into_iter().filter_map(|row| {
            let beside = self.beside_dense(&row.point, self.stages, rows)?;
            let deep = self.beside_dense(&row.point, self.stages_deep, rows);
            let deep = deep.map_or(String::new(), |deep| format!("; deeper {deep}"));
            Some(format!(
                "{:>7.1} B  {}  {beside}{deep}",
                row.bytes_a_token, row.point
            ))
        });
        lines.collect()
    }
}

/// A loss beside dense f32's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Beside {
    pub(super) seeds: usize,
    pub(super) mean: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl fmt::Display for Beside {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, least, most] = [self.mean, self.least, self.most].map(|share| 100.0 * share);
        write!(
            to,
            "{mean:+.2} % ({least:+.2} to {most:+.2}, {} seeds)",
            self.seeds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BATCH, CONTEXT};
    use super::*;

    /// A run whose loss is a function of its point.
    fn measured(points: Vec<Point>, loss: fn(&Point) -> f64) -> Vec<Row> {
        let rows = points.into_iter().map(|point| Row {
            tokens: point.steps * BATCH * CONTEXT,
            bytes_a_token: point.bytes_a_token(),
            validation_loss: Some(loss(&point)),
            curve: vec![],
            seconds: 1.0,
            load: None,
            point,
        });
        rows.collect()
    }

    /// Dense loses nothing, `subspace` learns best at twice the rate and costs 8 % at rank 32, `projector` 0.6 %.
    fn loss(point: &Point) -> f64 {
        let rank = point.rank.unwrap_or(D_MODEL) as f64;
        let (share, best) = match point.codec {
            Codec::Dense => (0.0, 2e-3),
            Codec::Subspace | Codec::Adapted => (0.08 * 32.0 / rank, 4e-3),
            Codec::Projector => (0.006 * 32.0 / rank, 2e-3),
            Codec::Learned => (0.005 * 32.0 / rank, 2e-3),
        };
        let format = match point.format {
            Format::F32 | Format::F16 => 0.0,
            Format::Int8 => 0.001,
            Format::Int4 => 0.02,
        };
        let rate = if point.learning_rate == best {
            0.0
        } else {
            0.1
        };
        let length = 1.0 / point.steps as f64;
        2.0 * (1.0 + share + format + rate + length) + 1e-3 * point.seed as f64
    }

    fn all(plan: &Plan) -> Vec<Row> {
        let mut rows = Vec::new();
        loop {
            let missing = plan.next(&rows);
            if missing.is_empty() {
                break;
            }
            rows.extend(measured(missing, loss));
        }
        rows
    }

    #[test]
    fn what_is_measured_follows_from_what_was() {
        let plan = Plan::whole();
        let rows = all(&plan);
        for (codec, rate, rank) in [
            (Codec::Dense, 2e-3, None),
            // At no rank within 1 %: the one with the least loss.
            (Codec::Subspace, 4e-3, Some(64)),
            // At 16 it would cost 1.2 %.
            (Codec::Projector, 2e-3, Some(32)),
        ] {
            assert_eq!(plan.learning_rate(codec, &rows), rate, "{codec:?}");
            assert_eq!(plan.best_rank(codec, &rows), rank, "{codec:?}");
        }
        let decides: Vec<String> = plan.deciding(&rows).iter().map(Point::to_string).collect();
        let [dense, cheapest, ..] = &decides[..] else {
            panic!("{decides:?}");
        };
        assert!(dense.starts_with("dense f32"), "{decides:?}");
        assert!(cheapest.starts_with("projector 32 int4"), "{decides:?}");
        let again = rows.iter().filter(|row| row.point.seed > 1).count();
        assert_eq!(again, 2 * decides.len());
        let deep = rows.iter().filter(|row| row.point.stages == 8).count();
        assert_eq!(deep, decides.len());
    }

    #[test]
    fn a_rate_that_is_best_has_a_higher_one_beside_it() {
        let plan = Plan::whole();
        let rows = all(&plan);
        let highest = |codec| {
            let swept = plan.sweep(codec, &rows).into_iter();
            swept.map(|point| point.learning_rate).fold(0.0, f64::max)
        };
        assert_eq!(highest(Codec::Dense), 4e-3);
        assert_eq!(highest(Codec::Subspace), 8e-3);
    }

    #[test]
    fn nothing_is_measured_twice() {
        let plan = Plan::whole();
        let rows = all(&plan);
        for (index, row) in rows.iter().enumerate() {
            let others = &rows[index + 1..];
            assert!(
                others.iter().all(|other| other.point != row.point),
                "{}",
                row.point
            );
        }
        let more: Vec<Point> = Phase::ALL
            .into_iter()
            .flat_map(|phase| plan.points(phase, &rows))
            .filter(|point| rows.iter().all(|row| row.point != *point))
            .collect();
        assert_eq!(more, vec![]);
    }

    #[test]
    fn a_rate_that_diverges_is_not_taken_and_not_measured_again() {
        let plan = Plan::whole();
        let mut rows = measured(plan.points(Phase::Sweep, &[]), loss);
        for row in &mut rows {
            if row.point.codec == Codec::Dense && row.point.learning_rate == 2e-3 {
                row.validation_loss = None;
            }
        }
        assert_ne!(plan.learning_rate(Codec::Dense, &rows), 2e-3);
        let text = serde_json::to_string(&rows).expect("JSON");
        let read: Vec<Row> = serde_json::from_str(&text).expect("its own");
        assert_eq!(read, rows);
    }

    #[test]
    fn a_loss_is_beside_that_of_its_own_seed() {
        let plan = Plan::whole();
        let rows = all(&plan);
        let point = plan.deciding(&rows)[1].clone();
        let beside = plan
            .beside_dense(&point, 4, &rows)
            .expect("it was measured");
        assert_eq!(beside.seeds, 3);
        assert!((beside.mean - 0.026).abs() < 1e-3, "{beside}");
        assert!(beside.least <= beside.mean && beside.mean <= beside.most);
    }
}
