//! Bytes a token and validation loss, by codec and rank, after equal tokens.
//!
//! Losses and bytes are measured apart. Losses: each setting trains in one process (`examples/alone`), cut
//! into the same seats, which pass each other the bytes that volunteers would; so a long run needs no quiet
//! machine. Bytes: volunteers train a few steps over the network and say in their last words what they sent.
//! The two are the same run: the network's steps must have the losses of the other's, and the payload must
//! equal the formula to the byte, or there is no figure.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::tests::paths;
use ::tests::process::Program;
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{
    CONTEXT, Figures, LEARNING_RATE, MICROBATCHES, ROUND_STEPS, ROUND_WAIT_MAX, SEQUENCES, Trial,
    load, mean, save, save_tokens,
};

/// Microbatches of held-out text an evaluation.
pub(super) const EVAL_MICROBATCHES: u64 = 32;
/// One a stage: every border crosses the network.
const VOLUNTEERS: usize = 4;
/// Steps of the one round over the network that is waited for; it is the beginning of the long run.
const NETWORK_STEPS: usize = 4;
/// Width of the residual stream of `tiny`.
const D_MODEL: u64 = 128;
/// Bytes of a token id in a forward frame.
const TOKEN_BYTES: u64 = 2;
/// Headers of UDP (8) and IPv4 (20) before each datagram.
const DATAGRAM_HEADERS_BYTES: f64 = 28.0;
/// Mean loss of those steps, over the network and without.
const LOSS_TOLERANCE: f64 = 1e-4;
/// For a volunteer to leave once the run is over.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(60);

/// Measures each setting: losses side by side, then bytes one after the other.
pub(super) fn wire(asked: &Figures, data: &Path) -> anyhow::Result<()> {
    let settings = settings(asked.length.unwrap_or(asked.rounds));
    let folder = paths::programs()?.join("figures-wire");
    if !asked.resume && folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let tokens = folder.join("data");
    if !tokens.exists() {
        save_tokens(settings[0].config(), data, &tokens)?;
    }
    let load_before = load();
    let curves: anyhow::Result<Vec<Curve>> = settings
        .iter()
        .map(|trial| Curve::begin(trial, asked.rounds, &folder))
        .collect();
    let curves: anyhow::Result<Vec<Vec<Value>>> = curves?.into_iter().map(Curve::end).collect();
    let mut rows = Vec::new();
    for (trial, curve) in settings.iter().zip(curves?) {
        let kept = own_folder(trial, &folder).join("bytes.json");
        let bytes = match std::fs::read_to_string(&kept) {
            Ok(text) => serde_json::from_str(&text)?,
            Err(_) => over_network(trial, &curve, data)?,
        };
        std::fs::write(&kept, bytes.to_string())?;
        let last = curve.last().context("a run has rounds")?;
        let row = json!({
            "codec": trial.codec,
            "rank": trial.rank,
            "format": trial.format,
            "tokens": last["tokens"],
            "loss": last["loss"],
            "validation_loss": last["validation_loss"],
            "bytes": bytes,
            "curve": curve,
        });
        println!("{}", brief(&row));
        rows.push(row);
    }
    let figures = json!({
        "preset": "tiny",
        "seats": VOLUNTEERS,
        "rounds": asked.rounds,
        "learning_rate": LEARNING_RATE,
        "learning_rate_falls_over_rounds": settings[0].rounds,
        "evaluated_tokens": EVAL_MICROBATCHES * SEQUENCES * CONTEXT,
        "load_before": load_before,
        "runs": rows,
    });
    save("wire", &figures)
}

fn settings(rounds: u64) -> Vec<Trial> {
    let setting = |codec, rank, format| Trial {
        codec,
        rank,
        format,
        volunteers: VOLUNTEERS,
        rounds,
        round_steps: ROUND_STEPS,
        eval_rounds: 1,
    };
    let subspace = |rank| setting("subspace", Some(rank), "int8");
    vec![
        setting("dense", None, "f16"),
        subspace(32),
        subspace(16),
        subspace(8),
        subspace(4),
        setting("dense", None, "int8"),
        setting("dense", None, "int4"),
        setting("subspace", Some(32), "int4"),
        setting("projector", Some(32), "int8"),
        setting("projector", Some(32), "int4"),
    ]
}

/// Where a setting's configuration and what was measured of it lie.
fn own_folder(trial: &Trial, folder: &Path) -> PathBuf {
    let rank = trial.rank.map_or(String::new(), |rank| format!("-{rank}"));
    folder.join(format!("{}{rank}-{}", trial.codec, trial.format))
}

