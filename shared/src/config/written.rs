//! A run as a host writes it: TOML over a preset.
//!
//! Every key may be left out; what is left out comes from `run.preset`, or follows from what was
//! written (`model.rank`, `model.stages`, `training.warmup_samples`). What was written and is not
//! understood is an error that names the key and the nearest right one: a typo must not become a
//! default that trains for a night.
//!
//! Begin with [`read`]; [`write()`] is its inverse. Sections that belong to a program (where its data lies,
//! which port it takes) are named by the caller and left alone.
//!
//! Invariant: `read(write(config)) == config`, and equal configurations write equal text.

mod section;

use toml::{Table, Value};

use section::{Section, check_names, lookup, named};

use super::check::RunConfigError;
use super::model::{Basis, Codec, ModelConfig, ModelConfigError, NumberFormat};
use super::presets::{PRESETS, warmup_of};
use super::run::{MergeKind, RunConfig};
use crate::units::Span;

/// Every section with its keys.
const SECTIONS: &[(&str, &[&str])] = &[
    ("run", &["name", "seed", "preset"]),
    (
        "model",
        &[
            "d_model",
            "heads",
            "d_ff",
            "blocks",
            "stages",
            "vocabulary",
            "context",
            "codec",
            "rank",
            "anchor",
            "basis",
            "adapt_rounds",
        ],
    ),
    ("wire", &["format"]),
    (
        "training",
        &[
            "batch",
            "microbatches",
            "learning_rate",
            "clip",
            "samples",
            "warmup_samples",
        ],
    ),
    (
        "schedule",
        &[
            "round_steps",
            "round_max_seconds",
            "seats_min",
            "pipelines_max",
            "eval_rounds",
            "eval_microbatches",
            "checkpoint_minutes",
            "rewind_wait_seconds",
        ],
    ),
    (
        "merge",
        &["kind", "format", "learning_rate", "momentum", "group_max"],
    ),
];

/// Why a written configuration was refused. Each text says what to change.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WrittenError {
    /// Not TOML.
    #[error("not valid TOML: {reason}")]
    Syntax {
        /// What the reader said, with the place.
        reason: String,
    },
    /// A section that nobody reads.
    #[error("there is no section [{section}]; {advice}")]
    Section {
        /// As it was written.
        section: String,
        /// The nearest right one, or all of them.
        advice: String,
    },
    /// A key that its section does not have.
    #[error("[{section}] has no key `{key}`; {advice}")]
    Key {
        /// The section.
        section: &'static str,
        /// The key as it was written.
        key: String,
        /// The nearest right one, or all of them.
        advice: String,
    },
    /// A key in front of the first section.
    #[error("`{key}` stands outside any section; {advice}")]
    Outside {
        /// The key as it was written.
        key: String,
        /// The nearest right one, or all sections.
        advice: String,
    },
    /// A value of another type.
    #[error("{key} must be {wanted}, not {found}")]
    Type {
        /// Section and key.
        key: String,
        /// What it must be.
        wanted: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A negative number where none can be.
    #[error("{key} is {value}, must not be negative")]
    Negative {
        /// Section and key.
        key: String,
        /// What it was.
        value: i64,
    },
    /// A number that no machine could hold the run of.
    #[error("{key} is {value}, far too large")]
    TooLarge {
        /// Section and key.
        key: String,
        /// What it was.
        value: i64,
    },
    /// A word that is none of those to choose from.
    #[error("{key} is \"{value}\"; {advice}")]
    Choice {
        /// Section and key.
        key: String,
        /// What it was.
        value: String,
        /// The nearest right one, or all of them.
        advice: String,
    },
    /// A rank for a codec without one.
    #[error("model.rank is written, but model.codec is \"dense\": leave out one of them")]
    RankWithoutSubspace,
    /// Anchors for a codec without them.
    #[error("model.anchor is written, but model.codec is not \"projector\": leave out one of them")]
    AnchorWithoutProjector,
    /// What becomes of bases, for a codec without bases of its borders.
    #[error("model.basis is written, but model.codec is not \"projector\": leave out one of them")]
    BasisWithoutProjector,
    /// How often the subspace turns, for a codec that has none.
    #[error(
        "model.adapt_rounds is written, but model.codec is not \"subspace\": leave out one of them"
    )]
    AdaptsWithoutSubspace,
    /// Understood, but no run can be made of it.
    #[error(transparent)]
    Invalid(#[from] RunConfigError),
}

