//! What the frontier's runs say of codecs that are compared by time: how many steps each takes to the same loss.
//!
//! Compared are dense in each packed format and the cheapest run of each narrow codec within the plan's tolerance, or its
//! best where none is; the default is the cheapest of all.

use anyhow::{Context, ensure};

use super::plan::Plan;
use super::point::{Codec, D_MODEL, Format, Point};
use super::{BATCH, CONTEXT, Row, written};

/// Those that are compared.
#[derive(Clone, Debug)]
pub(in super::super) struct Contest {
    /// What they are to come to, in nats a byte on held-out text: the highest that any of them ended with.
    pub(in super::super) loss: f64,
    /// Each once.
    pub(in super::super) all: Vec<Contestant>,
    default: usize,
}

/// One of them.
#[derive(Clone, Debug)]
pub(in super::super) struct Contestant {
    /// Codec, rank of the frontier's width, format.
    pub(in super::super) name: String,
    /// Steps to the loss, between two evaluations in proportion.
    pub(in super::super) steps: f64,
    point: Point,
}

/// Of what lies in `tests/figures/frontier.json`.
pub(in super::super) fn contest() -> anyhow::Result<Contest> {
    Contest::of(&Plan::whole(), &written()?)
}

impl Contest {
    fn of(plan: &Plan, rows: &[Row]) -> anyhow::Result<Self> {
        let dense = Format::PACKED.map(|format| plan.in_format(Codec::Dense, format, rows));
        let narrow = Codec::NARROW.map(|codec| plan.cheapest(|it| it == codec, rows));
        let all = dense.into_iter().chain(narrow).flatten();
        let mut compared: Vec<&Row> = all.filter(|row| row.validation_loss.is_some()).collect();
        let default = plan
            .cheapest(|_| true, rows)
            .context("no run is measured")?;
        if compared.iter().all(|row| row.point != default.point) {
            compared.push(default);
        }
        let loss = compared.iter().map(|row| row.loss()).fold(0.0, f64::max);
        ensure!(loss.is_finite(), "a run came to nothing");
        let place = compared.iter().position(|row| row.point == default.point);
        let contestant = |row: &&Row| {
            let steps = steps_to(row, loss).with_context(|| row.point.to_string())?;
            Ok(Contestant {
                name: row.point.what(),
                steps,
                point: row.point.clone(),
            })
        };
        Ok(Self {
            loss,
            all: compared
                .iter()
                .map(contestant)
                .collect::<anyhow::Result<_>>()?,
            default: place.context("the default is compared")?,
        })
    }

    /// The cheapest.
    pub(in super::super) fn default(&self) -> &Contestant {
        &self.all[self.default]
    }
}

impl Contestant {
    /// As a host writes the codec of a model of that width.
    pub(in super::super) fn keys(&self, d_model: u64) -> String {
        let codec = self.point.codec.keys();
        let rank = self.rank(d_model);
        rank.map_or(codec.to_owned(), |rank| format!("{codec}\nrank = {rank}"))
    }

    /// As a host writes the format.
    pub(in super::super) fn format(&self) -> &'static str {
        self.point.format.name()
    }

    /// Bytes of a token at one border of a model of that width, both ways, without ids and bases.
    pub(in super::super) fn bytes_a_token(&self, d_model: u64) -> f64 {
        let width = self.rank(d_model).unwrap_or(d_model);
        2.0 * self.point.format.row_bytes(width) as f64
    }

    /// The same share of the width.
    fn rank(&self, d_model: u64) -> Option<u64> {
        self.point.rank.map(|rank| rank * d_model / D_MODEL)
    }
}

/// Steps until the held-out loss is first that low; between two evaluations in proportion.
fn steps_to(row: &Row, loss: f64) -> Option<f64> {
    let step = |tokens: u64| tokens as f64 / (BATCH * CONTEXT) as f64;
    let (tokens, _, first) = *row.curve.first()?;
    if first <= loss {
        return Some(step(tokens));
    }
    row.curve.windows(2).find_map(|pair| {
        let [(before, _, higher), (after, _, lower)] = *pair else {
            return None;
        };
        let share = (higher - loss) / (higher - lower);
        (lower <= loss).then(|| step(before) + share * (step(after) - step(before)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(codec: Codec, rank: Option<u64>, format: Format, losses: [f64; 3]) -> Row {
        let point = Point {
            codec,
            rank,
            format,
            learning_rate: 2e-3,
            seed: 1,
            stages: 4,
            steps: 1_500,
        };
        let tokens = [500, 1_000, 1_500].map(|steps| steps * BATCH * CONTEXT);
        let curve = tokens.into_iter().zip(losses);
        Row {
            tokens: tokens[2],
            bytes_a_token: point.bytes_a_token(),
            validation_loss: Some(losses[2]),
            curve: curve.map(|(tokens, loss)| (tokens, loss, loss)).collect(),
            seconds: 1.0,
            load: None,
            point,
        }
    }

    #[test]
    fn all_are_asked_for_the_highest_of_their_last_losses() {
        let rows = [
            row(Codec::Dense, None, Format::F32, [2.5, 2.1, 2.0]),
            row(Codec::Dense, None, Format::F16, [2.5, 2.1, 2.0]),
            row(Codec::Subspace, Some(32), Format::F32, [2.5, 2.2, 2.01]),
            row(Codec::Subspace, Some(32), Format::Int8, [2.6, 2.3, 2.015]),
            // Cheaper, and too much worse.
            row(Codec::Subspace, Some(32), Format::Int4, [2.6, 2.3, 2.1]),
        ];
        // Rates were not swept: all have the plan's lowest.
        let rows = rows.map(|mut row| {
            row.point.learning_rate = 1e-3;
            row
        });
        let contest = Contest::of(&Plan::whole(), &rows).expect("there are runs");
        let names: Vec<&str> = contest.all.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["dense f16", "subspace 32 int8"]);
        assert_eq!(contest.default().name, "subspace 32 int8");
        assert_eq!(contest.loss, 2.015);
        // 85 hundredths of the way from 2.1 to 2.0.
        assert!((contest.all[0].steps - 1_425.0).abs() < 1e-6);
        assert!((contest.all[1].steps - 1_500.0).abs() < 1e-6);
        let default = contest.default();
        assert_eq!(default.keys(768), "codec = \"subspace\"\nrank = 192");
        assert_eq!(default.bytes_a_token(768), 2.0 * 194.0);
    }

    #[test]
    fn a_loss_that_was_never_reached_has_no_steps() {
        let row = row(Codec::Dense, None, Format::F32, [2.5, 2.1, 2.2]);
        assert_eq!(steps_to(&row, 2.0), None);
        assert_eq!(steps_to(&row, 2.6), Some(500.0));
        let steps = steps_to(&row, 2.3).expect("it came to that");
        assert!((steps - 750.0).abs() < 1e-6, "{steps}");
    }
}