/// A setting that trains in a process of its own; it writes a line a round.
struct Curve {
    rounds: u64,
    file: PathBuf,
    /// None where an interrupted command has got all rounds.
    training: Option<Training>,
}

struct Training(Child);

impl Drop for Training {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Curve {
    fn begin(trial: &Trial, rounds: u64, folder: &Path) -> anyhow::Result<Self> {
        let own = own_folder(trial, folder);
        let mut curve = Self {
            rounds,
            file: own.join("rounds.jsonl"),
            training: None,
        };
        let config = own.join("run.toml");
        let is_same = std::fs::read_to_string(&config).is_ok_and(|text| text == trial.config());
        if is_same && curve.read().is_ok() {
            return Ok(curve);
        }
        std::fs::create_dir_all(&own)?;
        std::fs::write(&config, trial.config())?;
        let child = Command::new(paths::program("examples/alone")?)
            .arg(&config)
            .arg(folder.join("data"))
            .args([rounds.to_string(), VOLUNTEERS.to_string()])
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&curve.file)?)
            .spawn()?;
        curve.training = Some(Training(child));
        Ok(curve)
    }

    /// Waits for its end; a row a round.
    fn end(mut self) -> anyhow::Result<Vec<Value>> {
        if let Some(training) = &mut self.training {
            let status = training.0.wait()?;
            ensure!(status.success(), "training alone ended with {status}");
        }
        self.read()
    }

    fn read(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.file)?;
        let wanted = usize::try_from(self.rounds)?;
        let rows: anyhow::Result<Vec<Value>> = text.lines().take(wanted).map(row_of).collect();
        let rows = rows?;
        let (file, found) = (self.file.display(), rows.len());
        ensure!(found == wanted, "{file} holds {found} of {wanted} rounds");
        Ok(rows)
    }
}

fn row_of(line: &str) -> anyhow::Result<Value> {
    let event: Value = serde_json::from_str(line)?;
    let round = event["round"].as_u64().context("a round has a number")?;
    Ok(json!({
        "round": round,
        "tokens": round * ROUND_STEPS * MICROBATCHES * SEQUENCES * CONTEXT,
        "loss": mean(&event["losses"])?,
        "first_steps_loss": first_steps(&event["losses"])?,
        "validation_loss": event["validation_loss"],
        "seconds": event["seconds"],
    }))
}

/// The mean over as many steps as volunteers make over the network.
fn first_steps(losses: &Value) -> anyhow::Result<f64> {
    let list = losses.as_array().context("a round has losses")?;
    mean(&Value::Array(
        list.iter().take(NETWORK_STEPS).cloned().collect(),
    ))
}

/// The run's first steps between volunteers: what they sent.
fn over_network(trial: &Trial, curve: &[Value], data: &Path) -> anyhow::Result<Value> {
    let short = Trial {
        round_steps: NETWORK_STEPS as u64,
        eval_rounds: 0,
        ..*trial
    };
    let (mut host, mut volunteers) = short.begin(data)?;
    let run = host.wait_until("a round over the network", 3 * ROUND_WAIT_MAX, |run| {
        run["round"].as_u64() >= Some(1)
    })?;
    let loss = |value: &Value| value.as_f64().context("a round has a loss");
    let network = loss(&run["rounds"][0]["loss"])?;
    let alone = loss(&curve[0]["first_steps_loss"])?;
    ensure!(
        (network - alone).abs() <= LOSS_TOLERANCE * alone,
        "the first steps' loss is {network} over the network, {alone} without: not the same run"
    );
    for volunteer in &volunteers {
        volunteer.signal(::tests::process::Signal::INT)?;
    }
    let carried: anyhow::Result<Vec<Value>> = volunteers.iter_mut().map(last_word).collect();
    bytes(trial, &carried?)
}

/// What a volunteer says of its frames and sockets when it leaves.
pub(super) fn last_word(volunteer: &mut Program) -> anyhow::Result<Value> {
    let wait_max = ROUND_WAIT_MAX + LEAVE_WAIT_MAX;
    let said = volunteer.wait_for("its last word", wait_max, |event| event["event"] == "end")?;
    Ok(said["carried"].clone())
}

/// Bytes of one token at a border in one direction, as the mathematics says.
fn row_bytes(trial: &Trial) -> anyhow::Result<u64> {
    let width = trial.rank.unwrap_or(D_MODEL);
    // Bits of a value, and bytes of scales a row.
    let (bits, scales) = match trial.format {
        "f16" => (16, 0),
        "int8" => (8, 2),
        // Of each tile of 32, the last one filled up.
        "int4" => return Ok(width.div_ceil(32) * (16 + 2)),
        other => bail!("no formula for {other}"),
    };
    Ok((width * bits).div_ceil(8) + scales)
}

