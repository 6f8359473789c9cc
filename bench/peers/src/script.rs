//! Packages of other ecosystems: a script each, which takes a task as a line of JSON and answers in lines of JSON.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use annals::BoxError;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};
use uuid::Uuid;

use crate::{
    database,
    measure::Figures,
    packages::Outcome,
    server::Server,
    visible::{Acknowledged, Probe},
    work::{self, FILLED, Model, PER_STREAM, Work},
};

/// What a script needs beside itself; its first line of dependencies names the package.
const EMMETT: &str = include_str!("../emmett/package.json");
const EVENTSOURCING: &str = include_str!("../eventsourcing/requirements.txt");

const FILL_EMMETT: &str = r#"
insert into emt_streams (stream_id, stream_position, partition, stream_type, stream_metadata, is_archived)
select 'counter-' || stream, max(version), 'emt:default', 'counter', '{}', false from seed group by stream;
insert into emt_messages (stream_id, stream_position, partition, message_data, message_metadata, message_schema_version,
  message_type, message_kind, message_id, transaction_id)
select 'counter-' || stream, version, 'emt:default', jsonb_build_object('note', repeat('x', 239)), '{}', '1', 'Counted',
  'E', gen_random_uuid(), pg_current_xact_id()
from seed order by n"#;

/// Its aggregates begin with an event of the library's own.
const FILL_EVENTSOURCING: &str = r#"
insert into counters_events (originator_id, originator_version, topic, state)
select stream, version, '__main__:Counter.' || topic, convert_to(
  '{"timestamp":{"_type_":"datetime_iso","_data_":"2026-01-01T00:00:00.000000+00:00"},' || rest || '}', 'UTF8')
from (
  select n, stream, 1 as version, 'Created' as topic, '"originator_topic":"__main__:Counter"' as rest
  from seed where version = 1
  union all
  select n, stream, version + 1, 'Counted', '"note":"' || repeat('x', 239) || '"' from seed
) e
order by n, version"#;

/// The version of a script's package that is installed for it.
pub(crate) fn version(name: &str) -> String {
    let (text, key) = match name {
        "eventsourcing" => (EVENTSOURCING, "eventsourcing=="),
        _ => (EMMETT, "emmett-postgresql\": \""),
    };
    let found = text.split_once(key).and_then(|(_, rest)| rest.split(['"', '\n']).next());
    found.unwrap_or("?").into()
}

/// What a script is asked to do.
#[derive(Default, Serialize)]
struct Task<'t> {
    work: &'t str,
    url: &'t str,
    seconds: u64,
    events: usize,
    callers: usize,
    length: usize,
    ids: Vec<Uuid>,
}

/// What it answers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Measured {
        latencies: Vec<u64>,
        elapsed_us: u64,
    },
    Acknowledged(Acknowledged),
    /// It follows the log from now on.
    Ready {
        #[allow(dead_code, reason = "the name is what says it")]
        ready: bool,
    },
    /// There are no more appends to come.
    Finished {
        #[allow(dead_code, reason = "as above")]
        finished: bool,
    },
}

/// A script that is ready to run.
pub(crate) struct Script {
    program: PathBuf,
    script: PathBuf,
    fill: &'static str,
}

