//! The import of orders by the example, as a user runs it: a process of its own, beside the rate of single commands.

use std::{
    env,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use annals::BoxError;
use serde::Deserialize;
use tokio::{process::Command, time::sleep};

use crate::{
    measure::Figures,
    server::{Server, peak},
};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../example-orders/data/orders-sample.csv");
const DATABASE: &str = "bench_import";

/// What the import says at its end.
#[derive(Deserialize)]
struct Summary {
    orders_accepted: usize,
    seconds: f64,
}

/// A file of orders, and the program that imports it.
pub(crate) struct Import {
    program: PathBuf,
    file: PathBuf,
    /// Where a file that was made for the occasion goes with it.
    _folder: Option<tempfile::TempDir>,
}

impl Import {
    /// Of `file`, or of the sample over and over, each time with new order ids.
    pub(crate) async fn prepare(file: Option<&Path>) -> Result<Self, BoxError> {
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let build = ["build", "--quiet", "--release", "--locked", "--package", "example-orders"];
        let built = Command::new(cargo).args(build).current_dir(env!("CARGO_MANIFEST_DIR")).status().await?;
        if !built.success() {
            return Err("the example cannot be built, and without it there is nothing to import with".into());
        }
        let program = env::current_exe()?.with_file_name("example-orders");
        if let Some(file) = file {
            return Ok(Self { program, file: file.into(), _folder: None });
        }
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("orders.csv");
        repeat(&fs::read_to_string(SAMPLE)?, 100, &file)?;
        Ok(Self { program, file, _folder: Some(folder) })
    }

    /// Imports into a new database; orders a second, and the memory that it took.
    pub(crate) async fn run(&self, server: &Server) -> Result<Figures, BoxError> {
        server.run(format!("drop database if exists {DATABASE} with (force)")).await?;
        server.run(format!("create database {DATABASE}")).await?;
        server.settle().await?;
        let mut child = Command::new(&self.program)
            .arg("import")
            .arg(&self.file)
            .arg("--json")
            .env("DATABASE_URL", url_of(server.url())?)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let status = format!("/proc/{}/status", child.id().unwrap_or_default());
        let mut resident_mb = None;
        while child.try_wait()?.is_none() {
            resident_mb = peak(Path::new(&status)).or(resident_mb);
            sleep(Duration::from_millis(50)).await;
        }
        let output = child.wait_with_output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let summary: Summary =
            serde_json::from_str(text.trim()).map_err(|error| format!("the import ended with {text:?}: {error}"))?;
        server.run(format!("drop database {DATABASE} with (force)")).await?;
        let elapsed = Duration::from_secs_f64(summary.seconds);
        Ok(Figures { resident_mb, ..Figures::rate(summary.orders_accepted, elapsed) })
    }
}

/// The same server's address with the import's own database.
fn url_of(url: &str) -> Result<String, BoxError> {
    let (address, query) = url.split_once('?').map_or((url, None), |(address, query)| (address, Some(query)));
    let (server, _) = address.rsplit_once('/').ok_or("the server's URL names no database")?;
    Ok(format!("{server}/{DATABASE}{}", query.map(|query| format!("?{query}")).unwrap_or_default()))
}

/// Writes the rows of `sample` `times` times, with other order ids each time.
fn repeat(sample: &str, times: u64, file: &Path) -> Result<(), BoxError> {
    let (header, rows) = sample.split_once('\n').ok_or("the sample is empty")?;
    let mut out = BufWriter::new(File::create(file)?);
    writeln!(out, "{header}")?;
    for time in 0..times {
        for row in rows.lines() {
            let (order, rest) = row.split_once(',').ok_or("a row of the sample has one column")?;
            writeln!(out, "{},{rest}", order.parse::<u64>()? + time * 100_000_000_000)?;
        }
    }
    Ok(out.flush()?)
}
