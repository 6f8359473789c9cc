//! Which server binaries make and run the cluster.

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Attempt, EmbeddedError, Fetch, account::Account, fetch, place::Place, process, process::GivenUp};

/// The oldest major version that the framework runs on.
const OLDEST: u32 = 14;

/// A folder with `initdb` and `postgres`.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    pub(super) folder: PathBuf,
    /// As `postgres --version` prints it: `15.18`.
    pub(super) version: String,
    pub(super) major: u32,
}

impl Binaries {
    /// Asks `postgres` for its version, as the user that will run it: so this says too whether that user can.
    pub(super) fn in_folder(folder: &Path, account: Option<&Account>) -> Option<Self> {
        let folder = folder.canonicalize().ok()?;
        if !folder.join("initdb").is_file() {
            return None;
        }
        let mut ask = Command::new(folder.join("postgres"));
        Account::becomes(account, ask.arg("--version").current_dir("/"));
        let output = process::run(&mut ask, Duration::from_secs(10), &GivenUp::default()).ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split(") ").nth(1)?.split_whitespace().next()?.to_owned();
        let major = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some(Self { folder, version, major })
    }

    /// A program of the folder, with nothing of this process's environment that it has no use for (secrets, `PGDATA`).
    pub(super) fn program(&self, name: &str, account: Option<&Account>) -> Command {
        let mut command = Command::new(self.folder.join(name));
        let kept = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR"];
        let kept = kept.into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
        Account::becomes(account, command.current_dir("/").env_clear().envs(kept).env("LC_ALL", "C"));
        command
    }
}

/// Chooses binaries for the cluster, fetching them when that is allowed and needed.
///
/// `needed` is the major version of the cluster if there is one: its files can be run by no other.
pub(super) fn resolve(attempt: &Attempt, place: &Place, needed: Option<u32>) -> Result<Binaries, EmbeddedError> {
    let account = place.account.as_ref();
    let installed = if attempt.fetch == Fetch::Only { &[] } else { attempt.search.as_slice() };
    let mut found = Vec::new();
    for folder in installed.iter().cloned().chain(fetch::unpacked(&place.home)) {
        let Some(binaries) = Binaries::in_folder(&folder, account) else { continue };
        if binaries.major >= OLDEST && needed.is_none_or(|needed| needed == binaries.major) {
            return Ok(binaries);
        }
        found.push(format!("{} in {}", binaries.version, binaries.folder.display()));
    }

    if let Some(needed) = needed.filter(|needed| *needed != fetch::major() || attempt.fetch == Fetch::Never) {
        let found = if found.is_empty() { "none".into() } else { found.join(", ") };
        return Err(EmbeddedError::WrongVersion { cluster: place.cluster(), needed, found });
    }
    let reason = match found.is_empty() {
        false => format!("there is only {}", found.join(", ")),
        true if installed.is_empty() => "none was looked for".into(),
        true => format!("none in {}", list(installed)),
    };
    if attempt.fetch == Fetch::Never {
        return Err(EmbeddedError::NotFound { reason, command: install_command() });
    }
    if !installed.is_empty() {
        (attempt.announce)(&format!("no PostgreSQL {OLDEST} or newer on this machine ({reason})"));
    }
    fetch::fetch(place, attempt)
}

/// The folders where server binaries are looked for: only `PG_BIN` if that is set, else those of `PATH`, then the usual
/// ones of Debian, Red Hat and Homebrew, newest version first.
pub fn installed() -> Vec<PathBuf> {
    if let Some(folder) = env::var_os("PG_BIN").filter(|folder| !folder.is_empty()) {
        return vec![folder.into()];
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = env::split_paths(&path).filter(|folder| folder.join("postgres").is_file()).collect();
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
    ] {
        folders.extend(versions_in(Path::new(parent), prefix));
    }
    folders
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// `parent/<prefix><number>/bin`, highest number first.
fn versions_in(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by_key(|(number, _)| Reverse(*number));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

/// What a person types on this machine to install Postgres.
pub(super) fn install_command() -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| {
        env::split_paths(&path).chain(["/opt/homebrew/bin".into()]).any(|folder| folder.join(tool).is_file())
    };
    let sudo = if super::account::own_uid().is_ok_and(|uid| uid == 0) { "" } else { "sudo " };
    match () {
        () if cfg!(target_os = "macos") || has("brew") => "brew install postgresql@18".into(),
        () if has("apt-get") => format!("{sudo}apt-get install -y postgresql"),
        () if has("dnf") => format!("{sudo}dnf install -y postgresql-server"),
        () if has("apk") => format!("{sudo}apk add postgresql"),
        () if has("zypper") => format!("{sudo}zypper install -y postgresql-server"),
        () if has("pacman") => format!("{sudo}pacman -S --noconfirm postgresql"),
        () => "export PG_BIN=<the folder with initdb and postgres>".into(),
    }
}
