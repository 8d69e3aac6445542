//! `cargo xtask trace FILES -o ALL`: what several volunteers wrote with `--trace`, in one file.

use std::path::PathBuf;

use anyhow::Context;
use tests::traces::Trace as Written;

/// Which files, and into which.
#[derive(Debug, clap::Args)]
pub(crate) struct Trace {
    /// Traces of volunteers
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The file for all of them
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Reads and writes.
///
/// # Errors
/// A file cannot be read or written, or is no trace.
pub(crate) fn trace(asked: &Trace) -> anyhow::Result<()> {
    let read: anyhow::Result<Vec<_>> = asked.files.iter().map(|file| Written::read(file)).collect();
    let all = Written::join(read?);
    let output = asked.output.display();
    std::fs::write(&asked.output, all.text()).with_context(|| output.to_string())?;
    println!(
        "{} events in {output}: open it at https://ui.perfetto.dev",
        all.events.len()
    );
    Ok(())
}
