//! Which user of the operating system runs the server, and where that user can reach its files.

use std::{
    fs::{self, Metadata},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::{EmbeddedError, error::Tried};

/// A user to run the server as. Only root needs one: Postgres refuses to run as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// `postgres`, or else `nobody`.
    pub(super) fn unprivileged() -> Result<Self, EmbeddedError> {
        let found = ["postgres", "nobody"].into_iter().find_map(|name| {
            let number = |flag: &str| command_number(Command::new("id").args([flag, name]));
            let (uid, gid) = in_passwd(name).or_else(|| Some((number("-u")?, number("-g")?)))?;
            (uid != 0).then(|| Self { name: name.into(), uid, gid })
        });
        found.ok_or(EmbeddedError::NoAccount)
    }

    /// The owner of a folder.
    pub(super) fn owner(folder: &Metadata) -> Self {
        Self { name: format!("#{}", folder.uid()), uid: folder.uid(), gid: folder.gid() }
    }

    /// Makes the command run as this user, with no other group (std drops the supplementary ones).
    pub(super) fn becomes(account: Option<&Self>, command: &mut Command) {
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
        }
    }

    /// Gives a path to this user.
    pub(super) fn owns(account: Option<&Self>, path: &Path) -> Result<(), EmbeddedError> {
        match account {
            None => Ok(()),
            Some(account) => chown(path, Some(account.uid), Some(account.gid)).tried(format_args!(
                "give {} to user {}",
                path.display(),
                account.name
            )),
        }
    }

    /// The first folder on the way to `path` (an absolute path) that this user may not enter.
    pub(super) fn blocked_at(&self, path: &Path) -> Option<PathBuf> {
        let closed = |folder: &&Path| {
            let Ok(metadata) = fs::metadata(folder) else { return false };
            let bit = match () {
                () if metadata.uid() == self.uid => 0o100,
                () if metadata.gid() == self.gid => 0o010,
                () => 0o001,
            };
            metadata.is_dir() && metadata.mode() & bit == 0
        };
        path.ancestors().filter(closed).last().map(Path::to_path_buf)
    }
}

/// The user that this process runs as.
pub(super) fn own_uid() -> Result<u32, EmbeddedError> {
    static UID: OnceLock<Option<u32>> = OnceLock::new();
    let uid = UID.get_or_init(|| command_number(Command::new("id").arg("-u")));
    uid.ok_or_else(|| std::io::Error::other("`id -u` does not answer with a number")).tried("ask who runs this process")
}

/// What root makes in somebody's folder stays theirs, so that they can go on without root.
pub(super) fn belongs_like_its_folder(path: &Path) -> Result<(), EmbeddedError> {
    let Some(folder) = path.parent().filter(|_| own_uid().is_ok_and(|uid| uid == 0)) else { return Ok(()) };
    let owner = fs::metadata(folder).tried(format_args!("look at {}", folder.display()))?;
    chown(path, Some(owner.uid()), Some(owner.gid()))
        .tried(format_args!("give {} to its folder's owner", path.display()))
}

/// Makes a folder with its parents. Those that root makes can be passed by the server's user, whatever the umask.
pub(super) fn make_folder(path: &Path) -> Result<(), EmbeddedError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folder(parent)?;
    }
    match fs::create_dir(path) {
        Err(_) if path.is_dir() => Ok(()),
        Ok(()) if own_uid()? == 0 => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        made => made,
    }
    .tried(format_args!("make the folder {}", path.display()))
}

fn in_passwd(name: &str) -> Option<(u32, u32)> {
    let file = fs::read_to_string("/etc/passwd").ok()?;
    let fields = file.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

fn command_number(command: &mut Command) -> Option<u32> {
    String::from_utf8(command.output().ok()?.stdout).ok()?.trim().parse().ok()
}
