//! The limit of appends: `pgbench`, one row a transaction, prepared, in the same row shape.

use std::{path::PathBuf, str::FromStr};

use annals::{BoxError, embedded};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::process::Command;

use crate::measure::Figures;

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
)";

pub(crate) struct Pgbench {
    program: PathBuf,
    url: String,
    script: tempfile::NamedTempFile,
}

impl Pgbench {
    /// Finds the program, and makes the table that it fills.
    pub(crate) async fn find(url: &str) -> Result<Self, BoxError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(embedded::installed());
        let program = folders.map(|folder| folder.join("pgbench")).find(|program| program.is_file()).ok_or(
            "pgbench is not on this machine: install PostgreSQL's client programs (apt-get install postgresql-contrib)",
        )?;
        let mut conn = PgConnection::connect_with(&PgConnectOptions::from_str(url)?).await?;
        sqlx::raw_sql(TABLE).execute(&mut conn).await?;
        let payload = format!("{{\"note\":\"{}\"}}", "x".repeat(239));
        let script = tempfile::NamedTempFile::new()?;
        std::fs::write(
            script.path(),
            format!(
                "\\set stream random(1, 9000000000000000000)\ninsert into limit_events (stream, version, event_type, \
                 payload) values ('bench-' || :stream, 1, 'Counted', '{payload}');\n"
            ),
        )?;
        Ok(Self { program, url: url.into(), script })
    }

    pub(crate) async fn run(&self, clients: usize, seconds: u64) -> Result<Figures, BoxError> {
        let folder = tempfile::tempdir()?;
        let output = Command::new(&self.program)
            .args(["--no-vacuum", "--protocol=prepared", "--log", "--jobs=2"])
            .arg(format!("--client={clients}"))
            .arg(format!("--time={seconds}"))
            .arg(format!("--log-prefix={}", folder.path().join("log").display()))
            .arg("--file")
            .arg(self.script.path())
            .arg(&self.url)
            .output()
            .await?;
        if !output.status.success() {
            return Err(format!("pgbench failed: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| format!("pgbench printed no rate: {text}"))?;
        let mut latencies = vec![];
        for entry in std::fs::read_dir(folder.path())? {
            let log = std::fs::read_to_string(entry?.path())?;
            latencies.extend(log.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
        }
        Ok(Figures { per_s: rate, ..Figures::of(latencies, std::time::Duration::from_secs(seconds)) })
    }
}
