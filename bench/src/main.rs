//! Measures Annals beside its limit, on one server, interleaved in one run: what counts is the ratio.
//!
//! ```sh
//! cargo run --release -p bench -- [case…] [--rounds N] [--seconds N] [--events N] [--orders FILE] [--json FILE]
//! cargo run --release -p bench -- growth [axis…] [--largest EVENTS] [--json FILE]
//! cargo run --release -p bench -- report FILE… [--folder docs/performance]
//! ```
//!
//! Appends and commands stand beside `pgbench` inserting the same row shape, reads and read models beside a bare sqlx read
//! of the same rows, the import beside single commands. Appends beside a rebuild or followers in trouble stand beside the same
//! without, a read model with poison beside one without, one that wants little beside one that wants all, and sagas beside the
//! commands that they execute.

mod append;
mod beside;
mod growth;
mod import;
mod measure;
mod models;
mod pgbench;
mod plans;
mod read;
mod report;
mod sagas;
mod server;

use std::{fs::File, io::Write, path::PathBuf};

use annals::BoxError;
use clap::{Parser, Subcommand};
use comfy_table::Table;

use crate::{
    beside::Trouble,
    import::Import,
    measure::{Comparison, Figures},
    pgbench::Pgbench,
    read::{Model, Order, Way},
    server::Server,
};

/// What to run, and for how long.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Cases by name, or by its first parts, as `append` and `command-id`; all if none is given.
    cases: Vec<String>,
    /// Each case and its limit are run this often, in turn; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one measurement of appends or commands takes.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How many events a read model catches up over, or is rebuilt from, ten to a stream.
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// The orders to import, as the example takes them; the sample over and over if none are given.
    #[arg(long)]
    orders: Option<PathBuf>,
    /// Writes one line of JSON a case to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// Prints what `--json` wrote as tables, and draws it.
    Report {
        /// What `--json` wrote.
        files: Vec<PathBuf>,
        /// Where the plots go.
        #[arg(long, default_value = "docs/performance")]
        folder: PathBuf,
    },
    /// What becomes of the rates when one thing grows, how Postgres plans on a log that grows, and what an event costs.
    Growth {
        /// What is to grow; all if none is given.
        axes: Vec<growth::Axis>,
        /// The longest log, in events; 10,000,000 take some 8 GB of disk.
        #[arg(long, default_value_t = 1_000_000)]
        largest: usize,
        /// How long one measurement of appends takes.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
        /// Writes one line of JSON a figure to this file.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// One of several processes that append.
    #[command(hide = true)]
    Writer { url: String, store: String, callers: usize, seconds: u64 },
    /// One of several processes that run sagas.
    #[command(hide = true)]
    SagasProcess {
        url: String,
        #[arg(long)]
        sleep: bool,
    },
}

/// Something that is measured beside its limit.
#[derive(Clone, Copy)]
enum Case {
    /// Appends, as a store call.
    Append { events: usize, callers: usize },
    /// Commands, ten to a stream.
    Command { events: usize, callers: usize },
    /// Commands with an id from outside.
    CommandId { callers: usize },
    /// Appends beside a rebuild.
    DuringRebuild,
    /// Appends beside followers that are dead or fail.
    Beside(Trouble),
    /// Aggregates of so many events.
    Load { events: usize },
    /// A read model that is built.
    CatchUp((Model, Way), Order),
    /// A read model that is built, beside another that is.
    Compare((Model, Model), Order),
    /// How soon a view shows what was acknowledged.
    Visible,
    /// Sagas that end, in so many processes, beside so many that sleep.
    Sagas { processes: usize, sleeping: usize },
    /// How soon a saga begins.
    SagaBegins,
    /// Sagas whose target is away for two minutes.
    SagaOutage,
    /// The example's import.
    Import,
}

