//! The log for whoever looks into a problem: on standard error, filtered by `RUST_LOG`.
//!
//! Silent but for warnings unless asked. Lines go above the status line, in colour only on a
//! terminal that wants it.

use std::io::{self, IsTerminal, Write};

use indicatif::ProgressBar;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::report::no_color;

/// What is logged when nobody says otherwise.
const DEFAULT_FILTER: &str =
    "warn,cubecl=error,wgpu=error,wgpu_hal=error,wgpu_core=error,naga=error";

/// Begins to log; once a process.
pub fn start(bar: ProgressBar) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_FILTER.into());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal() && !no_color())
        .with_writer(AboveBar(bar));
    if subscriber.try_init().is_err() {
        // Somebody logs already, and a second logger would change nothing.
    }
}

/// Makes writers that leave the status line whole.
struct AboveBar(ProgressBar);

/// A line on its way to standard error.
struct LineAboveBar(ProgressBar);

impl<'a> MakeWriter<'a> for AboveBar {
    type Writer = LineAboveBar;

    fn make_writer(&'a self) -> LineAboveBar {
        LineAboveBar(self.0.clone())
    }
}

impl Write for LineAboveBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
