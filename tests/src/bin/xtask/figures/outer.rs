//! What merging costs in loss and in bytes: two pipelines that merge, beside one alone, after as many samples.
//!
//! All runs are real: a host, one headless volunteer a pipeline that holds the whole model, merges over WebRTC. So all that a
//! volunteer sends to the other one is a merge, or a copy of a state. The model is smaller than any preset: what is compared
//! is the merge, on text, with validation.

use std::path::Path;
use std::time::Duration;

use ::tests::run::{Host, HostOptions};
use anyhow::Context;
use serde_json::{Value, json};

use super::wire::last_word;
use super::{Figures, NAMES, load, save};

/// Samples of a step of one pipeline.
const BATCH: u64 = 16;
/// Steps of a round of the outer kind.
const ROUND_STEPS: u64 = 20;
/// Microbatches of held-out text an evaluation: 4 samples each.
const EVAL_MICROBATCHES: u64 = 32;
/// For a run to reach its length.
const RUN_MAX: Duration = Duration::from_secs(3_600);

/// A way to train as many samples.
#[derive(Clone, Copy, Debug)]
struct Setting {
    pipelines: u64,
    kind: &'static str,
    format: &'static str,
}

const SETTINGS: [Setting; 4] = [
    Setting {
        pipelines: 1,
        kind: "outer",
        format: "f32",
    },
    Setting {
        pipelines: 2,
        kind: "outer",
        format: "f32",
    },
    Setting {
        pipelines: 2,
        kind: "outer",
        format: "int8",
    },
    Setting {
        pipelines: 2,
        kind: "gradient",
        format: "int8",
    },
];

/// Measures, and writes the file.
pub(super) fn outer(asked: &Figures, data: &Path) -> anyhow::Result<()> {
    // Rounds of two pipelines.
    let samples = asked.rounds * 2 * ROUND_STEPS * BATCH;
    let mut rows = Vec::new();
    for setting in SETTINGS {
        let row = setting.run(samples, data);
        let row = row.with_context(|| format!("{setting:?}"))?;
        println!(
            "{} x {} {}: validation loss {}, merge bytes a volunteer and round {}",
            setting.pipelines,
            setting.kind,
            setting.format,
            row["validation_loss"],
            row["merge_bytes_a_volunteer_and_round"],
        );
        rows.push(row);
    }
    let figures = json!({
        "model": { "d_model": 64, "blocks": 4, "context": 64, "rank": 16 },
        "batch": BATCH,
        "round_steps": ROUND_STEPS,
        "samples": samples,
        "evaluated_samples": EVAL_MICROBATCHES * 4,
        "runs": rows,
    });
    save("outer", &figures)
}

impl Setting {
    fn round_steps(self) -> u64 {
        if self.kind == "gradient" {
            1
        } else {
            ROUND_STEPS
        }
    }

    fn config(self, samples: u64) -> String {
        let Self {
            pipelines,
            kind,
            format,
        } = self;
        let round_steps = self.round_steps();
        // Once a round of the outer kind, or after as many steps.
        let eval_rounds = ROUND_STEPS / round_steps;
        format!(
            "[run]\nname = \"figures\"\npreset = \"tiny\"\n\n\
             [model]\nd_model = 64\nheads = 2\nd_ff = 176\ncontext = 64\nrank = 16\n\n\
             [training]\nbatch = {BATCH}\nmicrobatches = 4\nlearning_rate = 2e-3\nsamples = {samples}\n\n\
             [schedule]\nround_steps = {round_steps}\nseats_min = 1\npipelines_max = {pipelines}\n\
             eval_rounds = {eval_rounds}\neval_microbatches = {EVAL_MICROBATCHES}\n\n\
             [merge]\nkind = \"{kind}\"\nformat = \"{format}\"\n"
        )
    }

    fn run(self, samples: u64, data: &Path) -> anyhow::Result<Value> {
        let mut host = Host::start(HostOptions {
            config: self.config(samples),
            data: data.to_owned(),
            port: 0,
            arguments: vec![],
        })?;
        let names = &NAMES[..usize::try_from(self.pipelines)?];
        let volunteers: anyhow::Result<Vec<_>> =
            names.iter().map(|name| host.volunteer(name, &[])).collect();
        let mut volunteers = volunteers?;
        let load_before = load();
        let is_over = |run: &Value| run["samples"].as_u64() >= Some(samples);
        host.wait_until("all samples", RUN_MAX, is_over)?;
        let carried: anyhow::Result<Vec<Value>> = volunteers.iter_mut().map(last_word).collect();
        let run = host.api()?;
        let rounds = run["rounds"].as_array().context("rounds")?;
        let curve: Vec<Value> = rounds
            .iter()
            .filter(|round| round["validation_loss"].is_number())
            .map(|round| {
                json!({
                    "samples": round["samples"], "validation_loss": round["validation_loss"],
                    "pipelines": round["pipelines"],
                })
            })
            .collect();
        let last = curve.last().context("a run is evaluated")?;
        let committed = run["round"].as_u64().context("a round")?;
        let merged = rounds
            .iter()
            .filter(|it| it["pipelines"].as_u64() > Some(1));
        let merge_bytes: u64 = carried?
            .iter()
            .filter_map(|one| one.pointer("/frames/merge/message_bytes")?.as_u64())
            .sum();
        Ok(json!({
            "pipelines": self.pipelines,
            "kind": self.kind,
            "format": self.format,
            "rounds": committed,
            "of_the_newest_rounds": rounds.len(),
            "merged": merged.count(),
            "validation_loss": last["validation_loss"],
            "merge_bytes_a_volunteer_and_round":
                merge_bytes as f64 / self.pipelines as f64 / committed as f64,
            "curve": curve,
            "load_before": load_before,
        }))
    }
}