const CASES: &[(&str, Case)] = &[
    ("append-1x1", Case::Append { events: 1, callers: 1 }),
    ("append-1x8", Case::Append { events: 1, callers: 8 }),
    ("append-1x32", Case::Append { events: 1, callers: 32 }),
    ("append-1x256", Case::Append { events: 1, callers: 256 }),
    ("append-10x8", Case::Append { events: 10, callers: 8 }),
    ("append-10x32", Case::Append { events: 10, callers: 32 }),
    ("append-during-rebuild", Case::DuringRebuild),
    ("append-dead-followers", Case::Beside(Trouble::Dead)),
    ("append-poison", Case::Beside(Trouble::Poison)),
    ("append-poison-queue", Case::Beside(Trouble::Queue)),
    ("command-1x1", Case::Command { events: 1, callers: 1 }),
    ("command-1x8", Case::Command { events: 1, callers: 8 }),
    ("command-1x32", Case::Command { events: 1, callers: 32 }),
    ("command-1x256", Case::Command { events: 1, callers: 256 }),
    ("command-10x8", Case::Command { events: 10, callers: 8 }),
    ("command-10x32", Case::Command { events: 10, callers: 32 }),
    ("command-id-1x32", Case::CommandId { callers: 32 }),
    ("load-100", Case::Load { events: 100 }),
    ("load-10000", Case::Load { events: 10_000 }),
    ("view", Case::CatchUp((Model::View, Way::CatchUp), Order::Written)),
    ("view-scattered", Case::CatchUp((Model::View, Way::CatchUp), Order::Scattered)),
    ("projector", Case::CatchUp((Model::Projector, Way::CatchUp), Order::Written)),
    ("projector-scattered", Case::CatchUp((Model::Projector, Way::CatchUp), Order::Scattered)),
    ("rebuild-view", Case::CatchUp((Model::View, Way::Rebuild), Order::Written)),
    ("rebuild-view-scattered", Case::CatchUp((Model::View, Way::Rebuild), Order::Scattered)),
    ("rebuild-projector", Case::CatchUp((Model::Projector, Way::Rebuild), Order::Written)),
    ("poison-keys", Case::Compare((Model::Poisoned, Model::View), Order::Written)),
    ("sparse", Case::Compare((Model::Rare, Model::Everything), Order::Mixed)),
    ("sparse-types", Case::Compare((Model::RareType, Model::Everything), Order::Mixed)),
    ("visible", Case::Visible),
    ("sagas", Case::Sagas { processes: 1, sleeping: 0 }),
    ("sagas-2-processes", Case::Sagas { processes: 2, sleeping: 0 }),
    ("sagas-4-processes", Case::Sagas { processes: 4, sleeping: 0 }),
    ("sagas-sleeping", Case::Sagas { processes: 1, sleeping: 100_000 }),
    ("saga-begins", Case::SagaBegins),
    ("saga-outage", Case::SagaOutage),
    ("import", Case::Import),
];

/// pgbench gets no more clients than this: with more, it only becomes slower.
const MOST_CLIENTS: usize = 32;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments = Arguments::parse();
    match &arguments.action {
        Some(Action::Report { files, folder }) => return report::report(files, folder).await,
        Some(Action::Growth { axes, largest, seconds, json }) => {
            let server = Server::open().await?;
            growth::growth(&server, axes, *largest, *seconds, json.as_deref()).await?;
            return server.close().await;
        }
        Some(Action::Writer { url, store, callers, seconds }) => {
            return growth::writer(url, store, *callers, *seconds).await;
        }
        Some(Action::SagasProcess { url, sleep }) => return sagas::process(url, *sleep).await,
        None => {}
    }
    let wanted = |name: &str| {
        arguments.cases.is_empty()
            || arguments.cases.iter().any(|case| name == case || name.starts_with(&format!("{case}-")))
    };
    let cases: Vec<_> = CASES.iter().filter(|(name, _)| wanted(name)).collect();
    if cases.is_empty() {
        let names: Vec<_> = CASES.iter().map(|(name, _)| *name).collect();
        return Err(format!("no such case; there are {}", names.join(", ")).into());
    }
    let import = match cases.iter().any(|(_, case)| matches!(case, Case::Import)) {
        true => Some(Import::prepare(arguments.orders.as_deref()).await?),
        false => None,
    };
    let server = Server::open().await?;
    println!("{}", server.origin());
    let bench = Bench { server: &server, pgbench: Pgbench::find()?, import, arguments: &arguments };
    let mut results: Vec<Comparison> = cases.iter().map(|(name, _)| Comparison::new((*name).into())).collect();
    for round in 1..=arguments.rounds.max(1) {
        for ((name, case), result) in cases.iter().zip(&mut results) {
            eprintln!("round {round} of {}: {name}", arguments.rounds);
            let (ours, limit) = bench.run(*case).await?;
            result.ours.push(ours);
            result.limit.extend(limit);
        }
    }
    print_table(&results);
    if let Some(path) = &arguments.json {
        let mut file = File::create(path)?;
        for result in &results {
            writeln!(file, "{}", result.json())?;
        }
    }
    server.close().await
}

