//! `cargo xtask link`: ends with slow access links, for whoever wants to run something at them.
//!
//! Makes them ([`tests::link`]), says how to start a program at each, and stays until Ctrl-C; or runs a command at the
//! first end, and ends as it does. Half of delay, jitter and loss is each end's own, so that between two of them
//! there is what was asked for.

use std::num::NonZeroU64;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tests::link::{Access, ENDS_MAX, Link as Ends, Path};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Link {
    /// Rate of each end's line down, and up without --up-mbit
    #[arg(long, default_value_t = 80.0)]
    rate_mbit: f64,
    /// Rate of each end's line up
    #[arg(long)]
    up_mbit: Option<f64>,
    /// Delay between two ends, one way
    #[arg(long, default_value_t = 25.0)]
    delay_ms: f64,
    /// So much more delay at most, drawn for each packet; none overtakes another
    #[arg(long, default_value_t = 0.0)]
    jitter_ms: f64,
    /// Queue before each line; what does not fit is dropped
    #[arg(long, default_value_t = 1220)]
    queue_kib: usize,
    /// How likely a packet is lost between two ends, one way
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// What jitter and losses follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ends with such a link
    #[arg(long, default_value_t = 2)]
    ends: usize,
    /// One more end, the last, without rate and delay of its own: for a host and its page
    #[arg(long)]
    hub: bool,
    /// What to run at the first end; without it the ends stay until Ctrl-C
    #[arg(last = true)]
    command: Vec<String>,
}

/// Makes the ends, and stays or runs the command.
///
/// # Errors
/// What was asked for is no link, this machine does not let us, or the command does not start.
pub(crate) fn link(asked: &Link) -> anyhow::Result<()> {
    let path = asked.path()?;
    ensure!(
        (1..ENDS_MAX).contains(&asked.ends),
        "--ends is from 1 to {}",
        ENDS_MAX - 1
    );
    let mut accesses = vec![path.access(); asked.ends];
    if asked.hub {
        accesses.push(Access::OPEN);
    }
    let ends = Ends::gather(&accesses, asked.seed)?;
    for end in 0..accesses.len() {
        let name = if end < asked.ends { "end" } else { "hub" };
        // Not on the output: that is the command's.
        eprintln!(
            "{name} {end:<3} {:<12} {} COMMAND",
            ends.address(end).to_string(),
            ends.wrapper(end).join(" ")
        );
    }
    if asked.command.is_empty() {
        eprintln!("Ctrl-C ends it");
        return ends.carry_on();
    }
    let begun = Instant::now();
    let wrapper = ends.wrapper(0);
    let (program, arguments) = wrapper.split_first().context("a wrapper has a program")?;
    let status = Command::new(program)
        .args(arguments)
        .args(&asked.command)
        .status()?;
    report(ends, accesses.len(), begun.elapsed())?;
    // As a shell has it.
    let by_signal = status.signal().map(|signal| 128 + signal);
    std::process::exit(status.code().or(by_signal).unwrap_or(1));
}

/// Ends it, and says what became of packets.
fn report(ends: Ends, count: usize, passed: Duration) -> anyhow::Result<()> {
    let counts: Vec<_> = (0..count).map(|end| ends.counts(end)).collect();
    let spent = ends.end()?;
    for (end, (up, down)) in counts.iter().enumerate() {
        for (way, counts) in [("up", up), ("down", down)] {
            eprintln!(
                "end {end} {way:<5} {} packets, {} bytes; {} found the queue full, {} were lost",
                counts.packets, counts.bytes, counts.full, counts.lost
            );
        }
    }
    let share = spent.as_secs_f64() / passed.as_secs_f64();
    eprintln!("{:.1} % of a processor", share * 100.0);
    Ok(())
}

impl Link {
    fn path(&self) -> anyhow::Result<Path> {
        let ms = |name, ms: f64| {
            Duration::try_from_secs_f64(ms / 1000.0)
                .with_context(|| format!("{name} is not a number of milliseconds from 0 on"))
        };
        ensure!((0.0..=1.0).contains(&self.loss), "--loss is from 0 to 1");
        Ok(Path {
            up_bits: bits(self.up_mbit.unwrap_or(self.rate_mbit))?,
            down_bits: bits(self.rate_mbit)?,
            delay: ms("--delay-ms", self.delay_ms)?,
            jitter: ms("--jitter-ms", self.jitter_ms)?,
            queue_bytes: self.queue_kib.saturating_mul(1024),
            loss: self.loss,
        })
    }
}

/// A rate of so many megabits a second.
fn bits(mbit: f64) -> anyhow::Result<NonZeroU64> {
    // A million to one, as seconds to microseconds; no number that is a float is cast.
    let time = Duration::try_from_secs_f64(mbit).context("a rate is a number of Mbit/s")?;
    let bits = u64::try_from(time.as_micros()).ok();
    bits.and_then(NonZeroU64::new)
        .context("a rate is more than 0")
}
