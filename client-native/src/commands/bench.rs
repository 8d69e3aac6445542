//! `shoal bench`: how long one block takes on each device, forward and backward.

use serde_json::json;
use shared::config::written;
use shared::model::device::{self, DeviceKind, Opened};
use shared::model::engine::Engine;

use super::{open, print_line};
use crate::cli::BenchArgs;
use crate::failure::{Code, Failure};
use crate::settings::{FileSettings, Text};
use crate::volunteer::compute::measure_speed;

pub(super) async fn bench(args: BenchArgs, file: &FileSettings, json: bool) -> Result<(), Failure> {
    let asked = args
        .device
        .gpu
        .or_else(|| file.gpu.clone().map(Text::into_string));
    let devices = match asked {
        Some(name) => vec![open(&name).await?],
        None => std::iter::once(Ok(device::cpu()))
            .chain(device::adapters().iter().map(device::Adapter::open))
            .filter_map(|opened| match opened {
                Ok(opened) => Some(opened),
                Err(error) => {
                    print_line(&failed("an adapter", &error.to_string(), json));
                    None
                }
            })
            .collect(),
    };
    let text = format!("[run]\npreset = \"{}\"\n", args.preset.name);
    let config = written::read(&text, &[]).expect("a preset is a valid run");
    let mut any = false;
    for opened in devices {
        let config = config.clone();
        let Opened {
            device, name, kind, ..
        } = opened;
        let measured = tokio::task::spawn_blocking(move || {
            let mut engine = Engine::new(config.clone(), device);
            measure_speed(&mut engine, &config).map(|speed| (speed.block_us, config))
        });
        // A device that is lost may take its thread with it.
        let outcome = measured
            .await
            .unwrap_or_else(|_| Err("the device failed".to_owned()));
        let (micros, context) = match outcome {
            Ok((micros, config)) => (micros, config.model.context),
            Err(reason) => {
                print_line(&failed(&name, &reason, json));
                continue;
            }
        };
        any = true;
        print_line(&line(&name, kind, &args.preset.name, micros, context, json));
    }
    if any {
        Ok(())
    } else {
        Err(Failure::new(
            Code::NoDevice,
            "no device could be measured",
            "See what `shoal doctor` says.",
        ))
    }
}

fn failed(name: &str, reason: &str, json: bool) -> String {
    if json {
        json!({"event": "bench", "device": name, "error": reason}).to_string()
    } else {
        format!("{name}: {reason}")
    }
}

fn line(
    name: &str,
    kind: DeviceKind,
    preset: &str,
    micros: u64,
    context: usize,
    json: bool,
) -> String {
    let kind = super::doctor::kind_words(kind);
    let tokens_per_second = context as f64 / (micros as f64 / 1e6);
    if json {
        return json!({
            "event": "bench",
            "device": name,
            "kind": kind,
            "preset": preset,
            "block_us": micros,
            "block_tokens_per_second": tokens_per_second,
        })
        .to_string();
    }
    format!(
        "{name}: one {preset} block takes {:.2} ms a sequence, {tokens_per_second:.0} tokens/s",
        micros as f64 / 1e3
    )
}
