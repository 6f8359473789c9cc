//! Measures Annals beside the packages that one would pick instead, each doing the same work on the same server.
//!
//! ```sh
//! cargo run --release --manifest-path bench/peers/Cargo.toml -- [case…] [--rounds N] [--seconds N] [--only PACKAGE]… [--json FILE]
//! ```
//!
//! Each round runs every case with Annals, pgbench and every peer in turn, each on a database of its own; the tables show
//! medians. `README.md` says how each package is set up, and what does not compare.

mod database;
#[path = "../../src/measure.rs"]
#[allow(
    dead_code,
    reason = "shared with the benchmark of Annals alone: the same yardstick, of which this needs a part"
)]
mod measure;
mod packages;
#[path = "../../src/pgbench.rs"]
mod pgbench;
mod report;
mod script;
#[path = "../../src/server.rs"]
#[allow(dead_code, reason = "as `measure`")]
mod server;
mod visible;
mod work;

use std::{path::PathBuf, time::Duration};

use annals::BoxError;
use clap::Parser;
use tokio::time::timeout;

use crate::{
    packages::{Field, Outcome},
    report::Report,
    server::Server,
    work::Work,
};

/// What to run, and for how long.
#[derive(Parser)]
struct Arguments {
    /// Cases by name, or by its first part, as `append`; all if none is given.
    cases: Vec<String>,
    /// Each case is run this often with each package, in turn; the tables show medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one measurement takes.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Only this package, as it is called in the tables; may be repeated. Annals and pgbench always run.
    #[arg(long)]
    only: Vec<String>,
    /// Writes one line of JSON a case and package to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

const CASES: &[(&str, Work)] = &[
    ("append-1x1", Work::Append { events: 1, callers: 1 }),
    ("append-1x8", Work::Append { events: 1, callers: 8 }),
    ("append-1x32", Work::Append { events: 1, callers: 32 }),
    ("append-10x8", Work::Append { events: 10, callers: 8 }),
    ("append-10x32", Work::Append { events: 10, callers: 32 }),
    ("command-1x1", Work::Command { callers: 1 }),
    ("command-1x8", Work::Command { callers: 8 }),
    ("command-1x32", Work::Command { callers: 32 }),
    ("load-100", Work::Load { length: 100 }),
    ("load-10000", Work::Load { length: 10_000 }),
    ("catch-up", Work::CatchUp),
    ("visible", Work::Visible),
];

/// A measurement that has not ended by then never will.
const LONGEST: Duration = Duration::from_secs(180);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let wanted = |name: &str| {
        arguments.cases.is_empty()
            || arguments.cases.iter().any(|case| name == case || name.starts_with(&format!("{case}-")))
    };
    let cases: Vec<_> = CASES.iter().filter(|(name, _)| wanted(name)).collect();
    if cases.is_empty() {
        let names: Vec<_> = CASES.iter().map(|(name, _)| *name).collect();
        return Err(format!("no such case; there are {}", names.join(", ")).into());
    }
    let server = Server::open().await?;
    println!("{}", server.origin());
    let field = Field::assemble(&server, &arguments.only).await?;
    let mut report = Report::default();
    for round in 1..=arguments.rounds.max(1) {
        for (name, work) in &cases {
            for package in field.packages() {
                eprintln!("round {round} of {}: {name}, {}", arguments.rounds, package.name());
                // One that fails is shown with its error: the others' figures are worth no less for it.
                let run = timeout(LONGEST, field.run(package, &server, *work, arguments.seconds)).await;
                let outcome = run.unwrap_or_else(|_| Err("it came to no end".into()));
                let outcome = outcome.unwrap_or_else(|error| Outcome::Absent(format!("failed: {error}")));
                report.add(name, package, outcome);
            }
        }
    }
    database::remove(&server).await?;
    println!("{report}");
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?)?;
    }
    server.close().await
}