/// Sum over all volunteers of a count in their last words.
fn total(carried: &[Value], place: &str) -> anyhow::Result<u64> {
    let counts = carried.iter().map(|one| one.pointer(place)?.as_u64());
    let sum: Option<u64> = counts.sum();
    sum.with_context(|| format!("{place} is missing in {carried:?}"))
}

/// Payload, messages and datagrams; an error where the payload is not what the formula says.
fn bytes(trial: &Trial, carried: &[Value]) -> anyhow::Result<Value> {
    let of = |purpose: &str, what: &str| total(carried, &format!("/frames/{purpose}/{what}"));
    let tokens_a_frame = SEQUENCES * CONTEXT;
    let ids = SEQUENCES * (CONTEXT + 1) * TOKEN_BYTES;
    let boundary = tokens_a_frame * row_bytes(trial)?;
    let mut messages_a_token = 0.0;
    let mut payload_a_token = 0.0;
    for (purpose, expected) in [("forward", ids + boundary), ("backward", boundary)] {
        let (frames, payload) = (of(purpose, "frames")?, of(purpose, "payload_bytes")?);
        if frames == 0 || payload != frames * expected {
            bail!("{frames} {purpose} frames carry {payload} bytes, not {expected} each");
        }
        let tokens = (frames * tokens_a_frame) as f64;
        messages_a_token += of(purpose, "message_bytes")? as f64 / tokens;
        payload_a_token += payload as f64 / tokens;
    }
    let purposes = ["forward", "backward", "evaluation", "state", "control"];
    let messages: anyhow::Result<Vec<u64>> = purposes
        .iter()
        .map(|purpose| of(purpose, "message_bytes"))
        .collect();
    let messages = messages?;
    let all: u64 = messages.iter().sum();
    let udp = total(carried, "/sockets/sent_bytes")?;
    let datagrams = total(carried, "/sockets/sent")?;
    let with_headers = udp as f64 + datagrams as f64 * DATAGRAM_HEADERS_BYTES;
    let (udp_share, ip_share) = (udp as f64 / all as f64, with_headers / all as f64);
    let by_purpose = purposes.iter().map(|name| (*name).to_owned());
    let by_purpose = by_purpose.zip(messages.into_iter().map(Value::from));
    Ok(json!({
        "per_token_and_border": {
            "boundary": 2 * row_bytes(trial)?,
            "payload_with_token_ids": payload_a_token,
            "messages": messages_a_token,
            "udp": messages_a_token * udp_share,
            "with_ip_and_udp_headers": messages_a_token * ip_share,
        },
        "forward_frames": of("forward", "frames")?,
        "message_bytes": Value::Object(by_purpose.collect()),
        "udp_bytes": udp,
        "datagrams": datagrams,
        "udp_bytes_a_message_byte": udp_share,
        "ip_bytes_a_message_byte": ip_share,
    }))
}

fn brief(row: &Value) -> String {
    let figure = |place: &str| row.pointer(place).cloned().unwrap_or(Value::Null);
    format!(
        "{} rank {} {}: validation loss {}, bytes a token and border {}",
        row["codec"],
        row["rank"],
        row["format"],
        row["validation_loss"],
        figure("/bytes/per_token_and_border"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(forward: u64, backward: u64) -> Value {
        let volume = |frames: u64, payload: u64| {
            json!({
                "frames": frames,
                "payload_bytes": payload,
                "message_bytes": payload + 50 * frames,
            })
        };
        json!({
            "frames": {
                "forward": volume(10, forward), "backward": volume(10, backward),
                "evaluation": volume(0, 0), "state": volume(0, 0), "control": volume(0, 0),
            },
            "sockets": { "sent": 200, "sent_bytes": 2 * (forward + backward + 1_000) },
        })
    }

    #[test]
    fn a_payload_that_is_not_the_formulas_to_the_byte_is_no_figure() {
        let trial = settings(3)[1];
        assert_eq!((trial.rank, trial.format), (Some(32), "int8"));
        let (forward, backward) = (10 * (4 * 129 * 2 + 512 * 34), 10 * 512 * 34);
        let figures = bytes(&trial, &[carried(forward, backward)]).expect("to the byte");
        assert_eq!(figures["per_token_and_border"]["boundary"], 68);
        assert_eq!(figures["udp_bytes_a_message_byte"], 2.0);
        for wrong in [
            carried(forward + 1, backward),
            carried(forward, backward - 1),
        ] {
            let error = bytes(&trial, &[wrong]).expect_err("off by one");
            assert!(error.to_string().contains("frames carry"), "{error}");
        }
    }
}
