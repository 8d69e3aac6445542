//! `auditor STORE`: judges the journal of a run by the rule of [`signaling::audit`], also while a host writes it.
//!
//! Prints what it found as one JSON object, with `--rows` after all rows, an object a line. Exit codes: 0 in order, 1 not
//! in order, 2 no journal that can be read.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use signaling::audit::audit;
use signaling::journal::{self, Address};
use signaling::start::{JOURNAL_FILE, parse_rows};

/// Judges a run's journal: no sample twice in the history that stands, none missing, rounds that chain.
#[derive(Debug, Parser)]
#[command(name = "auditor", version)]
struct Args {
    /// The run's store, or its journal: a file, sqlite:FILE or postgres://USER:PASSWORD@HOST/DATABASE.
    store: String,
    /// The lowest sample that is leased or waiting, as /api/run says it (lowest_open_sample). Without it, none below
    /// the highest committed one may be missing.
    #[arg(long)]
    lowest_open: Option<u64>,
    /// Print the rows, too, for programs that look for more.
    #[arg(long)]
    rows: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let rows = match journal::read(&address_of(&args.store)).await {
        Ok((_, records)) => {
            for record in records.iter().filter(|_| args.rows) {
                // As below.
                let _ = writeln!(std::io::stdout(), "{}", record.json);
            }
            parse_rows(&records).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    let (text, code) = match rows {
        Err(error) => (json!({ "error": error }), 2),
        Ok(rows) => match audit(&rows, args.lowest_open) {
            Err(fault) => (
                json!({ "in_order": false, "row": fault.row, "fault": fault.fault.to_string() }),
                1,
            ),
            Ok(found) => (
                json!({
                    "in_order": true,
                    "rows": found.rows,
                    "starts": found.starts,
                    "commits": found.commits,
                    "rewinds": found.rewinds,
                    "newest": found.newest,
                    "standing": found.standing,
                    "samples": found.samples,
                    "complete_below": found.complete_below,
                }),
                0,
            ),
        },
    };
    // The exit code says it all the same.
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::from(code)
}

/// What looks like an address is one; anything else is a path.
fn address_of(store: &str) -> Address {
    let path = Path::new(store);
    store.parse().unwrap_or_else(|_| match path.is_dir() {
        true => Address::Sqlite(path.join(JOURNAL_FILE)),
        false => Address::Sqlite(path.to_owned()),
    })
}