impl Script {
    /// Emmett on node.
    pub(crate) async fn node() -> Result<Self, BoxError> {
        let folder = install_folder("emmett")?;
        copy("emmett", &["package.json", "package-lock.json", "bench.mjs"], &folder)?;
        tool(Command::new("node").arg("--version"), &folder).await?;
        if !folder.join("node_modules").is_dir() {
            tool(Command::new("npm").args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]), &folder).await?;
        }
        Ok(Self { program: "node".into(), script: folder.join("bench.mjs"), fill: FILL_EMMETT })
    }

    /// eventsourcing on Python.
    pub(crate) async fn python() -> Result<Self, BoxError> {
        let folder = install_folder("eventsourcing")?;
        copy("eventsourcing", &["requirements.txt", "bench.py"], &folder)?;
        let python = folder.join("venv/bin/python");
        if !folder.join("installed").is_file() {
            tool(Command::new("python3").args(["-m", "venv", "venv"]), &folder).await?;
            let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"];
            tool(Command::new(&python).args(install), &folder).await?;
            fs::write(folder.join("installed"), "")?;
        }
        Ok(Self { program: python, script: folder.join("bench.py"), fill: FILL_EVENTSOURCING })
    }

    /// Does `work` in a new database.
    pub(crate) async fn run(&self, server: &Server, work: Work, seconds: u64) -> Result<Outcome, BoxError> {
        let url = &database::fresh(server).await?;
        let task = |work| Task { work, url, seconds, callers: 1, ..Task::default() };
        let mut schema = self.start(&task("schema")).await?;
        schema.end().await?;
        let length = match work {
            Work::Load { length } => Some(length),
            Work::CatchUp => Some(PER_STREAM),
            _ => None,
        };
        let ids = match length {
            Some(length) => database::fill(url, FILLED, length, self.fill).await?,
            None => vec![],
        };
        server.settle().await?;
        let figures = match work {
            Work::Append { events, callers } => {
                self.measured(Task { events, callers, ..task("append") }, events).await?
            }
            Work::Command { callers } => self.measured(Task { callers, ..task("command") }, 1).await?,
            Work::Load { length } => self.measured(Task { length, ids, ..task("load") }, length).await?,
            Work::CatchUp => {
                let mut running = self.start(&task("follow")).await?;
                running.ready().await?;
                let figures = work::caught_up(url, Model::TABLE, Instant::now(), || running.is_over()).await;
                running.end().await?;
                figures?
            }
            Work::Visible => {
                let mut running = self.start(&task("visible")).await?;
                running.ready().await?;
                let probe = Probe::start(url, Model::TABLE).await?;
                while let Answer::Acknowledged(append) = running.answer().await? {
                    probe.sender().send(append)?;
                }
                let outcome = probe.finish().await;
                running.end().await?;
                return outcome;
            }
        };
        Ok(Outcome::Measured(figures))
    }

    async fn measured(&self, task: Task<'_>, events: usize) -> Result<Figures, BoxError> {
        let mut running = self.start(&task).await?;
        let Answer::Measured { latencies, elapsed_us } = running.answer().await? else {
            return Err("the script answered something else".into());
        };
        running.end().await?;
        Ok(Figures::of(latencies, events, Duration::from_micros(elapsed_us)))
    }

    async fn start(&self, task: &Task<'_>) -> Result<Running, BoxError> {
        let mut child = Command::new(&self.program)
            .arg(&self.script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or("the script has no standard input")?;
        stdin.write_all(format!("{}\n", serde_json::to_string(task)?).as_bytes()).await?;
        let stdout = child.stdout.take().ok_or("the script has no standard output")?;
        Ok(Running { child, stdin: Some(stdin), lines: BufReader::new(stdout).lines() })
    }
}

/// A script at work.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    async fn answer(&mut self) -> Result<Answer, BoxError> {
        match self.lines.next_line().await? {
            Some(line) => {
                Ok(serde_json::from_str(&line).map_err(|error| format!("the script said {line:?}: {error}"))?)
            }
            None => Err(format!("the script ended early: {}", self.child.wait().await?).into()),
        }
    }

    async fn ready(&mut self) -> Result<(), BoxError> {
        match self.answer().await? {
            Answer::Ready { .. } => Ok(()),
            _ => Err("the script did not begin with being ready".into()),
        }
    }

    fn is_over(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Tells it to stop, by the end of its input, and waits for it.
    async fn end(&mut self) -> Result<(), BoxError> {
        drop(self.stdin.take());
        match self.child.wait().await? {
            status if status.success() => Ok(()),
            status => Err(format!("the script failed: {status}").into()),
        }
    }
}

/// Beside this program, and so below its target folder.
fn install_folder(name: &str) -> Result<PathBuf, BoxError> {
    let program = env::current_exe()?;
    let folder = program.parent().ok_or("this program is in no folder")?.join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Copies a script and what pins its packages. If the pins are others than those of the last time, what was installed goes.
fn copy(name: &str, files: &[&str], folder: &Path) -> Result<(), BoxError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let same = |file: &&str| fs::read(source.join(file)).ok() == fs::read(folder.join(file)).ok();
    if !files.iter().filter(|file| !file.starts_with("bench.")).all(same) {
        fs::remove_dir_all(folder)?;
        fs::create_dir_all(folder)?;
    }
    for file in files {
        fs::copy(source.join(file), folder.join(file))?;
    }
    Ok(())
}

async fn tool(command: &mut Command, folder: &Path) -> Result<(), BoxError> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output =
        command.current_dir(folder).output().await.map_err(|error| format!("{name} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}