struct Bench<'b> {
    server: &'b Server,
    pgbench: Pgbench,
    import: Option<Import>,
    arguments: &'b Arguments,
}

impl Bench<'_> {
    /// Ours, and the limit right after it.
    async fn run(&self, case: Case) -> Result<(Figures, Option<Figures>), BoxError> {
        let (server, seconds, log) = (self.server, self.arguments.seconds, self.arguments.events);
        let both = |(ours, limit)| (ours, Some(limit));
        let pgbench = async |rows, callers: usize| {
            self.pgbench.run(server, rows, callers.min(MOST_CLIENTS), seconds).await.map(Some)
        };
        Ok(match case {
            Case::Append { events, callers } => {
                (append::append(server, events, callers, seconds).await?, pgbench(events, callers).await?)
            }
            Case::Command { events, callers } => {
                (append::command(server, events, callers, false, seconds).await?, pgbench(events, callers).await?)
            }
            Case::CommandId { callers } => {
                (append::command(server, 1, callers, true, seconds).await?, pgbench(1, callers).await?)
            }
            Case::DuringRebuild => both(beside::in_rebuild(server, log, seconds).await?),
            Case::Beside(trouble) => both(beside::in_trouble(server, trouble, seconds).await?),
            Case::Load { events } => both(read::load(server, events).await?),
            Case::CatchUp(model, order) => both(read::catch_up(server, model, order, log).await?),
            Case::Compare(models, order) => both(read::compare(server, models, order, log).await?),
            Case::Visible => (read::visible(server, seconds).await?, None),
            Case::Sagas { processes, sleeping } => both(sagas::ended_a_second(server, processes, sleeping).await?),
            Case::SagaOutage => (sagas::through_an_outage(server).await?, None),
            Case::SagaBegins => (sagas::begun_after(server, seconds).await?, None),
            Case::Import => {
                let import = self.import.as_ref().ok_or("there is nothing to import")?;
                (import.run(server).await?, Some(append::command(server, 1, 32, false, seconds).await?))
            }
        })
    }
}

fn print_table(results: &[Comparison]) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "case",
        "ours /s",
        "p50 ms",
        "p95",
        "p99",
        "p99.9",
        "limit /s",
        "p50 ms",
        "p99",
        "ratio",
        "resident MB",
    ]);
    for result in results {
        let (ours, limit) = (result.ours_median(), result.limit_median());
        let ms = |us: Option<u64>| us.map(|us| format!("{:.2}", us as f64 / 1_000.0)).unwrap_or_default();
        let limit_ms = |of: fn(&Figures) -> Option<u64>| ms(limit.as_ref().and_then(of));
        table.add_row([
            result.case.clone(),
            format!("{:.0}", ours.per_s),
            ms(ours.p50_us),
            ms(ours.p95_us),
            ms(ours.p99_us),
            ms(ours.p999_us),
            limit.as_ref().map(|limit| format!("{:.0}", limit.per_s)).unwrap_or_default(),
            limit_ms(|limit| limit.p50_us),
            limit_ms(|limit| limit.p99_us),
            result.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            ours.resident_mb.map(|mb| mb.to_string()).unwrap_or_default(),
        ]);
    }
    println!("{table}");
    for result in results {
        if let Some(note) = result.ours_median().note {
            println!("{}: {note}", result.case);
        }
    }
}
