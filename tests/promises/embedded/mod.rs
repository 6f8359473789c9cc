//! Postgres comes along: it starts by itself, is shared, recovers, and leaves nothing behind.

pub(crate) mod app;
mod binaries;
mod killed;
mod kit;
mod root;
mod shared;
mod start;

use std::{
    env, fs,
    future::Future,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    str::FromStr,
    sync::Mutex,
    time::{Duration, Instant},
};

use annals::{
    embedded::{self, EmbeddedError, Fetch, How, Left, Options},
    testing,
};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use self::app::App;

const LIMIT: Duration = Duration::from_secs(30);

/// This binary, at a place that every user can reach.
fn program_for_all(folder: &Folder) -> PathBuf {
    let path = folder.path().join("app");
    fs::copy(env::current_exe().unwrap(), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A folder with these tools and no others, for a `PATH`.
fn only(tools: &[&str], folder: &Folder) -> PathBuf {
    let only = folder.path().join("only");
    fs::create_dir(&only).unwrap();
    for tool in tools {
        let path = env::split_paths(&env::var_os("PATH").unwrap()).map(|it| it.join(tool)).find(|it| it.is_file());
        std::os::unix::fs::symlink(path.unwrap(), only.join(tool)).unwrap();
    }
    only
}

/// A folder in the system's temp folder. A server that runs in it is stopped when it goes.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = env::temp_dir().join(format!("annals-promise-{}", Uuid::now_v7().simple()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for cluster in ["pg", "annals-testing/pg"] {
            let Ok(file) = fs::read_to_string(self.0.join(cluster).join("postmaster.pid")) else { continue };
            if let Some(pid) = file.lines().next() {
                signal("QUIT", pid);
            }
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options(folder: &Folder) -> Options {
    Options { data_dir: folder.path().into(), fetch: Fetch::Never, announce: |_| (), ..Options::default() }
}

async fn execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn ask(url: &str, sql: &str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let answer = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    answer
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        ticks.tick().await;
    }
}

/// Whether the process runs; a zombie does not.
fn is_running(pid: u32) -> bool {
    let state = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap().stdout;
    !state.is_empty() && !state.starts_with(b"Z")
}

pub(crate) fn signal(name: &str, pid: &str) {
    Command::new("sh").args(["-c", &format!("kill -s {name} -- {pid}")]).stderr(Stdio::null()).status().unwrap();
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

fn give_to_unprivileged(path: &Path) {
    if is_root() {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
}