/// Reads a run's configuration. Sections named in `of_others` are the caller's and are not looked at.
///
/// # Errors
/// The first thing that is not understood, or out of range.
pub fn read(text: &str, of_others: &[&str]) -> Result<RunConfig, WrittenError> {
    let document: Table = text
        .parse()
        .map_err(|error: toml::de::Error| WrittenError::Syntax {
            reason: error.to_string().trim_end().to_owned(),
        })?;
    check_names(&document, of_others)?;
    let run = Section::of(&document, "run");
    let mut config = RunConfig::preset(run.choice("preset", &PRESETS)?.unwrap_or(PRESETS[0]))
        .expect("every name in PRESETS is a preset");
    run.text("name", &mut config.name)?;
    run.number("seed", &mut config.seed)?;
    read_model(&Section::of(&document, "model"), &mut config.model)?;
    read_format(&Section::of(&document, "wire"), &mut config.format)?;
    read_training(&Section::of(&document, "training"), &mut config)?;
    read_schedule(&Section::of(&document, "schedule"), &mut config)?;
    read_merge(&Section::of(&document, "merge"), &mut config)?;
    config.validate().map_err(as_written)?;
    Ok(config)
}

const FORMATS: [(&str, NumberFormat); 4] = [
    ("f32", NumberFormat::F32),
    ("f16", NumberFormat::F16),
    ("int8", NumberFormat::Int8),
    ("int4", NumberFormat::Int4),
];

const BASES: [(&str, Basis); 2] = [("fixed", Basis::Fixed), ("learned", Basis::Learned)];

const MERGE_KINDS: [(&str, MergeKind); 2] = [
    ("outer", MergeKind::Outer),
    ("gradient", MergeKind::Gradient),
];

fn read_format(section: &Section<'_>, format: &mut NumberFormat) -> Result<(), WrittenError> {
    let formats = FORMATS.map(|(name, _)| name);
    if let Some(name) = section.choice("format", &formats)? {
        *format = lookup(&FORMATS, name);
    }
    Ok(())
}

fn read_model(section: &Section<'_>, model: &mut ModelConfig) -> Result<(), WrittenError> {
    section.number("d_model", &mut model.d_model)?;
    section.number("heads", &mut model.heads)?;
    section.number("d_ff", &mut model.d_ff)?;
    if section.number("blocks", &mut model.blocks)? {
        model.stages = model.blocks;
    }
    section.number("stages", &mut model.stages)?;
    section.number("vocabulary", &mut model.vocabulary)?;
    section.number("context", &mut model.context)?;
    let mut rank = (model.d_model / 4).max(1);
    let rank_written = section.number("rank", &mut rank)?;
    let mut anchor = (model.d_model / 4).max(1);
    let anchor_written = section.number("anchor", &mut anchor)?;
    let bases = BASES.map(|(name, _)| name);
    let basis = section.choice("basis", &bases)?;
    let codec = section.choice("codec", &["subspace", "projector", "dense"])?;
    if basis.is_some() && codec != Some("projector") {
        return Err(WrittenError::BasisWithoutProjector);
    }
    let basis = basis.map_or(Basis::Fixed, |name| lookup(&BASES, name));
    let mut adapt_rounds = 0;
    let adapt_written = section.number("adapt_rounds", &mut adapt_rounds)?;
    if adapt_written && codec.is_some_and(|codec| codec != "subspace") {
        return Err(WrittenError::AdaptsWithoutSubspace);
    }
    if anchor_written && codec != Some("projector") {
        return Err(WrittenError::AnchorWithoutProjector);
    }
    model.codec = match codec {
        Some("dense") if rank_written => return Err(WrittenError::RankWithoutSubspace),
        Some("dense") => Codec::Dense,
        Some("projector") => Codec::Projector {
            rank,
            anchor,
            basis,
        },
        Some(_) | None => Codec::Subspace { rank, adapt_rounds },
    };
    Ok(())
}

fn read_training(section: &Section<'_>, config: &mut RunConfig) -> Result<(), WrittenError> {
    let training = &mut config.training;
    section.number("batch", &mut training.batch)?;
    section.number("microbatches", &mut training.microbatches)?;
    section.float("learning_rate", &mut training.learning_rate)?;
    section.float("clip", &mut training.clip)?;
    if section.number("samples", &mut training.samples)? {
        training.warmup_samples = warmup_of(training.samples);
    }
    section.number("warmup_samples", &mut training.warmup_samples)?;
    Ok(())
}

fn read_schedule(section: &Section<'_>, config: &mut RunConfig) -> Result<(), WrittenError> {
    let schedule = &mut config.schedule;
    section.number("round_steps", &mut schedule.round_steps)?;
    section.span("round_max_seconds", 1.0, &mut schedule.round_max)?;
    section.number("seats_min", &mut schedule.seats_min)?;
    section.number("pipelines_max", &mut schedule.pipelines_max)?;
    section.number("eval_rounds", &mut schedule.eval_rounds)?;
    section.number("eval_microbatches", &mut schedule.eval_microbatches)?;
    section.span("checkpoint_minutes", 60.0, &mut schedule.checkpoint)?;
    section.span("rewind_wait_seconds", 1.0, &mut schedule.rewind_wait)?;
    Ok(())
}

