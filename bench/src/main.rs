//! Measures Annals beside its limit, on one server, interleaved in one run: what counts is the ratio.
//!
//! ```sh
//! cargo run --release -p bench -- [case…] [--rounds N] [--seconds N] [--json FILE]
//! ```
//!
//! Appends and commands stand beside `pgbench` inserting the same row shape, a view beside a bare sqlx read of the same
//! rows.

mod append;
mod measure;
mod pgbench;
mod view;

use std::{fs::File, io::Write, path::PathBuf};

use annals::{
    BoxError,
    embedded::{self, Options},
};
use clap::Parser;
use comfy_table::Table;

use crate::{
    measure::{Case, Comparison},
    pgbench::Pgbench,
};

/// What to run, and for how long.
#[derive(Parser)]
struct Arguments {
    /// Cases by name, or by the beginning of their names; all if none is given.
    cases: Vec<String>,
    /// Each case and its limit are run this often, in turn; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one measurement of appends or commands takes.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Writes one line of JSON a case to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

const CASES: &[Case] = &[
    Case::Append { callers: 1 },
    Case::Append { callers: 32 },
    Case::Command { callers: 32 },
    Case::View { events: 200_000 },
];

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    let wanted = |case: &&Case| {
        let name = case.name();
        arguments.cases.is_empty() || arguments.cases.iter().any(|wanted| name.starts_with(wanted))
    };
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    if cases.is_empty() {
        let names: Vec<_> = CASES.iter().map(Case::name).collect();
        return Err(format!("no such case; there are {}", names.join(", ")).into());
    }
    let database = embedded::database(Options { data_dir: ".data/bench".into(), ..Options::default() }).await?;
    println!("{}", database.origin());
    let pgbench = Pgbench::find(database.url()).await?;

    let mut results: Vec<Comparison> = cases.iter().map(|case| Comparison::new(case.name())).collect();
    for round in 1..=arguments.rounds.max(1) {
        for (case, result) in cases.iter().zip(&mut results) {
            eprintln!("round {round} of {}: {}", arguments.rounds, case.name());
            match case {
                Case::Append { callers } => {
                    result.ours.push(append::append(database.url(), *callers, arguments.seconds).await?);
                    result.limit.push(pgbench.run(*callers, arguments.seconds).await?);
                }
                Case::Command { callers } => {
                    result.ours.push(append::command(database.url(), *callers, arguments.seconds).await?);
                    result.limit.push(pgbench.run(*callers, arguments.seconds).await?);
                }
                Case::View { events } => {
                    let (ours, limit) = view::view(database.url(), *events).await?;
                    result.ours.push(ours);
                    result.limit.push(limit);
                }
            }
        }
    }
    print_table(&results);
    if let Some(path) = arguments.json {
        let mut file = File::create(path)?;
        for result in &results {
            writeln!(file, "{}", result.json())?;
        }
    }
    database.close().await?;
    Ok(())
}

fn print_table(results: &[Comparison]) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["case", "ours /s", "p50 ms", "p99 ms", "limit /s", "p50 ms", "p99 ms", "ratio"]);
    for result in results {
        let (ours, limit) = (result.ours_median(), result.limit_median());
        let ms = |us: Option<u64>| us.map_or_else(|| "".into(), |us| format!("{:.2}", us as f64 / 1_000.0));
        table.add_row([
            result.case.clone(),
            format!("{:.0}", ours.per_s),
            ms(ours.p50_us),
            ms(ours.p99_us),
            format!("{:.0}", limit.per_s),
            ms(limit.p50_us),
            ms(limit.p99_us),
            format!("{:.2}", ours.per_s / limit.per_s),
        ]);
    }
    println!("{table}");
}
