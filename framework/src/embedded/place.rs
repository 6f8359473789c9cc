//! Where everything lies.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{EmbeddedError, account, account::Account, connection, error::Tried};

/// The folders and the user of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The data folder: locks, log, and the file with URL and password, of which `home` has a copy.
    pub(super) data: PathBuf,
    /// Where the cluster and fetched binaries lie: the data folder, unless the server's user cannot enter it.
    pub(super) home: PathBuf,
    /// The user that the server runs as; `None` is this process's own.
    pub(super) account: Option<Account>,
}

impl Place {
    /// Finds, or makes, the folders for `data_dir`. The answer is the same at each start.
    pub(super) fn prepare(data_dir: &Path, announce: fn(&str)) -> Result<Self, EmbeddedError> {
        account::make_folder(data_dir)?;
        let data = data_dir.canonicalize().tried(format_args!("open the data folder {}", data_dir.display()))?;
        let uid = account::own_uid()?;
        if uid == 0 {
            return Self::as_root(data, announce);
        }
        for path in [data.clone(), data.join("pg")] {
            if let Some(owner) = fs::metadata(&path).ok().map(|it| it.uid()).filter(|owner| *owner != uid) {
                return Err(EmbeddedError::NotYours { path, owner });
            }
        }
        Ok(Self { home: data.clone(), data, account: None })
    }

    fn as_root(data: PathBuf, announce: fn(&str)) -> Result<Self, EmbeddedError> {
        if let Some(account) = cluster_owner(&data)? {
            let cluster = data.join("pg");
            return match account.blocked_at(&data) {
                Some(blocked) => Err(EmbeddedError::Unreachable { cluster, user: account.name, blocked }),
                None => Ok(Self { home: data.clone(), data, account: Some(account) }),
            };
        }

        let elsewhere = elsewhere(&data);
        for home in elsewhere.iter().filter(|home| is_roots(home)) {
            if let Some(account) = cluster_owner(home)? {
                // Whoever deleted the data folder wanted a new start, or made a mistake. A mistake cannot be mended once
                // the data are gone too, so they are kept and used, and the way to a new start is said.
                let (shown, at) = (data.display(), home.display());
                announce(&match data.join(connection::FILE).exists() {
                    true => format!("PostgreSQL's files of {shown} are in {at}"),
                    false => format!(
                        "{shown} is new, but the data of an earlier one are still in {at} and are used; \
                         to begin without them, end this and type: rm -rf {at}"
                    ),
                });
                return Ok(Self { data, home: home.clone(), account: Some(account) });
            }
        }

        // A folder that a plain user made gets a cluster that this user can go on with.
        let folder = fs::metadata(&data).tried(format_args!("look at {}", data.display()))?;
        let account = if folder.uid() == 0 { Account::unprivileged()? } else { Account::owner(&folder) };
        let Some(blocked) = account.blocked_at(&data) else {
            return Ok(Self { home: data.clone(), data, account: Some(account) });
        };
        let home = elsewhere.into_iter().find(|home| account::make_folder(home).is_ok() && is_roots(home));
        let Some(home) = home.filter(|home| account.blocked_at(home).is_none()) else {
            return Err(EmbeddedError::Unreachable { cluster: data.join("pg"), user: account.name, blocked });
        };
        announce(&format!(
            "user {}, who runs PostgreSQL, may not enter {}: its files go to {}",
            account.name,
            blocked.display(),
            home.display()
        ));
        Ok(Self { data, home, account: Some(account) })
    }

    pub(super) fn cluster(&self) -> PathBuf {
        self.home.join("pg")
    }

    /// An empty folder in `home` for what is not complete yet, its name beginning with `name`.
    ///
    /// Those of killed processes go. Their `initdb` may still be at work, so a name is never used twice.
    pub(super) fn unfinished(&self, name: &str) -> Result<PathBuf, EmbeddedError> {
        let entries = fs::read_dir(&self.home).tried(format_args!("list {}", self.home.display()))?;
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(name.as_bytes())) {
                let _ = fs::remove_dir_all(path);
            }
        }
        let path = self.home.join(format!("{name}{}", Uuid::now_v7().simple()));
        account::make_folder(&path).map(|()| path)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.data.join("pg.log")
    }
}

/// Who owns the cluster in `home`, if there is one.
fn cluster_owner(home: &Path) -> Result<Option<Account>, EmbeddedError> {
    let cluster = home.join("pg");
    if !cluster.join("PG_VERSION").exists() {
        return Ok(None);
    }
    let metadata = fs::metadata(&cluster).tried(format_args!("look at {}", cluster.display()))?;
    Ok(Some(Account::owner(&metadata)))
}

/// Folders for the files of a data folder that is out of reach: best first, always the same for the same one.
fn elsewhere(data: &Path) -> [PathBuf; 2] {
    let hash = Sha256::digest(data.as_os_str().as_encoded_bytes());
    let key: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    [Path::new("/var/lib/annals").join(&key), std::env::temp_dir().join(format!("annals-{key}"))]
}

/// Everybody may make a folder in the system's temp folder, so one of that name may be a stranger's.
fn is_roots(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == 0)
}
