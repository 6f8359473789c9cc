//! What becomes of the rates when one thing grows: events, streams, processes, followers. And what an event costs.
//!
//! The centre is a store of 1,000,000 events on 100,000 streams, one process, 8 callers.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Stdio,
};

use annals::{Annals, App, BoxError, Change, Config, Id, Recorded, View};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio::process::Command;

use crate::{
    append::{append_to, note},
    measure::Figures,
    plans::plans,
    read::{Model, Order, Sale, SaleEvent, Spend, Way, build, connect, fill, forget_models, load_some},
    server::{self, Server},
};

/// Where the figures go.
struct Curves(Option<File>);

impl Curves {
    fn add(&mut self, axis: &str, x: usize, curve: &str, unit: &str, value: f64) -> Result<(), BoxError> {
        println!("{axis} {x}: {curve} {value:.0} {unit}");
        if let Some(file) = &mut self.0 {
            writeln!(file, "{}", json!({ "growth": axis, "x": x, "curve": curve, "unit": unit, "value": value }))?;
        }
        Ok(())
    }
}

/// What can grow.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Axis {
    Payload,
    Processes,
    Followers,
    Events,
    Streams,
}

/// Measures along `axes`, all if there are none; `largest` is the longest log.
pub(crate) async fn growth(
    server: &Server,
    axes: &[Axis],
    largest: usize,
    seconds: u64,
    json: Option<&Path>,
) -> Result<(), BoxError> {
    let mut curves = Curves(json.map(File::create).transpose()?);
    let wanted = |axis| axes.is_empty() || axes.contains(&axis);
    if wanted(Axis::Payload) {
        cost(server, seconds, &mut curves).await?;
    }
    if wanted(Axis::Processes) {
        processes(server, seconds, &mut curves).await?;
    }
    if wanted(Axis::Followers) {
        followers(server, seconds, &mut curves).await?;
    }
    let lengths = [100_000, 1_000_000, 10_000_000].into_iter().filter(|events| *events <= largest);
    for events in lengths.filter(|_| wanted(Axis::Events)) {
        along(server, "events", events, (events, events / 10), seconds, &mut curves).await?;
    }
    for streams in [10, 1_000, 1_000_000].into_iter().filter(|_| wanted(Axis::Streams)) {
        along(server, "streams", streams, (1_000_000, streams), seconds, &mut curves).await?;
    }
    Ok(())
}

/// Appends, loads and a view, on a log of a certain size.
async fn along(
    server: &Server,
    axis: &str,
    x: usize,
    (events, streams): (usize, usize),
    seconds: u64,
    curves: &mut Curves,
) -> Result<(), BoxError> {
    let store = format!("bench_grown_{axis}_{x}");
    fill(server, &store, events, streams, Order::Written).await?;
    if axis == "events" {
        plans(server, &store, events).await?;
    }
    let view = build(server, &store, (Model::View, Way::CatchUp), events).await?;
    curves.add(axis, x, "view", "events/s", view.per_s)?;
    curves.add(axis, x, "view", "MB resident", view.resident_mb.unwrap_or_default() as f64)?;
    let loads = load_some(server, &store, streams.min(1_000), events / streams).await?;
    curves.add(axis, x, "load", "events/s", loads.per_s)?;
    if let Some(p50) = loads.p50_us {
        curves.add(axis, x, "load", "p50 µs", p50 as f64)?;
    }
    let annals = connect(server, &store).await?;
    server.settle().await?;
    let appends = append_to(&annals, &note(), 1, 8, seconds).await?;
    annals.close().await;
    curves.add(axis, x, "append, 8 callers", "events/s", appends.per_s)?;
    server.drop_store(&store).await
}

/// The appends of 32 callers, in one process or several.
async fn processes(server: &Server, seconds: u64, curves: &mut Curves) -> Result<(), BoxError> {
    for processes in [1, 2, 4] {
        let store = "bench_processes";
        server.drop_store(store).await?;
        connect(server, store).await?.close().await;
        server.settle().await?;
        let program = std::env::current_exe()?;
        let (callers, seconds) = ((32 / processes).to_string(), seconds.to_string());
        let writer = || {
            let writer = ["writer", server.url(), store, &callers, &seconds];
            Command::new(&program).args(writer).stdout(Stdio::piped()).spawn()
        };
        let children = (0..processes).map(|_| writer()).collect::<Result<Vec<_>, _>>()?;
        let mut per_s = 0.0;
        for child in children {
            let output = child.wait_with_output().await?;
            per_s += String::from_utf8_lossy(&output.stdout).trim().parse::<f64>()?;
        }
        curves.add("processes", processes, "append, 32 callers in all", "events/s", per_s)?;
    }
    Ok(())
}

/// One of the processes of [`processes`]: prints its rate.
pub(crate) async fn writer(url: &str, store: &str, callers: usize, seconds: u64) -> Result<(), BoxError> {
    let annals = Annals::connect(Config { store: store.into(), ..server::config(url) }).await?;
    let figures = append_to(&annals, &note(), 1, callers, seconds).await?;
    println!("{}", figures.per_s);
    annals.close().await;
    Ok(())
}

