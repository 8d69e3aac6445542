//! Validation loss after equal tokens against bytes a token: which codec, rank and number format to train with.
//!
//! Each point trains preset `tiny` in one process (`examples/alone`), cut at every border, so that what volunteers would send
//! is packed and unpacked as it would be; `wire` shows that this is the same run as over the network, and its bytes the
//! formula's. The points follow from each other ([`plan`]): a small sweep of the learning rate for each codec, all ranks in
//! f32, all formats at each codec's best rank, then the points that decide with more seeds and with more borders.
//! Each is written down as soon as it is measured, and `--resume` goes on from there, whatever interrupted it.

mod contest;
mod plan;
mod plot;
mod point;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use ::tests::paths;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Figures, load, mean, save, save_tokens, saved};
pub(super) use contest::{Contest, Contestant, contest};
use plan::{Phase, Plan};
use point::Point;

/// Positions of a sequence, sequences of a step, and of a microbatch.
const CONTEXT: u64 = 128;
const BATCH: u64 = 8;
const MICROBATCHES: u64 = 2;
/// Microbatches of held-out text an evaluation: 32,768 tokens; and with `--quick`.
const EVAL_MICROBATCHES: u64 = 64;
const EVAL_MICROBATCHES_QUICK: u64 = 2;
/// What `examples/alone` says of a run whose numbers are not finite any more.
const DIVERGED: &str = "NonFinite";
/// Evaluations of a run.
const EVALUATIONS: u64 = 6;

/// What was measured of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
    point: Point,
    tokens: u64,
    /// Bytes of a token at one border, both ways, ids of tokens included.
    bytes_a_token: f64,
    /// None where it came to numbers that are not finite.
    validation_loss: Option<f64>,
    /// Tokens, mean training loss since the entry before, validation loss.
    curve: Vec<(u64, f64, f64)>,
    seconds: f64,
    load: Option<f64>,
}

/// Measures what the plan asks for, and writes the file after each point.
pub(super) fn frontier(asked: &Figures, data: &Path) -> anyhow::Result<()> {
    let plan = if asked.quick {
        Plan::quick()
    } else {
        Plan::whole()
    };
    let folder = paths::programs()?.join("figures-frontier");
    std::fs::create_dir_all(&folder)?;
    let folder = tempfile::Builder::new().tempdir_in(folder)?;
    let first = plan.points(Phase::Sweep, &[])[0].config(1);
    let digest = save_tokens(first, data, folder.path())?;
    let name = data.file_name().map(|name| name.to_string_lossy());
    let text = json!({ "name": name, "tokens_digest": digest });
    let mut bench = Bench {
        eval_microbatches: if asked.quick {
            EVAL_MICROBATCHES_QUICK
        } else {
            EVAL_MICROBATCHES
        },
        is_quick: asked.quick,
        jobs: asked
            .jobs
            .unwrap_or(std::thread::available_parallelism()?.get()),
        rows: if asked.resume { kept(&text)? } else { vec![] },
        text,
        folder: folder.path().to_owned(),
    };
    loop {
        let points = plan.next(&bench.rows);
        if points.is_empty() {
            break;
        }
        bench.measure(points)?;
    }
    for line in plan.verdict(&bench.rows) {
        println!("{line}");
    }
    if asked.quick {
        return Ok(());
    }
    plot::draw(&plan, &bench.rows)
}

struct Bench {
    eval_microbatches: u64,
    is_quick: bool,
    jobs: usize,
    rows: Vec<Row>,
    text: Value,
    folder: PathBuf,
}

impl Bench {
    /// Trains all of them, as many at once as there are cores.
    fn measure(&mut self, points: Vec<Point>) -> anyhow::Result<()> {
        let queue: Mutex<VecDeque<Point>> = Mutex::new(points.into());
        let (folder, jobs, evaluated) = (self.folder.clone(), self.jobs, self.eval_microbatches);
        let bench = Mutex::new(self);
        let work = || -> anyhow::Result<()> {
            loop {
                let next = queue.lock().expect("nobody panics with it").pop_front();
                let Some(point) = next else { return Ok(()) };
                let row =
                    train(&point, evaluated, &folder).with_context(|| format!("{point:?}"))?;
                println!("{}", row.brief());
                let mut bench = bench.lock().expect("nobody panics with it");
                bench.rows.push(row);
                bench.write()?;
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|it| it.join().expect("it reports what fails"))
        })
    }

    fn write(&self) -> anyhow::Result<()> {
        if self.is_quick {
            return Ok(());
        }
        let mut rows = self.rows.clone();
        rows.sort_by_key(|row| row.point.order());
        let figures = json!({
            "preset": "tiny",
            "text": self.text,
            "context": CONTEXT,
            "batch": BATCH,
            "evaluated_tokens": EVAL_MICROBATCHES * BATCH / MICROBATCHES * CONTEXT,
            "runs": rows,
        });
        save("frontier", &figures)
    }
}

/// What was measured before, on the same text.
fn kept(text: &Value) -> anyhow::Result<Vec<Row>> {
    let Some(mut figures) = saved("frontier")? else {
        return Ok(vec![]);
    };
    ensure!(
        figures["text"] == *text,
        "what is in tests/figures was measured on another text: leave out --resume to begin anew"
    );
    Ok(serde_json::from_value(figures["runs"].take())?)
}

/// All that was measured.
fn written() -> anyhow::Result<Vec<Row>> {
    let figures = saved("frontier")?;
    let mut figures = figures.context("cargo xtask figures frontier comes first")?;
    Ok(serde_json::from_value(figures["runs"].take())?)
}

fn train(point: &Point, eval_microbatches: u64, folder: &Path) -> anyhow::Result<Row> {
    let config = tempfile::NamedTempFile::new_in(folder)?;
    std::fs::write(config.path(), point.config(eval_microbatches))?;
    let load_before = load();
    let output = Command::new(paths::program("examples/alone")?)
        .arg(config.path())
        .arg(folder)
        .args([EVALUATIONS.to_string(), point.stages.to_string()])
        // So many train at once as there are cores.
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let has_diverged = said.contains(DIVERGED);
    ensure!(
        output.status.success() || has_diverged,
        "it ended with {}: {said}",
        output.status
    );
    let written = String::from_utf8(output.stdout)?;
    let steps = point.steps / EVALUATIONS;
    let mut curve = Vec::new();
    let mut seconds = 0.0;
    for line in written.lines() {
        let event: Value = serde_json::from_str(line)?;
        let number = |name: &str| event[name].as_f64().with_context(|| name.to_owned());
        let tokens = (curve.len() as u64 + 1) * steps * BATCH * CONTEXT;
        curve.push((tokens, mean(&event["losses"])?, number("validation_loss")?));
        seconds += number("seconds")?;
    }
    let last = curve.last().map(|(_, _, validation_loss)| *validation_loss);
    ensure!(last.is_some() || has_diverged, "a run has rounds");
    Ok(Row {
        point: point.clone(),
        tokens: point.steps * BATCH * CONTEXT,
        bytes_a_token: point.bytes_a_token(),
        validation_loss: last.filter(|_| !has_diverged),
        curve,
        seconds,
        load: load_before,
    })
}

impl Row {
    /// A run that came to nothing is worse than any other.
    fn loss(&self) -> f64 {
        self.validation_loss.unwrap_or(f64::INFINITY)
    }

    fn brief(&self) -> String {
        format!(
            "{}: validation loss {:.4?}, {:.1} bytes a token and border, {:.0} s",
            self.point, self.validation_loss, self.bytes_a_token, self.seconds
        )
    }
}
