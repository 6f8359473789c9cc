//! The limit of appends: `pgbench`, one transaction for one row or ten, prepared, in the same row shape.

use std::{path::PathBuf, time::Duration};

use annals::{BoxError, embedded};
use tokio::process::Command;

use crate::{measure::Figures, server::Server};

const TABLE: &str = "
drop table if exists limit_events;
create table limit_events (
  position bigint generated always as identity primary key,
  stream text collate \"C\" not null,
  version bigint not null,
  event_type text collate \"C\" not null,
  recorded_at timestamptz not null default clock_timestamp(),
  payload json not null,
  unique (stream, version)
);
checkpoint";

pub(crate) struct Pgbench(PathBuf);

impl Pgbench {
    /// Finds the program.
    pub(crate) fn find() -> Result<Self, BoxError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(embedded::installed());
        let program = folders.map(|folder| folder.join("pgbench")).find(|program| program.is_file());
        Ok(Self(program.ok_or(
            "pgbench is not on this machine: install PostgreSQL's client programs (apt-get install postgresql-contrib)",
        )?))
    }

    /// As many transactions of `rows` rows as `clients` get through in `seconds`, in a new table.
    pub(crate) async fn run(
        &self,
        server: &Server,
        rows: usize,
        clients: usize,
        seconds: u64,
    ) -> Result<Figures, BoxError> {
        server.run(TABLE.into()).await?;
        let payload = format!("{{\"note\":\"{}\"}}", "x".repeat(239));
        let values: Vec<String> =
            (1..=rows).map(|row| format!("('bench-' || :stream, {row}, 'Counted', '{payload}')")).collect();
        let folder = tempfile::tempdir()?;
        let script = folder.path().join("script");
        let insert = "insert into limit_events (stream, version, event_type, payload) values";
        std::fs::write(
            &script,
            format!("\\set stream random(1, 9000000000000000000)\n{insert} {};\n", values.join(", ")),
        )?;
        let output = Command::new(&self.0)
            .args(["--no-vacuum", "--protocol=prepared", "--log", "--jobs=2"])
            .arg(format!("--client={clients}"))
            .arg(format!("--time={seconds}"))
            .arg(format!("--log-prefix={}", folder.path().join("log").display()))
            .arg("--file")
            .arg(&script)
            .arg(server.url())
            .output()
            .await?;
        if !output.status.success() {
            return Err(format!("pgbench failed: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let transactions: f64 = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| format!("pgbench printed no rate: {text}"))?;
        let mut latencies = vec![];
        for entry in std::fs::read_dir(folder.path())? {
            let path = entry?.path();
            if path != script {
                let log = std::fs::read_to_string(path)?;
                latencies.extend(log.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
            }
        }
        let figures = Figures::of(latencies, rows, Duration::from_secs(seconds));
        Ok(Figures { per_s: transactions * rows as f64, ..figures })
    }
}
