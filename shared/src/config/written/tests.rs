//! What a host writes, and what it is told where that is no run.

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn check(text: &str, expected: Expect) {
    match read(text, &["data"]) {
        Ok(config) => expected.assert_eq(&write(&config)),
        Err(error) => expected.assert_eq(&error.to_string()),
    }
}

/// Every refusal on a line of its own.
fn check_refusals(texts: &[&str], expected: Expect) {
    let lines = texts.iter().map(|text| {
        let error = read(text, &["data"]).expect_err(text);
        format!("{error}\n")
    });
    expected.assert_eq(&lines.collect::<String>());
}

#[test]
fn nothing_written_is_the_tiny_preset() {
    check(
        "",
        expect![[r#"
            [run]
            name = "tiny"
            seed = 1

            [model]
            d_model = 128
            heads = 4
            d_ff = 352
            blocks = 4
            stages = 4
            vocabulary = 256
            context = 128
            codec = "subspace"
            rank = 32
            adapt_rounds = 0

            [wire]
            format = "int8"

            [training]
            batch = 32
            microbatches = 8
            learning_rate = 0.002
            clip = 1.0
            samples = 64000
            warmup_samples = 1280

            [schedule]
            round_steps = 20
            round_max_seconds = 600.0
            seats_min = 1
            pipelines_max = 1
            eval_rounds = 1
            eval_microbatches = 8
            checkpoint_minutes = 5.0
            rewind_wait_seconds = 15.0

            [merge]
            kind = "outer"
            format = "int8"
            learning_rate = 0.7
            momentum = 0.9
            group_max = 16
        "#]],
    );
    assert_eq!(
        read("", &[]),
        Ok(RunConfig::preset("tiny").expect("a preset"))
    );
}

#[test]
fn what_is_written_replaces_the_preset_and_what_follows_from_it_follows() {
    check(
        r#"
            [run]
            name = "deep and narrow"
            preset = "small"
            seed = 42
            [model]
            d_model = 96
            blocks = 10
            [wire]
            format = "f16"
            [training]
            samples = 10_000
            learning_rate = 1
            [schedule]
            checkpoint_minutes = 0.5
            pipelines_max = 16
            [merge]
            format = "f32"
            momentum = 0
            [data]
            anything = "is the caller's"
        "#,
        expect![[r#"
            [run]
            name = "deep and narrow"
            seed = 42

            [model]
            d_model = 96
            heads = 6
            d_ff = 1024
            blocks = 10
            stages = 10
            vocabulary = 4096
            context = 256
            codec = "subspace"
            rank = 24
            adapt_rounds = 0

            [wire]
            format = "f16"

            [training]
            batch = 64
            microbatches = 16
            learning_rate = 1.0
            clip = 1.0
            samples = 10000
            warmup_samples = 200

            [schedule]
            round_steps = 20
            round_max_seconds = 600.0
            seats_min = 1
            pipelines_max = 16
            eval_rounds = 5
            eval_microbatches = 8
            checkpoint_minutes = 0.5
            rewind_wait_seconds = 15.0

            [merge]
            kind = "outer"
            format = "f32"
            learning_rate = 0.7
            momentum = 0.0
            group_max = 16
        "#]],
    );
    check(
        "[model]\ncodec = \"dense\"",
        expect![[r#"
        [run]
        name = "tiny"
        seed = 1

        [model]
        d_model = 128
        heads = 4
        d_ff = 352
        blocks = 4
        stages = 4
        vocabulary = 256
        context = 128
        codec = "dense"

        [wire]
        format = "int8"

        [training]
        batch = 32
        microbatches = 8
        learning_rate = 0.002
        clip = 1.0
        samples = 64000
        warmup_samples = 1280

        [schedule]
        round_steps = 20
        round_max_seconds = 600.0
        seats_min = 1
        pipelines_max = 1
        eval_rounds = 1
        eval_microbatches = 8
        checkpoint_minutes = 5.0
        rewind_wait_seconds = 15.0

        [merge]
        kind = "outer"
        format = "int8"
        learning_rate = 0.7
        momentum = 0.9
        group_max = 16
    "#]],
    );
}

#[test]
fn a_typo_is_told_with_the_nearest_right_name() {
    check_refusals(
        &[
            "[training]\nbacth = 3",
            "[training]\nlearningrate = 3",
            "[training]\nzebra = 3",
            "[training]\nseats_min = 3",
            "[schedule]\nmomentum = 0.9",
            "[merge]\nmomentun = 0.9",
            "[mergee]\nmomentum = 0.9",
            "[trainning]\nbatch = 3",
            "[zebra]\nbatch = 3",
            "batch = 3",
            "bacth = 3",
            "model = 3",
            "[run]\npreset = \"tinny\"",
            "[run]\npreset = \"\"",
            "[model]\ncodec = \"sub-space\"",
            "[wire]\nformat = \"bf16\"",
            "[wire]\nformat = \"zebra\"",
            "[wire\nformat = \"f16\"",
        ],
        expect![[r#"
            [training] has no key `bacth`; did you mean `batch`?
            [training] has no key `learningrate`; did you mean `learning_rate`?
            [training] has no key `zebra`; it is one of batch, microbatches, learning_rate, clip, samples, warmup_samples
            [training] has no key `seats_min`; it belongs to [schedule]
            [schedule] has no key `momentum`; it belongs to [merge]
            [merge] has no key `momentun`; did you mean `momentum`?
            there is no section [mergee]; did you mean `merge`?
            there is no section [trainning]; did you mean `training`?
            there is no section [zebra]; it is one of run, model, wire, training, schedule, merge, data
            `batch` stands outside any section; it belongs to [training]
            `bacth` stands outside any section; did you mean `batch`?
            model must be a [section], not a number
            run.preset is "tinny"; did you mean `tiny`?
            run.preset is ""; it is one of tiny, small, base
            model.codec is "sub-space"; did you mean `subspace`?
            wire.format is "bf16"; did you mean `f16`?
            wire.format is "zebra"; it is one of f32, f16, int8, int4
            not valid TOML: TOML parse error at line 1, column 6
              |
            1 | [wire
              |      ^
            unclosed table, expected `]`
        "#]],
    );
}

#[test]
fn a_value_of_another_type_or_out_of_range_is_told_with_what_it_must_be() {
    check_refusals(
        &[
            "[run]\nname = 3",
            "[run]\nname = \"\"",
            "[run]\nname = \"a\\u001bb\"",
            "[run]\nseed = -1",
            "[training]\nbatch = \"32\"",
            "[training]\nbatch = 0",
            "[training]\nbatch = 70000",
            "[training]\nmicrobatches = 7",
            "[training]\nlearning_rate = nan",
            "[training]\nlearning_rate = 0",
            "[training]\nclip = true",
            "[training]\nsamples = 31",
            "[training]\nsamples = 1000\nwarmup_samples = 1001",
            "[schedule]\nround_max_seconds = 0.5",
            "[schedule]\ncheckpoint_minutes = -1",
            "[schedule]\nseats_min = 5",
            "[schedule]\nseats_min = 70000",
            "[schedule]\npipelines_max = 0",
            "[schedule]\npipelines_max = 1001",
            "[schedule]\npipelines_max = 17\n[merge]\ngroup_max = 2",
            "[schedule]\npipelines_max = 70000",
            "[merge]\nkind = \"gradients\"",
            "[merge]\nkind = \"gradient\"",
            "[merge]\nformat = \"bf16\"",
            "[merge]\nformat = 8",
            "[merge]\nlearning_rate = 0",
            "[merge]\nlearning_rate = 2.1",
            "[merge]\nmomentum = 1",
            "[merge]\nmomentum = -0.1",
            "[merge]\nmomentum = nan",
            "[model]\nrank = 129",
            "[model]\nrank = 32\ncodec = \"dense\"",
            "[model]\nanchor = 3",
            "[model]\nanchor = 129\ncodec = \"projector\"",
            "[model]\nbasis = \"learned\"",
            "[model]\ncodec = \"dense\"\nadapt_rounds = 4",
            "[model]\nadapt_rounds = 4\n[merge]\nkind = \"gradient\"\n[schedule]\nround_steps = 1",
            "[model]\nheads = 3",
            "[model]\nheads = -3",
            "[model]\nstages = 5",
            "[model]\nblocks = 9223372036854775807",
            "[model]\nd_model = 4096\nd_ff = 65536\nblocks = 4\nstages = 1\nvocabulary = 65536",
            "[training]\nbatch = 60000\nmicrobatches = 1\n[wire]\nformat = \"f32\"",
        ],
        expect![[r#"
            run.name must be a text in quotes, not a number
            run.name must be 1 to 64 printable characters
            run.name must be 1 to 64 printable characters
            run.seed is -1, must not be negative
            training.batch must be a whole number, not a text
            training.batch is 0, must be between 1 and 65535: samples a step
            training.batch is 70000, must be between 1 and 65535: samples a step
            training.batch 32 must be a multiple of training.microbatches 7
            training.learning_rate is NaN, must be between 0.00000001 and 1: the presets have 6e-4 to 2e-3
            training.learning_rate is 0, must be between 0.00000001 and 1: the presets have 6e-4 to 2e-3
            training.clip must be a number, not true or false
            training.samples 31 must be at least training.batch 32: the run would end before its first step
            training.warmup_samples 1001 must be at most training.samples 1000
            schedule.round_max_seconds is 0.5, must be between 1 and 86400: the longest a round may take
            schedule.checkpoint_minutes is -1, must be between 0.02 and 1440: the presets have 5
            schedule.seats_min 5 must be at most model.stages 4: a seat holds at least one stage
            schedule.seats_min is 70000, must be between 1 and 512: 1 lets a single volunteer hold all stages
            schedule.pipelines_max is 0, must be between 1 and 1000: pipelines that train beside each other and merge
            schedule.pipelines_max is 1001, must be between 1 and 1000: pipelines that train beside each other and merge
            merge.group_max is 2, room for 16 pipelines to merge: raise it, or lower schedule.pipelines_max
            schedule.pipelines_max is 70000, must be between 1 and 1000: pipelines that train beside each other and merge
            merge.kind is "gradients"; did you mean `gradient`?
            merge.kind is "gradient", so schedule.round_steps must be 1, not 20: gradients are merged after each step
            merge.format is "bf16"; did you mean `f16`?
            merge.format must be a text in quotes, not a number
            merge.learning_rate is 0, must be between 0.000001 and 2: of the outer step, usually 0.7
            merge.learning_rate is 2.1, must be between 0.000001 and 2: of the outer step, usually 0.7
            merge.momentum is 1, must be between 0 and 0.999: of the outer step, usually 0.9
            merge.momentum is -0.1, must be between 0 and 0.999: of the outer step, usually 0.9
            merge.momentum is NaN, must be between 0 and 0.999: of the outer step, usually 0.9
            model.rank is 129, must be between 1 and 128
            model.rank is written, but model.codec is "dense": leave out one of them
            model.anchor is written, but model.codec is not "projector": leave out one of them
            model.anchor is 129, must be between 1 and 128
            model.basis is written, but model.codec is not "projector": leave out one of them
            model.adapt_rounds is written, but model.codec is not "subspace": leave out one of them
            merge.kind is "gradient", so model.adapt_rounds must be 0, not 4: such rounds are one step, too few to turn the subspace by
            model.d_model 128 must be a multiple of twice model.heads 3
            model.heads is -3, must not be negative
            model.stages is 5, must be between 1 and 4
            model.blocks is 9223372036854775807, must be between 1 and 512
            stage 0 takes 45902905344 bytes with its moments, more than 4294967296: raise model.stages
            a microbatch takes 998520000 bytes on the wire, more than 33554432: raise training.microbatches, or lower training.batch or model.context
        "#]],
    );
}

#[test]
fn state_that_moves_has_the_outer_momentum_where_pipelines_merge() {
    let mut config = RunConfig::preset("tiny").expect("a preset");
    let values = config.model.parameter_count_of(1) as u64;
    assert!(!config.merges());
    assert_eq!(config.stage_state_bytes(1), 12 * values);
    config.schedule.pipelines_max = 2;
    assert!(config.merges());
    assert_eq!(config.stage_state_bytes(1), 16 * values);
}

#[test]
fn a_configuration_from_elsewhere_is_checked_like_a_written_one() {
    let mut config = RunConfig::preset("tiny").expect("a preset");
    config.seed = u64::MAX;
    assert_eq!(
        config.validate(),
        Err(RunConfigError::Seed { seed: u64::MAX })
    );
    config.seed = 1;
    config.training.clip = f64::NAN;
    let error = config.validate().expect_err("NaN is in no range");
    assert!(
        error.to_string().starts_with("training.clip is NaN"),
        "{error}"
    );
}

fn formats() -> impl Strategy<Value = NumberFormat> {
    proptest::sample::select(FORMATS.map(|(_, format)| format).to_vec())
}

proptest! {
    #[test]
    fn a_configuration_reads_back_what_was_written(
        preset in proptest::sample::select(PRESETS.to_vec()),
        (seed, name) in (0..=u64::MAX / 2, "[ -~é]{0,20}[!-~]"),
        kind in 0..3_u8,
        rank in 1_usize..128,
        (rate, clip) in (1e-8..1.0_f64, 1e-6..1e6_f64),
        (round_us, checkpoint_us, wait_us) in
            (1_000_000_u64..86_400_000_000, 2_000_000_u64..86_400_000_000, 0_u64..3_600_000_000),
        (samples, warmup) in (600_u64..1 << 53, 0_u64..600),
        (format, merge_format) in (formats(), formats()),
        (pipelines, outer_rate, momentum) in (1_u16..=16, 1e-6..2.0_f64, 0.0..0.999_f64),
    ) {
        let mut config = RunConfig::preset(preset).expect("a preset");
        config.name = name;
        config.seed = seed;
        config.model.codec = match kind {
            0 => Codec::Dense,
            1 => Codec::Subspace {
                rank,
                adapt_rounds: u32::try_from(rank % 3).expect("small"),
            },
            _ => Codec::Projector {
                rank,
                anchor: 1 + rank / 2,
                basis: if rank % 2 == 0 { Basis::Fixed } else { Basis::Learned },
            },
        };
        config.format = format;
        config.merge.format = merge_format;
        config.merge.learning_rate = outer_rate;
        config.merge.momentum = momentum;
        config.schedule.pipelines_max = pipelines;
        config.training.learning_rate = rate;
        config.training.clip = clip;
        config.training.samples = samples;
        config.training.warmup_samples = warmup;
        config.schedule.round_max = Span::from_micros(round_us);
        config.schedule.checkpoint = Span::from_micros(checkpoint_us);
        config.schedule.rewind_wait = Span::from_micros(wait_us);
        prop_assert_eq!(config.validate(), Ok(()));
        let text = write(&config);
        let read = read(&text, &[]);
        prop_assert_eq!(read.as_ref(), Ok(&config));
        prop_assert_eq!(write(&config), text);
        let json = serde_json::to_string(&config).expect("serialises");
        let read: Result<RunConfig, String> =
            serde_json::from_str(&json).map_err(|error| error.to_string());
        prop_assert_eq!(read, Ok(config));
    }

    #[test]
    fn any_text_is_a_configuration_or_refused(
        section in "run|model|wire|training|schedule|merge|x",
        key in proptest::sample::select(SECTIONS.iter().flat_map(|(_, keys)| keys.iter()).copied().collect::<Vec<_>>()),
        value in "-?[0-9]{1,19}|[0-9]e[0-9]{1,3}|nan|-inf|true|\"[a-z]*\"|\\[\\]|\\{\\}|.*",
    ) {
        if let Ok(config) = read(&format!("[{section}]\n{key} = {value}"), &[]) {
            prop_assert_eq!(config.validate(), Ok(()));
        }
    }
}