fn read_merge(section: &Section<'_>, config: &mut RunConfig) -> Result<(), WrittenError> {
    let kinds = MERGE_KINDS.map(|(name, _)| name);
    if let Some(name) = section.choice("kind", &kinds)? {
        config.merge.kind = lookup(&MERGE_KINDS, name);
    }
    read_format(section, &mut config.merge.format)?;
    section.float("learning_rate", &mut config.merge.learning_rate)?;
    section.float("momentum", &mut config.merge.momentum)?;
    section.number("group_max", &mut config.merge.group_max)?;
    Ok(())
}

/// An error of the model's sizes under the key that a host writes.
fn as_written(mut error: RunConfigError) -> RunConfigError {
    if let RunConfigError::Model(ModelConfigError::Range { key, .. }) = &mut error {
        *key = key.strip_prefix("codec.").unwrap_or(key);
    }
    error
}

/// The whole of a valid configuration, every key in a fixed order.
#[must_use]
pub fn write(config: &RunConfig) -> String {
    let RunConfig {
        name,
        seed,
        model,
        format,
        training,
        schedule,
        merge,
    } = config;
    let (codec, rank, projector) = match model.codec {
        Codec::Dense => ("dense", None, None),
        Codec::Subspace { rank, .. } => ("subspace", Some(rank), None),
        Codec::Projector {
            rank,
            anchor,
            basis,
        } => ("projector", Some(rank), Some((anchor, basis))),
    };
    let name_of = |format: NumberFormat| named(&FORMATS, format);
    let section = |name: &str, values: Vec<(&str, Value)>| {
        let lines: String = values
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect();
        format!("[{name}]\n{lines}")
    };
    let mut model_values = vec![
        ("d_model", integer(model.d_model)),
        ("heads", integer(model.heads)),
        ("d_ff", integer(model.d_ff)),
        ("blocks", integer(model.blocks)),
        ("stages", integer(model.stages)),
        ("vocabulary", integer(model.vocabulary)),
        ("context", integer(model.context)),
        ("codec", codec.into()),
    ];
    model_values.extend(rank.map(|rank| ("rank", integer(rank))));
    if let Codec::Subspace { adapt_rounds, .. } = model.codec {
        model_values.push(("adapt_rounds", Value::Integer(adapt_rounds.into())));
    }
    if let Some((anchor, basis)) = projector {
        model_values.push(("anchor", integer(anchor)));
        model_values.push(("basis", named(&BASES, basis).into()));
    }
    let training_values = vec![
        ("batch", integer(training.batch)),
        ("microbatches", integer(training.microbatches)),
        ("learning_rate", training.learning_rate.into()),
        ("clip", training.clip.into()),
        ("samples", integer(training.samples)),
        ("warmup_samples", integer(training.warmup_samples)),
    ];
    let schedule_values = vec![
        ("round_steps", integer(schedule.round_steps)),
        ("round_max_seconds", span_in(schedule.round_max, 1.0)),
        ("seats_min", integer(schedule.seats_min)),
        ("pipelines_max", integer(schedule.pipelines_max)),
        ("eval_rounds", integer(schedule.eval_rounds)),
        ("eval_microbatches", integer(schedule.eval_microbatches)),
        ("checkpoint_minutes", span_in(schedule.checkpoint, 60.0)),
        ("rewind_wait_seconds", span_in(schedule.rewind_wait, 1.0)),
    ];
    let merge_values = vec![
        ("kind", named(&MERGE_KINDS, merge.kind).into()),
        ("format", name_of(merge.format).into()),
        ("learning_rate", merge.learning_rate.into()),
        ("momentum", merge.momentum.into()),
        ("group_max", integer(merge.group_max)),
    ];
    [
        section(
            "run",
            vec![("name", name.as_str().into()), ("seed", integer(*seed))],
        ),
        section("model", model_values),
        section("wire", vec![("format", name_of(*format).into())]),
        section("training", training_values),
        section("schedule", schedule_values),
        section("merge", merge_values),
    ]
    .join("\n")
}

fn integer(value: impl TryInto<i64>) -> Value {
    let value = value.try_into().ok();
    Value::Integer(value.expect("a validated configuration has no larger number"))
}

fn span_in(span: Span, unit_secs: f64) -> Value {
    Value::Float(span.as_secs_f64() / unit_secs)
}

#[cfg(test)]
mod tests;