/// One of many views of the same events.
#[derive(Default, Serialize, Deserialize)]
struct Nth<const N: usize>(Spend);

macro_rules! views {
    ($($n:literal)*) => {
        const NAMES: &[&str] = &[$(concat!("view_", $n)),*];

        /// An app with the first `count` of the views.
        async fn following(annals: &Annals, count: usize) -> Result<App, BoxError> {
            let mut app = annals.app().aggregate::<Sale>();
            $(if $n < count { app = app.view::<Nth<$n>>(); })*
            Ok(app.start().await?)
        }
    };
}

views!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40
    41 42 43 44 45 46 47 48 49);

impl<const N: usize> View for Nth<N> {
    const NAME: &'static str = NAMES[N];
    type Event = SaleEvent;

    fn keys(recorded: &Recorded<SaleEvent>) -> Vec<Id> {
        Spend::keys(recorded)
    }

    fn apply(&mut self, key: &Id, recorded: &Recorded<SaleEvent>) -> Change {
        self.0.apply(key, recorded)
    }
}

/// Appends while more and more views follow, and how fast these catch up together.
async fn followers(server: &Server, seconds: u64, curves: &mut Curves) -> Result<(), BoxError> {
    let events = 100_000;
    for followers in [1, 10, 50] {
        let store = "bench_followers";
        fill(server, store, events, events / 10, Order::Written).await?;
        server::forget_peak();
        let annals = connect(server, store).await?;
        let end = annals.horizon().await?.safe;
        let start = std::time::Instant::now();
        let app = following(&annals, followers).await?;
        app.wait_for_all(end, std::time::Duration::from_secs(600)).await?;
        let together = Figures::rate(events * followers, start.elapsed());
        curves.add("followers", followers, "views, all together", "events/s", together.per_s)?;
        server.settle().await?;
        let appends = append_to(&annals, &note(), 1, 32, seconds).await?;
        curves.add("followers", followers, "append, 32 callers", "events/s", appends.per_s)?;
        let resident_mb = server::own_peak().unwrap_or_default() as f64;
        curves.add("followers", followers, "process", "MB resident", resident_mb)?;
        app.shutdown().await;
        for name in &NAMES[..followers] {
            server.drop_store(&format!("{store}_{name}")).await?;
        }
        server.drop_store(store).await?;
    }
    Ok(())
}

/// Bytes of disk and of WAL an event, by the length of its payload; seconds of CPU, of client and server, a million.
async fn cost(server: &Server, seconds: u64, curves: &mut Curves) -> Result<(), BoxError> {
    let store = "bench_cost";
    for bytes in [100, 250, 1_000, 10_000] {
        server.drop_store(store).await?;
        let annals = connect(server, store).await?;
        server.settle().await?;
        let mut conn = server.connect().await?;
        let measure = format!(
            "select pg_total_relation_size('{store}.events'), (pg_current_wal_lsn() - '0/0')::bigint, \
             (select count(*) from {store}.events)"
        );
        let measure = async |conn: &mut sqlx::PgConnection| -> Result<(i64, i64, i64), sqlx::Error> {
            sqlx::query_as(AssertSqlSafe(measure.clone())).fetch_one(conn).await
        };
        let (before, cpu) = (measure(&mut conn).await?, cpu_seconds());
        append_to(&annals, &random_text(bytes - 11), 1, 32, seconds).await?;
        let (after, cpu) = (measure(&mut conn).await?, cpu_seconds() - cpu);
        let events = (after.2 - before.2) as f64;
        curves.add("payload", bytes, "disk", "bytes/event", (after.0 - before.0) as f64 / events)?;
        curves.add("payload", bytes, "WAL", "bytes/event", (after.1 - before.1) as f64 / events)?;
        curves.add("payload", bytes, "append", "CPU s/million", cpu / events * 1e6)?;
        annals.close().await;
        server.drop_store(store).await?;
    }
    let (events, store) = (200_000, "bench_cost_view");
    fill(server, store, events, events / 10, Order::Written).await?;
    for (model, name) in [(Model::View, "view"), (Model::Projector, "projector")] {
        let cpu = cpu_seconds();
        build(server, store, (model, Way::CatchUp), events).await?;
        curves.add("payload", 250, name, "CPU s/million", (cpu_seconds() - cpu) / events as f64 * 1e6)?;
    }
    forget_models(server, store).await?;
    server.drop_store(store).await
}

/// Text that does not compress.
fn random_text(length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        text.push_str(&uuid::Uuid::now_v7().simple().to_string());
    }
    text.truncate(length);
    text
}

/// What this process and every Postgres of this machine have used; 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = |path: &Path| -> Option<(String, f64)> {
        let text = fs::read_to_string(path.join("stat")).ok()?;
        let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
        // utime, stime, cutime, cstime.
        let ticks = rest.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok());
        Some((name.to_owned(), ticks.sum::<f64>() / 100.0))
    };
    let own = stat(Path::new("/proc/self")).map_or(0.0, |(_, seconds)| seconds);
    let all = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| stat(&entry.ok()?.path()));
    own + all.filter(|(name, _)| name == "postgres").map(|(_, seconds)| seconds).sum::<f64>()
}
