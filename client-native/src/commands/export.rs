//! `shoal export`: a run's newest checkpoint as a model that other programs load.
//!
//! The run's configuration comes from the host's introduction, the checkpoint's manifest and blobs
//! from its store. Each blob is held against the hash that names it, its weights against the hash
//! that all replicas agreed on.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use shared::config::model::Codec;
use shared::config::run::RunConfig;
use shared::derive::Derivation;
use shared::model::state::{StageState, StateError};
use shared::units::{Digest, Round};
use shared::wire::signal::Held;

use super::{introduce, print_line};
use crate::cli::ExportArgs;
use crate::failure::{Code, Failure};
use crate::host::HostError;
use crate::host::http::HostFiles;
use crate::llama::{LlamaError, MODEL_FILE, PlainModel, TOKENIZER_FILE, write_whole};
use crate::settings::{self, FileSettings};

/// Largest tokenizer that is fetched: a vocabulary of a million tokens is about 60 MB.
const TOKENIZER_BYTES_MAX: u64 = 128 << 20;

/// The parts of a checkpoint's manifest that an export needs.
#[derive(Debug, Deserialize)]
struct Manifest {
    round: Round,
    config: Digest,
    stages: Vec<Held>,
}

pub(super) async fn export(
    args: ExportArgs,
    file: &FileSettings,
    json: bool,
) -> Result<(), Failure> {
    let link = settings::link(args.link, file)?;
    let (folder, model_file) = target(&args.output);
    let config = introduce(&link).await?;
    if let Codec::Projector { .. } = config.model.codec {
        return Err(Failure::new(
            Code::Failed,
            "this run's borders lose something of what crosses them (codec projector), so no model of another program computes \
             the same",
            "There is nothing to export from it.",
        ));
    }
    let files = HostFiles::new(&link, None);
    let manifest: Manifest = files
        .json("store/manifests/newest.json")
        .await
        .map_err(no_checkpoint)?;
    if manifest.config != config.digest() || manifest.stages.len() != config.model.stages {
        return Err(wrong("its newest checkpoint belongs to another run"));
    }
    let mut blobs = Vec::with_capacity(manifest.stages.len());
    for held in &manifest.stages {
        let path = format!("store/blobs/{}", held.blob);
        blobs.push(files.blob(&path, held.blob).await?);
    }
    let tokenizer = match files.file("data/tokenizer.json", TOKENIZER_BYTES_MAX).await {
        Ok(bytes) => Some(bytes),
        Err(HostError::Status { status: 404, .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let stages = manifest.stages.clone();
    let into = folder.clone();
    let name = model_file.clone();
    let write = tokio::task::spawn_blocking(move || {
        let model = assemble(&config, &stages, &blobs)?;
        std::fs::create_dir_all(&into).map_err(|source| {
            disk(LlamaError::File {
                path: into.clone(),
                source,
            })
        })?;
        model.save(&into, &name).map_err(disk)?;
        if let Some(tokenizer) = &tokenizer {
            write_whole(&into.join(TOKENIZER_FILE), tokenizer).map_err(disk)?;
        }
        Ok((model.config().parameter_count(), tokenizer.is_some()))
    });
    let (parameters, has_tokenizer) = write
        .await
        .unwrap_or_else(|_| Err(wrong("putting the model together failed")))?;
    let place = folder.join(&model_file);
    print_line(&if json {
        json!({
            "event": "export",
            "round": manifest.round,
            "path": place,
            "parameters": parameters,
            "tokenizer": has_tokenizer,
        })
        .to_string()
    } else {
        let tokenizer = if has_tokenizer {
            ", with tokenizer.json"
        } else {
            "; the run has no tokenizer.json"
        };
        format!(
            "round {} as {} ({:.1} M parameters) beside config.json{tokenizer}",
            manifest.round,
            place.display(),
            parameters as f64 / 1e6,
        )
    });
    Ok(())
}

/// Folder and file name: a path that ends in `.safetensors` names the file itself.
fn target(output: &Path) -> (PathBuf, String) {
    let is_file = output
        .extension()
        .is_some_and(|extension| extension == "safetensors");
    let name = output.file_name().and_then(|name| name.to_str());
    match (is_file, name) {
        (true, Some(name)) => {
            let folder = output.parent().filter(|path| !path.as_os_str().is_empty());
            (
                folder.unwrap_or_else(|| Path::new(".")).to_owned(),
                name.to_owned(),
            )
        }
        (true, None) | (false, _) => (output.to_owned(), MODEL_FILE.to_owned()),
    }
}

/// The whole model from the blobs of its stages.
fn assemble(
    config: &RunConfig,
    stages: &[Held],
    blobs: &[bytes::Bytes],
) -> Result<PlainModel, Failure> {
    let derivation = Derivation::new(config.model.clone(), config.seed);
    let read = |(index, (held, blob)): (usize, (&Held, &bytes::Bytes))| {
        if usize::from(held.stage.0) != index {
            return Err(wrong("its manifest names the stages in another order"));
        }
        let state = StageState::from_blob(&config.model, index, blob)
            .map_err(|error: StateError| wrong(&format!("stage {index}: {error}")))?;
        if state.agreed_digest(config.merge.kind) != held.agreed {
            return Err(wrong(&format!(
                "the weights of stage {index} are not those that were agreed on"
            )));
        }
        let parameters = config.model.parameters_of(index).into_iter();
        Ok(parameters.zip(state.weights).collect())
    };
    let weights = stages
        .iter()
        .zip(blobs)
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()?;
    Ok(PlainModel::fold(&derivation, weights))
}

fn no_checkpoint(error: HostError) -> Failure {
    if matches!(error, HostError::Status { status: 404, .. }) {
        return Failure::new(
            Code::Failed,
            "the run has no checkpoint yet",
            "Wait for the first one; `shoal status` shows when it is written.",
        );
    }
    error.into()
}

fn wrong(what: &str) -> Failure {
    Failure::new(
        Code::Failed,
        format!("the host's store is not in order: {what}"),
        "Tell the host.",
    )
}

fn disk(error: LlamaError) -> Failure {
    Failure::new(
        Code::Failed,
        error,
        "See that the folder can be written and the disk has room.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_the_folder_unless_it_names_the_file() {
        let check = |path: &str, folder: &str, file: &str| {
            let expected = (PathBuf::from(folder), file.to_owned());
            assert_eq!(target(Path::new(path)), expected);
        };
        check("out", "out", "model.safetensors");
        check("out/round.9", "out/round.9", "model.safetensors");
        check("out/mine.safetensors", "out", "mine.safetensors");
        check("mine.safetensors", ".", "mine.safetensors");
    }
}
